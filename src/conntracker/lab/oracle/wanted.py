"""What a test asks for: a packet given by its fields (rules/fields.py), checked for what no sender can make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from conntracker.rules.fields import CT_STATES, PACKET_TYPES

__all__ = ["WAYS", "Fields", "Unsendable", "Wanted", "wanted"]

Fields = Mapping[str, int | str | None]

WAYS = ("input", "forward", "output")

ICMP, TCP, UDP, GRE, ICMPV6, SCTP, UDPLITE = 1, 6, 17, 47, 58, 132, 136
WITH_PORTS = frozenset((TCP, UDP, 33, SCTP, UDPLITE))
WITH_TYPES = frozenset((ICMP, ICMPV6))
ICMP_ANSWERS = frozenset((0, 14, 16, 18))
ACK, SYN = 16, 2

HIGHEST_MTU = 65521  # of a TAP device (drivers/net/tun.c, MAX_MTU less the Ethernet header)
# Protocols of IPv6 that are extension headers, so that another one follows (ipv6_ext_hdr, net/ipv6/exthdrs_core.c).
_EXTENSIONS = frozenset((0, 43, 44, 51, 59, 60))
# Extension headers that can be put in front of the transport:
# (options, one unit of padding), routing of type 0 that is done with, and a later fragment.
_OPTIONS, _FRAGMENT = frozenset((0, 43, 60)), 44
_NOBODY = 0xFFFFFFFF  # uid_valid, linux/uidgid.h

_DEFAULTS: dict[str, int] = {"sport": 40000, "dport": 9, "tos": 0, "ttl": 64, "packet_type": 0, "fragment": 0}


class Unsendable(ValueError):
    """A packet that cannot be made, and why. `index` is its place among those that were to be sent."""

    def __init__(self, reason: str, index: int | None = None) -> None:
        super().__init__(reason if index is None else f"packet {index}: {reason}")
        self.reason, self.index = reason, index


@dataclass(frozen=True, slots=True)
class Wanted:
    """A packet to send. What was not asked for has a value of our choice.

    way         one of WAYS: how routing will send it, if no rule changes its addresses
    iif, oif    interface that it comes in by ("" of output), and goes out by ("" of input)
    state       an element of CT_STATES, None if it was not asked for
    direction   0 original, 1 reply
    status      bits of its flow (IPS_*), None if they were not asked for
    length      of the IP packet; None for as short as its protocol allows
    mac         source; None for one of ours
    icmp_id     of echo requests and their like
    first       whether it is the first of its flow, so that rules of nat chains are asked (rules/packets.py)
    """

    way: str
    iif: str
    oif: str
    family: int
    saddr: int
    daddr: int
    protocol: int
    nexthdr: int
    fragment: bool
    sport: int
    dport: int
    icmp_type: int
    icmp_code: int
    icmp_id: int
    tcp_flags: int
    tos: int
    ttl: int
    length: int | None
    mac: int | None
    packet_type: str
    state: str | None
    direction: int
    status: int | None
    ct_mark: int
    mark: int
    skuid: int
    skgid: int
    reverse_path: int | None
    first: bool


def wanted(packet: Fields, number: int = 0) -> Wanted:
    """The packet as it will be sent; `number` makes ICMP ids differ. Raises Unsendable.

    Fields that only follow from others (saddr_type, daddr_type) are not looked at.
    """
    given = _Given(packet)
    family, protocol = given.number("family"), given.number("protocol")
    if family not in (4, 6):
        raise Unsendable("a packet has a family: 4 or 6")
    fragment = bool(given.number("fragment", 0))
    nexthdr = _next_header(family, protocol, fragment, given.maybe("nexthdr"))
    state = given.maybe("ct_state")
    name = None if state is None else CT_STATES[state]
    answers = _direction(given, family, protocol, name)
    flags = ACK if name == "established" else SYN
    made = Wanted(
        *_way(given), family, given.number("saddr"), given.number("daddr"), protocol, nexthdr, fragment,
        given.number("sport"), given.number("dport"), given.number("icmp_type", 8 if protocol == ICMP else 128),
        given.number("icmp_code", 0), number & 0xFFFF, given.number("tcp_flags", flags), given.number("tos"),
        given.number("ttl"), given.maybe("length"), given.maybe("mac"), PACKET_TYPES[given.number("packet_type")],
        name, given.number("ct_direction", answers), given.maybe("ct_status"), given.number("ct_mark", 0),
        given.number("mark", 0), given.number("skuid", 0), given.number("skgid", 0), given.maybe("reverse_path"),
        bool(given.number("first", 1)),
    )  # fmt: skip
    _check(made)
    return made


def _direction(given: _Given, family: int, protocol: int, state: str | None) -> int:
    """Answers of ICMP are of the reply direction."""
    return int(state == "established" and (family, protocol) == (4, ICMP) and given.maybe("icmp_type") in ICMP_ANSWERS)


class _Given:
    """The fields of a packet, with what is there in place of those that are not."""

    def __init__(self, packet: Fields) -> None:
        self.fields = packet

    def maybe(self, name: str) -> int | None:
        value = self.fields.get(name)
        if isinstance(value, str):
            raise Unsendable(f"{name} is no number: {value!r}")
        return value

    def number(self, name: str, default: int | None = None) -> int:
        value = self.maybe(name)
        if value is not None:
            return value
        found = _DEFAULTS.get(name, default)
        if found is None:
            raise Unsendable(f"no {name}")
        return found


def _way(given: _Given) -> tuple[str, str, str]:
    way, iif, oif = (given.fields.get(name) or "" for name in ("way", "iif", "oif"))
    if way not in WAYS or not isinstance(iif, str) or not isinstance(oif, str):
        raise Unsendable(f"no way: {', '.join(WAYS)}")
    if (way != "output") != bool(iif) or (way != "input") != bool(oif):
        raise Unsendable(f"{way} with interfaces {iif!r} and {oif!r}")
    return str(way), iif, oif


def _next_header(family: int, protocol: int, fragment: bool, asked: int | None) -> int:
    """The protocol in the fixed header: the transport's, or an extension header's."""
    if family == 4:
        return protocol
    if protocol in _EXTENSIONS:
        raise Unsendable(f"protocol {protocol} of IPv6 is an extension header: the protocol is behind it")
    header = _FRAGMENT if fragment else protocol if asked is None else asked
    if header == protocol or header in _OPTIONS or (header == _FRAGMENT and fragment):
        return header
    raise Unsendable(f"no way to put header {header} in front of protocol {protocol}")


def _check(packet: Wanted) -> None:
    width = 32 if packet.family == 4 else 128
    if packet.saddr >> width or packet.daddr >> width:
        raise Unsendable("an address that is too long for its family")
    if packet.way == "output":
        if packet.mac is not None:
            raise Unsendable("what the host makes itself has no source MAC")
        if packet.packet_type != "host":
            raise Unsendable("what the host makes itself is of packet type host")
        if packet.fragment:
            raise Unsendable("later fragments are not made on the host: its sockets give whole packets")
        if _NOBODY in (packet.skuid, packet.skgid):
            raise Unsendable(f"{_NOBODY:#x} is no id of an owner")
    elif packet.mark:
        raise Unsendable("a mark comes from a rule or a local socket, never with a packet")
    elif packet.skuid or packet.skgid:
        raise Unsendable("what comes from outside has no local socket")
    if packet.length is not None and packet.length > HIGHEST_MTU:
        raise Unsendable(f"longer than a device can carry: {HIGHEST_MTU}")
    if packet.reverse_path and packet.way == "output":
        raise Unsendable("what the host makes itself has no reverse path")
