"""One conntrack message at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.model import DESTROY, NEW, UPDATE, DecodeError
from conntracker.wire import conntrack, netlink
from support.messages import damaged, message, messages, tuple_

CASES = [
    ({"event": "new"}, NEW, {"src": 1, "dst": 2, "proto": 6, "sport": 1000, "dport": 80}),
    ({"event": "update", "status": 0x18E, "id": 7}, UPDATE, {"status": 0x18E, "id": 7}),
    ({"event": "destroy", "counters": (3, 180), "reply_counters": (2, 120)}, DESTROY,
     {"packets": 3, "bytes": 180, "reply_packets": 2, "reply_bytes": 120}),
    ({"family": 6, "proto": 17, "src": 0xFD << 120 | 1, "dst": 2**128 - 1}, NEW,
     {"src": 0xFD << 120 | 1, "dst": 2**128 - 1, "proto": 17}),
    ({"proto": 1, "first": 99, "second": 8 << 8}, NEW, {"icmp_id": 99, "icmp_type": 8, "icmp_code": 0}),
    ({"family": 6, "proto": 58, "first": 99, "second": 128 << 8 | 1}, NEW,
     {"icmp_id": 99, "icmp_type": 128, "icmp_code": 1}),
    ({"tcp_state": 3, "mark": 5, "zone": 9}, NEW, {"tcp_state": 3, "mark": 5, "zone": 9}),
    ({"times": (10**18, 10**18 + 5)}, NEW, {"start": 10**18, "stop": 10**18 + 5}),
    ({"reply": (20, 10, 6, 8080, 61000)}, NEW,
     {"reply_src": 20, "reply_dst": 10, "reply_sport": 8080, "reply_dport": 61000}),
]  # fmt: skip


@pytest.mark.parametrize(("given_", "kind", "expected"), CASES)
def test_fields_are_read(given_: dict[str, object], kind: int, expected: dict[str, int]) -> None:
    """Each attribute that is kept comes out as its number."""
    record = conntrack.decode_message(message(**given_))  # type: ignore[arg-type]
    assert record.kind == kind
    assert {name: record.fields[name] for name in expected} == expected


def test_what_was_not_sent_is_not_there() -> None:
    """A message without counters, mark or times has no such fields: null is not 0."""
    record = conntrack.decode_message(message())
    assert not {"packets", "bytes", "mark", "start", "stop", "tcp_state"} & record.fields.keys()


def test_attributes_of_a_newer_kernel_are_counted() -> None:
    """An attribute that nobody knows is passed over and counted."""
    extra = netlink.attribute(99, b"future") + netlink.nested(100, netlink.attribute(1, b"x"))
    assert conntrack.decode_message(message(extra=extra)).unknown == 2


def test_a_tuple_zone_counts_as_zone() -> None:
    """A zone of the original direction alone stands inside the tuple (CTA_TUPLE_ZONE)."""
    inner = tuple_(1, 4, 1, 2, 6, 3, 4)[4:] + netlink.attribute(3, b"\x00\x07")
    body = netlink.nested(1, inner)
    data = netlink.HEADER.pack(20 + len(body), 0x100, 0, 0, 0) + b"\x02\0\0\0" + body
    assert conntrack.decode_message(data).fields["zone"] == 7


@pytest.mark.parametrize(
    "data",
    [
        b"",
        message()[:30],
        message() + b"\0\0\0\0",
        netlink.HEADER.pack(20, 0x102, 0, 0, 0) + b"\x07\0\0\0",
        netlink.HEADER.pack(20, 0x100, 0, 0, 0) + b"\x02\0\0\0",
    ],
)
def test_what_is_no_flow_is_an_error(data: bytes) -> None:
    """A message cut short, too long, of another type or without a tuple raises DecodeError."""
    with pytest.raises(DecodeError):
        conntrack.decode_message(data)


@given(messages())
def test_every_message_of_a_kernel_is_a_record(data: bytes) -> None:
    """Whatever attributes are there, and with unknown ones, a message decodes."""
    assert conntrack.decode_message(data).family in (4, 6)


@given(st.binary(max_size=300) | damaged())
def test_any_bytes_are_a_record_or_a_decode_error(data: bytes) -> None:
    """Random bytes and damaged messages give a record or DecodeError with an offset inside."""
    try:
        conntrack.decode_message(data)
    except DecodeError as error:
        assert 0 <= error.offset <= len(data)
