"""Netlink framing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.model import DecodeError
from conntracker.wire import netlink


def test_a_request_is_one_message() -> None:
    """What `request` builds is what `messages` reads."""
    (message,) = netlink.messages(netlink.request(0x101, netlink.NLM_F_DUMP, 7, 2, netlink.attribute(1, b"abc")))
    assert (message.type, message.flags, message.sequence) == (0x101, netlink.NLM_F_DUMP | netlink.NLM_F_REQUEST, 7)
    assert message.payload == b"\x02\x00\x00\x00" + b"\x07\x00\x01\x00abc\x00"


def test_a_length_that_is_no_multiple_of_four_is_padded() -> None:
    """Two messages follow each other at multiples of four, whatever the first one's length."""
    first = netlink.HEADER.pack(19, 1, 0, 1, 0) + b"abc\0"
    second = netlink.HEADER.pack(16, 2, 0, 2, 0)
    assert [(m.type, m.payload) for m in netlink.messages(first + second)] == [(1, b"abc"), (2, b"")]


def test_an_empty_attribute_is_one() -> None:
    """An attribute without payload is given out, not taken for the end."""
    data = netlink.attribute(5, b"") + netlink.attribute(6, b"x")
    assert [(kind, length) for kind, _, length in netlink.attributes(data, 0, len(data))] == [(5, 0), (6, 1)]


@pytest.mark.parametrize(
    ("data", "offset"),
    [(b"\x03\x00\x01\x00", 0), (b"\x09\x00\x01\x00abc\x00", 0), (b"\x04\x00\x01\x00\x00\x00\x01\x00", 4)],
)
def test_an_impossible_attribute_is_an_error_with_its_offset(data: bytes, offset: int) -> None:
    """A length below four or beyond the end raises DecodeError at the attribute's own offset."""
    with pytest.raises(DecodeError) as raised:
        list(netlink.attributes(data, 0, len(data)))
    assert raised.value.offset == offset


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_a_decode_error(data: bytes) -> None:
    """Random bytes never raise anything but DecodeError, and never loop."""
    try:
        total = sum(netlink.align(netlink.HEADER.size + len(m.payload)) for m in netlink.messages(data))
    except DecodeError:
        return
    assert total >= len(data) - 3


@given(st.binary(max_size=200))
def test_any_bytes_are_attributes_or_a_decode_error(data: bytes) -> None:
    """Random bytes never raise anything but DecodeError."""
    try:
        for _, payload, length in netlink.attributes(data, 0, len(data)):
            assert payload + length <= len(data)
    except DecodeError as error:
        assert 0 <= error.offset <= len(data)
