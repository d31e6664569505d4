"""Rows by key."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from conntracker.index import KeyIndex, Keys

Key = tuple[int, int]


def columns(keys: list[Key]) -> Keys:
    """Keys as columns."""
    return [np.array([key[0] for key in keys], np.uint64), np.array([key[1] for key in keys], np.uint32)]


@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=40), max_size=6))
def test_rows_are_numbered_as_keys_come(batches: list[list[Key]]) -> None:
    """Each key has one row, the rows count up in order of arrival, and the first of its kind is told."""
    index, known = KeyIndex(["u8", "u4"], 1024), dict[Key, int]()
    for batch in batches:
        rows, first = index.place(columns(batch))
        for key, row, is_first in zip(batch, rows.tolist(), first.tolist(), strict=True):
            assert is_first == (key not in known)
            assert row == known.setdefault(key, len(known))
    assert index.size == len(known)
    assert [tuple(int(c[i]) for c in index.columns) for i in range(index.size)] == list(known)


@given(st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=60), st.data())
def test_a_replaced_row_is_not_led_to(keys: set[Key], data: st.DataObject) -> None:
    """After `replace` a key leads to its new row, and still does after `rebuild` without the old ones."""
    index, ordered = KeyIndex(["u8", "u4"], 1024), sorted(keys)
    rows, _ = index.place(columns(ordered))
    chosen = sorted(data.draw(st.sets(st.sampled_from(range(len(ordered))), min_size=1)))
    new = index.replace(rows[chosen])
    led_to = np.ones(index.size, np.bool_)
    led_to[rows[chosen]] = False
    assert index.place(columns([ordered[i] for i in chosen]))[0].tolist() == new.tolist()
    keep = np.flatnonzero(led_to)
    index.rebuild(keep, led_to[keep], 2048)
    found, first = index.place(columns(ordered))
    assert not first.any()
    assert sorted(found.tolist()) == list(range(len(ordered)))


def test_a_full_index_is_found_again() -> None:
    """A hundred thousand keys in an index with little room to spare have a row each."""
    rng, index = np.random.default_rng(5), KeyIndex(["u8", "u4"], 1 << 17)
    keys: Keys = [rng.permutation(100_000).astype(np.uint64), np.zeros(100_000, np.uint32)]
    made, first = index.place(keys)
    assert first.all()
    again, first = index.place([keys[0][::-1], keys[1]])
    assert not first.any()
    assert (again == made[::-1]).all()
