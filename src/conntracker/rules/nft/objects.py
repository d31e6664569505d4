"""What a table has beside chains and sets: counters, limits, quotas, helpers, flow tables; as nft writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conntracker.rules.nft.render import statement_text

__all__ = ["OBJECTS", "object_text"]

OBJECTS = ("counter", "quota", "limit", "ct helper", "ct timeout", "ct expectation", "synproxy", "secmark", "flowtable")


def object_text(kind: str, inner: dict[str, Any]) -> str:
    """One line, as a command can have it."""
    return f"{kind} {inner.get('name')} {{ {_body(kind, inner)} }}"


def _body(kind: str, inner: dict[str, Any]) -> str:
    get = inner.get
    writers: dict[str, Callable[[], str]] = {
        "counter": lambda: "",
        "quota": lambda: f"{'over ' if get('inv') else ''}{get('bytes', 0)} bytes",
        "limit": lambda: statement_text({"limit": {key: inner[key] for key in inner if key != "name"}})[6:],
        "ct helper": lambda: f'type "{get("type")}" protocol {get("protocol")}; l3proto {get("l3proto")};',
        "ct timeout": lambda: _timeout(inner),
        "ct expectation": lambda: " ".join(
            f"{word} {get(word)}{'ms' if word == 'timeout' else ''};"
            for word in ("protocol", "dport", "timeout", "size", "l3proto")
        ),
        "synproxy": lambda: (
            statement_text({"synproxy": inner}).removeprefix("synproxy ").replace(" wscale", "; wscale")
        ),
        "secmark": lambda: f'"{get("context")}"',
        "flowtable": lambda: _flowtable(inner),
    }
    return writers[kind]()


def _timeout(inner: dict[str, Any]) -> str:
    policy = inner.get("policy")
    pairs = ", ".join(f"{name} : {value}" for name, value in policy.items()) if isinstance(policy, dict) else ""
    times = f" policy = {{ {pairs} }};" if pairs else ""
    return f"protocol {inner.get('protocol')}; l3proto {inner.get('l3proto')};{times}"


def _flowtable(inner: dict[str, Any]) -> str:
    devices = inner.get("dev", [])
    shown = ", ".join(f'"{one}"' for one in (devices if isinstance(devices, list) else [devices]))
    return f"hook {inner.get('hook')} priority {inner.get('prio')}; devices = {{ {shown} }};"
