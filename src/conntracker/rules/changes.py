"""What rules did to a packet on its way, and what was taken for granted of it.

It is shared by all packets to which the same happened.

A changed field is a constant XOR masked fields of the packet as it came: `Assign` maps such values to such values, so
that one `Change` stands for the change of any number of packets.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from conntracker.rules.intervals import Intervals, complement, intersect
from conntracker.rules.terms import Assign, Test

__all__ = [
    "CONNTRACK_FIELDS", "GIVEN", "HOPPED", "LOST", "ROUTING_KEY", "Change", "Derived", "Lost", "Past", "Routed", "Xor",
]  # fmt: skip

# What connection tracking says of a packet.
CONNTRACK_FIELDS = ("ct_state", "ct_status", "ct_direction", "ct_mark")
# What chains of type route have a packet routed again for (nft_chain_route.c, iptable_mangle.c).
ROUTING_KEY = ("mark", "saddr", "daddr", "tos")
# The TTL that the packet came with, less one.
HOPPED = "ttl behind a hop"


@dataclass(frozen=True, slots=True)
class Xor:
    """The value `constant` ^ (field & mask) ^ ..., of the fields as the packet came with them."""

    constant: int
    fields: tuple[tuple[str, int], ...] = ()

    def masked(self, mask: int) -> Xor:
        """The value & mask."""
        kept = tuple((field, old & mask) for field, old in self.fields if old & mask)
        return Xor(self.constant & mask, kept)

    def xor(self, other: Xor) -> Xor:
        """The value ^ another."""
        masks = dict(self.fields)
        for field, mask in other.fields:
            masks[field] = masks.get(field, 0) ^ mask
        return Xor(self.constant ^ other.constant, tuple(sorted((f, m) for f, m in masks.items() if m)))


@dataclass(frozen=True, slots=True)
class Lost:
    """The value is not known."""


@dataclass(frozen=True, slots=True)
class Derived:
    """The value follows from other fields as they are now: a type of address from the address."""


@dataclass(frozen=True, slots=True)
class Routed:
    """The interface that the packet came with, or if that is not known the one that an address is routed to."""

    address: Xor | Lost


Change = Xor | Lost | Derived | Routed
LOST = Lost()


@dataclass(frozen=True, slots=True)
class Past:
    """What happened to a packet so far.

    changes      (field, what it is now)
    domains      (field of unknown value, where its value was taken to be)
    answers      (field or "", question, answer) of atoms and masked tests of unknown fields
    translated   directions in which it was given a NAT: src, dst
    hidden       how CONNTRACK_FIELDS were changed, in packets that connection tracking has not seen yet
    watched      how what routing goes by was changed when the packet came to the chain of type route that it is in
    remarked     whether such a chain changed it
    """

    changes: tuple[tuple[str, Change], ...] = ()
    domains: tuple[tuple[str, Intervals], ...] = ()
    answers: frozenset[tuple[str, Hashable, bool]] = frozenset()
    translated: frozenset[str] = frozenset()
    hidden: tuple[Change | None, ...] | None = None
    watched: Past | None = None
    remarked: bool = False

    def change(self, field: str) -> Change | None:
        """How the field was changed."""
        return next((change for name, change in self.changes if name == field), None)

    def value(self, field: str, full: int) -> Xor | Lost:
        """What the field is now."""
        change = self.change(field)
        return Xor(0, ((field, full),)) if change is None else LOST if isinstance(change, Derived | Routed) else change

    def put(self, field: str, change: Change | None) -> Past:
        """The field is changed, or with None as it came; what was taken for granted of it is forgotten."""
        changes = [one for one in self.changes if one[0] != field]
        if change is not None:
            changes.append((field, change))
        return replace(
            self,
            changes=tuple(sorted(changes, key=lambda one: one[0])),
            domains=tuple(one for one in self.domains if one[0] != field),
            answers=frozenset(one for one in self.answers if one[0] != field),
        )

    def assigned(self, part: Assign, full: int, source_full: int) -> Past:
        """After an assignment; `full` are all bits of the field, `source_full` those of its source."""
        if part.value is None:
            return self.put(part.field, LOST)
        new: Xor | Lost = Xor(part.value)
        if part.source is not None:
            source = self.value(part.source, source_full)
            new = LOST if isinstance(source, Lost) else source.masked(part.source_mask).xor(Xor(part.value))
        keep = full & ~part.mask
        if keep and not isinstance(new, Lost):
            old = self.value(part.field, full)
            new = LOST if isinstance(old, Lost) else old.masked(keep).xor(new)
        return self.put(part.field, new if isinstance(new, Lost) else new.masked(full))

    def domain(self, field: str, top: int) -> Intervals:
        """Where an unknown field's value may be, of 0 to `top`."""
        return next((values for name, values in self.domains if name == field), ((0, top),))

    def within(self, field: str, values: Intervals) -> Past:
        """With the field's value taken to be in a set."""
        others = tuple(one for one in self.domains if one[0] != field)
        return replace(self, domains=tuple(sorted((*others, (field, values)))))

    def inside(self, field: str, values: Intervals, top: int) -> bool | None:
        """Whether an unknown field's value is in a set, by what was taken for granted."""
        domain = self.domain(field, top)
        inside = intersect(domain, values)
        return False if not inside else True if inside == domain else None

    def taken(self, field: str, values: Intervals, top: int, yes: bool) -> Past:
        """With an unknown field's value taken to be in a set, or not to be."""
        kept = values if yes else complement(values, 0, top)
        return self.within(field, intersect(self.domain(field, top), kept))

    def answer(self, test: Test) -> bool | None:
        """The answer to a masked test, if it was taken for granted before."""
        return next((yes for _, question, yes in self.answers if question == test), None)

    def granted(self, test: Test, yes: bool) -> Past:
        """With the answer to a masked test."""
        return replace(self, answers=self.answers | {(test.field, test, yes)})

    def remembering(self, question: Hashable, yes: bool) -> Past:
        """With the outcome of an atom."""
        return replace(self, answers=self.answers | {("", question, yes)})

    def hide(self, state: Xor) -> Past:
        """Before connection tracking has seen it, with the state that it has so long."""
        return replace(self.put("ct_state", state), hidden=tuple(self.change(name) for name in CONNTRACK_FIELDS))

    def show(self, state: Xor | None = None) -> Past:
        """Behind connection tracking: it is in a state that it did not find, or is what it finds."""
        found = replace(self, hidden=None)
        if self.hidden is None or state is not None:
            return found if state is None else found.put("ct_state", state)
        for name, change in zip(CONNTRACK_FIELDS, self.hidden, strict=True):
            found = found.put(name, change)
        return found

    def elsewhere(self) -> Past:
        """What connection tracking will find is not known: it looks in another zone."""
        if self.hidden is None:
            return self
        return replace(self.put("first", LOST), hidden=(LOST,) * len(CONNTRACK_FIELDS))

    def watch(self) -> Past:
        """In front of a chain of type route."""
        return replace(self, watched=Past(tuple(one for one in self.changes if one[0] in ROUTING_KEY)))

    def watched_over(self, remarked: bool) -> Past:
        """Behind it."""
        return replace(self, watched=None, remarked=remarked)

    def toward(self, directions: frozenset[str]) -> Past:
        """With a NAT in these directions."""
        return replace(self, translated=self.translated | directions)

    def recalled(self, question: Hashable) -> bool | None:
        """The outcome of an atom, if it was taken for granted before."""
        return next((yes for field, asked, yes in self.answers if not field and asked == question), None)


GIVEN = Past()
