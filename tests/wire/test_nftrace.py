"""Trace messages of nf_tables."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.model import DecodeError
from conntracker.wire.netlink import attribute, nested
from conntracker.wire.nftrace import TraceDecoder, TraceMessage, decode


def number(kind: int, value: int) -> bytes:
    """A 32-bit attribute."""
    return attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


def message(kind: int = 3, packet: int = 7, verdict: int | None = 1, target: bytes = b"", more: bytes = b"") -> bytes:
    """The body of a message as nf_tables_trace.c puts it together."""
    body = bytes([2, 0, 0, 0]) + number(15, 2) + number(4, kind) + number(6, packet)
    body += attribute(2, b"input\0") + attribute(1, b"filter\0")
    if kind == 3:
        body += attribute(3, struct.pack("!Q", 12))
    if verdict is not None:
        body += nested(5, number(1, verdict), *([attribute(2, target + b"\0")] if target else []))
    return body + more


HEADERS = number(10, 3) + attribute(8, b"E" * 20) + attribute(9, b"t" * 8) + number(18, 0xB89BCCE1)

CASES = [
    (message(), ("rule", 12, "accept", None)),
    (message(verdict=0), ("rule", 12, "drop", None)),
    (message(verdict=0x00010003), ("rule", 12, "queue", None)),
    (message(verdict=-1), ("rule", 12, "continue", None)),
    (message(verdict=-3, target=b"sub"), ("rule", 12, "jump", "sub")),
    (message(verdict=-4, target=b"sub"), ("rule", 12, "goto", "sub")),
    (message(kind=2, verdict=-5), ("return", None, "return", None)),
    (message(kind=1, verdict=None, more=number(16, 0)), ("policy", None, "drop", None)),
    (message(kind=1, verdict=None, more=number(16, 1)), ("policy", None, "accept", None)),
    (message(more=attribute(99, b"of a newer kernel")), ("rule", 12, "accept", None)),
]


@pytest.mark.parametrize(("body", "said"), CASES)
def test_what_a_message_says(body: bytes, said: tuple[str, int | None, str, str | None]) -> None:
    """Type, handle, verdict and target of a jump, and the table's family from the netlink header."""
    found = decode(body)
    assert found.place[4:] == said
    assert (found.id, *found.place[:4]) == (7, "ip", 2, "filter", "input")


def test_headers_of_a_first_message() -> None:
    """Headers, interfaces and conntrack's id are there when the kernel sent them."""
    found = decode(message(more=HEADERS))
    assert (found.network, found.transport, found.iif, found.oif) == (b"E" * 20, b"t" * 8, 3, 0)
    assert found.ct_id == 0xB89BCCE1


BAD = [b"", b"\2\0\0\0", message()[:-1], message(kind=9), bytes([99]) + message()[1:], message()[:40]]


@pytest.mark.parametrize("body", BAD)
def test_what_is_no_message(body: bytes) -> None:
    """A message cut short, of no known type, of no known family or without its place raises DecodeError."""
    with pytest.raises(DecodeError):
        decode(body)


BODIES = [*(body for body, _ in CASES), message(more=HEADERS), message(more=HEADERS + attribute(99, b"new"))]


@given(st.binary(max_size=200))
def test_any_bytes(body: bytes) -> None:
    """Any bytes give a message or DecodeError."""
    with contextlib.suppress(DecodeError):
        assert isinstance(decode(body), TraceMessage)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(BODIES),
            st.integers(0, 2**32 - 1),
        ),
        max_size=30,
    ),
    st.lists(st.integers(0, 200), max_size=3),
)
def test_remembering_changes_nothing(chosen: list[tuple[bytes, int]], flips: list[int]) -> None:
    """The decoder that remembers says the same as the one that does not, whatever the id, on damaged messages too."""
    decoder = TraceDecoder()
    for body, packet in chosen:
        data = bytearray(body)
        data[24:28] = struct.pack("!I", packet)
        for at in flips:
            data[at % len(data)] ^= 0x41
        try:
            expected: object = decode(bytes(data))
        except DecodeError as error:
            expected = str(error)
        try:
            found: object = decoder.decode(bytes(data))
        except DecodeError as error:
            found = str(error)
        assert found == expected
