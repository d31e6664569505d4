"""Sets of numbers as intervals."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from conntracker.rules.intervals import complement, contains, intersect, is_subset, normal, prefixes, union

TOP = 40
PAIRS = st.lists(st.tuples(st.integers(0, TOP), st.integers(0, TOP)), max_size=6)


def members(pairs: list[tuple[int, int]]) -> set[int]:
    """The numbers in any of the intervals."""
    return {value for low, high in pairs for value in range(low, high + 1)}


@given(PAIRS, PAIRS)
def test_sets_of_numbers_behave_as_sets(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    """Union, intersection, complement, subset and membership are those of the sets."""
    a, b = normal(one), normal(other)
    first, second = members(one), members(other)
    assert members(list(a)) == first
    assert members(list(union(a, b))) == first | second
    assert members(list(intersect(a, b))) == first & second
    assert members(list(complement(a, 0, TOP))) == set(range(TOP + 1)) - first
    assert is_subset(a, b) == (first <= second)
    assert [value for value in range(TOP + 2) if contains(a, value)] == sorted(first)


@given(PAIRS)
def test_equal_sets_have_one_form(pairs: list[tuple[int, int]]) -> None:
    """The intervals are sorted and neither overlap nor touch, however the set was said."""
    form = normal(pairs)
    assert normal(reversed(form)) == form
    assert all(before[1] + 1 < after[0] for before, after in pairwise(form))


@given(st.integers(0, 255), st.integers(0, 255))
def test_prefixes_cover_a_range(low: int, high: int) -> None:
    """Prefixes are disjoint, and together the range."""
    covered = [value for first, length in prefixes(low, high, 8) for value in range(first, first + (1 << (8 - length)))]
    assert covered == list(range(low, high + 1))


def test_a_range_that_is_a_prefix_is_one() -> None:
    """10.0.0.0/8 is one prefix, and all addresses are the one of length 0."""
    assert list(prefixes(10 << 24, (11 << 24) - 1, 32)) == [(10 << 24, 8)]
    assert list(prefixes(0, (1 << 128) - 1, 128)) == [(0, 0)]
