"""Conntrack messages, one at a time: ctnetlink (linux/netfilter/nfnetlink_conntrack.h) to a flat record.

`walk` is the reference: it understands any order of attributes and passes over those it does not know (and says how
many), so that a newer kernel is no error. `columns.Decoder` does the same to thousands of messages at once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from conntracker.model import DESTROY, NEW, UPDATE, DecodeError
from conntracker.wire import netlink

NFNL_SUBSYS_CTNETLINK = 1
IPCTNL_MSG_CT_NEW, IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE = 0, 1, 2
MESSAGE_NEW = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW
MESSAGE_GET = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET
MESSAGE_DELETE = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE

CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_STATUS, CTA_PROTOINFO = 1, 2, 3, 4
CTA_MARK, CTA_COUNTERS_ORIG, CTA_COUNTERS_REPLY = 8, 9, 10
CTA_ID, CTA_ZONE, CTA_TIMESTAMP = 12, 18, 20
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2

# AF_INET and AF_INET6 (linux/socket.h) to the IP version.
FAMILIES = {2: 4, 10: 6}

# Attributes that hold others, as paths from the message down.
NESTS = frozenset(
    {(tuple_,) for tuple_ in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY)}
    | {(tuple_, part) for tuple_ in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY) for part in (CTA_TUPLE_IP, CTA_TUPLE_PROTO)}
    | {(CTA_PROTOINFO,), (CTA_PROTOINFO, 1), (CTA_COUNTERS_ORIG,), (CTA_COUNTERS_REPLY,), (CTA_TIMESTAMP,)}
)


def _tuple_fields(prefix: str, top: int) -> dict[tuple[int, ...], tuple[str, int]]:
    """CTA_TUPLE_ORIG or CTA_TUPLE_REPLY: path to (field, bytes)."""
    ip = {1: ("src4", 4), 2: ("dst4", 4), 3: ("src6", 16), 4: ("dst6", 16)}
    proto = {
        1: ("proto", 1), 2: ("sport", 2), 3: ("dport", 2), 4: ("icmp_id", 2), 5: ("icmp_type", 1), 6: ("icmp_code", 1),
        7: ("icmp_id", 2), 8: ("icmp_type", 1), 9: ("icmp_code", 1),
    }  # fmt: skip
    inner: dict[tuple[int, ...], tuple[str, int]] = {(CTA_TUPLE_IP, kind): field for kind, field in ip.items()}
    inner |= {(CTA_TUPLE_PROTO, kind): field for kind, field in proto.items()}
    inner[(3,)] = ("zone", 2)
    return {(top, *path): (prefix + name, size) for path, (name, size) in inner.items()}


# Every attribute that is kept: path to (field, bytes). All payloads are big-endian.
FIELDS: dict[tuple[int, ...], tuple[str, int]] = {
    **_tuple_fields("", CTA_TUPLE_ORIG),
    **_tuple_fields("reply_", CTA_TUPLE_REPLY),
    (CTA_STATUS,): ("status", 4),
    (CTA_PROTOINFO, 1, 1): ("tcp_state", 1),
    (CTA_MARK,): ("mark", 4),
    (CTA_COUNTERS_ORIG, 1): ("packets", 8),
    (CTA_COUNTERS_ORIG, 2): ("bytes", 8),
    (CTA_COUNTERS_REPLY, 1): ("reply_packets", 8),
    (CTA_COUNTERS_REPLY, 2): ("reply_bytes", 8),
    (CTA_ID,): ("id", 4),
    (CTA_ZONE,): ("zone", 2),
    (CTA_TIMESTAMP, 1): ("start", 8),
    (CTA_TIMESTAMP, 2): ("stop", 8),
}

# Attributes that are known and not kept (timeout, use, helper, NAT of old kernels, labels, paddings, …).
IGNORED = frozenset({(k,) for k in (5, 6, 7, 11, 13, 14, 15, 16, 17, 19, 21, 22, 23, 24, 25, 26, 27)}) | frozenset(
    {(CTA_PROTOINFO, k) for k in (2, 3)}
    | {(CTA_PROTOINFO, 1, k) for k in (2, 3, 4, 5)}
    | {(top, 5) for top in (CTA_COUNTERS_ORIG, CTA_COUNTERS_REPLY)}
    | {(CTA_TIMESTAMP, 3)}
)


@dataclass(frozen=True, slots=True)
class Record:
    """One conntrack message.

    kind      NEW, UPDATE or DESTROY (a dump's messages say UPDATE: the kernel uses the same type)
    family    4 or 6
    fields    field name to number, for what the message carries; names as in FIELDS, addresses `src`, `dst`
    unknown   how many attributes were passed over
    """

    kind: int
    family: int
    fields: dict[str, int]
    unknown: int


def walk(
    data: bytes, offset: int, end: int, path: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[int, ...], int, int, int]]:
    """(path, header offset, payload offset, payload length) of every attribute, nests before what they hold."""
    for kind, payload, length in netlink.attributes(data, offset, end):
        here = (*path, kind)
        yield here, payload - 4, payload, length
        if here in NESTS:
            yield from walk(data, payload, payload + length, here)


def event_kind(message_type: int, flags: int) -> int | None:
    """NEW, UPDATE or DESTROY; None for a message that is not about a flow. NEW and UPDATE differ by flags alone."""
    if message_type == MESSAGE_DELETE:
        return DESTROY
    if message_type == MESSAGE_NEW:
        return NEW if flags & (netlink.NLM_F_CREATE | netlink.NLM_F_EXCL) else UPDATE
    return None


def decode_message(message: bytes) -> Record:
    """One whole netlink message (header included) as a record.

    Raises DecodeError for anything that is not a conntrack message with an original tuple.
    """
    if len(message) < netlink.BODY:
        raise DecodeError("message cut short", len(message))
    length, kind, flags, _, _ = netlink.HEADER.unpack_from(message)
    if length != len(message):
        raise DecodeError(f"message of {len(message)} bytes says {length}", 0)
    event = event_kind(kind, flags)
    if event is None:
        raise DecodeError(f"message type {kind:#x}", 4)
    family = FAMILIES.get(message[netlink.HEADER.size])
    if family is None:
        raise DecodeError(f"address family {message[netlink.HEADER.size]}", netlink.HEADER.size)
    fields, unknown = _fields(message)
    return Record(event, family, _named_addresses(fields, family), unknown)


def _fields(message: bytes) -> tuple[dict[str, int], int]:
    fields: dict[str, int] = {}
    unknown = 0
    for path, _, payload, length in walk(message, netlink.BODY, len(message)):
        field = FIELDS.get(path)
        if field is None:
            unknown += path not in NESTS and path not in IGNORED
            continue
        name, size = field
        if length < size:
            raise DecodeError(f"{name} of {length} bytes", payload)
        fields[name] = int.from_bytes(message[payload : payload + size], "big")
    return fields, unknown


def _named_addresses(fields: dict[str, int], family: int) -> dict[str, int]:
    """`src4` or `src6` becomes `src`: the message's family decides which one counts."""
    for prefix in ("", "reply_"):
        for end in ("src", "dst"):
            v4, v6 = fields.pop(f"{prefix}{end}4", None), fields.pop(f"{prefix}{end}6", None)
            address = v4 if family == 4 else v6
            if address is not None:
                fields[prefix + end] = address
    for name in ("src", "dst", "proto"):
        if name not in fields:
            raise DecodeError(f"no {name} in the original tuple", netlink.BODY)
    return fields


def tuple_attribute(kind: int, family: int, src: bytes, dst: bytes, proto: int, sport: int, dport: int) -> bytes:
    """CTA_TUPLE_ORIG or CTA_TUPLE_REPLY of a protocol with ports, to ask for one entry or to delete it."""
    first = 1 if family == 4 else 3
    ports = (netlink.attribute(2, struct.pack("!H", sport)), netlink.attribute(3, struct.pack("!H", dport)))
    return netlink.nested(
        kind,
        netlink.nested(CTA_TUPLE_IP, netlink.attribute(first, src), netlink.attribute(first + 1, dst)),
        netlink.nested(CTA_TUPLE_PROTO, netlink.attribute(1, bytes([proto])), *ports),
    )


def dump_request(sequence: int, family: int = 0) -> bytes:
    """Asks for the whole table (both IP versions with family 0)."""
    return netlink.request(MESSAGE_GET, netlink.NLM_F_DUMP, sequence, family)
