"""What the kernel says of routes and addresses, and whatever else may come."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.model import DecodeError
from conntracker.wire import netlink
from conntracker.wire.netlink import HEADER, attribute
from conntracker.wire.route import Part, Prefix, decode, dump_requests

LO6 = (1).to_bytes(16)


def message(kind: int, payload: bytes, sequence: int = 1, flags: int = 2) -> bytes:
    """One message, padded."""
    return HEADER.pack(16 + len(payload), kind, flags, sequence, 0) + payload + b"\0" * (-len(payload) % 4)


def routed(family: int, length: int, to: bytes | None, table: int = 255, kind: int = 2) -> bytes:
    """The body of a route as fib_dump_info puts it together."""
    body = struct.pack("=BBBBBBBBI", family, length, 0, 0, table, 2, 254, kind, 0) + attribute(15, b"\0\0\0\0")
    return body + (b"" if to is None else attribute(1, to)) + attribute(4, struct.pack("=I", 1))


def addressed(family: int, *attributes: tuple[int, bytes]) -> bytes:
    """The body of an address."""
    return struct.pack("=BBBBI", family, 24, 0, 0, 1) + b"".join(attribute(*one) for one in attributes)


NET, OWN, PEER = bytes([127, 0, 0, 0]), bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
LOOP = Prefix(4, 0x7F000000, 8)

# type, body, what it says
CASES = [
    (24, routed(2, 8, NET), Part([LOOP], changed=True)),
    (25, routed(2, 8, NET), Part([], changed=True)),
    (24, routed(2, 32, OWN, kind=3), Part([Prefix(4, 0x0A000001, 32)], changed=True)),
    (24, routed(10, 128, LO6, kind=4), Part([Prefix(6, 1, 128)], changed=True)),
    (24, routed(10, 0, None), Part([Prefix(6, 0, 0)], changed=True)),
    (24, routed(2, 32, OWN, table=100), Part([], changed=True)),
    (24, routed(2, 24, OWN, table=254, kind=1), Part([])),
    (24, routed(7, 24, OWN), Part([])),
    (20, addressed(2, (1, OWN), (2, OWN)), Part([Prefix(4, 0x0A000001, 32)])),
    (20, addressed(2, (1, PEER), (2, OWN)), Part([Prefix(4, 0x0A000001, 32)])),
    (20, addressed(10, (1, LO6)), Part([Prefix(6, 1, 128)])),
    (20, addressed(10), Part([])),
    (20, addressed(7, (1, LO6)), Part([])),
    (3, struct.pack("=i", 0), Part([], done=True)),
    (3, struct.pack("=i", -4), Part([], done=True, error=4)),
    (2, struct.pack("=i", -1) + bytes(16), Part([], done=True, error=1)),
    (99, b"", Part([])),
]


@pytest.mark.parametrize(("kind", "body", "said"), CASES)
def test_cases(kind: int, body: bytes, said: Part) -> None:
    """Routes to the host itself and addresses of interfaces are its own; other routes and messages are not."""
    assert decode(message(kind, body)) == said
    assert decode(message(kind, body), 1) == said
    assert decode(message(kind, body), 2) == Part([])


def test_host_bits() -> None:
    """Bits behind the prefix do not count."""
    assert decode(message(24, routed(2, 8, OWN))).prefixes == [Prefix(4, 0x0A000000, 8)]


def test_interrupted() -> None:
    """A dump says when something changed while it went on."""
    assert decode(message(24, routed(2, 8, NET), flags=0x12), 1).interrupted


@pytest.mark.parametrize(
    ("kind", "body"),
    [(24, b"\2"), (24, routed(2, 33, OWN)), (24, routed(2, 32, OWN[:3])), (20, b"\2"), (20, addressed(2, (2, LO6)))],
)
def test_damaged(kind: int, body: bytes) -> None:
    """What is cut short or has impossible lengths is refused."""
    with pytest.raises(DecodeError):
        decode(message(kind, body))


def test_requests() -> None:
    """Each dump has its own number, and asks for one family."""
    requests = [next(netlink.messages(one)) for one in dump_requests(7)]
    assert [(one.type, one.sequence, one.payload[0]) for one in requests] == [
        (26, 7, 2), (26, 8, 10), (22, 9, 2), (22, 10, 10),
    ]  # fmt: skip


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """Any bytes, also behind a good header, are decoded or refused."""
    for datagram in (data, *(message(kind, data) for kind in (2, 3, 20, 24, 25))):
        with contextlib.suppress(DecodeError):
            decode(datagram)


@given(st.integers(0, 32), st.integers(0, 2**32 - 1))
def test_any_prefix(length: int, address: int) -> None:
    """A prefix is given back as it was, without the bits behind it."""
    (prefix,) = decode(message(24, routed(2, length, address.to_bytes(4)))).prefixes
    assert prefix == Prefix(4, address & ~((1 << 32 - length) - 1), length)
