"""The rulesets of one moment: which rule has a handle or a position, and where each chain is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby

from conntracker.rules.chain import Chain
from conntracker.rules.effect import effect
from conntracker.rules.iptables_save import SavedChain, legacy_chains, saved_tables
from conntracker.rules.nft_listing import listed_chains
from conntracker.rules.ownership import is_of_iptables
from conntracker.steps import Rule

__all__ = ["Chain", "Snapshot", "Texts", "effect"]


@dataclass(frozen=True, slots=True)
class Texts:
    """The rulesets of one moment, as text without counters and dates.

    nft         `nft -a -s list ruleset` without our own tables, None if it could not be read
    saves       (kind, family) -> what iptables-save prints: kind iptables-nft or iptables-legacy, family ip or ip6;
                absent where there are no such tables, empty where legacy tables could not be read
    generation  the nft generation in force while it was read, None if unknown
    missing     lines for a person: what could not be read, and why
    own         family and name of our own tables that were there, and are left out
    """

    nft: str | None
    saves: Mapping[tuple[str, str], str]
    generation: int | None
    missing: tuple[str, ...] = ()
    own: frozenset[tuple[str, str]] = field(default=frozenset(), compare=False)


class Snapshot:
    """The chains of one moment. Rules are found by handle or position, in constant time."""

    __slots__ = ("_by_handle", "_legacy", "_nft", "chains", "has_legacy")

    def __init__(self, chains: tuple[Chain, ...], has_legacy: bool) -> None:
        """`has_legacy`: whether ip_tables or ip6_tables have any table, be it empty or unreadable."""
        self.chains = chains
        self.has_legacy = has_legacy
        self._legacy: dict[tuple[str, str, str], Chain] = {}
        self._nft: dict[tuple[str, str, str], Chain] = {}
        self._by_handle: dict[tuple[str, str, str, int], Rule] = {}
        for chain in chains:
            if chain.kind == "iptables-legacy":
                self._legacy[chain.family, chain.table, chain.name] = chain
                continue
            self._nft[chain.family, chain.table, chain.name] = chain
            for rule in chain.rules:
                if rule.handle is not None:
                    self._by_handle[chain.family, chain.table, chain.name, rule.handle] = rule

    @classmethod
    def parse(cls, texts: Texts) -> Snapshot:
        """Never raises: what is not understood is kept as text or left out."""
        chains = list(_nft_chains(texts))
        for (kind, family), text in texts.saves.items():
            if kind == "iptables-legacy":
                chains += legacy_chains(family, text)
        return cls(tuple(chains), any(kind == "iptables-legacy" for kind, _ in texts.saves))

    def nft_chain(self, family: str, table: str, chain: str) -> Chain | None:
        """A chain of nf_tables, made by nft or by iptables-nft."""
        return self._nft.get((family, table, chain))

    def nft_rule(self, family: str, table: str, chain: str, handle: int) -> Rule | None:
        """A rule of nf_tables, made by nft or by iptables-nft."""
        return self._by_handle.get((family, table, chain, handle))

    def legacy_chain(self, family: str, table: str, chain: str) -> Chain | None:
        """A chain of ip_tables (`ip`) or ip6_tables (`ip6`)."""
        return self._legacy.get((family, table, chain))

    def legacy_rule(self, family: str, table: str, chain: str, position: int) -> Rule | None:
        """A rule of ip_tables or ip6_tables by its position, from 1; None behind the last."""
        found = self._legacy.get((family, table, chain))
        return found.rules[position - 1] if found and 1 <= position <= len(found.rules) else None


def _nft_chains(texts: Texts) -> Iterator[Chain]:
    """The chains of nf_tables; those of tables that iptables-nft made in its syntax."""
    saves = {family: saved_tables(text) for (kind, family), text in texts.saves.items() if kind == "iptables-nft"}
    listed = listed_chains(texts.nft or "")
    for (family, table), group in groupby(listed, lambda chain: (chain.family, chain.table)):
        chains = list(group)
        saved = saves.get(family, {}).get(table)
        yield from chains if saved is None or not _same_shape(chains, saved) else _in_iptables_syntax(chains, saved)


def _same_shape(chains: list[Chain], saved: dict[str, SavedChain]) -> bool:
    """Whether all chains have as many rules in both; a save also shows standard chains that do not exist."""
    listed = {chain.name: len(chain.rules) for chain in chains}
    return listed.keys() <= saved.keys() and all(listed.get(name, 0) == len(saved[name].rules) for name in saved)


def _in_iptables_syntax(chains: list[Chain], saved: dict[str, SavedChain]) -> Iterator[Chain]:
    for chain in chains:
        rules = tuple(
            replace(rule, kind="iptables-nft", text=text) if is_of_iptables(rule.text or "", text) else rule
            for rule, text in zip(chain.rules, saved[chain.name].rules, strict=True)
        )
        yield replace(chain, kind="iptables-nft", rules=rules)
