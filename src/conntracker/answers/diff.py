"""What changes from one ruleset to another: sets of packets, and which rules decide about them before and after."""

from __future__ import annotations

from dataclasses import dataclass

from conntracker.answers.audit_summary import fields_asked
from conntracker.answers.replay import replay
from conntracker.rules.intervals import Intervals
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.solve.domain import Witness
from conntracker.rules.solve.regions import Change, difference
from conntracker.rules.terms import Atom
from conntracker.steps import Step

__all__ = ["KINDS", "Changed", "Diff", "diff"]

# In the order in which they are told.
KINDS = ("newly accepted", "newly dropped", "newly rejected", "otherwise refused", "otherwise changed")


@dataclass(frozen=True, slots=True)
class Changed:
    """Packets that end otherwise than before.

    change         see regions.Change; its witness is the packet that was tried
    ways           input, forward, output: those on which it is so
    step_before, step_after   what decides about the witness; None where no chain is in its way
    asked          (text, outcome) of matches that its way hangs on
    """

    change: Change
    ways: tuple[str, ...]
    step_before: Step | None
    step_after: Step | None
    asked: tuple[tuple[str, bool], ...]

    @property
    def witness(self) -> Witness:
        """One of the packets."""
        return self.change.witness


@dataclass(frozen=True, slots=True)
class Diff:
    """All changes, by kind in the order of KINDS, unless there are `more`.

    fields   those of packets that some rule of either asks for
    shared   texts of matches that are in both and not understood: they are taken to have the same outcome in both
    """

    changes: tuple[Changed, ...]
    more: bool
    versions: tuple[int, ...]
    shared: tuple[str, ...]
    fields: frozenset[str] = frozenset()


def diff(old: Ruleset, new: Ruleset, local: dict[int, Intervals] | None = None, limit: int = 100) -> Diff:
    """What is different. Raises ValueError for a ruleset that cannot be followed."""
    found = difference(old, new, local, limit=limit)
    joined: dict[object, tuple[Change, list[str]]] = {}
    for change in found.changes:
        box = tuple(sorted(change.box.items(), key=lambda one: one[0]))
        key = change.before, change.after, change.version, change.atoms, box
        joined.setdefault(key, (change, []))[1].append(change.way)
    changes = []
    for change, ways in joined.values():
        before, after = replay(old, change.witness), replay(new, change.witness)
        asked = tuple(dict.fromkeys((*before.asked, *after.asked)))
        changes.append(Changed(change, tuple(dict.fromkeys(ways)), before.step, after.step, asked))
    changes.sort(key=lambda one: KINDS.index(one.change.kind) if one.change.kind in KINDS else len(KINDS))
    versions = tuple(sorted({*old.families(), *new.families()}))
    shared = tuple(text for text in _texts(old) if text in _texts(new))
    return Diff(tuple(changes), found.more, versions, shared, fields_asked(old) | fields_asked(new))


def _texts(ruleset: Ruleset) -> dict[str, None]:
    """The texts of all matches that are not understood, in order."""
    return {
        part.text: None
        for known in ruleset.chains for meaning in known.meanings for part in meaning.parts if isinstance(part, Atom)
    }  # fmt: skip
