"""What a rule asks and does, piece by piece, in the order in which the kernel goes through it.

A rule is a sequence of parts: terms, each of which must hold for the next part to be looked at, changes of the packet,
side effects, and at the end a verdict. iptables has all terms first; nf_tables may mix them.
"""

from __future__ import annotations

from dataclasses import dataclass

from conntracker.rules.intervals import Intervals

__all__ = [
    "AnyOf",
    "Assign",
    "Atom",
    "Box",
    "Branches",
    "Effect",
    "In",
    "Named",
    "Nat",
    "Part",
    "Term",
    "Test",
    "Verdict",
]


@dataclass(frozen=True, slots=True)
class In:
    """The field's value, masked if there is a mask, is in a set. Negation is the complement: normal form.

    field   a key of FIELDS. A test of saddr or daddr comes behind one of family: the numbers mean nothing without.
    """

    field: str
    values: Intervals
    mask: int | None = None


@dataclass(frozen=True, slots=True)
class Named:
    """The interface's name is one of the patterns; `*` at the end of one stands for anything, also for nothing."""

    field: str
    patterns: tuple[str, ...]
    negated: bool = False


Test = In | Named
Box = tuple[Test, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one box holds, all of its tests: elements of a concatenation, `--ports`, masked values in a set.

    negated   none of them holds, in a packet that has all the fields of the first box
    """

    boxes: tuple[Box, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Atom:
    """A match of which the outcome is not in the packet as we know it: stateful, or not understood.

    name        the match's, as users know it: limit, recent, hashlimit, connlimit, string, time, ...
    text        all of it, as it stands in the rule
    occurrence  family/table/chain/position/n where each occurrence has an outcome of its own (limit, recent, quota);
                empty where equal texts have equal outcomes for one packet (string, time, a set of unknown elements)
    negated     whether the match must fail
    """

    name: str
    text: str
    occurrence: str = ""
    negated: bool = False


Term = In | Named | AnyOf | Atom


@dataclass(frozen=True, slots=True)
class Assign:
    """The field becomes (old & ~mask) ^ value; with a source, (old & ~mask) ^ (source & source_mask ^ value).

    value is None where the new value is not known. A packet without the source's field keeps the old one.
    """

    field: str
    value: int | None
    mask: int
    source: str | None = None
    source_mask: int = 0


@dataclass(frozen=True, slots=True)
class Nat:
    """The packet gets another address or port, if it is the first of its flow; it ends the chain with accept.

    family     4 or 6 where it is for packets of that version alone: with others nothing is done, and the rule goes on

    kind       snat, dnat, masquerade, redirect or netmap
    addresses  low and high, None where only ports change or the kernel chooses (masquerade, redirect)
    ports      low and high, None where they are kept as far as possible
    text       as it stands in the rule
    """

    kind: str
    addresses: tuple[int, int] | None
    ports: tuple[int, int] | None
    text: str
    family: int | None = None


@dataclass(frozen=True, slots=True)
class Effect:
    """Something done that changes neither the packet, as far as rules see it, nor its way: log, counter, set, ...

    name   log, counter, nflog, tcpmss, checksum, trace, helper, set, ...: what rules with one are kept for
    """

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of the packet.

    kind    accept, drop, reject, jump, goto, return, continue, queue, or stolen
    chain   of jump and goto
    text    of reject and queue: with what
    """

    kind: str
    chain: str | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Branches:
    """A verdict map: the verdict of the first case whose boxes hold one; if none does, the rule is over (NFT_BREAK).

    A case is an Atom where the map's key is nothing that we know of a packet (`numgen random mod 2 vmap { ... }`).
    """

    cases: tuple[tuple[AnyOf | Atom, Verdict], ...]


Part = Term | Assign | Nat | Effect | Verdict | Branches
