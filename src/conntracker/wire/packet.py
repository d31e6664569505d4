"""Packet headers: IPv4 (RFC 791), IPv6 and its extension headers (RFC 8200), and the ports, types and ids behind."""

from __future__ import annotations

from typing import NamedTuple

from conntracker.model import DecodeError
from conntracker.steps import Packet

_ICMP, _TCP, _UDP, _ICMPV6 = 1, 6, 17, 58
_WITH_PORTS = frozenset((_TCP, _UDP, 33, 132, 136))  # and DCCP, SCTP, UDP-Lite
_ECHO = {_ICMP: frozenset((0, 8, 13, 14, 15, 16, 17, 18)), _ICMPV6: frozenset((128, 129))}
_ERRORS = {_ICMP: frozenset((3, 4, 5, 11, 12)), _ICMPV6: frozenset((1, 2, 3, 4))}

# Extension headers that another header follows (RFC 8200, 4302, 6275, 7401): all are 8 bytes long and 8 for each unit
# of their length, but Fragment (always 8) and Authentication (units of 4, and two less).
_FRAGMENT, _AUTHENTICATION = 44, 51
_EXTENSIONS = frozenset((0, 43, _FRAGMENT, _AUTHENTICATION, 60, 135, 139, 140))


class Headers(NamedTuple):
    """A packet, and what stays the same on its way through NAT and routers.

    identity   total length, IP id, fragment offset and protocol, TCP's numbers and flags, UDP's length, ICMP's type
    """

    packet: Packet
    identity: bytes


def parse(data: bytes, transport: bytes | None = None, proto: int | None = None) -> Headers:
    """The headers of a packet from its IP header on.

    transport   the transport header where it was given apart, and `data` may be cut before it
    proto       the protocol of that header, where it is known and extension headers before it may be cut

    What is cut behind the addresses is None in Packet. Raises DecodeError if the addresses are not there.
    """
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        return _ipv4(data, transport)
    if version == 6 and len(data) >= 40:
        return _ipv6(data, transport, proto)
    raise DecodeError("no IP header", 0)


def _ipv4(data: bytes, transport: bytes | None) -> Headers:
    proto, later = data[9], bool(int.from_bytes(data[6:8], "big") & 0x1FFF)
    if transport is None:
        transport = data[max(20, (data[0] & 15) * 4) :]
    src, dst = int.from_bytes(data[12:16], "big"), int.from_bytes(data[16:20], "big")
    # Length, id and fragment offset; a router may set or clear DF, so the flags do not count.
    identity = data[2:6] + bytes((data[6] & 0x1F, data[7], proto))
    return _with_transport(4, proto, src, dst, later, b"" if later else transport, identity)


def _ipv6(data: bytes, transport: bytes | None, known: int | None) -> Headers:
    proto, at, later = data[6], 40, False
    while proto in _EXTENSIONS and at + 8 <= len(data):
        if proto == _FRAGMENT:
            later = bool(int.from_bytes(data[at + 2 : at + 4], "big") & 0xFFF8)
        units = data[at + 1]
        size = 8 if proto == _FRAGMENT else (units + 2) * 4 if proto == _AUTHENTICATION else (units + 1) * 8
        proto, at = data[at], at + size
        if later:
            break
    if transport is None:
        transport = data[at:]
    elif known is not None and proto in _EXTENSIONS:
        proto = known
    src, dst = int.from_bytes(data[8:24], "big"), int.from_bytes(data[24:40], "big")
    return _with_transport(6, proto, src, dst, later, b"" if later else transport, data[4:6])


def _with_transport(
    family: int, proto: int, src: int, dst: int, later: bool, transport: bytes, identity: bytes
) -> Headers:
    if proto in _WITH_PORTS and len(transport) >= 4:
        sport, dport = transport[0] << 8 | transport[1], transport[2] << 8 | transport[3]
        # TCP: sequence and acknowledgment numbers, flags. UDP: length, in the same place a part of others' headers.
        same = transport[4:14] if proto == _TCP else transport[4:6]
        return Headers(Packet(family, proto, src, dst, sport, dport, fragment=later), identity + same)
    if proto in (_ICMP, _ICMPV6) and len(transport) >= 2:
        kind, code = transport[0], transport[1]
        number = None
        if kind in _ECHO[proto] and len(transport) >= 6:
            number = transport[4] << 8 | transport[5]
        about = None
        if kind in _ERRORS[proto] and len(transport) >= 28:
            about = _inner(transport[8:136])
        packet = Packet(family, proto, src, dst, None, None, kind, code, number, later, about)
        return Headers(packet, identity + transport[:2] + transport[6:8])
    return Headers(Packet(family, proto, src, dst, fragment=later), identity)


def _inner(data: bytes) -> Packet | None:
    """The packet that an ICMP error is about, as far as it is there."""
    try:
        return parse(data).packet
    except DecodeError:
        return None
