"""Process events."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.model import DecodeError
from conntracker.wire import connector
from conntracker.wire.connector import ACK, COMM, EXEC, EXIT, FORK, UID, ProcessEvent, decode

GID, SID, PTRACE = 0x40, 0x80, 0x100


def message(what: int, data: bytes, time: int = 9, idx: int = 1, ack: int = 0) -> bytes:
    """A message as cn_proc.c puts it together: the event's own part has 24 bytes, used or not."""
    event = struct.pack("=IIQ", what, 3, time) + data.ljust(24, b"\0")
    body = struct.pack("=IIIIHH", idx, 1, 55, ack, len(event), 0) + event
    return struct.pack("=IHHII", 16 + len(body), 3, 0, 55, 0) + body


def words(*numbers: int) -> bytes:
    """Numbers of 32 bits."""
    return struct.pack(f"={len(numbers)}I", *numbers)


CASES = [
    (FORK, words(10, 10, 12, 12), ProcessEvent(FORK, 12, 12, 9, 10)),
    (FORK, words(11, 10, 13, 10), ProcessEvent(FORK, 13, 10, 9, 10)),
    (EXEC, words(12, 12), ProcessEvent(EXEC, 12, 12, 9)),
    (UID, words(12, 12, 1000, 33), ProcessEvent(UID, 12, 12, 9, 0, 33)),
    (COMM, words(14, 12) + b"a\x1bname\0rest of ", ProcessEvent(COMM, 14, 12, 9, 0, 0, "a\\x1bname")),
    (EXIT, words(14, 12, 0, 17, 1, 1), ProcessEvent(EXIT, 14, 12, 9)),
]


@pytest.mark.parametrize(("what", "data", "expected"), CASES)
def test_event(what: int, data: bytes, expected: ProcessEvent) -> None:
    """Each kind of event has its thread and its process."""
    assert decode(message(what, data)) == [expected]
    assert decode(message(what, data) * 2) == [expected, expected]


def test_acknowledgement() -> None:
    """An answer has the errno and the token of its request."""
    assert decode(message(ACK, words(1), ack=78)) == [ProcessEvent(ACK, 0, 0, 9, value=1, answers=77)]


@pytest.mark.parametrize("what", [GID, SID, PTRACE, 0x40000000, 0x800])
def test_other_kinds(what: int) -> None:
    """Kinds that nobody asked for, or does not know, are left out."""
    assert decode(message(what, b"") + message(*CASES[2][:2])) == [CASES[2][2]]


def test_other_connectors() -> None:
    """Messages of other users of the connector are left out."""
    assert decode(message(EXEC, words(1, 1), idx=4)) == []


@pytest.mark.parametrize("end", [1, 35, 40, 51, 75])
def test_cut(end: int) -> None:
    """A message that is cut short is an error."""
    with pytest.raises(DecodeError):
        decode(message(EXEC, words(1, 1))[:end])


@pytest.mark.parametrize(("what", "data", "_"), CASES)
def test_event_too_small(what: int, data: bytes, _: ProcessEvent) -> None:
    """A message that is whole but has too little in it is an error."""
    body = struct.pack("=IIIIHH", 1, 1, 0, 0, 22, 0) + struct.pack("=IIQ", what, 0, 0) + data[:6]
    with pytest.raises(DecodeError):
        decode(struct.pack("=IHHII", 16 + len(body), 3, 0, 0, 0) + body)


def test_requests() -> None:
    """Requests are what the kernel expects: the plain one first, then the kinds that are decoded."""
    plain, narrow = connector.listen(77)
    head = struct.pack("=IHHII", 40, 3, 0, 0, 0)
    assert plain == head + struct.pack("=IIIIHHI", 1, 1, 0, 77, 4, 0, 1)
    assert narrow[16:] == struct.pack("=IIIIHHII", 1, 1, 0, 77, 8, 0, 1, FORK | EXEC | UID | COMM | EXIT)
    assert connector.ignore() == head + struct.pack("=IIIIHHI", 1, 1, 0, 0, 4, 0, 2)


@given(st.binary(max_size=200))
def test_any_bytes(datagram: bytes) -> None:
    """Any bytes give events or DecodeError."""
    with contextlib.suppress(DecodeError):
        decode(datagram)


@given(st.sampled_from([*(case[0] for case in CASES), ACK, GID]), st.binary(max_size=24), st.data())
def test_nearly_events(what: int, data: bytes, more: st.DataObject) -> None:
    """Events with any bytes in them, changed anywhere, give events or DecodeError."""
    whole = bytearray(message(what, data))
    whole[more.draw(st.integers(0, len(whole) - 1))] = more.draw(st.integers(0, 255))
    with contextlib.suppress(DecodeError):
        decode(bytes(whole))
