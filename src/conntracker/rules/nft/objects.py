"""What a table has beside chains and sets: counters, limits, quotas, helpers, flow tables; as nft writes them."""

from __future__ import annotations

from typing import Any

from conntracker.rules.nft.render import statement_text

__all__ = ["OBJECTS", "object_text"]

OBJECTS = ("counter", "quota", "limit", "ct helper", "ct timeout", "ct expectation", "synproxy", "secmark", "flowtable")


def object_text(kind: str, inner: dict[str, Any]) -> str:
    """One line, as a command can have it."""
    return f"{kind} {inner.get('name')} {{ {_body(kind, inner)} }}"


def _body(kind: str, inner: dict[str, Any]) -> str:
    match kind:
        case "counter":
            return ""
        case "quota":
            return f"{'over ' if inner.get('inv') else ''}{inner.get('bytes', 0)} bytes"
        case "limit":
            return statement_text({"limit": {key: value for key, value in inner.items() if key != "name"}})[6:]
        case "ct helper":
            return f'type "{inner.get("type")}" protocol {inner.get("protocol")}; l3proto {inner.get("l3proto")};'
        case "ct timeout":
            policy = inner.get("policy")
            pairs = ", ".join(f"{name} : {value}" for name, value in policy.items()) if isinstance(policy, dict) else ""
            times = f"policy = {{ {pairs} }};" if pairs else ""
            return f"protocol {inner.get('protocol')}; l3proto {inner.get('l3proto')}; {times}"
        case "ct expectation":
            words = ("protocol", "dport", "timeout", "size", "l3proto")
            return "; ".join(f"{word} {inner.get(word)}{'ms' if word == 'timeout' else ''}" for word in words) + ";"
        case "synproxy":
            return statement_text({"synproxy": inner}).removeprefix("synproxy ").replace(" wscale", "; wscale")
        case "secmark":
            return f'"{inner.get("context")}"'
        case _:
            devices = inner.get("dev", [])
            shown = ", ".join(f'"{one}"' for one in (devices if isinstance(devices, list) else [devices]))
            return f"hook {inner.get('hook')} priority {inner.get('prio')}; devices = {{ {shown} }};"
