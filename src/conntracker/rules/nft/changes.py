"""What statements change of a packet: `meta mark set`, `ct mark set`, `ip dscp set` and their like, and NAT."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from conntracker.rules.fields import width_of
from conntracker.rules.nft.expressions import Known, needs_of, select, tracked
from conntracker.rules.nft.matches import Operand, operand
from conntracker.rules.nft.render import statement_text
from conntracker.rules.nft.sets import Changing, Sets
from conntracker.rules.nft.values import Unreadable, bits_of, interval, number
from conntracker.rules.nft.verdicts import pair_of
from conntracker.rules.terms import Assign, Effect, In, Nat, Part

__all__ = ["assignment", "nat", "target_of"]

_SETTABLE = {"mark", "packet_type", "tos", "ttl", "saddr", "daddr", "sport", "dport"}
_MARKS = {"mark", "ct_mark"}
_NETMAP = "prefix"
_TCP = In("protocol", ((6, 6),))


def assignment(statement: dict[str, Any], known: Known) -> list[Part]:
    """`KEY set VALUE`: an effect where the key is no field that rules look at."""
    key, value = statement.get("key"), statement.get("value")
    text = statement_text({"mangle": statement})
    target = select(key, known)
    if target is None or (target.field not in _SETTABLE and target.field != "ct_mark"):
        # nft_exthdr.c ends the rule where there is no TCP
        needs = (_TCP,) if isinstance(key, dict) and "tcp option" in key else needs_of(key)
        zone: list[Part] = [Assign("ct_state", None, 7)] if target_of(key) == "ct zone" else []
        return [*needs, Effect(target_of(key), text), *zone]
    width = width_of(target.field, 6 if target.kind == "ipv6" else 4)
    mask = (1 << width) - 1 if target.field_mask is None else target.field_mask
    try:
        return [*target.needs, Assign(target.field, number(value, target.kind) << target.shift, mask)]
    except Unreadable:
        pass
    reading = tuple(dict.fromkeys(_read_needs(value)))
    source = _source(value, known) if target.field in _MARKS else None
    if source is None or source.right:
        return [*reading, *target.needs, Assign(target.field, None, mask)]
    kept = mask if source.mask is None else source.mask
    if source.selector.field == target.field:
        return [*reading, Assign(target.field, source.xor, mask & ~kept)]
    return [*reading, Assign(target.field, source.xor, mask, source.selector.field, kept)]


def _read_needs(value: Any) -> Iterator[In]:
    """What a packet must be for a value to be read from it: without, the rule ends (NFT_BREAK of nft_ct.c and others).

    What a map asks of its key, is a match of its own.
    """
    if isinstance(value, list):
        for one in value:
            yield from _read_needs(one)
    elif isinstance(value, dict) and "map" not in value:
        if isinstance(found := value.get("ct"), dict) and found.get("key") != "state":
            yield tracked()
        elif "payload" in value:
            yield from needs_of(value)
        yield from _read_needs(list(value.values()))


def target_of(key: Any) -> str:
    """What a statement sets, as users call it: `ct zone`, `meta priority`, `tcp option maxseg`."""
    return statement_text({"mangle": {"key": key, "value": 0}}).removesuffix(" set 0")


def _source(value: Any, known: Known) -> Operand | None:
    try:
        found = operand(value, known)
    except Unreadable:
        return None
    return found if found is not None and found.selector.field in _MARKS else None


def nat(kind: str, inner: Any, known: Known, sets: Sets) -> list[Part]:
    """`snat`, `dnat`, `masquerade` and `redirect`. What a map chooses is somewhere between its least and greatest."""
    text = statement_text({kind: inner})
    inner = inner if isinstance(inner, dict) else {}
    only: int | None = None
    family = {"ip": 4, "ip6": 6}.get(str(inner.get("family")))
    if family is None and len(known.families) == 1 and known.families[0][0] == known.families[0][1]:
        family = known.families[0][0]
    elif family is not None:
        only = family  # nft_nat_inet_eval
    where, ports = inner.get("addr"), _pair(inner.get("port"), "port", sets)
    addresses = _pair(where, "ipv6" if family == 6 else "ipv4", sets) if family else None
    if ports is None and _has_ports(where, sets):
        ports = _pair(where, "port", sets, place=1)
    flags = inner.get("type_flags")
    if _NETMAP in (flags if isinstance(flags, list) else [flags]) and not _is_mapped(where):
        kind = "netmap"
    return [Nat(kind, addresses, ports, text, only)]


def _is_mapped(value: Any) -> bool:
    return isinstance(value, dict) and "map" in value


def _pair(value: Any, kind: str, sets: Sets, place: int = 0) -> tuple[int, int] | None:
    """The least and the greatest; all there are where that is not known, None where there is none.

    place   in the concatenations that a map leads to
    """
    if value is None:
        return None
    try:
        if not _is_mapped(value):
            return interval(value, kind)
        pairs = [interval(_parts(data)[place], kind) for data in _data(value, sets)]
        return min(low for low, _ in pairs), max(high for _, high in pairs)
    except (Unreadable, Changing, LookupError, ValueError):
        return 0, (1 << bits_of(kind)) - 1


def _data(value: dict[str, Any], sets: Sets) -> list[Any]:
    """What a map leads to. Raises Unreadable, Changing."""
    return [pair_of(one)[1] for one in sets.elements(value["map"].get("data"))]


def _parts(data: Any) -> list[Any]:
    parts = data.get("concat") if isinstance(data, dict) else None
    return parts if isinstance(parts, list) else [data]


def _has_ports(value: Any, sets: Sets) -> bool:
    """Whether a map gives addresses with ports."""
    if not _is_mapped(value):
        return False
    name = value["map"].get("data")
    if isinstance(name, str):
        found = sets.known.get(name.removeprefix("@"))
        return found is None or found.data is None or " . " in found.data
    try:
        return any(len(_parts(data)) > 1 for data in _data(value, sets))
    except (Unreadable, Changing):
        return True
