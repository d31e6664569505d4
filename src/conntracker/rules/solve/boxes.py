"""Rules as boxes, many at once: which earlier rules may stand in a rule's way, and which one alone covers it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from conntracker.rules.fields import FIELDS, NAMES, width_of
from conntracker.rules.intervals import Intervals, complement, intersect, is_subset
from conntracker.rules.ruleset import KnownChain, Meaning
from conntracker.rules.solve.domain import Domain
from conntracker.rules.terms import Assign, Atom, Effect, In, Named, Verdict

__all__ = ["Boxes"]

_COLUMNS = ("saddr", "daddr", "protocol", "sport", "dport", "iif", "oif", "ct_state", "icmp_type", "mark", "mac")
_TOP = (1 << 63) - 1


class Boxes:
    """The rules of one chain, for one IP version."""

    def __init__(self, known: KnownChain, domain: Domain) -> None:
        self._domain = domain
        self.tests: list[dict[str, Intervals] | None] = []  # all of a rule's terms, if they are a product of sets
        self._unequal: list[frozenset[object]] = []
        count = len(known.meanings)
        self._low: NDArray[Any] = np.zeros((count, len(_COLUMNS)), np.int64)
        self._high: NDArray[Any] = np.full((count, len(_COLUMNS)), _TOP, np.int64)
        self.covers: NDArray[Any] = np.zeros(count, bool)  # whole, and a packet that matches comes no further
        for index, meaning in enumerate(known.meanings):
            self._add(index, meaning)

    def _add(self, index: int, meaning: Meaning) -> None:
        tests: dict[str, Intervals] = {}
        others: set[object] = set()
        verdict = None
        for part in meaning.parts:
            if isinstance(part, Verdict):
                verdict = part
            elif isinstance(part, In) and part.mask is None:
                tests[part.field] = intersect(tests[part.field], part.values) if part.field in tests else part.values
            elif isinstance(part, Named):
                values = self._interfaces(part)
                tests[part.field] = intersect(tests[part.field], values) if part.field in tests else values
            elif not isinstance(part, Effect):
                others.add(part if not isinstance(part, Assign) else object())
        whole = not any(isinstance(one, Atom) and one.occurrence for one in others)
        self._unequal.append(frozenset(others))
        self.tests.append(tests)
        self.covers[index] = (
            whole and verdict is not None and verdict.kind not in {"jump", "continue"}
            and not any(isinstance(one, object) and type(one) is object for one in others)
        )  # fmt: skip
        for column, name in enumerate(_COLUMNS):
            if tests.get(name):
                self._low[index, column] = _short(name, tests[name][0][0], self._domain.version)
                self._high[index, column] = _short(name, tests[name][-1][1], self._domain.version)

    def _interfaces(self, part: Named) -> Intervals:
        found = self._domain.interfaces.matching(part.patterns)
        return complement(found, 0, len(self._domain.interfaces.names) - 1) if part.negated else found

    def overlapping(self, index: int) -> NDArray[Any]:
        """Earlier rules that may match packets that the rule matches, by what their fields span."""
        low, high = self._low[index], self._high[index]
        return np.flatnonzero(((self._low[:index] <= high) & (self._high[:index] >= low)).all(axis=1))

    def covering(self, index: int) -> int | None:
        """The first earlier rule that ends the way of all packets that the rule matches; None if none alone does."""
        low, high = self._low[index], self._high[index]
        wide = ((self._low[:index] <= low) & (self._high[:index] >= high)).all(axis=1) & self.covers[:index]
        for other in np.flatnonzero(wide):
            if self._covers(int(other), index):
                return int(other)
        return None

    def _covers(self, one: int, other: int) -> bool:
        wide, narrow = self.tests[one], self.tests[other]
        if wide is None or narrow is None or not self._unequal[one] <= self._unequal[other]:
            return False
        return all(
            is_subset(narrow[field], values) if field in narrow else _all(field, values, self._domain)
            for field, values in wide.items()
        )


def _all(field: str, values: Intervals, domain: Domain) -> bool:
    """Whether all packets have the field, with a value of the set."""
    if field == "family":
        return any(low <= domain.version <= high for low, high in values)
    if field in NAMES:
        return is_subset(((0, len(domain.interfaces.names) - 1),), values)
    if FIELDS[field].requires or field in {"mac", "skuid", "skgid"}:
        return False
    return is_subset(((0, (1 << width_of(field, domain.version)) - 1),), values)


def _short(field: str, value: int, version: int) -> int:
    """The value's first 62 bits, order kept; an address of the other IP version may be any."""
    width = 16 if field in NAMES else width_of(field, version)
    return min(value >> max(0, width - 62), _TOP)
