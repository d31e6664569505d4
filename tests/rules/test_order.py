"""In which order base chains are called."""

from __future__ import annotations

import pytest

from conntracker.rules.chain import Chain
from conntracker.rules.order import base_chains, precedes_nat, unsettled
from conntracker.rules.ruleset import KnownChain, Ruleset


def chain(name: str, hook: str, priority: int, kind: str = "filter", family: str = "ip", of: str = "nft") -> KnownChain:
    """An empty base chain."""
    return KnownChain(Chain(of, family, "t", name, hook, priority, "accept", kind, None, ()), ())


NAT_OUT = chain("out", "output", -100, "nat")
NAT = chain("nat", "prerouting", -90, "nat")
FIRST, SECOND = chain("first", "prerouting", -100), chain("second", "prerouting", -100)
LEGACY = chain("PREROUTING", "prerouting", -100, "nat", of="iptables-legacy")


@pytest.mark.parametrize(
    ("chains", "order"),
    [
        ((FIRST, SECOND), "second first"),
        ((FIRST, NAT), "nat first"),
        ((NAT, FIRST), "first nat"),
        ((FIRST, NAT, SECOND), "second nat first"),
        ((NAT_OUT, FIRST, NAT), "first nat"),
        ((FIRST, NAT, LEGACY), "first PREROUTING nat"),
        ((chain("six", "output", -100, "nat", "ip6"), FIRST, NAT), "nat first"),
        ((chain("both", "output", -100, "nat", "inet"), FIRST, NAT), "first nat"),
    ],
)
def test_nat_is_called_where_its_first_chain_of_any_hook_was_made(chains: tuple[KnownChain, ...], order: str) -> None:
    """Of equal priorities the latest comes first, and NAT is as old in every hook as its first chain in any hook."""
    found = base_chains(Ruleset(chains), 4, "prerouting")
    assert [known.chain.name for known in found] == order.split()
    before = [known for known in found if precedes_nat(Ruleset(chains), 4, known)]
    nat = [index for index, known in enumerate(found) if known.chain.type == "nat"]
    assert not nat or before == found[: nat[0]]


def test_whose_chains_come_first_is_not_always_known() -> None:
    """Legacy and nft chains with rules at one hook and priority are told; empty ones are no matter."""
    text = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j DROP\nCOMMIT\n"
    legacy = Ruleset.parse(text, kind="iptables-legacy")
    both = Ruleset.joined([legacy, Ruleset.parse(text, kind="iptables-nft")])
    assert unsettled(both, 4) == [("input", 0)]
    assert unsettled(both, 6) == unsettled(legacy, 4) == []
