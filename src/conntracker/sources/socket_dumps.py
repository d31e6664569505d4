"""The sockets of a network namespace, listed by the kernel: sock_diag(7). Needs no rights."""

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

from conntracker.sources.netns import SO_NETNS_COOKIE, Namespace
from conntracker.wire import dumps, sockdiag
from conntracker.wire.sides import SIDES, mapped

__all__ = ["Elsewhere", "SocketDumps", "as_sides", "joined", "namespaces", "with_both_versions"]

_NETLINK_SOCK_DIAG = 4
_DATAGRAM = 1 << 15  # the kernel's largest of a dump (netlink_dump, af_netlink.c)
_TIMEOUT = 5.0  # seconds; the kernel answers from memory
_MOST_NAMESPACES = 256
_ANEW = 5.0  # seconds between two looks at which namespaces there are


class SocketDumps:
    """Asks for the sockets that are ends of flows.

    netns   the cookie of the namespace; 0 before Linux 5.14
    """

    def __init__(self, namespace: Namespace | None = None) -> None:
        """Of the calling thread's namespace, or of another. Raises OSError."""
        with namespace or contextlib.nullcontext():
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
            self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG)
        self._socket.settimeout(_TIMEOUT)
        try:
            cookie = self._socket.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        except OSError:
            cookie = bytes(8)
        self.netns = int.from_bytes(cookie, sys.byteorder)
        self._kinds = [
            (family, protocol)
            for protocol in (sockdiag.TCP, sockdiag.UDP, sockdiag.RAW)
            for family in (socket.AF_INET, socket.AF_INET6)
        ]
        self._sequence = 0

    def like(self, namespace: Namespace) -> SocketDumps:
        """The same for another namespace, without asking for kinds that the kernel does not know. Raises OSError."""
        other = SocketDumps(namespace)
        other._kinds = list(self._kinds)
        return other

    def read(self) -> NDArray[Any]:
        """Rows of SOCKETS, each socket once, by cookie. Raises OSError where the kernel refuses, DecodeError where its
        answer makes no sense.
        """
        parts: list[NDArray[Any]] = []
        for kind in list(self._kinds):
            try:
                parts.extend(self._dump(*kind))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT):
                    raise
                # This kernel cannot list them. Each question would have it look for a module anew.
                self._kinds.remove(kind)
        rows = joined(parts, sockdiag.SOCKETS)
        rows["netns"] = self.netns
        # One that moved during the dump may come twice.
        return rows[np.unique(rows["cookie"], return_index=True)[1]]

    def close(self) -> None:
        """Gives the socket back."""
        self._socket.close()

    def _dump(self, family: int, protocol: int) -> list[NDArray[Any]]:
        self._sequence += 1
        self._socket.send(sockdiag.dump_request(family, protocol, self._sequence))
        parts = []
        done = False
        while not done:
            words = np.frombuffer(self._socket.recv(_DATAGRAM), np.uint32)
            offsets, end, done = dumps.message_offsets(words)
            if len(offsets):
                parts.append(sockdiag.decode(words, offsets, protocol))
            if done and (number := sockdiag.error_of(words[end:])):
                raise OSError(number, f"listing sockets: {os.strerror(number)}")
        return parts


class Elsewhere:
    """The sockets of all other network namespaces that a process is in. Takes CAP_SYS_ADMIN.

    why   why they are not seen, or not all; None if they are
    """

    def __init__(self, own: SocketDumps) -> None:
        self._own = own
        self._dumps: dict[int, SocketDumps] = {}
        self._looked = -_ANEW
        self.why: str | None = None

    def read(self) -> list[NDArray[Any]]:
        """Rows of SOCKETS of each."""
        if time.monotonic() - self._looked >= _ANEW:
            self._look()
        parts = []
        for inode, one in list(self._dumps.items()):
            try:
                parts.append(one.read())
            except OSError as error:
                self.why = f"sockets of another network namespace: {error.strerror or error}"
                self._dumps.pop(inode).close()
        return parts

    def _look(self) -> None:
        there = namespaces()
        for inode in self._dumps.keys() - there.keys():
            self._dumps.pop(inode).close()
        self.why = None
        for inode in there.keys() - self._dumps.keys():
            try:
                with contextlib.closing(Namespace.find(there[inode])) as namespace:
                    if namespace.cookie != self._own.netns:
                        self._dumps[inode] = self._own.like(namespace)
            except FileNotFoundError:
                continue  # its process has ended
            except (OSError, ValueError) as error:
                self.why = f"sockets of other network namespaces: {getattr(error, 'strerror', None) or error}"
        self._looked = time.monotonic()

    def close(self) -> None:
        """Gives the sockets back."""
        for one in self._dumps.values():
            one.close()
        self._dumps.clear()


def namespaces() -> dict[int, str]:
    """A path to each network namespace that a process is in, by the namespace's inode."""
    paths: dict[int, str] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and len(paths) < _MOST_NAMESPACES:
            path = f"/proc/{name}/ns/net"
            with contextlib.suppress(OSError):
                paths.setdefault(os.stat(path).st_ino, path)
    return paths


def as_sides(sockets: NDArray[Any]) -> NDArray[Any]:
    """Rows of SOCKETS as rows of SIDES that tell of the sockets, and of no process yet."""
    sides = np.zeros(len(sockets), SIDES)
    for name in (
        "netns", "cookie", "local_hi", "local_lo", "remote_hi", "remote_lo", "lport", "rport", "proto", "wild",
    ):  # fmt: skip
        sides[name] = sockets[name]
    return sides


def with_both_versions(sides: NDArray[Any], both: NDArray[np.bool_]) -> NDArray[Any]:
    """The sides, and once more, for IPv4, those of sockets of IPv6 that take both."""
    also = sides[both]
    also["local_hi"], also["local_lo"] = mapped(0, 4)
    return joined([sides, also], SIDES)


def joined(parts: list[NDArray[Any]], dtype: np.dtype[np.void]) -> NDArray[Any]:
    """Rows of one dtype in one array. numpy.concatenate takes longer to compare dtypes than to copy a few rows."""
    return np.frombuffer(bytearray().join(part.data for part in parts), dtype)
