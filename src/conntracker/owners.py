"""Owners to flows: which side of a socket is which end of a flow.

A flow's source is the side of a socket whose local end is the original tuple's source and whose remote end is its
destination, its destination the side with the reply tuple's. NAT shows itself in one case: the headers of a packet on
its way out, which is what sides of protocols without connections are made of, are the other tuple's, turned round.

Sides are looked for in the flow's own network namespace; for an address that is not of that namespace, in the others,
too: the socket of a container whose flow passes here. Tuples are used again, so the times have to meet.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from conntracker.model import ICMP, ICMPV6, TCP
from conntracker.wire.sides import FIXED, SIDES

if TYPE_CHECKING:
    from collections.abc import Callable

    from conntracker.flows import Ends
    from conntracker.model import U32, U64

__all__ = ["NOBODY", "Sides"]

Rows = NDArray[np.intp]
Mask = NDArray[np.bool_]

NOBODY = 0  # the number of no owner

# µs between a socket's being there and the flow's being read, at most: the flow's times are those of reading events.
_LATE = 150_000
_EXACT = 2_000  # where the kernel notes when flows begin
_KEPT = 60_000_000  # µs for which a side that ended is kept
_MOST = 500_000  # sides
_DEPTH = 16  # sides of the same ends that are looked at for one flow, the latest ones
_WORDS = ("local_hi", "local_lo", "remote_hi", "remote_lo")

_NAMES = SIDES.names or ()
_STORED = np.dtype([("hash", "u8"), ("number", "u4"), ("order", "u4"), *((name, SIDES[name]) for name in _NAMES)])


@dataclass(frozen=True, slots=True)
class _End:
    """One end of flows, as the sides of sockets have it: words as in SIDES, ports as uint64 local << 16 | remote."""

    words: tuple[U64, U64, U64, U64]
    ports: U64
    proto: NDArray[np.uint8]


class Sides:
    """The sides that are known, each with the number of its owner; bounded.

    netns   the cookie of the network namespace whose flows these are about
    """

    def __init__(self, netns: int) -> None:
        self._netns = netns
        self._rows = np.empty(0, _STORED)
        self._pending: list[NDArray[np.void]] = []
        self._order = 0
        self._factors = np.frombuffer(os.urandom(40), np.uint64) | np.uint64(1)
        self._news: list[U64] = []

    def __len__(self) -> int:
        return len(self._rows) + sum(len(part) for part in self._pending)

    # --- taking in ---------------------------------------------------------------------------------------------

    def add(self, rows: NDArray[np.void], numbers: U32) -> None:
        """Takes SIDES rows and the numbers of their owners. What is told later of the same side counts."""
        stored = np.empty(len(rows), _STORED)
        for name in _NAMES:
            stored[name] = rows[name]
        stored["number"] = numbers
        words = tuple(rows[name] for name in _WORDS)
        ports = rows["lport"].astype(np.uint64) << np.uint64(16) | rows["rport"].astype(np.uint64)
        stored["hash"] = self._hash(_End((words[0], words[1], words[2], words[3]), ports, rows["proto"]))
        stored["order"] = np.arange(self._order, self._order + len(rows)) & 0xFFFFFFFF
        self._order += len(rows)
        self._news.append(stored["hash"])
        self._pending.append(stored)

    def use(self, cookies: U64, numbers: U32, elsewhere: Callable[[int, int], int]) -> None:
        """Who was seen sending or receiving on the sockets with these cookies, for the sides that are known of them.

        elsewhere   gives the number of the same owner in another network namespace: (number, its cookie)
        """
        self.merge()
        if not len(cookies) or not len(self._rows):
            return
        order = np.argsort(cookies)
        rows = self._rows
        where = order[np.searchsorted(cookies, rows["cookie"], sorter=order).clip(0, len(cookies) - 1)]
        hit = np.flatnonzero((cookies[where] == rows["cookie"]) & (rows["wild"] & FIXED == 0))
        told = numbers[where[hit]]
        for i in np.flatnonzero(~self._is_own(rows[hit])).tolist():
            told[i] = elsewhere(int(told[i]), int(rows["netns"][hit[i]]))
        changes = rows["number"][hit] != told
        rows["number"][hit] = told
        self._news.append(rows["hash"][hit[changes]])

    def merge(self) -> None:
        """Joins what was added with what was known, the latest word on each side winning."""
        if not self._pending:
            return
        rows = np.concatenate([self._rows, *self._pending])
        self._pending = []
        rows = rows[np.lexsort((rows["order"], rows["netns"], rows["cookie"], rows["hash"]))]
        first = np.ones(len(rows), np.bool_)
        first[1:] = np.logical_or.reduce([rows[name][1:] != rows[name][:-1] for name in ("hash", "cookie", "netns")])
        starts = np.flatnonzero(first)
        lasts = np.append(starts[1:], len(rows)) - 1
        kept = rows[lasts]
        kept["first"] = np.minimum.reduceat(rows["first"], starts)
        self._rows = kept[np.lexsort((kept["first"], kept["hash"]))]

    def news(self) -> U64:
        """The hashes of sides that are new, or told anew, since this was asked last."""
        hashes = np.unique(np.concatenate([np.empty(0, np.uint64), *self._news]))
        self._news = []
        return hashes

    def forget(self, time: int) -> None:
        """Drops sides that ended long before `time` (microseconds since the epoch), and the oldest beyond the bound."""
        rows = self._rows
        keep = (rows["last"] < 0) | (rows["last"] > time - _KEPT)
        if np.count_nonzero(keep) > _MOST:
            age = np.where(rows["last"] < 0, rows["time"], rows["last"] - (1 << 40))
            keep &= age > np.partition(age, len(age) - _MOST)[len(age) - _MOST]
        if not keep.all():
            self._rows = rows[keep]

    def numbers(self) -> U32:
        """The distinct numbers of owners in use."""
        self.merge()
        return np.unique(self._rows["number"])

    # --- finding -----------------------------------------------------------------------------------------------

    def asked(self, ends: Ends, news: U64, fresh: int) -> Ends:
        """Those flows at whose ends there is news (see `news`), and those that began after `fresh`."""
        asked = ends.first > fresh
        if len(news):
            for end in (_source(ends), _destination(ends)):
                for one in (end, _turned(end)):
                    asked |= np.isin(self._hash(one), news)
        return ends.take(np.flatnonzero(asked))

    def owners(self, ends: Ends, source_local: Mask, destination_local: Mask, exact: bool) -> tuple[U32, U32]:
        """The numbers of the owners of flows' sources and destinations, NOBODY where none is known.

        source_local, destination_local   whether the addresses are of the flows' own namespace
        exact                             whether the flows' times are the kernel's
        """
        self.merge()
        late = _EXACT if exact else _LATE
        source = self._find(_source(ends), ends, ~source_local, late)
        destination = self._find(_destination(ends), ends, ~destination_local, late)
        # Headers on their way out, after NAT.
        translated = (ends.proto != TCP) & ends.translated
        for numbers, other, local in (
            (source, _turned(_destination(ends)), source_local),
            (destination, _turned(_source(ends)), destination_local),
        ):
            again = np.flatnonzero((numbers == NOBODY) & translated)
            if len(again):
                numbers[again] = self._find(_take(other, again), ends.take(again), ~local[again], late)
        for numbers, end, local in (
            (source, _source(ends), source_local), (destination, _destination(ends), destination_local),
        ):  # fmt: skip
            again = np.flatnonzero((numbers == NOBODY) & local & (ends.proto != TCP))
            if len(again):
                numbers[again] = self._find_wild(_take(end, again), ends.take(again), late)
        return source, destination

    def _find_wild(self, end: _End, ends: Ends, late: int) -> U32:
        """Sockets that take packets from anywhere: bound to the address, or to all addresses."""
        zero = np.zeros(len(end.ports), np.uint64)
        ports = end.ports & np.uint64(0xFFFF0000)
        nowhere = np.zeros(len(zero), np.bool_)
        numbers = self._find(_End((end.words[0], end.words[1], zero, zero), ports, end.proto), ends, nowhere, late)
        # Of all addresses: one row an IP version, with the unspecified address, ::ffff:0.0.0.0 for IPv4.
        low = np.full(len(zero), 0xFFFF << 32 if ends.version == 4 else 0, np.uint64)
        again = np.flatnonzero(numbers == NOBODY)
        if len(again):
            any_local = _take(_End((zero, low, zero, zero), ports, end.proto), again)
            numbers[again] = self._find(any_local, ends.take(again), nowhere[again], late)
        return numbers

    def _find(self, end: _End, ends: Ends, foreign: Mask, late: int) -> U32:
        """In the flows' own namespace, and where `foreign` allows it and nobody is there, in others."""
        numbers = self._look(end, ends, np.ones(len(foreign), np.bool_), True, late)
        again = foreign & (numbers == NOBODY)
        if again.any():
            numbers = np.where(again, self._look(end, ends, again, False, late), numbers)
        return numbers

    def _look(self, end: _End, ends: Ends, which: Mask, own: bool, late: int) -> U32:
        """The sides of these ends whose time meets the flow's; of several the latest, if that cannot be wrong."""
        rows = self._rows
        numbers = np.zeros(len(which), np.uint32)
        hashes = self._hash(end)
        low, high = (np.searchsorted(rows["hash"], hashes, side) for side in ("left", "right"))
        best = np.full(len(numbers), -1, np.intp)
        doubt = np.zeros(len(numbers), np.bool_)
        left = np.flatnonzero((high > low) & which)
        for depth in range(_DEPTH):
            left = left[high[left] - depth > low[left]]
            if not len(left):
                break
            at = high[left] - 1 - depth
            side = rows[at]
            fits = self._same(side, end, left) & (self._is_own(side) == own)
            fits &= side["first"] <= ends.last[left] + late
            fits &= (side["last"] < 0) | (side["last"] >= ends.first[left] - late)
            some = best[left] >= 0
            # A UDP flow goes on where another socket takes the ends over; a TCP connection has one socket.
            other = fits & some & (rows["number"][best[left]] != side["number"]) & ((side["proto"] == TCP) | (not own))
            doubt[left[other]] = True
            best[left[fits & ~some]] = at[fits & ~some]
        found = best >= 0
        numbers[found] = rows["number"][best[found]]
        if doubt.any():
            self._settle(numbers, np.flatnonzero(doubt), hashes, ends, own, late)
        return numbers

    def _settle(self, numbers: U32, doubtful: Rows, hashes: U64, ends: Ends, own: bool, late: int) -> None:
        """Flows of the same ends that followed each other so quickly that their times do not tell their sides apart:
        where there are as many sides as flows, in their order; else nobody is named.
        """
        for value in np.unique(hashes[doubtful]):
            flows = np.flatnonzero(hashes == value)
            low, high = (int(np.searchsorted(self._rows["hash"], value, side)) for side in ("left", "right"))
            sides = self._rows[low:high]
            sides = sides[self._is_own(sides) == own]
            sides = sides[(sides["last"] < 0) | (sides["last"] >= ends.first[flows].min() - late)]
            flows = flows[np.argsort(ends.serial[flows])]
            in_order = own and len(flows) == len(sides)
            numbers[flows if in_order else np.intersect1d(flows, doubtful)] = sides["number"] if in_order else NOBODY

    def _is_own(self, sides: NDArray[np.void]) -> Mask:
        netns: U64 = sides["netns"]
        own: Mask = (netns == self._netns) | (netns == 0)
        return own

    def _same(self, side: NDArray[np.void], end: _End, which: Rows) -> Mask:
        same: Mask = side["proto"] == end.proto[which]
        same &= side["lport"] == (end.ports[which] >> np.uint64(16))
        same &= side["rport"] == (end.ports[which] & np.uint64(0xFFFF))
        for name, word in zip(_WORDS, end.words, strict=True):
            same &= side[name] == word[which]
        return same

    def _hash(self, end: _End) -> U64:
        """A keyed hash of an end: nobody can choose flows that meet in one."""
        mixed: U64 = (end.ports << np.uint64(8) | end.proto.astype(np.uint64)) * self._factors[4]
        for word, factor in zip(end.words, self._factors, strict=False):
            mixed = (mixed ^ word) * factor
            mixed ^= mixed >> np.uint64(32)
        return mixed


def _source(ends: Ends) -> _End:
    return _End(
        (*ends.source, *ends.destination), ends.sport << np.uint64(16) | _zero_icmp(ends.dport, ends.proto), ends.proto
    )


def _destination(ends: Ends) -> _End:
    return _End(
        (*ends.reply_source, *ends.reply_destination),
        ends.reply_sport << np.uint64(16) | _zero_icmp(ends.reply_dport, ends.proto),
        ends.proto,
    )


def _zero_icmp(ports: U64, proto: NDArray[np.uint8]) -> U64:
    """A socket of ICMP has an id in the place of its port, and nothing in that of the other's."""
    return np.where((proto == ICMP) | (proto == ICMPV6), np.uint64(0), ports)


def _turned(end: _End) -> _End:
    """The same tuple from the other end; not for ICMP, whose id stands on one side only."""
    a, b, c, d = end.words
    icmp = (end.proto == ICMP) | (end.proto == ICMPV6)
    ports = np.where(icmp, end.ports, end.ports >> np.uint64(16) | (end.ports & np.uint64(0xFFFF)) << np.uint64(16))
    return _End((c, d, a, b), ports, end.proto)


def _take(end: _End, which: Rows) -> _End:
    a, b, c, d = end.words
    return _End((a[which], b[which], c[which], d[which]), end.ports[which], end.proto[which])
