"""What a ruleset does with millions of packets: one answer for each row of columns.

Packets that no test of the ruleset tells apart are decided once. The answers are those of `rules.walk`, which tells
more of one packet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conntracker.rules.changes import GIVEN, Past, Routed, Xor
from conntracker.rules.host import Host
from conntracker.rules.lineage import Lineage
from conntracker.rules.order import WAYS
from conntracker.rules.passage import ENDS, PASSAGE_TESTS, Ends, Passage, device_tests
from conntracker.rules.programs import Programs
from conntracker.rules.rows import Column, Rows
from conntracker.rules.ruleset import KnownChain, Ruleset
from conntracker.steps import UNDECIDED, Rule

__all__ = ["VERDICTS", "Column", "Decider", "Decisions", "decide"]

VERDICTS = (*ENDS, UNDECIDED)
_UNDECIDED = len(VERDICTS) - 1

_READ = 1 << 20  # rows that are compared with each other
_ROUTED = GIVEN.put("oif", Routed(Xor(0, (("daddr", -1),))))
_WALKED = 1 << 16  # different ones that are walked together


@dataclass(frozen=True, slots=True)
class Decisions:
    """What becomes of n packets.

    verdict   indices into VERDICTS; definite where all outcomes of what is not known lead to the same one
    rule      indices into `rules` of the deciding rule (the first, if that hangs on what is not known); -1 where a
              policy decided, nothing did, or it is undecided
    policy    indices into `chains` of the base chain whose policy decided, -1 elsewhere
    atoms     indices into `reasons`: what an undecided one hangs on, -1 elsewhere
    rules     of the ruleset; chains: all of them
    reasons   texts of matches, and of fields that are not known, of which the answers lead to different verdicts,
              sorted: as rules.walk has them, which also asks on in rules that fail anyway. Where only two answers
              together make a difference, that order may have it name the other one
    """

    verdict: NDArray[np.uint8]
    rule: NDArray[np.int32]
    policy: NDArray[np.int32]
    atoms: NDArray[np.int32]
    rules: tuple[Rule, ...]
    chains: tuple[KnownChain, ...]
    reasons: tuple[tuple[str, ...], ...]


class Decider:
    """A ruleset, made ready to decide packets that go one way."""

    def __init__(self, ruleset: Ruleset, way: str, *, host: Host | None = None) -> None:
        """`way` is input, forward or output. Raises ValueError for another."""
        if way not in WAYS:
            raise ValueError(f"no way of packets: {way}")
        self._ruleset, self._way, self._host = ruleset, way, host
        self._programs: dict[int, Programs] = {}

    def decide(self, columns: Mapping[str, NDArray[np.generic] | Column]) -> Decisions:
        """What becomes of each row. Columns may lack fields; `family` (4 or 6) they must have.

        A plain array is a column of which all is known; of interfaces, it is one of names.
        """
        all_given = {name: one if isinstance(one, Column) else Column(one) for name, one in columns.items()}
        if "family" not in all_given:
            raise ValueError("packets have a family: 4 or 6")
        family = all_given["family"].values
        out = _Answers(len(family))
        for low in range(0, len(family), _READ):
            chunk = family[low : low + _READ]
            for version in (4, 6):
                chosen = np.flatnonzero(chunk == version) + low
                if len(chosen):
                    used = self._ready(version).fields()
                    given = {name: one for name, one in all_given.items() if name in used}
                    part = given if len(chosen) == len(family) else _rows_of(given, chosen)
                    rows = Rows(part, len(chosen), version, self._host, self._way)
                    self._decide(rows, chosen, out)
        rules = tuple(rule for known in self._ruleset.chains for rule in known.chain.rules)
        return out.decisions(rules, self._ruleset.chains)

    def _ready(self, version: int) -> Programs:
        found = self._programs.get(version)
        if found is None:
            more = (*PASSAGE_TESTS, *device_tests(self._ruleset))
            primary = () if self._host is None else self._host.primary.items()
            own = sorted({address for (of, _), address in primary if of == version})
            found = self._programs[version] = Programs(self._ruleset, version, more, own)
        return found

    def _decide(self, rows: Rows, chosen: NDArray[np.intp], out: _Answers) -> None:
        programs = self._ready(rows.version)
        first, inverse = _different(rows, programs, self._way)
        each = _Answers(len(first))
        for low in range(0, len(first), _WALKED):
            some = first[low : low + _WALKED]
            passage = Passage(self._ruleset, programs, rows.take(some), self._way)
            passage.go()
            each.take(passage.ends, passage.crowd.lineage, low, len(some))
        out.spread(each, chosen, inverse)


def decide(
    ruleset: Ruleset,
    columns: Mapping[str, NDArray[np.generic] | Column],
    way: str,
    *,
    host: Host | None = None,
) -> Decisions:
    """What becomes of each row: see Decider.decide, which is there for more than one call."""
    return Decider(ruleset, way, host=host).decide(columns)


def _rows_of(columns: Mapping[str, Column], chosen: NDArray[np.intp]) -> dict[str, Column]:
    def taken(mask: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        return None if mask is None else mask[chosen]

    return {
        name: Column(one.values[chosen], taken(one.known), taken(one.present), one.names)
        for name, one in columns.items()
    }


def _different(rows: Rows, programs: Programs, way: str) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(rows that tests tell apart, which of them each row is like)."""
    every = np.arange(rows.count)
    key, most = np.zeros(rows.count, np.int64), 1

    def add(column: NDArray[np.integer], size: int) -> None:
        nonlocal key, most
        if most * size >= 1 << 62:
            texts, key = np.unique(key, return_inverse=True)
            most = len(texts)
        key *= size
        key += column
        most *= size

    def views(name: str) -> list[Past]:
        routed = name == "oif" and way == "forward" and rows.is_routed
        return [GIVEN, _ROUTED] if routed else [GIVEN]

    for axis in programs.space.axes.values():
        for past in views(axis.name):
            add(rows.classes(axis, past, every), axis.size + 2)
    for name in programs.exact:
        for past in views(name):
            found = rows.values(name, past, every)
            wide = found.values.ndim == 2
            for column in (found.values[:, 0], found.values[:, 1]) if wide else (found.values,):
                different, number = np.unique(column, return_inverse=True)
                add(number, len(different))
            add(found.status, 3)
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return first, inverse


class _Answers:
    """What is decided of some rows, as it comes."""

    def __init__(self, count: int) -> None:
        self.verdict = np.full(count, _UNDECIDED, np.uint8)
        self.rule, self.policy, self.atoms = (np.full(count, -1, np.int32) for _ in range(3))
        self.reasons: dict[tuple[str, ...], int] = {}

    def take(self, ends: Ends, lineage: Lineage, low: int, count: int) -> None:
        """The ends of rows low to low + count."""
        rows, by_rule, number = (np.concatenate(part) for part in (ends.rows, ends.by_rule, ends.numbers))
        seen, mattering = lineage.settle()
        one = (seen & (seen - 1)) == 0
        chunk = slice(low, low + count)
        self.verdict[chunk] = np.where(one, np.frexp(seen.astype(np.float64))[1] - 1, _UNDECIDED)
        for column, kind in ((self.rule, 1), (self.policy, 0)):
            least = np.full(count, np.iinfo(np.int32).max, np.int64)
            mine = (by_rule == kind) & (number >= 0) & one[rows]
            np.minimum.at(least, rows[mine], number[mine])
            column[chunk] = np.where(least < np.iinfo(np.int32).max, least, -1)
        self.policy[chunk][self.rule[chunk] >= 0] = -1
        self._hang(mattering, np.flatnonzero(~one), low, count)

    def _hang(
        self, mattering: list[tuple[str, NDArray[np.int64]]], undecided: NDArray[np.intp], low: int, count: int
    ) -> None:
        names = sorted({name for name, _ in mattering})
        if not len(undecided):
            return
        on = np.zeros((count, len(names)), np.bool_)
        for name, rows in mattering:
            on[rows, names.index(name)] = True
        different, inverse = np.unique(on[undecided], axis=0, return_inverse=True)
        reasons = [tuple(name for name, yes in zip(names, one, strict=True) if yes) for one in different]
        numbers = np.array([self.reasons.setdefault(one, len(self.reasons)) for one in reasons], np.int32)
        self.atoms[low + undecided] = numbers[inverse.reshape(-1)]

    def spread(self, each: _Answers, chosen: NDArray[np.intp], inverse: NDArray[np.intp]) -> None:
        """The answers of different rows, to all rows that are like them."""
        self.verdict[chosen] = each.verdict[inverse]
        self.rule[chosen], self.policy[chosen] = each.rule[inverse], each.policy[inverse]
        numbers = [self.reasons.setdefault(one, len(self.reasons)) for one in each.reasons]
        self.atoms[chosen] = np.array([*numbers, -1], np.int32)[each.atoms[inverse]]

    def decisions(self, rules: tuple[Rule, ...], chains: tuple[KnownChain, ...]) -> Decisions:
        """All of it."""
        return Decisions(self.verdict, self.rule, self.policy, self.atoms, rules, chains, tuple(self.reasons))
