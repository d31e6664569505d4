"""Owners to flows: which side of a socket is which end of a flow.

A flow's source is the side of a socket whose local end is the original tuple's source and whose remote end is its
destination, its destination the side with the reply tuple's. NAT shows itself in one case: the headers of a packet on
its way out, which is what sides of protocols without connections are made of, are the other tuple's, turned round.

Sides are looked for in the flow's own network namespace; for an address that is not of that namespace, in the others,
too: the socket of a container whose flow passes here. Tuples are used again, so the times have to meet.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from conntracker.model import ICMP, ICMPV6, TCP, TCP_STATES
from conntracker.owner import METHODS, OPEN, SOCK_DIAG
from conntracker.wire.sides import ANY_LOCAL, ANY_REMOTE, FIXED, SIDES, mapped

if TYPE_CHECKING:
    from collections.abc import Callable

    from conntracker.flows import Ends
    from conntracker.model import U32, U64

__all__ = ["NOBODY", "Sides"]

Rows = NDArray[np.intp]
Mask = NDArray[np.bool_]

NOBODY = 0  # the number of no owner

_SLACK = 20_000  # µs; clocks are compared, and a socket may be a moment younger than its flow
_KEPT = 20_000_000  # µs for which a side that ended is kept
_AGED = 300_000_000  # µs after which a socket's older sides are dropped; they are told anew with their next packet
_MOST = 500_000  # sides
_DEPTH = 32  # sides of the same ends that are looked at for one flow, the latest ones
_OPEN, _POLLED = METHODS.index(OPEN), METHODS.index(SOCK_DIAG)
_POLLED_LATE = 600_000  # µs that a socket may be older than the poll that found it
_OVER = [TCP_STATES.index(name) for name in ("TIME_WAIT", "CLOSE", "LAST_ACK")]
_WORDS = ("local_hi", "local_lo", "remote_hi", "remote_lo")
# What is kept of a side, each in a column of its own: names of SIDES, and hash (of its ends), ports and number.
_KEPT_NAMES = (*_WORDS, "cookie", "netns", "proto", "wild", "method", "pid", "time", "first", "last")

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _End:
    """One end of flows, as the sides of sockets have it: words as in SIDES, ports as uint64 local << 16 | remote."""

    words: tuple[U64, U64, U64, U64]
    ports: U64
    proto: NDArray[np.uint8]


class Sides:
    """The sides that are known, each with the number of its owner; bounded.

    netns     the cookie of the network namespace whose flows these are about
    variant   gives the number of the same owner in another network namespace (its cookie), or, with None, as one of
              several that shared the socket
    """

    def __init__(self, netns: int, variant: Callable[[int, int | None], int]) -> None:
        self._netns, self._variant = netns, variant
        self._factors = np.frombuffer(os.urandom(56), np.uint64) | np.uint64(1)
        self._pending: list[Columns] = []
        self._news: list[U64] = []
        self._told = False  # whether there are sides with a remote end and no local one
        self._sides = self._columns(np.empty(0, SIDES), np.empty(0, np.uint32))  # sorted by hash and first

    def __len__(self) -> int:
        return len(self._sides["hash"]) + sum(len(part["hash"]) for part in self._pending)

    # --- taking in ---------------------------------------------------------------------------------------------

    def add(self, rows: NDArray[np.void], numbers: U32) -> None:
        """Takes SIDES rows and the numbers of their owners. What is told later of the same side counts."""
        if not len(rows):
            return
        columns = self._columns(rows, numbers)
        self._news.append(columns["hash"])
        self._pending.append(columns)

    def _columns(self, rows: NDArray[np.void], numbers: U32) -> Columns:
        columns: Columns = {name: np.ascontiguousarray(rows[name]) for name in _KEPT_NAMES}
        columns["ports"] = rows["lport"].astype(np.uint64) << np.uint64(16) | rows["rport"].astype(np.uint64)
        local_hi, local_lo, remote_hi, remote_lo = (columns[name] for name in _WORDS)
        end = _End((local_hi, local_lo, remote_hi, remote_lo), columns["ports"], columns["proto"])
        return columns | {"hash": self._hash(end), "number": numbers}

    def use(self, rows: NDArray[np.void], numbers: U32) -> None:
        """Who was seen sending or receiving, USERS rows, for the sides that are known of these sockets."""
        self.merge()
        sides = self._sides
        if not len(rows) or not len(sides["hash"]):
            return
        order = np.argsort(rows["cookie"])
        cookies = rows["cookie"][order]
        at = np.searchsorted(cookies, sides["cookie"]).clip(0, len(cookies) - 1)
        hit = np.flatnonzero((cookies[at] == sides["cookie"]) & (sides["wild"] & FIXED == 0))
        who = order[at[hit]]
        told = numbers[who]
        for i in np.flatnonzero(~self._is_own(sides["netns"][hit])).tolist():
            told[i] = self._variant(int(told[i]), int(sides["netns"][hit[i]]))
        self._news.append(sides["hash"][hit[sides["number"][hit] != told]])
        sides["number"][hit], sides["pid"][hit] = told, rows["pid"][who]

    def merge(self) -> None:
        """Joins what was added with what was known, the latest word on each side winning."""
        if not self._pending:
            return
        parts, self._pending = [self._sides, *self._pending], []
        sides = {name: np.concatenate([part[name] for part in parts]) for name in self._sides}
        # A side is a socket's with these ends; a stable sort keeps the order of arrival.
        where = np.where(sides["cookie"] == 0, sides["netns"], np.uint64(0))
        one = sides["hash"] ^ sides["cookie"] * self._factors[5] ^ where * self._factors[6]
        order = np.argsort(one, kind="stable")
        one = one[order]
        starts = np.flatnonzero(np.append(True, one[1:] != one[:-1]))
        first = np.minimum.reduceat(sides["first"][order], starts)
        lasts = order[np.append(starts[1:], len(one)) - 1]
        # Where the latest word names nobody, the last one that did stays.
        naming = np.where(sides["number"][order] != NOBODY, np.arange(len(order)), -1)
        named = np.maximum.reduceat(naming, starts)
        named = np.where(named < 0, lasts, order[named])
        by_hash = np.lexsort((first, sides["hash"][lasts]))
        self._sides = {name: column[lasts[by_hash]] for name, column in sides.items()}
        self._sides |= {name: sides[name][named[by_hash]] for name in ("number", "pid")}
        self._sides["first"] = first[by_hash]
        self._sides["netns"] = np.maximum.reduceat(sides["netns"][order], starts)[by_hash]
        self._share(sides["pid"][order], sides["wild"][order] & FIXED != 0, starts, by_hash)
        self._told = bool((self._sides["wild"] & (ANY_LOCAL | ANY_REMOTE) == ANY_LOCAL).any())
        self._close()

    def _share(self, pids: U32, told: Mask, starts: Rows, by_hash: Rows) -> None:
        """Sides of which several processes told, each for datagrams of its own, are theirs together."""
        least = np.minimum.reduceat(np.where(told, pids, np.uint32(0xFFFFFFFF)), starts)
        most = np.maximum.reduceat(np.where(told, pids, np.uint32(0)), starts)
        for at in np.flatnonzero((least < most)[by_hash]).tolist():
            self._sides["number"][at] = self._variant(int(self._sides["number"][at]), None)

    def _close(self) -> None:
        """A datagram socket that was closed has no open sides, whichever of its peers that was told of. Who is known to
        have used it then counts for all that were not told by themselves.
        """
        sides = self._sides
        datagrams = (sides["cookie"] != 0) & (sides["proto"] != TCP)
        # What was found open at a time ends with it, and has not been closed.
        closed = np.flatnonzero(datagrams & (sides["last"] >= 0) & (sides["method"] != _OPEN))
        left = np.flatnonzero(datagrams & (sides["last"] < 0))
        if not len(closed) or not len(left):
            return
        closed = closed[np.lexsort((sides["time"][closed], sides["cookie"][closed]))]
        cookies = sides["cookie"][closed]
        at = np.searchsorted(cookies, sides["cookie"][left]).clip(0, len(closed) - 1)
        is_gone = cookies[at] == sides["cookie"][left]
        gone, by = left[is_gone], closed[at[is_gone]]
        sides["last"][gone] = sides["last"][by]
        retold = (sides["wild"][gone] & FIXED == 0) & (sides["wild"][by] & FIXED == 0) & (sides["number"][by] != NOBODY)
        for name in ("number", "pid"):
            sides[name][gone[retold]] = sides[name][by[retold]]
        self._news.append(sides["hash"][gone])

    def reconcile(self, cookies: U64, time: int) -> None:
        """Sides of connections whose sockets were not among those that were open at `time` are over."""
        self.merge()
        sides = self._sides
        before = (sides["last"] < 0) & (sides["time"] < time) & (sides["first"] < time) & (sides["cookie"] != 0)
        left = np.flatnonzero(before & (sides["proto"] == TCP))
        sides["last"][left[~np.isin(sides["cookie"][left], cookies)]] = time

    def news(self) -> U64:
        """The hashes of sides that are new, or told anew, since this was asked last."""
        hashes = np.unique(np.concatenate([np.empty(0, np.uint64), *self._news]))
        self._news = []
        return hashes

    def forget(self, time: int) -> None:
        """Drops sides that ended a while before `time` (microseconds since the epoch), older sides of sockets with many
        peers, and the oldest of all beyond the bound.
        """
        self.merge()
        sides = self._sides
        is_open = sides["last"] < 0
        keep = is_open & ((sides["time"] > time - _AGED) | (sides["proto"] == TCP) | self._is_latest())
        keep |= sides["last"] > time - _KEPT
        if np.count_nonzero(keep) > _MOST:
            age = np.where(is_open, sides["time"], sides["last"] - (1 << 50))
            keep &= age > np.partition(age, len(age) - _MOST)[len(age) - _MOST]
        if not keep.all():
            self._sides = {name: column[keep] for name, column in sides.items()}

    def _is_latest(self) -> Mask:
        """Which sides are the last that their socket told of."""
        sides = self._sides
        order = np.lexsort((sides["time"], sides["cookie"]))
        cookies = sides["cookie"][order]
        latest = np.zeros(len(order), np.bool_)
        latest[order[np.append(cookies[1:] != cookies[:-1], True)[: len(order)]]] = True
        return latest

    def numbers(self) -> U32:
        """The distinct numbers of owners in use."""
        self.merge()
        return np.unique(self._sides["number"])

    # --- finding -----------------------------------------------------------------------------------------------

    def asked(self, ends: Ends, news: U64, fresh: int) -> Ends:
        """Those flows at whose ends there is news (see `news`), and those that were seen first after `fresh`."""
        asked = ends.seen > fresh
        if len(news):
            for end in (_source(ends), _destination(ends)):
                asked |= np.isin(self._hash(end), news)
            if self._told:
                asked |= (ends.proto != TCP) & (ends.last > fresh)
            translated = np.flatnonzero(ends.translated & ~asked)
            if len(translated):
                some = ends.take(translated)
                for end in (_source(some), _destination(some)):
                    asked[translated] |= np.isin(self._hash(_turned(end)), news)
        return ends.take(np.flatnonzero(asked))

    def owners(self, ends: Ends, source_local: Mask, destination_local: Mask, lag: int) -> tuple[U32, U32]:
        """The numbers of the owners of flows' sources and destinations, NOBODY where none is known.

        source_local, destination_local   whether the addresses are of the flows' own namespace
        lag                               how long after the fact the flows' times may be, in microseconds
        """
        self.merge()
        late = _SLACK + lag
        # The side at the source of a connection is there before its first packet. That at the destination is told of by
        # its first packet after the handshake, but not when all is over and the next connection has the same ends.
        over = np.isin(ends.tcp_state, _OVER)
        until = np.where(ends.proto == TCP, ends.seen, ends.last)
        until_there = np.where((ends.proto == TCP) & over, ends.touched, ends.last)
        source = self._find(_source(ends), replace(ends, last=until), ~source_local, late)
        destination = self._find(_destination(ends), replace(ends, last=until_there), ~destination_local, late)
        self._prefer_told(source, _source(ends), ends, late)
        self._prefer_told(destination, _destination(ends), ends, late)
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
                # One that was bound after the flow began is another's.
                numbers[again] = self._find_wild(_take(end, again), replace(ends, last=ends.seen).take(again), late)
        # A socket that sends echo requests, or anything without ports, is no destination, though its side looks like
        # one where both ends are one address.
        destination[_is_icmp(ends.proto) | _is_mirrored(ends)] = NOBODY
        return source, destination

    def _prefer_told(self, numbers: U32, end: _End, ends: Ends, late: int) -> None:
        """Where several processes share a socket without an address of its own, each datagram was told by its call."""
        if not self._told:
            return
        datagrams = np.flatnonzero((ends.proto != TCP) & ~_is_icmp(ends.proto))
        some, part = ends.take(datagrams), _take(end, datagrams)
        everywhere = np.ones(len(datagrams), np.bool_)
        unbound = _End((*_unspecified(some), part.words[2], part.words[3]), part.ports, part.proto)
        told, known = (self._best(one, some, everywhere, True, late)[0] for one in (unbound, part))
        cookies = self._sides["cookie"]
        same = (told >= 0) & ((known < 0) | (cookies[told] == cookies[known]))
        numbers[datagrams[same]] = self._look(unbound, some, same, True, late)[same]

    def _find_wild(self, end: _End, ends: Ends, late: int) -> U32:
        """Sockets that take packets from anywhere: bound to the address, or to all addresses."""
        zero = np.zeros(len(end.ports), np.uint64)
        ports = end.ports & np.uint64(0xFFFF0000)
        everywhere = np.ones(len(zero), np.bool_)
        bound = _End((end.words[0], end.words[1], zero, zero), ports, end.proto)
        numbers = self._look(bound, ends, everywhere, True, late, alone=True)
        again = np.flatnonzero(numbers == NOBODY)
        if len(again):
            any_local = _take(_End((*_unspecified(ends), zero, zero), ports, end.proto), again)
            numbers[again] = self._look(any_local, ends.take(again), everywhere[again], True, late, alone=True)
        return numbers

    def _find(self, end: _End, ends: Ends, foreign: Mask, late: int) -> U32:
        """In the flows' own namespace, and where `foreign` allows it and nobody is there, in others."""
        numbers = self._look(end, ends, np.ones(len(foreign), np.bool_), True, late)
        again = foreign & (numbers == NOBODY)
        if again.any():
            numbers = np.where(again, self._look(end, ends, again, False, late), numbers)
        return numbers

    def _look(self, end: _End, ends: Ends, which: Mask, own: bool, late: int, alone: bool = False) -> U32:
        """The owners of the sides that `_best` finds."""
        sides = self._sides
        numbers = np.zeros(len(which), np.uint32)
        best, doubt, shared = self._best(end, ends, which, own, late, alone)
        found = best >= 0
        numbers[found] = sides["number"][best[found]]
        numbers[self._outlived(best, ends)] = NOBODY
        for i in np.flatnonzero(shared).tolist():
            numbers[i] = self._variant(int(numbers[i]), None)
        if doubt.any():
            self._settle(numbers, np.flatnonzero(doubt), self._hash(end), ends, own and not alone, late)
        return numbers

    def _outlived(self, best: Rows, ends: Ends) -> Rows:
        """Flows whose side, as it was polled, fits a later flow of the same ends, too: it may be that one's alone."""
        sides = self._sides
        polled = np.flatnonzero(best >= 0)
        at = best[polled]
        polled = polled[(sides["method"][at] == _POLLED) & (sides["wild"][at] & ANY_REMOTE == 0)]
        polled = polled[np.lexsort((ends.serial[polled], best[polled]))]
        earlier: Rows = polled[:-1][best[polled][1:] == best[polled][:-1]]
        return earlier

    def _best(
        self, end: _End, ends: Ends, which: Mask, own: bool, late: int, alone: bool = False
    ) -> tuple[Rows, Mask, Mask]:
        """(best, doubt, shared): sides of these ends whose time meets the flow's, the latest of several, -1 for none;
        where that may be wrong; where other processes had the ends before, in the same flow.

        own     whether to look in the flows' own namespace, or in the others
        alone   whether several that are equal in all that is known leave it open who it is: sockets that share a port
        """
        sides = self._sides
        hashes = self._hash(end)
        low, high = (np.searchsorted(sides["hash"], hashes, side) for side in ("left", "right"))
        best = np.full(len(which), -1, np.intp)
        doubt, shared = np.zeros(len(which), np.bool_), np.zeros(len(which), np.bool_)
        left = np.flatnonzero((high > low) & which)
        for depth in range(_DEPTH):
            left = left[high[left] - depth > low[left]]
            if not len(left):
                break
            at = high[left] - 1 - depth
            polled = np.where(sides["method"][at] == _POLLED, _POLLED_LATE, 0)
            fits = (sides["first"][at] <= ends.last[left] + late + polled) & (self._is_own(sides["netns"][at]) == own)
            last = sides["last"][at]
            fits &= (last < 0) | (last >= ends.first[left] - late)
            fits &= self._same(at, end, left)
            some = best[left] >= 0
            # A UDP flow goes on where another socket takes the ends over; a TCP connection has one socket.
            other = fits & some & (sides["pid"][best[left]] != sides["pid"][at])
            doubtful = (end.proto[left] == TCP) | (not own) | alone
            doubt[left[other & doubtful]] = True
            shared[left[other & ~doubtful]] = True
            best[left[fits & ~some]] = at[fits & ~some]
        return best, doubt, shared

    def _settle(self, numbers: U32, doubtful: Rows, hashes: U64, ends: Ends, ordered: bool, late: int) -> None:
        """Flows of the same ends that followed each other so quickly that their times do not tell their sides apart:
        where there are as many sides as flows, in their order (if they are `ordered` at all); else nobody is named.
        """
        sides = self._sides
        for value in np.unique(hashes[doubtful]):
            flows = np.flatnonzero(hashes == value)
            low, high = (int(np.searchsorted(sides["hash"], value, side)) for side in ("left", "right"))
            at = np.arange(low, high)
            last = sides["last"][at]
            begin = ends.first[flows].min() - late
            at = at[self._is_own(sides["netns"][at]) & ((last < 0) | (last >= begin))]
            flows = flows[np.argsort(ends.serial[flows])]
            if ordered and len(flows) == len(at):
                numbers[flows] = sides["number"][at]
            else:
                numbers[np.intersect1d(flows, doubtful)] = NOBODY

    def _is_own(self, netns: U64) -> Mask:
        own: Mask = (netns == self._netns) | (netns == 0)
        return own

    def _same(self, at: Rows, end: _End, which: Rows) -> Mask:
        sides = self._sides
        same: Mask = sides["proto"][at] == end.proto[which]
        same &= sides["ports"][at] == end.ports[which]
        for name, word in zip(_WORDS, end.words, strict=True):
            same &= sides[name][at] == word[which]
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


def _unspecified(ends: Ends) -> tuple[U64, U64]:
    """The address of sockets that are bound to none, as the words of a side: of IPv4 ::ffff:0.0.0.0."""
    high = np.zeros(len(ends.rows), np.uint64)
    return high, np.full(len(high), mapped(0, ends.version)[1], np.uint64)


def _zero_icmp(ports: U64, proto: NDArray[np.uint8]) -> U64:
    """A socket of ICMP has an id in the place of its port, and nothing in that of the other's."""
    return np.where(_is_icmp(proto), np.uint64(0), ports)


def _is_icmp(proto: NDArray[np.uint8]) -> Mask:
    icmp: Mask = (proto == ICMP) | (proto == ICMPV6)
    return icmp


def _is_mirrored(ends: Ends) -> Mask:
    """Protocols without ports, from an address to itself."""
    (a, b), (c, d) = ends.source, ends.destination
    mirrored: Mask = (a == c) & (b == d) & (ends.sport == 0) & (ends.dport == 0)
    return mirrored


def _turned(end: _End) -> _End:
    """The same tuple from the other end; not for ICMP, whose id stands on one side only."""
    a, b, c, d = end.words
    ports = np.where(
        _is_icmp(end.proto), end.ports, end.ports >> np.uint64(16) | (end.ports & np.uint64(0xFFFF)) << np.uint64(16)
    )
    return _End((c, d, a, b), ports, end.proto)


def _take(end: _End, which: Rows) -> _End:
    a, b, c, d = end.words
    return _End((a[which], b[which], c[which], d[which]), end.ports[which], end.proto[which])
