"""Rules of libnftables' JSON in nft's own syntax, as `nft list ruleset` writes them (nftables, src/statement.c)."""

from __future__ import annotations

from typing import Any

__all__ = ["expression_text", "rule_text", "set_text", "statement_text"]

_MARKS = {"mark"}
_PLAIN_META = {"iif", "iifname", "oif", "oifname", "iifgroup", "oifgroup"}
_QUOTED_META = {"iif", "iifname", "oif", "oifname", "time", "day", "hour", "ibrname", "obrname", "sdif", "sdifname"}
_QUOTED_TYPES = {"ifname", "time", "day", "hour"}
_BINARY = {"&", "|", "^", "<<", ">>"}
_FLAG_WORDS = {"tcp", "ct"}


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
        return writer(name, inner) if writer is not None else _any(name, inner)
    except (AttributeError, KeyError, TypeError, IndexError, ValueError):
        return _any(name, inner)


def _any(name: str, inner: Any) -> str:
    if inner is None:
        return name
    return f"{name} {_words(inner)}"


def _words(inner: Any) -> str:
    if isinstance(inner, dict):
        return " ".join(f"{key} {_words(value)}" if value is not None else str(key) for key, value in inner.items())
    if isinstance(inner, list):
        return ",".join(map(_words, inner))
    return str(inner)


def _match(_: str, inner: Any) -> str:
    op, left, right = inner["op"], inner["left"], inner["right"]
    style = _style(left)
    if style == "flags" and op in {"==", "!="} and isinstance(left.get("&"), list) and isinstance(left["&"][1], list):
        base, mask = left["&"]
        negated = "!= " if op == "!=" else ""
        return f"{expression_text(base)} {negated}{_value(right, style)} / {_value(mask, style)}"
    sign = "" if op == "in" or (op == "==" and not _needs_sign(left, right, style)) else f"{op} "
    return f"{expression_text(left)} {sign}{_value(right, _styles(left))}"


def _needs_sign(left: Any, right: Any, style: str) -> bool:
    if isinstance(left, dict) and left.keys() & _BINARY:
        return True
    return style == "flags" and not _is_set(right)


def _is_set(value: Any) -> bool:
    return (isinstance(value, dict) and "set" in value) or (isinstance(value, str) and value.startswith("@"))


def _style(left: Any) -> str:
    """How values beside an expression are written: mark (hexadecimal), name (quoted), flags, or plain."""
    if not isinstance(left, dict) or len(left) != 1:
        return "plain"
    (form, inner), *_ = left.items()
    if form in _BINARY:
        return _style(inner[0]) if isinstance(inner, list) and inner else "plain"
    if form == "fib" and isinstance(inner, dict):
        return "route" if inner.get("result") in {"oif", "oifname"} else "plain"
    if form in {"exthdr", "tcp option", "sctp chunk", "ip option", "dccp option"}:
        return "presence" if isinstance(inner, dict) and "field" not in inner else "plain"
    key = inner.get("key", inner.get("field")) if isinstance(inner, dict) else None
    if form in {"meta", "ct"} and key in _MARKS:
        return "mark"
    if (form == "meta" and key in _QUOTED_META) or (form == "ct" and key == "helper") or form == "osf":
        return "name"
    if (form == "ct" and key in {"state", "status"}) or (form == "payload" and key == "flags"):
        return "flags"
    if form == "ct" and key == "expiration":
        return "time"
    if form == "payload" and "base" in inner:
        return "hex"
    return "presence" if form == "meta" and key in {"ipsec", "secpath"} else "plain"


def _value(value: Any, style: str | list[str] = "plain") -> str:
    one = style if isinstance(style, str) else style[0] if style else "plain"
    if isinstance(value, bool):
        return ("exists" if value else "missing") if one in {"presence", "route"} else str(int(value))
    if isinstance(value, int):
        return _NUMBERS.get(one, str)(value)
    if isinstance(value, str):
        return f'"{value}"' if one in {"name", "route"} and not value.startswith("@") and value != "*" else value
    if isinstance(value, list):
        return ",".join(_value(part, one) for part in value)
    if not isinstance(value, dict) or len(value) != 1:
        return _words(value)
    (form, inner), *_ = value.items()
    match form:
        case "range":
            return f"{_value(inner[0], one)}-{_value(inner[1], one)}"
        case "prefix":
            return f"{_value(inner['addr'], one)}/{inner['len']}"
        case "concat":
            styles = style if isinstance(style, list) else [one] * len(inner)
            return " . ".join(_value(part, kind) for part, kind in zip(inner, styles, strict=False))
        case "set":
            return _braces(inner if isinstance(inner, list) else [inner], style)
        case "|":
            return " | ".join(_value(part, one) for part in inner)
        case "elem":
            return _element(inner, style)
    return expression_text(value)


def _braces(values: list[Any], style: str | list[str]) -> str:
    return "{ " + ", ".join(_item(value, style) for value in values) + " }"


def _item(value: Any, style: str | list[str]) -> str:
    if not isinstance(value, list):
        return _value(value, style)
    data = value[1]
    verdict = isinstance(data, dict) and len(data) == 1 and set(data) & _VERDICTS
    return f"{_value(value[0], style)} : {statement_text(data) if verdict else _value(data)}"


def _element(inner: dict[str, Any], style: str | list[str]) -> str:
    text = _value(inner["val"], style)
    if "timeout" in inner:
        text += f" timeout {inner['timeout']}s"
    if inner.get("counter") is not None:
        text += " counter"
    return f'{text} comment "{inner["comment"]}"' if "comment" in inner else text


def expression_text(expression: Any) -> str:
    """What stands on the left side of a match."""
    if not isinstance(expression, dict) or len(expression) != 1:
        return _value(expression)
    (form, inner), *_ = expression.items()
    writer = _EXPRESSIONS.get(form)
    try:
        if form in _BINARY:
            style = _style(inner[0])
            return f" {form} ".join(
                [
                    expression_text(inner[0]),
                    *(_value(part, style if form[0] != form[-1] or len(form) == 1 else "plain") for part in inner[1:]),
                ]
            )
        return writer(inner) if writer is not None else _value(expression) if form in _VALUES else _any(form, inner)
    except (AttributeError, KeyError, TypeError, IndexError, ValueError):
        return _any(form, inner)


def _payload(inner: Any) -> str:
    if "base" in inner:
        return f"@{inner['base']},{inner['offset']},{inner['len']}"  # numbers beside it are hexadecimal
    return f"{inner['protocol']} {inner['field']}"


def _meta(inner: Any) -> str:
    return inner["key"] if inner["key"] in _PLAIN_META else f"meta {inner['key']}"


def _ct(inner: Any) -> str:
    return " ".join(["ct", *([inner["dir"]] if "dir" in inner else []), inner["key"]])


def _fib(inner: Any) -> str:
    flags = inner["flags"]
    return f"fib {' . '.join(flags if isinstance(flags, list) else [flags])} {inner['result']}"


def _option(name: str) -> Any:
    return lambda inner: f"{name} {inner['name']}" + (f" {inner['field']}" if "field" in inner else "")


def _exthdr(inner: Any) -> str:
    return f"{inner['name']} {inner['field']}" if "field" in inner else f"exthdr {inner['name']}"


def _numgen(inner: Any) -> str:
    offset = f" offset {inner['offset']}" if inner.get("offset") else ""
    return f"numgen {inner['mode']} mod {inner['mod']}{offset}"


def _hash(name: str) -> Any:
    def write(inner: Any) -> str:
        parts = [name, *([expression_text(inner["expr"])] if "expr" in inner else []), f"mod {inner['mod']}"]
        parts += [f"{word} {inner[word]}" for word in ("seed", "offset") if inner.get(word)]
        return " ".join(parts)

    return write


def _map(inner: Any) -> str:
    key, data = inner["key"], inner["data"]
    return f"{expression_text(key)} map {_value(data, _styles(key))}"


def _styles(key: Any) -> str | list[str]:
    if isinstance(key, dict) and isinstance(key.get("concat"), list):
        return [_style(part) for part in key["concat"]]
    return _style(key)


_VALUES = {"range", "prefix", "set", "elem"}
_EXPRESSIONS: dict[str, Any] = {
    "payload": _payload,
    "meta": _meta,
    "ct": _ct,
    "fib": _fib,
    "rt": lambda inner: " ".join(["rt", *([inner["family"]] if "family" in inner else []), inner["key"]]),
    "socket": lambda inner: f"socket {inner['key']}",
    "osf": lambda inner: " ".join(["osf", *([f"ttl {inner['ttl']}"] if "ttl" in inner else []), inner["key"]]),
    "ipsec": lambda inner: f"ipsec {inner['dir']} {inner['key']}",
    "exthdr": _exthdr,
    "tcp option": _option("tcp option"),
    "ip option": _option("ip option"),
    "sctp chunk": _option("sctp chunk"),
    "dccp option": lambda inner: f"dccp option {inner['type']}",
    "numgen": _numgen,
    "jhash": _hash("jhash"),
    "symhash": _hash("symhash"),
    "map": _map,
    "concat": lambda inner: " . ".join(map(expression_text, inner)),
}


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
        return f"{name} name {expression_text(mapping['key'])} map {_mapped(mapping['data'], _styles(mapping['key']), 'name')}"
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
        text += f" to {shown}" + ("" if port is None else f":{_value(port)}")
    return text + _flags(inner)


def _address(address: Any, inner: Any, port: Any) -> str:
    text = _value(address)
    if port is None or inner.get("family") != "ip6":
        return text
    return "-".join(f"[{part}]" for part in text.split("-"))


def _verdict(name: str, inner: Any) -> str:
    return f"{name} {inner['target']}" if name in {"jump", "goto"} else name


def _mangle(_: str, inner: Any) -> str:
    key, value = inner["key"], inner["value"]
    style = _style(key)
    if isinstance(value, dict) and "map" in value:
        mapping = value["map"]
        shown = _mapped(mapping["data"], _styles(mapping["key"]), style)
        return f"{expression_text(key)} set {expression_text(mapping['key'])} map {shown}"
    if style == "flags" and isinstance(value, int):
        style = "plain"
    return f"{expression_text(key)} set {_value(value, style)}"


def _mapped(data: Any, key_style: str | list[str], style: str) -> str:
    if isinstance(data, str):
        return data
    pairs = (f"{_value(key, key_style)} : {_value(value, style)}" for key, value in data["set"])
    return "{ " + ", ".join(pairs) + " }"


def _update(_: str, inner: Any) -> str:
    element = inner.get("elem", inner.get("key"))
    timeout = ""
    if isinstance(element, dict) and "elem" in element:
        timeout = f" timeout {_seconds(element['elem']['timeout'])}" if "timeout" in element["elem"] else ""
        element = element["elem"]["val"]
    statements = "".join(f" {statement_text(one)}" for one in inner.get("stmt") or [])
    data = inner.get("data")
    value = "" if data is None else f" : {_value(data)}"
    name = inner.get("set", inner.get("map"))
    return f"{inner['op']} {name} {{ {expression_text(element)}{timeout}{statements}{value} }}"


def _seconds(seconds: int) -> str:
    text = ""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def _queue(name: str, inner: Any) -> str:
    if not inner:
        return f"{name} to 0"
    flags = inner.get("flags")
    shown = f" flags {','.join(flags if isinstance(flags, list) else [flags])}" if flags else ""
    return f"{name}{shown} to {_value(inner.get('num', 0))}"


def _synproxy(name: str, inner: Any) -> str:
    if isinstance(inner, str) or not inner:
        return f'{name} name "{inner}"' if inner else name
    flags = inner.get("flags", [])
    words = [f"{word} {inner[word]}" for word in ("mss", "wscale") if word in inner]
    return " ".join([name, *words, *(flags if isinstance(flags, list) else [flags])])


def _forward(name: str, inner: Any) -> str:
    address = f"{inner['family']} to {_value(inner['addr'])} device {inner['dev']}" if "addr" in inner else ""
    return f"{name} {address}" if address else f'{name} to "{inner["dev"]}"'


def _dup(name: str, inner: Any) -> str:
    return f"{name} to {_value(inner['addr'])}" + (f' device "{inner["dev"]}"' if "dev" in inner else "")


def _vmap(_: str, inner: Any) -> str:
    return f"{expression_text(inner['key'])} vmap {_value(inner['data'], _styles(inner['key']))}"


_VERDICTS = {"accept", "drop", "return", "continue", "jump", "goto"}
_STATEMENTS: dict[str, Any] = {
    **dict.fromkeys(_VERDICTS, _verdict),
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
    "ct helper": lambda name, inner: f'{name} set "{inner}"' if isinstance(inner, str) else _any(name, inner),
    "ct timeout": lambda name, inner: f'{name} set "{inner}"' if isinstance(inner, str) else _any(name, inner),
    "ct expectation": lambda name, inner: f'{name} set "{inner}"' if isinstance(inner, str) else _any(name, inner),
    "flow": lambda _, inner: f"flow {inner['op']} {inner['flowtable']}",
    "reset": lambda _, inner: f"reset {expression_text(inner)}",
    "xt": lambda name, inner: f"{name} {inner['type']} {inner['name']}",
}


_NUMBERS: dict[str, Any] = {
    "mark": lambda value: f"0x{value:08x}",
    "flags": hex,
    "hex": hex,
    "time": lambda value: _seconds(value),
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
    parts += [f"timeout {_seconds(inner['timeout'])}"] if isinstance(inner.get("timeout"), int) else []
    parts += [f"size {inner['size']}"] if "size" in inner else []
    parts += [" ".join(statement_text(one) for one in inner.get("stmt") or [])] if inner.get("stmt") else []
    if inner.get("elem"):
        style = [
            "name" if one in _QUOTED_TYPES else "mark" if one == "mark" else "plain"
            for one in (types if isinstance(types, list) else [types])
        ]
        parts.append(f"elements = {_braces(inner['elem'], style if isinstance(types, list) else style[0])}")
    return f"{kind} {inner.get('name')} {{ {' '.join(f'{part};' for part in parts)} }}"
