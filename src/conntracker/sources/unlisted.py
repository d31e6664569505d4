"""Sockets that a dump of one network namespace does not list: those of the others, and ping sockets.

Each is duplicated for a moment and asked (see open_sockets), which tells the namespace it is of and needs no
CAP_SYS_ADMIN. Listing those of each namespace would cost more: /proc/PID/net/tcp takes 4 ms where the table of
connections has 262,144 places (Linux 6.18), and this 20 µs for a socket, once.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conntracker.sources.descriptors import Descriptors
from conntracker.sources.open_sockets import Duplicates, OpenSocket, ask, why_not
from conntracker.wire.sockdiag import SOCKETS

__all__ = ["Unlisted"]

_MOST = 20_000  # sockets
_YOUNG = 2.0  # seconds for which a socket without an end is asked each time for what became of it,
_AGAIN = 20  # and how many of the older ones are
_LISTED = (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
_MPTCP = 262


@dataclass(slots=True, eq=False)
class _Open:
    """A socket that may yet get an end, or another."""

    inode: int
    since: float


class Unlisted:
    """Those sockets as far as the descriptors of processes are known.

    why   why none, or not all, are seen; None if they are
    """

    def __init__(self, netns: int) -> None:
        """netns: the cookie of the namespace that is listed."""
        self.why = why_not()
        self._may = self.why is None
        self._netns = netns
        self._rows: dict[int, tuple[int, ...]] = {}
        self._open: deque[_Open] = deque()
        self._seen: set[int] = set()  # inodes that were asked, of whatever kind

    def update(self, descriptors: Descriptors, news: set[int], listed: NDArray[np.uint32]) -> NDArray[np.void]:
        """Rows of SOCKETS, after a look at descriptors.

        news     what that look returned
        listed   the inodes of sockets of the dump
        """
        if not self._may:
            return np.zeros(0, SOCKETS)
        now = time.monotonic()
        gone = {inode for inode in news if not descriptors.of(inode)}
        self._seen -= gone
        for inode in gone & self._rows.keys():
            del self._rows[inode]
        new = list(news - gone - self._seen)
        if new:
            known = np.isin(np.array(new, np.uint32), listed)
            new = [inode for inode, is_listed in zip(new, known.tolist(), strict=True) if not is_listed]
        with Duplicates() as duplicates:
            for one in self._due(now):
                if one.inode in self._seen:
                    self._ask(duplicates, descriptors, one)
            for inode in new:
                self._seen.add(inode)
                self._ask(duplicates, descriptors, _Open(inode, now))
        return np.array(list(self._rows.values()), SOCKETS)

    def _due(self, now: float) -> list[_Open]:
        """Takes those out whose turn it is to be asked again."""
        due = [one for one in self._open if now - one.since < _YOUNG]
        old = deque(one for one in self._open if now - one.since >= _YOUNG)
        due += [old.popleft() for _ in range(min(_AGAIN, len(old)))]
        self._open = old
        return due

    def _ask(self, duplicates: Duplicates, descriptors: Descriptors, one: _Open) -> None:
        having = descriptors.of(one.inode)
        try:
            fd = duplicates.of(one.inode, [(who.pid, who.sockets[one.inode]) for who in having])
        except OSError as error:
            self.why = f"pidfd_getfd: {error.strerror}"
            return
        if fd is None:
            return
        try:
            opened = ask(fd, [who.holder for who in having if who.holder is not None])
        finally:
            os.close(fd)
        if opened is None:
            return
        row = _row(opened, one.inode)
        # Where the cookie of a namespace is not known (before Linux 5.14), its sockets could be taken for ours.
        if row is not None and opened.netns and (one.inode in self._rows or len(self._rows) < _MOST):
            if one.inode not in self._rows:
                descriptors.stir(one.inode)
            self._rows[one.inode] = row
        else:
            self._rows.pop(one.inode, None)
        if self._may_change(opened):
            self._open.append(one)

    def _may_change(self, opened: OpenSocket) -> bool:
        if opened.netns == self._netns and opened.protocol in _LISTED:  # the next dump tells
            return False
        return not opened.listening and (opened.type != socket.SOCK_STREAM or not opened.ends)


def _row(opened: OpenSocket, inode: int) -> tuple[int, ...] | None:
    if not opened.ends:
        return None
    end = opened.ends[0]
    protocol = socket.IPPROTO_TCP if opened.protocol == _MPTCP else opened.protocol
    return (
        opened.netns, opened.cookie, inode, *end.local, *end.remote, end.lport, end.rport, protocol, end.wild,
        len(opened.ends) > 1,
    )  # fmt: skip
