"""Sorting flows: columns of 64-bit words, the first of which matters most."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conntracker.model import U32, U64

_WORTH_A_THREAD = 1 << 17


def sort_distinct(addresses: tuple[U64, ...], ports: U32) -> tuple[tuple[U64, ...], U32]:
    """Sorts by address words, then ports, and leaves one of each."""
    addresses, ports, fresh, _ = _grouped(addresses, ports)
    return _first(addresses, ports, fresh)


def sort_gathered(
    addresses: tuple[U64, ...], ports: U32, places: U32, values: Sequence[Any]
) -> tuple[tuple[U64, ...], U32, U32, NDArray[Any]]:
    """As sort_distinct, and the values that the rows of each had: the last two are what `gather` gives."""
    addresses, ports, fresh, order = _grouped(addresses, ports)
    return *_first(addresses, ports, fresh), *gather(fresh, places.take(order), values)


def gather(fresh: NDArray[np.bool_], places: U32, values: Sequence[Any]) -> tuple[U32, NDArray[Any]]:
    """The distinct values of each run of rows.

    fresh    which rows begin a run; the first one does
    places   where in `values` that of each row is; 0 for none
    values   the first one stands for none, and is not looked at

    Returns (places of each run in `sets`, sets: object[m], tuples of values in the order of the rows, the first empty).
    """
    sets = [(), *((value,) for value in values[1:])]
    if fresh.all():
        return places, np.fromiter(sets, object, len(sets))
    known = np.flatnonzero(places)
    places, run = places[known], np.cumsum(fresh)[known] - 1
    first = np.zeros(np.count_nonzero(fresh), np.uint32)
    first[run[::-1]] = places[::-1]  # where a run stands several times, numpy keeps the last, here the run's first
    several = np.zeros(len(first), np.bool_)
    several[run[places != first[run]]] = True
    found: dict[int, dict[int, None]] = {}
    chosen = several[run]
    for at, place in zip(run[chosen].tolist(), places[chosen].tolist(), strict=True):
        found.setdefault(at, {})[place] = None
    joined: dict[tuple[int, ...], int] = {}
    for at, distinct in found.items():
        first[at] = joined.setdefault(tuple(distinct), len(sets) + len(joined))
    sets += [tuple(values[place] for place in one) for one in joined]
    return first, np.fromiter(sets, object, len(sets))


def _grouped(
    addresses: tuple[U64, ...], ports: U32
) -> tuple[tuple[U64, ...], U32, NDArray[np.bool_], NDArray[np.intp]]:
    """Sorted rows, which of them differ from the one before, and where each was; equal ones stay in their order."""
    if not len(ports):
        return addresses, ports, np.zeros(0, np.bool_), np.zeros(0, np.intp)
    order = _order(addresses, ports)
    addresses, ports = tuple(word.take(order) for word in addresses), ports.take(order)
    fresh = np.ones(len(ports), np.bool_)
    fresh[1:] = ports[1:] != ports[:-1]
    for word in addresses:
        fresh[1:] |= word[1:] != word[:-1]
    return addresses, ports, fresh, order


def _first(addresses: tuple[U64, ...], ports: U32, fresh: NDArray[np.bool_]) -> tuple[tuple[U64, ...], U32]:
    if fresh.all():
        return addresses, ports
    return tuple(word[fresh] for word in addresses), ports[fresh]


def _order(addresses: tuple[U64, ...], ports: U32) -> NDArray[np.intp]:
    """The order by address words, then ports. What a word leaves equal, and only that, is sorted by the next one."""
    order = _argsort(addresses[0])
    tied, run = _ties(addresses[0].take(order), np.zeros(len(order), np.uint64))
    for word in (*addresses[1:], ports.astype(np.uint64)):
        if not len(tied):
            break
        rows = order[tied]
        again = _argsort_within(run, word[rows])
        rows, run = rows[again], run[again]
        order[tied] = rows
        still, run = _ties(word[rows], run)
        tied = tied[still]
    return order


def _argsort(word: U64) -> NDArray[np.intp]:
    """As np.argsort in half the time: a word's first bits and its row are sorted as one number."""
    rows = np.arange(len(word), dtype=np.uint64)
    low = np.uint64((1 << max(1, len(word) - 1).bit_length()) - 1)
    least = word.min()
    key = word - least
    key <<= np.uint64(64 - int(word.max() - least).bit_length())
    key &= ~low
    key |= rows
    key = _sorted(key)
    order: NDArray[np.intp] = (key & low).astype(np.intp)
    found = word.take(order)
    if not (found[1:] < found[:-1]).any():
        return order
    key &= ~low  # words that differ in their last bits only: those, once more
    tied, run = _ties(key, np.zeros(len(key), np.uint64))
    again = np.lexsort((found[tied], run))
    order[tied] = order[tied][again]
    return order


def _argsort_within(run: U64, word: U64) -> NDArray[np.intp]:
    """By run, then by word."""
    if int(word.max()) >> 32 or int(run[-1]) >> 32:
        order: NDArray[np.intp] = np.lexsort((word, run))
        return order
    return _argsort(run << np.uint64(32) | word)


def _ties(word: U64, outer: U64) -> tuple[NDArray[np.intp], U64]:
    """Of sorted rows: the positions of those equal to a neighbour within a run of `outer`, and the run of each."""
    equal = word[1:] == word[:-1]
    equal &= outer[1:] == outer[:-1]
    tied = np.zeros(len(word), np.bool_)
    tied[1:] |= equal
    tied[:-1] |= equal
    positions = np.flatnonzero(tied)
    begins = np.ones(len(word), np.bool_)
    begins[1:] = ~equal
    return positions, np.cumsum(begins[positions], dtype=np.uint64)


def _sorted(key: U64) -> U64:
    """As np.sort; large ones in two threads, as numpy sorts without the interpreter's lock."""
    if len(key) < _WORTH_A_THREAD:
        key.sort()
        return key
    pivot = np.sort(key[:: len(key) // 1024])[512]
    small = key < pivot
    low, high = key[small], key[~small]
    helper = threading.Thread(target=low.sort)
    helper.start()
    high.sort()
    helper.join()
    key[: len(low)], key[len(low) :] = low, high
    return key
