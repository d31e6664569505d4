"""The connection tracking table of the oracle's host: put flows in, take them out, empty it."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence

from conntracker.lab.oracle.states import FLUSH, Flow, Preparation, remove
from conntracker.sources.netlink import open_socket
from conntracker.wire import netlink

__all__ = ["FlowTable"]


class FlowTable:
    """A socket in the namespace of the calling thread.

    translates   whether rules translate addresses: then a flow may stand in the way of one that looks different
    zones        in which packets may be looked for (conntrack zones): flows are put into the first
    """

    def __init__(self) -> None:
        self.translates = False
        self.zones: tuple[int, ...] = (0,)
        self._used: set[tuple[object, ...]] = set()
        self._last: Flow | None = None
        self._socket = open_socket(1 << 20)
        self._socket.bind((0, 0))

    def make_room(self, preparation: Preparation) -> None:
        """Nothing in the table is of the packet's flow, and all is that must be there. Raises OSError.

        Where rules translate, the flow of the packet before goes, too: what NAT made of it may look like this one.
        """
        flow, messages = preparation.flow, list(preparation.messages)
        gone = [self._last] if self.translates and self._last is not None else []
        if flow is not None:
            key = flow.key
            if self.translates or key in self._used:
                gone.append(flow)
            self._used.add(key)
        self._last = flow
        messages[:0] = [remove(one, zone) for old in gone for one in (old, old.reverse()) for zone in self.zones]
        if not messages:
            return
        try:
            self._ask(messages)
        except FileExistsError:
            self._ask([FLUSH, *preparation.messages])

    def flush(self) -> None:
        """Empties the table."""
        self._used.clear()
        self._last = None
        self._ask([FLUSH])

    def _ask(self, messages: Sequence[bytes]) -> None:
        """Sends all, and waits for all answers. Raises OSError with the first complaint."""
        self._socket.send(b"".join(messages))
        waiting, failed = len(messages), 0
        while waiting:
            for message in netlink.messages(self._socket.recv(1 << 16)):
                if message.type != netlink.NLMSG_ERROR:
                    continue
                waiting -= 1
                number = -int(struct.unpack_from("=i", message.payload)[0])
                failed = failed or (0 if number == errno.ENOENT else number)
        if failed:
            raise OSError(failed, f"a flow for a packet: {os.strerror(failed)}")

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()
