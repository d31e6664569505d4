"""The sockets of a network namespace, listed by the kernel: sock_diag(7). Needs no rights."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conntracker.sources.netns import SO_NETNS_COOKIE, Namespace
from conntracker.wire import dumps, sockdiag

__all__ = ["SocketDumps", "joined"]

_NETLINK_SOCK_DIAG = 4
_DATAGRAM = 1 << 15  # the kernel's largest of a dump (netlink_dump, af_netlink.c)
_TIMEOUT = 5.0  # seconds; the kernel answers from memory


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


def joined(parts: list[NDArray[Any]], dtype: np.dtype[np.void]) -> NDArray[Any]:
    """Rows of one dtype in one array. numpy.concatenate takes longer to compare dtypes than to copy a few rows."""
    return np.frombuffer(bytearray().join(part.data for part in parts), dtype)
