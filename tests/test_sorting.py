"""Sorting columns of words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.sorting import sort_distinct

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
