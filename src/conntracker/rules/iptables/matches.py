"""What the matches of iptables ask, one option at a time (net/netfilter/xt_*.c, net/ipv4/netfilter/ipt_*.c).

Those whose options bear on each other are in `together`. What is not here is an Atom, whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from conntracker.rules.fields import PACKET_TYPES
from conntracker.rules.intervals import complement, single
from conntracker.rules.iptables.names import DSCP_CLASSES, ICMP_TYPES, TCP_FLAGS, TOS_NAMES
from conntracker.rules.iptables.values import (
    FAMILY,
    Bad,
    address_range,
    inside,
    is_number,
    masked,
    number,
    port_list,
    ports,
    span,
    value_and_mask,
)
from conntracker.rules.terms import AnyOf, In, Term

__all__ = ["EXACT", "PROTOCOLS_OF", "bare", "dscp_class", "terms_of", "tos_value"]

# Matches that the kernel takes only behind `-p` with one of these (xt_check_match, multiport_mt_check).
PROTOCOLS_OF = {
    "icmp": (1,), "icmp6": (58,), "tcp": (6,), "udp": (17,), "dccp": (33,), "sctp": (132,),
    "multiport": (6, 17, 33, 132, 136),
}  # fmt: skip

_NEVER_NEGATED = {"ttl-lt", "ttl-gt", "hl-lt", "hl-gt"}
_SYN = 2, 1 | 2 | 4 | 16  # SYN alone of FIN, SYN, RST and ACK
_MAC = re.compile(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){5}")
_TYPES = {"unicast": 0, "host": 0, "bcast": 1, "mcast": 2} | {name: i for i, name in enumerate(PACKET_TYPES)}

# (values of the option, negated, 4 or 6)
_Reader = Callable[[tuple[str, ...], bool, int], tuple[Term, ...]]


def terms_of(match: str, option: str, values: tuple[str, ...], negated: bool, version: int) -> tuple[Term, ...]:
    """What an option of a match in EXACT asks. Raises Bad."""
    if negated and option in _NEVER_NEGATED:
        raise Bad(f"--{option} cannot be negated")
    return EXACT[match][option](values, negated, version)


def bare(match: str) -> tuple[Term, ...]:
    """What a match asks without any option: the header must be there, and later fragments have none."""
    if match == "icmp":
        return (inside("icmp_type", ((0, 255),)),)
    if match not in {"tcp", "udp", "dccp", "sctp"}:
        raise Bad(f"{match} needs an option")
    return (In("fragment", single(0)),)


def _ports(field: str) -> _Reader:
    return lambda values, negated, version: (inside(field, ports(values[0]), negated),)


def _port_lists(field: str) -> _Reader:
    return lambda values, negated, version: (inside(field, port_list(values[0]), negated),)


def _either_port(values: tuple[str, ...], negated: bool, version: int) -> tuple[Term, ...]:
    tests = tuple(inside(field, port_list(values[0]), negated) for field in ("sport", "dport"))
    return tests if negated else (AnyOf(((tests[0],), (tests[1],))),)


def _tcp_flags(values: tuple[str, ...], negated: bool, version: int) -> tuple[Term, ...]:
    mask, wanted = (_flag_bits(value) for value in values)
    return (_flags(wanted, mask, negated),)


def _flag_bits(text: str) -> int:
    bits = 0
    for word in text.split(","):
        if word.upper() not in TCP_FLAGS:
            raise Bad(f"no TCP flag: {word!r}")
        bits |= TCP_FLAGS[word.upper()]
    return bits


def _flags(wanted: int, mask: int, negated: bool) -> In:
    # Always with the mask, so that bit tests are told from tests of the whole value at a glance.
    if wanted & ~mask:
        return inside("tcp_flags", (), negated)
    return In("tcp_flags", complement(single(wanted), 0, mask) if negated else single(wanted), mask)


def _icmp(values: tuple[str, ...], negated: bool, protocol: int) -> tuple[Term, ...]:
    kind, code = _icmp_type(values[0], ICMP_TYPES[protocol])
    if protocol == 1 and kind == 255:  # xt_tcpudp.c: whatever the code
        return (inside("icmp_type", ((0, 255),), negated),)
    if code is None:
        return (inside("icmp_type", single(kind), negated),)
    tests = In("icmp_type", single(kind)), In("icmp_code", single(code))
    return (AnyOf((tests,), negated=True),) if negated else tests


def _icmp_type(text: str, names: dict[str, tuple[int, int | None]]) -> tuple[int, int | None]:
    """`type`, `type/code` or a name, also by the letters with which only one name starts."""
    lower = text.lower()
    if lower in names:
        return names[lower]
    kind, found, code = text.partition("/")
    if is_number(kind):
        return number(kind, 0xFF, "ICMP type"), number(code, 0xFF, "ICMP code") if found else None
    meant = [value for name, value in names.items() if lower and name.startswith(lower)]
    if len(meant) != 1:
        raise Bad(f"no ICMP type: {text!r}")
    return meant[0]


def _ranges(field: str) -> _Reader:
    def read(values: tuple[str, ...], negated: bool, version: int) -> tuple[Term, ...]:
        low, high = address_range(values[0], version)
        return (
            FAMILY[version],
            inside(field, ((low, high),) if low <= high else (), negated, version),
        )

    return read


def _marks(field: str) -> _Reader:
    return lambda values, negated, version: (masked(field, *value_and_mask(values[0]), negated),)


def _mac(values: tuple[str, ...], negated: bool, version: int) -> tuple[Term, ...]:
    if _MAC.fullmatch(values[0]) is None:
        raise Bad(f"no Ethernet address: {values[0]!r}")
    value = 0
    for word in values[0].split(":"):
        value = value << 8 | int(word, 16)
    return (inside("mac", single(value), negated),)


def _hops(values: tuple[str, ...], negated: bool, version: int) -> tuple[Term, ...]:
    return (inside("ttl", single(number(values[0], 0xFF)), negated),)


def _fewer_hops(values: tuple[str, ...], negated: bool, version: int) -> tuple[Term, ...]:
    top = number(values[0], 0xFF)
    return (inside("ttl", ((0, top - 1),) if top else ()),)


def _more_hops(values: tuple[str, ...], negated: bool, version: int) -> tuple[Term, ...]:
    low = number(values[0], 0xFF)
    return (inside("ttl", ((low + 1, 0xFF),) if low < 0xFF else ()),)


def _packet_type(values: tuple[str, ...], negated: bool, version: int) -> tuple[Term, ...]:
    if values[0].lower() not in _TYPES:
        raise Bad(f"no packet type: {values[0]!r}")
    return (inside("packet_type", single(_TYPES[values[0].lower()]), negated),)


def tos_value(text: str) -> tuple[int, int]:
    """(value, mask) of a type of service, by number or name."""
    if text.lower() in TOS_NAMES:
        return TOS_NAMES[text.lower()], 0x3F
    return value_and_mask(text, 0xFF)


def dscp_class(text: str) -> int:
    """The number of a class of DSCP."""
    if text.upper() not in DSCP_CLASSES:
        raise Bad(f"no DSCP class: {text!r}")
    return DSCP_CLASSES[text.upper()]


def _tos(values: tuple[str, ...], negated: bool, version: int) -> tuple[Term, ...]:
    return (masked("tos", *tos_value(values[0]), negated),)


def _dscp(values: tuple[str, ...], negated: bool, version: int) -> tuple[Term, ...]:
    return (masked("tos", number(values[0], 63) << 2, 0xFC, negated),)


def _dscp_class(values: tuple[str, ...], negated: bool, version: int) -> tuple[Term, ...]:
    return (masked("tos", dscp_class(values[0]) << 2, 0xFC, negated),)


def _length(values: tuple[str, ...], negated: bool, version: int) -> tuple[Term, ...]:
    return (inside("length", span(values[0], 0xFFFF), negated),)


def _ecn(values: tuple[str, ...], negated: bool, version: int) -> tuple[Term, ...]:
    return (masked("tos", number(values[0], 3), 3, negated),)


def _tcp_bit(bit: int) -> _Reader:
    return lambda values, negated, version: (_flags(0 if negated else bit, bit, False),)


_PORTS: dict[str, _Reader] = {"sport": _ports("sport"), "dport": _ports("dport")}

EXACT: dict[str, dict[str, _Reader]] = {
    "tcp": {
        **_PORTS,
        "tcp-flags": _tcp_flags,
        "syn": lambda values, negated, version: (_flags(*_SYN, negated),),
    },
    "udp": _PORTS,
    "sctp": _PORTS,
    "dccp": _PORTS,
    "multiport": {"sports": _port_lists("sport"), "dports": _port_lists("dport"), "ports": _either_port},
    "icmp": {"icmp-type": lambda values, negated, version: _icmp(values, negated, 1)},
    "icmp6": {"icmpv6-type": lambda values, negated, version: _icmp(values, negated, 58)},
    "iprange": {"src-range": _ranges("saddr"), "dst-range": _ranges("daddr")},
    "mark": {"mark": _marks("mark")},
    "connmark": {"mark": _marks("ct_mark")},
    "mac": {"mac-source": _mac},
    "ttl": {"ttl-eq": _hops, "ttl-lt": _fewer_hops, "ttl-gt": _more_hops},
    "hl": {"hl-eq": _hops, "hl-lt": _fewer_hops, "hl-gt": _more_hops},
    "pkttype": {"pkt-type": _packet_type},
    "tos": {"tos": _tos},
    "dscp": {"dscp": _dscp, "dscp-class": _dscp_class},
    "ecn": {"ecn-ip-ect": _ecn, "ecn-tcp-ece": _tcp_bit(64), "ecn-tcp-cwr": _tcp_bit(128)},
    "length": {"length": _length},
}
