"""What rules did to a packet on its way, and what was taken for granted of it.

It is shared by all packets to which the same happened.

A changed field is a constant XOR masked fields of the packet as it came: `Assign` maps such values to such values, so
that one `Change` stands for the change of any number of packets.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from conntracker.rules.intervals import Intervals, complement, intersect
from conntracker.rules.terms import Assign, In, Named, Test

__all__ = ["GIVEN", "LOST", "Change", "Derived", "Lost", "Past", "Xor", "is_named"]


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


Change = Xor | Lost | Derived
LOST = Lost()


@dataclass(frozen=True, slots=True)
class Past:
    """What happened to a packet so far.

    changes      (field, what it is now)
    domains      (field of unknown value, where its value was taken to be)
    answers      (field or "", question, answer) of atoms and other tests of unknown fields
    translated   directions in which it was given a NAT: src, dst
    """

    changes: tuple[tuple[str, Change], ...] = ()
    domains: tuple[tuple[str, Intervals], ...] = ()
    answers: frozenset[tuple[str, Hashable, bool]] = frozenset()
    translated: frozenset[str] = frozenset()

    def change(self, field: str) -> Change | None:
        """How the field was changed."""
        return next((change for name, change in self.changes if name == field), None)

    def value(self, field: str, full: int) -> Xor | Lost:
        """What the field is now."""
        change = self.change(field)
        return Xor(0, ((field, full),)) if change is None else LOST if isinstance(change, Derived) else change

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

    def domain(self, field: str, width: int) -> Intervals:
        """Where an unknown field's value may be."""
        return next((values for name, values in self.domains if name == field), ((0, (1 << width) - 1),))

    def within(self, field: str, values: Intervals) -> Past:
        """With the field's value taken to be in a set."""
        others = tuple(one for one in self.domains if one[0] != field)
        return replace(self, domains=tuple(sorted((*others, (field, values)))))

    def answer(self, test: Test, width: int) -> bool | None:
        """What is known of a test of a field whose value is not: by what was taken for granted."""
        if isinstance(test, In) and test.mask is None:
            domain = self.domain(test.field, width)
            inside = intersect(domain, test.values)
            return False if not inside else True if inside == domain else None
        if isinstance(test, Named):
            return self._named(test)
        return next((yes for _, question, yes in self.answers if question == test), None)

    def _named(self, test: Named) -> bool | None:
        for _, question, yes in self.answers:
            if not isinstance(question, Named) or question.field != test.field:
                continue
            said = question.negated != yes
            if said and len(question.patterns) == 1 and not question.patterns[0].endswith("*"):
                return is_named(question.patterns[0], test)
        for _, question, yes in self.answers:
            if isinstance(question, Named) and (question.field, question.patterns) == (test.field, test.patterns):
                return (question.negated != yes) != test.negated
        return None

    def granted(self, test: Test, yes: bool, width: int) -> Past:
        """With an answer taken for granted."""
        if isinstance(test, In) and test.mask is None:
            values = test.values if yes else complement(test.values, 0, (1 << width) - 1)
            return self.within(test.field, intersect(self.domain(test.field, width), values))
        return replace(self, answers=self.answers | {(test.field, test, yes)})

    def remembering(self, question: Hashable, yes: bool) -> Past:
        """With the outcome of an atom."""
        return replace(self, answers=self.answers | {("", question, yes)})

    def toward(self, directions: frozenset[str]) -> Past:
        """With a NAT in these directions."""
        return replace(self, translated=self.translated | directions)

    def recalled(self, question: Hashable) -> bool | None:
        """The outcome of an atom, if it was taken for granted before."""
        return next((yes for field, asked, yes in self.answers if not field and asked == question), None)


def is_named(value: str, test: Named) -> bool:
    """Whether the name of an interface is what the test asks for."""
    found = any(value.startswith(one[:-1]) if one.endswith("*") else value == one for one in test.patterns)
    return found != test.negated


GIVEN = Past()
