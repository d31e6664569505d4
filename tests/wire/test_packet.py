"""Packet headers."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.model import DecodeError
from conntracker.steps import Packet
from conntracker.wire.packet import parse

A4, B4 = int(ipaddress.ip_address("192.0.2.1")), int(ipaddress.ip_address("198.51.100.2"))
A6, B6 = int(ipaddress.ip_address("2001:db8::1")), int(ipaddress.ip_address("2001:db8::2"))


def ipv4(proto: int, payload: bytes, *, offset: int = 0, options: bytes = b"", number: int = 7, ttl: int = 64) -> bytes:
    """An IPv4 packet; the fragment offset in units of eight bytes."""
    words = 5 + len(options) // 4
    return (
        struct.pack("!BBHHHBBH", 0x40 | words, 0, words * 4 + len(payload), number, offset, ttl, proto, 0)
        + A4.to_bytes(4, "big")
        + B4.to_bytes(4, "big")
        + options
        + payload
    )


def ipv6(proto: int, payload: bytes) -> bytes:
    """An IPv6 packet."""
    return (
        struct.pack("!IHBB", 6 << 28, len(payload), proto, 64)
        + A6.to_bytes(16, "big")
        + B6.to_bytes(16, "big")
        + payload
    )


TCP = struct.pack("!HHIIBBHHH", 40000, 443, 1, 0, 0x50, 2, 1000, 0, 0)
UDP = struct.pack("!HHHH", 40000, 53, 8, 0)
HOP_BY_HOP = bytes([6, 1]) + bytes(14)  # 16 bytes, then TCP
AUTHENTICATION = bytes([17, 4]) + bytes(22)  # (4 + 2) * 4 bytes, then UDP
FIRST_FRAGMENT, LATER_FRAGMENT = bytes([17, 0, 0, 1]) + bytes(4), bytes([17, 0, 0, 8]) + bytes(4)

CASES = [
    (ipv4(6, TCP), Packet(4, 6, A4, B4, 40000, 443)),
    (ipv4(17, UDP, options=bytes(8)), Packet(4, 17, A4, B4, 40000, 53)),
    (ipv4(17, UDP, offset=3), Packet(4, 17, A4, B4, fragment=True)),
    (ipv4(17, UDP, offset=0x2000), Packet(4, 17, A4, B4, 40000, 53)),
    (ipv4(1, bytes([8, 0, 0, 0, 1, 2, 0, 1])), Packet(4, 1, A4, B4, None, None, 8, 0, 258)),
    (
        ipv4(1, bytes([3, 1, 0, 0, 0, 0, 0, 0]) + ipv4(17, UDP)),
        Packet(4, 1, A4, B4, None, None, 3, 1, about=Packet(4, 17, A4, B4, 40000, 53)),
    ),
    (ipv4(47, bytes(8)), Packet(4, 47, A4, B4)),
    (ipv4(6, TCP[:3]), Packet(4, 6, A4, B4)),
    (ipv6(6, TCP), Packet(6, 6, A6, B6, 40000, 443)),
    (ipv6(0, HOP_BY_HOP + TCP), Packet(6, 6, A6, B6, 40000, 443)),
    (ipv6(51, AUTHENTICATION + UDP), Packet(6, 17, A6, B6, 40000, 53)),
    (ipv6(44, FIRST_FRAGMENT + UDP), Packet(6, 17, A6, B6, 40000, 53)),
    (ipv6(44, LATER_FRAGMENT + UDP), Packet(6, 17, A6, B6, fragment=True)),
    (ipv6(58, bytes([128, 0, 0, 0, 0, 9, 0, 1])), Packet(6, 58, A6, B6, None, None, 128, 0, 9)),
    (
        ipv6(58, bytes([1, 4, 0, 0, 0, 0, 0, 0]) + ipv6(6, TCP)),
        Packet(6, 58, A6, B6, None, None, 1, 4, about=Packet(6, 6, A6, B6, 40000, 443)),
    ),
]


@pytest.mark.parametrize(("data", "packet"), CASES)
def test_headers(data: bytes, packet: Packet) -> None:
    """Addresses, ports, ICMP's fields and the packet that an error is about are found behind options and extensions."""
    assert parse(data).packet == packet


def test_transport_given_apart() -> None:
    """Where extension headers are cut off, the transport header that was given apart and its protocol count."""
    whole = ipv6(0, HOP_BY_HOP + TCP)
    assert parse(whole[:40], TCP, 6).packet == parse(whole).packet
    assert parse(ipv4(17, UDP, options=bytes(8))[:20], UDP).packet == Packet(4, 17, A4, B4, 40000, 53)


def test_identity_outlives_nat_and_routers() -> None:
    """Other addresses, ports, TTL and checksums leave a packet's identity, another IP id does not."""
    one = parse(ipv4(6, TCP))
    routed = bytearray(ipv4(6, struct.pack("!HH", 1, 2) + TCP[4:], ttl=63))
    routed[12:16], routed[10:12] = bytes([10, 0, 0, 1]), b"\x12\x34"
    assert parse(bytes(routed)).identity == one.identity
    assert parse(ipv4(6, TCP, number=8)).identity != one.identity


@pytest.mark.parametrize("data", [b"", b"\x45", ipv4(6, TCP)[:19], ipv6(6, TCP)[:39], b"\x50" + bytes(60)])
def test_no_addresses_no_packet(data: bytes) -> None:
    """What has no whole IP header raises DecodeError."""
    with pytest.raises(DecodeError):
        parse(data)


@given(st.binary(max_size=300), st.none() | st.binary(max_size=40), st.none() | st.integers(0, 255))
def test_any_bytes(data: bytes, transport: bytes | None, proto: int | None) -> None:
    """Any bytes give headers or DecodeError."""
    try:
        headers = parse(data, transport, proto)
    except DecodeError:
        return
    assert headers.packet.family in (4, 6)


@given(st.integers(0, 255), st.binary(max_size=200), st.sampled_from([4, 6]))
def test_any_payload(proto: int, payload: bytes, version: int) -> None:
    """Behind a whole IP header, anything is a packet with its addresses."""
    packet = parse(ipv4(proto, payload) if version == 4 else ipv6(proto, payload)).packet
    assert (packet.src, packet.dst) == ((A4, B4) if version == 4 else (A6, B6))
