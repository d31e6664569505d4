"""What rules can ask of a packet: the fields, how wide they are, and which packets have them.

A field that a packet lacks (`dport` of ICMP, `skuid` of a forwarded packet) makes each match on it fail, negated or
not, as in the kernel: nf_tables ends the rule (NFT_BREAK), iptables asks for the protocol first. A missing interface is
another matter: it is the name "", and `! -i eth0` matches it.
"""

from __future__ import annotations

from dataclasses import dataclass

from conntracker.rules.intervals import Intervals, normal, single

__all__ = [
    "CT_STATES", "FAMILIES", "FIELDS", "FIELD_NAMES", "NAMES", "PACKET_TYPES", "ROUTE_TYPES", "Field", "width_of",
]  # fmt: skip

_PORTS = normal([(6, 6), (17, 17), (33, 33), (132, 132), (136, 136)])  # TCP, UDP, DCCP, SCTP, UDP-Lite

# Numbers of ct_state: a packet has exactly one (enum ip_conntrack_info, NF_CT_STATE_*_BIT).
CT_STATES = ("invalid", "established", "related", "new", "untracked")
# linux/if_packet.h; nft and iptables know the first three and, of forwarded copies, otherhost.
PACKET_TYPES = ("host", "broadcast", "multicast", "otherhost")
# linux/rtnetlink.h (RTN_*).
ROUTE_TYPES = (
    "unspec", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit",
    "throw", "nat", "xresolve",
)  # fmt: skip
FAMILIES = (4, 6)

_TRACKED = normal([(1, 3)])


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a packet.

    width     bits of its numbers; of saddr and daddr 32 with family 4 and 128 with family 6: see width_of
    requires  (other field, values) that must hold for the packet to have it
    """

    name: str
    width: int
    requires: tuple[tuple[str, Intervals], ...] = ()


def _fields() -> dict[str, Field]:
    ports, whole = ("protocol", _PORTS), ("fragment", single(0))
    icmp = ("protocol", normal([(1, 1), (58, 58)]))
    every = [
        Field("family", 3),  # 4 or 6
        Field("saddr", 128),
        Field("daddr", 128),
        Field("protocol", 8),  # the transport's: behind extension headers of IPv6
        Field("nexthdr", 8, (("family", single(6)),)),  # of the fixed header of IPv6
        Field("fragment", 1),  # 1: a fragment other than the first
        Field("sport", 16, (ports, whole)),
        Field("dport", 16, (ports, whole)),
        Field("icmp_type", 8, (icmp, whole)),
        Field("icmp_code", 8, (icmp, whole)),
        Field("tcp_flags", 8, (("protocol", single(6)), whole)),  # fin 1 syn 2 rst 4 psh 8 ack 16 urg 32 ece 64 cwr 128
        Field("tos", 8),  # DSCP and ECN; the traffic class of IPv6
        Field("ttl", 8),  # the hop limit of IPv6
        Field("length", 16),  # of the IP packet, header and all: bytes
        Field("mac", 48),  # source; absent where the packet came by no Ethernet: a packet says so by None
        Field("packet_type", 3),  # index into PACKET_TYPES
        Field("ct_state", 3),  # index into CT_STATES
        Field("ct_status", 15, (("ct_state", _TRACKED),)),  # linux/nf_conntrack_common.h (IPS_*)
        Field("ct_direction", 1, (("ct_state", _TRACKED),)),  # 0 original, 1 reply
        Field("ct_mark", 32, (("ct_state", _TRACKED),)),
        Field("mark", 32),
        Field("saddr_type", 4),  # index into ROUTE_TYPES
        Field("daddr_type", 4),
        Field("reverse_path", 1),  # 1: a route back to the source leads out of the interface it came in by
        Field("skuid", 32),  # of the local socket; None for packets without one
        Field("skgid", 32),
    ]
    return {field.name: field for field in every}


FIELDS = _fields()

# What people call them.
FIELD_NAMES = {
    "family": "IP version", "saddr": "source", "daddr": "destination", "protocol": "protocol",
    "nexthdr": "next header", "fragment": "fragment", "sport": "source port", "dport": "destination port",
    "icmp_type": "ICMP type", "icmp_code": "ICMP code", "tcp_flags": "TCP flags", "tos": "TOS", "ttl": "TTL",
    "length": "length", "mac": "source MAC", "packet_type": "packet type", "ct_state": "state",
    "ct_status": "conntrack status", "ct_direction": "direction", "ct_mark": "conntrack mark", "mark": "mark",
    "saddr_type": "source's type", "daddr_type": "destination's type", "reverse_path": "reverse path",
    "skuid": "user id", "skgid": "group id", "iif": "in interface", "oif": "out interface",
}  # fmt: skip

# Fields of which the values are names of interfaces, "" for none.
NAMES = ("iif", "oif")


def width_of(field: str, family: int) -> int:
    """Bits of a field's numbers in packets of a family (4 or 6)."""
    return (32 if family == 4 else 128) if field in {"saddr", "daddr"} else FIELDS[field].width
