"""Whether the tables of ip_tables and ip6_tables changed: the kernel has no event and no generation for them.

So the rules themselves are fetched and compared, without their counters (linux/netfilter_ipv4/ip_tables.h,
linux/netfilter_ipv6/ip6_tables.h). The kernel zeroes what a match or a target keeps to itself (Linux >= 4.11,
xt_data_to_user).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conntracker.sources.netns import Namespace

__all__ = ["LegacyWatch", "legacy_names"]

_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_GET_INFO, IP6T_SO_GET_INFO, ...
_INFO_SIZE = 84  # struct ipt_getinfo: name[32], 12 numbers, size of the entries
_HEADER = 40  # struct ipt_get_entries: name, size, padding
_NEXT = struct.Struct("=H")
_ATTEMPTS = 5

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class _Family:
    names: str  # the file that lists the tables which exist in this namespace: asking for another would register it
    domain: int
    level: int
    next_offset: int  # of struct ipt_entry or ip6t_entry
    counters: int
    size: int


_FAMILIES = {
    "ip": _Family("ip_tables_names", socket.AF_INET, socket.IPPROTO_IP, 90, 96, 112),
    "ip6": _Family("ip6_tables_names", socket.AF_INET6, socket.IPPROTO_IPV6, 142, 152, 168),
}


@dataclass(frozen=True, slots=True)
class _Rules:
    """The entries of a table with all counters zero, and where those stand: both in words of eight bytes."""

    entries: NDArray[np.uint64]
    counters: NDArray[np.intp]


class LegacyWatch:
    """Tells whether any legacy table has changed, in the network namespace of the calling thread at the start.

    Counters alone are no change. A look costs the kernel up to a microsecond a rule. `reason` says why it cannot tell,
    None while it can.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._namespace = Namespace.current()
        self._sockets: dict[str, socket.socket] = {}
        self._seen: dict[tuple[str, str], _Rules] = {}
        self._room = np.zeros(0, np.uint8)
        self.changed()

    def changed(self) -> bool:
        """Whether rules or tables differ from those at the last look; the first was at the start."""
        if self.reason is not None:
            return False
        try:
            with self._namespace:
                seen = {
                    (family, name): self._look(family, name) for family in _FAMILIES for name in legacy_names(family)
                }
        except OSError as error:
            self.reason = f"cannot watch the tables of iptables-legacy: {error.strerror}"
            return False
        # _look returns the same object for the same rules.
        same = seen.keys() == self._seen.keys() and all(rules is self._seen[key] for key, rules in seen.items())
        self._seen = seen
        return not same

    def close(self) -> None:
        """Close its sockets; again is harmless."""
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()
        self._namespace.close()
        self.reason = self.reason or "closed"

    def _look(self, family: str, name: str) -> _Rules:
        if family not in self._sockets:
            self._sockets[family] = socket.socket(_FAMILIES[family].domain, socket.SOCK_RAW, socket.IPPROTO_RAW)
        entries = self._fetch(family, name)
        before = self._seen.get((family, name))
        if before is not None and entries.size == before.entries.size:
            # With the same rules the counters are where they were.
            values = entries[before.counters]
            entries[before.counters] = 0
            if np.array_equal(entries, before.entries):
                return before
            entries[before.counters] = values
        counters = _counter_words(entries, _FAMILIES[family])
        entries[counters] = 0
        return _Rules(entries.copy(), counters)

    def _fetch(self, family: str, name: str) -> NDArray[np.uint64]:
        """The entries of a table, valid until the next call: fresh memory each time would cost a third more."""
        fd, level = self._sockets[family].fileno(), _FAMILIES[family].level
        for _ in range(_ATTEMPTS):
            info = np.zeros(_INFO_SIZE, np.uint8)
            info[: len(name)] = np.frombuffer(name.encode(), np.uint8)
            _getsockopt(fd, level, _GET_INFO, info)
            (size,) = struct.unpack_from("=I", info.data, _INFO_SIZE - 4)
            if self._room.nbytes < _HEADER + size:
                self._room = np.zeros(_HEADER + size, np.uint8)
            answer = self._room[: _HEADER + size]
            answer.fill(0)  # the kernel leaves out what is behind the end of a name
            answer[:32] = info[:32]
            struct.pack_into("=I", answer.data, 32, size)
            try:
                _getsockopt(fd, level, _GET_ENTRIES, answer)
            except BlockingIOError:  # EAGAIN: the size changed meanwhile
                continue
            return answer[_HEADER:].view(np.uint64)
        raise OSError(errno.EAGAIN, f"table {name} changes all the time")


def legacy_names(family: str) -> list[str]:
    """The tables of ip_tables (`ip`) or ip6_tables (`ip6`) in the calling thread's namespace.

    Raises OSError if it is not permitted to look.
    """
    try:
        with open(f"/proc/thread-self/net/{_FAMILIES[family].names}") as file:
            return file.read().split()
    except FileNotFoundError:  # a kernel without them, or the module is not loaded
        return []


def _getsockopt(fd: int, level: int, option: int, data: NDArray[np.uint8]) -> None:
    """getsockopt(2) with an argument in the buffer of the answer, which Python's own does not pass."""
    length = ctypes.c_uint32(data.nbytes)
    if _libc.getsockopt(fd, level, option, ctypes.c_void_p(data.ctypes.data), ctypes.byref(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _counter_words(entries: NDArray[np.uint64], family: _Family) -> NDArray[np.intp]:
    """Where the two counters of each entry are. Raises OSError where an entry is not laid out as expected."""
    data = entries.tobytes()
    offsets, offset = [], 0
    while offset < len(data):
        offsets.append(offset + family.counters)
        step = _NEXT.unpack_from(data, offset + family.next_offset)[0] if offset + family.size <= len(data) else 0
        if step < family.size or step % 8:
            raise OSError(errno.EPROTO, "unknown layout of rules")
        offset += step
    first = np.array(offsets, np.intp) // 8
    return np.concatenate((first, first + 1))
