"""The whole way of a packet through a ruleset: hooks in order, connection tracking and NAT between the chains.

Where routing sends a packet is left open: behind prerouting any packet may be for this host or go through it, whatever
NAT made of its destination, and a packet that is routed again behind output may leave by any interface.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from conntracker.rules.fields import FIELDS, PACKET_TYPES, ROUTE_TYPES
from conntracker.rules.intervals import normal, single
from conntracker.rules.order import CONNTRACK, base_chains, effective_priority, precedes_nat
from conntracker.rules.packets import UNTRACKED_ICMPV6
from conntracker.rules.ruleset import KnownChain, Ruleset
from conntracker.rules.solve.circuit import FALSE, TRUE, Vector
from conntracker.rules.solve.domain import ROUTING, STATE, Domain
from conntracker.rules.solve.encode import Atoms, Encoded, Encoder, Place

__all__ = ["Way", "encode", "entered"]

_RELATED_NOT = normal([(1, 1), (58, 58)])  # ICMP errors go the way of the flow that they are about (nf_nat_proto.c)
# What all packets of a flow have, as they come.
_OF_FLOWS = frozenset((
    "family", "saddr", "daddr", "protocol", "fragment", "sport", "dport", "icmp_type", "icmp_code", "saddr_type",
    "daddr_type", "ct_state", "ct_status",
))  # fmt: skip
_NONE, _LO = 0, 1  # see Interfaces
_HOST = PACKET_TYPES.index("host")
_LOCAL = single(ROUTE_TYPES.index("local"))
_NAT = {"prerouting": "dst", "output": "dst", "input": "src", "postrouting": "src"}

Packets = tuple[int, dict[str, Vector]]


@dataclass(slots=True)
class Way:
    """A ruleset, encoded for one IP version.

    bases    the base chains, in the order in which they are passed; postrouting's for packets of this host and others
    made     all chains, callees before their callers
    ended    by outcome, the packets that it becomes of
    fields   those of packets that are accepted in the end
    routed   the packets that come through prerouting, and their fields there
    steady   whether NAT's chains ask for nothing but what all packets of a flow have
    """

    domain: Domain
    atoms: Atoms
    bases: list[Encoded] = field(default_factory=list)
    made: list[Encoded] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict)
    fields: dict[str, Vector] = field(default_factory=dict)
    routed: Packets = (FALSE, {})
    steady: bool = True

    def by_place(self) -> dict[Place, list[tuple[Encoded, int]]]:
        """Each rule's chains as made, with the entry of each: a rule stands in more than one, if fields differ."""
        found: dict[Place, list[tuple[Encoded, int]]] = {}
        for made, entry in entered(self):
            for index in range(len(made.matched)):
                found.setdefault((made.chain.key, index), []).append((made, entry))
        return found


def encode(ruleset: Ruleset, domain: Domain, atoms: Atoms | None = None, anew: bool = False) -> Way:
    """The ruleset in the domain's circuit. Raises ValueError for chains that lead back to themselves, or nowhere."""
    atoms = Atoms(domain) if atoms is None else atoms
    atoms.start()
    return _Walk(ruleset, domain, atoms, anew).go()


def entered(way: Way) -> list[tuple[Encoded, int]]:
    """Each chain as made with the literal of all packets that come to it, callers before callees."""
    circuit = way.domain.circuit
    calls: dict[int, list[int]] = {}
    found = []
    for made in reversed(way.made):
        entry = circuit.some([made.entry, *calls.get(id(made), ())])
        found.append((made, entry))
        for called, literal, _ in made.calls:
            calls.setdefault(id(called), []).append(circuit.both(entry, literal))
    return found


class _Walk:
    """Packets on their way; those that ended are put aside by outcome."""

    def __init__(self, ruleset: Ruleset, domain: Domain, atoms: Atoms, anew: bool) -> None:
        self.ruleset, self.domain, self.circuit = ruleset, domain, domain.circuit
        self.encoder = Encoder(ruleset, domain, atoms, anew)
        self.way = Way(domain, atoms)
        self.hooks = {
            hook: base_chains(ruleset, domain.version, hook)
            for hook in ("prerouting", "input", "forward", "output", "postrouting")
        }
        self.nat = any(known.chain.type == "nat" for chains in self.hooks.values() for known in chains)
        self.endings: dict[str, list[int]] = {}
        self.looping = FALSE  # packets that the loopback device brings in again: NAT has seen them
        self.remarked = FALSE  # packets of which a chain of type route changed what routing reads

    def go(self) -> Way:
        """Through all hooks."""
        circuit, ways, start = self.circuit, self.domain.ways, dict(self.domain.start)
        output, forward = ways["output"], ways["forward"]
        none = circuit.constant(_NONE, self.domain.interfaces.width)
        sent = self._rerouted(start, self._hook("output", (output, start)))
        left = self._hook("postrouting", sent, "output")
        loops = circuit.both(left[0], self.domain.within(left[1], "oif", single(_LO)))
        came = self._mixed(output, self._looped(left[1]), start | {"oif": none})
        self.looping = output
        into = self._hook("prerouting", (circuit.either(-output, loops), came))
        inside = self._hook("input", (circuit.both(into[0], -forward), into[1]))
        self.looping = FALSE
        kept = {name: start[name] for name, vector in into[1].items() if vector is came[name]}  # none of these looped
        onward = into[1] | kept | {"oif": start["oif"]}
        through = self._hook("forward", self._forwarded(circuit.both(into[0], forward), onward))
        gone = self._hook("postrouting", through)
        way = self.way
        way.ended = {kind: circuit.some(literals) for kind, literals in self.endings.items()}
        away = circuit.both(left[0], -loops)
        way.ended["accept"] = circuit.some([inside[0], gone[0], away])
        way.fields = self._mixed(forward, gone[1], self._mixed(away, left[1], inside[1]))
        way.routed = circuit.both(into[0], -output), into[1] | kept
        way.made = self.encoder.made
        way.steady = all(
            self.encoder.touched(known.key) <= _OF_FLOWS and not self.encoder.asks(known.key)
            for chains in self.hooks.values() for known in chains if known.chain.type == "nat"
        )  # fmt: skip
        return way

    def _looped(self, values: Mapping[str, Vector]) -> dict[str, Vector]:
        """What the loopback device brings in again: its flow and mark stay, its socket is another."""
        circuit, domain, width = self.circuit, self.domain, self.domain.interfaces.width
        new = {"iif": circuit.constant(_LO, width), "oif": circuit.constant(_NONE, width)}
        new |= {name: domain.free(("looped", name), FIELDS[name].width) for name in ("skuid", "skgid")}
        new["socket"] = domain.free(("looped", "socket"), 1)
        new["packet_type"] = circuit.constant(_HOST, FIELDS["packet_type"].width)
        return dict(values) | new

    def _forwarded(self, literal: int, values: dict[str, Vector]) -> Packets:
        """A hop is taken off a packet, if it has one left (ip_forward, ip6_forward: before the hook)."""
        circuit, borrow, bits = self.circuit, TRUE, []
        alive = circuit.within(values["ttl"], ((2, 255),))
        for bit in reversed(values["ttl"].bits):
            bits.append(circuit.differ(bit, borrow))
            borrow = circuit.both(borrow, -bit)
        return circuit.both(literal, alive), values | {"ttl": circuit.vector(reversed(bits))}

    def _rerouted(self, sent: Mapping[str, Vector], packets: Packets) -> Packets:
        """Behind output, a packet with another destination is routed again, and one that a chain of type route changed
        (ip_route_me_harder, net/ipv4/netfilter.c).
        """
        circuit, domain, (literal, values) = self.circuit, self.domain, packets
        moved = circuit.unequal(sent["daddr"], values["daddr"])
        if moved == self.remarked == FALSE:
            return packets
        here = circuit.both(moved, domain.within(values, "daddr_type", _LOCAL))
        anew = circuit.mux(here, circuit.constant(_LO, domain.interfaces.width), domain.route(values))
        return literal, values | {"oif": circuit.mux(circuit.either(moved, self.remarked), anew, values["oif"])}

    def _mixed(self, which: int, yes: Mapping[str, Vector], no: Mapping[str, Vector]) -> dict[str, Vector]:
        return {name: self.circuit.mux(which, vector, no[name]) for name, vector in yes.items()}

    def _hook(self, hook: str, packets: Packets, way: str = "") -> Packets:
        """The packets that a hook lets through."""
        tracking = hook in {"prerouting", "output"}
        chains = self.hooks[hook]
        self.encoder.atoms.stage = f"{hook} {way}"
        if tracking:
            early = [known for known in chains if effective_priority(known) <= CONNTRACK]
            packets = self._untracked(hook, early, packets)
            chains = chains[len(early) :]
        if hook not in _NAT or not self.nat:
            return self._chains(hook, chains, packets)
        which = _NAT[hook]
        before = [known for known in chains if precedes_nat(self.ruleset, self.domain.version, known)]
        nat = [known for known in chains if known.chain.type == "nat"]
        behind = [known for known in chains if known not in before and known not in nat]
        packets = self._chains(hook, before, packets)
        packets = self._nat(hook, which, nat, packets)
        return self._chains(hook, behind, packets)

    def _untracked(self, hook: str, chains: list[KnownChain], packets: Packets) -> Packets:
        """Before connection tracking a packet has no state, which rules see as invalid; but on lo it has one."""
        circuit, (literal, values) = self.circuit, packets
        tracked = values["ct_state"]
        lo = circuit.within(values["iif"], single(_LO)) if hook == "prerouting" else FALSE
        if chains:
            hidden = circuit.mux(lo, tracked, circuit.constant(0, len(tracked.bits)))
            zone = values["zone"]
            self.encoder.untracked = True
            literal, values = self._chains(hook, chains, (literal, values | {"ct_state": hidden}))
            self.encoder.untracked = False
            now = values["ct_state"] if values["ct_state"] is not hidden else None
            found = {} if values["zone"] is zone else self.domain.elsewhere(hook)
            values = values | {"ct_state": tracked}
            for name, vector in found.items():
                values[name] = circuit.mux(values["zone"].bits[0], vector, values[name])
            values["zone"] = zone
            if now is not None:
                off = circuit.within(now, STATE["untracked"])
                values["ct_state"] = circuit.mux(off, now, values["ct_state"])
        return literal, values | {"ct_state": self._left_alone(lo, values)}

    def _left_alone(self, lo: int, values: Mapping[str, Vector]) -> Vector:
        """The state, where connection tracking leaves some messages of ICMPv6 alone."""
        circuit, state = self.circuit, values["ct_state"]
        if self.domain.version == 4:
            return state
        asked = {"protocol": single(58), "fragment": single(0), "icmp_type": UNTRACKED_ICMPV6}
        listed = [self.domain.within(values, name, numbers) for name, numbers in asked.items()]
        return circuit.mux(circuit.every([-lo, *listed]), circuit.constant(4, len(state.bits)), state)

    def _chains(self, hook: str, chains: Iterable[KnownChain], packets: Packets) -> Packets:
        for known in chains:
            before = packets[1]
            packets = self._base(hook, known, packets, TRUE)
            if known.chain.type == "route":
                changed = [self.circuit.unequal(before[name], packets[1][name]) for name in ROUTING]
                self.remarked = self.circuit.some([self.remarked, *changed])
        return packets

    def _base(self, hook: str, known: KnownChain, packets: Packets, asked: int) -> Packets:
        """Through one base chain, which only those packets enter that are `asked`."""
        circuit, (literal, values) = self.circuit, packets
        self.encoder.passing += 1
        made = self.encoder.chain(known, values, hook)
        entry = circuit.both(literal, asked)
        made.entry = circuit.either(made.entry, entry)
        self.way.bases.append(made)
        ended = dict(made.ended)
        accepted = ended.pop("accept", FALSE)
        for kind, ending in ended.items():
            self.endings.setdefault(kind, []).append(circuit.both(entry, ending))
        out = dict(values)
        for name, vector in made.accepted.items():
            out[name] = circuit.mux(circuit.both(asked, accepted), vector, out[name])
        for name, vector in made.changed.items():
            out[name] = circuit.mux(circuit.both(asked, made.left), vector, out[name])
        if (known.chain.policy or "accept") == "accept":
            ended_here = circuit.some([ending for ending in ended.values()])
            return circuit.both(literal, circuit.either(-asked, -ended_here)), out
        self.endings.setdefault("drop", []).append(circuit.both(entry, made.left))
        return circuit.both(literal, circuit.either(-asked, accepted)), out

    def _nat(self, hook: str, which: str, chains: list[KnownChain], packets: Packets) -> Packets:
        """NAT's chains, for the first packet of a flow; and what earlier ones were given, for the rest of it."""
        circuit, domain, (literal, values) = self.circuit, self.domain, packets
        address, port = ("daddr", "dport") if which == "dst" else ("saddr", "sport")
        kind = f"{address}_type"
        old = domain.translated[which]
        new = domain.within(values, "ct_state", STATE["new"])
        related = circuit.both(
            domain.within(values, "ct_state", STATE["related"]), -domain.within(values, "protocol", _RELATED_NOT)
        )
        old, asked_before = circuit.both(old, -self.looping), circuit.both(domain.later, domain.loose)
        walking = circuit.every([circuit.either(new, related), -old, -self.looping, -asked_before])
        for known in chains:
            literal, values = self._base(hook, known, (literal, values), walking)
            walking = circuit.both(walking, -self.way.bases[-1].natted)
        fresh = domain.free(("translated", which), len(values[address].bits))
        values = values | {
            address: circuit.mux(old, fresh, values[address]),
            port: circuit.mux(old, domain.free(("translated port", which), 16), values[port]),
            kind: circuit.mux(old, domain.address_type(kind, fresh), values[kind]),
        }
        return literal, values
