"""Which packets a trial may send: interfaces, addresses of the host, and values that go with each other."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from conntracker.rules.fields import CT_STATES, ROUTE_TYPES
from conntracker.rules.host import Host, Route
from conntracker.rules.packets import Packet

__all__ = ["FOREIGN", "SHORTEST", "TRANSLATED", "Space", "of_local_scope"]

_ICMP, _TCP, _ICMPV6 = 1, 6, 58
_PORTED = frozenset((6, 17, 33, 132, 136))

# Hosts elsewhere, by version: where no rule asks for an address.
FOREIGN = {
    4: (0x0A010203, 0xC0A80109, 0x08080808, 0xAC100005, 0xCB007109, 0xC6336407),
    6: (0xFD000001 << 96 | 0x5, 0x20010DB8 << 96 | 0x7, 0x2A00 << 112 | 0x9, 0xFD00 << 112 | 0xBEEF),
}
_NETWORK = {4: 8, 6: 64}  # bits of an address behind that of the interface's network
_MULTICAST = {4: 0xE0000001, 6: 0xFF02 << 112 | 1}
_BROADCAST = {4: 0xFFFFFFFF}

# Bytes of the IP packet that each protocol needs behind IPv4's header.
SHORTEST = {1: 8, 58: 8, 6: 20, 17: 8, 33: 16, 132: 32, 136: 8}
_LENGTH = 120
_LINK_LOCAL6, _SITE_LOCAL6 = 0xFE80 >> 6, 0xFEC0 >> 6
_RELATED = CT_STATES.index("related")
_REDIRECTS = frozenset(((1, 5), (58, 137)))
# Errors of ICMP: of no flow, or related to one.
_ERRORS = frozenset((_ICMP, kind) for kind in (3, 4, 5, 11, 12)) | frozenset((_ICMPV6, kind) for kind in range(128))
_OTHER_ICMP = frozenset(((4, 58), (6, 1)))
_OF_OTHER = frozenset((33,))  # of DCCP no flows are made
# The protocols whose packets have a field, and a value for those that had none before.
_HAD_BY = {
    "sport": _PORTED, "dport": _PORTED, "tcp_flags": frozenset((_TCP,)),
    "icmp_type": frozenset((_ICMP, _ICMPV6)), "icmp_code": frozenset((_ICMP, _ICMPV6)),
}  # fmt: skip
_DEFAULTS = {"sport": 40000, "dport": 80, "tcp_flags": 2, "icmp_type": 8, "icmp_code": 0}
# What is sent to these comes to the host itself, too (ip_mc_output, net/ipv4/ip_output.c).
_COPIED = frozenset(("multicast", "broadcast"))
# Flags of TCP with which a flow may begin (nf_conntrack_proto_tcp.c).
_BEGINNINGS = frozenset(
    base | more for base in (2, 34, 16, 48) for more in (0, 8, 64, 128, 72, 136, 192, 200)
)  # SYN, SYN+URG, ACK, ACK+URG, each with PSH, ECE and CWR

# Bits of a flow's status (linux/nf_conntrack_common.h).
EXPECTED, SEEN_REPLY, CONFIRMED, TRANSLATED, _DONE = 1, 2, 8, 16 | 32, 128 | 256


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """What there is to send packets with.

    addresses   of the host, by interface and version; the loopback's left out
    host        as rules see it: no routes, as each packet is sent where it is wanted
    """

    addresses: Mapping[str, Mapping[int, int]]
    host: Host

    @property
    def interfaces(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.addresses)

    def host_of(self, packet: Packet) -> Host:
        """The host, with the routes that there are while a packet is sent: what it sends leaves by one interface."""
        out = packet["oif"]
        if packet["way"] != "output" or out not in self.addresses:
            return self.host
        return _routed(self, str(out))

    def typed(self, version: int, kind: int, draw: random.Random) -> int | None:
        """An address of a route type (index of ROUTE_TYPES); None if there is none."""
        name = ROUTE_TYPES[kind]
        if name == "local":
            return draw.choice([one[version] for one in self.addresses.values()])
        if name == "unicast":
            return draw.choice(FOREIGN[version])
        return {"multicast": _MULTICAST, "broadcast": _BROADCAST}.get(name, {}).get(version)

    def blank(self, version: int, way: str, draw: random.Random) -> Packet:
        """An ordinary packet: the first of a flow of TCP between two of the foreign hosts, or to or from this one."""
        iif = "" if way == "output" else draw.choice(self.interfaces)
        oif = "" if way == "input" else draw.choice(self.interfaces)
        source, destination = draw.sample(FOREIGN[version], 2)
        packet: Packet = {
            "way": way, "iif": iif, "oif": oif, "family": version, "protocol": _TCP, "fragment": 0,
            "saddr": self.addresses[oif][version] if way == "output" else source,
            "daddr": self.addresses[iif][version] if way == "input" and draw.random() < 0.6 else destination,
            "sport": 40000, "dport": 80, "icmp_type": 8 if version == 4 else 128, "icmp_code": 0, "tcp_flags": 2,
            "tos": 0, "ttl": 64, "length": _LENGTH, "packet_type": 0, "mark": 0, "reverse_path": 1,
            "ct_state": CT_STATES.index("new"), "ct_status": 0, "ct_direction": 0, "ct_mark": 0,
            "mac": None if way == "output" else 0x02AA00000001,
            "skuid": 0 if way == "output" else None, "skgid": 0 if way == "output" else None,
        }  # fmt: skip
        return packet

    def settled(self, packet: Packet) -> Packet:
        """The packet without what it cannot have, and with what goes with the rest: as it can be sent, or nearly."""
        made = _with_state(_with_headers(dict(packet)))
        if made["way"] == "output":
            made["mac"] = made["reverse_path"] = None
            made["packet_type"] = 0
            return made
        made["mark"], made["skuid"], made["skgid"] = 0, None, None
        near = self.near(made, "saddr")
        if near is not None:
            made["reverse_path"] = int(near == made["iif"])
        if self.kind_of(made, "saddr") != "unicast":
            made["reverse_path"] = 0  # no route leads there: nft_fib4_eval, rpfilter_lookup_reverse
        return made

    def near(self, packet: Packet, field: str) -> str | None:
        """The interface in whose network an address of the packet is."""
        version = 4 if packet["family"] == 4 else 6
        network = int(packet[field] or 0) >> _NETWORK[version]
        return next(
            (name for name, one in self.addresses.items() if one[version] >> _NETWORK[version] == network), None
        )

    def completed(self, packet: Packet, draw: random.Random) -> Packet:
        """A packet of which only some fields are said, or said with what cannot be sent."""
        way = str(
            packet.get("way") or ("output" if not packet.get("iif") else "forward" if packet.get("oif") else "input")
        )
        made = self.blank(4 if packet["family"] == 4 else 6, way, draw)
        derived = {"saddr_type", "daddr_type", "reverse_path", "length"}
        made |= {name: value for name, value in packet.items() if name not in derived and value is not None}
        for side, used in (("iif", way != "output"), ("oif", way != "input")):
            if used and made[side] not in self.addresses:
                made[side] = draw.choice(self.interfaces)
        return made

    def kind_of(self, packet: Packet, field: str) -> str:
        """What an address of the packet is to the host: one of ROUTE_TYPES."""
        return ROUTE_TYPES[self.host.address_type(4 if packet["family"] == 4 else 6, int(packet[field] or 0))]

    def plain(self, packet: Packet) -> bool:
        """Whether only the rules decide where it goes: no copies for the host, no flows with themselves."""
        if packet["saddr"] == packet["daddr"] or not packet["saddr"] or not packet["daddr"]:
            return False
        if packet["family"] == 6 and _LINK_LOCAL6 in (int(packet["saddr"]) >> 118, int(packet["daddr"]) >> 118):
            return False  # such addresses are routed apart
        if packet["protocol"] in _OF_OTHER or (packet["family"], packet["protocol"]) in _OTHER_ICMP:
            return False
        if packet["way"] == "output" and not self._leaves(packet):
            return False
        # nf_nat_icmp_reply_translation drops redirects of flows that it has not looked at.
        return packet["ct_state"] != _RELATED or (packet["protocol"], packet["icmp_type"]) not in _REDIRECTS

    def _leaves(self, packet: Packet) -> bool:
        """Whether what the host sends leaves by the interface that was asked for, whole and but once."""
        if packet["oif"] not in ("lo", self.near(packet, "daddr") or packet["oif"]):
            return False
        if packet["oif"] == "lo" and packet["ct_state"] == _RELATED:
            return False  # NAT is never settled for flows made by hand: its chains would be asked again
        return not _spoilt(packet) and not {self.kind_of(packet, "daddr"), self.kind_of(packet, "saddr")} & _COPIED


@lru_cache(256)
def _routed(space: Space, out: str) -> Host:
    routes = {}
    for version, bits in _NETWORK.items():
        near = [(one[version] >> bits << bits, name) for name, one in space.addresses.items()]
        default = Route(0, (1 << (32 if version == 4 else 128)) - 1, out)
        routes[version] = (*(Route(low, low + (1 << bits) - 1, name) for low, name in near), default)
    return replace(space.host, routes=routes)


def of_local_scope(packet: Packet) -> bool:
    """Whether IPv6 looks for an address of the same small scope to redirect it to, and drops it if the interface has
    none (nf_nat_redirect_ipv6, net/netfilter/nf_nat_redirect.c): here there are only global ones.
    """
    address = int(packet["daddr"] or 0)
    multicast = address >> 120 == 0xFF and address >> 112 & 15 in (1, 2, 5)
    return packet["family"] == 6 and (multicast or address >> 118 in (_LINK_LOCAL6, _SITE_LOCAL6))


def _with_headers(made: Packet) -> Packet:
    """Only what its protocol has."""
    protocol = made["protocol"]
    made["nexthdr"] = None if made["family"] == 4 else made.get("nexthdr") if _extended(made) else protocol
    if made["fragment"]:
        made["nexthdr"] = 44 if made["family"] == 6 else None
    had = [name for name in _HAD_BY if protocol in _HAD_BY[name] and not made["fragment"]]
    for name in _HAD_BY:
        made[name] = None if name not in had else _DEFAULTS[name] if made[name] is None else made[name]
    return made


def _with_state(made: Packet) -> Packet:
    """Only what flows in its state have."""
    state = CT_STATES[int(made["ct_state"] or 0)]
    if state == "new" and made["protocol"] == _TCP and made["tcp_flags"] not in _BEGINNINGS:
        state, made["ct_state"] = "invalid", CT_STATES.index("invalid")
    if state in {"new", "established"} and (made["protocol"], made["icmp_type"]) in _ERRORS:
        state = "related" if state == "established" else "invalid"
        made["ct_state"] = CT_STATES.index(state)
    if state in {"invalid", "untracked"}:
        made["ct_status"] = made["ct_direction"] = made["ct_mark"] = None
    elif state == "new":
        made["ct_status"] = made["ct_direction"] = made["ct_mark"] = 0
    elif state == "related":
        made["ct_direction"], made["ct_mark"] = 0, made["ct_mark"] or 0
        made["ct_status"] = EXPECTED | CONFIRMED | _DONE
    else:
        made["ct_direction"], made["ct_mark"] = made["ct_direction"] or 0, made["ct_mark"] or 0
        made["ct_status"] = int(made["ct_status"] or 0) | CONFIRMED | (0 if made["ct_direction"] else SEEN_REPLY)
    return made


def _spoilt(packet: Packet) -> bool:
    """Whether a segment that the host sends would be invalid only with a broken header: rules drop such themselves."""
    invalid = packet["ct_state"] == CT_STATES.index("invalid")
    return invalid and packet["protocol"] == _TCP and packet["tcp_flags"] in _BEGINNINGS


def _extended(packet: Packet) -> bool:
    return packet.get("nexthdr") in (0, 43, 60)
