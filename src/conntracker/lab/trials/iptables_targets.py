"""Targets of iptables(8) with arguments made at random, and in which tables and chains each is allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from conntracker.lab.trials.iptables_matches import Match
from conntracker.lab.trials.pool import Pool

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """How a target is made.

    fit        where it is allowed, and how likely it is
    protocols  that the rule must ask for; empty: none
    """

    fit: Match
    protocols: tuple[str, ...] = ()


def _target(
    make: Callable[[Pool], str],
    weight: int,
    tables: str = "",
    hooks: str = "",
    protocols: str = "",
    versions: tuple[int, ...] = (4, 6),
) -> Target:
    fit = Match(
        make,
        weight,
        frozenset(hooks.split()) if hooks else None,
        frozenset(tables.split()) if tables else None,
        versions,
    )
    return Target(fit, tuple(protocols.split()))


def _reject(pool: Pool) -> str:
    kinds = {
        4: ("", " --reject-with icmp-port-unreachable", " --reject-with icmp-admin-prohibited"),
        6: ("", " --reject-with icmp6-port-unreachable", " --reject-with icmp6-adm-prohibited"),
    }
    return "REJECT" + pool.one(kinds[pool.version])


def _mark(pool: Pool) -> str:
    form = pool.weighed({"set-mark": 4, "set-xmark": 3, "and-mark": 1, "or-mark": 1, "xor-mark": 1})
    return f"MARK --{form} {pool.mark() if form.startswith('set') else hex(pool.one((1, 3, 16)))}"


def _connmark(pool: Pool) -> str:
    form = pool.one(("set-mark", "set-xmark", "save-mark", "restore-mark", "save-mark --mask 0xff"))
    return f"CONNMARK --{form}" + (f" {pool.mark()}" if form.startswith("set") else "")


def _to(pool: Pool, ports: bool) -> str:
    address = pool.one((pool.address(), pool.span()))
    if not ports:
        return address
    return (f"[{address}]" if pool.version == 6 else address) + f":{pool.one(('80', '8080', '1024-1100'))}"


def _tcpmss(pool: Pool) -> str:
    return f"--tcp-flags SYN,RST SYN -j TCPMSS {pool.one(('--clamp-mss-to-pmtu', '--set-mss 1200'))}"


def _netmap(pool: Pool) -> str:
    return f"NETMAP --to {'10.9.8.0/24' if pool.version == 4 else 'fd00:9:8::/112'}"


def _hop_limit(pool: Pool) -> str:
    name = "ttl" if pool.version == 4 else "hl"
    return f"{name.upper()} --{name}-{pool.one(('set 64', 'set 2', 'inc 1', 'dec 1'))}"


_PORTED = "tcp udp"
_IN_NAT, _OUT_NAT = "PREROUTING OUTPUT", "POSTROUTING INPUT"

# Without `-j`: TARGETS[name].fit.make(pool).
TARGETS: dict[str, Target] = {
    "ACCEPT": _target(lambda pool: "ACCEPT", 16),
    "DROP": _target(lambda pool: "DROP", 12, "filter mangle raw"),
    "REJECT": _target(_reject, 8, "filter", "INPUT FORWARD OUTPUT"),
    "REJECT-tcp": _target(lambda pool: "REJECT --reject-with tcp-reset", 2, "filter", "INPUT FORWARD OUTPUT", "tcp"),
    "LOG": _target(lambda pool: f'LOG --log-prefix "{pool.one(("in: ", "drop", "[x] "))}" --log-level 4', 3),
    "RETURN": _target(lambda pool: "RETURN", 8),
    "NFLOG": _target(lambda pool: "NFLOG --nflog-group 7", 1),
    "none": _target(lambda pool: "", 3),
    "MARK": _target(_mark, 16, "mangle"),
    "CONNMARK": _target(_connmark, 8, "mangle"),
    "TTL": _target(_hop_limit, 2, "mangle"),
    "TOS": _target(lambda pool: f"TOS --set-tos {pool.one(('0x10', '0x08/0x3f'))}", 2, "mangle"),
    "DSCP": _target(lambda pool: f"DSCP --set-dscp {pool.one(('0x04', '0x2e'))}", 2, "mangle"),
    "CHECKSUM": _target(lambda pool: "CHECKSUM --checksum-fill", 2, "mangle", protocols="udp"),
    "TCPMSS": _target(_tcpmss, 4, "mangle", "FORWARD OUTPUT POSTROUTING", "tcp-syn"),
    "NOTRACK": _target(lambda pool: "NOTRACK", 5, "raw"),
    "CT": _target(lambda pool: pool.one(("CT --notrack", "CT --zone 7")), 4, "raw"),
    "TRACE": _target(lambda pool: "TRACE", 2, "raw", "PREROUTING"),  # at OUTPUT it would trace the host's answers
    "DNAT": _target(lambda pool: f"DNAT --to-destination {_to(pool, False)}", 8, "nat", _IN_NAT),
    "DNAT-port": _target(lambda pool: f"DNAT --to-destination {_to(pool, True)}", 6, "nat", _IN_NAT, _PORTED),
    "REDIRECT": _target(lambda pool: "REDIRECT", 3, "nat", _IN_NAT),
    "REDIRECT-port": _target(
        lambda pool: f"REDIRECT --to-ports {pool.one(('8080', '1024-1100'))}", 6, "nat", _IN_NAT, _PORTED
    ),
    "SNAT": _target(lambda pool: f"SNAT --to-source {_to(pool, False)}", 6, "nat", _OUT_NAT),
    "SNAT-port": _target(lambda pool: f"SNAT --to-source {_to(pool, True)}", 3, "nat", _OUT_NAT, _PORTED),
    "MASQUERADE": _target(lambda pool: "MASQUERADE", 8, "nat", "POSTROUTING"),
    "MASQUERADE-port": _target(lambda pool: "MASQUERADE --to-ports 1024-1100", 1, "nat", "POSTROUTING", _PORTED),
    "NETMAP": _target(_netmap, 3, "nat", "PREROUTING POSTROUTING OUTPUT INPUT"),
}
