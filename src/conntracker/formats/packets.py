"""A packet as rules see it, and a rule's match that it failed, for people and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conntracker.formats.icmp import icmp_name
from conntracker.formats.values import value_text, values_text
from conntracker.rules.fields import FIELD_NAMES
from conntracker.rules.packets import without_absent
from conntracker.rules.terms import AnyOf, Atom, Branches, In, Named

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conntracker.rules.intervals import Intervals
    from conntracker.rules.state import Assumed
    from conntracker.rules.terms import Term, Test
    from conntracker.rules.walk import Passed

__all__ = ["condition", "packet_json", "packet_text", "reason"]

# Behind the ends of a packet, in this order, where they are known.
_DETAILS = (
    "tcp_flags", "ct_state", "ct_direction", "ct_status", "mark", "ct_mark", "mac", "length", "ttl", "tos",
    "packet_type", "saddr_type", "daddr_type", "reverse_path", "skuid", "skgid", "fragment",
)  # fmt: skip
_PLAIN = {"fragment": 0, "mark": 0, "ct_mark": 0, "ct_status": 0, "ct_direction": 0, "packet_type": 0}


def packet_text(packet: Mapping[str, int | str | None]) -> str:
    """One line: `TCP 10.0.0.5:40000 -> 192.168.1.9:443 in eth0 out eth1, state new`. What is not known is `*`."""
    version, packet = _version(packet), without_absent(dict(packet))
    protocol = packet.get("protocol")
    words = [_any("protocol", packet, version).upper() if protocol is not None else f"IPv{version}"]
    words += [_end(packet, "saddr", "sport", version), "->", _end(packet, "daddr", "dport", version)]
    if isinstance(number := packet.get("icmp_type"), int):
        code = packet.get("icmp_code")
        words.append(f"type {number}" + (f" code {code}" if isinstance(code, int) else ""))
        name = icmp_name(int(protocol or 0), number, code if isinstance(code, int) else None)
        words += [f"({name})"] if name else []
    words += [f"{word} {packet[field]}" for field, word in (("iif", "in"), ("oif", "out")) if packet.get(field)]
    details = [
        f"{FIELD_NAMES[field]} {value_text(field, packet[field], version)}"
        for field in _DETAILS
        if packet.get(field) is not None and packet[field] != _PLAIN.get(field)
    ]
    return ", ".join([" ".join(words), *details])


def packet_json(packet: Mapping[str, int | str | None]) -> dict[str, Any]:
    """The fields that are known, addresses, protocol and states as text; null for one that the packet does not have."""
    version = _version(packet)
    as_text = {"saddr", "daddr", "protocol", "nexthdr", "ct_state", "mac", "packet_type", "saddr_type", "daddr_type"}
    return {
        field: value_text(field, value, version) if field in as_text and value is not None else value
        for field, value in packet.items()
    }


def reason(passed: Passed) -> str:
    """Why a rule did not match: 'source 10.0.0.5 is not in 10.1.0.0/16'."""
    return _reason(passed.term, passed.packet)


def _reason(term: Term | Branches, packet: Mapping[str, int | str | None]) -> str:
    version = _version(packet)
    if isinstance(term, Atom):
        return f"taken not to match: {term.text}" if not term.negated else f"taken to match: {term.text}"
    if isinstance(term, Branches):
        asked = [case for case, _ in term.cases if isinstance(case, AnyOf)]
        fields = dict.fromkeys(test.field for case in asked for box in case.boxes for test in box)
        texts = [case.text for case, _ in term.cases if isinstance(case, Atom)]
        elements = [f"no element of the map is {_those(fields, packet, version)}"] if fields else []
        return "; ".join([*elements, *(f"taken not to match: {text}" for text in dict.fromkeys(texts))])
    if isinstance(term, AnyOf):
        fields = dict.fromkeys(test.field for box in term.boxes for test in box)
        said = _those(fields, packet, version)
        return f"{said} is one of those excluded" if term.negated else f"{said} is none of those"
    return _of_test(term, packet, version)


def _of_test(term: Test, packet: Mapping[str, int | str | None], version: int) -> str:
    name = FIELD_NAMES[term.field]
    if packet.get(term.field, "") is None:
        return f"the packet has no {name}"
    if isinstance(term, Named):
        others = ", ".join(pattern or "none" for pattern in term.patterns)
        return f"{name} {_any(term.field, packet, version)} is {'among' if term.negated else 'not'} {others}"
    assert isinstance(term, In)  # noqa: S101  tests are these two
    value = packet.get(term.field)
    wanted = values_text(term.field, term.values, version)
    if isinstance(value, int) and term.mask is not None:
        whole, mask, masked = (
            value_text(term.field, number, version) for number in (value, term.mask, value & term.mask)
        )
        return f"{name} {whole} & {mask} is {masked}, not {wanted}"
    return f"{name} {_any(term.field, packet, version)} is not {_among(term.values)}{wanted}"


def condition(assumed: Assumed, version: int) -> str:
    """What an outcome takes for granted: 'destination port is 22', 'in interface is not eth0'."""
    term, negation = assumed.term, "" if assumed.value else "not "
    if term is None:
        return f"it is {negation}for this host" if assumed.rule is None else f"{negation}{assumed.text}"
    name = FIELD_NAMES[term.field]
    if isinstance(term, Named):
        words = "" if assumed.value != term.negated else "not "
        return f"{name} is {words}" + " or ".join(pattern or "none" for pattern in term.patterns)
    if term.mask is not None:
        name += f" & {value_text(term.field, term.mask, version)}"
    return f"{name} is {negation}{_among(term.values)}{values_text(term.field, term.values, version)}"


def _among(values: Intervals) -> str:
    return "" if len(values) == 1 and values[0][0] == values[0][1] else "in "


def _those(fields: Mapping[str, None], packet: Mapping[str, int | str | None], version: int) -> str:
    return ", ".join(f"{FIELD_NAMES[field]} {_any(field, packet, version)}" for field in fields)


def _any(field: str, packet: Mapping[str, int | str | None], version: int) -> str:
    return value_text(field, packet[field], version) if field in packet else "*"


def _end(packet: Mapping[str, int | str | None], address: str, port: str, version: int) -> str:
    text = _any(address, packet, version)
    if packet.get(port, "") is None:
        return text
    return f"[{text}]:{_any(port, packet, version)}" if ":" in text else f"{text}:{_any(port, packet, version)}"


def _version(packet: Mapping[str, int | str | None]) -> int:
    return 6 if packet.get("family") == 6 else 4
