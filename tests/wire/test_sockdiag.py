"""Dumps of sockets, and whatever else may come."""

from __future__ import annotations

import contextlib
import ipaddress
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from conntracker.model import DecodeError
from conntracker.wire import dumps, netlink
from conntracker.wire.netlink import HEADER, attribute
from conntracker.wire.sides import ANY_LOCAL, ANY_REMOTE, mapped
from conntracker.wire.sockdiag import PORTED, SOCKETS, decode, dump_request, error_of

TCP, UDP, RAW = 6, 17, 255
ANY = ANY_REMOTE | ANY_LOCAL
COOKIE = 0x1234567890


def packed(text: str) -> bytes:
    """An address in network byte order, padded to four words."""
    return ipaddress.ip_address(text).packed.ljust(16, b"\0")


def message(
    family: int, state: int, local: str, lport: int, remote: str, rport: int, *, inode: int = 77,
    attributes: bytes = attribute(8, b"\0"),
) -> bytes:  # fmt: skip
    """One socket as inet_sk_diag_fill puts it together."""
    body = struct.pack("!BBBBHH", family, state, 0, 0, lport, rport) + packed(local) + packed(remote)
    body += struct.pack("=IQ5I", 0, COOKIE, 0, 0, 0, 1000, inode) + attributes
    return HEADER.pack(16 + len(body), 20, 2, 1, 0) + body


def decoded(data: bytes, protocol: int) -> NDArray[Any]:
    """The rows of a datagram."""
    words = np.frombuffer(data[: len(data) // 4 * 4], np.uint32)
    return decode(words, dumps.message_offsets(words)[0], protocol)


def words_of(text: str) -> tuple[int, int]:
    """An address as a row has it."""
    address = ipaddress.ip_address(text)
    return mapped(int(address), address.version)


V6ONLY = attribute(8, b"\0") + attribute(11, b"\1")
BOTH = attribute(8, b"\0") + attribute(11, b"\0")
NOBODY = "0.0.0.0"  # noqa: S104

# protocol, message; local, lport, remote, rport, protocol, wild, both
CASES = [
    (TCP, message(2, 1, "10.0.0.1", 4000, "10.0.0.2", 443), ("10.0.0.1", 4000, "10.0.0.2", 443, TCP, 0, False)),
    (TCP, message(2, 2, "10.0.0.1", 4000, "10.0.0.2", 443), ("10.0.0.1", 4000, "10.0.0.2", 443, TCP, 0, False)),
    (TCP, message(10, 1, "fd00::1", 9, "fd00::2", 65535), ("fd00::1", 9, "fd00::2", 65535, TCP, 0, False)),
    (TCP, message(10, 1, "::ffff:10.0.0.1", 9, "::ffff:1.2.3.4", 8), ("10.0.0.1", 9, "1.2.3.4", 8, TCP, 0, False)),
    (UDP, message(2, 1, "10.0.0.1", 53, "10.0.0.2", 99), ("10.0.0.1", 53, "10.0.0.2", 99, UDP, 0, False)),
    (UDP, message(2, 7, "10.0.0.1", 53, "10.0.0.2", 99), ("10.0.0.1", 53, "::", 0, UDP, ANY_REMOTE, False)),
    (UDP, message(2, 7, NOBODY, 53, NOBODY, 0), (NOBODY, 53, "::", 0, UDP, ANY, False)),
    (UDP, message(10, 7, "fd00::1", 53, "::", 0, attributes=BOTH), ("fd00::1", 53, "::", 0, UDP, ANY_REMOTE, False)),
    (UDP, message(10, 7, "::", 53, "::", 0, attributes=BOTH), ("::", 53, "::", 0, UDP, ANY, True)),
    (UDP, message(10, 7, "::", 53, "::", 0, attributes=V6ONLY), ("::", 53, "::", 0, UDP, ANY, False)),
    (RAW, message(2, 7, NOBODY, 89, NOBODY, 0), (NOBODY, 0, "::", 0, 89, ANY, False)),
    (RAW, message(10, 1, "fd00::1", 89, "fd00::2", 5), ("fd00::1", 0, "fd00::2", 0, 89, 0, False)),
]


@pytest.mark.parametrize(("protocol", "data", "said"), CASES)
def test_cases(protocol: int, data: bytes, said: tuple[str, int, str, int, int, int, bool]) -> None:
    """Addresses, ports and what a socket takes come out of its message, alone and behind another."""
    local, lport, remote, rport, number, wild, both = said
    expected = (0, COOKIE, 77, *words_of(local), *words_of(remote), lport, rport, number, wild, both)
    assert [tuple(row) for row in decoded(data, protocol)] == [expected]
    other = message(2, 1, "192.0.2.1", 89, "192.0.2.2", 2, attributes=attribute(8, b"\0") + attribute(15, b"mark"))
    assert tuple(decoded(other + data, protocol)[1]) == expected


@pytest.mark.parametrize("protocol", PORTED)
def test_raw_with_ports(protocol: int) -> None:
    """A raw socket of a protocol with ports is the end of no flow."""
    assert len(decoded(message(2, 7, "10.0.0.1", protocol, NOBODY, 0), RAW)) == 0


def test_end_of_dump() -> None:
    """The message that ends a dump is no socket, and says whether the kernel could answer."""
    data = message(2, 1, "10.0.0.1", 4000, "10.0.0.2", 443)
    for number in (0, 2):
        words = np.frombuffer(data + HEADER.pack(20, 3, 2, 1, 0) + struct.pack("=i", -number), np.uint32)
        offsets, end, done = dumps.message_offsets(words)
        assert done
        assert len(decode(words, offsets, TCP)) == 1
        assert error_of(words[end:]) == number
    assert error_of(words[end : end + 4]) == 0


def test_others_are_left_out() -> None:
    """Other messages and families are passed over."""
    data = message(2, 1, "10.0.0.1", 4000, "10.0.0.2", 443)
    assert decoded(message(7, 1, "10.0.0.1", 4000, "10.0.0.2", 443), TCP).dtype == SOCKETS
    assert len(decoded(message(7, 1, "10.0.0.1", 4000, "10.0.0.2", 443) + data, TCP)) == 1
    assert len(decoded(HEADER.pack(16, 99, 2, 1, 0) + data, TCP)) == 1


def test_cut_short() -> None:
    """A message without all of its fields is refused."""
    with pytest.raises(DecodeError, match="cut short"):
        decoded(HEADER.pack(84, 20, 2, 1, 0) + bytes(68), TCP)


def test_request() -> None:
    """Neither listeners nor sockets that no process has any more are asked for."""
    (asked,) = netlink.messages(dump_request(10, TCP, 7))
    family, protocol, states = struct.unpack_from("=BBxxI", asked.payload)
    assert (asked.type, asked.sequence, len(asked.payload), family, protocol) == (20, 7, 56, 10, TCP)
    assert [state for state in range(32) if states >> state & 1] == [1, 2, 4, 5, 8, 9, 11]


@given(st.binary(max_size=300), st.sampled_from([TCP, UDP, RAW]))
def test_any_bytes(data: bytes, protocol: int) -> None:
    """Any bytes give rows or DecodeError; OSError where they say that the kernel refused."""
    with contextlib.suppress(DecodeError, OSError):
        assert decoded(data, protocol).dtype == SOCKETS


@given(st.binary(min_size=72, max_size=120), st.sampled_from([2, 10]), st.sampled_from([TCP, UDP, RAW]))
def test_any_socket(body: bytes, family: int, protocol: int) -> None:
    """Any bytes behind a good header give rows or DecodeError."""
    body = bytes([family, 7]) + body[2:]
    zeros = body[:8] + bytes(32) + body[40:]  # bound to the wildcard address, whose attributes matter
    for one in (body, zeros):
        data = HEADER.pack(16 + len(one), 20, 2, 1, 0) + one + b"\0" * (-len(one) % 4)
        with contextlib.suppress(DecodeError):
            assert len(decoded(data, protocol)) <= 1
