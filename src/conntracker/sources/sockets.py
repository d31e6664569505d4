"""Owners without BPF: the sockets that are ends of flows, polled, and the processes that have them.

They are listed with sock_diag(7). What lives shorter than the time between two polls is not seen. Takes CAP_SYS_ADMIN
to list those of other network namespaces, and CAP_SYS_PTRACE to see which sockets other users' processes have.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conntracker import clock, owner
from conntracker.sources.descriptors import Descriptors
from conntracker.sources.netns import Namespace
from conntracker.sources.socket_dumps import Elsewhere, SocketDumps, as_sides, joined, with_both_versions
from conntracker.wire import sockdiag
from conntracker.wire.sides import SIDES

__all__ = ["INTERVAL", "SocketTable"]

INTERVAL = 0.25  # seconds between two polls, at least
_SHARE = 20  # and that many times what listing takes of CPU
_LONGEST = 5.0

# µs. Flows that follow each other with the same ends are told apart by when their sockets were seen, and times of flows
# are taken with some slack: a socket counts as seen that much later and earlier than it was first and last. Not a flow
# of its own is lost by that, as a connection is known to the firewall longer than its socket lives.
_CAUTION = 100_000

_METHOD = owner.METHODS.index(owner.SOCK_DIAG)
_INHERITED, _HOLDER = owner.CERTAINTIES.index(owner.INHERITED), owner.CERTAINTIES.index(owner.HOLDER)

# Who has a socket: as in SIDES; pid 0: nobody was found. came: when it was listed first, by time.monotonic.
_WHO = np.dtype([
    ("pid", "u4"), ("uid", "u4"), ("comm", "S16"), ("certainty", "u1"), ("time", "i8"), ("first", "i8"), ("came", "f8"),
])  # fmt: skip


class SocketTable:
    """The sockets that are ends of flows, and who has them."""

    def __init__(self, namespace: Namespace | None = None) -> None:
        """Those of the calling thread's namespace are listed, or of another one's. Raises OSError."""
        self._dumps = SocketDumps(namespace)
        self._descriptors = Descriptors()
        self._elsewhere = Elsewhere(self._dumps)
        self._rows = np.zeros(0, sockdiag.SOCKETS)  # by cookie
        self._who = np.zeros(0, _WHO)
        self._polled = 0
        self._took = 0.0

    @property
    def missing(self) -> str | None:
        """Why some processes' sockets may not be found; None if all are."""
        return self._descriptors.why or self._elsewhere.why

    @property
    def interval(self) -> float:
        """Seconds to wait between two polls, as they are now."""
        return min(_LONGEST, max(INTERVAL, self._took * _SHARE))

    def poll(self) -> NDArray[Any]:
        """Rows of SIDES: of sockets that are new, have other addresses or another process, and, with `last` set, of
        those that are gone or had other addresses. A socket that its process closed stays that one's.

        A socket whose process was not found (yet) has pid 0: so that a flow of its is not taken for that of another one
        with the same ends.

        Raises OSError where the kernel refuses, DecodeError where its answer makes no sense; the table is of no use
        then.
        """
        now, began = clock.now(), time.thread_time()
        rows = self._listed()
        self._took = time.thread_time() - began
        return self._differ(rows, self._look(rows), now)

    def close(self) -> None:
        """Gives the socket back."""
        self._elsewhere.close()
        self._dumps.close()

    def _listed(self) -> NDArray[Any]:
        """The dump, with the inodes that closed sockets had, and without sockets that nobody accepted yet."""
        rows = joined([self._dumps.read(), *self._elsewhere.read()], sockdiag.SOCKETS)
        rows = rows[np.unique(rows["cookie"], return_index=True)[1]]
        at, known = _find(self._rows["cookie"], rows["cookie"])
        closed = (rows["inode"] == 0) & known
        rows["inode"][closed] = self._rows["inode"][at[closed]]
        kept = rows["inode"] != 0
        return rows if kept.all() else rows[kept]

    def _look(self, rows: NDArray[Any]) -> set[int]:
        """Finds out who has the sockets; the inodes for which that is news."""
        at, known = _find(self._rows["cookie"], rows["cookie"])
        wanted = ~known
        nobodys = np.flatnonzero(known)
        nobodys = nobodys[self._who["pid"][at[nobodys]] == 0]
        if len(nobodys):
            wanted[nobodys] = self._who["came"][at[nobodys]] >= self._descriptors.whole_since
        return self._descriptors.look(rows["inode"][wanted].tolist())

    def _differ(self, rows: NDArray[Any], news: set[int], now: int) -> NDArray[Any]:
        """Makes these the rows, and tells what is new."""
        at, known = _find(self._rows["cookie"], rows["cookie"])
        changed = ~known
        who = np.zeros(len(rows), _WHO)
        who["came"], who["time"], who["uid"], who["certainty"] = time.monotonic(), now, owner.NO_ID, _HOLDER
        if known.any():
            who[known] = self._who[at[known]]
            changed[known] = (_bytes(rows[known]) != _bytes(self._rows[at[known]])).any(axis=1)
        ended = np.ones(len(self._rows), bool)
        ended[at[known & ~changed]] = False
        gone = _sides(self._rows[ended], self._who[ended], self._polled - _CAUTION)
        who["first"][changed] = now + _CAUTION
        self._rows, self._who, self._polled = rows, who, now
        asked = ~known
        if news:
            asked |= np.isin(rows["inode"], np.fromiter(news, np.uint32, len(news)))
        for i in np.flatnonzero(asked).tolist():
            changed[i] |= self._assign(i)
        return joined([gone, _sides(rows[changed], who[changed], -1)], SIDES)

    def _assign(self, i: int) -> bool:
        """Gives a socket the process that has it; one that nobody has any more keeps its own. Whether that is news."""
        having = self._descriptors.holders(int(self._rows["inode"][i]))
        if not having:
            return False
        (holder, when), who = min(having), self._who[i]
        certainty = _HOLDER if len(having) == 1 else _INHERITED
        if (who["pid"], who["certainty"]) == (holder.pid, certainty):
            return False
        who["pid"], who["uid"], who["comm"] = holder.pid, holder.uid, holder.comm
        who["certainty"], who["time"] = certainty, when
        return True


def _sides(rows: NDArray[Any], who: NDArray[Any], last: NDArray[np.int64] | int) -> NDArray[Any]:
    """As SIDES, from what is known of each socket."""
    sides = as_sides(rows)
    if not len(rows):
        return sides
    for name in ("pid", "uid", "comm", "certainty", "time", "first"):
        sides[name] = who[name]
    sides["method"], sides["last"] = _METHOD, last
    return with_both_versions(sides, rows["both"])


def _bytes(rows: NDArray[Any]) -> NDArray[np.uint8]:
    return rows.view(np.uint8).reshape(len(rows), -1)


def _find(table: NDArray[np.uint64], keys: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Where each key is in a sorted table, and whether it is there at all."""
    if not len(table):
        return np.zeros(len(keys), np.intp), np.zeros(len(keys), bool)
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return at, table[at] == keys
