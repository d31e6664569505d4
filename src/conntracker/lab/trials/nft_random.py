"""Rulesets at random in the syntax of nft(8): tables of ip, ip6 and inet, several base chains a hook, sets and maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from conntracker.lab.trials.nft_matches import MATCHES, Place, fits
from conntracker.lab.trials.nft_statements import BY_PORT, nat, side_effect, verdict, verdict_map
from conntracker.lab.trials.pool import Pool

__all__ = ["nft_ruleset"]

_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
_FILTER_PRIORITIES = (-300, -150, -10, 0, 10, 50)
_NAT = {"prerouting": "dstnat", "output": "-100", "input": "100", "postrouting": "srcnat"}


@dataclass(frozen=True, slots=True)
class _Chain:
    name: str
    place: Place
    head: str  # its `type ...` line; empty for a user chain
    type: str = "filter"


def nft_ruleset(seed: int) -> str:
    """One or two tables of 10 to 40 rules together."""
    pool = Pool(("nft", seed), 4)
    families = pool.one((("inet",), ("inet",), ("ip",), ("ip6",), ("ip", "ip6"), ("inet", "ip")))
    featured = sorted(MATCHES)[seed % len(MATCHES)]
    return "".join(_table(pool, family, f"t{number}", featured) for number, family in enumerate(families))


def _table(pool: Pool, family: str, name: str, featured: str) -> str:
    bases, users = _base_chains(pool, family), _user_chains(pool, family)
    lines = [f"table {family} {name} {{", *_sets(pool)]
    for index, chain in enumerate([*users[::-1], *bases]):
        later = users[len(users) - index :] if index < len(users) else users
        targets = [one.name for one in later if chain.place.hooks <= one.place.hooks]
        lines += [f"  chain {chain.name} {{", *([f"    {chain.head}"] if chain.head else [])]
        lines += [f"    {rule}" for rule in _rules(pool, chain, targets, featured)]
        lines.append("  }")
    return "\n".join([*lines, "}"]) + "\n"


def _base_chains(pool: Pool, family: str) -> list[_Chain]:
    found = []
    hooks = [*pool.some(_HOOKS, 4)]
    hooks += [hook for hook in ("input", "forward") if pool.chance(0.6)]
    priorities = {hook: [*_FILTER_PRIORITIES] for hook in _HOOKS}
    for number, hook in enumerate(hooks):
        priority = priorities[hook].pop(pool.random.randrange(len(priorities[hook])))
        kind = "route" if hook == "output" and pool.chance(0.2) else "filter"
        policy = pool.weighed({"accept": 3, "drop": 2})
        head = f"type {kind} hook {hook} priority {priority}; policy {policy};"
        found.append(_Chain(f"{hook}{number}", Place(family, frozenset({hook})), head))
    for hook in [hook for hook in _NAT if pool.chance(0.3)]:
        head = f"type nat hook {hook} priority {_NAT[hook]};"
        found.append(_Chain(f"nat_{hook}", Place(family, frozenset({hook})), head, "nat"))
    return found


def _user_chains(pool: Pool, family: str) -> list[_Chain]:
    """In such an order that each jumps to later ones only."""
    found = []
    for number in range(pool.random.randint(1, 4)):
        hooks = frozenset(pool.one((pool.some(_HOOKS[1:4], 1), pool.some(_HOOKS, 2), list(_HOOKS))))
        found.append(_Chain(f"{pool.one(('svc', 'from_lan', 'checks'))}{number}", Place(family, hooks), ""))
    return [*found, _Chain(BY_PORT, Place(family, frozenset(_HOOKS)), "")]


def _sets(pool: Pool) -> Iterator[str]:
    """All that rules may refer to; some are never used, as in real rulesets."""
    for version, kind in ((4, "ipv4_addr"), (6, "ipv6_addr")):
        nets = ", ".join(pool.prefixes(version))
        yield f"  set nets{version} {{ type {kind}; flags interval; elements = {{ {nets} }}; }}"
        yield f"  set seen{version} {{ type {kind}; flags dynamic,timeout; timeout 10m; size 65535; }}"
        pairs = f"{pool.address(version)} . 22, {'192.168.0.0/16' if version == 4 else 'fd00:1::/32'} . 80-443"
        yield f"  set pairs{version} {{ type {kind} . inet_service; flags interval; elements = {{ {pairs} }}; }}"
    yield f"  set ports {{ type inet_service; flags interval; elements = {{ {', '.join(pool.port_list('-'))} }}; }}"
    yield '  set ifs { type ifname; elements = { "eth0", "wan0" }; }'
    verdicts = f"22 : jump {BY_PORT}, 53 : drop, 8080 : accept"
    yield f"  map byport {{ type inet_service : verdict; elements = {{ {verdicts} }}; }}"


def _rules(pool: Pool, chain: _Chain, targets: list[str], featured: str) -> Iterator[str]:
    if chain.name[:3] == "svc" and pool.chance(0.1):
        return  # an empty chain
    for _ in range(pool.random.randint(2, 6) if chain.type == "filter" else pool.random.randint(1, 3)):
        place = chain.place.drawn(pool)
        words = list(_matches(pool, place, featured))
        if pool.chance(0.3):
            words.insert(pool.random.randint(0, len(words)), side_effect(pool, place))
        if chain.type == "nat" and pool.chance(0.8):
            words.append(nat(pool, place))
        elif pool.chance(0.15):
            words.append(verdict_map(pool, place, targets))
        elif place.hooks <= {"prerouting", "output"} and chain.type == "filter" and pool.chance(0.1):
            words.append("notrack")
        else:
            words.append(verdict(pool, place, targets))
        rule = " ".join(word for word in words if word) or "counter"
        yield f'{rule} comment "{pool.one(("a rule", "tcp dport 22 drop"))}"' if pool.chance(0.1) else rule


def _matches(pool: Pool, place: Place, featured: str) -> Iterator[str]:
    fitting = {name: one[1] for name, one in MATCHES.items() if fits(name, place)}
    names = [pool.weighed(fitting) for _ in range(pool.weighed({0: 1, 1: 6, 2: 6, 3: 2}))]
    if featured in fitting and pool.chance(0.3):
        names.append(featured)
    for name in dict.fromkeys(names):
        yield MATCHES[name][0](pool, place)
