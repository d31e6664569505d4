"""The whole way of a packet through a ruleset: hooks in order, connection tracking and NAT between the chains.

Where routing sends a packet is left open: behind prerouting any packet may be for this host or go through it, whatever
NAT made of its destination.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from conntracker.rules.intervals import normal, single
from conntracker.rules.order import CONNTRACK, base_chains, effective_priority, precedes_nat
from conntracker.rules.ruleset import KnownChain, Ruleset
from conntracker.rules.solve.circuit import FALSE, TRUE, Vector
from conntracker.rules.solve.domain import STATE, Domain
from conntracker.rules.solve.encode import Atoms, Encoded, Encoder, Place

__all__ = ["Way", "encode", "entered"]

_RELATED_NOT = normal([(1, 1), (58, 58)])  # ICMP errors go the way of the flow that they are about (nf_nat_proto.c)
_NAT = {"prerouting": "dst", "output": "dst", "input": "src", "postrouting": "src"}

Packets = tuple[int, dict[str, Vector]]


@dataclass(slots=True)
class Way:
    """A ruleset, encoded for one IP version.

    bases    the base chains, in the order in which they are passed
    made     all chains, callees before their callers
    ended    by outcome, the packets that it becomes of
    fields   those of packets that are accepted in the end
    """

    domain: Domain
    atoms: Atoms
    bases: list[Encoded] = field(default_factory=list)
    made: list[Encoded] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict)
    fields: dict[str, Vector] = field(default_factory=dict)

    def by_place(self) -> dict[Place, list[tuple[Encoded, int]]]:
        """Each rule's chains as made, with the entry of each: a rule stands in more than one, if fields differ."""
        found: dict[Place, list[tuple[Encoded, int]]] = {}
        for made, entry in entered(self):
            for index in range(len(made.matched)):
                found.setdefault((made.chain.key, index), []).append((made, entry))
        return found


def encode(ruleset: Ruleset, domain: Domain, atoms: Atoms | None = None) -> Way:
    """The ruleset in the domain's circuit. Raises ValueError for chains that lead back to themselves, or nowhere."""
    atoms = Atoms(domain) if atoms is None else atoms
    atoms.start()
    return _Walk(ruleset, domain, atoms).go()


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

    def __init__(self, ruleset: Ruleset, domain: Domain, atoms: Atoms) -> None:
        self.ruleset, self.domain, self.circuit = ruleset, domain, domain.circuit
        self.encoder = Encoder(ruleset, domain, atoms)
        self.way = Way(domain, atoms)
        self.hooks = {
            hook: base_chains(ruleset, domain.version, hook)
            for hook in ("prerouting", "input", "forward", "output", "postrouting")
        }
        self.nat = any(known.chain.type == "nat" for chains in self.hooks.values() for known in chains)
        self.endings: dict[str, list[int]] = {}

    def go(self) -> Way:
        """Through all hooks."""
        circuit, ways, start = self.circuit, self.domain.ways, dict(self.domain.start)
        none = circuit.constant(0, self.domain.interfaces.width)
        into = self._hook("prerouting", (circuit.either(ways["input"], ways["forward"]), start | {"oif": none}))
        into = into[0], into[1] | {"oif": start["oif"]}
        inside = self._hook("input", (circuit.both(into[0], ways["input"]), into[1]))
        through = self._hook("forward", (circuit.both(into[0], ways["forward"]), into[1]))
        made = self._hook("output", (ways["output"], start))
        behind = circuit.either(through[0], made[0])
        left = self._hook("postrouting", (behind, self._mixed(ways["output"], made[1], through[1])))
        way = self.way
        way.ended = {kind: circuit.some(literals) for kind, literals in self.endings.items()}
        way.ended["accept"] = circuit.either(inside[0], left[0])
        way.fields = self._mixed(ways["input"], inside[1], left[1])
        way.made = self.encoder.made
        return way

    def _mixed(self, which: int, yes: Mapping[str, Vector], no: Mapping[str, Vector]) -> dict[str, Vector]:
        return {name: self.circuit.mux(which, vector, no[name]) for name, vector in yes.items()}

    def _hook(self, hook: str, packets: Packets) -> Packets:
        """The packets that a hook lets through."""
        tracking = hook in {"prerouting", "output"}
        chains = self.hooks[hook]
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
        if not chains:
            return packets
        circuit, (literal, values) = self.circuit, packets
        tracked = values["ct_state"]
        lo = circuit.within(values["iif"], single(1)) if hook == "prerouting" else FALSE
        hidden = circuit.mux(lo, tracked, circuit.constant(0, len(tracked.bits)))
        self.encoder.untracked = True
        literal, values = self._chains(hook, chains, (literal, values | {"ct_state": hidden}))
        self.encoder.untracked = False
        now = values["ct_state"]
        if now is not hidden:
            tracked = circuit.mux(circuit.within(now, STATE["untracked"]), now, tracked)
        return literal, values | {"ct_state": tracked}

    def _chains(self, hook: str, chains: Iterable[KnownChain], packets: Packets) -> Packets:
        for known in chains:
            packets = self._base(hook, known, packets, TRUE)
        return packets

    def _base(self, hook: str, known: KnownChain, packets: Packets, asked: int) -> Packets:
        """Through one base chain, which only those packets enter that are `asked`."""
        circuit, (literal, values) = self.circuit, packets
        made = self.encoder.chain(known, values, hook)
        entry = circuit.both(literal, asked)
        made.entry = entry
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
        walking = circuit.both(circuit.either(new, related), -old)
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
