"""Thousands of messages at a time: the same as one at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntracker.model import DUMP, NO_STATE, UNKNOWN, Batch, DecodeError
from conntracker.wire import conntrack, netlink
from conntracker.wire.columns import Decoder
from conntracker.wire.dumps import message_offsets
from support.messages import damaged, message, messages, rows

COUNTERS = ("packets", "bytes", "reply_packets", "reply_bytes", "start", "stop")


def expected(record: conntrack.Record) -> tuple[object, ...]:
    """A record as a row of a batch."""
    get = record.fields.get
    ends = []
    for prefix in ("", "reply_"):
        src, dst = get(prefix + "src", 0), get(prefix + "dst", 0)
        if prefix + "src" not in record.fields or prefix + "dst" not in record.fields:
            src = dst = 0
        if prefix + "sport" in record.fields:
            first, second = get(prefix + "sport", 0), get(prefix + "dport", 0)
        elif prefix + "icmp_type" in record.fields:
            first = get(prefix + "icmp_id", 0)
            second = get(prefix + "icmp_type", 0) << 8 | get(prefix + "icmp_code", 0)
        else:
            first = second = 0
        ends += [src, dst, first, second, get(prefix + "proto", 0), get("zone", 0)]
    counters = [get(name, UNKNOWN) for name in COUNTERS]
    return record.kind, *ends, get("id", 0), get("status", 0), get("mark", 0), get("tcp_state", NO_STATE), *counters


def actual(batch: Batch) -> list[tuple[object, ...]]:
    """The rows of a batch, unpacked one by one."""
    out: list[tuple[object, ...]] = []
    for i in range(len(batch)):
        ends: list[int] = []
        for words, ports in ((batch.addresses, batch.ports), (batch.reply_addresses, batch.reply_ports)):
            numbers, p = [int(word[i]) for word in words], int(ports[i])
            if batch.family == 4:
                ends += [numbers[0] >> 32, numbers[0] & 0xFFFFFFFF]
            else:
                ends += [numbers[0] << 64 | numbers[1], numbers[2] << 64 | numbers[3]]
            ends += [p >> 48, p >> 32 & 0xFFFF, p >> 8 & 0xFF, p >> 16 & 0xFFFF]
        columns = [getattr(batch, name) for name in COUNTERS]
        counters = [UNKNOWN if column is None else int(column[i]) for column in columns]
        small = [int(column[i]) for column in (batch.id, batch.status, batch.mark, batch.tcp_state)]
        out.append((int(batch.event[i]), *ends, *small, *counters))
    return out


def reference(datagrams: list[bytes]) -> tuple[dict[int, list[tuple[object, ...]]], int]:
    """The plain walk, message by message, as the kernel's own framing separates them."""
    out: dict[int, list[tuple[object, ...]]] = {4: [], 6: []}
    bad = 0
    for datagram in datagrams:
        offset = 0
        while offset < len(datagram):
            length = int.from_bytes(datagram[offset : offset + 4], "little")
            try:
                record = conntrack.decode_message(datagram[offset : offset + length])
            except DecodeError:
                bad += 1
            else:
                out[record.family].append(expected(record))
            offset += max(netlink.align(length), 16)
    return out, bad


@settings(max_examples=300)
@given(st.lists(messages() | damaged() | st.binary(min_size=1, max_size=60), max_size=25))
def test_columns_equal_the_plain_walk(datagrams: list[bytes]) -> None:
    """Any mixture of whole, damaged and random datagrams decodes as one by one, in order, and counts what it cannot."""
    datagrams = [datagram for datagram in datagrams if datagram]
    wanted, bad = reference(datagrams)
    decoder = Decoder()
    got = {batch.family: actual(batch) for batch in decoder.decode_rows(*rows(datagrams), time=1)} if datagrams else {}
    assert {family: got.get(family, []) for family in (4, 6)} == wanted
    assert decoder.undecodable == bad


def test_a_shape_learnt_is_used_again_exactly() -> None:
    """Messages of one length with other attributes are not read by the wrong shape."""
    decoder = Decoder()
    one, other = message(status=5, id=6), message(mark=5, id=6)
    assert len(one) == len(other)
    for _ in range(2):
        (batch,) = decoder.decode_rows(*rows([one, other, one]), time=1)
        assert batch.status.tolist() == [5, 0, 5]
        assert batch.mark.tolist() == [0, 5, 0]
    assert decoder.walked == 0


def test_a_datagram_longer_than_a_row_is_counted() -> None:
    """A message cut short by the ring is undecodable, not misread."""
    long = message(extra=netlink.attribute(22, b"\0" * 1200))
    decoder = Decoder()
    (batch,) = decoder.decode_rows(*rows([long, message()]), time=1)
    assert len(batch) == 1
    assert decoder.undecodable == 1


def test_unknown_attributes_are_counted_for_each_message() -> None:
    """A newer kernel's attribute is decoded around, and every one of them is counted."""
    decoder = Decoder()
    datagrams = [message(extra=netlink.attribute(99, b"abcd"))] * 5
    (batch,) = decoder.decode_rows(*rows(datagrams), time=1)
    assert (len(batch), decoder.unknown, decoder.undecodable) == (5, 5, 0)


def dump_of(items: list[bytes], sequence: int = 77) -> bytes:
    """Messages as the kernel puts them into a dump: NLM_F_MULTI, one sequence number, NLMSG_DONE at the end."""
    out = b""
    for item in items:
        length, kind, _, _, _ = netlink.HEADER.unpack_from(item)
        out += netlink.HEADER.pack(length, kind, 2, sequence, 1234) + item[16:] + b"\0" * (-len(item) % 4)
    return out + netlink.HEADER.pack(20, 3, 2, sequence, 1234) + b"\0\0\0\0"


@given(st.lists(messages(), max_size=20))
def test_a_dump_is_taken_apart(items: list[bytes]) -> None:
    """The messages of a dump are found whatever their lengths, and its end is seen."""
    words = np.frombuffer(dump_of(items), np.uint32)
    offsets, end, done = message_offsets(words)
    assert done
    assert end == len(words) - 5
    decoder = Decoder()
    batches = decoder.decode_buffer(words[:end], offsets, time=1, since=5) if len(offsets) else []
    assert sum(len(batch) for batch in batches) == len(items)
    assert all((batch.event == DUMP).all() and batch.dump_since == 5 for batch in batches)
    assert decoder.undecodable == 0


def test_a_refused_dump_is_an_os_error() -> None:
    """NLMSG_ERROR in place of a dump raises the kernel's error number."""
    data = netlink.HEADER.pack(36, 2, 0, 77, 1) + (-1).to_bytes(4, "little", signed=True) + b"\0" * 16
    with pytest.raises(PermissionError):
        message_offsets(np.frombuffer(data, np.uint32))


@given(st.binary(max_size=256))
def test_any_bytes_are_offsets_or_a_documented_error(data: bytes) -> None:
    """Random words are taken apart without a crash, an endless loop or an offset outside."""
    words = np.frombuffer(data[: len(data) // 4 * 4], np.uint32)
    try:
        offsets, end, _ = message_offsets(words)
    except (DecodeError, OSError):
        return
    assert end <= len(words)
    assert all(0 <= offset < len(words) for offset in offsets.tolist())
