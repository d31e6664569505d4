"""NFLOG messages and the traces in them."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.model import DecodeError
from conntracker.wire.netlink import attribute
from conntracker.wire.nflog import LogMessage, decode


def logged(prefix: bytes, family: int = 2, hook: int = 1) -> bytes:
    """The body of a message as nfnetlink_log.c puts it together."""
    body = bytes([family, 0, 0, 0]) + attribute(1, struct.pack("!HBB", 0x0800, hook, 0))
    return body + attribute(10, prefix + b"\0") + attribute(4, struct.pack("!I", 3)) + attribute(9, b"packet")


CASES = [
    (b"TRACE: filter:INPUT:rule:4 ", ("filter", "INPUT", "rule", 4)),
    (b"TRACE: mangle:PREROUTING:policy:1 ", ("mangle", "PREROUTING", "policy", 1)),
    (b"TRACE: filter:my-chain:return:12 ", ("filter", "my-chain", "return", 12)),
    (b"TRACE: filter:a:rule:b:rule:2 ", ("filter", "a:rule:b", "rule", 2)),
]


@pytest.mark.parametrize(("prefix", "said"), CASES)
def test_trace(prefix: bytes, said: tuple[str, str, str, int]) -> None:
    """Table, chain, type and number are told apart, in chain names with colons too."""
    assert decode(logged(prefix)) == LogMessage(1, "ip", *said, b"packet", 3, 0)


def test_family() -> None:
    """IPv6 is told by the message's family."""
    found = decode(logged(CASES[0][0], 10, 2))
    assert found is not None
    assert (found.family, found.hook) == ("ip6", 2)


@pytest.mark.parametrize(
    "prefix", [b"", b"nf_ct_tcp: invalid packet ignored ", b"TRACE: filter:INPUT:rule:", b"TRACE:"]
)
def test_other_logs(prefix: bytes) -> None:
    """A log that is no trace, as conntrack writes of invalid packets, is none."""
    assert decode(logged(prefix)) is None


@given(st.binary(max_size=200))
def test_any_bytes(body: bytes) -> None:
    """Any bytes give a step, None or DecodeError."""
    with contextlib.suppress(DecodeError):
        decode(body)
