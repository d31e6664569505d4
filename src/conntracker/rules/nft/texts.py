"""Values and expressions of libnftables' JSON in nft's own syntax (nftables, src/expression.c, src/datatype.c)."""

from __future__ import annotations

from typing import Any

__all__ = [
    "BINARY", "VERDICTS", "any_text", "braces", "expression_text", "is_set", "map_text", "plain_text",
    "seconds_text", "style_of", "styles_of", "value_text", "verdict_text",
]  # fmt: skip

_PLAIN_META = {"iif", "iifname", "oif", "oifname", "iifgroup", "oifgroup"}
_QUOTED_META = {"iif", "iifname", "oif", "oifname", "time", "day", "hour", "ibrname", "obrname", "sdif", "sdifname"}
BINARY = {"&", "|", "^", "<<", ">>"}
VERDICTS = {"accept", "drop", "return", "continue", "jump", "goto"}


def any_text(name: str, inner: Any) -> str:
    """What there is no syntax for here: its name, and what stands in the JSON."""
    if inner is None:
        return name
    return f"{name} {plain_text(inner)}"


def plain_text(inner: Any) -> str:
    """JSON without its brackets."""
    if isinstance(inner, dict):
        return " ".join(f"{key} {plain_text(value)}" if value is not None else str(key) for key, value in inner.items())
    if isinstance(inner, list):
        return ",".join(map(plain_text, inner))
    return str(inner)


def is_set(value: Any) -> bool:
    """Whether it is a set, named or not."""
    return (isinstance(value, dict) and "set" in value) or (isinstance(value, str) and value.startswith("@"))


_STYLES = {
    **{("meta", key): "name" for key in _QUOTED_META},
    **{("meta", key): "presence" for key in ("ipsec", "secpath")},
    **{(form, "mark"): "mark" for form in ("meta", "ct")},
    **{("ct", key): "flags" for key in ("state", "status")},
    ("payload", "flags"): "flags",
    ("ct", "helper"): "name",
    ("ct", "expiration"): "time",
    ("osf", "name"): "name",
}
_PRESENT = {"exthdr", "tcp option", "sctp chunk", "ip option", "dccp option"}


def style_of(left: Any) -> str:
    """How values beside an expression are written: mark (hexadecimal), name (quoted), flags, or plain."""
    if not isinstance(left, dict) or len(left) != 1:
        return "plain"
    (form, inner), *_ = left.items()
    if form in BINARY:
        return style_of(inner[0]) if isinstance(inner, list) and inner else "plain"
    if form == "fib" and isinstance(inner, dict):
        return "route" if inner.get("result") in {"oif", "oifname"} else "plain"
    if form in _PRESENT:
        return "presence" if isinstance(inner, dict) and "field" not in inner else "plain"
    if form == "payload" and isinstance(inner, dict) and "base" in inner:
        return "hex"
    key = inner.get("key", inner.get("field")) if isinstance(inner, dict) else None
    return _STYLES.get((form, key), "plain") if isinstance(key, str) else "plain"


def value_text(value: Any, style: str | list[str] = "plain") -> str:
    """What stands on the right side of a match."""
    one = style if isinstance(style, str) else style[0] if style else "plain"
    if isinstance(value, str | int):
        return _single(value, one)
    if isinstance(value, list):
        return ",".join(value_text(part, one) for part in value)
    if not isinstance(value, dict) or len(value) != 1:
        return plain_text(value)
    (form, inner), *_ = value.items()
    writer = _RIGHT.get(form)
    return writer(inner, style, one) if writer is not None else expression_text(value)


def _single(value: str | int, style: str) -> str:
    if isinstance(value, bool):
        return ("exists" if value else "missing") if style in {"presence", "route"} else str(int(value))
    if isinstance(value, int):
        return str(_NUMBERS.get(style, str)(value))
    return f'"{value}"' if style in {"name", "route"} and not value.startswith("@") and value != "*" else value


def _concat(inner: Any, style: str | list[str], one: str) -> str:
    styles = style if isinstance(style, list) else [one] * len(inner)
    return " . ".join(value_text(part, kind) for part, kind in zip(inner, styles, strict=False))


# form -> what writes it, of (what is in it, the style of each field, the first)
_RIGHT: dict[str, Any] = {
    "range": lambda inner, _, one: f"{value_text(inner[0], one)}-{value_text(inner[1], one)}",
    "prefix": lambda inner, _, one: f"{value_text(inner['addr'], one)}/{inner['len']}",
    "concat": _concat,
    "set": lambda inner, style, _: braces(inner if isinstance(inner, list) else [inner], style),
    "|": lambda inner, _, one: " | ".join(value_text(part, one) for part in inner),
    "elem": lambda inner, style, _: _element(inner, style),
}


def braces(values: list[Any], style: str | list[str]) -> str:
    """Elements of a set or map."""
    return "{ " + ", ".join(_item(value, style) for value in values) + " }"


def _item(value: Any, style: str | list[str]) -> str:
    if not isinstance(value, list):
        return value_text(value, style)
    data = value[1]
    verdict = isinstance(data, dict) and len(data) == 1 and set(data) & VERDICTS
    return f"{value_text(value[0], style)} : {verdict_text(*next(iter(data.items()))) if verdict else value_text(data)}"


def _element(inner: dict[str, Any], style: str | list[str]) -> str:
    text = value_text(inner["val"], style)
    if "timeout" in inner:
        text += f" timeout {inner['timeout']}s"
    if inner.get("counter") is not None:
        text += " counter"
    return f'{text} comment "{inner["comment"]}"' if "comment" in inner else text


def expression_text(expression: Any) -> str:
    """What stands on the left side of a match."""
    if not isinstance(expression, dict) or len(expression) != 1:
        return value_text(expression)
    (form, inner), *_ = expression.items()
    writer = _EXPRESSIONS.get(form)
    try:
        if form in BINARY:
            style = style_of(inner[0])
            return f" {form} ".join(
                [
                    expression_text(inner[0]),
                    *(
                        value_text(part, style if form[0] != form[-1] or len(form) == 1 else "plain")
                        for part in inner[1:]
                    ),
                ]
            )
        return (
            writer(inner)
            if writer is not None
            else value_text(expression)
            if form in _VALUES
            else any_text(form, inner)
        )
    except (AttributeError, KeyError, TypeError, IndexError, ValueError):
        return any_text(form, inner)


def _payload(inner: Any) -> str:
    if "base" in inner:
        return f"@{inner['base']},{inner['offset']},{inner['len']}"
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
    return f"{expression_text(key)} map {value_text(data, styles_of(key))}"


def styles_of(key: Any) -> str | list[str]:
    """The same of each field of a concatenation."""
    if isinstance(key, dict) and isinstance(key.get("concat"), list):
        return [style_of(part) for part in key["concat"]]
    return style_of(key)


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


def map_text(data: Any, key_style: str | list[str], style: str) -> str:
    """A map of values, which have a style as its keys have."""
    if isinstance(data, str):
        return data
    pairs = (f"{value_text(key, key_style)} : {value_text(value, style)}" for key, value in data["set"])
    return "{ " + ", ".join(pairs) + " }"


def seconds_text(seconds: int) -> str:
    """A time, as nft writes it: `1h30m`."""
    text = ""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def verdict_text(name: str, inner: Any) -> str:
    """`accept`, `jump services`, ..."""
    return f"{name} {inner['target']}" if name in {"jump", "goto"} else name


_NUMBERS: dict[str, Any] = {
    "mark": lambda value: f"0x{value:08x}",
    "flags": hex,
    "hex": hex,
    "time": seconds_text,
}
