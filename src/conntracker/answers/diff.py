"""What changes from one ruleset to another: sets of packets, and which rules decide about them before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from conntracker.answers.audit_summary import fields_asked
from conntracker.answers.replay import Replayed, replay
from conntracker.rules.intervals import Intervals
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.solve.apart import chains_apart, doings_apart
from conntracker.rules.solve.domain import Witness
from conntracker.rules.solve.equal import CHANGED_FIELDS
from conntracker.rules.solve.regions import Change, Values, difference
from conntracker.rules.terms import Atom
from conntracker.steps import Step

__all__ = ["KINDS", "LOOPED", "Changed", "Diff", "diff"]

# In the order in which they are told.
KINDS = ("newly accepted", "newly dropped", "newly rejected", "otherwise refused", "otherwise changed")
LOOPED = "output by lo"  # what the host sends to itself, in a chain that it comes in by


@dataclass(frozen=True, slots=True)
class Changed:
    """Packets that end otherwise than before.

    change         see regions.Change; its witness is the packet that was tried
    ways           input, forward, output, `output by lo`: those on which it is so
    step_before, step_after   what decides about the witness; None where no chain is in its way
    asked          (text, outcome) of matches that its way hangs on
    left           (field, value before, value after) of what both accept the witness with; None if it is not known
    """

    change: Change
    ways: tuple[str, ...]
    step_before: Step | None
    step_after: Step | None
    asked: tuple[tuple[str, bool], ...]
    left: tuple[tuple[str, int | None, int | None], ...] = ()

    @property
    def witness(self) -> Witness:
        """One of the packets."""
        return self.change.witness


@dataclass(frozen=True, slots=True)
class Diff:
    """All changes, by kind in the order of KINDS, unless there are `more`.

    fields   those of packets that some rule of either asks for
    shared   texts of matches that are in both and not understood: they are taken to have the same outcome in both
    apart    tables with chains that are not compared (of devices, bridges, ARP) and are not the same in both
    doings   what rules of one alone do to packets that is not compared
    """

    changes: tuple[Changed, ...]
    more: bool
    versions: tuple[int, ...]
    shared: tuple[str, ...]
    fields: frozenset[str] = frozenset()
    apart: tuple[str, ...] = ()
    doings: tuple[str, ...] = ()

    @property
    def equal(self) -> bool | None:
        """None where all that was compared is equal, but not all was."""
        return False if self.changes else None if self.apart else True


def diff(old: Ruleset, new: Ruleset, local: dict[int, Intervals] | None = None, limit: int = 100) -> Diff:
    """What is different. Raises ValueError for a ruleset that cannot be followed."""
    found = difference(old, new, local, limit=limit)
    joined: dict[object, tuple[Change, list[str]]] = {}
    for change in found.changes:
        joined.setdefault(_key(change, change.box), (change, []))[1].append(change.way)
    for key, (change, _) in list(joined.items()):
        if change.way == "output" and change.box.get("oif") == ("lo",):
            came = joined.get(_key(change, {name: one for name, one in change.box.items() if name != "oif"}))
            if came is not None and came[1] == ["input"]:  # what comes in again is let in like anything else
                came[1].append(LOOPED)
                del joined[key]
    changes = []
    for change, ways in joined.values():
        before, after = replay(old, change.witness), replay(new, change.witness)
        asked = tuple(dict.fromkeys((*before.asked, *after.asked)))
        left = _left(before, after) if change.before == change.after == "accept" else ()
        changes.append(Changed(change, tuple(dict.fromkeys(ways)), before.step, after.step, asked, left))
    changes.sort(key=lambda one: KINDS.index(one.change.kind) if one.change.kind in KINDS else len(KINDS))
    versions = tuple(sorted({*old.families(), *new.families()}))
    shared = tuple(text for text in _texts(old) if text in _texts(new))
    return Diff(
        tuple(changes), found.more, versions, shared, fields_asked(old) | fields_asked(new),
        chains_apart(old, new), doings_apart(old, new),
    )  # fmt: skip


def _key(change: Change, box: Mapping[str, Values]) -> object:
    """Equal for changes that differ in the way at most."""
    return change.before, change.after, change.version, change.atoms, tuple(sorted(box.items(), key=lambda one: one[0]))


def _left(before: Replayed, after: Replayed) -> tuple[tuple[str, int | None, int | None], ...]:
    """What the two leave otherwise in a packet that both accept."""
    found = []
    for field in CHANGED_FIELDS:
        values = [one.outcome.packet.get(field) for one in (before, after)]
        if values[0] != values[1]:
            old, new = (value if isinstance(value, int) else None for value in values)
            found.append((field, old, new))
    return tuple(found)


def _texts(ruleset: Ruleset) -> dict[str, None]:
    """The texts of all matches that are not understood, in order."""
    return {
        part.text: None
        for known in ruleset.chains for meaning in known.meanings for part in meaning.parts if isinstance(part, Atom)
    }  # fmt: skip
