"""Packets as rules see them: a dict of fields, and what follows from those that are known.

A missing key is a field whose value is not known; None is a field that the packet does not have. `iif` and `oif` are
names, "" for none. Beside the fields there is `first`, 0 for a packet that is not the first of its flow: without it,
packets in state new are, and those in state related unless they are ICMP errors.
"""

from __future__ import annotations

from collections.abc import Mapping

from conntracker.rules.fields import FIELDS, ROUTE_TYPES
from conntracker.rules.host import Host, always_of_type
from conntracker.rules.intervals import Intervals, contains, normal

__all__ = ["NEXT_HEADERS", "UNTRACKED_ICMPV6", "Packet", "completed", "with_address_types", "without_absent"]

Packet = dict[str, int | str | None]

# Extension headers of IPv6 (ipv6_ext_hdr, net/ipv6/exthdrs_core.c): behind one of these, the protocol is another.
NEXT_HEADERS: Intervals = normal([(0, 0), (43, 44), (51, 51), (59, 60)])

# Neighbour, multicast listener and multicast router discovery, which connection tracking leaves alone (noct_valid_new,
# net/netfilter/nf_conntrack_proto_icmpv6.c).
UNTRACKED_ICMPV6: Intervals = normal([(130, 136), (143, 143), (151, 152)])

_LINK_LOCAL = 0x3FA  # the first ten bits of fe80::/10
_LIMITED_BROADCAST = 0xFFFFFFFF

# (field, what it requires) of the fields that not every packet has.
_REQUIRING = [(name, field.requires) for name, field in FIELDS.items() if field.requires]


def completed(given: Mapping[str, int | str | None], host: Host | None = None) -> Packet:
    """The packet with all that follows from what is given. Raises ValueError without a family."""
    packet: Packet = dict(given)
    if packet.get("family") not in (4, 6):
        raise ValueError("a packet has a family: 4 or 6")
    if packet["family"] == 6 and "nexthdr" not in packet and packet.get("protocol") is not None:
        packet["nexthdr"] = packet["protocol"]
    with_address_types(packet, host)
    if host is not None and "reverse_path" not in packet and (found := _reverse_path(packet, host)) is not None:
        packet["reverse_path"] = int(found)
    return without_absent(packet)


def _reverse_path(packet: Packet, host: Host) -> bool | None:
    """Whether the best route back to the source leads out of the interface it came by, as nft_fib_ipv4.c and
    xt_rpfilter.c ask; None where that is not known.
    """
    version = 4 if packet["family"] == 4 else 6
    source, interface = packet.get("saddr"), packet.get("iif")
    if host.routes is None or not isinstance(source, int) or not isinstance(interface, str):
        return None
    if interface == "lo":
        return True
    if version == 6 and source >> 118 == _LINK_LOCAL:  # looked for on that interface alone
        return any(one.interface == interface and one.low <= source <= one.high for one in host.routes.get(6, ()))
    if version == 4 and source >> 24 == 0:  # of hosts that have no address yet
        return packet.get("daddr") == _LIMITED_BROADCAST or None
    if contains(host.local.get(version, ()), source):
        return False
    return host.out_interface(version, source) == interface


def without_absent(packet: Packet) -> Packet:
    """Makes the fields None that the packet cannot have, by what is known of the others."""
    for name, requires in _REQUIRING:
        for other, values in requires:
            if other not in packet:
                continue
            value = packet[other]
            if value is None or not contains(values, int(value)):
                packet[name] = None
                break
    return packet


def with_address_types(packet: Packet, host: Host | None) -> None:
    """Sets saddr_type and daddr_type, as far as they follow from the addresses and are not given."""
    version = 4 if packet["family"] == 4 else 6
    for address, kind in (("saddr", "saddr_type"), ("daddr", "daddr_type")):
        value = packet.get(address)
        if kind in packet or not isinstance(value, int):
            continue
        if host is not None:
            packet[kind] = host.address_type(version, value)
        elif (name := always_of_type(version, value)) is not None:
            packet[kind] = ROUTE_TYPES.index(name)
