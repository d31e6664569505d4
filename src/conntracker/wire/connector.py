"""Process events (linux/connector.h, linux/cn_proc.h): the kernel tells when a process forks, executes and ends.

struct nlmsghdr, struct cn_msg, struct proc_event, in host byte order, one message a datagram.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from conntracker.model import DecodeError
from conntracker.wire.netlink import HEADER, align
from conntracker.wire.procfs import text

__all__ = ["ACK", "COMM", "EXEC", "EXIT", "FORK", "UID", "ProcessEvent", "decode", "ignore", "listen"]

# enum proc_cn_event; the kernel answers a request with the first
ACK, FORK, EXEC, UID, COMM, EXIT = 0, 0x1, 0x2, 0x4, 0x200, 0x80000000

CN_IDX_PROC, CN_VAL_PROC = 1, 1
_MCAST_LISTEN, _MCAST_IGNORE = 1, 2
_NLMSG_DONE = 3
_MESSAGE = struct.Struct("=IIIIHH")  # struct cn_msg: idx, val, seq, ack, length, flags
_EVENT = struct.Struct("=IIQ")  # of struct proc_event: what, cpu, timestamp_ns
_HEADERS = HEADER.size + _MESSAGE.size
_ONE, _TWO, _FOUR = struct.Struct("=I"), struct.Struct("=II"), struct.Struct("=IIII")
_NEEDED = {ACK: 4, FORK: 16, EXEC: 8, UID: 16, COMM: 24, EXIT: 8}  # bytes of the event's own part that are read


class ProcessEvent(NamedTuple):
    """One event.

    what      FORK, EXEC, UID, COMM, EXIT, or ACK
    thread    its thread id; that of the whole process is `pid`: equal for the first thread
    pid       the process (thread group); FORK: the new one
    time      nanoseconds of CLOCK_MONOTONIC
    parent    FORK: the process that forked
    value     UID: the new effective user id; ACK: an errno, 0 if the request was taken
    comm      COMM: the new name
    answers   ACK: the token of the request (the kernel sends one more, and a sequence number of its own)
    """

    what: int
    thread: int
    pid: int
    time: int
    parent: int = 0
    value: int = 0
    comm: str = ""
    answers: int = 0


def listen(token: int) -> tuple[bytes, bytes]:
    """The two requests that make the events come, to be sent in this order.

    The first asks for all, and is answered. The second (struct proc_input) narrows that to the kinds that are decoded
    here; kernels before 6.6 take no notice of it.
    """
    narrow = struct.pack("=II", _MCAST_LISTEN, FORK | EXEC | UID | COMM | EXIT)
    return _request(token, _ONE.pack(_MCAST_LISTEN)), _request(token, narrow)


def ignore() -> bytes:
    """The request that ends it: the kernel counts its listeners, and does not notice everywhere that one closes."""
    return _request(0, _ONE.pack(_MCAST_IGNORE))


def _request(token: int, body: bytes) -> bytes:
    message = _MESSAGE.pack(CN_IDX_PROC, CN_VAL_PROC, 0, token, len(body), 0) + body
    return HEADER.pack(HEADER.size + len(message), _NLMSG_DONE, 0, 0, 0) + message


def decode(datagram: bytes) -> list[ProcessEvent]:
    """The events of a datagram; other kinds than those above are left out.

    Raises DecodeError where a message is cut short or a length is impossible.
    """
    events: list[ProcessEvent] = []
    offset, end = 0, len(datagram)
    while offset < end:
        if end - offset < _HEADERS:
            raise DecodeError("process event cut short", offset)
        length = HEADER.unpack_from(datagram, offset)[0]
        idx, val, _, ack, size, _ = _MESSAGE.unpack_from(datagram, offset + HEADER.size)
        if length < _HEADERS + size or offset + length > end:
            raise DecodeError(f"process event of {length} bytes", offset)
        if idx == CN_IDX_PROC and val == CN_VAL_PROC:
            event = _event(datagram, offset + _HEADERS, size, ack)
            if event is not None:
                events.append(event)
        offset += align(length)
    return events


def _event(data: bytes, offset: int, size: int, ack: int) -> ProcessEvent | None:
    if size < _EVENT.size:
        raise DecodeError("process event cut short", offset)
    what, _, time = _EVENT.unpack_from(data, offset)
    if what not in _NEEDED:
        return None
    if size < _EVENT.size + _NEEDED[what]:
        raise DecodeError("process event cut short", offset)
    offset += _EVENT.size
    if what == FORK:
        _, parent, thread, pid = _FOUR.unpack_from(data, offset)
        return ProcessEvent(what, thread, pid, time, parent)
    if what == ACK:
        return ProcessEvent(what, 0, 0, time, 0, _ONE.unpack_from(data, offset)[0], "", ack - 1)
    thread, pid = _TWO.unpack_from(data, offset)
    if what == UID:
        value = _FOUR.unpack_from(data, offset)[3]
        return ProcessEvent(what, thread, pid, time, 0, value)
    comm = text(data[offset + 8 : offset + 24].partition(b"\0")[0]) if what == COMM else ""
    return ProcessEvent(what, thread, pid, time, 0, 0, comm)
