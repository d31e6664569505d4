"""The rules in force in the calling thread's network namespace, understood.

nf_tables is read as JSON with the elements of its sets, table by table: libnftables 1.0.6 writes broken JSON for a
table with an owner, and such a one is read as text and translated. Rules of iptables-nft are understood by their saves,
as libnftables' JSON says nothing of their matches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from conntracker.rules.chain import Chain
from conntracker.rules.errors import RuleSyntaxError
from conntracker.rules.iptables import meaning_of, parse_save
from conntracker.rules.nft import parse_json
from conntracker.rules.nft_listing import listed_chains
from conntracker.rules.ruleset import KnownChain, Meaning, NamedSet, Ruleset
from conntracker.rules.snapshot import Snapshot, Texts
from conntracker.rules.terms import Atom
from conntracker.sources.nftables import (
    NFT_CTX_OUTPUT_HANDLE,
    NFT_CTX_OUTPUT_JSON,
    LibraryMissing,
    Nftables,
    NftablesError,
)
from conntracker.sources.rulesets import generation, legacy_save, read_texts
from conntracker.sources.translate import translate

__all__ = ["read_ruleset"]

_ATTEMPTS = 5
_TABLE = re.compile(r"^table (\w+) (\S+) \{", re.MULTILINE)
_OWNER = re.compile(r"^\tflags ([\w,]*\bowner\b[\w,]*)\n?", re.MULTILINE)
_ChainKey = tuple[str, str, str]  # family, table, chain
_RuleKey = tuple[str, str, str, int | None]  # and handle


def read_ruleset() -> Ruleset:
    """All tables of nf_tables but our own, and those of ip_tables; with counters, where rules have some.

    What cannot be read is said in `notes`.
    """
    for _ in range(_ATTEMPTS):
        before = generation()
        texts = read_texts()
        found = _read(texts)
        if before is not None and before == generation() == texts.generation:
            return found
    return replace(found, notes=(*found.notes, "the rules changed all the while they were read"))


def _read(texts: Texts) -> Ruleset:
    notes = list(texts.missing)
    snapshot = Snapshot.parse(texts)
    foreign = {
        (rule.family, rule.table, rule.chain, rule.handle)
        for chain in snapshot.chains for rule in chain.rules if rule.kind == "iptables-nft"
    }  # fmt: skip
    native = _native(texts.nft or "", foreign, notes)
    understood = {(one.chain.family, one.chain.table, one.chain.name): one for one in native.chains}
    chains: list[KnownChain] = []
    for chain in snapshot.chains:
        if chain.kind != "iptables-legacy":
            chains.append(_known(chain, understood.pop((chain.family, chain.table, chain.name), None), notes))
    chains += understood.values()  # chains without a name, which no listing has
    chains += _legacy(notes)
    return Ruleset(tuple(chains), native.sets, tuple(dict.fromkeys((*notes, *native.notes))))


def _native(listing: str, foreign: set[_RuleKey], notes: list[str]) -> Ruleset:
    """The tables of nf_tables, as far as JSON tells; foreign: rules that their saves tell better."""
    objects: list[Any] = []
    chains: list[KnownChain] = []
    sets: list[NamedSet] = []
    try:
        with Nftables() as nft:
            for family, table in _TABLE.findall(listing):
                listed = _listed(nft, f"list table {family} {table}")
                other = _translated(nft, family, table, notes) if _lossy(listed, foreign) else None
                if other is None:
                    objects += listed
                else:
                    chains += other.chains
                    sets += other.sets
    except LibraryMissing as error:
        notes.append(f"no nft ruleset: {error}")
    found = parse_json({"nftables": objects}, listing=listing)
    return replace(found, chains=(*found.chains, *chains), sets=(*found.sets, *sets))


def _listed(nft: Nftables, command: str) -> list[Any]:
    """What a table has; nothing where the JSON is broken, or has flags in it that it has no words for."""
    try:
        found = json.loads(nft.run(command, NFT_CTX_OUTPUT_HANDLE | NFT_CTX_OUTPUT_JSON))["nftables"]
    except (ValueError, NftablesError):
        return []
    return [] if any((one.get("table") or {}).get("flags") for one in found) else list(found)


def _lossy(listed: list[Any], foreign: set[_RuleKey]) -> bool:
    """Whether the text of a table says more than its JSON: of extensions of iptables, and chains without a name."""
    for one in listed:
        rule = one.get("rule") or {}
        for statement in rule.get("expr", ()):
            if isinstance(statement, str):
                return True
            place = (rule.get("family"), rule.get("table"), rule.get("chain"), rule.get("handle"))
            if "xt" in statement and place not in foreign:
                return True
    return not listed


def _translated(nft: Nftables, family: str, table: str, notes: list[str]) -> Ruleset | None:
    """A table of which libnftables can only list the text; None where that cannot be loaded."""
    try:
        text = nft.run(f"list table {family} {table}", NFT_CTX_OUTPUT_HANDLE)
        document, listing = translate(_without_owner(text), f"table {family} {table}")
    except (OSError, RuleSyntaxError) as error:
        notes.append(f"table {family} {table} is known in part only: {error}")
        return None
    found = parse_json(document, listing=listing)
    handles = {(one.family, one.table, one.name): one for one in listed_chains(text)}
    return replace(found, chains=tuple(_with_handles(one, handles) for one in found.chains))


def _without_owner(text: str) -> str:
    """The listing as anybody can load it: a process of its own does, and is gone before it is read."""

    def kept(found: re.Match[str]) -> str:
        flags = ",".join(flag for flag in found[1].split(",") if flag not in {"owner", "persist"})
        return f"\tflags {flags}\n" if flags else ""

    return re.sub(r" # handle \d+$", "", _OWNER.sub(kept, re.sub(r"\t# progname .*\n", "", text)), flags=re.MULTILINE)


def _with_handles(known: KnownChain, chains: dict[_ChainKey, Chain]) -> KnownChain:
    """The chain with the rules that are in force, instead of those of the translation."""
    chain = chains.get((known.chain.family, known.chain.table, known.chain.name))
    if chain is None or len(chain.rules) != len(known.chain.rules):
        return known
    return replace(known, chain=replace(known.chain, rules=chain.rules))


def _known(chain: Chain, understood: KnownChain | None, notes: list[str]) -> KnownChain:
    by_handle = {rule.handle: meaning for rule, meaning in (understood.items() if understood else ())}
    return KnownChain(chain, tuple(_meaning(chain, index, by_handle, notes) for index in range(len(chain.rules))))


def _meaning(chain: Chain, index: int, by_handle: dict[int | None, Meaning], notes: list[str]) -> Meaning:
    rule = chain.rules[index]
    told = by_handle.get(rule.handle)
    if rule.kind == "iptables-nft" and rule.text is not None:
        try:
            counters = told.counters if told else None
            return replace(meaning_of(rule.text, rule), counters=counters)
        except RuleSyntaxError as error:
            notes.append(f"{rule.family} {rule.table} {rule.chain} {rule.position} is not understood: {error}")
    if told is None:
        place = f"{rule.family}/{rule.table}/{rule.chain}/{rule.position}"
        return Meaning((Atom("rule", rule.text or "", place),))
    return told


def _legacy(notes: list[str]) -> Iterable[KnownChain]:
    for family in ("ip", "ip6"):
        text = legacy_save(family, [], counted=True)
        if not text:
            continue
        try:
            yield from parse_save(text, family=family, kind="iptables-legacy")
        except RuleSyntaxError as error:
            notes.append(f"the legacy tables of {family} are not understood: {error}")
