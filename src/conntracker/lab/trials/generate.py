"""Rulesets made at random: small, of every match and target that the engine is to understand."""

from __future__ import annotations

import random

from conntracker.lab.trials.iptables_random import iptables_ruleset
from conntracker.lab.trials.nft_random import nft_ruleset

__all__ = ["KINDS", "random_ruleset", "with_sets"]

# What a random ruleset can be written in: the input of iptables-restore, ip6tables-restore or nft -f.
KINDS = ("iptables", "ip6tables", "nft")


def random_ruleset(seed: int, kind: str) -> str:
    """The text of a ruleset of one of KINDS. The same seed gives the same text."""
    if kind == "nft":
        return nft_ruleset(seed)
    return iptables_ruleset(seed, {"iptables": 4, "ip6tables": 6}[kind])


def with_sets(save: str, seed: int) -> str:
    """The save with some rules that ask ip_set, too, which iptables-restore takes only where the set is there."""
    draw = random.Random(seed)  # noqa: S311 - nothing secret hangs on it
    lines = []
    for line in save.splitlines():
        words = line.split(" ", 2)
        if words[0] == "-A" and draw.random() < 0.3:
            ask = f"-m set {draw.choice(('', '! '))}--match-set trial {draw.choice(('src', 'dst'))}"
            words.insert(2, ask)
        lines.append(" ".join(words))
    return "\n".join(lines) + "\n"
