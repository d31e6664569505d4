"""The words of the field: protocols, events, batches of flows, losses, and the one error of the decoders.

A flow is one conntrack entry. Inside the program its two tuples travel as machine words, so that comparing, hashing
and sorting a flow is integer arithmetic on whole columns:

    addresses   IPv4: one uint64 column, source << 32 | destination
                IPv6: four uint64 columns, source high, source low, destination high, destination low
    ports       one uint64 column, source port << 48 | destination port << 32 | zone << 16 | protocol << 8;
                for ICMP and ICMPv6 the echo id stands in the place of the source port and type << 8 | code in the
                place of the destination port; 0 where a protocol has neither

All numbers are in host byte order. `unpack_addresses` turns words into the columns that Parquet files have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

U64: TypeAlias = NDArray[np.uint64]
U32: TypeAlias = NDArray[np.uint32]
U8: TypeAlias = NDArray[np.uint8]

__all__ = [
    "DESTROY",
    "DUMP",
    "EVENT_NAMES",
    "NEW",
    "PROTOCOLS",
    "TCP_STATES",
    "U8",
    "U32",
    "U64",
    "UPDATE",
    "Batch",
    "DecodeError",
    "Loss",
    "protocol_name",
    "protocol_number",
    "unpack_addresses",
]

# Kinds of a row of a batch: a row of a table dump, or the three events of ctnetlink.
DUMP, NEW, UPDATE, DESTROY = range(4)
EVENT_NAMES = ("dump", "new", "update", "destroy")

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58

# Protocols that conntrack tells apart, by IANA number (linux/in.h), in the words of conntrack(8).
PROTOCOLS = {
    1: "icmp", 2: "igmp", 6: "tcp", 17: "udp", 33: "dccp", 47: "gre", 50: "esp", 51: "ah", 58: "icmpv6", 132: "sctp",
    136: "udplite",
}  # fmt: skip

# enum tcp_conntrack, linux/netfilter/nf_conntrack_tcp.h
TCP_STATES = (
    "NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE",
    "SYN_SENT2",
)  # fmt: skip
NO_STATE = 255

# enum ip_conntrack_status, linux/netfilter/nf_conntrack_common.h
IPS_SEEN_REPLY = 1 << 1
IPS_SRC_NAT = 1 << 4
IPS_DST_NAT = 1 << 5
IPS_OFFLOAD = 1 << 14
IPS_HW_OFFLOAD = 1 << 15

# The groups of the log, in its order: (label, family, protocol).
LOG_GROUPS = (
    ("TCPv4", 4, TCP), ("UDPv4", 4, UDP), ("ICMPv4", 4, ICMP),
    ("TCPv6", 6, TCP), ("UDPv6", 6, UDP), ("ICMPv6", 6, ICMPV6),
)  # fmt: skip

ADDRESS_COLUMNS = ("src_hi", "src_lo", "dst_hi", "dst_lo")  # of a tuple's two addresses, see unpack_addresses

# What a flow has been counted by, in both directions; of a batch, a recording and the sums over one.
COUNTERS = ("packets", "bytes", "reply_packets", "reply_bytes")

# A counter or kernel time that the kernel did not send. Columns of uint64 carry it in place of null.
UNKNOWN = 2**64 - 1


class DecodeError(ValueError):
    """Bytes that are not what the kernel sends. `offset` is the byte at which decoding failed."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(f"{message} at byte {offset}")
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Batch:
    """Conntrack messages of one IP version, in the order of their arrival, as columns of equal length n.

    family           4 or 6
    time             when the batch was read: microseconds since the epoch, UTC
    event            uint8[n]: DUMP, NEW, UPDATE or DESTROY
    addresses        uint64[n] times 1 (IPv4) or 4 (IPv6), see the module's text
    ports            uint64[n]
    reply_addresses  as addresses, of the reply tuple (its source is the flow's destination after NAT)
    reply_ports      uint64[n], as ports, of the reply tuple
    id               uint32[n]: CTA_ID, a hash made by the kernel; 0 if it was not sent
    status           uint32[n]: IPS_* bits
    mark             uint32[n]; 0 if it was not sent
    tcp_state        uint8[n]: index into TCP_STATES, or NO_STATE
    packets, bytes, reply_packets, reply_bytes   uint64[n], UNKNOWN where the kernel does not count; None when no row
                     of the batch has counters
    start, stop      uint64[n]: nanoseconds since the epoch, UTC, UNKNOWN where not sent; None when no row has them
    dump_since       for rows of a dump: when the dump was asked for, as `time`; else 0
    """

    family: int
    time: int
    event: U8
    addresses: tuple[U64, ...]
    ports: U64
    reply_addresses: tuple[U64, ...]
    reply_ports: U64
    id: U32
    status: U32
    mark: U32
    tcp_state: U8
    packets: U64 | None = None
    bytes: U64 | None = None
    reply_packets: U64 | None = None
    reply_bytes: U64 | None = None
    start: U64 | None = None
    stop: U64 | None = None
    dump_since: int = 0

    def __len__(self) -> int:
        return len(self.ports)

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Batch:
        """The rows that `index` (positions or a mask) selects, in that order."""

        def pick(column: U64 | None) -> U64 | None:
            return None if column is None else column[index]

        return Batch(
            self.family, self.time, self.event[index], tuple(a[index] for a in self.addresses), self.ports[index],
            tuple(a[index] for a in self.reply_addresses), self.reply_ports[index], self.id[index],
            self.status[index], self.mark[index], self.tcp_state[index], pick(self.packets), pick(self.bytes),
            pick(self.reply_packets), pick(self.reply_bytes), pick(self.start), pick(self.stop), self.dump_since,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Loss:
    """A window of time in which something may have happened that was not seen.

    since, until   microseconds since the epoch, UTC; what was lost was lost between them
    kind           'events' (the socket's buffer was full: `events` messages dropped by the kernel, exactly),
                   'undecodable' (`events` messages that were not understood),
                   'untracked' (connection tracking was off: nobody knows how much),
                   'unwritten' (the states of `events` flows could not be written to the recording)
    events         number of messages lost; None where that cannot be known
    repaired       whether the table was dumped after `until` and given out: what lives is known again
    """

    since: int
    until: int
    kind: str
    events: int | None
    repaired: bool = False


def unpack_addresses(words: Sequence[U64]) -> tuple[U64, U64, U64, U64]:
    """(source high, low, destination high, low) from address words; IPv4 stands in the low ones."""
    if len(words) == 4:
        high, low, to_high, to_low = words
        return high, low, to_high, to_low
    zero = np.zeros(len(words[0]), np.uint64)
    return zero, words[0] >> np.uint64(32), zero, words[0] & np.uint64(0xFFFFFFFF)


def protocol_name(number: int) -> str:
    """The name of an IP protocol as conntrack(8) writes it, or its number."""
    return PROTOCOLS.get(number, str(number))


def protocol_number(name: str) -> int:
    """The number of an IP protocol given by name or number. Raises ValueError for anything else."""
    for number, known in PROTOCOLS.items():
        if name.lower() == known:
            return number
    if name.isascii() and name.isdigit() and int(name) < 256:
        return int(name)
    raise ValueError(f"unknown protocol {name!r}")
