"""Making packets that rules ask for: each field is set to a value at the edge of, or within, what the terms allow."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from conntracker.lab.trials.space import FOREIGN, Space
from conntracker.rules.fields import CT_STATES, FIELDS, PACKET_TYPES, ROUTE_TYPES, width_of
from conntracker.rules.intervals import Intervals, complement, contains, intersect
from conntracker.rules.order import CONNTRACK, effective_priority
from conntracker.rules.packets import UNTRACKED_ICMPV6, Packet
from conntracker.rules.ruleset import Meaning, Ruleset
from conntracker.rules.state import named
from conntracker.rules.terms import AnyOf, Atom, Branches, In, Named, Part, Test

__all__ = ["Aim", "tests_of"]

_ICMPV6, _LOCAL = 58, ROUTE_TYPES.index("local")
_ROUTING = 43  # header of IPv6 by which routers are named
_TYPED = {"saddr_type": "saddr", "daddr_type": "daddr"}
# The largest number that packets can have, where it is not the largest of the field's bits.
_LARGEST: dict[str, int] = {
    "ct_state": len(CT_STATES) - 1,
    "packet_type": len(PACKET_TYPES) - 1,
    "ct_status": 0x3FFF,
    "length": 1500,
    "skuid": 65534,
    "skgid": 65534,
    "mark": (1 << 31) - 1,
}
_LARGEST |= dict.fromkeys(("saddr_type", "daddr_type"), len(ROUTE_TYPES) - 1)
_USUAL: dict[str, tuple[int, ...]] = {
    "protocol": (6, 6, 6, 6, 17, 17, 17, 1, 58, 132, 136, 47, 50),
    "sport": (40000, 1024, 53, 123),
    "dport": (22, 53, 80, 443, 8080, 40000),
    "tcp_flags": (2, 2, 18, 16, 17, 4, 0, 41, 24),
    "ct_state": (3, 3, 3, 3, 1, 1, 2, 0, 4),
    "ct_status": (398, 398, 394, 392),
    "ct_direction": (0, 0, 1),
    "skuid": (0, 0, 1000),
    "skgid": (0, 0, 1000),
}


def tests_of(parts: Iterable[Part]) -> Iterator[Test]:
    """Every test of a field or a name, those inside AnyOf and Branches too."""
    for part in parts:
        if isinstance(part, In | Named):
            yield part
        elif isinstance(part, AnyOf):
            for box in part.boxes:
                yield from box
        elif isinstance(part, Branches):
            yield from tests_of(case for case, _ in part.cases)


class Aim:
    """Makes packets of one IP version. `values` are the edges of what the ruleset's terms ask for, by field."""

    def __init__(self, ruleset: Ruleset, space: Space, version: int, draw: random.Random) -> None:
        self.space, self.version, self.draw = space, version, draw
        edges: dict[str, set[int]] = defaultdict(set)
        for known in ruleset.chains:
            for meaning in known.meanings:
                if _of_version(meaning, version):
                    for test in tests_of(meaning.parts):
                        if isinstance(test, In):
                            edges[test.field] |= set(self.borders(test))
        self._untracked = all(
            effective_priority(known) > CONNTRACK
            for known in ruleset.chains
            if known.chain.hook in {"prerouting", "output"}
        )
        self.values: dict[str, list[int]] = {name: sorted(found) for name, found in edges.items()}

    def top(self, field: str) -> int:
        """The largest number that a packet can have in a field."""
        return _LARGEST.get(field) or (1 << width_of(field, self.version)) - 1

    def in_state(self, packet: Packet) -> bool:
        """Whether rules find the packet's state where they ask for it: untracked ones have it before any rule."""
        if self._untracked or packet["ct_state"] != CT_STATES.index("untracked"):
            return True
        return packet["protocol"] == _ICMPV6 and contains(UNTRACKED_ICMPV6, int(packet["icmp_type"] or 0))

    def borders(self, test: In) -> Iterator[int]:
        """The numbers on both sides of each end of the set; of a masked one, the numbers in it."""
        top = self.top(test.field)
        if test.mask is not None:
            yield from (low & test.mask for low, _ in test.values[:8])
            return
        for low, high in test.values[:64]:
            yield from (one for one in (low - 1, low, high, high + 1) if 0 <= one <= top)

    def background(self, way: str) -> Packet:
        """A packet with ordinary values, or such as some rule asks for."""
        draw, packet = self.draw, self.space.blank(self.version, way, self.draw)
        for field, usual in _USUAL.items():
            if draw.random() < 0.6 and (way == "output" or field not in {"skuid", "skgid"}):
                packet[field] = self._common(field, usual)
        if packet["ct_state"] == CT_STATES.index("untracked") and not self._untracked:
            packet["ct_state"] = CT_STATES.index("new")
        for field in ("saddr", "daddr"):
            if draw.random() < 0.5 and (way, field) != ("output", "saddr"):
                packet[field] = self._common(field, FOREIGN[self.version])
        for field in ("ttl", "tos", "length", "packet_type", "ct_mark", "icmp_type"):
            if self.values.get(field) and draw.random() < 0.25:
                packet[field] = draw.choice(self.values[field])
        if way == "output" and self.values.get("mark") and draw.random() < 0.4:
            packet["mark"] = draw.choice(self.values["mark"])
        return packet

    def to_itself(self, packet: Packet) -> Packet:
        """The packet as one that the host sends to itself: the loopback device brings it in again."""
        here = self.space.typed(self.version, _LOCAL, self.draw)
        made = self.background("output") | {name: packet[name] for name in ("protocol", "dport", "ct_state")}
        return made | {"oif": "lo", "daddr": here}

    def _common(self, field: str, usual: Sequence[int]) -> int:
        known = self.values.get(field)
        return self.draw.choice(known) if known and self.draw.random() < 0.5 else self.draw.choice(usual)

    # --- terms ---

    def toward(self, packet: Packet, parts: Iterable[Part]) -> bool:
        """Changes the packet so that the terms hold, as far as that can be; False if one cannot."""
        return all(self._part(packet, part) for part in parts)

    def _part(self, packet: Packet, part: Part) -> bool:
        if isinstance(part, In | Named):
            return self.test(packet, part)
        if isinstance(part, AnyOf):
            if part.negated:
                return self._outside(packet, part)
            return any(
                all(self.test(packet, test) for test in box)
                for box in self.draw.sample(part.boxes, min(4, len(part.boxes)))
            )
        if isinstance(part, Branches) and part.cases:
            return self._part(packet, self.draw.choice(part.cases)[0])
        if isinstance(part, Atom) and part.name == "rt" and self.draw.random() < 0.7:
            packet["nexthdr"] = _ROUTING
        return True

    def _outside(self, packet: Packet, part: AnyOf) -> bool:
        """For each box, one of its tests must fail."""
        for test in part.boxes[0] if part.boxes else ():
            if isinstance(test, In):
                self._present(packet, test.field)
        return all(not box or self.fail(packet, self.draw.choice(box)) for box in part.boxes)

    def test(self, packet: Packet, test: Test) -> bool:
        """Makes one test hold."""
        if isinstance(test, Named):
            return self._name(packet, test)
        self._present(packet, test.field)
        value = packet.get(test.field)
        if isinstance(value, int) and contains(test.values, value if test.mask is None else value & test.mask):
            return True
        return self.put(packet, test.field, self._within(test, value if isinstance(value, int) else 0))

    def fail(self, packet: Packet, test: Test) -> bool:
        """Makes one test fail, in a packet that has the field."""
        if isinstance(test, Named):
            return self._name(packet, Named(test.field, test.patterns, not test.negated))
        top = self.top(test.field) if test.mask is None else test.mask
        return self.test(packet, In(test.field, complement(test.values, 0, top), test.mask))

    def _within(self, test: In, old: int) -> int | None:
        """A number that the test allows: at an end, or anywhere."""
        values = intersect(test.values, ((0, self.top(test.field)),))
        if not values:
            return None
        if test.field in {"ct_state", "protocol"}:  # few of them can be sent
            usual = [one for one in _USUAL[test.field] if contains(values, one)]
            if usual:
                return self.draw.choice(usual)
        low, high = self.draw.choice(values)
        value = self.draw.choice((low, high, self.draw.randint(low, high)))
        return value if test.mask is None else (old & ~test.mask) | (value & test.mask)

    def _present(self, packet: Packet, field: str) -> None:
        """Makes the packet one that has the field."""
        for other, values in FIELDS[field].requires:
            value = packet.get(other)
            if not isinstance(value, int) or not contains(values, value):
                self.put(packet, other, self._within(In(other, self._suiting(other, values)), 0))

    def _suiting(self, field: str, values: Intervals) -> Intervals:
        """ICMP is another protocol with each version of IP."""
        if field != "protocol":
            return values
        return intersect(values, complement(((58, 58),) if self.version == 4 else ((1, 1),), 0, 255)) or values

    def put(self, packet: Packet, field: str, value: int | None) -> bool:
        """Gives the packet a value, and what goes with it; False where there is no such packet."""
        if value is None or (field == "family" and value != self.version):
            return False
        if field == "ct_state" and CT_STATES[value] == "untracked" and not self._untracked:
            return False  # only rules make packets untracked, and they would be so before those of raw
        if field in _TYPED:
            address = self.space.typed(self.version, value, self.draw)
            if address is None:
                return False
            field, value = _TYPED[field], address
        packet[field] = value
        if field == "fragment" and value:
            packet["length"] = packet.get("length") or 120
        if field in {"ct_status", "ct_direction", "ct_mark"} and packet.get("ct_state") == CT_STATES.index("new"):
            packet["ct_state"] = CT_STATES.index("established")
        return True

    def _name(self, packet: Packet, test: Named) -> bool:
        old = packet.get(test.field)
        if test.field == "iif" and packet.get("oif") == "lo":
            return named("lo", test)
        if isinstance(old, str) and named(old, test):
            return True
        if old == "":
            return False
        fitting = [name for name in self.space.interfaces if named(name, test)]
        if fitting:
            packet[test.field] = self.draw.choice(fitting)
        return bool(fitting)


def _of_version(meaning: Meaning, version: int) -> bool:
    return all(
        contains(part.values, version) for part in meaning.parts if isinstance(part, In) and part.field == "family"
    )
