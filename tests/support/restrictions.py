"""Restrictions that `--trace` takes, as people may write them."""

from __future__ import annotations

import ipaddress

from hypothesis import strategies as st

__all__ = ["restrictions"]

OPERATORS = st.sampled_from(["", "==", "!=", "eq", "ne"])
ORDERS = st.sampled_from(["<", ">", "<=", ">=", "lt", "gt", "le", "ge"])
SERVICES = ["ssh", "https", "domain", "http-alt"]
HEADERS = {"tcp": None, "udp": None, "udplite": None, "sctp": None, "dccp": None, "icmp": 4, "icmpv6": 6}


def _number(largest: int) -> st.SearchStrategy[str]:
    numbers = st.integers(0, largest)
    return st.one_of(numbers.map(str), numbers.map(hex))


def _values(largest: int, names: list[str] | None = None) -> st.SearchStrategy[str]:
    """A value, a range or a set of both that does not overlap, with operator."""
    single = _number(largest) | st.sampled_from(names or ["1"])
    pairs = st.lists(st.integers(0, largest), min_size=2, max_size=12, unique=True).map(sorted)
    ranged = pairs.map(lambda found: f"{found[0]}-{found[1]}")
    many = pairs.map(lambda found: _set([f"{a}-{b}" for a, b in zip(found[::2], found[1::2], strict=False)]))
    return _joined(OPERATORS, single | ranged | many)


def _set(values: list[str]) -> str:
    return f"{{{', '.join(values)}}}"


def _joined(*parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(*parts).map(lambda words: " ".join(filter(None, words)))


def _addresses(version: int) -> st.SearchStrategy[str]:
    kind = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
    bits = 32 if version == 4 else 128
    numbers = st.integers(0, 2**bits - 1)
    single = numbers.map(lambda number: str(kind(number)))
    prefix = st.tuples(single, st.integers(0, bits)).map(lambda pair: f"{pair[0]}/{pair[1]}")
    pairs = st.lists(numbers, min_size=2, max_size=8, unique=True).map(sorted)
    ranged = pairs.map(lambda found: f"{kind(found[0])}-{kind(found[1])}")
    many = pairs.map(
        lambda found: _set([f"{kind(a)}-{kind(b)}" for a, b in zip(found[::2], found[1::2], strict=False)])
    )
    singles = st.lists(single, min_size=1, max_size=5, unique=True).map(_set)
    return _joined(OPERATORS, single | prefix | ranged | many | singles)


def _network(version: int) -> list[st.SearchStrategy[str]]:
    header, rest, hops = ("ip", "protocol", "ttl") if version == 4 else ("ip6", "nexthdr", "hoplimit")
    made = [
        _joined(st.sampled_from([f"{header} saddr", f"{header} daddr"]), _addresses(version)),
        _joined(st.just(f"{header} {rest}"), _values(255, ["tcp", "udp", "icmp", "icmpv6", "esp", "gre", "sctp"])),
        _joined(st.just(f"{header} {hops}"), _values(255)),
        _joined(st.just(f"{header} dscp"), _values(63)),
    ]
    return made if version == 6 else [*made, _joined(st.just("ip length"), _values(65535))]


def _transport(header: str) -> list[st.SearchStrategy[str]]:
    if header.startswith("icmp"):
        types = ["echo-request", "echo-reply", "destination-unreachable", "time-exceeded"]
        return [
            _joined(st.just(f"{header} type"), _values(255, types)),
            _joined(st.just(f"{header} code"), _values(255)),
            _joined(st.sampled_from([f"{header} id", f"{header} sequence"]), _values(65535)),
        ]
    ports = st.sampled_from([f"{header} sport", f"{header} dport", "th sport", "th dport"])
    made = [_joined(ports, _values(65535, SERVICES)), _joined(ports, ORDERS, _number(65535))]
    if header == "tcp":
        flags = st.sampled_from(["syn", "ack", "fin", "rst", "psh", "urg", "ecn", "cwr"])
        many = st.lists(flags, min_size=1, max_size=4, unique=True).map(_set)
        made.append(_joined(st.just("tcp flags"), OPERATORS, flags | many))
    return made


def _meta() -> list[st.SearchStrategy[str]]:
    devices = st.sampled_from(["eth0", "lo", '"eth0"', '"wg-1.5"', "eth*", '"br*"'])
    names = st.lists(st.sampled_from(['"eth0"', "lo", '"wg-1.5"']), min_size=1, max_size=3, unique=True).map(_set)
    numbers = st.sampled_from(["meta mark", "mark", "meta length", "skuid", "meta skgid"])
    bytes_ = st.lists(st.sampled_from(["00", "5e", "ff", "A1"]), min_size=6, max_size=6)
    return [
        _joined(st.sampled_from(["iifname", "meta iifname", "oifname", "meta oifname"]), OPERATORS, devices | names),
        _joined(numbers, _values(2**32 - 1)),
        _joined(numbers, ORDERS, _number(2**32 - 1)),
        _joined(st.sampled_from(["ether saddr", "ether daddr"]), OPERATORS, bytes_.map(":".join)),
        _joined(st.just("meta l4proto"), _values(255, ["tcp", "udp", "icmp", "icmpv6", "esp", "udplite"])),
        _joined(st.just("meta nfproto"), OPERATORS, st.sampled_from(["ipv4", "ipv6", "{ipv4, ipv6}"])),
        _joined(st.just("meta protocol"), OPERATORS, st.sampled_from(["ip", "ip6"])),
    ]


@st.composite
def restrictions(draw: st.DrawFn) -> str:
    """One to four matches that may stand together."""
    header = draw(st.sampled_from(list(HEADERS)))
    version = HEADERS[header] or draw(st.sampled_from([4, 6]))
    choices = [*_network(version), *_transport(header), *_transport(header), *_meta()]
    matches = [draw(choices[draw(st.integers(0, len(choices) - 1))]) for _ in range(draw(st.integers(1, 4)))]
    blank = draw(st.sampled_from([" ", "  ", "\t"]))
    return blank.join(matches)
