"""Trace messages of nf_tables: NFT_MSG_TRACE of NFNLGRP_NFTRACE (linux/netfilter/nf_tables.h, nf_tables_trace.c).

One message for each rule that matched, each end of a chain and each policy that was applied. Headers and interfaces
come only with the first message of each base chain, conntrack's id only there and only from Linux 6.16 on.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from conntracker.model import DecodeError
from conntracker.wire.netlink import BODY, attributes

NFNL_SUBSYS_NFTABLES = 10
MESSAGE_TRACE = NFNL_SUBSYS_NFTABLES << 8 | 17  # NFT_MSG_TRACE
MESSAGE_NEWGEN = NFNL_SUBSYS_NFTABLES << 8 | 15
# NFT_MSG_NEWTABLE, DELTABLE, NEWCHAIN, DELCHAIN, NEWRULE, DELRULE: what a rule's text or place can change with.
CHANGES = frozenset(NFNL_SUBSYS_NFTABLES << 8 | number for number in (0, 2, 3, 5, 6, 8))
MADE_ANEW = frozenset(NFNL_SUBSYS_NFTABLES << 8 | number for number in (0, 2))  # NFT_MSG_NEWTABLE, NFT_MSG_DELTABLE

# enum nft_trace_attributes
TABLE, CHAIN, RULE_HANDLE, TYPE, VERDICT, ID, NETWORK_HEADER, TRANSPORT_HEADER = 1, 2, 3, 4, 5, 6, 8, 9
IIF, OIF, NFPROTO, POLICY, CT_ID = 10, 12, 15, 16, 18
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2

TYPES = {1: "policy", 2: "return", 3: "rule"}  # enum nft_trace_types
# linux/netfilter.h (NF_DROP and on) and enum nft_verdicts
VERDICTS = {
    0: "drop", 1: "accept", 2: "stolen", 3: "queue", 4: "repeat", 5: "accept",
    -1: "continue", -2: "continue", -3: "jump", -4: "goto", -5: "return",
}  # fmt: skip
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}  # NFPROTO_*


class TraceMessage(NamedTuple):
    """One message.

    id        the kernel's number of the packet, used again soon
    family    of the table, as nft names it
    pf        the protocol family of the packet's hook: 2 IPv4, 10 IPv6, 7 bridge, 5 netdev
    type      a value of TYPES
    handle    of the rule; None for a policy and at the end of a chain
    verdict   a value of VERDICTS; of a policy, accept or drop
    target    the chain of a jump or goto
    network, transport   the first bytes of the headers (at most 40 and 20), empty if they were not sent
    iif, oif  interface numbers, 0 if not sent
    ct_id     CTA_ID of the flow, None if not sent
    """

    id: int
    family: str
    pf: int
    table: str
    chain: str
    type: str
    handle: int | None
    verdict: str | None
    target: str | None
    network: bytes = b""
    transport: bytes = b""
    iif: int = 0
    oif: int = 0
    ct_id: int | None = None


_u32 = struct.Struct("!I").unpack_from
_i32 = struct.Struct("!i").unpack_from
_u64 = struct.Struct("!Q").unpack_from


def decode(body: bytes, kind: int = MESSAGE_TRACE) -> TraceMessage:
    """The trace message of a netlink message's payload (nfgenmsg and attributes).

    Numbers are big-endian. Raises DecodeError for anything that is no whole trace message; unknown attributes are
    skipped.
    """
    if kind != MESSAGE_TRACE or len(body) < BODY - 16:
        raise DecodeError("no nf_tables trace message", 0)
    found: dict[int, tuple[int, int]] = {}
    for attribute, start, length in attributes(body, 4, len(body)):
        found[attribute] = start, length
    numbers = {name: _number(body, found, name) for name in (ID, TYPE, NFPROTO, IIF, OIF, POLICY, CT_ID)}
    trace_type, number = TYPES.get(numbers[TYPE] or 0), numbers[ID]
    family = FAMILIES.get(body[0])
    table, chain = _text(body, found.get(TABLE)), _text(body, found.get(CHAIN))
    if trace_type is None or family is None or number is None or table is None or chain is None:
        raise DecodeError("trace message without its place", 0)
    verdict, target = _verdict(body, found.get(VERDICT))
    if trace_type == "policy":
        policy = numbers[POLICY]
        verdict = verdict if policy is None else VERDICTS.get(policy)
    handle = found.get(RULE_HANDLE)
    if handle is not None and handle[1] != 8:
        raise DecodeError("handle of a wrong size", handle[0])
    return TraceMessage(
        number, family, numbers[NFPROTO] or 0, table, chain, trace_type,
        None if handle is None else _u64(body, handle[0])[0], verdict, target,
        _bytes(body, found.get(NETWORK_HEADER)), _bytes(body, found.get(TRANSPORT_HEADER)),
        numbers[IIF] or 0, numbers[OIF] or 0, numbers[CT_ID],
    )  # fmt: skip


class TraceDecoder:
    """`decode` for many: messages without headers differ in nothing but the packet's id, and are decoded once."""

    _KEPT = 1 << 16  # distinct messages; rulesets have fewer rules that packets meet

    def __init__(self) -> None:
        self._known: dict[bytes, TraceMessage] = {}

    def decode(self, body: bytes) -> TraceMessage:
        """As the function `decode`."""
        # nf_tables_trace.c puts the id third: nfgenmsg 4, NFPROTO 8, TYPE 8, header of ID 4, ID 4.
        if body[20:24] != _ID_HEADER:
            return decode(body)
        key = body[:20] + body[28:]
        if (known := self._known.get(key)) is not None:
            return known._replace(id=_u32(body, 24)[0])
        message = decode(body)
        if not message.network:
            if len(self._known) >= self._KEPT:
                self._known.clear()
            self._known[key] = message
        return message


_ID_HEADER = struct.pack("=HH", 8, ID)


def _number(body: bytes, found: dict[int, tuple[int, int]], name: int) -> int | None:
    place = found.get(name)
    if place is None:
        return None
    if place[1] != 4:
        raise DecodeError("number of a wrong size", place[0])
    number: int = _u32(body, place[0])[0]
    return number


def _bytes(body: bytes, place: tuple[int, int] | None) -> bytes:
    return b"" if place is None else body[place[0] : place[0] + place[1]]


def _text(body: bytes, place: tuple[int, int] | None) -> str | None:
    return None if place is None else _bytes(body, place).rstrip(b"\0").decode("utf-8", "surrogateescape")


def _verdict(body: bytes, place: tuple[int, int] | None) -> tuple[str | None, str | None]:
    """(verdict, target) of a nested NFTA_TRACE_VERDICT. A queue's number and a drop's errno are in the upper half."""
    if place is None:
        return None, None
    verdict = target = None
    for kind, start, length in attributes(body, place[0], place[0] + place[1]):
        if kind == _VERDICT_CODE:
            if length != 4:
                raise DecodeError("verdict of a wrong size", start)
            code: int = _i32(body, start)[0]
            named = VERDICTS.get(code)
            verdict = named if named is not None else VERDICTS.get(code & 0xFF)
        elif kind == _VERDICT_CHAIN:
            target = _text(body, (start, length))
    return verdict, target
