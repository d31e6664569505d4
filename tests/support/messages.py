"""Conntrack messages as the kernel builds them, from plain values."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from hypothesis import strategies as st

from conntracker.model import U32
from conntracker.wire import conntrack, netlink
from conntracker.wire.netlink import attribute, nested

NEW_FLAGS = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
ICMP = (1, 58)


def tuple_(kind: int, family: int, src: int, dst: int, proto: int, first: int, second: int) -> bytes:
    """CTA_TUPLE_*: ports, or id and type << 8 | code of ICMP, or neither."""
    size, at = (4, 1) if family == 4 else (16, 3)
    ends = [attribute(at + i, value.to_bytes(size, "big")) for i, value in enumerate((src, dst))]
    parts = [attribute(1, bytes([proto]))]
    if proto in ICMP:
        base = 4 if proto == 1 else 7
        parts.append(attribute(base, struct.pack("!H", first)))
        parts += [attribute(base + 1, bytes([second >> 8])), attribute(base + 2, bytes([second & 255]))]
    elif proto != 50:
        parts += [attribute(2, struct.pack("!H", first)), attribute(3, struct.pack("!H", second))]
    return nested(kind, nested(1, *ends), nested(2, *parts))


def u16(kind: int, value: int) -> bytes:
    """An attribute of big-endian numbers."""
    return attribute(kind, struct.pack("!H", value))


def u32(kind: int, value: int) -> bytes:
    """An attribute of big-endian numbers."""
    return attribute(kind, struct.pack("!I", value))


def u64s(kind: int, first: int, second: int) -> bytes:
    """An attribute of big-endian numbers."""
    return nested(kind, attribute(1, struct.pack("!Q", first)), attribute(2, struct.pack("!Q", second)))


def message(
    event: str = "new", family: int = 4, proto: int = 6, src: int = 1, dst: int = 2, first: int = 1000,
    second: int = 80, **more: Any,
) -> bytes:  # fmt: skip
    """A whole message. `more`: reply (five values), status, id, zone, mark, tcp_state, counters, reply_counters,
    times, extra (bytes of further attributes)."""
    reply = more.get("reply", (dst, src, proto, second if proto not in ICMP else first, first))
    parts = [tuple_(1, family, src, dst, proto, first, second), tuple_(2, family, *reply)]
    simple = (("status", 3, u32), ("mark", 8, u32), ("id", 12, u32), ("zone", 18, u16))
    parts += [build(kind, more[name]) for name, kind, build in simple if name in more]
    if "tcp_state" in more:
        parts.append(nested(4, nested(1, attribute(1, bytes([more["tcp_state"]])))))
    for name, kind in (("counters", 9), ("reply_counters", 10), ("times", 20)):
        if name in more:
            parts.append(u64s(kind, *more[name]))
    extra: bytes = more.get("extra", b"")
    body = b"".join(parts) + extra
    kind = conntrack.MESSAGE_DELETE if event == "destroy" else conntrack.MESSAGE_NEW
    flags = NEW_FLAGS if event == "new" else 0
    header = netlink.HEADER.pack(netlink.BODY + len(body), kind, flags, 0, 0)
    return header + netlink.NFGENMSG.pack(2 if family == 4 else 10, 0, 0) + body


def rows(datagrams: list[bytes], stride: int = 1024) -> tuple[U32, U32]:
    """Datagrams in a ring of rows, as EventSocket receives them."""
    ring = np.zeros((max(len(datagrams), 1), stride), np.uint8)
    for i, datagram in enumerate(datagrams):
        ring[i, : min(len(datagram), stride)] = np.frombuffer(datagram[:stride], np.uint8)
    return ring.view(np.uint32)[: len(datagrams)], np.array([len(d) for d in datagrams], np.uint32)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Any message that a kernel may send, of an older or newer version too."""
    family = draw(st.sampled_from([4, 6]))
    address = st.integers(0, 2**32 - 1 if family == 4 else 2**128 - 1)
    proto = draw(st.sampled_from([1, 6, 17, 47, 50, 58, 132]))
    port, number = st.integers(0, 65535), st.integers(0, 2**32 - 1)
    big = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
    optional: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "status": number,
                "id": number,
                "mark": number,
                "zone": port,
                "tcp_state": st.integers(0, 9),
                "counters": big,
                "reply_counters": big,
                "times": big,
                "extra": st.builds(attribute, st.integers(28, 200), st.binary(max_size=9)),
            },
        )
    )
    return message(
        draw(st.sampled_from(["new", "update", "destroy"])), family, proto, draw(address), draw(address), draw(port),
        draw(port), **optional,
    )  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A message with some bytes changed, cut off or added."""
    data = bytearray(draw(messages()))
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return (
        bytes(data[: draw(st.integers(0, len(data)))]) + draw(st.binary(max_size=8))
        if draw(st.booleans())
        else bytes(data)
    )
