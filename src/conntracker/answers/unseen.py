"""What a proof does not look at: chains beside the way of IP packets, and what rules do that no other rule sees."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from conntracker.rules.ruleset import KnownChain, Ruleset
from conntracker.rules.terms import Atom, Effect, Nat, Part

__all__ = ["only_in_one", "unseen_chains", "unseen_differ", "unseen_note"]

_FAMILIES = frozenset(("ip", "ip6", "inet"))
_DEVICE_HOOKS = frozenset(("ingress", "egress"))
# Effects that leave a packet and its flow alone: what rules log, count and remember.
_QUIET = frozenset(("counter", "log", "nflog", "ulog", "trace", "audit", "set", "quota", "last", "led", "idletimer"))
_TAKING = frozenset(("tproxy", "synproxy"))  # matches that hand the packet to somebody
_FLAGS = re.compile(r"\b(fully-random|random-fully|random|persistent)\b")


def unseen_chains(ruleset: Ruleset) -> list[KnownChain]:
    """The base chains that no proof looks at: of bridges, ARP and devices. Their packets may never come to IP."""
    return [
        known
        for known in ruleset.chains
        if known.chain.hook is not None and (known.chain.family not in _FAMILIES or known.chain.hook in _DEVICE_HOOKS)
    ]


def unseen_note(ruleset: Ruleset) -> str:
    """A line that names them; empty if there are none."""
    names = [f"{one.chain.family} {one.chain.table} {one.chain.name}" for one in unseen_chains(ruleset)]
    return f"not looked at, as they are not on the way of IP packets: {', '.join(names)}" if names else ""


def unseen_differ(one: Ruleset, other: Ruleset) -> tuple[str, ...]:
    """The tables of which such chains, or chains that they may lead to, are not the same in both."""
    mine, others = _unseen(one), _unseen(other)
    return tuple(" ".join(table) for table in dict.fromkeys((*mine, *others)) if mine.get(table) != others.get(table))


def _unseen(ruleset: Ruleset) -> dict[tuple[str, str], list[object]]:
    found: dict[tuple[str, str], list[object]] = {
        (known.chain.family, known.chain.table): [] for known in unseen_chains(ruleset)
    }
    seen = {id(known) for known in ruleset.chains if known.chain.hook is not None}
    seen -= {id(known) for known in unseen_chains(ruleset)}
    for known in ruleset.chains:
        chain = known.chain
        if id(known) not in seen and (chain.family, chain.table) in found:
            parts = tuple(meaning.parts for meaning in known.meanings)
            found[chain.family, chain.table].append(
                (chain.name, chain.hook, chain.priority, chain.policy, chain.device, parts)
            )
    return found


def only_in_one(one: Ruleset, other: Ruleset) -> tuple[str, ...]:
    """What rules of one do to packets, and the other's do not or not as often, that no comparison of packets shows."""
    mine, others = Counter(_doings(one)), Counter(_doings(other))
    return tuple(text for text in dict.fromkeys((*mine, *others)) if mine[text] != others[text])


def _doings(ruleset: Ruleset) -> Iterable[str]:
    for known in ruleset.chains:
        for meaning in known.meanings:
            for part in meaning.parts:
                if text := _doing(part):
                    yield text


def _doing(part: Part) -> str:
    if isinstance(part, Effect):
        return "" if part.name in _QUIET else part.text
    if isinstance(part, Atom):
        return part.text if part.name in _TAKING else ""
    if isinstance(part, Nat):
        flags = sorted({"fully-random" if one == "random-fully" else one for one in _FLAGS.findall(part.text)})
        return f"{part.kind} {','.join(flags)}" if flags else ""
    return ""
