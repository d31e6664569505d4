"""Rulesets at random in the syntax of iptables-restore(8): several tables, user chains, every match and target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from conntracker.lab.trials.iptables_matches import MATCHES, protocol_part
from conntracker.lab.trials.iptables_targets import TARGETS, Target
from conntracker.lab.trials.pool import Pool

__all__ = ["iptables_ruleset"]

_TABLES = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
}
_PROTOCOLS = {"": 30, "tcp": 30, "udp": 18, "icmp": 8, "sctp": 3, "udplite": 2, "esp": 1, "gre": 1, "all": 1}


@dataclass(frozen=True, slots=True)
class _Place:
    """A chain: in which table, and which built-in chains lead to it."""

    table: str
    name: str
    hooks: frozenset[str]


def iptables_ruleset(seed: int, version: int) -> str:
    """A save of 10 to 40 rules. Every match and target is used by some of len(MATCHES) seeds in a row."""
    pool = Pool(("iptables", version, seed), version)
    tables = ["filter", *(name for name in ("raw", "mangle", "nat") if pool.chance(0.55))]
    featured = [names[seed % len(names)] for names in (sorted(MATCHES), sorted(TARGETS))]
    tables += _needed(pool, featured, version)
    return "".join(_table(pool, name, featured) for name in dict.fromkeys(tables))


def _needed(pool: Pool, featured: list[str], version: int) -> Iterator[str]:
    """Tables in which what is featured may stand."""
    fits = [MATCHES[featured[0]], TARGETS[featured[1]].fit]
    yield from (pool.one(sorted(fit.tables)) for fit in fits if fit.tables and version in fit.versions)


def _table(pool: Pool, table: str, featured: list[str]) -> str:
    built_in = [_Place(table, name, frozenset({name})) for name in _TABLES[table]]
    users = [
        _Place(table, f"{pool.one(('in', 'svc', 'log-it', 'from_lan'))}{number}", hooks)
        for number, hooks in enumerate(_user_hooks(pool, table))
    ]
    lines = [f"*{table}"]
    for place in built_in:
        policy = "DROP" if table == "filter" and pool.chance(0.5) else "ACCEPT"
        lines.append(f":{place.name} {policy} [0:0]")
    lines += [f":{place.name} - [0:0]" for place in users]
    for index, place in enumerate([*built_in, *users]):
        later = [one for one in users[max(0, index + 1 - len(built_in)) :] if place.hooks <= one.hooks]
        lines += _rules(pool, place, later, featured)
    return "\n".join([*lines, "COMMIT"]) + "\n"


def _user_hooks(pool: Pool, table: str) -> list[frozenset[str]]:
    """For each user chain, the built-in chains that may lead to it."""
    hooks = _TABLES[table]
    count = pool.random.randint(1, 4 if table == "filter" else 2)
    return [frozenset(pool.one((pool.some(hooks, 1), pool.some(hooks, 2), list(hooks)))) for _ in range(count)]


def _rules(pool: Pool, place: _Place, later: list[_Place], featured: list[str]) -> Iterator[str]:
    count = pool.random.randint(2, 6) if place.table == "filter" else pool.random.randint(0, 4)
    jumps = [*later]
    for number in range(max(count, len(jumps))):
        match = featured[0] if pool.chance(0.3) else None
        if number < len(jumps) and pool.chance(0.8):
            target: Target | None = None
            ending = f"{pool.weighed({'-j': 5, '-g': 1})} {jumps[number].name}"
        else:
            name = _chosen(pool, place, featured[1])
            target, ending = TARGETS[name], _ending(pool, TARGETS[name])
        yield _rule(pool, place, match, target, ending)


def _chosen(pool: Pool, place: _Place, featured: str) -> str:
    fitting = {
        name: one.fit.weight for name, one in TARGETS.items() if one.fit.fits(pool.version, place.table, place.hooks)
    }
    return featured if featured in fitting and pool.chance(0.3) else pool.weighed(fitting)


def _ending(pool: Pool, target: Target) -> str:
    made = target.fit.make(pool)
    return made if not made or made.startswith("--") else f"-j {made}"


def _rule(pool: Pool, place: _Place, match: str | None, target: Target | None, ending: str) -> str:
    """Addresses, interfaces, protocol, matches, target: in the order in which iptables-save prints them."""
    words = [f"-A {place.name}"]
    words += [f"{pool.negated()}{option} {_network(pool)}" for option in ("-s", "-d") if pool.chance(0.3)]
    words += [f"{pool.negated()}{option} {_interface(pool)}" for option in _sides(place) if pool.chance(0.25)]
    fragment = match == "fragment" or (pool.version == 4 and pool.chance(0.02))
    words.append(_protocol(pool, target, fragment))
    if fragment and pool.version == 4:
        words.append(MATCHES["fragment"].make(pool))
    words += _matches(pool, place, match)
    return " ".join(word for word in (*words, ending) if word)


def _network(pool: Pool) -> str:
    """With a mask of the other notation now and then, a mask with holes too."""
    if pool.chance(0.15):
        return pool.one(
            ("10.1.0.0/255.255.0.0", "10.0.2.0/255.0.255.0", "192.168.1.9/255.255.255.255")
            if pool.version == 4
            else ("fd00:1::/ffff:ffff::", "fd00:0:2::/ffff:0:ffff::", "2001:db8::9/128")
        )
    return pool.prefix()


def _interface(pool: Pool) -> str:
    return pool.weighed({pool.interface(): 6, "eth+": 2, "lo": 1, "ppp+": 1})


def _sides(place: _Place) -> list[str]:
    """`-i` and `-o` where there can be such an interface: iptables refuses the others in built-in chains."""
    found = []
    if not place.hooks & {"OUTPUT", "POSTROUTING"}:
        found.append("-i")
    if not place.hooks & {"PREROUTING", "INPUT"}:
        found.append("-o")
    return found


def _protocol(pool: Pool, target: Target | None, fragment: bool) -> str:
    wanted = target.protocols if target else ()
    if wanted == ("tcp-syn",):
        return "-p tcp -m tcp"  # its flags are part of the target
    if wanted:
        name = pool.one(wanted)
        return f"-p {name} -m {name} --dport {pool.ports(':')}" if pool.chance(0.7) else f"-p {name}"
    if fragment:
        return pool.one(("", "-p udp"))  # a later fragment has no ports
    name = pool.weighed(_PROTOCOLS)
    return protocol_part(pool, name) if name and name != "all" else ""


def _matches(pool: Pool, place: _Place, match: str | None) -> Iterator[str]:
    fitting = {name: one.weight for name, one in MATCHES.items() if one.fits(pool.version, place.table, place.hooks)}
    fitting.pop("fragment", None)
    chosen = [match] if match in fitting else []
    for _ in range(pool.weighed({0: 5, 1: 5, 2: 2})):
        chosen.append(pool.weighed(fitting))
    seen: set[str] = set()
    for name in chosen:
        module = "conntrack" if name == "state" else name.partition("-")[0]  # one of each is enough
        if module not in seen:
            seen.add(module)
            yield MATCHES[name].make(pool)
