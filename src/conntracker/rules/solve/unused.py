"""Chains that no base chain leads to."""

from __future__ import annotations

from collections.abc import Iterable

from conntracker.rules.ruleset import ChainKey, KnownChain, Ruleset, namespace_of
from conntracker.rules.terms import Branches, Verdict

__all__ = ["beside", "elsewhere", "unused_chains", "unused_places"]

_FAMILIES = frozenset(("ip", "ip6", "inet"))
_HOOKS = frozenset(("prerouting", "input", "forward", "output", "postrouting"))


def unused_chains(ruleset: Ruleset) -> list[ChainKey]:
    """The chains that no jump leads to from any base chain, in the order of the ruleset."""
    used = _led_to(ruleset, (known.key for known in ruleset.chains if known.chain.hook is not None))
    return [known.key for known in ruleset.chains if known.key not in used]


def _led_to(ruleset: Ruleset, keys: Iterable[ChainKey]) -> set[ChainKey]:
    """The chains, and all that they lead to."""
    chains = ruleset.by_key()
    used: set[ChainKey] = set()
    open_ = list(keys)
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
    return used


def elsewhere(ruleset: Ruleset) -> set[ChainKey]:
    """The chains to which packets may come by hooks that proofs do not follow: of devices, bridges and ARP."""
    return _led_to(ruleset, (known.key for known in ruleset.chains if known.chain.hook is not None and beside(known)))


def beside(known: KnownChain) -> bool:
    """Whether a base chain is not on the way of IP packets through this host, as proofs follow it."""
    return known.chain.family not in _FAMILIES or known.chain.hook not in _HOOKS


def unused_places(ruleset: Ruleset) -> set[tuple[ChainKey, int]]:
    """The rules of such chains."""
    chains = ruleset.by_key()
    return {(key, index) for key in unused_chains(ruleset) for index in range(len(chains[key].meanings))}
