"""Routes and addresses."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.model import DecodeError
from conntracker.wire import fib, netlink


def message(kind: int, body: bytes) -> bytes:
    """A netlink message."""
    return netlink.HEADER.pack(netlink.HEADER.size + len(body), kind, 0, 1, 0) + body


def test_a_route_is_read_whole() -> None:
    """A route tells its table, type, addresses, interface and metric."""
    body = struct.pack("=BBBBBBBBI", 2, 24, 0, 0, 254, 3, 0, 1, 0)
    body += netlink.attribute(1, bytes([10, 1, 2, 0])) + netlink.attribute(4, struct.pack("=I", 7))
    body += netlink.attribute(6, struct.pack("=I", 100))
    (route,) = fib.decode(message(24, body)).routes
    assert route == fib.Route(4, 254, 1, 0x0A010200, 0x0A0102FF, 7, 100)


def test_an_address_is_the_hosts_own_end() -> None:
    """Of an address with a peer, the local one counts."""
    body = struct.pack("=BBBBI", 2, 32, 0, 0, 3)
    body += netlink.attribute(1, bytes([10, 0, 0, 9])) + netlink.attribute(2, bytes([10, 0, 0, 1]))
    (address,) = fib.decode(message(20, body)).addresses
    assert address == fib.Address(4, 3, 0x0A000001, 32, 0, False)


@pytest.mark.parametrize("number", [2, 95])
def test_the_end_of_a_dump_tells_an_error(number: int) -> None:
    """The end of a dump carries the kernel's error number."""
    part = fib.decode(message(netlink.NLMSG_ERROR, struct.pack("=i", -number)))
    assert (part.done, part.error) == (True, number)


@given(st.binary(max_size=200))
def test_any_bytes_are_records_or_an_error(data: bytes) -> None:
    """Any datagram is decoded, or refused with a DecodeError."""
    for whole in (data, message(24, data), message(20, data)):
        try:
            fib.decode(whole)
        except DecodeError:
            continue
