"""Which packets the kernel drops between two hooks, or before the first, without asking any rule."""

from __future__ import annotations

from conntracker.rules.fields import PACKET_TYPES, ROUTE_TYPES
from conntracker.rules.intervals import Intervals, contains
from conntracker.rules.packets import Packet

__all__ = ["HERE", "JOINED", "stopped"]

_HOST = PACKET_TYPES.index("host")
_OTHER_HOST = PACKET_TYPES.index("otherhost")
_MULTICAST = ROUTE_TYPES.index("multicast")
HERE = frozenset(ROUTE_TYPES.index(name) for name in ("local", "broadcast", "anycast", "multicast"))

# Multicast groups that every host is a member of (224.0.0.1, ff01::1, ff02::1; with forwarding ff02::2 too).
JOINED = {4: frozenset((0xE0000001,)), 6: frozenset((0xFF02 << 112 | 1, 0xFF02 << 112 | 2))}

_LOOPBACK6, _MULTICAST6, _LINK_LOCAL6 = 1, 0xFF, 0xFE80 >> 6
_ORDINARY = 0x08080808  # in place of one that NAT chose in a range
_MARTIAN_SOURCES: Intervals = ((0, 0), (0xE0000000, 0xEFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF))


def stopped(packet: Packet, later: Packet, hops: int | None = None) -> tuple[str, str] | None:
    """(the first hook that it does not come to, why), if it is dropped on its way; None if it is not.

    packet  as it was sent
    later   as it is behind prerouting: NAT may have given it another destination
    hops    its TTL there; None where it is as it was sent
    """
    if packet["way"] == "output":
        return None
    if packet["packet_type"] == _OTHER_HOST:
        return "prerouting", "for another host's link address"  # ip_rcv_core, ip6_rcv_core
    if packet["family"] == 6 and (reason := _refused_by_ipv6(packet)):
        return "prerouting", reason
    source, destination = int(packet["saddr"] or 0), int(later.get("daddr", _ORDINARY) or 0)
    reason = _martian(packet, source, destination) if packet["family"] == 4 else None
    forwarded = packet["way"] == "forward" and later.get("daddr_type") not in HERE
    if (
        reason is None
        and later.get("daddr_type") == _MULTICAST
        and destination not in JOINED[int(packet["family"] or 4)]
    ):
        reason = "not a member of the multicast group"
    if reason is None and forwarded:
        reason = _not_forwarded(packet, source, int(packet["ttl"] or 0) if hops is None else hops)
    return None if reason is None else ("forward" if forwarded else "input", reason)


def _refused_by_ipv6(packet: Packet) -> str | None:
    """ip6_rcv_core, net/ipv6/ip6_input.c."""
    source, destination = int(packet["saddr"] or 0), int(packet["daddr"] or 0)
    if _LOOPBACK6 in (source, destination):
        return "loopback address from outside"
    if source >> 120 == _MULTICAST6:
        return "multicast source"
    if destination >> 120 == _MULTICAST6 and destination >> 112 & 0xF in (0, 1):
        return "multicast of no more than the interface"
    return None


def _martian(packet: Packet, source: int, destination: int) -> str | None:
    """ip_route_input_slow, net/ipv4/route.c; loopback addresses are let through (route_localnet)."""
    if contains(_MARTIAN_SOURCES, source):
        return "martian source"
    return None if destination else "martian destination"


def _not_forwarded(packet: Packet, source: int, hops: int) -> str | None:
    """ip_forward, net/ipv4/ip_forward.c; ip6_forward, net/ipv6/ip6_output.c."""
    if packet["packet_type"] != _HOST:
        return "not for this host's link address: never forwarded"
    if hops <= 1:
        return "hop limit"
    if packet["family"] == 6:
        if source == 0:
            return "unspecified source"
        if source >> 118 == _LINK_LOCAL6 and packet["iif"] != packet["oif"]:
            return "link-local source"
    return None
