"""Walking many packets through the chains at once: in each chain, all of them go to their next rule together.

A state is a packet at one point, with what happened to it so far. Where a rule asks what is not known, the state
becomes two; states of one packet that come to the same point with the same past become one again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from conntracker.rules.changes import GIVEN, Change, Past
from conntracker.rules.fields import FIELD_NAMES
from conntracker.rules.intervals import Intervals
from conntracker.rules.lineage import Lineage
from conntracker.rules.lookup import Axis, Classes, Index
from conntracker.rules.programs import Boxes, Cases, Programs, question_of
from conntracker.rules.rows import ABSENT, KNOWN, UNKNOWN, Rows, Values, requires_of
from conntracker.rules.terms import Atom, Box, In, Named, Test

__all__ = ["Crowd", "Numbers", "States", "joined", "values_of"]

Numbers = NDArray[np.int64]
_MOST_PASTS = 50_000  # of a chunk of packets; then what was taken for granted is not remembered


@dataclass(slots=True)
class States:
    """Packets on their way.

    rows    indices into Rows
    past    indices into Crowd.pasts
    best    of the accepts so far, the one that would be called deciding: see `accepted`; -1 for none
    back    whose state of the calling chain each one was
    node    numbers of Crowd.lineage
    """

    rows: Numbers
    past: Numbers
    best: Numbers
    back: Numbers
    node: Numbers

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, chosen: NDArray[np.generic]) -> States:
        """Some of them."""
        return States(
            self.rows[chosen], self.past[chosen], self.best[chosen], self.back[chosen], self.node[chosen]
        )  # fmt: skip

    def accepted(self, weight: int, by_rule: int, number: Numbers | int) -> States:
        """After an accept: the one of most weight, a rule rather than a policy, the last, is the deciding one."""
        grade = weight * 2 + by_rule
        new = np.where(self.best >> 40 <= grade, (np.int64(grade) << 40) | number, self.best)
        return replace(self, best=new)


def joined(parts: Iterable[States]) -> States:
    """All of them."""
    found = [part for part in parts if len(part)]
    if len(found) == 1:
        return found[0]
    empty = np.zeros(0, np.int64)
    columns = ([getattr(part, name) for part in found] or [empty] for name in ("rows", "past", "best", "back", "node"))
    return States(*(np.concatenate(column) for column in columns))


def values_of(numbers: NDArray[np.integer]) -> list[int]:
    """The different ones among small numbers."""
    return [int(one) for one in np.flatnonzero(np.bincount(numbers))] if len(numbers) else []


class Crowd:
    """Packets, what happened to them, and the questions they are asked.

    lineage  which states became which others
    """

    def __init__(self, programs: Programs, rows: Rows) -> None:
        self.programs, self.rows = programs, rows
        self.pasts: list[Past] = [GIVEN]
        self.lineage = Lineage(rows.count)
        self._numbers: dict[Past, int] = {GIVEN: 0}
        self._classes: dict[tuple[Axis, int], Classes] = {}
        self._touched: dict[tuple[int, str], bool] = {}

    def all(self) -> States:
        """Each packet, as it came."""
        count = self.rows.count
        none = np.zeros(count, np.int64)
        return States(np.arange(count), none, none - 1, none, np.arange(count))

    # --- pasts ---

    def number(self, past: Past) -> int:
        """Its index in `pasts`."""
        found = self._numbers.get(past)
        if found is None:
            found = self._numbers[past] = len(self.pasts)
            self.pasts.append(past)
        return found

    def changed(self, states: States, change: Callable[[Past], Past]) -> States:
        """States after a change of their past."""
        table = np.zeros(len(self.pasts), np.int64)
        for past in values_of(states.past):
            table[past] = self.number(change(self.pasts[past]))
        return replace(states, past=table[states.past])

    def parts(self, states: States) -> Iterator[tuple[Past, States]]:
        """Those of each past."""
        pasts = values_of(states.past)
        for past in pasts:
            yield self.pasts[past], states if len(pasts) == 1 else states.at(states.past == past)

    def become(self, name: str, states: States, numbers: Numbers, change: Callable[[int], Change]) -> States:
        """States of which a field is changed by a number of each."""
        out = []
        for one in dict.fromkeys(numbers.tolist()):
            new = change(one)
            out.append(self.changed(states.at(numbers == one), lambda past, new=new: past.put(name, new)))  # type: ignore[misc]
        return joined(out)

    def _touches(self, past: int, name: str) -> bool:
        key = past, name
        found = self._touched.get(key)
        if found is None:
            found = self.pasts[past].change(name) is not None
            found = found or any(self._touches(past, other) for other, _ in requires_of(name))
            self._touched[key] = found
        return found

    # --- classes ---

    def classes(self, axis: Axis, states: States) -> Classes:
        """The class of each state's value."""
        pasts = values_of(states.past)
        touching = [past for past in pasts if past and self._touches(past, axis.name)]
        if not touching:
            return self._of_all(axis, 0).take(states.rows)
        if len(pasts) == 1:
            return self._of(axis, pasts[0], states.rows)
        out = self._of_all(axis, 0).take(states.rows)
        for past in touching:
            chosen = np.flatnonzero(states.past == past)
            out[chosen] = self._of(axis, past, states.rows[chosen])
        return out

    def _of(self, axis: Axis, past: int, rows: Numbers) -> Classes:
        if (axis, past) in self._classes or len(rows) * 4 > self.rows.count:
            return self._of_all(axis, past).take(rows)
        return self.rows.classes(axis, self.pasts[past], rows)

    def _of_all(self, axis: Axis, past: int) -> Classes:
        found = self._classes.get((axis, past))
        if found is None:
            found = self.rows.classes(axis, self.pasts[past], np.arange(self.rows.count))
            self._classes[axis, past] = found
        return found

    # --- questions ---

    def next(self, index: Index, boxes: list[Box], states: States, start: Numbers) -> tuple[States, Numbers]:
        """States with the number of the first box from `start` on that holds; `index.size` where there is none."""
        done: list[tuple[States, Numbers]] = []
        while len(states):
            classes = {axis: self.classes(axis, states) for axis in index.axes}
            number = index.first(classes, start.astype(np.int32)).astype(np.int64)
            doubtful = index.doubtful(classes, number) & (number < index.size)
            if not doubtful.any():
                done.append((states, number))
                break
            sure = np.flatnonzero(~doubtful)
            done.append((states.at(sure), number[sure]))
            again = []
            for one in values_of(number[doubtful]):
                yes, no = self.ask_all(boxes[one], states.at(np.flatnonzero(doubtful & (number == one))))
                done.append((yes, np.full(len(yes), one)))
                again.append((no, np.full(len(no), one + 1)))
            states, start = joined(no for no, _ in again), np.concatenate([at for _, at in again])
        return joined(part for part, _ in done), np.concatenate([np.zeros(0, np.int64), *(at for _, at in done)])

    def ask_all(self, tests: Iterable[Test], states: States) -> tuple[States, States]:
        """(those for which all tests hold, the others)."""
        failed = []
        for test in tests:
            states, no = self.ask(test, states)
            failed.append(no)
        return states, joined(failed)

    def ask(self, test: Test, states: States) -> tuple[States, States]:
        """(those for which the test holds, the others); where that is not known, both."""
        axis = self.programs.space.axis(test)
        classes = self.classes(axis, states)
        holds = self.programs.space.members(test)[classes]
        unknown = classes == axis.size
        yes, no = [states.at(holds)], [states.at(~holds & ~unknown)]
        if unknown.any():
            having, lacking = self._has(test.field, states.at(unknown))
            no.append(lacking)
            for past, part in self.parts(having):
                known = self._recalled(past, test, axis)
                if known is not None:
                    (yes if known else no).append(part)
                    continue
                one, other = self._fork(f"the packet's {FIELD_NAMES[test.field]}", part)
                yes.append(self._granted(one, test, axis, True))
                no.append(self._granted(other, test, axis, False))
        return joined(yes), joined(no)

    def _recalled(self, past: Past, test: Test, axis: Axis) -> bool | None:
        if isinstance(test, In) and test.mask is not None:
            return past.answer(test)
        return past.inside(test.field, *_among(test, axis))

    def _granted(self, states: States, test: Test, axis: Axis, yes: bool) -> States:
        if len(self.pasts) > _MOST_PASTS:
            return states
        if isinstance(test, In) and test.mask is not None:
            return self.changed(states, lambda past: past.granted(test, yes))
        values, top = _among(test, axis)
        return self.changed(states, lambda past: past.taken(test.field, values, top, yes))

    def _fork(self, text: str, states: States) -> tuple[States, States]:
        yes, no = self.lineage.fork(text, states.node, states.rows)
        return replace(states, node=yes), replace(states, node=no)

    def _has(self, field: str, states: States) -> tuple[States, States]:
        return self.ask_all((In(other, values) for other, values in requires_of(field)), states)

    def has(self, field: str, states: States) -> tuple[States, States]:
        """(those that have the field, known or not, the others)."""
        status = self.status(field, states)
        asked, lacking = self._has(field, states.at(status == UNKNOWN))
        return joined([states.at(status == KNOWN), asked]), joined([states.at(status == ABSENT), lacking])

    def status(self, field: str, states: States) -> NDArray[np.uint8]:
        """What is known of the field."""
        return self.values(field, states).status

    def values(self, field: str, states: States) -> Values:
        """The field's values, and what is known of them."""
        pasts = values_of(states.past)
        if len(pasts) == 1:
            return self.rows.values(field, self.pasts[pasts[0]], states.rows)
        out = self.rows.values(field, GIVEN, states.rows)
        for past in pasts:
            chosen = np.flatnonzero(states.past == past)
            found = self.rows.values(field, self.pasts[past], states.rows[chosen])
            out.values[chosen], out.status[chosen] = found.values, found.status
        return out

    def ask_boxes(self, term: Boxes, states: States) -> tuple[States, States]:
        """(those for which an AnyOf holds, the others)."""
        lacking = []
        for field in term.needs:
            states, no = self.has(field, states)
            lacking.append(no)
        index = self.programs.index(term)
        found, number = self.next(index, term.boxes, states, np.zeros(len(states), np.int64))
        one, other = found.at(number < index.size), found.at(number == index.size)
        return (other, joined([one, *lacking])) if term.term.negated else (one, other)

    def ask_atom(self, atom: Atom, states: States) -> tuple[States, States]:
        """Both, unless the packet was asked before: (those for which it holds, the others)."""
        question, again = question_of(atom), self.programs.is_asked_again(atom)
        yes: list[States] = []
        no: list[States] = []
        for past, part in self.parts(states):
            known = past.recalled(question) if again else None
            if known is not None:
                (yes if known else no).append(part)
                continue
            for answer, group, one in zip((True, False), (yes, no), self._fork(atom.text, part), strict=True):
                keep = again and len(self.pasts) <= _MOST_PASTS
                group.append(self._recall(one, question, answer) if keep else one)
        return (joined(no), joined(yes)) if atom.negated else (joined(yes), joined(no))

    def _recall(self, states: States, question: tuple[str, str, str], answer: bool) -> States:
        return self.changed(states, lambda past: past.remembering(question, answer))

    def ask_cases(self, cases: Cases, states: States) -> tuple[States, Numbers]:
        """The first case that holds; the number of all of them where none does."""
        index = self.programs.index(cases)
        return self.next(index, cases.boxes, states, np.zeros(len(states), np.int64))

    def distinct(self, states: States, number: Numbers) -> tuple[States, Numbers]:
        """Each state once."""
        key = states.rows
        for column in (states.past, number, states.best, states.back):
            values, number_of = np.unique(column, return_inverse=True)
            key = np.unique(key * (len(values) + 1) + number_of, return_inverse=True)[1]
        _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        kept = first[inverse]
        same = np.flatnonzero(kept != np.arange(len(kept)))
        self.lineage.merge(states.node[same], states.node[kept[same]])
        return states.at(first), number[first]


def _among(test: Test, axis: Axis) -> tuple[Intervals, int]:
    """(numbers for which it holds, the greatest there is): of names, classes of the axis."""
    if isinstance(test, Named):
        return axis.ranges(test), axis.size - 1
    return test.values, (1 << axis.width) - 1
