"""Owners without BPF: the sockets of a network namespace, polled with sock_diag(7), and the processes that have them.

What lives shorter than the time between two polls is not seen. Needs no rights for the sockets, and CAP_SYS_PTRACE to
see which of them other users' processes have.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conntracker import clock, owner
from conntracker.sources.holders import Holder, Holders, find_holders, holder, why_blind
from conntracker.sources.netns import SO_NETNS_COOKIE, Namespace
from conntracker.wire import dumps, sockdiag
from conntracker.wire.sides import SIDES, mapped

__all__ = ["INTERVAL", "SocketTable"]

# Seconds between two polls. One takes 2 ms of CPU with 100 sockets and 24 ms with 10,000 (Linux 6.18), most of it the
# kernel's; a walk over the processes, where there are new ones, 3 ms and 90 ms, for at most a tenth of the time.
INTERVAL = 0.25

_NETLINK_SOCK_DIAG = 4
_DATAGRAM = 1 << 15  # the kernel's largest of a dump (netlink_dump, af_netlink.c)
_TIMEOUT = 5.0  # seconds; the kernel answers from memory
_RESCAN = 5.0  # seconds, after which the processes are looked at again though all sockets are known
_SHARE = 10  # a walk over the processes begins when this many times the duration of the last one has passed
_SURE = 2  # walks that find no process, after which a socket is no reason to walk again, and may be the kernel's

_METHOD = owner.METHODS.index(owner.SOCK_DIAG)
_INHERITED, _HOLDER = owner.CERTAINTIES.index(owner.INHERITED), owner.CERTAINTIES.index(owner.HOLDER)

# Who has a socket: as in SIDES. looks: how many walks found nobody; told: whether a row was given out.
_WHO = np.dtype([
    ("pid", "u4"), ("uid", "u4"), ("comm", "S16"), ("certainty", "u1"), ("time", "i8"), ("first", "i8"),
    ("looks", "u1"), ("told", "?"),
])  # fmt: skip


class SocketTable:
    """The sockets of one namespace that are ends of flows, and who has them.

    missing   why some processes' sockets may not be found; None if all are
    """

    def __init__(self, namespace: Namespace | None = None) -> None:
        """Of the calling thread's namespace, or of another. Raises OSError."""
        with namespace or contextlib.nullcontext():
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
            self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG)
        self._socket.settimeout(_TIMEOUT)
        self._netns = _netns_cookie(self._socket)
        self._kinds = [
            (family, protocol)
            for protocol in (sockdiag.TCP, sockdiag.UDP, sockdiag.RAW)
            for family in (socket.AF_INET, socket.AF_INET6)
        ]
        self._sequence = 0
        self._rows = np.zeros(0, sockdiag.SOCKETS)  # by cookie
        self._who = np.zeros(0, _WHO)
        self._scanned = self._rescanned = float("-inf")  # when a walk ended, and when one for all sockets did
        self._scan_took = 0.0
        self.missing = why_blind()

    def poll(self) -> NDArray[Any]:
        """Rows of SIDES: of sockets that are new, have other addresses or another process, and, with `last` set, of
        those that are gone or had other addresses. A socket that its process closed stays that one's.

        A socket whose process was not found is not given out; with pid 0 where every process was looked into, twice.
        Raises OSError where the kernel refuses, DecodeError where its answer makes no sense; the table is of no use
        then.
        """
        now = clock.now()
        rows = self._read()
        at, known = _find(self._rows["cookie"], rows["cookie"])
        kept = (rows["inode"] != 0) | known
        rows, at, known = rows[kept], at[kept], known[kept]
        closed = rows["inode"] == 0
        rows["inode"][closed] = self._rows["inode"][at[closed]]
        who = np.zeros(len(rows), _WHO)
        who["first"] = now
        changed = ~known
        if known.any():
            who[known] = self._who[at[known]]
            changed[known] = rows[known] != self._rows[at[known]]
        ended = np.ones(len(self._rows), bool)
        ended[at[known & ~changed]] = False
        ended &= self._who["told"]
        gone = self._sides(self._rows[ended], self._who[ended], now)
        who["first"][changed] = now
        self._rows, self._who = rows, who
        changed |= self._look()
        told = changed & who["told"]
        return np.concatenate([gone, self._sides(rows[told], who[told], -1)])

    def close(self) -> None:
        """Gives the socket back."""
        self._socket.close()

    def _read(self) -> NDArray[Any]:
        """All sockets, by cookie. One that moved during the dump may come twice."""
        parts = [np.zeros(0, sockdiag.SOCKETS)]
        for kind in list(self._kinds):
            try:
                parts.append(self._dump(*kind))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT):
                    raise
                # This kernel cannot list them. Each question would have it look for a module anew.
                self._kinds.remove(kind)
        rows = np.concatenate(parts)
        return rows[np.unique(rows["cookie"], return_index=True)[1]]

    def _dump(self, family: int, protocol: int) -> NDArray[Any]:
        self._sequence += 1
        self._socket.send(sockdiag.dump_request(family, protocol, self._sequence))
        parts = []
        done = False
        while not done:
            words = np.frombuffer(self._socket.recv(_DATAGRAM), np.uint32)
            offsets, end, done = dumps.message_offsets(words)
            parts.append(sockdiag.decode(words, offsets, protocol))
            if done and (number := sockdiag.error_of(words[end:])):
                raise OSError(number, f"listing sockets: {os.strerror(number)}")
        return np.concatenate(parts)

    def _look(self) -> NDArray[np.bool_]:
        """Finds out who has the sockets, if it is time to; bool[n]: where that is news."""
        who = self._who
        before = who.copy()
        begin = time.monotonic()
        everything = begin - self._rescanned >= _RESCAN
        unknown = np.arange(len(who)) if everything else np.flatnonzero(~who["told"] & (who["looks"] < _SURE))
        if not len(unknown) or begin - self._scanned < self._scan_took * _SHARE:
            return np.zeros(len(who), bool)
        found = find_holders()
        self.missing = found.why
        self._assign(found, unknown.tolist())
        self._scanned = time.monotonic()
        self._scan_took = self._scanned - begin
        if everything:
            self._rescanned = self._scanned
        same = before["told"] & (before["pid"] == who["pid"]) & (before["certainty"] == who["certainty"])
        news: NDArray[np.bool_] = who["told"] & ~same
        return news

    def _assign(self, found: Holders, which: list[int]) -> None:
        """Gives sockets the processes that were found; one that nobody has any more keeps its own."""
        who, processes = self._who, dict[int, Holder | None]()
        now = clock.now()
        for i, inode in zip(which, self._rows["inode"][which].tolist(), strict=True):
            having = found.of(inode)
            for pid, _ in having:
                if pid not in processes:
                    processes[pid] = holder(pid)
            alive = [one for pid, _ in having if (one := processes[pid]) is not None]
            if alive:
                oldest, certainty = min(alive), _HOLDER if len(alive) == 1 else _INHERITED
                who[i] = (oldest.pid, oldest.uid, oldest.comm, certainty, now, who["first"][i], 0, True)
            elif not who["told"][i]:
                who["looks"][i] = min(_SURE, int(who["looks"][i]) + 1)
                if found.why is None and who["looks"][i] == _SURE:
                    who[i] = (0, owner.NO_ID, b"", _HOLDER, now, who["first"][i], 0, True)

    def _sides(self, rows: NDArray[Any], who: NDArray[Any], last: int) -> NDArray[Any]:
        sides = np.zeros(len(rows), SIDES)
        for name in ("cookie", "local_hi", "local_lo", "remote_hi", "remote_lo", "lport", "rport", "proto", "wild"):
            sides[name] = rows[name]
        for name in ("pid", "uid", "comm", "certainty", "time", "first"):
            sides[name] = who[name]
        sides["netns"], sides["method"], sides["last"] = self._netns, _METHOD, last
        also = sides[rows["both"]]
        also["local_hi"], also["local_lo"] = mapped(0, 4)
        return np.concatenate([sides, also])


def _find(table: NDArray[np.uint64], keys: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Where each key is in a sorted table, and whether it is there at all."""
    if not len(table):
        return np.zeros(len(keys), np.intp), np.zeros(len(keys), bool)
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return at, table[at] == keys


def _netns_cookie(sock: socket.socket) -> int:
    try:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)
    except OSError:
        return 0
