"""What is known of one packet on its way: its fields, what was taken for granted, and how rules change it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

from conntracker.rules.fields import CT_STATES, FIELD_NAMES, FIELDS, ROUTE_TYPES, width_of
from conntracker.rules.host import Host
from conntracker.rules.intervals import Intervals, complement, contains, intersect
from conntracker.rules.packets import UNTRACKED_ICMPV6, Packet, with_address_types, without_absent
from conntracker.rules.terms import AnyOf, Assign, Atom, In, Named, Nat, Term
from conntracker.steps import Rule

__all__ = ["UNKNOWN", "Answers", "Assumed", "State", "named"]

UNKNOWN = object()  # in place of a field's value
# linux/netfilter/nf_conntrack_common.h; set where NAT changes anything (nf_nat_setup_info)
_IPS_SRC_NAT, _IPS_DST_NAT = 16, 32
_NO_NAME = "\0"  # in no interface's name
_TYPES = {"saddr": "saddr_type", "daddr": "daddr_type"}
_CT_FIELDS = ("ct_status", "ct_direction", "ct_mark")

Answers = Callable[[Atom, Rule], bool | None]


@dataclass(frozen=True, slots=True)
class Assumed:
    """An answer that an outcome takes for granted, to a question of a rule (None: the routing's).

    term   what was asked of a field; None for an atom and the routing
    """

    name: str
    text: str
    value: bool
    rule: Rule | None
    term: In | Named | None = None


def named(value: str, term: Named) -> bool:
    """Whether the name of an interface is what the term asks for."""
    found = any(
        value.startswith(pattern[:-1]) if pattern.endswith("*") else value == pattern for pattern in term.patterns
    )
    return found != term.negated


def _examples(terms: Iterable[Named]) -> set[str]:
    """Names of interfaces, one for each answer that some terms can have together."""
    patterns = {pattern for term in terms for pattern in term.patterns}
    return {_NO_NAME, *(one[:-1] + _NO_NAME if one.endswith("*") else one for one in patterns)}


class State:
    """One packet, once through: where something is not known, the script says what to take for granted.

    packet    its fields now
    version   4 or 6
    rule      the one that asks
    choices   the answers that were taken for granted so far
    assumed   the same, in words
    """

    def __init__(self, packet: Packet, version: int, host: Host | None, script: list[bool], answers: Answers | None):
        self.packet, self.version, self.host = packet, version, host
        self.rule: Rule | None = None
        self.choices: list[bool] = []
        self.assumed: list[Assumed] = []
        self._script, self._answers = script, answers
        self._answered: dict[object, bool] = {}
        self._domains: dict[str, Intervals] = {}
        self._names: dict[str, list[Named]] = {}
        self._changed: dict[str, int] = {}
        self._asked: dict[str, int] = {}  # how often a stateful match was asked
        self._tracked: dict[str, object] | None = None  # what connection tracking will say, while it has not

    # --- connection tracking ---

    def hide_conntrack(self) -> None:
        """Before it has seen the packet, there is no state: nft and iptables call that invalid."""
        packet = self.packet
        self._tracked = {name: packet.get(name, UNKNOWN) for name in ("ct_state", *_CT_FIELDS)}
        packet["ct_state"] = CT_STATES.index("invalid")
        for name in _CT_FIELDS:
            packet[name] = None

    def show_conntrack(self) -> None:
        """What connection tracking says, from now on: unless a rule took the packet out of it."""
        if self._tracked is None:
            return
        packet, tracked, self._tracked = self.packet, self._tracked, None
        untracked = CT_STATES.index("untracked")
        icmp_type = packet.get("icmp_type")
        if packet["ct_state"] == untracked:
            return
        if packet.get("protocol") == 58 and isinstance(icmp_type, int) and contains(UNTRACKED_ICMPV6, icmp_type):
            packet["ct_state"] = untracked
            return
        for name, value in tracked.items():
            self.put(name, value)
        without_absent(packet)

    # --- terms ---

    def holds(self, term: Term) -> bool:
        """Whether the packet is what the term asks for."""
        if isinstance(term, In):
            value = self.packet.get(term.field, UNKNOWN)
            if isinstance(value, int):
                return contains(term.values, value if term.mask is None else value & term.mask)
            return value is UNKNOWN and self._unknown(term)
        if isinstance(term, Named):
            value = self.packet.get(term.field, UNKNOWN)
            return named(value, term) if isinstance(value, str) else value is UNKNOWN and self._unknown_name(term)
        if isinstance(term, AnyOf):
            return self._any_of(term)
        return self._atom(term)

    def _any_of(self, term: AnyOf) -> bool:
        if not term.negated:
            return any(all(self.holds(test) for test in box) for box in term.boxes)
        for test in term.boxes[0] if term.boxes else ():
            if isinstance(test, In) and not self.has(test.field):
                return False
        return not any(all(self.holds(test) for test in box) for box in term.boxes)

    def has(self, field: str) -> bool:
        """Whether the packet has such a field, known or not."""
        if field in self.packet:
            return self.packet[field] is not None
        return all(self.holds(In(other, values)) for other, values in FIELDS[field].requires)

    def _atom(self, atom: Atom) -> bool:
        key = atom.name, atom.text, atom.occurrence, 0
        if atom.occurrence:  # a packet that comes by again may be answered otherwise
            self._asked[atom.occurrence] = self._asked.get(atom.occurrence, -1) + 1
            key = *key[:3], self._asked[atom.occurrence]
        if key not in self._answered and self._answers is not None and self.rule is not None:
            told = self._answers(atom, self.rule)
            if told is not None:
                return told != atom.negated
        return self.choose(atom.name, key, atom.text) != atom.negated

    def _unknown(self, term: In) -> bool:
        """Whether a field of unknown value is in a set: what was taken for granted of it before is kept to."""
        if not self.has(term.field):
            return False
        text = f"the packet's {FIELD_NAMES[term.field]}"
        if term.mask is not None:
            return self.choose(term.field, (term, self._changed.get(term.field, 0)), text, term)
        top = (1 << width_of(term.field, self.version)) - 1
        domain = self._domains.get(term.field, ((0, top),))
        inside = intersect(domain, term.values)
        if not inside or inside == domain:
            return bool(inside)
        yes = self.choose(term.field, (term, domain, self._changed.get(term.field, 0)), text, term)
        self._domains[term.field] = inside if yes else intersect(domain, complement(term.values, 0, top))
        return yes

    def _unknown_name(self, term: Named) -> bool:
        said = self._names.setdefault(term.field, [])
        fitting = {named(name, term) for name in _examples([*said, term]) if all(named(name, one) for one in said)}
        if len(fitting) == 1:
            return fitting.pop()
        text = f"the packet's {FIELD_NAMES[term.field]}"
        yes = self.choose(term.field, (term, self._changed.get(term.field, 0)), text, term)
        said.append(term if yes else Named(term.field, term.patterns, not term.negated))
        return yes

    def choose(self, name: str, key: object, text: str, term: In | Named | None = None) -> bool:
        """The answer of the script, or yes; the same question has the same answer."""
        if key in self._answered:
            return self._answered[key]
        number = len(self.choices)
        value = self._script[number] if number < len(self._script) else True
        self.choices.append(value)
        self._answered[key] = value
        self.assumed.append(Assumed(name, text, value, self.rule if name != "routing" else None, term))
        return value

    # --- changes ---

    def put(self, field: str, value: object) -> None:
        """Sets a field; UNKNOWN makes it one that is not known."""
        if value is UNKNOWN:
            self.packet.pop(field, None)
        else:
            self.packet[field] = cast("int | str | None", value)
        self._domains.pop(field, None)
        self._names.pop(field, None)
        self._changed[field] = self._changed.get(field, 0) + 1

    def assign(self, change: Assign) -> None:
        """Changes a field as a rule says."""
        packet = self.packet
        if not self.has(change.field) and change.field != "ct_state":
            return
        if change.field == "ct_state" and not self._changes_state(change):
            return
        old: object = packet.get(change.field, UNKNOWN)
        full = (1 << width_of(change.field, self.version)) - 1
        value: object = change.value
        if change.source is not None:
            source = packet.get(change.source, UNKNOWN)
            if source is None:
                return  # xt_CONNMARK.c: without a flow, the mark stays
            value = UNKNOWN if not isinstance(source, int) else (source & change.source_mask) ^ (change.value or 0)
        if value is None:
            value = UNKNOWN
        if isinstance(value, int) and change.mask & full != full:
            value = (old & ~change.mask) ^ value if isinstance(old, int) else UNKNOWN
        self.put(change.field, value & full if isinstance(value, int) else UNKNOWN)
        if change.field in _TYPES:
            self.put(_TYPES[change.field], UNKNOWN)
            with_address_types(packet, self.host)
        without_absent(packet)

    def _changes_state(self, change: Assign) -> bool:
        """Whether the packet's state becomes another one: once it is of a flow, `notrack` does nothing.

        A zone (of which no value is known) makes connection tracking look elsewhere: what it finds is not known.
        """
        if change.value is None:
            if self._tracked is not None:
                self._tracked = dict.fromkeys(self._tracked, UNKNOWN)
                self.packet.pop("first", None)  # of its flow elsewhere
            return False
        return self._tracked is not None or self.packet.get("ct_state") == CT_STATES.index("invalid")

    def translate(self, nat: Nat, hook: str) -> None:
        """Gives the packet its new address or port: the destination's before routing, the source's behind it."""
        packet, before = self.packet, dict(self.packet)
        to_destination = hook in {"prerouting", "output"}
        address, port, kind = ("daddr", "dport", "daddr_type") if to_destination else ("saddr", "sport", "saddr_type")
        if nat.kind == "masquerade" or (nat.kind == "redirect" and nat.addresses is None):
            self.put(address, self._own_address(nat.kind, hook))
            self.put(kind, ROUTE_TYPES.index("local"))
        elif nat.addresses is not None:
            low, high = nat.addresses
            old = packet.get(address)
            if nat.kind == "netmap" and low != high:
                self.put(address, low | (old & (high - low)) if isinstance(old, int) else UNKNOWN)
            else:
                self.put(address, low if low == high else UNKNOWN)
            if low != high and address not in packet:
                self._domains[address] = ((low, high),)
            self.put(kind, UNKNOWN)
        elif nat.kind in {"dnat", "snat"} and nat.ports is None:
            self.put(address, UNKNOWN)
            self.put(kind, UNKNOWN)
        with_address_types(packet, self.host)
        if nat.ports is not None and self.has(port):
            low, high = nat.ports
            self.put(port, low if low == high else UNKNOWN)
            if low != high:
                self._domains[port] = ((low, high),)
        status = packet.get("ct_status")
        if isinstance(status, int) and any(
            name not in packet or packet[name] != before.get(name) for name in (address, port)
        ):
            packet["ct_status"] = status | (_IPS_DST_NAT if to_destination else _IPS_SRC_NAT)

    def _own_address(self, kind: str, hook: str) -> object:
        if kind == "redirect" and hook == "output":
            return (127 << 24) + 1 if self.version == 4 else 1
        interface = self.packet.get("oif" if kind == "masquerade" else "iif")
        found = None if self.host is None else self.host.primary.get((self.version, str(interface)))
        return UNKNOWN if found is None else found
