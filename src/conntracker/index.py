"""Which row a key has: open addressing over columns of key words, a whole batch at a time.

A key is a few words, one of each key column. Rows are numbered in the order in which their keys were first placed. What
else is known of a row is kept elsewhere, in columns of the same capacity.
"""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from conntracker.model import U64

Rows: TypeAlias = NDArray[np.intp]
Keys: TypeAlias = list[NDArray[Any]]

_FREE = -1  # an empty slot
_CLAIM = -2  # minus the number of a key in its batch: a slot that will lead to the row which this key makes


class KeyIndex:
    """Rows by key. `capacity` is a power of two.

    columns   the key words of every row, as dtypes say; those of rows not made yet are undefined
    size      how many rows there are
    """

    def __init__(self, dtypes: list[str], capacity: int) -> None:
        if capacity & (capacity - 1):
            raise ValueError(f"a capacity of {capacity} is no power of two")
        self.columns: Keys = [np.empty(capacity, dtype) for dtype in dtypes]
        self.size = 0
        self._slots = np.full(capacity * 2, _FREE, np.int32)
        # Secret odd multipliers: nobody can choose packets whose flows meet in one slot.
        self._factors = np.frombuffer(os.urandom(8 * len(dtypes)), np.uint64) | np.uint64(1)

    @property
    def capacity(self) -> int:
        """How many rows there is room for; `place` and `replace` need room for what they may make."""
        return len(self.columns[0])

    def place(self, keys: Keys) -> tuple[Rows, NDArray[np.bool_]]:
        """The row of each key; a key not known yet gets a new one.

        Returns (rows, which keys are the first of theirs and made the row); new rows are numbered in that order.
        """
        n, mask = len(keys[0]), len(self._slots) - 1
        slot, step = self._probe(keys)
        rows, first, home = np.empty(n, np.intp), np.zeros(n, np.bool_), slot.copy()
        pending = np.arange(n)
        while len(pending):
            at = self._slots.take(slot)
            empty = np.flatnonzero(at == _FREE)
            missed = np.ones(len(pending), np.bool_)
            if len(empty):
                # Several keys may want one slot: they claim it in turn, the first one last, and so it gets it.
                claims = (_CLAIM - pending[empty]).astype(np.int32)
                self._slots[slot[empty[::-1]]] = claims[::-1]
                at = self._slots.take(slot)
                won = empty[at.take(empty) == claims]
                first[pending[won]], home[pending[won]] = True, slot[won]
                missed[won] = False
            looked = np.flatnonzero(missed)
            found = looked[self._same(at[looked], keys, pending[looked])]
            rows[pending[found]] = at[found]
            missed[found] = False
            pending, slot, step = pending[missed], slot[missed], step[missed]
            slot = (slot + step) & mask
        makers = np.flatnonzero(first)
        if len(makers):
            self._slots[home[makers]] = rows[makers] = self._append([key.take(makers) for key in keys])
            claimed = np.flatnonzero(rows < 0)
            rows[claimed] = rows[_CLAIM - rows[claimed]]
        return rows, first

    def replace(self, rows: Rows) -> Rows:
        """New rows with the keys of these, which no key leads to any more. `rows` are distinct and in the index."""
        keys = [column[rows] for column in self.columns]
        mask = len(self._slots) - 1
        slot, step = self._probe(keys)
        while (away := self._slots[slot] != rows).any():
            slot[away] = (slot[away] + step[away]) & mask
        self._slots[slot] = new = self._append(keys)
        return new

    def rebuild(self, keep: Rows | slice, led_to: NDArray[np.bool_], capacity: int) -> None:
        """Leaves the rows `keep`, renumbered, in columns of another capacity.

        led_to   which of the rows kept their keys lead to; false for those that were replaced
        """
        for i, column in enumerate(self.columns):
            kept = column[keep]
            self.columns[i] = np.empty(capacity, column.dtype)
            self.columns[i][: len(kept)] = kept
        self.size = len(led_to)
        self._slots = np.full(capacity * 2, _FREE, np.int32)
        mask = len(self._slots) - 1
        rows = np.flatnonzero(led_to).astype(np.int32)
        slot, step = self._probe([column[rows] for column in self.columns])
        while len(rows):
            empty = np.flatnonzero(self._slots.take(slot) == _FREE)
            self._slots[slot[empty]] = rows[empty]
            lost = self._slots.take(slot) != rows
            rows, slot, step = rows[lost], slot[lost], step[lost]
            slot = (slot + step) & mask

    def _append(self, keys: Keys) -> Rows:
        start, self.size = self.size, self.size + len(keys[0])
        for mine, theirs in zip(self.columns, keys, strict=True):
            mine[start : self.size] = theirs
        return np.arange(start, self.size)

    def _probe(self, keys: Keys) -> tuple[Rows, Rows]:
        """Where to look for keys: the first slot, and the odd step to the next ones (double hashing)."""
        h: U64 = np.zeros(len(keys[0]), np.uint64)
        for word, factor in zip(keys, self._factors, strict=True):
            h ^= h >> np.uint64(29)
            h += word
            h *= factor
        h ^= h >> np.uint64(32)
        mask = np.uint64(len(self._slots) - 1)
        return (h & mask).astype(np.intp), ((h >> np.uint64(40)) | np.uint64(1)).astype(np.intp)

    def _same(self, at: NDArray[np.int32], keys: Keys, which: Rows) -> NDArray[np.bool_]:
        """Whether each key is the one that its slot leads to: that of a row, or of another key's claim."""
        claimed = at < 0
        rows = np.where(claimed, 0, at)
        same = np.ones(len(at), np.bool_)
        for mine, theirs in zip(self.columns, keys, strict=True):
            same &= mine.take(rows) == theirs.take(which)
        if claimed.any():
            one, other = which[claimed], _CLAIM - at[claimed]
            equal = np.ones(len(one), np.bool_)
            for theirs in keys:
                equal &= theirs.take(one) == theirs.take(other)
            same[claimed] = equal
        return same
