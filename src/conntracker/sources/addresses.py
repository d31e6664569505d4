"""Which addresses are this host's: those that it takes packets for, as the kernel's table 'local' has them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conntracker.model import U64
from conntracker.sources.netlink import NETLINK_ADD_MEMBERSHIP, SOL_NETLINK
from conntracker.sources.netns import Namespace
from conntracker.wire import route
from conntracker.wire.route import Prefix

__all__ = ["MAX_PREFIXES", "LocalAddresses"]

MAX_PREFIXES = 1 << 16  # that are remembered; those of now always are

_NETLINK_ROUTE = 0
_NETLINK_GET_STRICT_CHK = 12
_DATAGRAM = 1 << 15  # the kernel's largest of a dump (netlink_dump, af_netlink.c)
_TRIES = 5  # of a dump during which something changed
_NOTIFICATIONS = 1000  # read in one go
_TIMEOUT = 5.0  # seconds; the kernel answers from memory

_MAPPED = 0xFFFF << 32  # ::ffff:0:0/96

_ALWAYS = (
    Prefix(4, 0xE0000000, 4),  # 224.0.0.0/4, multicast
    Prefix(4, 0xFFFFFFFF, 32),  # limited broadcast
    Prefix(6, 0xFF << 120, 8),  # ff00::/8
)


class LocalAddresses:
    """The addresses of one network namespace: its own and its broadcast addresses, prefixes that are routed to itself
    (127.0.0.0/8, AnyIP), and all of multicast. What was its own once stays: flows may be older than its end.
    """

    def __init__(self, namespace: Namespace | None = None) -> None:
        """Of the calling thread's namespace, or of another. Raises OSError."""
        with namespace or contextlib.nullcontext():
            self._dump = _open()
            self._changes = _open()
        self._sequence = 0
        self._prefixes: dict[Prefix, None] = {}
        self._stale = True
        try:
            self._dump.settimeout(_TIMEOUT)
            with contextlib.suppress(OSError):  # Linux 4.20; before, all routes come, and those of others are left out
                self._dump.setsockopt(SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
            self._changes.bind((0, 0))  # without a port number, nothing is delivered
            for group in (route.RTNLGRP_IPV4_ROUTE, route.RTNLGRP_IPV6_ROUTE):
                self._changes.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
            self.refresh()
        except BaseException:
            self.close()
            raise

    def refresh(self) -> bool:
        """Asks the kernel again if something changed since the last time; returns whether. If not, one system call.

        Raises OSError. What was known stays known.
        """
        self._stale |= self._changed()
        if not self._stale:
            return False
        self._keep(self._read())
        return True

    def contains(self, hi: U64, lo: U64) -> NDArray[np.bool_]:
        """bool[n]: which addresses are the host's. hi, lo: uint64[n] each, see sides.mapped."""
        keys = _keys(hi, lo)
        at = np.searchsorted(self._first, keys, "right") - 1
        # In front of the first interval, -1 means the last one, which ends behind.
        inside: NDArray[np.bool_] = (at >= 0) & (keys <= self._last[at])
        return inside

    def close(self) -> None:
        """Ends the subscription."""
        self._dump.close()
        self._changes.close()

    def _changed(self) -> bool:
        """Reads notifications; whether one was about an address of ours, or some were lost."""
        changed = False
        for _ in range(_NOTIFICATIONS):
            try:
                datagram = self._changes.recv(_DATAGRAM, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return changed
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                changed = True
            else:
                changed = changed or route.decode(datagram).changed
        return True  # there are more of them

    def _read(self) -> list[Prefix]:
        for _ in range(_TRIES):
            requests = route.dump_requests(self._sequence + 1)
            found: list[Prefix] = []
            interrupted = False
            for request in requests:
                self._sequence += 1
                self._dump.send(request)
                done = False
                while not done:
                    part = route.decode(self._dump.recv(_DATAGRAM), self._sequence)
                    # ENOENT: no such table yet. A kernel without IPv6 answers for all families, or refuses.
                    if part.error not in (0, errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                        raise OSError(part.error, f"reading the local routes: {os.strerror(part.error)}")
                    found += part.prefixes
                    interrupted |= part.interrupted
                    done = part.done
            self._stale = interrupted
            if not interrupted:
                break
        return found

    def _keep(self, found: list[Prefix]) -> None:
        """Adds what was found; what was found longest ago goes if it gets too much."""
        now = dict.fromkeys((*_ALWAYS, *found))
        old = [prefix for prefix in self._prefixes if prefix not in now]
        self._prefixes = dict.fromkeys(old[max(0, len(old) + len(now) - MAX_PREFIXES) :]) | now
        spans = _merged(self._prefixes)
        self._first = _keys(*_words([first for first, _ in spans]))
        self._last = _keys(*_words([last for _, last in spans]))


def _open() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE)


def _merged(prefixes: dict[Prefix, None]) -> list[tuple[int, int]]:
    """The first and last address of each interval, sorted and apart; IPv4 as ::ffff:a.b.c.d."""
    spans: list[tuple[int, int]] = []
    for first, last in sorted(span for prefix in prefixes for span in _spans(prefix)):
        if spans and first <= spans[-1][1] + 1:
            spans[-1] = spans[-1][0], max(spans[-1][1], last)
        else:
            spans.append((first, last))
    return spans


def _spans(prefix: Prefix) -> list[tuple[int, int]]:
    first, bits = (prefix.address, 128) if prefix.family == 6 else (_MAPPED | prefix.address, 32)
    last = first + (1 << bits - prefix.length) - 1
    if prefix.family == 6 and first <= _MAPPED <= last:  # ::/0 says nothing of IPv4
        return [(first, _MAPPED - 1), (_MAPPED + 2**32, last)]
    return [(first, last)]


def _words(numbers: list[int]) -> tuple[U64, U64]:
    mask = 2**64 - 1
    return np.array([n >> 64 for n in numbers], np.uint64), np.array([n & mask for n in numbers], np.uint64)


def _keys(hi: U64, lo: U64) -> NDArray[Any]:
    """The addresses in network byte order, 16 bytes each, which sort like the numbers."""
    return np.stack([hi, lo], axis=1).astype(">u8").view("S16")[:, 0]
