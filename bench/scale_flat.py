"""One long chain of rules with addresses and ports, for iptables and for nft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from scale_words import PORTS, address_text, net_text, prefix

SHAPES = ("acl", "wildcard", "ranges", "overlapping")


@dataclass(frozen=True, slots=True)
class FlatRule:
    """A rule of a flat list; None is any. Addresses and ports are (low, high); dports has one pair, or single ports."""

    source: tuple[int, int] | None
    destination: tuple[int, int] | None
    protocol: str | None
    sports: tuple[int, int] | None
    dports: tuple[tuple[int, int], ...]
    verdict: str


@dataclass(frozen=True, slots=True)
class _Shape:
    """How often a side is any, how long prefixes are (weights of _LENGTHS), how ports are chosen.

    bases    /16 networks that all addresses come from
    exact, ranges, lists   shares of rules with one port, a range, a list; the rest has any port
    spans    share of addresses that are ranges, not prefixes
    """

    any_source: float
    any_destination: float
    sources: tuple[int, ...]
    destinations: tuple[int, ...]
    bases: int
    exact: float
    ranges: float
    lists: float
    source_ports: float
    spans: float = 0.0


_LENGTHS = (8, 16, 20, 24, 26, 28, 30, 32)
_SHAPES = {
    "acl": _Shape(0.35, 0.02, (1, 6, 6, 25, 8, 8, 8, 38), (0, 1, 3, 18, 8, 10, 10, 50), 60, 0.8, 0.12, 0.03, 0.03),
    "wildcard": _Shape(0.40, 0.25, (4, 10, 10, 20, 8, 8, 8, 30), (4, 10, 10, 20, 8, 8, 8, 30), 60, 0.5, 0.2, 0.1, 0.15),
    "ranges": _Shape(
        0.10, 0.05, (1, 6, 6, 25, 8, 8, 8, 38), (0, 1, 3, 18, 8, 10, 10, 50), 60, 0.1, 0.75, 0.05, 0.4, 0.7
    ),
    "overlapping": _Shape(
        0.3, 0.3, (6, 20, 14, 20, 10, 10, 10, 10), (3, 15, 12, 20, 10, 10, 10, 20), 12, 0.6, 0.2, 0.1, 0.15
    ),
}


def _places(
    shape: _Shape, rng: Random, count: int, weights: Sequence[int], bases: Sequence[int]
) -> list[tuple[int, int]]:
    """Networks and ranges that rules choose from."""
    found = []
    for _ in range(count):
        value = rng.choice(bases) | rng.getrandbits(16)
        if rng.random() < shape.spans:
            found.append((value, min(value + rng.choice((3, 20, 100, 1000, 30000)), 0xDFFFFFFF)))
        else:
            found.append(prefix(value, rng.choices(_LENGTHS, weights)[0]))
    return found


def _dports(shape: _Shape, rng: Random, ports: Sequence[int]) -> tuple[tuple[int, int], ...]:
    kind = rng.random()
    if kind < shape.exact:
        port = rng.choice(ports)
        return ((port, port),)
    if kind < shape.exact + shape.ranges:
        low = rng.randrange(1, 60000)
        return ((low, low + rng.randrange(1, 2000)),)
    if kind < shape.exact + shape.ranges + shape.lists:
        return tuple((port, port) for port in sorted(set(rng.sample(ports, rng.randrange(2, 8)))))
    return ()


def flat_rules(rules: int = 10_000, shape: str = "acl", seed: int = 1) -> list[FlatRule]:
    """So many rules of one of SHAPES."""
    rng, how = Random(seed), _SHAPES[shape]  # noqa: S311
    bases = [rng.randrange(0x0100, 0xDFFF) << 16 for _ in range(how.bases)]
    ports = [*PORTS, *(rng.randrange(1024, 65536) for _ in range(200))]
    sources = _places(how, rng, max(1, rules // 5), how.sources, bases)
    destinations = _places(how, rng, max(1, rules // 3), how.destinations, bases)
    found = []
    for _ in range(rules):
        source = None if rng.random() < how.any_source else rng.choice(sources)
        destination = None if rng.random() < how.any_destination else rng.choice(destinations)
        some = source is not None or destination is not None
        protocol = rng.choices(("tcp", "udp", "icmp", None), (66, 26, 3, 5 if some else 0))[0]
        ported = protocol in {"tcp", "udp"}
        dports = _dports(how, rng, ports) if ported else ()
        if not some and ported and not dports:
            dports = ((rng.choice(ports),) * 2,)
        sports = (1024, 65535) if ported and rng.random() < how.source_ports else None
        if protocol == "icmp" and not some:
            source = rng.choice(sources)
        found.append(
            FlatRule(source, destination, protocol, sports, dports, rng.choices(("accept", "drop"), (7, 3))[0])
        )
    return found


def _span(pair: tuple[int, int], separator: str) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}{separator}{pair[1]}"


def _is_prefix(low: int, high: int) -> bool:
    size = high - low + 1
    return size & (size - 1) == 0 and low % size == 0


def _iptables_rule(rule: FlatRule) -> str:
    words, late = ["-A INPUT"], []
    for option, name, pair in (("-s", "src", rule.source), ("-d", "dst", rule.destination)):
        if pair is not None and _is_prefix(*pair):
            words.append(f"{option} {net_text(*pair)}")
        elif pair is not None:
            late.append(f"-m iprange --{name}-range {address_text(pair[0])}-{address_text(pair[1])}")
    if rule.protocol is not None:
        words.append(f"-p {rule.protocol}")
    single = [f"--sport {_span(rule.sports, ':')}"] if rule.sports is not None else []
    if len(rule.dports) == 1:
        single.append(f"--dport {_span(rule.dports[0], ':')}")
    if single:
        words.append(f"-m {rule.protocol} {' '.join(single)}")
    if len(rule.dports) > 1:
        words.append("-m multiport --dports " + ",".join(_span(pair, ":") for pair in rule.dports))
    return " ".join([*words, *late, "-j", rule.verdict.upper()])


def _nft_address(pair: tuple[int, int]) -> str:
    if pair[0] == pair[1]:
        return address_text(pair[0])
    return net_text(*pair) if _is_prefix(*pair) else f"{address_text(pair[0])}-{address_text(pair[1])}"


def _nft_rule(rule: FlatRule) -> str:
    words = []
    if rule.source is not None:
        words.append(f"ip saddr {_nft_address(rule.source)}")
    if rule.destination is not None:
        words.append(f"ip daddr {_nft_address(rule.destination)}")
    if rule.sports is not None:
        words.append(f"{rule.protocol} sport {_span(rule.sports, '-')}")
    if rule.dports:
        listed = ", ".join(_span(pair, "-") for pair in rule.dports)
        words.append(f"{rule.protocol} dport {listed if len(rule.dports) == 1 else '{ ' + listed + ' }'}")
    if rule.protocol is not None and rule.sports is None and not rule.dports:
        words.append(f"meta l4proto {rule.protocol}")
    return " ".join([*words, rule.verdict])


def flat_iptables(rules: Sequence[FlatRule]) -> str:
    """As iptables-save writes it: the chain INPUT with policy DROP."""
    head = [
        "# Generated by iptables-save v1.8.9",
        "*filter",
        ":INPUT DROP [0:0]",
        ":FORWARD ACCEPT [0:0]",
        ":OUTPUT ACCEPT [0:0]",
    ]
    return "\n".join([*head, *map(_iptables_rule, rules), "COMMIT"]) + "\n"


def flat_nft(rules: Sequence[FlatRule], family: str = "inet") -> str:
    """For `nft -f`: the chain input with policy drop. With family ip it means the same as flat_iptables."""
    body = "\n".join(f"\t\t{_nft_rule(rule)}" for rule in rules)
    base = "\t\ttype filter hook input priority 0; policy drop;"
    return f"table {family} filter {{\n\tchain input {{\n{base}\n{body}\n\t}}\n}}\n"


def flat_list(rules: int = 10_000, shape: str = "acl", seed: int = 1) -> tuple[str, str]:
    """The same list for iptables-restore and for `nft -f`."""
    found = flat_rules(rules, shape, seed)
    return flat_iptables(found), flat_nft(found)
