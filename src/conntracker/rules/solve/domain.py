"""What packets there are: the fields as bits, and what is certain of every packet.

A condition stands here only if it holds for every packet that the kernel can meet: a wrong one would make a rule look
dead that is not. Left free, because nothing is certain: address types that depend on the host (unless its addresses are
told), which addresses come in by which interface, where routing sends a packet, packet types, and what NAT does to a
packet of a flow that was translated before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from conntracker.rules.fields import CT_STATES, FIELDS, NAMES, ROUTE_TYPES, width_of
from conntracker.rules.intervals import Intervals, normal, single, union
from conntracker.rules.packets import NEXT_HEADERS, UNTRACKED_ICMPV6
from conntracker.rules.solve.circuit import FALSE, TRUE, Circuit, Vector
from conntracker.rules.solve.names import Interfaces
from conntracker.rules.terms import Atom

__all__ = ["CONNTRACK_FIELDS", "ROUTING", "SOMETIMES", "STATE", "Domain", "Values", "Witness"]

# A packet's fields where it stands: after a rule has changed one, it is another vector. Beside the fields there are
# `socket`, whether it has one, and `zone`, whether connection tracking was told to look for its flow elsewhere.
Values = Mapping[str, Vector]

# What a packet has of its flow.
CONNTRACK_FIELDS = ("ct_state", "ct_status", "ct_direction", "ct_mark")

# Fields that some packets lack for reasons that are no other field's; user and group go together.
SOMETIMES = {"mac": "mac", "skuid": "socket", "skgid": "socket"}

STATE = {name: single(number) for number, name in enumerate(CT_STATES)}
_TRACKED = normal([(1, 3)])
_ICMP = normal([(1, 1), (58, 58)])
_MULTICAST = {4: normal([(0xE0000000, 0xEFFFFFFF)]), 6: normal([(0xFF << 120, (1 << 128) - 1)])}
_SRC_NAT, _DST_NAT = 1 << 4, 1 << 5  # IPS_SRC_NAT, IPS_DST_NAT
_SEEN_REPLY = 1 << 1
_LOOPBACK = {4: normal([(127 << 24, (128 << 24) - 2)]), 6: single(1)}
_BROADCAST = normal([((128 << 24) - 1, (128 << 24) - 1), ((1 << 32) - 1, (1 << 32) - 1)])  # as rules.host has it
# What routing reads of a packet.
ROUTING = ("mark", "tos", "saddr", "daddr")


@dataclass(frozen=True, slots=True)
class Witness:
    """A packet as evidence.

    version   of IP
    way       input, forward or output
    packet    its fields when it is first seen; None for one that it lacks, names for interfaces
    assumed   (text, outcome) of each match that is not in the packet
    outcomes  the same by text and occurrence (see terms.Atom): equal texts may have an outcome each
    """

    version: int
    way: str
    packet: dict[str, int | str | None]
    assumed: tuple[tuple[str, bool], ...] = ()
    outcomes: tuple[tuple[tuple[str, str], bool], ...] = ()

    def told(self, atom: Atom) -> bool | None:
        """The outcome of an atom, not negated; None for one that is not known."""
        return dict(self.outcomes).get((atom.text, atom.occurrence))


class Domain:
    """The packets of an IP version: their fields in a circuit.

    always   literals that hold for every packet
    ways     by way, whether the packet goes it
    start    the fields of a packet when it is first seen
    """

    def __init__(
        self, version: int, interfaces: Interfaces, local: Mapping[int, Intervals] | None = None, way: str | None = None
    ) -> None:
        self.version, self.interfaces = version, interfaces
        self.circuit = circuit = Circuit()
        self._local = None if local is None else union(local.get(version, ()), _LOOPBACK[version])
        self.has: dict[str, int] = {name: circuit.new() for name in ("mac", "socket")}
        self.start: dict[str, Vector] = {
            name: circuit.constant(version, 3) if name == "family" else circuit.number(width_of(name, version))
            for name in FIELDS
        }
        for name in NAMES:
            self.start[name] = circuit.number(interfaces.width)
        self.start["socket"] = circuit.vector((self.has["socket"],))
        self.start["zone"] = circuit.constant(0, 1)
        self.choosers = one, other = circuit.new(), circuit.new()  # forward, output; neither is input
        self.ways = {"input": circuit.both(-one, -other), "forward": circuit.both(one, -other), "output": other}
        self.always: list[int] = [circuit.either(-one, -other)]
        # NAT of a flow that was given to it by an earlier packet; whether there was one, be it that no NAT was given.
        self.translated = {"dst": circuit.new(), "src": circuit.new()}
        # `loose`: whether one that got none may be given one now, if NAT's chains were asked again.
        self.later, self.loose = circuit.new(), circuit.new()
        self.handed: list[int] = []  # by queue, whether a program lets a packet go on, and whether it changes its mark
        self.held: list[int] = []  # inputs that hold in a packet of which all others may be 0: see Samples
        self.returning: list[int] = []  # whether a packet that is routed again goes to the loopback device
        self._routes: list[tuple[tuple[Vector, ...], Vector]] = []
        self._free: dict[object, Vector] = {}
        self._nat: dict[str, dict[tuple[Vector, Vector], None]] = {}
        if way is not None:
            self.always.append(self.ways[way])
        self._certain()

    def within(self, values: Values, field: str, numbers: Intervals) -> int:
        """Whether the field's value is one of a set; where the packet lacks the field, either."""
        return self.circuit.within(values[field], numbers)

    def present(self, values: Values, field: str) -> int:
        """Whether the packet has such a field."""
        literals = [self._sometimes(values, SOMETIMES[field])] if field in SOMETIMES else []
        if field in FIELDS:
            literals += [self.within(values, other, numbers) for other, numbers in FIELDS[field].requires]
        return self.circuit.every(literals)

    def _sometimes(self, values: Values, what: str) -> int:
        return values["socket"].bits[0] if what == "socket" else self.has[what]

    def free(self, key: object, width: int) -> Vector:
        """A number of which nothing is known; the same for the same key."""
        if key not in self._free:
            self._free[key] = self.circuit.number(width)
        return self._free[key]

    def bounded(self, key: object, width: int, low: int, high: int) -> Vector:
        """A number between low and high of which nothing else is known."""
        if low == high:
            return self.circuit.constant(low, width)
        fresh = (key, low, high) not in self._free
        number = self.free((key, low, high), width)
        if fresh:
            self.always.append(self.circuit.within(number, ((low, high),)))
            self.held += [bit for i, bit in enumerate(reversed(number.bits)) if low >> i & 1]
        return number

    def address_type(self, field: str, address: Vector) -> Vector:
        """The type of an address that NAT has set."""
        key = "type", field, address
        fresh = key not in self._free
        number = self.free(key, FIELDS[field].width)
        if fresh:
            self._address_type(number, address)
        return number

    def route(self, values: Values) -> Vector:
        """The interface that routing chooses anew: any there is, and for equal packets the same."""
        key = tuple(values[name] for name in ROUTING)
        found = next((chosen for before, chosen in self._routes if before == key), None)
        if found is None:
            found = self.bounded(("route", key), self.interfaces.width, 1, len(self.interfaces.names) - 1)
            for before, chosen in self._routes:
                unequal = [self.circuit.unequal(a, b) for a, b in zip(key, before, strict=True)]
                self.always.append(self.circuit.some([*unequal, -self.circuit.unequal(found, chosen)]))
            self._routes.append((key, found))
            self.returning.append(self.circuit.within(found, single(1)))
        return found

    def elsewhere(self, hook: str) -> dict[str, Vector]:
        """What connection tracking may find in another zone, at a hook."""
        fresh = ("zone", hook, "ct_state") not in self._free
        found = {name: self.free(("zone", hook, name), FIELDS[name].width) for name in CONNTRACK_FIELDS}
        if fresh:
            self.always.append(self.circuit.within(found["ct_state"], ((0, len(CT_STATES) - 1),)))
            self._first_of_flow(found)
        return found

    def settle(self, steady: bool) -> None:
        """From now on it is known whether NAT's chains ask for nothing but what all packets of a flow have."""
        self.always.append(-self.loose if steady else self.loose)
        self.held += [] if steady else [self.loose]

    def hops_are_left(self) -> None:
        """From now on, no packet is forwarded that has none left: if rules do not change their number."""
        self._imply(self.ways["forward"], self.within(self.start, "ttl", ((2, 255),)))

    def given_by_nat(self, field: str, old: Vector, new: Vector) -> None:
        """Remembers what NAT makes of an address or a port."""
        self._nat.setdefault(field, {})[old, new] = None

    def had(self) -> dict[str, Vector]:
        """By field, what packets get of flows that were translated before; of the directions that have NAT."""
        found = {}
        for which, address, port in (("dst", "daddr", "dport"), ("src", "saddr", "sport")):
            for field, key in ((address, ("translated", which)), (port, ("translated port", which))):
                if key in self._free:
                    found[field] = self._free[key]
        return found

    def telling(self) -> list[int]:
        """Literals that hold where what NAT is free to choose is nothing that the packet had, or other NAT gives; and
        where a packet that is routed again leaves by the same interface.
        """
        free, literals = set(self._free.values()), []
        for pairs in self._nat.values():
            results = dict.fromkeys(new for _, new in pairs)
            for old, new in pairs:
                if new in free:
                    others = [old, *(other for other in results if other != new)]
                    literals += [self.circuit.unequal(new, other) for other in others]
        literals += [-self.circuit.unequal(found, self.start["oif"]) for _, found in self._routes]
        return [one for one in dict.fromkeys(literals) if one != TRUE]

    # --- what is certain ---

    def _imply(self, condition: int, then: int) -> None:
        self.always.append(self.circuit.either(-condition, then))

    def _certain(self) -> None:
        circuit, values, within = self.circuit, self.start, self.within
        imply = self._imply
        for name, top in (("ct_state", len(CT_STATES) - 1), ("packet_type", 3)):
            self.always.append(within(values, name, ((0, top),)))
        for name in NAMES:
            self.always.append(within(values, name, ((0, len(self.interfaces.names) - 1),)))
        none = single(0)
        self.always.append(-circuit.differ(self.ways["output"], within(values, "iif", none)))
        self.always.append(-circuit.differ(self.ways["input"], within(values, "oif", none)))
        imply(self.ways["output"], -self.has["mac"])
        imply(self.ways["forward"], -self.has["socket"])
        self.always.append(within(values, "length", ((20 if self.version == 4 else 40, 65535),)))
        self._address_type(values["saddr_type"], values["saddr"])
        self._address_type(values["daddr_type"], values["daddr"])
        if self.version == 6:
            same = -circuit.unequal(values["nexthdr"], values["protocol"])
            self.always.append(circuit.either(same, within(values, "nexthdr", NEXT_HEADERS)))
            listed = circuit.every([
                within(values, "protocol", single(58)), within(values, "fragment", none),
                within(values, "icmp_type", UNTRACKED_ICMPV6),
            ])  # fmt: skip
            imply(listed, within(values, "ct_state", normal([(0, 0), (4, 4)])))
        self._conntrack()

    def _conntrack(self) -> None:
        """A packet in state new is of the original direction, of a flow that no reply was seen of."""
        circuit, values = self.circuit, self.start
        self._first_of_flow(values)
        reply = values["ct_direction"].bits[0]
        tracked = self.within(values, "ct_state", _TRACKED)
        for which, one, other in (("dst", _DST_NAT, _SRC_NAT), ("src", _SRC_NAT, _DST_NAT)):
            self._imply(self.translated[which], circuit.both(tracked, self.later))
            self._imply(self.translated[which], circuit.choose(reply, self._status(other), self._status(one)))

    def _first_of_flow(self, values: Values) -> None:
        new = self.within(values, "ct_state", STATE["new"])
        self._imply(new, -values["ct_direction"].bits[0])
        self._imply(new, -_bit(values["ct_status"], _SEEN_REPLY))

    def _status(self, bit: int) -> int:
        return _bit(self.start["ct_status"], bit)

    def _address_type(self, number: Vector, address: Vector) -> None:
        """What inet_addr_type and its kin say of addresses that are the same on every host."""
        circuit, version = self.circuit, self.version
        imply = self._imply
        self.always.append(circuit.within(number, ((0, len(ROUTE_TYPES) - 1),)))
        multicast = circuit.within(address, _MULTICAST[version])
        imply(multicast, circuit.within(number, single(ROUTE_TYPES.index("multicast"))))
        if version == 4:
            broadcast = circuit.within(address, _BROADCAST)
            imply(broadcast, circuit.within(number, single(ROUTE_TYPES.index("broadcast"))))
        if self._local is not None:
            kind = circuit.within(number, single(ROUTE_TYPES.index("local")))
            self.always.append(-circuit.differ(kind, circuit.within(address, self._local)))

    # --- what is usual, for packets as evidence ---

    def usual(self) -> list[int]:
        """Literals of which as many as possible should hold in a packet that a person sees, most wanted first."""
        circuit, values, within = self.circuit, self.start, self.within
        near = {4: ((0x0A000002, 0x0AFFFFFE),), 6: ((0x20010DB8 << 96, ((0x20010DB80001) << 80) - 1),)}[self.version]
        far = {4: ((0xC0A80002, 0xC0A8FFFE),), 6: (((0x20010DB80001) << 80, ((0x20010DB8 + 1) << 96) - 1),)}[
            self.version
        ]
        unicast = {4: ((0x01000000, 0xDFFFFFFF),), 6: ((0x2000 << 112, (0x4000 << 112) - 1),)}[self.version]
        output, not_lo = self.ways["output"], normal([(0, 0), (2, 1 << 16)])
        quiet = [-self.translated["dst"], -self.translated["src"], -self.later]
        quiet += [-literal for literal in (*self.handed, *self.returning)]
        wanted = [*quiet, within(values, "fragment", single(0))]
        if self.version == 6:
            wanted.append(-circuit.unequal(values["nexthdr"], values["protocol"]))
            wanted.append(within(values, "icmp_type", normal([(0, 129), (137, 142), (144, 255)])))
        for name in ("saddr", "daddr"):
            wanted.append(within(values, name, unicast))
            wanted.append(within(values, f"{name}_type", normal([(1, 2)])))
        wanted += [
            within(values, "iif", not_lo), within(values, "oif", not_lo),
            within(values, "ct_state", STATE["new"]), within(values, "ct_status", single(0)),
            within(values, "ct_direction", single(0)), within(values, "packet_type", single(0)),
            within(values, "protocol", normal([(6, 6), (17, 17)])), within(values, "protocol", single(6)),
            within(values, "tcp_flags", single(2)), within(values, "sport", ((1024, 65535),)),
            within(values, "dport", ((1, 65535),)), within(values, "ttl", single(64)),
            within(values, "length", single(60)), within(values, "tos", single(0)), within(values, "mark", single(0)),
            within(values, "ct_mark", single(0)), within(values, "reverse_path", single(1)),
            within(values, "skuid", single(0)), within(values, "skgid", single(0)),
            circuit.either(output, self.has["mac"]), circuit.either(-output, self.has["socket"]),
            within(values, "saddr", near), within(values, "daddr", far),
            circuit.unequal(values["iif"], values["oif"]),
        ]  # fmt: skip
        return [one for one in wanted if one not in {TRUE, FALSE}]

    def witness(self, true: Callable[[int], bool], atoms: Sequence[tuple[Atom, int]] = ()) -> Witness:
        """The packet of a model, and the outcomes of atoms, given with their literals."""
        way = next(name for name, literal in self.ways.items() if true(literal))
        numbers = {
            name: sum(1 << i for i, bit in enumerate(reversed(vector.bits)) if true(bit))
            for name, vector in self.start.items()
            if name in FIELDS or name in NAMES
        }
        packet: dict[str, int | str | None] = {}
        for name, number in numbers.items():
            if name in NAMES:
                packet[name] = self.interfaces.names[number]
            else:
                packet[name] = number if true(self.present(self.start, name)) else None
        if packet["ct_state"] in {2, 3} and true(self.later):
            packet["first"] = 0
        assumed = [(atom.text, true(literal)) for atom, literal in atoms]
        outcomes = tuple(((atom.text, atom.occurrence), true(literal)) for atom, literal in atoms)
        for which, literal in self.translated.items():
            if true(literal):
                assumed.append((f"the flow's {which} address was translated before", True))
        if any(true(literal) for literal in self.handed):
            assumed.append(("a program lets the queued packet go on", True))
        if any(true(literal) for literal in self.returning):
            assumed.append(("routing brings the packet back to this host", True))
        return Witness(self.version, way, packet, tuple(assumed), outcomes)


def _bit(number: Vector, bit: int) -> int:
    return number.bits[len(number.bits) - bit.bit_length()]
