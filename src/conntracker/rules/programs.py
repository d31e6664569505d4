"""Chains made ready for many packets: which rules may match, by plain tests, and what is left to do then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from conntracker.rules.changes import GIVEN
from conntracker.rules.intervals import normal, single
from conntracker.rules.lookup import Index, Space
from conntracker.rules.rows import requires_of, width_in
from conntracker.rules.ruleset import ChainKey, KnownChain, Meaning, Ruleset, namespace_of
from conntracker.rules.terms import AnyOf, Assign, Atom, Box, Branches, Effect, In, Named, Nat, Part, Test, Verdict
from conntracker.steps import Rule

__all__ = ["Boxes", "Cases", "Op", "Plan", "Program", "Programs"]

# What a rule does whose plain tests hold: a verdict, a jump, or something to be done packet by packet.
ACCEPT, DROP, REJECT, QUEUE, STOLEN, RETURN, JUMP, GOTO, MORE = range(9)
_CODES = {
    "accept": ACCEPT, "drop": DROP, "reject": REJECT, "queue": QUEUE, "stolen": STOLEN, "return": RETURN,
    "jump": JUMP, "goto": GOTO,
}  # fmt: skip


class Boxes:
    """An AnyOf, of the boxes that packets of one version can be in."""

    def __init__(self, term: AnyOf, boxes: list[Box], needs: Box) -> None:
        self.term, self.boxes, self.needs = term, boxes, needs
        self.index: Index | None = None


class Cases:
    """A verdict map, as a chain of its own: rule i is box i, and leads to verdicts[i]."""

    def __init__(self, boxes: list[Box], verdicts: list[Verdict]) -> None:
        self.boxes, self.verdicts = boxes, verdicts
        self.index: Index | None = None


Op = Test | Boxes | Atom | Assign | Nat | Verdict | Cases


@dataclass(slots=True)
class Program:
    """A chain: `tests`, `rules` and `more` by number of those of its rules that can do something.

    tests    that must hold for a rule to be looked at at all
    rules    index into Programs.rules
    codes    what it does then, one of ACCEPT to MORE
    target   of a jump or goto, -1 for a chain that is not there
    more     ops of a rule with code MORE
    """

    key: ChainKey
    tests: list[Box] = field(default_factory=list)
    rules: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    codes: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    target: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    more: dict[int, list[Op]] = field(default_factory=dict)
    index: Index | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is left of a rule for packets of one version."""

    tests: Box
    ops: tuple[Op, ...]
