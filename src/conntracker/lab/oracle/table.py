"""The connection tracking table of the oracle's host: put flows in, take them out, empty it."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence

from conntracker.lab.oracle.states import FLUSH, Preparation, remove
from conntracker.sources.netlink import open_socket
from conntracker.wire import netlink

__all__ = ["FlowTable"]


class FlowTable:
    """A socket in the namespace of the calling thread.

    translates   whether rules translate addresses: then a flow may stand in the way of one that looks different
    """

    def __init__(self) -> None:
        self.translates = False
        self._used: set[tuple[object, ...]] = set()
        self._socket = open_socket(1 << 20)
        self._socket.bind((0, 0))

    def make_room(self, preparation: Preparation) -> None:
        """Nothing in the table is of the packet's flow, and all is that must be there. Raises OSError."""
        flow, messages = preparation.flow, list(preparation.messages)
        if flow is not None:
            key = flow.key
            if self.translates or key in self._used:
                messages[:0] = [remove(flow), remove(flow.reverse())]
            self._used.add(key)
        if messages:
            self._ask(messages)

    def flush(self) -> None:
        """Empties the table."""
        self._used.clear()
        self._ask([FLUSH])

    def _ask(self, messages: Sequence[bytes]) -> None:
        self._socket.send(b"".join(messages))
        waiting = len(messages)
        while waiting:
            for message in netlink.messages(self._socket.recv(1 << 16)):
                if message.type != netlink.NLMSG_ERROR:
                    continue
                waiting -= 1
                number = -int(struct.unpack_from("=i", message.payload)[0])
                if number not in (0, errno.ENOENT):
                    raise OSError(number, f"a flow for a packet: {os.strerror(number)}")

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()
