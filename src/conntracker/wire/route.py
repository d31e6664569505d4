"""Routes and addresses, as far as they say which addresses are the host's own (rtnetlink(7)).

Sources: struct rtmsg, RTN_* and RTA_* in linux/rtnetlink.h, struct ifaddrmsg and IFA_* in linux/if_addr.h.
"""

from __future__ import annotations

import struct
import sys
from typing import NamedTuple

from conntracker.model import DecodeError
from conntracker.wire import netlink

__all__ = ["RTNLGRP_IPV4_ROUTE", "RTNLGRP_IPV6_ROUTE", "Part", "Prefix", "decode", "dump_requests"]

RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE = 7, 11

_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_RT_TABLE_LOCAL = 255
_RTN_LOCAL, _RTN_BROADCAST, _RTN_ANYCAST = 2, 3, 4
_OURS = (_RTN_LOCAL, _RTN_BROADCAST, _RTN_ANYCAST)
_RTA_DST = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NLM_F_DUMP_INTR = 0x10
# family, bits of the destination, of the source, type of service, table, protocol, scope, type, flags
_RTMSG = struct.Struct("=BBBBBBBBI")
_IFADDRMSG = struct.Struct("=BBBBI")  # family, bits, flags, scope, interface
_FAMILIES = {2: (4, 32), 10: (6, 128)}  # AF_INET, AF_INET6: IP version, bits of an address


class Prefix(NamedTuple):
    """Addresses that begin alike: family 4 or 6, the first of them as a number, how many bits they share."""

    family: int
    address: int
    length: int


class Part(NamedTuple):
    """What one datagram says.

    prefixes      that are the host's own: in a dump those of table local and of interfaces
    changed       whether it says that a route to the host itself, in any table, was added or taken away
    done          whether it is the last one of a dump
    interrupted   whether something changed during the dump, so that it may lack something
    error         the kernel's error number; 0 for none
    """

    prefixes: list[Prefix]
    changed: bool = False
    done: bool = False
    interrupted: bool = False
    error: int = 0


def dump_requests(sequence: int) -> list[bytes]:
    """What asks for all of it, one dump after the other; numbered from `sequence` on.

    Routes of table local (the kernel sends no others if NETLINK_GET_STRICT_CHK is set), and the addresses of
    interfaces, as those in a VRF have their routes in another table. Other tables are left out: there, 'local default'
    makes a transparent proxy, not an address.
    """
    routes = [_RTMSG.pack(family, 0, 0, 0, _RT_TABLE_LOCAL, 0, 0, 0, 0) for family in _FAMILIES]
    addresses = [_IFADDRMSG.pack(family, 0, 0, 0, 0) for family in _FAMILIES]
    bodies = [(_RTM_GETROUTE, body) for body in routes] + [(_RTM_GETADDR, body) for body in addresses]
    flags = netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP
    return [
        netlink.HEADER.pack(netlink.HEADER.size + len(body), kind, flags, sequence + i, 0) + body
        for i, (kind, body) in enumerate(bodies)
    ]


def decode(datagram: bytes, sequence: int | None = None) -> Part:
    """A datagram of a dump, or of notifications where `sequence` is None; messages of other dumps are passed over.

    Raises DecodeError where a length is impossible.
    """
    prefixes: list[Prefix] = []
    changed = done = interrupted = False
    error = 0
    for message in netlink.messages(datagram):
        if sequence is not None and message.sequence != sequence:
            continue
        interrupted |= bool(message.flags & _NLM_F_DUMP_INTR)
        if message.type in (netlink.NLMSG_DONE, netlink.NLMSG_ERROR):
            done = True
            error = -int.from_bytes(message.payload[:4], sys.byteorder, signed=True)
        elif message.type in (_RTM_NEWROUTE, _RTM_DELROUTE):
            prefix, local = _route(message.payload)
            changed |= prefix is not None
            if prefix is not None and local and message.type == _RTM_NEWROUTE:
                prefixes.append(prefix)
        elif message.type == _RTM_NEWADDR:
            prefix = _address(message.payload)
            if prefix is not None:
                prefixes.append(prefix)
    return Part(prefixes, changed, done, interrupted, error)


def _route(payload: bytes) -> tuple[Prefix | None, bool]:
    """A route to the host itself, None for others; whether it is in table local (RTA_TABLE only says larger ones)."""
    if len(payload) < _RTMSG.size:
        raise DecodeError("route cut short", len(payload))
    family, length, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(payload)
    if kind not in _OURS or family not in _FAMILIES:
        return None, False
    version, bits = _FAMILIES[family]
    if length > bits:
        raise DecodeError(f"route to {length} bits", 1)
    found = _find(payload, _RTMSG.size, (_RTA_DST,), bits)
    address = found.get(_RTA_DST, 0)
    return Prefix(version, address >> (bits - length) << (bits - length), length), table == _RT_TABLE_LOCAL


def _address(payload: bytes) -> Prefix | None:
    if len(payload) < _IFADDRMSG.size:
        raise DecodeError("address cut short", len(payload))
    family = payload[0]
    if family not in _FAMILIES:
        return None
    version, bits = _FAMILIES[family]
    found = _find(payload, _IFADDRMSG.size, (_IFA_ADDRESS, _IFA_LOCAL), bits)
    own = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))  # with a peer, IFA_ADDRESS is the peer's
    return None if own is None else Prefix(version, own, bits)


def _find(payload: bytes, start: int, kinds: tuple[int, ...], bits: int) -> dict[int, int]:
    """Attributes that are addresses, as numbers. Raises DecodeError where one has another length than `bits`."""
    found = {}
    for kind, offset, length in netlink.attributes(payload, start, len(payload)):
        if kind in kinds:
            if length * 8 != bits:
                raise DecodeError(f"address of {length} bytes", offset)
            found[kind] = int.from_bytes(payload[offset : offset + length])
    return found
