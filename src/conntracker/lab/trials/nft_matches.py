"""Matches of nft(8) with right sides made at random, and in which families and hooks each may stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from conntracker.lab.trials.pool import INTERFACES, Pool

__all__ = ["MATCHES", "PORTED", "Place", "fits"]

_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg")
_ICMP = ("echo-request", "echo-reply", "destination-unreachable", "time-exceeded", "redirect")
_ICMPV6 = ("echo-request", "echo-reply", "destination-unreachable", "packet-too-big", "nd-neighbor-solicit")
_STATES = ("new", "established", "related", "invalid", "untracked")
_STATUS = ("expected", "seen-reply", "assured", "confirmed", "snat", "dnat")
_ADDRESS_TYPES = ("local", "unicast", "multicast", "broadcast", "anycast")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rule stands, and what it is about: nft refuses to ask for two protocols, or two versions of IP.

    family     of the table
    hooks      that lead to its chain
    version    of IP; the table's, either one in inet
    transport  what its ports are of (th: of any), icmp, or nothing where it asks for none
    """

    family: str
    hooks: frozenset[str]
    version: int = 4
    transport: str = ""

    def drawn(self, pool: Pool) -> Place:
        """The place of a rule in this chain."""
        version = {"ip": 4, "ip6": 6}.get(self.family) or pool.one((4, 6))
        return replace(self, version=version, transport=pool.weighed(_TRANSPORTS))


_TRANSPORTS = {"tcp": 12, "udp": 8, "icmp": 4, "sctp": 1, "udplite": 1, "dccp": 1, "th": 1, "": 8}
PORTED = frozenset({"tcp", "udp", "sctp", "udplite", "dccp", "th"})


def _operator(pool: Pool) -> str:
    return pool.negated("!= ", 0.2)


def _braced(values: list[str]) -> str:
    return "{ " + ", ".join(values) + " }"


def _address(pool: Pool, place: Place) -> str:
    version = place.version
    name = "ip" if version == 4 else "ip6"
    field = f"{name} {pool.weighed({'saddr': 1, 'daddr': 1})}"
    form = pool.weighed({"prefix": 6, "set": 4, "range": 2, "named": 3, "mask": 1, "dynamic": 1})
    if form == "mask":
        bits = ("255.0.255.0", "10.0.2.0") if version == 4 else ("ffff:0:ffff::", "fd00:0:2::")
        return f"{field} & {bits[0]} {pool.one(('==', '!='))} {bits[1]}"
    right = {
        "prefix": pool.prefix(version),
        "set": _braced(pool.prefixes(version)),
        "range": pool.span(version),
        "named": f"@nets{version}",
        "dynamic": f"@seen{version}",
    }[form]
    return f"{field} {_operator(pool)}{right}"


def _ports(pool: Pool, place: Place) -> str:
    field = f"{place.transport} {pool.weighed({'dport': 4, 'sport': 1})}"
    form = pool.weighed({"one": 5, "set": 4, "range": 2, "named": 2, "less": 1, "mask": 1})
    if form == "less":
        return f"{field} {pool.one(('<', '<=', '>', '>='))} {pool.one((53, 1024, 8080))}"
    if form == "mask":
        return f"{field} & 0xfff0 {pool.one(('==', '!='))} 0x50"
    right = {
        "one": str(pool.port()),
        "set": _braced(pool.port_list("-")),
        "range": "1024-8080",
        "named": "@ports",
    }[form]
    return f"{field} {_operator(pool)}{right}"


def _interface(pool: Pool, place: Place) -> str:
    sides = [name for name, hooks in _SIDES.items() if not place.hooks & hooks]
    name = pool.one(sides) if sides else "iif"
    if pool.chance(0.15):
        return f"{name} {_operator(pool)}lo"
    right = pool.weighed({"one": 5, "set": 3, "wild": 2, "named": 1})
    if right == "set":
        return f"{name}name {_operator(pool)}{_braced([_quoted(one) for one in pool.some(INTERFACES)])}"
    if right == "named":
        return f"{name}name {_operator(pool)}@ifs"
    return f"{name}name {_operator(pool)}{_quoted('eth*' if right == 'wild' else pool.interface())}"


def _quoted(name: str) -> str:
    return f'"{name}"'


# An interface that there cannot be is refused in base chains only, by nothing but sense.
_SIDES = {
    "iif": frozenset({"output", "postrouting"}),
    "oif": frozenset({"prerouting", "input"}),
}


def _tcp_flags(pool: Pool, place: Place) -> str:
    mask = list(dict.fromkeys([*pool.some(_FLAGS, 4), "ack", "syn"]))[: pool.one((2, 3, 4))]
    value = pool.some(mask, 2)
    return "tcp flags " + pool.one(
        (
            pool.one(_FLAGS),
            f"!= {pool.one(_FLAGS)}",
            _braced(pool.some(_FLAGS)),
            f"& ({' | '.join(mask)}) {pool.one(('==', '!='))} {' | '.join(value) if len(value) > 1 else value[0]}",
            f"& ({' | '.join(mask)}) {pool.one(('==', '!='))} 0",
            f"{','.join(value)} / {','.join(mask)}",
            f"!= {','.join(value)} / {','.join(mask)}",
            f"== {pool.one(_FLAGS)}",
            ",".join(value),
        )
    )


def _protocol(pool: Pool, place: Place) -> str:
    chosen = pool.some(("tcp", "udp", "icmp", "ipv6-icmp", "sctp", "esp", "gre"), 3)
    right = _braced(chosen) if len(chosen) > 1 else chosen[0]
    version = place.version
    field = pool.weighed({"meta l4proto": 3, "ip protocol" if version == 4 else "ip6 nexthdr": 2})
    return f"{field} {_operator(pool)}{right}"


def _family(pool: Pool, place: Place) -> str:
    return pool.one((f"meta nfproto ipv{place.version}", f"meta protocol {'ip' if place.version == 4 else 'ip6'}"))


def _icmp(pool: Pool, place: Place) -> str:
    name, kinds = ("icmp", _ICMP) if place.version == 4 else ("icmpv6", _ICMPV6)
    if pool.chance(0.2):
        return f"{name} code {_operator(pool)}{pool.one(('0', '1-3', '{ 0, 4 }'))}"
    chosen = pool.some(kinds, 3)
    return f"{name} type {_operator(pool)}{_braced(chosen) if len(chosen) > 1 else chosen[0]}"


def _ct_state(pool: Pool, place: Place) -> str:
    chosen = pool.some(_STATES, 3)
    listed = pool.one((",".join(chosen), _braced(chosen) if len(chosen) > 1 else chosen[0]))
    if pool.chance(0.1):
        return f"ct state & (established | related) {pool.one(('==', '!='))} 0"
    return f"ct state {_operator(pool)}{listed}"


def _ct_other(pool: Pool, place: Place) -> str:
    version = place.version
    words = "ip" if version == 4 else "ip6"
    return pool.weighed(
        {
            f"ct status {_operator(pool)}{','.join(pool.some(_STATUS, 2))}": 4,
            f"ct status & (seen-reply | assured) == {pool.one(('0', 'seen-reply', 'seen-reply | assured'))}": 1,
            f"ct direction {_operator(pool)}{pool.one(('original', 'reply'))}": 2,
            f"ct mark {_marked(pool)}": 3,
            f"ct original {words} saddr {pool.prefix(version)}": 1,
            'ct helper "ftp"': 1,
            f"ct expiration {pool.one(('< 10m', '> 1h'))}": 1,
        }
    )


def _marked(pool: Pool) -> str:
    mark = pool.one((1, 2, 3, 16))
    return pool.one(
        (
            f"{_operator(pool)}0x{mark:x}",
            f"& 0x{mark | 15:x} {pool.one(('==', '!='))} 0x{mark & 15:x}",
            "{ 0x1, 0x3 }",
            "0x1-0x10",
        )
    )


def _header(pool: Pool, place: Place) -> str:
    version = place.version
    hop = "ip ttl" if version == 4 else "ip6 hoplimit"
    name = "ip" if version == 4 else "ip6"
    lengths = f"{_operator(pool)}{pool.one(('40', '60', '40-80', '61-1500'))}"
    size = "ip length" if version == 4 and pool.chance(0.5) else "meta length"
    parts = {
        f"{hop} {pool.one(('1', '64', '< 64', '> 64', '!= 63', '{ 1, 63, 64 }'))}": 4,
        f"{name} dscp {_operator(pool)}{pool.one(('cs1', 'ef', '0x04', '{ cs1, ef }'))}": 3,
        f"{size} {lengths}": 4,
        "ip frag-off & 0x1fff != 0" if version == 4 else "exthdr frag exists": 1,
        f"ip ecn {pool.one(('not-ect', 'ect0'))}" if version == 4 else "ip6 flowlabel 0x0": 1,
    }
    return pool.weighed(parts)


def _ether(pool: Pool, place: Place) -> str:
    return f"ether saddr {_operator(pool)}{pool.one(('02:aa:00:00:00:01', '{ 02:aa:00:00:00:01, 02:aa:00:00:00:02 }'))}"


def _packet_type(pool: Pool, place: Place) -> str:
    kinds = ("host", "broadcast", "multicast")
    chosen = pool.some(kinds, 2)
    return f"meta pkttype {_operator(pool)}{_braced(chosen) if len(chosen) > 1 else chosen[0]}"


def _fib(pool: Pool, place: Place) -> str:
    if place.hooks <= {"prerouting"} and pool.chance(0.5):
        return f"fib saddr . iif oif {pool.one(('missing', 'exists', '!= 0', 'eth0'))}"
    side = pool.weighed({"daddr": 3, "saddr": 1})
    iface = " . iif" if place.hooks <= {"prerouting", "input"} and pool.chance(0.2) else ""
    chosen = pool.some(_ADDRESS_TYPES, 2)
    return f"fib {side}{iface} type {_operator(pool)}{_braced(chosen) if len(chosen) > 1 else chosen[0]}"


def _concatenation(pool: Pool, place: Place) -> str:
    version = place.version
    name = "ip" if version == 4 else "ip6"
    networks = (
        ["10.1.0.0/16", "192.168.1.0-192.168.1.9"] if version == 4 else ["fd00:1::/32", "2001:db8:1::1-2001:db8:1::9"]
    )
    host = pool.address(version)
    port = f"{'th' if place.transport in {'', 'icmp'} else place.transport} dport"
    forms = [
        f"{name} saddr . {port} {_operator(pool)}" + _braced([f"{networks[0]} . 1024-8080", f"{host} . 22"]),
        f"{name} daddr . {port} {_operator(pool)}" + _braced([f"{host} . 53", f"{networks[1]} . 80-443"]),
        f"{name} daddr . {port} {_operator(pool)}@pairs{version}",
        f"{name} saddr . {port} {_operator(pool)}" + _braced([f"{host} . 22", f"{pool.address(version)} . 80"]),
    ]
    if place.transport in {"", "th"}:
        forms += [f"meta l4proto . th dport {_operator(pool)}" + _braced(["tcp . 22", "udp . 53", "tcp . 80-443"])] * 2
    if place.transport in {"", "icmp"}:
        forms = [
            f"{name} saddr . {name} daddr {_operator(pool)}" + _braced([f"{networks[0]} . {networks[1]}"]),
            *forms[4:],
        ]
    return pool.one(forms)


def _owner(pool: Pool, place: Place) -> str:
    return (
        pool.one(("meta skuid ", "meta skgid ")) + _operator(pool) + pool.one(("0", "1000", "1000-1999", "{ 0, 1000 }"))
    )


def _stateful(pool: Pool, place: Place) -> str:
    rate = pool.one(("1/second", "10/minute", "100/second burst 5 packets"))
    return pool.one(
        (
            f"limit rate {pool.negated('over ', 0.4)}{rate}",
            f"limit rate {pool.negated('over ', 0.4)}10 kbytes/second",
            f"quota {pool.negated('over ', 0.4)}10 kbytes",
            f"ct count {pool.negated('over ', 0.4)}{pool.one((1, 3))}",
            f"numgen {pool.one(('inc', 'random'))} mod 2 {pool.one((0, 1))}",
            'meta hour "00:00"-"12:00"',
            'meta day { "Monday", "Tuesday", "Sunday" }',
            "tcp option maxseg size 1200" if place.transport == "tcp" else "meta random < 2147483648",
            "meta ipsec missing" if place.hooks <= {"prerouting", "input", "forward"} else "meta random < 2147483648",
        )
    )


def _mark(pool: Pool, place: Place) -> str:
    return f"meta mark {_marked(pool)}"


# How likely, and in which hooks; None: all of them.
MATCHES: dict[str, tuple[Callable[[Pool, Place], str], int, frozenset[str] | None]] = {
    "address": (_address, 14, None),
    "ports": (_ports, 18, None),
    "interface": (_interface, 8, None),
    "tcp flags": (_tcp_flags, 5, None),
    "protocol": (_protocol, 6, None),
    "family": (_family, 1, None),
    "icmp": (_icmp, 5, None),
    "ct state": (_ct_state, 9, None),
    "ct": (_ct_other, 5, None),
    "mark": (_mark, 5, None),
    "header": (_header, 5, None),
    "ether": (_ether, 3, frozenset({"prerouting", "input", "forward"})),
    "pkttype": (_packet_type, 3, None),
    "fib": (_fib, 4, None),
    "concatenation": (_concatenation, 5, None),
    "owner": (_owner, 8, frozenset({"output", "postrouting"})),
    "stateful": (_stateful, 4, None),
}


# Which matches go with which transports of a rule.
_OF_TRANSPORT = {"ports": PORTED, "tcp flags": {"tcp"}, "icmp": {"icmp"}, "protocol": {""}}


def fits(name: str, place: Place) -> bool:
    """Whether a match may stand in such a rule."""
    hooks = MATCHES[name][2]
    if name in _OF_TRANSPORT and place.transport not in _OF_TRANSPORT[name]:
        return False
    if name == "family" and place.family != "inet":
        return False
    if name == "fib" and "postrouting" in place.hooks:
        return False
    return hooks is None or place.hooks <= hooks
