"""In which order the kernel calls base chains."""

from __future__ import annotations

from conntracker.rules.ruleset import KnownChain, Ruleset
from conntracker.rules.terms import Assign

__all__ = ["CONNTRACK", "LEFT_ONCE", "WAYS", "base_chains", "effective_priority", "precedes_nat", "unsettled"]

# The hooks that a packet passes: to this host, through it, from it.
WAYS = {
    "input": ("ingress", "prerouting", "input"),
    "forward": ("ingress", "prerouting", "forward", "postrouting", "egress"),
    "output": ("output", "postrouting", "egress"),
}

# linux/netfilter_ipv4.h: where a packet of prerouting and output meets connection tracking.
CONNTRACK = -200

# Behind postrouting, the first packet of a flow confirms it (nf_confirm, IPS_CONFIRMED): by lo it comes in again so.
LEFT_ONCE = Assign("ct_status", 8, 8)

_NAT = {"prerouting": -100, "output": -100, "input": 100, "postrouting": 100}
_FAMILIES = {4: ("ip", "inet"), 6: ("ip6", "inet")}


def effective_priority(known: KnownChain) -> int:
    """Where in its hook a chain is called: chains of type nat by nf_nat, wherever they say (nf_nat_core.c)."""
    chain = known.chain
    if chain.type == "nat" and chain.hook in _NAT:
        return _NAT[chain.hook]
    return chain.priority or 0


def base_chains(ruleset: Ruleset, version: int, hook: str) -> list[KnownChain]:
    """The base chains of a hook for packets of an IP version (4 or 6), in the order in which the kernel calls them.

    Of equal priorities the one registered last comes first (nf_hook_entries_grow, net/netfilter/core.c): a listing has
    them in the order in which they were made. Whether legacy tables were there before nft's is not in any listing: they
    are taken to have been.
    """
    families = ("netdev", "inet") if hook in {"ingress", "egress"} else _FAMILIES[version]
    nat = _nat_registered(ruleset, version)
    found = [
        (_place(known, index, nat), known)
        for index, known in enumerate(ruleset.chains)
        if known.chain.hook == hook and known.chain.family in families
    ]
    return [known for _, known in sorted(found, key=lambda one: one[0])]


def unsettled(ruleset: Ruleset, version: int) -> list[tuple[str, int]]:
    """Hook and priority of the places where legacy tables and nft's have chains, and none says whose come first."""
    kinds: dict[tuple[str, int], set[bool]] = {}
    for known in ruleset.chains:
        if known.chain.hook is not None and known.chain.family in _FAMILIES[version] and known.meanings:
            place = known.chain.hook, effective_priority(known)
            kinds.setdefault(place, set()).add(known.chain.kind == "iptables-legacy")
    return [place for place, found in kinds.items() if len(found) == 2]


def precedes_nat(ruleset: Ruleset, version: int, known: KnownChain) -> bool:
    """Whether a chain is called before NAT is in its hook, whether or not NAT has chains there."""
    hook = known.chain.hook
    if hook not in _NAT:
        return False
    index = next(number for number, one in enumerate(ruleset.chains) if one is known)
    nat = _nat_registered(ruleset, version)
    return _place(known, index, nat)[:3] < (_NAT[hook], *nat)


# (priority, legacy, -index), and of chains of nat the same among themselves.
_Place = tuple[int, bool, int, int, bool, int]


def _place(known: KnownChain, index: int, nat: tuple[bool, int]) -> _Place:
    chain = known.chain
    own = chain.kind == "iptables-legacy", -index
    priority = effective_priority(known)
    return (priority, *nat, chain.priority or 0, *own) if chain.type == "nat" else (priority, *own, 0, False, 0)


def _nat_registered(ruleset: Ruleset, version: int) -> tuple[bool, int]:
    """When NAT was: for all hooks at once, with the first of its chains in any of them (nf_nat_register_fn)."""
    return max(
        (
            (known.chain.kind == "iptables-legacy", -index)
            for index, known in enumerate(ruleset.chains)
            if known.chain.type == "nat" and known.chain.family in _FAMILIES[version]
        ),
        default=(False, 0),
    )
