"""Sets of whole numbers as sorted, disjoint, closed intervals that do not touch: the one normal form of each set."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

__all__ = ["Intervals", "complement", "contains", "intersect", "is_subset", "normal", "prefixes", "single", "union"]

Intervals = tuple[tuple[int, int], ...]


def normal(pairs: Iterable[tuple[int, int]]) -> Intervals:
    """The set of all numbers in any of the intervals (low, high), both inclusive; those with low > high are empty."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(pairs):
        if low > high:
            continue
        if out and low <= out[-1][1] + 1:
            if high > out[-1][1]:
                out[-1] = (out[-1][0], high)
        else:
            out.append((low, high))
    return tuple(out)


def single(value: int) -> Intervals:
    """The set of one number."""
    return ((value, value),)


def complement(values: Intervals, low: int, high: int) -> Intervals:
    """What lies between low and high, both inclusive, and not in the set."""
    out = []
    for first, last in values:
        if first > low:
            out.append((low, min(first - 1, high)))
        low = max(low, last + 1)
    if low <= high:
        out.append((low, high))
    return tuple(out)


def intersect(one: Intervals, other: Intervals) -> Intervals:
    """What lies in both."""
    out = []
    i = j = 0
    while i < len(one) and j < len(other):
        low, high = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if low <= high:
            out.append((low, high))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return tuple(out)


def union(one: Intervals, other: Intervals) -> Intervals:
    """What lies in either."""
    return normal((*one, *other))


def contains(values: Intervals, value: int) -> bool:
    """Whether the number is in the set."""
    index = bisect_right(values, value, key=lambda pair: pair[0])
    return index > 0 and value <= values[index - 1][1]


def is_subset(one: Intervals, other: Intervals) -> bool:
    """Whether all of one lies in the other."""
    return intersect(one, other) == one


def prefixes(low: int, high: int, width: int) -> Iterator[tuple[int, int]]:
    """The fewest prefixes (value, length) of numbers of `width` bits that together are low to high."""
    while low <= high:
        free = (low & -low).bit_length() - 1 if low else width
        while low + (1 << free) - 1 > high:
            free -= 1
        yield low, width - free
        low += 1 << free
