"""In which order the kernel calls base chains."""

from __future__ import annotations

from conntracker.rules.ruleset import KnownChain, Ruleset

__all__ = ["CONNTRACK", "WAYS", "base_chains", "effective_priority"]

# The hooks that a packet passes: to this host, through it, from it.
WAYS = {
    "input": ("ingress", "prerouting", "input"),
    "forward": ("ingress", "prerouting", "forward", "postrouting", "egress"),
    "output": ("output", "postrouting", "egress"),
}

# linux/netfilter_ipv4.h: where a packet of prerouting and output meets connection tracking.
CONNTRACK = -200

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
    them in the order in which they were made. Chains of nat come in the order of their own priorities. Whether legacy
    tables were there before nft's is not in any listing: they are taken to have been.
    """
    families = ("netdev", "inet") if hook in {"ingress", "egress"} else _FAMILIES[version]
    found = [
        (effective_priority(known), known.chain.priority or 0, known.chain.kind == "iptables-legacy", -index, known)
        for index, known in enumerate(ruleset.chains)
        if known.chain.hook == hook and known.chain.family in families
    ]
    return [known for *_, known in sorted(found, key=lambda one: one[:4])]
