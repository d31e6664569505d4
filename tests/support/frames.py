"""Single packets as bytes, and what a packet's bytes say: written apart from src, so that each checks the other.

IPv4 (RFC 791), IPv6 and its extension headers (RFC 8200), TCP (RFC 9293), UDP (RFC 768), ICMP (RFC 792) and ICMPv6
(RFC 4443). A transport is a function of the pseudo header, for its checksum; every number is in network byte order.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from conntracker.steps import Packet

__all__ = [
    "DESTINATION",
    "ERRORS",
    "HOP_BY_HOP",
    "ROUTING",
    "SYN",
    "SYN_ACK",
    "checksum",
    "echo",
    "ipv4",
    "ipv6",
    "options",
    "packet_of",
    "plain",
    "split4",
    "split6",
    "tcp",
    "udp",
]

SYN, SYN_ACK = 0x02, 0x12

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
EXTENSIONS = {HOP_BY_HOP, ROUTING, DESTINATION}
WITH_PORTS = {TCP, UDP, 33, 132, 136}
ECHOES = {ICMP: {0, 8}, ICMPV6: {128, 129}}
ERRORS = {ICMP: {3, 4, 5, 11, 12}, ICMPV6: {1, 2, 3, 4}}  # types of messages about another packet

# A payload that knows its protocol and, given the pseudo header's addresses, its bytes.
Transport = tuple[int, Callable[[bytes], bytes]]


def tcp(sport: int, dport: int, flags: int = SYN) -> Transport:
    """A segment without payload."""

    def build(addresses: bytes) -> bytes:
        header = struct.pack("!HHIIBBHHH", sport, dport, 1, 0, 5 << 4, flags, 8192, 0, 0)
        return header[:16] + _sum(addresses, TCP, header) + header[18:]

    return TCP, build


def udp(sport: int, dport: int, payload: bytes = b"datagram") -> Transport:
    """A datagram."""

    def build(addresses: bytes) -> bytes:
        header = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0)
        return header[:6] + _sum(addresses, UDP, header + payload) + payload

    return UDP, build


def echo(number: int, kind: int = 8) -> Transport:
    """An ICMP echo request or, with kind 0, an answer."""
    header = struct.pack("!BBHHH", kind, 0, 0, number, 1)
    return ICMP, lambda _: header[:2] + checksum(header) + header[4:]


def plain(proto: int, payload: bytes) -> Transport:
    """Any other protocol."""
    return proto, lambda _: payload


def ipv4(src: str, dst: str, transport: Transport, *, ttl: int = 64, options: bytes = b"", flags: int = 0) -> bytes:
    """A packet; `options` has a length that is a multiple of four, `flags` is the word of flags and fragment offset."""
    addresses = socket.inet_aton(src) + socket.inet_aton(dst)
    proto, build = transport
    payload = build(addresses)
    words = 5 + len(options) // 4
    header = struct.pack("!BBHHHBBH", 4 << 4 | words, 0, words * 4 + len(payload), 0x1234, flags, ttl, proto, 0)
    header += addresses + options
    return header[:10] + checksum(header) + header[12:] + payload


def split4(packet: bytes, size: int) -> list[bytes]:
    """An IPv4 packet without options as fragments with `size` bytes of payload each, a multiple of eight."""
    pieces = [packet[at : at + size] for at in range(20, len(packet), size)]
    made = []
    for number, piece in enumerate(pieces):
        more = 0x2000 if number + 1 < len(pieces) else 0
        header = packet[:2] + struct.pack("!HHH", 20 + len(piece), 0x1234, more | number * size // 8) + packet[8:10]
        header += bytes(2) + packet[12:20]
        made.append(header[:10] + checksum(header) + header[12:] + piece)
    return made


def options(kind: int) -> tuple[int, bytes]:
    """An extension header of eight bytes for `ipv6`: its number and all but its first byte. PadN fills it."""
    return kind, bytes([0]) + (bytes([0, 0, 0, 0, 0, 0]) if kind == ROUTING else bytes([1, 4, 0, 0, 0, 0]))


def ipv6(
    src: str, dst: str, transport: Transport, *, hops: int = 64, extensions: tuple[tuple[int, bytes], ...] = ()
) -> bytes:
    """A packet, with its extension headers in order."""
    addresses = socket.inet_pton(socket.AF_INET6, src) + socket.inet_pton(socket.AF_INET6, dst)
    proto, build = transport
    payload = build(addresses)
    following = proto
    for number, rest in reversed(extensions):
        payload = bytes([following]) + rest + payload
        following = number
    return struct.pack("!IHBB", 6 << 28, len(payload), following, hops) + addresses + payload


def split6(packet: bytes, size: int) -> list[bytes]:
    """An IPv6 packet without extension headers as fragments with `size` bytes of payload each."""
    pieces = [packet[at : at + size] for at in range(40, len(packet), size)]
    made = []
    for number, piece in enumerate(pieces):
        more = int(number + 1 < len(pieces))
        header = struct.pack("!BBHI", packet[6], 0, number * size | more, 0x1234)
        made.append(
            packet[:4] + struct.pack("!HBB", 8 + len(piece), FRAGMENT, packet[7]) + packet[8:40] + header + piece
        )
    return made


def packet_of(data: bytes) -> Packet | None:
    """What the bytes of an IP packet say; None for what is no IP packet."""
    if len(data) >= 20 and data[0] >> 4 == 4:
        start, offset = (data[0] & 15) * 4, int.from_bytes(data[6:8], "big") & 0x1FFF
        addresses = int.from_bytes(data[12:16], "big"), int.from_bytes(data[16:20], "big")
        return _transport(4, data[9], addresses, None if offset else data[start:])
    if len(data) >= 40 and data[0] >> 4 == 6:
        addresses = int.from_bytes(data[8:24], "big"), int.from_bytes(data[24:40], "big")
        proto, rest = data[6], data[40:]
        while proto in EXTENSIONS and len(rest) >= 8:
            proto, rest = rest[0], rest[rest[1] * 8 + 8 :]
        if proto == FRAGMENT:
            proto, offset, rest = rest[0], int.from_bytes(rest[2:4], "big") >> 3, rest[8:]
            if offset:
                return _transport(6, proto, addresses, None)
            while proto in EXTENSIONS and len(rest) >= 8:
                proto, rest = rest[0], rest[rest[1] * 8 + 8 :]
        return _transport(6, proto, addresses, rest)
    return None


def _transport(family: int, proto: int, addresses: tuple[int, int], data: bytes | None) -> Packet:
    src, dst = addresses
    if data is None:
        return Packet(family, proto, src, dst, fragment=True)
    if proto in WITH_PORTS:
        sport, dport = struct.unpack_from("!HH", data)
        return Packet(family, proto, src, dst, sport, dport)
    if proto in ECHOES:
        kind, code = data[0], data[1]
        number = int.from_bytes(data[4:6], "big") if kind in ECHOES[proto] else None
        about = packet_of(data[8:]) if kind in ERRORS[proto] else None
        return Packet(family, proto, src, dst, icmp_type=kind, icmp_code=code, icmp_id=number, about=about)
    return Packet(family, proto, src, dst)


def _sum(addresses: bytes, proto: int, message: bytes) -> bytes:
    """The checksum with the pseudo header: the same sum for IPv4 and IPv6, as their lengths are below 64 kB."""
    return checksum(addresses + struct.pack("!HH", proto, len(message)) + message)


def checksum(message: bytes) -> bytes:
    """The Internet checksum (RFC 1071)."""
    message += bytes(len(message) % 2)
    total: int = sum(struct.unpack(f"!{len(message) // 2}H", message))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", total ^ 0xFFFF)
