"""What the host knows besides its rules, of the calling thread's network namespace: its addresses and its routes."""

from __future__ import annotations

import errno
import os
import socket

from conntracker.rules.fields import ROUTE_TYPES
from conntracker.rules.host import Host, Route
from conntracker.rules.intervals import normal
from conntracker.wire import fib

__all__ = ["read_host"]

_NETLINK_ROUTE = 0
_MAIN, _LOCAL = 254, 255  # linux/rtnetlink.h, enum rt_class_t
_UNICAST, _OWN, _BROADCAST = (ROUTE_TYPES.index(name) for name in ("unicast", "local", "broadcast"))
_DATAGRAM = 1 << 16
_TIMEOUT = 5.0  # seconds; the kernel answers from memory


def read_host() -> Host:
    """Addresses, and routes of the main table. Raises OSError.

    Policy routing is not looked at: where `ip rule` has more than the three rules of the kernel's own, the routes are
    left out, as they may not be those that a packet would take.
    """
    routes, addresses = _dump()
    names = dict(socket.if_nameindex())
    local = {
        version: normal((r.low, r.high) for r in routes if (r.version, r.type) == (version, _OWN)) for version in (4, 6)
    }
    broadcast = {
        version: normal(
            (r.low, r.high) for r in routes if (r.version, r.type, r.table) == (version, _BROADCAST, _LOCAL)
        )
        for version in (4, 6)
    }
    main = {
        version: tuple(
            Route(r.low, r.high, names[r.interface], r.metric)
            for r in routes
            if (r.version, r.type, r.table) == (version, _UNICAST, _MAIN) and r.interface in names
        )
        for version in (4, 6)
    }
    primary: dict[tuple[int, str], int] = {}
    for one in addresses:
        if one.interface in names and one.scope == 0 and not one.secondary:
            primary.setdefault((one.version, names[one.interface]), one.address)
    plain = _plain_routing()
    return Host(local, broadcast, main if plain else None, primary, by_mark=not plain, interfaces=tuple(names.values()))


def _dump() -> tuple[list[fib.Route], list[fib.Address]]:
    routes: list[fib.Route] = []
    addresses: list[fib.Address] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE) as sock:
        sock.settimeout(_TIMEOUT)
        for request in fib.dump_requests(1):
            sock.send(request)
            done = False
            while not done:
                part = fib.decode(sock.recv(_DATAGRAM))
                if part.error not in (0, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                    raise OSError(part.error, f"reading the routes: {os.strerror(part.error)}")
                routes += part.routes
                addresses += part.addresses
                done = part.done
    return routes, addresses


def _plain_routing() -> bool:
    """Whether policy routing has no rules but the kernel's own three: local, main, default (ip-rule(8))."""
    return all(len(_rules(family)) <= most for family, most in ((socket.AF_INET, 3), (socket.AF_INET6, 2)))


def _rules(family: int) -> list[bytes]:
    from conntracker.wire import netlink

    get_rule, new_rule = 34, 32  # linux/rtnetlink.h (RTM_GETRULE, RTM_NEWRULE)
    found: list[bytes] = []
    body = bytes([family]) + bytes(11)  # struct fib_rule_hdr, linux/fib_rules.h
    request = netlink.HEADER.pack(
        netlink.HEADER.size + len(body), get_rule, netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP, 1, 0
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE) as sock:
        sock.settimeout(_TIMEOUT)
        sock.send(request + body)
        while True:
            for message in netlink.messages(sock.recv(_DATAGRAM)):
                if message.type in (netlink.NLMSG_DONE, netlink.NLMSG_ERROR):
                    return found
                if message.type == new_rule:
                    found.append(message.payload)
