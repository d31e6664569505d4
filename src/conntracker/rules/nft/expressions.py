"""What a rule of nf_tables looks at: which field of a packet, and what nft asks of the packet before it looks there.

nft drops those questions (`meta l4proto tcp` of `tcp dport 22`) when it lists a rule, JSON included; the kernel was
given them (nftables, src/payload.c, payload_gen_dependency), and so they come back here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import Any

from conntracker.rules.fields import FIELDS, NAMES
from conntracker.rules.intervals import Intervals, contains, intersect, is_subset, normal, single
from conntracker.rules.nft.values import Unreadable, bits_of
from conntracker.rules.terms import In

__all__ = ["WITH_PORTS", "Known", "Selector", "implied", "needs_of", "select", "tracked"]

_IPV4, _IPV6 = In("family", single(4)), In("family", single(6))
WITH_PORTS = dict(FIELDS["dport"].requires)["protocol"]
_TRACKED = dict(FIELDS["ct_mark"].requires)["ct_state"]

# Extension headers that ipv6_find_hdr() passes over (net/ipv6/exthdrs_core.c): the transport is behind them.
_EXTENSIONS = normal([(0, 0), (43, 44), (51, 51), (60, 60)])

_OFFSET = 0x1FFF  # IP_OFFSET (net/ip.h)


@dataclass(slots=True)
class Known:
    """What the rule has asked so far: the families and the protocols that its packet can still have."""

    families: Intervals = ((4, 4), (6, 6))
    protocols: Intervals = ((0, 255),)

    def learn(self, term: In) -> bool:
        """Take the term in; False if it was known before, and need not be asked again."""
        if term.mask is not None or term.field not in {"family", "protocol"}:
            return True
        known = self.families if term.field == "family" else self.protocols
        if is_subset(known, term.values):
            return False
        if term.field == "family":
            self.families = intersect(known, term.values)
        else:
            self.protocols = intersect(known, term.values)
        return True


@dataclass(frozen=True, slots=True)
class Selector:
    """A field, and how nft's numbers become those of the field.

    kind      of nft's numbers, see values.py
    needs     what the packet must be first
    shift     the field's number is nft's, so many bits to the left, under field_mask
    add       what is between nft's number and the field's
    guessed   a port of any transport, `th dport`: only exact beside a protocol that has ports
    each      nft's number -> the field's, where there are few
    """

    field: str
    kind: str
    needs: tuple[In, ...] = ()
    shift: int = 0
    field_mask: int | None = None
    add: int = 0
    guessed: bool = False
    each: Mapping[int, int] = attribute(default_factory=dict, hash=False)

    @property
    def bits(self) -> int:
        """How wide nft's number is."""
        return bits_of(self.kind)

    @property
    def is_name(self) -> bool:
        """Whether it is the name of an interface."""
        return self.field in NAMES

    def test(self, values: Intervals, mask: int | None = None) -> In:
        """That nft's number, masked, is in the set. Raises Unreadable for what cannot be said of the field."""
        if self.field == "fragment":
            return self._fragment(values, mask)
        if self.each:
            every = -1 if mask is None else mask
            fitting = [mine for its, mine in self.each.items() if contains(values, its & every)]
            return In(self.field, normal((one, one) for one in fitting))
        if mask is not None and (self.add or self.shift or self.field_mask is not None):
            if self.add or mask.bit_length() > self.bits:
                raise Unreadable("a mask of a part of a field")
            return self._shifted(values, mask << self.shift)
        if self.field_mask is not None:
            return self._shifted(values, self.field_mask)
        if self.add:
            values = normal((max(0, low + self.add), min(high + self.add, 0xFFFF)) for low, high in values)
        return In(self.field, values, None if mask == (1 << self.bits) - 1 else mask)

    def _fragment(self, values: Intervals, mask: int | None) -> In:
        """`ip frag-off & 0x1fff`: 0 in whole packets and first fragments."""
        later = intersect(values, ((1, _OFFSET),))
        if mask != _OFFSET or later not in ((), ((1, _OFFSET),)):
            raise Unreadable("a part of the fragment's offset")
        return In("fragment", normal([(0, 0)] * contains(values, 0) + [(1, 1)] * bool(later)))

    def _shifted(self, values: Intervals, mask: int) -> In:
        return In(self.field, normal((low << self.shift, high << self.shift) for low, high in values), mask)


def _protocol(number: int) -> In:
    return In("protocol", single(number))


_ICMP, _ICMPV6 = (_IPV4, _protocol(1)), (_IPV6, _protocol(58))
_PORTS = {"tcp": 6, "udp": 17, "udplite": 136, "sctp": 132, "dccp": 33}

# (protocol, field) of payload
_PAYLOAD = {
    ("ip", "saddr"): Selector("saddr", "ipv4", (_IPV4,)),
    ("ip", "daddr"): Selector("daddr", "ipv4", (_IPV4,)),
    ("ip", "protocol"): Selector("protocol", "protocol", (_IPV4,)),
    ("ip", "version"): Selector("family", "version", (_IPV4,), each={4: 4}),
    ("ip", "dscp"): Selector("tos", "dscp", (_IPV4,), 2, 0xFC),
    ("ip", "ecn"): Selector("tos", "ecn", (_IPV4,), 0, 3),
    ("ip", "ttl"): Selector("ttl", "byte", (_IPV4,)),
    ("ip", "length"): Selector("length", "length", (_IPV4,)),
    ("ip6", "saddr"): Selector("saddr", "ipv6", (_IPV6,)),
    ("ip6", "daddr"): Selector("daddr", "ipv6", (_IPV6,)),
    ("ip6", "nexthdr"): Selector("nexthdr", "protocol", (_IPV6,)),
    ("ip6", "version"): Selector("family", "version", (_IPV6,), each={6: 6}),
    ("ip6", "dscp"): Selector("tos", "dscp", (_IPV6,), 2, 0xFC),
    ("ip6", "ecn"): Selector("tos", "ecn", (_IPV6,), 0, 3),
    ("ip6", "hoplimit"): Selector("ttl", "byte", (_IPV6,)),
    ("ip6", "length"): Selector("length", "length", (_IPV6,), add=40),  # of what follows the fixed header
    ("icmp", "type"): Selector("icmp_type", "icmp_type", _ICMP),
    ("icmp", "code"): Selector("icmp_code", "icmp_code", _ICMP),
    ("icmpv6", "type"): Selector("icmp_type", "icmpv6_type", _ICMPV6),
    ("icmpv6", "code"): Selector("icmp_code", "icmpv6_code", _ICMPV6),
    ("tcp", "flags"): Selector("tcp_flags", "tcp_flags", (_protocol(6),)),
    # `meta iiftype ether` comes first: packets that came by no Ethernet have no field mac
    ("ether", "saddr"): Selector("mac", "mac"),
    **{
        (name, port): Selector(port, "port", (_protocol(number),))
        for name, number in _PORTS.items()
        for port in ("sport", "dport")
    },
}

# What looking at other fields of these headers needs.
_NEEDS = {
    "ip": (_IPV4,), "ip6": (_IPV6,), "icmp": _ICMP, "icmpv6": _ICMPV6, "igmp": (_IPV4, _protocol(2)),
    "esp": (_protocol(50),), "ah": (_protocol(51),), "comp": (_protocol(108),), "gre": (_protocol(47),),
    **{name: (_protocol(number),) for name, number in _PORTS.items()},
}  # fmt: skip

_META = {
    "l4proto": Selector("protocol", "protocol"),
    "nfproto": Selector("family", "nfproto", each={2: 4, 10: 6}),
    "protocol": Selector("family", "ethertype", each={0x800: 4, 0x86DD: 6}),
    "iif": Selector("iif", "byte"),
    "iifname": Selector("iif", "byte"),
    "oif": Selector("oif", "byte"),
    "oifname": Selector("oif", "byte"),
    "mark": Selector("mark", "mark"),
    "pkttype": Selector("packet_type", "packet_type"),
    "length": Selector("length", "length"),
    "skuid": Selector("skuid", "user"),
    "skgid": Selector("skgid", "user"),
}
_CT = {
    "state": Selector("ct_state", "ct_state", each={1: 0, 2: 1, 4: 2, 8: 3, 64: 4}),
    "status": Selector("ct_status", "ct_status"),
    "direction": Selector("ct_direction", "ct_direction"),
    "mark": Selector("ct_mark", "mark"),
}
_REVERSE = Selector("reverse_path", "boolean")
_FRAGMENT = Selector("fragment", "fragment_offset", (_IPV4,))


def select(expression: Any, known: Known) -> Selector | None:
    """The field that an expression reads; None where it is none that we know of a packet."""
    if not isinstance(expression, dict) or len(expression) != 1:
        return None
    (form, inner), *_ = expression.items()
    found = None
    if isinstance(inner, dict):
        if form == "payload":
            found = _of_payload(inner, known)
        elif form == "meta":
            found = _META.get(_text(inner.get("key")))
        elif form == "ct" and "dir" not in inner:
            found = _CT.get(_text(inner.get("key")))
        elif form == "fib":
            found = _of_fib(inner)
    return found


def needs_of(expression: Any) -> tuple[In, ...]:
    """What the kernel asks of a packet before it reads a field that we do not know."""
    if isinstance(expression, dict):
        inner = expression.get("payload")
        if isinstance(inner, dict):
            return _NEEDS.get(_text(inner.get("protocol")), ())
        if "exthdr" in expression:
            return (_IPV6,)
        if len(expression) == 1:
            (inner,) = expression.values()
            return needs_of(inner[0]) if isinstance(inner, list) and inner else ()
    return ()


def implied(term: In) -> In | None:
    """`ip6 nexthdr tcp` says that the transport is TCP, unless one of the headers asked for is an extension."""
    if term.field != "nexthdr" or term.mask is not None or intersect(term.values, _EXTENSIONS):
        return None
    return In("protocol", term.values)


def tracked() -> In:
    """That connection tracking knows the packet: what `ct mark` and its like need to be read at all."""
    return In("ct_state", _TRACKED)


def _of_payload(inner: dict[str, Any], known: Known) -> Selector | None:
    protocol, name = _text(inner.get("protocol")), _text(inner.get("field"))
    if protocol == "th" and name in {"sport", "dport"}:
        # The kernel reads two bytes of whatever transport it is: ports only of those that have some.
        return Selector(name, "port", guessed=not is_subset(known.protocols, WITH_PORTS))
    if (protocol, name) == ("ip", "frag-off"):
        return _FRAGMENT
    return _PAYLOAD.get((protocol, name))


def _of_fib(inner: dict[str, Any]) -> Selector | None:
    result, flags = inner.get("result"), inner.get("flags")
    wanted = {_text(flag) for flag in (flags if isinstance(flags, list) else [flags])}
    if result == "type" and wanted in ({"saddr"}, {"daddr"}):
        return Selector(f"{wanted.pop()}_type", "route_type")
    if result == "oif" and wanted in ({"saddr", "iif"}, {"saddr", "iif", "mark"}):
        return _REVERSE
    return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
