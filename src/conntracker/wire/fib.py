"""Routes of every table, and addresses of interfaces, whole: where the kernel would send a packet (rtnetlink(7)).

Sources: struct rtmsg, RTN_* and RTA_* in linux/rtnetlink.h, struct ifaddrmsg and IFA_* in linux/if_addr.h.
"""

from __future__ import annotations

import struct
import sys
from typing import NamedTuple

from conntracker.model import DecodeError
from conntracker.wire import netlink

__all__ = ["Address", "Part", "Route", "decode", "dump_requests"]

_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_RTA_DST, _RTA_OIF, _RTA_PRIORITY, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 6, 9, 15
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_SECONDARY = 1
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, destination's bits, source's, tos, table, protocol, scope, type, flags
_IFADDRMSG = struct.Struct("=BBBBI")  # family, bits, flags, scope, interface
_RTNEXTHOP = struct.Struct("=HBBi")  # length, flags, hops, interface
_VERSIONS = {2: (4, 32), 10: (6, 128)}  # AF_INET, AF_INET6: IP version, bits of an address


class Route(NamedTuple):
    """Addresses `low` to `high` of an IP version, and the interface's number (0: none; the first of several)."""

    version: int
    table: int
    type: int  # RTN_*
    low: int
    high: int
    interface: int
    metric: int


class Address(NamedTuple):
    """An address of an interface, and how many bits its network has. `scope` is 0 for one of the whole internet."""

    version: int
    interface: int
    address: int
    length: int
    scope: int
    secondary: bool


class Part(NamedTuple):
    """What one datagram of a dump says; `error` is the kernel's number, 0 for none."""

    routes: list[Route]
    addresses: list[Address]
    done: bool
    error: int


def dump_requests(sequence: int) -> list[bytes]:
    """What asks for routes and addresses of both versions, one dump after the other, numbered from `sequence` on."""
    bodies = [(_RTM_GETROUTE, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)) for family in _VERSIONS]
    bodies += [(_RTM_GETADDR, _IFADDRMSG.pack(family, 0, 0, 0, 0)) for family in _VERSIONS]
    flags = netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP
    return [
        netlink.HEADER.pack(netlink.HEADER.size + len(body), kind, flags, sequence + i, 0) + body
        for i, (kind, body) in enumerate(bodies)
    ]


def decode(datagram: bytes) -> Part:
    """A datagram of a dump. Raises DecodeError where a length is impossible."""
    part = Part([], [], False, 0)
    for message in netlink.messages(datagram):
        if message.type in (netlink.NLMSG_DONE, netlink.NLMSG_ERROR):
            number = -int.from_bytes(message.payload[:4], sys.byteorder, signed=True)
            return part._replace(done=True, error=number)
        if message.type == _RTM_NEWROUTE and (route := _route(message.payload)) is not None:
            part.routes.append(route)
        elif message.type == _RTM_NEWADDR and (address := _address(message.payload)) is not None:
            part.addresses.append(address)
    return part


def _route(payload: bytes) -> Route | None:
    if len(payload) < _RTMSG.size:
        raise DecodeError("route cut short", len(payload))
    family, length, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(payload)
    if family not in _VERSIONS:
        return None
    version, bits = _VERSIONS[family]
    if length > bits:
        raise DecodeError(f"route to {length} bits", 1)
    address = interface = metric = 0
    for name, offset, size in netlink.attributes(payload, _RTMSG.size, len(payload)):
        value = payload[offset : offset + size]
        if name == _RTA_DST:
            if size * 8 != bits:
                raise DecodeError(f"address of {size} bytes", offset)
            address = int.from_bytes(value)
        elif name == _RTA_OIF and size == 4:
            interface = int.from_bytes(value, sys.byteorder)
        elif name == _RTA_PRIORITY and size == 4:
            metric = int.from_bytes(value, sys.byteorder)
        elif name == _RTA_TABLE and size == 4:
            table = int.from_bytes(value, sys.byteorder)
        elif name == _RTA_MULTIPATH and size >= _RTNEXTHOP.size:
            interface = _RTNEXTHOP.unpack_from(value)[3]
    low = address >> (bits - length) << (bits - length)
    return Route(version, table, kind, low, low + (1 << (bits - length)) - 1, interface, metric)


def _address(payload: bytes) -> Address | None:
    if len(payload) < _IFADDRMSG.size:
        raise DecodeError("address cut short", len(payload))
    family, length, flags, scope, interface = _IFADDRMSG.unpack_from(payload)
    if family not in _VERSIONS:
        return None
    version, bits = _VERSIONS[family]
    found: dict[int, int] = {}
    for name, offset, size in netlink.attributes(payload, _IFADDRMSG.size, len(payload)):
        if name in (_IFA_ADDRESS, _IFA_LOCAL):
            if size * 8 != bits:
                raise DecodeError(f"address of {size} bytes", offset)
            found[name] = int.from_bytes(payload[offset : offset + size])
        elif name == _IFA_FLAGS and size == 4:
            flags = int.from_bytes(payload[offset : offset + size], sys.byteorder)
    own = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))
    return None if own is None else Address(version, interface, own, length, scope, bool(flags & _IFA_F_SECONDARY))
