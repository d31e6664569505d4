"""Trace messages of nf_tables: NFT_MSG_TRACE of NFNLGRP_NFTRACE (linux/netfilter/nf_tables.h, nf_tables_trace.c).

One message for each rule that matched, each end of a chain and each policy that was applied. Headers and interfaces
come only with the first message of each base chain, conntrack's id only there and only from Linux 6.16 on.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from conntracker.model import DecodeError
from conntracker.wire.netlink import attributes

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


class Place(NamedTuple):
    """Where in the rules a message was sent, and what happened there.

    family    of the table, as nft names it
    pf        the protocol family of the packet's hook: 2 IPv4, 10 IPv6, 7 bridge, 5 netdev
    type      a value of TYPES
    handle    of the rule; None for a policy and at the end of a chain
    verdict   a value of VERDICTS; of a policy, accept or drop
    target    the chain of a jump or goto
    """

    family: str
    pf: int
    table: str
    chain: str
    type: str
    handle: int | None
    verdict: str | None
    target: str | None


class TraceMessage(NamedTuple):
    """One message.

    id        the kernel's number of the packet, used again soon
    place     see Place
    network, transport   the first bytes of the headers (at most 40 and 20), empty if they were not sent
    iif, oif  interface numbers, 0 if not sent
    ct_id     CTA_ID of the flow, None if not sent
    """

    id: int
    place: Place
    network: bytes = b""
    transport: bytes = b""
    iif: int = 0
    oif: int = 0
    ct_id: int | None = None


_attribute = struct.Struct("=HH").unpack_from
_u32 = struct.Struct("!I").unpack_from
_i32 = struct.Struct("!i").unpack_from

# What a message says of the packet, behind what it says of the place (nf_tables_trace.c).
_OF_PACKET = frozenset((7, NETWORK_HEADER, TRANSPORT_HEADER, IIF, 11, OIF, 13, 14, CT_ID, 19, 20, 21))
_SIZES = {RULE_HANDLE: 8, TYPE: 4, ID: 4, IIF: 4, OIF: 4, NFPROTO: 4, POLICY: 4, CT_ID: 4}


def decode(body: bytes) -> TraceMessage:
    """The trace message of a netlink message's payload (nfgenmsg and attributes).

    Numbers are big-endian. Raises DecodeError for anything that is no whole trace message; unknown attributes are
    skipped.
    """
    found = {kind: body[start : start + length] for kind, start, length in attributes(body, 4, len(body))}
    for kind, size in _SIZES.items():
        if kind in found and len(found[kind]) != size:
            raise DecodeError(f"attribute {kind} of {len(found[kind])} bytes", 0)
    if ID not in found:
        raise DecodeError("trace message without a packet", 0)
    ct_id = found.get(CT_ID)
    return TraceMessage(
        _number(found[ID]), _place(body, found), found.get(NETWORK_HEADER, b""), found.get(TRANSPORT_HEADER, b""),
        _number(found.get(IIF, b"")), _number(found.get(OIF, b"")), None if ct_id is None else _number(ct_id),
    )  # fmt: skip


def _place(body: bytes, found: dict[int, bytes]) -> Place:
    trace_type, family = TYPES.get(_number(found.get(TYPE, b""))), FAMILIES.get(body[0])
    if trace_type is None or family is None or TABLE not in found or CHAIN not in found:
        raise DecodeError("trace message without its place", 0)
    verdict, target = _verdict(found.get(VERDICT, b""))
    if trace_type == "policy" and POLICY in found:
        verdict = VERDICTS.get(_number(found[POLICY]))
    handle = _number(found[RULE_HANDLE]) if RULE_HANDLE in found else None
    return Place(
        family, _number(found.get(NFPROTO, b"")), _text(found[TABLE]), _text(found[CHAIN]), trace_type, handle, verdict,
        target,
    )  # fmt: skip


class TraceDecoder:
    """`decode` for many: packets are many and places are few. Equal places are the same object."""

    _KEPT = 1 << 16

    def __init__(self) -> None:
        self._known: dict[bytes, Place] = {}

    def decode(self, body: bytes) -> TraceMessage:
        """As the function `decode`."""
        # The id stands third: nfgenmsg 4, NFPROTO 8, TYPE 8, header of ID 4, ID 4.
        if body[20:24] != _ID_HEADER:
            return decode(body)
        end, at = len(body), 28
        while at + 4 <= end:
            length, kind = _attribute(body, at)
            if kind in _OF_PACKET or length < 4:
                break
            at += (length + 3) & ~3
        key = body[:20] + body[28:at]
        place = self._known.get(key)
        if place is None:
            place = self._learn(key, body)
        packet = _u32(body, 24)[0]
        return TraceMessage(packet, place) if at >= end else _of_packet(packet, place, body, at, end)

    def _learn(self, key: bytes, body: bytes) -> Place:
        place = decode(body).place
        if len(self._known) >= self._KEPT:
            self._known.clear()
        # By its own bytes alone: what else this message has may be of another place.
        if decode(key[:20] + _ID_HEADER + bytes(4) + key[20:]).place == place:
            self._known[key] = place
        return place


_ID_HEADER = struct.pack("=HH", 8, ID)


def _of_packet(packet: int, place: Place, body: bytes, at: int, end: int) -> TraceMessage:
    """The rest of a message, from its first attribute on that is about the packet."""
    network = transport = b""
    iif = oif = 0
    ct_id: int | None = None
    while at + 4 <= end:
        length, kind = _attribute(body, at)
        if length < 4 or at + length > end:
            return decode(body)
        if kind == NETWORK_HEADER:
            network = body[at + 4 : at + length]
        elif kind == TRANSPORT_HEADER:
            transport = body[at + 4 : at + length]
        elif kind in (IIF, OIF, CT_ID):
            if length != 8:
                return decode(body)
            number: int = _u32(body, at + 4)[0]
            if kind == IIF:
                iif = number
            elif kind == OIF:
                oif = number
            else:
                ct_id = number
        elif kind not in _OF_PACKET:
            return decode(body)  # in an order that no kernel uses
        at += (length + 3) & ~3
    return TraceMessage(packet, place, network, transport, iif, oif, ct_id)


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big")


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode("utf-8", "surrogateescape")


def _verdict(nested: bytes) -> tuple[str | None, str | None]:
    """(verdict, target) of a nested NFTA_TRACE_VERDICT. A queue's number and a drop's errno are in the upper half."""
    verdict = target = None
    for kind, start, length in attributes(nested, 0, len(nested)):
        if kind == _VERDICT_CODE:
            if length != 4:
                raise DecodeError("verdict of a wrong size", start)
            code: int = _i32(nested, start)[0]
            named = VERDICTS.get(code)
            verdict = named if named is not None else VERDICTS.get(code & 0xFF)
        elif kind == _VERDICT_CHAIN:
            target = _text(nested[start : start + length])
    return verdict, target
