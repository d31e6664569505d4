"""Chains that no packet's way leads through, and sets that no rule asks."""

from __future__ import annotations

import re

from conntracker.rules.ruleset import KnownChain, NamedSet, Ruleset
from conntracker.rules.solve.unused import unused_chains

__all__ = ["chains_without_way", "sets_without_rule"]

_REFERENCE = re.compile(r"@([\w./\\-]+)")


def chains_without_way(ruleset: Ruleset) -> list[KnownChain]:
    """The chains that no base chain leads to, in the order of the ruleset."""
    keys = set(unused_chains(ruleset))
    return [known for known in ruleset.chains if known.key in keys]


def sets_without_rule(ruleset: Ruleset) -> list[NamedSet]:
    """The named sets and maps that no rule of their table names, in the order of the ruleset."""
    used: set[tuple[str, str, str]] = set()
    for known in ruleset.chains:
        table = known.chain.family, known.chain.table
        for rule, meaning in known.items():
            names = {*meaning.uses, *_REFERENCE.findall(rule.text or "")}
            used |= {(*table, name) for name in names}
    return [one for one in ruleset.sets if (one.family, one.table, one.name) not in used]
