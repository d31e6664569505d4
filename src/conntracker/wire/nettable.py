"""/proc/PID/net/tcp and tcp6: the connections of a process's network namespace, as text (proc_pid_net(5)).

       sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
        0: 0100007F:1F90 0200007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 12345 ...

Addresses are words of 32 bits in host byte order, as the kernel keeps them in network byte order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from conntracker.model import DecodeError

__all__ = ["Connection", "connections"]


class Connection(NamedTuple):
    """A row: the inode of the socket, and the packed address and the port of the other end."""

    inode: int
    remote: bytes
    port: int


def connections(text: str) -> Iterator[Connection]:
    """The rows of sockets that a process has. Raises DecodeError for a row that is none."""
    for number, line in enumerate(text.splitlines()[1:], 1):
        words = line.split()
        try:
            address, port = words[2].split(":")
            if len(address) not in (8, 32):
                raise ValueError(address)
            remote = b"".join(struct.pack("=I", int(address[at : at + 8], 16)) for at in range(0, len(address), 8))
            row = Connection(int(words[9]), remote, int(port, 16))
        except (ValueError, IndexError, struct.error):
            raise DecodeError("not a row of a table of connections", number) from None
        if row.inode:  # 0 in TIME_WAIT and SYN_RECV
            yield row
