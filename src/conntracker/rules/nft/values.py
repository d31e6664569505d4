"""How libnftables writes values in JSON, made into numbers: names of protocols, types and flags, addresses, ranges.

The names are those of nft(8) and of nftables, src/datatype.c, src/proto.c, src/ct.c and src/meta.c (`nft describe`).
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from conntracker.rules.fields import ROUTE_TYPES
from conntracker.rules.intervals import Intervals, normal

__all__ = ["PROTOCOLS", "Unreadable", "bits_of", "elements", "interval", "intervals", "number"]


class Unreadable(ValueError):
    """A value that is not understood: what has it becomes opaque."""


def _numbered(text: str) -> dict[str, int]:
    words = text.split()
    return {name: int(value, 0) for name, value in zip(words[::2], words[1::2], strict=True)}


# /etc/protocols, which nft asks; a file that names others differently leaves them opaque.
PROTOCOLS = _numbered("""
    ip 0 hopopt 0 hopopts 0 icmp 1 igmp 2 ggp 3 ipencap 4 ipv4 4 st 5 tcp 6 egp 8 igp 9 pup 12 udp 17 hmp 20 xns-idp 22
    rdp 27 iso-tp4 29 dccp 33 xtp 36 ddp 37 idpr-cmtp 38 ipv6 41 ipv6-route 43 ipv6-frag 44 idrp 45 rsvp 46 gre 47
    esp 50 ah 51 skip 57 ipv6-icmp 58 icmpv6 58 ipv6-nonxt 59 ipv6-opts 60 rspf 73 vmtp 81 eigrp 88 ospf 89 ospfigp 89
    ax.25 93 ipip 94 etherip 97 encap 98 pim 103 ipcomp 108 comp 108 vrrp 112 l2tp 115 isis 124 sctp 132 fc 133
    mobility-header 135 udplite 136 mpls-in-ip 137 manet 138 hip 139 shim6 140 wesp 141 rohc 142 ethernet 143
""")
_ICMP_TYPES = _numbered("""
    echo-reply 0 destination-unreachable 3 source-quench 4 redirect 5 echo-request 8 router-advertisement 9
    router-solicitation 10 time-exceeded 11 parameter-problem 12 timestamp-request 13 timestamp-reply 14
    info-request 15 info-reply 16 address-mask-request 17 address-mask-reply 18
""")
_ICMPV6_TYPES = _numbered("""
    destination-unreachable 1 packet-too-big 2 time-exceeded 3 parameter-problem 4 echo-request 128 echo-reply 129
    mld-listener-query 130 mld-listener-report 131 mld-listener-done 132 mld-listener-reduction 132
    nd-router-solicit 133 nd-router-advert 134 nd-neighbor-solicit 135 nd-neighbor-advert 136 nd-redirect 137
    router-renumbering 138 ind-neighbor-solicit 141 ind-neighbor-advert 142 mld2-listener-report 143
""")
_ICMP_CODES = _numbered("""
    net-unreachable 0 host-unreachable 1 prot-unreachable 2 port-unreachable 3 frag-needed 4 net-prohibited 9
    host-prohibited 10 admin-prohibited 13
""")
_ICMPV6_CODES = _numbered("""
    no-route 0 admin-prohibited 1 addr-unreachable 3 port-unreachable 4 policy-fail 5 reject-route 6
""")
_DSCP = _numbered("""
    cs0 0 cs1 8 cs2 16 cs3 24 cs4 32 cs5 40 cs6 48 cs7 56 df 0 be 0 lephb 1 af11 10 af12 12 af13 14 af21 18 af22 20
    af23 22 af31 26 af32 28 af33 30 af41 34 af42 36 af43 38 va 44 ef 46
""")

# kind of value -> (bits, names); bits are those of the field, if it has fewer
_KINDS: dict[str, tuple[int, dict[str, int]]] = {
    "ipv4": (32, {}),
    "ipv6": (128, {}),
    "mac": (48, {}),
    "port": (16, {}),
    "mark": (32, {}),
    "length": (16, {}),
    "user": (32, {"root": 0}),
    "byte": (8, {}),
    "version": (4, {}),
    "protocol": (8, PROTOCOLS),
    "icmp_type": (8, _ICMP_TYPES),
    "icmpv6_type": (8, _ICMPV6_TYPES),
    "icmp_code": (8, _ICMP_CODES),
    "icmpv6_code": (8, _ICMPV6_CODES),
    "dscp": (6, _DSCP),
    "ecn": (2, {"not-ect": 0, "ect1": 1, "ect0": 2, "ce": 3}),
    "tcp_flags": (8, _numbered("fin 1 syn 2 rst 4 psh 8 ack 16 urg 32 ecn 64 cwr 128")),
    # NF_CT_STATE_BIT (linux/netfilter/nf_conntrack_common.h)
    "ct_state": (32, _numbered("invalid 1 established 2 related 4 new 8 untracked 64")),
    "ct_status": (15, _numbered("expected 1 seen-reply 2 assured 4 confirmed 8 snat 16 dnat 32 dying 512")),
    "ct_direction": (1, {"original": 0, "reply": 1}),
    "packet_type": (3, {"host": 0, "unicast": 0, "broadcast": 1, "multicast": 2, "other": 3}),
    "route_type": (4, {name: index for index, name in enumerate(ROUTE_TYPES)}),
    "nfproto": (8, {"ipv4": 2, "ipv6": 10}),
    "ethertype": (16, _numbered("ip 0x800 ip6 0x86dd arp 0x806 vlan 0x8100 8021q 0x8100 8021ad 0x88a8")),
    "boolean": (1, {}),
    "fragment_offset": (16, {}),
}


def bits_of(kind: str) -> int:
    """How wide the numbers of a kind are."""
    return _KINDS[kind][0]


def number(value: Any, kind: str) -> int:
    """A single value. Lists and `|` are the flags together. Raises Unreadable."""
    if isinstance(value, (bool, int)):
        found = int(value)
        if not 0 <= found < 1 << bits_of(kind):
            raise Unreadable(f"{value} is too large")
        return found
    if isinstance(value, str):
        return _named(value, kind)
    if isinstance(value, dict) and value.keys() == {"|"}:
        value = value["|"]
    elif isinstance(value, dict) and value.keys() == {"elem"} and isinstance(value["elem"], dict):
        return number(value["elem"].get("val"), kind)
    if not isinstance(value, list) or not value:
        raise Unreadable(f"not a value: {value}")
    together = 0
    for one in value:
        together |= number(one, kind)
    return together


@lru_cache(maxsize=65536)
def _named(value: str, kind: str) -> int:
    bits, names = _KINDS[kind]
    if value in names:
        return names[value]
    try:
        if kind == "ipv4":
            return int.from_bytes(socket.inet_pton(socket.AF_INET, value), "big")
        if kind == "ipv6":
            return int.from_bytes(socket.inet_pton(socket.AF_INET6, value), "big")
        if kind == "mac":
            parts = [int(part, 16) for part in value.split(":")]
            if len(parts) == 6 and all(0 <= part <= 255 for part in parts):
                return int.from_bytes(bytes(parts), "big")
        elif value.isascii() and value.isalnum() and 0 <= (found := int(value, 0)) < 1 << bits:
            return found
    except (OSError, ValueError):
        pass
    raise Unreadable(f"not known: {value}")


def interval(value: Any, kind: str) -> tuple[int, int]:
    """A value, prefix or range; `*` is all there is. Raises Unreadable."""
    if isinstance(value, dict) and len(value) == 1:
        (form, inner), *_ = value.items()
        if form == "range" and isinstance(inner, list) and len(inner) == 2:
            return number(inner[0], kind), number(inner[1], kind)
        if form == "prefix" and isinstance(inner, dict) and isinstance(inner.get("len"), int):
            low, free = number(inner.get("addr"), kind), bits_of(kind) - inner["len"]
            if 0 <= free <= bits_of(kind):
                return low >> free << free, low | (1 << free) - 1
        if form == "elem" and isinstance(inner, dict):
            return interval(inner.get("val"), kind)
    if value == "*":
        return 0, (1 << bits_of(kind)) - 1
    found = number(value, kind)
    return found, found


def intervals(values: Iterable[Any], kind: str) -> Intervals:
    """All of the values, prefixes and ranges. Raises Unreadable."""
    return normal(interval(value, kind) for value in values)


def elements(values: Any) -> Iterator[Any]:
    """What stands in a set: elements without their timeouts, counters and comments. Raises Unreadable."""
    if not isinstance(values, list):
        raise Unreadable("elements are no list")
    for value in values:
        if isinstance(value, dict) and isinstance(inner := value.get("elem"), dict):
            yield inner.get("val")
        else:
            yield value
