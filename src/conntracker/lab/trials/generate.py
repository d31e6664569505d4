"""Rulesets made at random: small, of every match and target that the engine is to understand."""

from __future__ import annotations

from conntracker.lab.trials.iptables_random import iptables_ruleset
from conntracker.lab.trials.nft_random import nft_ruleset

__all__ = ["KINDS", "random_ruleset"]

# What a random ruleset can be written in: the input of iptables-restore, ip6tables-restore or nft -f.
KINDS = ("iptables", "ip6tables", "nft")


def random_ruleset(seed: int, kind: str) -> str:
    """The text of a ruleset of one of KINDS. The same seed gives the same text."""
    if kind == "nft":
        return nft_ruleset(seed)
    return iptables_ruleset(seed, {"iptables": 4, "ip6tables": 6}[kind])
