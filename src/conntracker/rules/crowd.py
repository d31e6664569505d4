"""Walking many packets through the chains at once: in each chain, all of them go to their next rule together.

A state is a packet at one point, with what happened to it so far. Where a rule asks what is not known, the state
becomes two; states of one packet that come to the same point with the same past become one again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conntracker.rules.changes import GIVEN, LOST, Derived, Past, Xor
from conntracker.rules.fields import ROUTE_TYPES
from conntracker.rules.lookup import Axis, Classes, Index
from conntracker.rules.programs import Boxes, Cases, Programs, question_of
from conntracker.rules.rows import ABSENT, KNOWN, UNKNOWN, Rows, requires_of, width_in
from conntracker.rules.terms import Assign, Atom, Box, In, Nat, Test

__all__ = ["Crowd", "States"]

Numbers = NDArray[np.int64]
_MOST_PASTS = 50_000  # of a chunk of packets; then what was taken for granted is not remembered


@dataclass(slots=True)
class States:
    """Packets on their way.

    rows    indices into Rows
    past    indices into Crowd.pasts
    best    of the accepts so far, the one that would be called deciding: see `accepted`; -1 for none
    back    whose state of the calling chain each one was
    """

    rows: Numbers
    past: Numbers
    best: Numbers
    back: Numbers

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, chosen: NDArray[np.generic]) -> States:
        """Some of them."""
        return States(self.rows[chosen], self.past[chosen], self.best[chosen], self.back[chosen])

    def accepted(self, weight: int, by_rule: int, number: Numbers | int) -> States:
        """After an accept: the one of most weight, a rule rather than a policy, the last, is the deciding one."""
        grade = weight * 2 + by_rule
        new = np.where(self.best >> 40 <= grade, (np.int64(grade) << 40) | number, self.best)
        return States(self.rows, self.past, new, self.back)


def joined(parts: Iterable[States]) -> States:
    """All of them."""
    found = [part for part in parts if len(part)]
    if len(found) == 1:
        return found[0]
    empty = np.zeros(0, np.int64)
    columns = ([getattr(part, name) for part in found] or [empty] for name in ("rows", "past", "best", "back"))
    return States(*(np.concatenate(column) for column in columns))


def values_of(numbers: NDArray[np.integer]) -> list[int]:
    """The different ones among small numbers."""
    return [int(one) for one in np.flatnonzero(np.bincount(numbers))] if len(numbers) else []


class Crowd:
    """Packets, what happened to them, and the questions they are asked.

    hung     (name of a question, rows that took an answer for granted)
    forked   whether a packet ever became two states
    """

    def __init__(self, programs: Programs, rows: Rows) -> None:
        self.programs, self.rows = programs, rows
        self.pasts: list[Past] = [GIVEN]
        self.hung: list[tuple[str, Numbers]] = []
        self.forked = False
        self._numbers: dict[Past, int] = {GIVEN: 0}
        self._classes: dict[tuple[Axis, int], Classes] = {}
        self._touched: dict[tuple[int, str], bool] = {}

    def all(self) -> States:
        """Each packet, as it came."""
        count = self.rows.count
        none = np.zeros(count, np.int64)
        return States(np.arange(count), none, none - 1, none)

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
        return States(states.rows, table[states.past], states.best, states.back)

    def _touches(self, past: int, name: str) -> bool:
        key = past, name
        found = self._touched.get(key)
        if found is None:
            sources = {"saddr_type": ["saddr"], "daddr_type": ["daddr"], "oif": ["daddr"]}.get(name, [])
            sources += [other for other, _ in requires_of(name)]
            one = self.pasts[past]
            found = one.change(name) is not None or any(self._touches(past, other) for other in sources)
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
            width = width_in(test.field, self.rows.version)
            for past in values_of(having.past):
                part = having.at(having.past == past)
                known = self.pasts[past].answer(test, width)
                if known is not None:
                    (yes if known else no).append(part)
                    continue
                self._fork(test.field, part)
                one, other = (self._granted(part, test, answer, width) for answer in (True, False))
                yes.append(one)
                no.append(other)
        return joined(yes), joined(no)

    def _granted(self, states: States, test: Test, answer: bool, width: int) -> States:
        if len(self.pasts) > _MOST_PASTS:
            return states
        return self.changed(states, lambda past: past.granted(test, answer, width))

    def _fork(self, name: str, states: States) -> None:
        self.forked = True
        self.hung.append((name, states.rows))

    def _has(self, field: str, states: States) -> tuple[States, States]:
        return self.ask_all((In(other, values) for other, values in requires_of(field)), states)

    def has(self, field: str, states: States) -> tuple[States, States]:
        """(those that have the field, known or not, the others)."""
        status = self.status(field, states)
        asked, lacking = self._has(field, states.at(status == UNKNOWN))
        return joined([states.at(status == KNOWN), asked]), joined([states.at(status == ABSENT), lacking])

    def status(self, field: str, states: States) -> NDArray[np.uint8]:
        """What is known of the field."""
        out = np.zeros(len(states), np.uint8)
        for past in values_of(states.past):
            chosen = np.flatnonzero(states.past == past)
            out[chosen] = self.rows.values(field, self.pasts[past], states.rows[chosen]).status
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
        for past in values_of(states.past):
            part = states.at(states.past == past)
            known = self.pasts[past].recalled(question) if again else None
            if known is not None:
                (yes if known else no).append(part)
                continue
            self._fork(atom.name, part)
            for answer, group in ((True, yes), (False, no)):
                keep = again and len(self.pasts) <= _MOST_PASTS
                group.append(self._recall(part, question, answer) if keep else part)
        return (joined(no), joined(yes)) if atom.negated else (joined(yes), joined(no))

    def _recall(self, states: States, question: tuple[str, str, str], answer: bool) -> States:
        return self.changed(states, lambda past: past.remembering(question, answer))

    def ask_cases(self, cases: Cases, states: States) -> tuple[States, Numbers]:
        """The first case that holds; the number of all of them where none does."""
        index = self.programs.index(cases)
        return self.next(index, cases.boxes, states, np.zeros(len(states), np.int64))

    # --- changes ---

    def assign(self, part: Assign, states: States) -> States:
        """A field's new value, in the packets that have it."""
        version = self.rows.version
        if part.field == "ct_state":  # `notrack` does nothing behind connection tracking
            hidden = np.array([past.change("ct_state") is not None for past in self.pasts])[states.past]
            having, lacking = states.at(hidden), states.at(~hidden)
        else:
            having, lacking = self.has(part.field, states)
        without = lacking.at(np.zeros(0, np.int64))
        if part.source is not None:  # xt_CONNMARK.c: without a flow, the mark stays
            absent = self.status(part.source, having) == ABSENT
            having, without = having.at(~absent), having.at(absent)
        full = (1 << width_in(part.field, version)) - 1
        source_full = 0 if part.source is None else (1 << width_in(part.source, version)) - 1
        given = self.changed(having, lambda past: past.assigned(part, full, source_full))
        return joined([given, lacking, without])

    def translate(self, nat: Nat, hook: str, states: States) -> States:
        """A new destination before routing, a new source behind it."""
        out = hook in {"prerouting", "output"}
        address, port, kind = ("daddr", "dport", "daddr_type") if out else ("saddr", "sport", "saddr_type")
        if nat.kind == "masquerade" or (nat.kind == "redirect" and nat.addresses is None):
            states = self._to_own(nat, hook, states, address)
            local = Xor(ROUTE_TYPES.index("local"))
            states = self.changed(states, lambda past: past.put(kind, local))
        elif nat.addresses is not None or (nat.kind in {"dnat", "snat"} and nat.ports is None):
            full = (1 << width_in(address, self.rows.version)) - 1
            states = self.changed(states, lambda past: _readdressed(past, nat, address, full).put(kind, Derived()))
        if nat.ports is not None:
            low, high = nat.ports
            having, lacking = self.has(port, states)

            def ported(past: Past) -> Past:
                if low == high:
                    return past.put(port, Xor(low))
                return past.put(port, LOST).within(port, ((low, high),))

            states = joined([self.changed(having, ported), lacking])
        direction = frozenset(("dst" if out else "src",))
        return self.changed(states, lambda past: past.toward(direction))

    def _to_own(self, nat: Nat, hook: str, states: States, address: str) -> States:
        rows = self.rows
        if nat.kind == "redirect" and hook == "output":
            own = Xor((127 << 24) + 1 if rows.version == 4 else 1)
            return self.changed(states, lambda past: past.put(address, own))
        if rows.host is None or not rows.host.primary:
            return self.changed(states, lambda past: past.put(address, LOST))
        out = []
        interface = "oif" if nat.kind == "masquerade" else "iif"
        for past in values_of(states.past):
            part = states.at(states.past == past)
            found = rows.values(interface, self.pasts[past], part.rows)
            number = np.where(found.status == KNOWN, found.values.astype(np.int64), len(rows.names))
            for one in values_of(number):
                name = rows.names[one] if one < len(rows.names) else None
                own_address = None if name is None else rows.host.primary.get((rows.version, name))
                change = LOST if own_address is None else Xor(own_address)
                out.append(self.changed(part.at(number == one), lambda old, new=change: old.put(address, new)))  # type: ignore[misc]
        return joined(out)

    def distinct(self, states: States, number: Numbers) -> tuple[States, Numbers]:
        """Each state once."""
        key = states.rows
        for column in (states.past, number, states.best, states.back):
            values, number_of = np.unique(column, return_inverse=True)
            key = np.unique(key * (len(values) + 1) + number_of, return_inverse=True)[1]
        _, first = np.unique(key, return_index=True)
        return states.at(first), number[first]


def _readdressed(past: Past, nat: Nat, address: str, full: int) -> Past:
    if nat.addresses is None:
        return past.put(address, LOST)
    low, high = nat.addresses
    if low == high and nat.kind != "netmap":
        return past.put(address, Xor(low))
    if nat.kind == "netmap":
        old = past.value(address, full)
        new = LOST if old == LOST else old.masked((high - low) & ~low).xor(Xor(low))  # type: ignore[union-attr]
        past = past.put(address, new)
    else:
        past = past.put(address, LOST)
    return past.within(address, ((low, high),)) if low != high else past
