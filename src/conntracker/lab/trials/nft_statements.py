"""Statements of nft(8) made at random: verdicts, verdict maps, NAT, changes of the packet, and side effects."""

from __future__ import annotations

from conntracker.lab.trials.nft_matches import PORTED, Place
from conntracker.lab.trials.pool import Pool

__all__ = ["BY_PORT", "nat", "side_effect", "verdict", "verdict_map"]

# The chain that the map `byport` leads to.
BY_PORT = "by_port"

_REJECTABLE = frozenset({"input", "forward", "output"})


def verdict(pool: Pool, place: Place, chains: list[str]) -> str:
    """accept, drop, reject, return, a jump, or nothing."""
    choices = {"accept": 12, "drop": 10, "return": 4, "continue": 1, "": 2}
    if place.hooks <= _REJECTABLE:
        choices["reject"] = 6
    if chains:
        choices |= {"jump": 12, "goto": 3}
    chosen = pool.weighed(choices)
    if chosen == "reject":
        return chosen + _reject_with(pool, place)
    return f"{chosen} {pool.one(chains)}" if chosen in {"jump", "goto"} else chosen


def _reject_with(pool: Pool, place: Place) -> str:
    kinds = {
        "ip": ("", " with icmp type host-unreachable", " with icmp type admin-prohibited"),
        "ip6": ("", " with icmpv6 type admin-prohibited", " with icmpv6 type port-unreachable"),
        "inet": ("", " with icmpx type admin-prohibited", " with icmpx type no-route"),
    }
    if place.transport == "tcp" and pool.chance(0.4):
        return " with tcp reset"
    return pool.one(kinds[place.family])


def verdict_map(pool: Pool, place: Place, chains: list[str]) -> str:
    """A map from what a packet has to verdicts."""
    version = place.version
    name = "ip" if version == 4 else "ip6"
    first, second, third = (_ending(pool, chains) for _ in range(3))
    side = "oifname" if place.hooks & {"output", "postrouting"} else "iifname"
    keyed = {
        f"ct state vmap {{ established : {first}, related : {second}, invalid : {third} }}": 3,
        f"ct state vmap {{ established : accept, new : {first} }}": 1,
        f'{side} vmap {{ "eth0" : {first}, "lan0" : {second} }}': 3,
        f"{name} saddr vmap {{ {pool.prefixes(version)[0]} : {first}, {_elsewhere(version)} : {second} }}": 3,
        f"meta mark vmap {{ 0x1 : {first}, 0x2 : {second} }}": 1,
    }
    if place.transport in PORTED:
        port = f"{place.transport} dport"
        host = pool.address(version)
        keyed |= {
            f"{port} vmap {{ 22 : {first}, 80-443 : {second}, 8080 : {third} }}": 5,
            f'{side} . {port} vmap {{ "eth0" . 22 : {first}, "lan0" . 80 : {second} }}': 3,
            f"{name} daddr . {port} vmap {{ {host} . 22 : {first}, {_elsewhere(version)} . 80 : {second} }}": 3,
            f"{port} vmap @byport": 4 if BY_PORT in chains else 0,
        }
    elif not place.transport:
        keyed[f"meta l4proto vmap {{ tcp : {first}, udp : {second} }}"] = 4
    return pool.weighed(keyed)


def _elsewhere(version: int) -> str:
    return "100.64.0.1" if version == 4 else "2001:db8:e::1"


def _ending(pool: Pool, chains: list[str]) -> str:
    choices = {"accept": 4, "drop": 4, "return": 1, "continue": 1}
    choices |= {f"jump {chain}": 2 for chain in chains} | {f"goto {chain}": 1 for chain in chains}
    return pool.weighed(choices)


def side_effect(pool: Pool, place: Place) -> str:
    """Something that lets the rule go on."""
    version = place.version
    name = "ip" if version == 4 else "ip6"
    tcp = place.transport == "tcp"
    return pool.weighed(
        {
            "counter": 8,
            f'log prefix "{pool.one(("in: ", "drop "))}"': 3,
            f"meta mark set 0x{pool.one((1, 2, 3)):x}": 6,
            f"meta mark set meta mark {pool.one(('| 0x10', '& 0xff', '^ 0x3'))}": 2,
            f"ct mark set {pool.one(('0x1', 'meta mark', '0x3'))}": 3,
            "meta mark set ct mark": 2,
            "meta mark set tcp dport map { 22 : 0x1, 80 : 0x2 }": 2 if tcp else 0,
            f"add @seen{version} {{ {name} saddr }}": 1,
            f"update @seen{version} {{ {name} saddr limit rate over 5/second }}": 1,
            f"{name} dscp set {pool.one(('cs1', 'ef'))}": 1,
            f"{'ip ttl' if version == 4 else 'ip6 hoplimit'} set {pool.one((64, 3))}": 1,
            "tcp option maxseg size set 1200": 1 if tcp else 0,
            "meta priority set 1:2": 1,
            "log group 7": 1,
        }
    )


def nat(pool: Pool, place: Place) -> str:
    """A statement of a chain of type nat."""
    version = place.version
    inet = ("ip " if version == 4 else "ip6 ") if place.family == "inet" else ""
    address = pool.address(version)
    ported = place.transport in {"tcp", "udp"}
    side = "dport" if place.hooks & {"prerouting", "output"} else "sport"
    match = f"{place.transport} {side} {pool.one(('!= 25', pool.ports('-'), '1024-8080'))}"
    if place.hooks <= {"prerouting", "output"}:
        name = "dnat"
        more = {"redirect": 1, f"{match} redirect to :{pool.one((8080, 1024))}": 3 if ported else 0}
    elif place.hooks <= {"postrouting", "input"}:
        name = "snat"
        masked = {"masquerade": 3, f"{match} masquerade to :1024-1100": 1 if ported else 0}
        more = masked if "input" not in place.hooks else {}
    else:
        return pool.one(("accept", "return"))
    to = f"{name} {inet}to"
    choices = {f"{to} {address}": 4, f"{to} {pool.span(version)}": 1}
    if ported:
        choices[f"{match} {to} {f'[{address}]' if version == 6 else address}:8080"] = 4
        choices[f"{match} {name} to :8080"] = 2
        choices[f"{to} {place.transport} {side} map {{ 22 : {address}, 80 : {pool.address(version)} }}"] = 2
    return pool.weighed(choices | more)
