"""Sorting columns of words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.sorting import sort_distinct, sort_gathered

WORD = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**32, 2**64 - 1]) | st.integers(0, 3)


@pytest.mark.parametrize("words", [1, 4])
@given(data=st.data())
def test_rows_are_sorted_and_distinct(words: int, data: st.DataObject) -> None:
    """Any rows come out as a plain sort of the set of them."""
    row = st.tuples(*[WORD] * words, st.integers(0, 2**32 - 1) | st.integers(0, 2))
    rows = data.draw(st.lists(row, max_size=80))
    addresses = tuple(np.array([r[i] for r in rows], np.uint64) for i in range(words))
    out, ports = sort_distinct(addresses, np.array([r[-1] for r in rows], np.uint32))
    assert list(zip(*(c.tolist() for c in out), ports.tolist(), strict=True)) == sorted(set(rows))


@pytest.mark.parametrize("spread", [1, 3, 2**20, 2**40, 2**64 - 1])
def test_many_rows_of_any_spread(spread: int) -> None:
    """A quarter of a million rows, enough for two threads, are sorted whether their words are all alike or not."""
    rng = np.random.default_rng(1)
    word = rng.integers(0, spread, 250_000, np.uint64, endpoint=True)
    ports = rng.integers(0, 500, 250_000).astype(np.uint32)
    (out,), found = sort_distinct((word,), ports)
    expected = np.unique(np.rec.fromarrays([word, ports]))
    assert (out == expected["f0"]).all()
    assert (found == expected["f1"]).all()


@pytest.mark.parametrize("words", [1, 4])
@given(data=st.data())
def test_what_equal_rows_had_is_gathered(words: int, data: st.DataObject) -> None:
    """Each row that is left has the distinct values of all that were equal to it, in their order, but none for 0."""
    word = st.integers(0, 1) | st.sampled_from([2**32, 2**64 - 1])
    rows = data.draw(st.lists(st.tuples(st.tuples(*[word] * words, st.integers(0, 1)), st.integers(0, 4)), max_size=80))
    expected: dict[tuple[int, ...], dict[str, None]] = {}
    for row, place in rows:
        expected.setdefault(row, {}).update({"-abcd"[place]: None} if place else {})
    addresses = tuple(np.array([row[i] for row, _ in rows], np.uint64) for i in range(words))
    ports, places = (np.array(values, np.uint32) for values in ([r[-1] for r, _ in rows], [p for _, p in rows]))
    out, ports, gathered, sets = sort_gathered(addresses, ports, places, [None, *"abcd"])
    found = zip(zip(*(c.tolist() for c in out), ports.tolist(), strict=True), sets[gathered], strict=True)
    assert [(row, list(values)) for row, values in found] == [(row, list(expected[row])) for row in sorted(expected)]
    assert (sets[0], len(set(sets))) == ((), len(sets))


@pytest.mark.parametrize("spread", [3, 2**20, 2**64 - 1])
def test_many_equal_rows_keep_their_order(spread: int) -> None:
    """Of rows enough for two threads, what equal ones had is in the order in which they came."""
    rng = np.random.default_rng(1)
    half = rng.integers(0, spread, 100_000, np.uint64, endpoint=True)
    word, ports = np.concatenate([half, half[::-1]]), np.zeros(200_000, np.uint32)
    places = np.arange(1, 200_001, dtype=np.uint32)
    (out,), _, gathered, sets = sort_gathered((word,), ports, places, range(200_001))
    assert (out == np.unique(half)).all()
    assert all(list(values) == sorted(values) for values in sets[gathered])
    assert sum(map(len, sets[gathered])) == 200_000
