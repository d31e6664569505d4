"""Named counters of one nftables table, by netlink (NFT_MSG_GETOBJ of linux/netfilter/nf_tables.h).

libnftables reads every set of the whole ruleset before it lists a counter: a second of CPU beside a large blocklist.
"""

from __future__ import annotations

import os
import struct

from conntracker.sources.netlink import open_socket
from conntracker.wire import netlink
from conntracker.wire.netlink import attribute, attributes
from conntracker.wire.nftrace import FAMILIES, NFNL_SUBSYS_NFTABLES

_NEWOBJ, _GETOBJ = NFNL_SUBSYS_NFTABLES << 8 | 18, NFNL_SUBSYS_NFTABLES << 8 | 19
_TABLE, _NAME, _TYPE, _DATA = 1, 2, 3, 4  # enum nft_object_attributes
_OBJECT_COUNTER = 1  # NFT_OBJECT_COUNTER
_PACKETS = 2  # NFTA_COUNTER_PACKETS
_NUMBERS = {name: number for number, name in FAMILIES.items()}


class Counters:
    """Asks for the counters of tables of the network namespace in which it was made."""

    def __init__(self) -> None:
        self._socket = open_socket(1 << 18)
        self._socket.settimeout(2)
        self._socket.bind((0, 0))

    def packets(self, family: str, table: str) -> dict[str, int]:
        """Packets by name of a table's counters. Raises OSError."""
        body = attribute(_TABLE, table.encode() + b"\0") + attribute(_TYPE, _OBJECT_COUNTER.to_bytes(4, "big"))
        self._socket.send(netlink.request(_GETOBJ, netlink.NLM_F_DUMP, 1, _NUMBERS[family], body))
        found: dict[str, int] = {}
        while True:
            for message in netlink.messages(self._socket.recv(1 << 16)):
                if message.type == _NEWOBJ:
                    found.update(_counter(message.payload))
                elif message.type == netlink.NLMSG_DONE:
                    return found
                elif message.type == netlink.NLMSG_ERROR:
                    number = -struct.unpack_from("=i", message.payload)[0]
                    raise OSError(number, f"counters of table {table}: {os.strerror(number)}")

    def close(self) -> None:
        """Gives the socket back."""
        self._socket.close()


def _counter(body: bytes) -> dict[str, int]:
    found = {kind: body[start : start + length] for kind, start, length in attributes(body, 4, len(body))}
    data = found.get(_DATA, b"")
    for kind, start, length in attributes(data, 0, len(data)):
        if kind == _PACKETS:
            name = found.get(_NAME, b"").rstrip(b"\0").decode("utf-8", "surrogateescape")
            return {name: int.from_bytes(data[start : start + length], "big")}
    return {}
