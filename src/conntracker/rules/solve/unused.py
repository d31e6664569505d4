"""Chains that no base chain leads to."""

from __future__ import annotations

from conntracker.rules.ruleset import ChainKey, Ruleset, namespace_of
from conntracker.rules.terms import Branches, Verdict

__all__ = ["unused_chains", "unused_places"]


def unused_chains(ruleset: Ruleset) -> list[ChainKey]:
    """The chains that no jump leads to from any base chain, in the order of the ruleset."""
    chains = ruleset.by_key()
    used: set[ChainKey] = set()
    open_ = [known.key for known in ruleset.chains if known.chain.hook is not None]
    while open_:
        key = open_.pop()
        if key in used or key not in chains:
            continue
        used.add(key)
        for rule, meaning in chains[key].items():
            verdicts = [part for part in meaning.parts if isinstance(part, Verdict)]
            verdicts += [one for part in meaning.parts if isinstance(part, Branches) for _, one in part.cases]
            open_ += [
                (namespace_of(rule.kind), rule.family, rule.table, one.chain)
                for one in verdicts
                if one.chain is not None
            ]
    return [known.key for known in ruleset.chains if known.key not in used]


def unused_places(ruleset: Ruleset) -> set[tuple[ChainKey, int]]:
    """The rules of such chains."""
    chains = ruleset.by_key()
    return {(key, index) for key in unused_chains(ruleset) for index in range(len(chains[key].meanings))}
