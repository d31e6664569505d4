"""Packets from columns: the first packet of each flow, all of them at once, with right checksums. Pure, no I/O.

IPv4 (RFC 791) without options, IPv6 (RFC 8200) without extension headers; TCP SYN (RFC 9293), UDP without payload
(RFC 768), echo requests of ICMP (RFC 792) and ICMPv6 (RFC 4443); Internet checksum (RFC 1071).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from conntracker.model import ICMP, TCP, UDP

if TYPE_CHECKING:
    from numpy.typing import NDArray

    U8 = NDArray[np.uint8]
    U16 = NDArray[np.uint16]
    U32 = NDArray[np.uint32]
    U64 = NDArray[np.uint64]

__all__ = ["Tuples", "build", "checksum", "ethernet"]

ETHERTYPE = {4: 0x0800, 6: 0x86DD}
HOP_LIMIT = 64
DONT_FRAGMENT = 0x4000
SYN = 0x5002  # header of five words, flag SYN

HEADER_WORDS = {4: 10, 6: 20}  # words of 16 bits
TRANSPORT_WORDS = 10  # of TCP, the longest


@dataclass(frozen=True, slots=True)
class Tuples:
    """Columns of n tuples, in host byte order.

    family      uint8[n]: 4 or 6
    proto       uint8[n]: 1, 6, 17 or 58
    src, dst    uint64[n, 2]: high and low half of the address; IPv4 in the low half
    sport       uint16[n]: source port, or the echo id of ICMP and ICMPv6
    dport       uint16[n]: destination port, or 0
    icmp_type, icmp_code   uint8[n]: 0 for other protocols
    """

    family: U8
    proto: U8
    src: U64
    dst: U64
    sport: U16
    dport: U16
    icmp_type: U8
    icmp_code: U8

    def __len__(self) -> int:
        return len(self.family)

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Tuples:
        """The rows that `index` (positions or a mask) selects, in that order."""
        return Tuples(*(getattr(self, field.name)[index] for field in fields(self)))


def build(tuples: Tuples) -> tuple[U8, U16]:
    """One IP packet a tuple: uint8[n, 60] with zeros behind shorter packets, and their lengths in bytes, uint16[n]."""
    packets = np.zeros((len(tuples), 2 * (HEADER_WORDS[6] + TRANSPORT_WORDS)), np.uint8)
    lengths = np.zeros(len(tuples), np.uint16)
    for family in (4, 6):
        rows = np.flatnonzero(tuples.family == family)
        if len(rows):
            words, lengths[rows] = _packets(family, tuples.take(rows))
            packets[rows, : 2 * words.shape[1]] = words.astype(">u2").view(np.uint8)
    return packets, lengths


def ethernet(packets: U8, lengths: U16, destination: str, source: str) -> tuple[U8, U16]:
    """The packets in Ethernet frames between two link addresses (`02:00:00:00:00:01`), and the frames' lengths."""
    frames = np.zeros((len(packets), 14 + packets.shape[1]), np.uint8)
    frames[:, 0:12] = np.frombuffer(bytes.fromhex((destination + source).replace(":", "")), np.uint8)
    kind = np.where(packets[:, 0] >> 4 == 6, ETHERTYPE[6], ETHERTYPE[4]).astype(">u2")
    frames[:, 12:14] = kind.view(np.uint8).reshape(-1, 2)
    frames[:, 14:] = packets
    return frames, (lengths + 14).astype(np.uint16)


def checksum(words: U32) -> U32:
    """The Internet checksum of each row of 16-bit words (uint32[n, k], k < 65536), uint32[n]."""
    total = words.sum(axis=1, dtype=np.uint32)
    for _ in range(2):
        total = (total & np.uint32(0xFFFF)) + (total >> np.uint32(16))
    complement: U32 = total ^ np.uint32(0xFFFF)
    return complement


def _packets(family: int, tuples: Tuples) -> tuple[U32, U16]:
    """Packets of one IP version as 16-bit words, and their lengths in bytes."""
    header = HEADER_WORDS[family]
    transport, length = _transport(tuples)
    addresses = np.concatenate([_address_words(family, tuples.src), _address_words(family, tuples.dst)], axis=1)
    _write_transport_checksum(tuples, transport, length, addresses)
    words = np.zeros((len(tuples), header + TRANSPORT_WORDS), np.uint32)
    words[:, header:] = transport
    words[:, header - addresses.shape[1] : header] = addresses
    if family == 4:
        words[:, 0] = 0x4500
        words[:, 1] = 20 + length
        words[:, 3] = DONT_FRAGMENT
        words[:, 4] = HOP_LIMIT << 8 | tuples.proto.astype(np.uint32)
        words[:, 5] = checksum(words[:, :10])
    else:
        words[:, 0] = 0x6000
        words[:, 2] = length
        words[:, 3] = tuples.proto.astype(np.uint32) << 8 | HOP_LIMIT
    return words, (2 * header + length).astype(np.uint16)


def _address_words(family: int, halves: U64) -> U32:
    shifts = np.array([48, 32, 16, 0], np.uint64)
    words = (halves[:, :, None] >> shifts & np.uint64(0xFFFF)).astype(np.uint32).reshape(-1, 8)
    return words[:, 6:] if family == 4 else words


def _transport(tuples: Tuples) -> tuple[U32, U32]:
    """Transport headers as words without checksum, and their lengths in bytes."""
    tcp, udp = tuples.proto == TCP, tuples.proto == UDP
    echo = ~tcp & ~udp
    kind = tuples.icmp_type.astype(np.uint32) << 8 | tuples.icmp_code
    words = np.zeros((len(tuples), TRANSPORT_WORDS), np.uint32)
    length = np.where(tcp, 20, 8).astype(np.uint32)
    words[:, 0] = np.where(echo, kind, tuples.sport)
    words[:, 1] = np.where(echo, 0, tuples.dport)
    words[:, 2] = np.select([tcp, udp], [np.uint32(0), length], tuples.sport)
    words[:, 3] = np.where(udp, 0, 1)  # sequence number of TCP and of the echo
    words[:, 6] = np.where(tcp, SYN, 0)
    words[:, 7] = np.where(tcp, 0xFFFF, 0)  # window
    return words, length


def _write_transport_checksum(tuples: Tuples, words: U32, length: U32, addresses: U32) -> None:
    pseudo = np.concatenate([addresses, tuples.proto[:, None].astype(np.uint32), length[:, None]], axis=1)
    pseudo[tuples.proto == ICMP] = 0  # ICMP of IPv4 sums its own bytes only
    value = checksum(np.concatenate([words, pseudo], axis=1))
    value[(tuples.proto == UDP) & (value == 0)] = 0xFFFF  # 0 in UDP means 'none'
    position = np.select([tuples.proto == TCP, tuples.proto == UDP], [8, 3], 1)
    words[np.arange(len(words)), position] = value
