"""What the types and codes of ICMP and ICMPv6 are called (RFC 792, RFC 1812, RFC 4443, RFC 4861)."""

from __future__ import annotations

__all__ = ["icmp_name"]

_ICMP: dict[tuple[int, int | None], str] = {
    (0, None): "echo reply",
    (3, 0): "network unreachable", (3, 1): "host unreachable", (3, 2): "protocol unreachable",
    (3, 3): "port unreachable", (3, 4): "fragmentation needed", (3, 5): "source route failed",
    (3, 6): "network unknown", (3, 7): "host unknown", (3, 9): "network prohibited", (3, 10): "host prohibited",
    (3, 11): "network unreachable for this type of service", (3, 12): "host unreachable for this type of service",
    (3, 13): "administratively prohibited", (3, None): "destination unreachable",
    (4, None): "source quench", (5, None): "redirect", (8, None): "echo request",
    (9, None): "router advertisement", (10, None): "router solicitation",
    (11, 0): "time to live exceeded", (11, 1): "fragment reassembly time exceeded", (11, None): "time exceeded",
    (12, None): "parameter problem", (13, None): "timestamp request", (14, None): "timestamp reply",
    (17, None): "address mask request", (18, None): "address mask reply",
}  # fmt: skip
_ICMPV6: dict[tuple[int, int | None], str] = {
    (1, 0): "no route to the destination", (1, 1): "administratively prohibited", (1, 2): "beyond the source's scope",
    (1, 3): "address unreachable", (1, 4): "port unreachable", (1, 5): "source address failed policy",
    (1, 6): "route rejects", (1, None): "destination unreachable",
    (2, None): "packet too big", (3, 0): "hop limit exceeded", (3, 1): "fragment reassembly time exceeded",
    (3, None): "time exceeded", (4, None): "parameter problem", (128, None): "echo request", (129, None): "echo reply",
    (130, None): "multicast listener query", (131, None): "multicast listener report",
    (132, None): "multicast listener done", (133, None): "router solicitation", (134, None): "router advertisement",
    (135, None): "neighbour solicitation", (136, None): "neighbour advertisement", (137, None): "redirect",
    (143, None): "multicast listener report",
}  # fmt: skip
_NAMES = {1: _ICMP, 58: _ICMPV6}


def icmp_name(proto: int, kind: int, code: int | None) -> str | None:
    """The name of a type and code of ICMP (protocol 1) or ICMPv6 (58), of the type alone, or None if it has none."""
    names = _NAMES.get(proto, {})
    return names.get((kind, code)) or names.get((kind, None))
