"""What a proof does not look at, in words."""

from __future__ import annotations

from conntracker.rules.ruleset import Ruleset
from conntracker.rules.solve.unused import beside

__all__ = ["unseen_note"]


def unseen_note(ruleset: Ruleset) -> str:
    """A line that names the base chains of bridges, ARP and devices; empty if there are none."""
    chains = [known.chain for known in ruleset.chains if known.chain.hook is not None and beside(known)]
    names = [f"{chain.family} {chain.table} {chain.name}" for chain in chains]
    return f"not looked at, as they are not on the way of IP packets: {', '.join(names)}" if names else ""
