"""What no comparison of packets shows: chains beside their way, and what rules do that no other rule sees."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from conntracker.rules.ruleset import ChainKey, KnownChain, Meaning, Ruleset
from conntracker.rules.solve.unused import beside, elsewhere, unused_chains
from conntracker.rules.terms import Atom, Effect, Nat, Part

__all__ = ["apart", "chains_apart", "doing", "doings_apart"]

# Effects that leave a packet and its flow alone: what rules log, count and remember.
_QUIET = frozenset(("counter", "log", "nflog", "ulog", "trace", "audit", "set", "quota", "last", "led", "idletimer"))
_TAKING = frozenset(("tproxy", "synproxy"))  # matches that hand the packet to somebody
_FLAGS = re.compile(r"\b(fully-random|random-fully|random|persistent)\b")


def apart(one: Ruleset, other: Ruleset) -> tuple[str, ...]:
    """What is not the same in both and is not looked at: tables with chains of devices, bridges or ARP, and doings."""
    return (*(f"chains of devices, bridges or ARP of {table}" for table in chains_apart(one, other)),
            *doings_apart(one, other))  # fmt: skip


def chains_apart(one: Ruleset, other: Ruleset) -> tuple[str, ...]:
    """The tables of which such chains, or chains that they lead to, are not the same in both."""
    mine, others = _tables(one), _tables(other)
    return tuple(" ".join(table) for table in dict.fromkeys((*mine, *others)) if mine.get(table) != others.get(table))


def _tables(ruleset: Ruleset) -> dict[tuple[str, str], dict[ChainKey, object]]:
    found: dict[tuple[str, str], dict[ChainKey, object]] = {}
    reached = elsewhere(ruleset)
    for known in ruleset.chains:
        chain = known.chain
        if known.key in reached and (chain.hook is None or beside(known)):
            found.setdefault((chain.family, chain.table), {})[known.key] = _form(known)
    return found


def _form(known: KnownChain) -> tuple[object, ...]:
    chain = known.chain
    return chain.hook, chain.priority, chain.policy, chain.device, tuple(meaning.parts for meaning in known.meanings)


def doings_apart(one: Ruleset, other: Ruleset) -> tuple[str, ...]:
    """What rules of one do to packets and flows, and the other's do not, or not in the same rules as often."""
    mine, others = Counter(_doings(one)), Counter(_doings(other))
    unequal = [key for key in dict.fromkeys((*mine, *others)) if mine[key] != others[key]]
    return tuple(dict.fromkeys(text for text, _ in unequal))


def _doings(ruleset: Ruleset) -> Iterator[tuple[str, tuple[Part, ...]]]:
    """Each doing with the matches of its rule before it: without them it would be done to other packets."""
    unused = set(unused_chains(ruleset))
    for known in ruleset.chains:
        for meaning in known.meanings if known.key not in unused else ():
            yield from _of(meaning)


def _of(meaning: Meaning) -> Iterator[tuple[str, tuple[Part, ...]]]:
    for index, part in enumerate(meaning.parts):
        if text := doing(part):
            yield text, tuple(one for one in meaning.parts[:index] if not isinstance(one, Effect))


def doing(part: Part) -> str:
    """What a part does to packets or flows that no field shows; empty for nothing."""
    if isinstance(part, Effect):
        return "" if part.name in _QUIET else part.text
    if isinstance(part, Atom):
        return part.text if part.name in _TAKING else ""
    if isinstance(part, Nat):
        flags = sorted({"fully-random" if one == "random-fully" else one for one in _FLAGS.findall(part.text)})
        return f"{part.kind} {','.join(flags)}" if flags else ""
    return ""
