"""Rules of libnftables' JSON in nft's own syntax, as `nft list ruleset` writes them (nftables, src/statement.c)."""

from __future__ import annotations

from typing import Any

from conntracker.rules.nft.texts import (
    BINARY,
    VERDICTS,
    any_text,
    braces,
    expression_text,
    is_set,
    map_text,
    seconds_text,
    style_of,
    styles_of,
    value_text,
    verdict_text,
)

__all__ = ["expression_text", "rule_text", "set_text", "statement_text"]

_QUOTED_TYPES = {"ifname", "time", "day", "hour"}


def rule_text(statements: list[Any], comment: str | None = None) -> str:
    """A rule without its handle and without counts."""
    texts = [text for text in map(statement_text, statements) if text]
    return " ".join([*texts, f'comment "{comment}"'] if comment else texts)


def statement_text(statement: Any) -> str:
    """One statement. What is not known stands as it does in JSON."""
    if not isinstance(statement, dict) or len(statement) != 1:
        return " ".join(str(statement).split())
    (name, inner), *_ = statement.items()
    writer = _STATEMENTS.get(name)
    try:
        return writer(name, inner) if writer is not None else any_text(name, inner)
    except (AttributeError, KeyError, TypeError, IndexError, ValueError):
        return any_text(name, inner)


def _match(_: str, inner: Any) -> str:
    op, left, right = inner["op"], inner["left"], inner["right"]
    style = style_of(left)
    if style == "flags" and op in {"==", "!="} and isinstance(left.get("&"), list) and isinstance(left["&"][1], list):
        base, mask = left["&"]
        negated = "!= " if op == "!=" else ""
        return f"{expression_text(base)} {negated}{value_text(right, style)} / {value_text(mask, style)}"
    sign = "" if op == "in" or (op == "==" and not _needs_sign(left, right, style)) else f"{op} "
    return f"{expression_text(left)} {sign}{value_text(right, styles_of(left))}"


def _needs_sign(left: Any, right: Any, style: str) -> bool:
    if isinstance(left, dict) and left.keys() & BINARY:
        return True
    return style == "flags" and not is_set(right)


def _limit(_: str, inner: Any) -> str:
    if isinstance(inner, str):
        return f'limit name "{inner}"'
    over, unit = "over " if inner.get("inv") else "", inner.get("rate_unit")
    rate = f"{inner['rate']} {unit}/{inner['per']}" if unit else f"{inner['rate']}/{inner['per']}"
    burst = inner.get("burst")
    burst_unit = inner.get("burst_unit", "packets")
    plain = burst is None or burst == 0 or (burst_unit == "packets" and burst == 5)  # 5: what there is without
    return f"limit rate {over}{rate}" + ("" if plain else f" burst {burst} {burst_unit}")


def _quota(_: str, inner: Any) -> str:
    if isinstance(inner, str):
        return f'quota name "{inner}"'
    return f"quota {'over ' if inner.get('inv') else ''}{inner['val']} {inner['val_unit']}"


def _counter(name: str, inner: Any) -> str:
    if isinstance(inner, str):
        return f'{name} name "{inner}"'
    if isinstance(inner, dict) and "map" in inner:
        mapping = inner["map"]
        names = map_text(mapping["data"], styles_of(mapping["key"]), "name")
        return f"{name} name {expression_text(mapping['key'])} map {names}"
    return name


def _log(name: str, inner: Any) -> str:
    inner = inner or {}
    parts = [name]
    if "prefix" in inner:
        parts.append(f'prefix "{inner["prefix"]}"')
    parts += [f"{word} {inner[word]}" for word in ("group", "snaplen", "queue-threshold", "level") if word in inner]
    flags = inner.get("flags")
    for flag in [] if flags is None else flags if isinstance(flags, list) else [flags]:
        parts.append(f"flags {'ip options' if flag == 'ip options' else flag}")
    return " ".join(parts)


def _reject(name: str, inner: Any) -> str:
    if not inner or inner in (
        {"type": "icmpx", "expr": "port-unreachable"},
        {"type": "icmp", "expr": "port-unreachable"},
    ):
        return name if not inner or inner["type"] == "icmpx" else f"{name} with icmp port-unreachable"
    return f"{name} with {inner['type']}" + (f" {inner['expr']}" if "expr" in inner else "")


def _flags(inner: Any) -> str:
    flags = inner.get("flags") if isinstance(inner, dict) else None
    if flags is None:
        return ""
    shown = [flag for flag in (flags if isinstance(flags, list) else [flags]) if flag != "netmap"]
    return " " + ",".join(shown) if shown else ""


def _nat(name: str, inner: Any) -> str:
    if not inner:
        return name
    text = name
    if "family" in inner:
        text += f" {inner['family']}"
    if inner.get("type_flags"):
        flags = inner["type_flags"]
        text += f" {flags if isinstance(flags, str) else ' '.join(flags)}"
    address, port = inner.get("addr"), inner.get("port")
    if address is not None or port is not None:
        shown = "" if address is None else _address(address, inner, port)
        text += f" to {shown}" + ("" if port is None else f":{value_text(port)}")
    return text + _flags(inner)


def _address(address: Any, inner: Any, port: Any) -> str:
    text = value_text(address)
    if port is None or inner.get("family") != "ip6":
        return text
    return "-".join(f"[{part}]" for part in text.split("-"))


def _mangle(_: str, inner: Any) -> str:
    key, value = inner["key"], inner["value"]
    style = style_of(key)
    if isinstance(value, dict) and "map" in value:
        mapping = value["map"]
        shown = map_text(mapping["data"], styles_of(mapping["key"]), style)
        return f"{expression_text(key)} set {expression_text(mapping['key'])} map {shown}"
    if style == "flags" and isinstance(value, int):
        style = "plain"
    return f"{expression_text(key)} set {value_text(value, style)}"


def _update(_: str, inner: Any) -> str:
    element = inner.get("elem", inner.get("key"))
    timeout = ""
    if isinstance(element, dict) and "elem" in element:
        timeout = f" timeout {seconds_text(element['elem']['timeout'])}" if "timeout" in element["elem"] else ""
        element = element["elem"]["val"]
    statements = "".join(f" {statement_text(one)}" for one in inner.get("stmt") or [])
    data = inner.get("data")
    value = "" if data is None else f" : {value_text(data)}"
    name = inner.get("set", inner.get("map"))
    return f"{inner['op']} {name} {{ {expression_text(element)}{timeout}{statements}{value} }}"


def _queue(name: str, inner: Any) -> str:
    if not inner:
        return f"{name} to 0"
    flags = inner.get("flags")
    shown = f" flags {','.join(flags if isinstance(flags, list) else [flags])}" if flags else ""
    return f"{name}{shown} to {value_text(inner.get('num', 0))}"


def _synproxy(name: str, inner: Any) -> str:
    if isinstance(inner, str) or not inner:
        return f'{name} name "{inner}"' if inner else name
    flags = inner.get("flags", [])
    words = [f"{word} {inner[word]}" for word in ("mss", "wscale") if word in inner]
    return " ".join([name, *words, *(flags if isinstance(flags, list) else [flags])])


def _forward(name: str, inner: Any) -> str:
    address = f"{inner['family']} to {value_text(inner['addr'])} device {inner['dev']}" if "addr" in inner else ""
    return f"{name} {address}" if address else f'{name} to "{inner["dev"]}"'


def _dup(name: str, inner: Any) -> str:
    return f"{name} to {value_text(inner['addr'])}" + (f' device "{inner["dev"]}"' if "dev" in inner else "")


def _vmap(_: str, inner: Any) -> str:
    return f"{expression_text(inner['key'])} vmap {value_text(inner['data'], styles_of(inner['key']))}"


_STATEMENTS: dict[str, Any] = {
    **dict.fromkeys(VERDICTS, verdict_text),
    **dict.fromkeys(("snat", "dnat", "masquerade", "redirect", "tproxy"), _nat),
    **dict.fromkeys(("set", "map"), _update),
    "match": _match,
    "vmap": _vmap,
    "limit": _limit,
    "quota": _quota,
    "counter": _counter,
    "last": lambda name, _: name,
    "log": _log,
    "reject": _reject,
    "mangle": _mangle,
    "queue": _queue,
    "synproxy": _synproxy,
    "fwd": _forward,
    "dup": _dup,
    "ct count": lambda name, inner: f"{name} {'over ' if inner.get('inv') else ''}{inner['val']}",
    "ct helper": lambda name, inner: f'{name} set "{inner}"' if isinstance(inner, str) else any_text(name, inner),
    "ct timeout": lambda name, inner: f'{name} set "{inner}"' if isinstance(inner, str) else any_text(name, inner),
    "ct expectation": lambda name, inner: f'{name} set "{inner}"' if isinstance(inner, str) else any_text(name, inner),
    "flow": lambda _, inner: f"flow {inner['op']} {inner['flowtable']}",
    "reset": lambda name, inner: f"{name} {expression_text(inner)}",
    "xt": lambda name, inner: f"{name} {inner['type']} {inner['name']}",
}


def set_text(kind: str, inner: dict[str, Any]) -> str:
    """A named set or map, all in one line, as a command can have it."""
    types = inner.get("type")
    parts = [f"type {' . '.join(types) if isinstance(types, list) else types}"]
    if kind == "map":
        data = inner.get("map")
        parts[0] += f" : {' . '.join(data) if isinstance(data, list) else data}"
    parts += [f"policy {inner['policy']}"] if "policy" in inner else []
    flags = inner.get("flags")
    if flags:
        parts.append(f"flags {','.join(flags if isinstance(flags, list) else [flags])}")
    parts += [f"timeout {seconds_text(inner['timeout'])}"] if isinstance(inner.get("timeout"), int) else []
    parts += [f"size {inner['size']}"] if "size" in inner else []
    parts += [" ".join(statement_text(one) for one in inner.get("stmt") or [])] if inner.get("stmt") else []
    if inner.get("elem"):
        style = [
            "name" if one in _QUOTED_TYPES else "mark" if one == "mark" else "plain"
            for one in (types if isinstance(types, list) else [types])
        ]
        parts.append(f"elements = {braces(inner['elem'], style if isinstance(types, list) else style[0])}")
    return f"{kind} {inner.get('name')} {{ {' '.join(f'{part};' for part in parts)} }}"
