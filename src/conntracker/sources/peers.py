"""The other ends of connections, without asking the sockets: getpeername(2) looks like accept(2) to BPF programs.

Each network namespace's tables are read once, through a process that is in it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from conntracker.model import DecodeError
from conntracker.wire.nettable import connections

__all__ = ["Peers"]

_MOST = 64  # tables that are read; each takes some milliseconds


class Peers:
    """Other ends by inode, for one walk over the sockets of the host."""

    def __init__(self) -> None:
        self._read: dict[tuple[int, str], dict[int, tuple[bytes, int]]] = {}

    def of(self, netns: int, pid: int, inode: int) -> tuple[bytes, int] | None:
        """The packed address and the port that a TCP socket is connected to; None if it is not, or is not found.

        netns   the cookie of the socket's namespace
        pid     a process in it, which need not be the one that has the socket; another namespace's gives None
        """
        for name in ("tcp", "tcp6"):
            key = netns, name
            if key not in self._read and len(self._read) < _MOST:
                self._read[key] = {}
                with contextlib.suppress(OSError, DecodeError):
                    text = Path(f"/proc/{pid}/net/{name}").read_text("ascii")
                    self._read[key] = {row.inode: (row.remote, row.port) for row in connections(text)}
            if found := self._read.get(key, {}).get(inode):
                return found
        return None
