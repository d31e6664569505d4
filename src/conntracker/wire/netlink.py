"""Netlink framing: messages and attributes (linux/netlink.h, linux/netfilter/nfnetlink.h; netlink(7)).

Headers are in host byte order, nfnetlink's payloads in network byte order. Messages and attributes start at multiples
of four; a length does not have to be one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from conntracker.model import DecodeError

HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port id
ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length with this header, type with two flag bits
NFGENMSG = struct.Struct("!BBH")  # struct nfgenmsg: family, version, resource id
BODY = HEADER.size + NFGENMSG.size  # where the attributes of an nfnetlink message begin

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_CREATE, NLM_F_EXCL = 0x400, 0x200
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLA_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
NLA_F_NESTED = 0x8000


class Message(NamedTuple):
    """One netlink message: header fields and the bytes behind the header."""

    type: int
    flags: int
    sequence: int
    payload: bytes


def align(length: int) -> int:
    """The next multiple of four."""
    return (length + 3) & ~3


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded."""
    return ATTRIBUTE.pack(4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds other attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def request(kind: int, flags: int, sequence: int, family: int = 0, body: bytes = b"") -> bytes:
    """A whole nfnetlink request; `kind` is subsystem << 8 | message."""
    return HEADER.pack(BODY + len(body), kind, flags | NLM_F_REQUEST, sequence, 0) + NFGENMSG.pack(family, 0, 0) + body


def messages(datagram: bytes) -> Iterator[Message]:
    """The messages of a datagram. Raises DecodeError where one is cut short or its length is impossible."""
    offset, end = 0, len(datagram)
    while offset < end:
        if end - offset < HEADER.size:
            raise DecodeError("netlink header cut short", offset)
        length, kind, flags, sequence, _ = HEADER.unpack_from(datagram, offset)
        if length < HEADER.size or offset + length > end:
            raise DecodeError(f"netlink message of {length} bytes", offset)
        yield Message(kind, flags, sequence, datagram[offset + HEADER.size : offset + length])
        offset += align(length)


def attributes(data: bytes, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(type, payload offset, payload length) of each attribute in data[offset:end].

    Raises DecodeError where a length is impossible. Up to three bytes behind the last attribute are padding.
    """
    while offset + 4 <= end:
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > end:
            raise DecodeError(f"attribute of {length} bytes", offset)
        yield kind & NLA_TYPE_MASK, offset + 4, length - 4
        offset += align(length)
