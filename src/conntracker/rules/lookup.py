"""Which rule of many is the first to hold, for many packets at once: bitmaps of rules by classes of values.

All tests of a field cut its values into classes: no test tells the values of one class apart. For each class, a bitmap
says which rules hold; the AND of the bitmaps of a packet's fields are the rules that hold for it. Rules are looked at
in blocks: most packets are decided in an early one, and the tables of one block fit in a processor's cache.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from conntracker.rules.fields import NAMES
from conntracker.rules.intervals import Intervals, intersect, normal
from conntracker.rules.terms import In, Named, Test

__all__ = ["Axis", "Classes", "Index", "Space"]

Classes = NDArray[np.int32]
_WORDS = 8  # of 64 rules in a block
_MOST_PRODUCT = 2048  # classes of fields that are looked up together
_CHUNK = 1 << 14  # packets whose bitmaps of a block fit in a cache
_TABLE_WIDTH = 16  # bits: for narrower values, a table has the class of each


class Axis:
    """The classes of a field's values, masked or not: from 0; `size` is that of unknown ones, `size` + 1 of none."""

    def __init__(self, name: str, mask: int | None, width: int) -> None:
        self.name, self.width = name, width
        self.mask = None if mask is None else mask & ((1 << width) - 1)
        self._bounds: set[int] = {0}
        self.patterns: set[str] = set()
        self._names: dict[str, int] = {}
        self._table: NDArray[np.int32] | None = None
        self._cuts = np.zeros(0, np.uint64)
        self._wide_cuts = np.zeros(0, "S16")
        self.lows: list[int] = []
        self.size = 0

    def add(self, test: Test) -> None:
        """Takes a test's borders."""
        if isinstance(test, Named):
            self.patterns.update(test.patterns)
        else:
            for low, high in test.values:
                self._bounds.update((low, high + 1))

    def cut(self, bounds: Iterable[int]) -> None:
        """Makes classes that begin at these values."""
        self._bounds.update(bounds)
        self.freeze()

    def freeze(self) -> None:
        """After the last test: the classes are what they are."""
        if self.name in NAMES:
            # Names that are said are classes of their own; others are what the longest pattern that fits says.
            said = sorted(self.patterns, key=lambda one: (one.endswith("*"), -len(one), one))
            self._names = {pattern: number for number, pattern in enumerate(said)}
            self.size = len(said) + 1
            return
        self.lows = sorted(low for low in self._bounds if low >> self.width == 0)
        self.size = len(self.lows)
        if self.width > 64:
            pairs = np.array([(low >> 64, low & 0xFFFFFFFFFFFFFFFF) for low in self.lows], np.uint64)
            self._wide_cuts = _sortable(pairs)
            return
        self._cuts = np.array(self.lows, np.uint64)
        if self.width <= _TABLE_WIDTH:
            values = np.arange(1 << self.width, dtype=np.uint64)
            self._table = (np.searchsorted(self._cuts, values, "right") - 1).astype(np.int32)

    def class_of(self, name: str) -> int:
        """The class of an interface's name."""
        found = self._names.get(name) if not name.endswith("*") else None
        if found is not None:
            return found
        fitting = (n for p, n in self._names.items() if p.endswith("*") and name.startswith(p[:-1]))
        return min(fitting, default=self.size - 1)

    def classes(self, values: NDArray[np.uint64]) -> Classes:
        """The classes of known values; of (high, low) pairs if they are wider than 64 bits."""
        if self.width > 64:
            if self.mask is not None:
                values = values & np.array([self.mask >> 64, self.mask & 0xFFFFFFFFFFFFFFFF], np.uint64)
            return (np.searchsorted(self._wide_cuts, _sortable(values), "right") - 1).astype(np.int32)
        if self.mask is not None:
            values = values & np.uint64(self.mask)
        if self._table is not None:
            return self._table.take(values.astype(np.intp), mode="clip")
        return (np.searchsorted(self._cuts, values, "right") - 1).astype(np.int32)

    def ranges(self, test: Test) -> Intervals:
        """The classes for which a test holds."""
        if isinstance(test, In):
            return normal((self._at(low), self._at(high)) for low, high in test.values if low >> self.width == 0)
        holding = (n for p, n in self._names.items() if _fits(p, test.patterns) != test.negated)
        rest = [(self.size - 1, self.size - 1)] if test.negated != ("*" in test.patterns) else []
        return normal([*((n, n) for n in holding), *rest])

    def _at(self, value: int) -> int:
        return bisect_right(self.lows, value) - 1


def _sortable(pairs: NDArray[np.uint64]) -> NDArray[np.bytes_]:
    """Pairs (high, low) as bytes that sort as the numbers of 128 bits do."""
    return np.ascontiguousarray(pairs.astype(">u8")).view("S16")[:, 0]


def _fits(pattern: str, patterns: Iterable[str]) -> bool:
    """Whether all names of one pattern's class are among some patterns."""
    stem, open_end = pattern.removesuffix("*"), pattern.endswith("*")
    return any(stem.startswith(one[:-1]) if one.endswith("*") else not open_end and one == pattern for one in patterns)


class Space:
    """All axes that the tests of some rules need."""

    def __init__(self) -> None:
        self.axes: dict[tuple[str, int | None], Axis] = {}
        self._members: dict[Test, NDArray[np.bool_]] = {}

    def add(self, test: Test, width: int) -> None:
        """Takes a test into account: before any index is made."""
        key = test.field, test.mask if isinstance(test, In) else None
        if key not in self.axes:
            self.axes[key] = Axis(*key, width)
        self.axes[key].add(test)

    def freeze(self) -> None:
        """After the last test."""
        for axis in self.axes.values():
            axis.freeze()

    def axis(self, test: Test) -> Axis:
        """The axis of a test."""
        return self.axes[test.field, test.mask if isinstance(test, In) else None]

    def members(self, test: Test) -> NDArray[np.bool_]:
        """Whether the test holds, by class; False where the value is unknown or there is none."""
        found = self._members.get(test)
        if found is None:
            axis = self.axis(test)
            found = self._members[test] = np.zeros(axis.size + 2, np.bool_)
            for low, high in axis.ranges(test):
                found[low : high + 1] = True
        return found


@dataclass(slots=True)
class _Said:
    """What the rules of an index say of one axis: rule rules[i] holds for classes lows[i] to highs[i]."""

    axis: Axis
    rules: NDArray[np.int32]
    lows: NDArray[np.int32]
    highs: NDArray[np.int32]
    tested: NDArray[np.bool_]
    own: NDArray[np.int32] = field(init=False)  # class of the axis -> class of this index
    size: int = field(init=False)

    def __post_init__(self) -> None:
        starts = np.unique(np.concatenate([[0], self.lows, self.highs + 1]))
        starts = starts[starts < self.axis.size]
        self.own, self.size = _numbered(starts, self.axis.size), len(starts)
        self.lows, self.highs = self.own[self.lows], self.own[self.highs]

    def bitmaps(self, first: int, count: int, words: int) -> tuple[NDArray[np.int32] | None, NDArray[np.uint64]]:
        """(class of the index -> row, None if that is the same; rows of bitmaps) of rules `first` and following."""
        begin, end = np.searchsorted(self.rules, [first, first + count])
        rules, lows, highs = self.rules[begin:end] - first, self.lows[begin:end], self.highs[begin:end]
        small = self.size <= _MOST_PRODUCT
        starts = np.arange(self.size) if small else np.unique(np.concatenate([[0], lows, highs + 1]))
        starts = starts[starts < self.size]
        numbers = _numbered(starts, self.size)
        change = np.zeros((len(starts) + 1, count), np.int8)
        change[numbers[lows], rules] = 1
        after = highs + 1
        ends = np.where(after < self.size, numbers[np.minimum(after, self.size - 1)], len(starts))
        np.subtract.at(change, (ends, rules), 1)
        holds = np.zeros((len(starts) + 2, words * 64), np.bool_)
        wild = ~self.tested[first : first + count]
        np.cumsum(change[:-1], axis=0, out=change[:-1])
        holds[:-2, :count] = change[:-1]
        holds[:-2, :count] |= wild
        holds[-2, :count] = True
        holds[-1, :count] = wild
        bits = np.packbits(holds, axis=1, bitorder="little").view("<u8").astype(np.uint64)
        return None if small else numbers, bits


def _numbered(starts: NDArray[np.int64], size: int) -> NDArray[np.int32]:
    """Class -> number of the last start at or before it; the two classes beyond `size` stay beyond."""
    marks = np.zeros(size + 2, np.int32)
    marks[starts] = 1
    marks[size:] = 1
    return (np.cumsum(marks) - 1).astype(np.int32)


class _Group:
    """Axes that are looked up together: their classes are the digits of one number."""

    def __init__(self, said: Sequence[_Said]) -> None:
        self._said = said
        self._sizes = [one.size + 2 for one in said]

    def numbers(self, classes: dict[Axis, Classes], chosen: slice) -> NDArray[np.int32]:
        """The numbers of packets, from their classes."""
        out = self._said[0].own.take(classes[self._said[0].axis][chosen])
        for one, size in zip(self._said[1:], self._sizes[1:], strict=True):
            out *= size
            out += one.own.take(classes[one.axis][chosen])
        return out

    def bitmaps(self, first: int, count: int, words: int) -> tuple[NDArray[np.int32] | None, NDArray[np.uint64]] | None:
        """As those of one axis; None where no rule of the block asks."""
        if not any(one.tested[first : first + count].any() for one in self._said):
            return None
        row, bits = self._said[0].bitmaps(first, count, words)
        for one in self._said[1:]:
            _, other = one.bitmaps(first, count, words)
            bits = (bits[:, None, :] & other[None, :, :]).reshape(-1, words)
        return row, bits


_Block = list[tuple[int, NDArray[np.int32] | None, NDArray[np.uint64]]]


class Index:
    """A list of rules, each a sequence of tests that must all hold."""

    def __init__(self, space: Space, rules: Sequence[Sequence[Test]]) -> None:
        self.size = len(rules)
        by_axis: dict[Axis, list[tuple[int, Intervals]]] = {}
        for number, tests in enumerate(rules):
            for axis, ranges in _of_axes(space, tests).items():
                by_axis.setdefault(axis, []).append((number, ranges))
        said = sorted((_said(axis, found, self.size) for axis, found in by_axis.items()), key=lambda one: one.size)
        self.axes = [one.axis for one in said]
        self._tested = {one.axis: one.tested for one in said}
        self._groups = list(_grouped(said))
        self._words = min(_WORDS, -(-self.size // 64)) or 1
        self._blocks: dict[int, _Block] = {}

    def first(self, classes: dict[Axis, Classes], start: NDArray[np.int32]) -> NDArray[np.int32]:
        """The first rule from `start` on that holds, or may hold as far as is known; `size` if there is none."""
        out = np.full(len(start), self.size, np.int32)
        for low in range(0, len(start), _CHUNK):
            chunk = slice(low, low + _CHUNK)
            out[chunk] = self._first([group.numbers(classes, chunk) for group in self._groups], start[chunk])
        return out

    def _first(self, numbers: list[NDArray[np.int32]], start: NDArray[np.int32]) -> NDArray[np.int32]:
        out = np.full(len(start), self.size, np.int32)
        left = np.arange(len(start))
        width = self._words * 64
        begin = int(start.min()) // width if len(start) else 0
        for block in range(begin, -(-self.size // width)):
            if not len(left):
                break
            hit, found = self._in_block(block, numbers, start)
            if len(hit):
                out[left[hit]] = found + block * width
                keep = np.ones(len(left), np.bool_)
                keep[hit] = False
                left, start = left[keep], start[keep]
                numbers = [one[keep] for one in numbers]
        return out

    def _in_block(
        self, number: int, numbers: list[NDArray[np.int32]], start: NDArray[np.int32]
    ) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
        first = number * self._words * 64
        bits: NDArray[np.uint64] | None = None
        for group, row, table in self._block(number):
            at = numbers[group] if row is None else row.take(numbers[group])
            one = table.take(at, axis=0, mode="clip")
            bits = one if bits is None else np.bitwise_and(bits, one, out=bits)
        if bits is None:
            count = min(self.size - first, self._words * 64)
            whole = np.packbits(np.arange(self._words * 64) < count, bitorder="little").view("<u8").astype(np.uint64)
            bits = np.tile(whole, (len(start), 1))
        late = np.flatnonzero(start > first)
        if len(late):
            bits[late] &= _from(start[late] - first, self._words)
        return _lowest(bits)

    def _block(self, number: int) -> _Block:
        found = self._blocks.get(number)
        if found is None:
            first = number * self._words * 64
            count = min(self.size - first, self._words * 64)
            made = ((at, group.bitmaps(first, count, self._words)) for at, group in enumerate(self._groups))
            found = self._blocks[number] = [(at, *one) for at, one in made if one is not None]
        return found

    def doubtful(self, classes: dict[Axis, Classes], rules: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether the rule that `first` found asks for something that is not known."""
        out = np.zeros(len(rules), np.bool_)
        for axis in self.axes:
            unknown = classes[axis] == axis.size
            if unknown.any():
                out |= unknown & self._tested[axis].take(rules, mode="clip")
        return out


def _of_axes(space: Space, tests: Sequence[Test]) -> dict[Axis, Intervals]:
    out: dict[Axis, Intervals] = {}
    for test in tests:
        axis = space.axis(test)
        ranges = axis.ranges(test)
        out[axis] = intersect(out[axis], ranges) if axis in out else ranges
    return out


def _said(axis: Axis, found: list[tuple[int, Intervals]], size: int) -> _Said:
    tested = np.zeros(size, np.bool_)
    tested[[rule for rule, _ in found]] = True
    flat = np.array([(rule, low, high) for rule, pairs in found for low, high in pairs], np.int32).reshape(-1, 3)
    return _Said(axis, flat[:, 0].copy(), flat[:, 1].copy(), flat[:, 2].copy(), tested)


def _grouped(said: Sequence[_Said]) -> Iterable[_Group]:
    group: list[_Said] = []
    product = 1
    for one in said:
        if group and product * (one.size + 2) > _MOST_PRODUCT:
            yield _Group(group)
            group, product = [], 1
        group.append(one)
        product *= one.size + 2
    if group:
        yield _Group(group)


_FULL = np.uint64(0xFFFFFFFFFFFFFFFF)


def _from(start: NDArray[np.int32], words: int) -> NDArray[np.uint64]:
    """Bitmaps of the rules from `start` on."""
    shift = np.clip(start[:, None] - np.arange(words, dtype=np.int32) * 64, 0, 64)
    return np.where(shift < 64, _FULL << np.minimum(shift, 63).astype(np.uint64), np.uint64(0))


def _lowest(bits: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """(rows that have a bit set, the number of the lowest one in each of them)."""
    words = bits.shape[1]
    flat = np.flatnonzero(bits.ravel() != 0)
    rows = flat // words
    first = np.ones(len(rows), np.bool_)
    np.not_equal(rows[1:], rows[:-1], out=first[1:])
    flat, rows = flat[first], rows[first]
    word = bits.ravel()[flat]
    lowest = word & (~word + np.uint64(1))
    place = np.frexp(lowest.astype(np.float64))[1] - 1
    return rows, (place + (flat - rows * words) * 64).astype(np.int32)
