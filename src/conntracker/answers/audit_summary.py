"""How much of a ruleset is understood."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from conntracker.rules.ruleset import Ruleset
from conntracker.rules.terms import AnyOf, Atom, Branches, In, Named, Part

__all__ = ["Summary", "fields_asked", "summary_of"]


@dataclass(frozen=True, slots=True)
class Summary:
    """What was looked at.

    rules, chains, sets   how many
    exact    rules of which every match is understood, and none has a state of its own
    opaque   by name, how many matches are taken as a question that may be answered either way; most first
    notes    of the ruleset
    fields   those of packets that some rule asks for
    """

    rules: int
    chains: int
    sets: int
    exact: int
    opaque: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]
    fields: frozenset[str] = frozenset()


def summary_of(ruleset: Ruleset) -> Summary:
    """The summary of a ruleset."""
    names: Counter[str] = Counter()
    exact = rules = 0
    for known in ruleset.chains:
        for meaning in known.meanings:
            opaque_here = list(_opaque(meaning.parts))
            names.update(opaque_here)
            rules += 1
            exact += not opaque_here
    opaque = tuple(sorted(names.items(), key=lambda one: (-one[1], one[0])))
    return Summary(rules, len(ruleset.chains), len(ruleset.sets), exact, opaque, ruleset.notes, fields_asked(ruleset))


def fields_asked(ruleset: Ruleset) -> frozenset[str]:
    """The fields of packets that some rule asks for."""
    parts = (part for known in ruleset.chains for meaning in known.meanings for part in meaning.parts)
    return frozenset(_fields(parts))


def _opaque(parts: Iterable[Part]) -> Iterable[str]:
    """Names of the matches that are opaque; a verdict map is one, however many cases it has."""
    for part in parts:
        if isinstance(part, Atom):
            yield part.name
        elif isinstance(part, Branches):
            yield from dict.fromkeys(case.name for case, _ in part.cases if isinstance(case, Atom))


def _fields(parts: Iterable[Part]) -> Iterable[str]:
    for part in parts:
        if isinstance(part, In | Named):
            yield part.field
        elif isinstance(part, AnyOf):
            yield from (test.field for box in part.boxes for test in box)
        elif isinstance(part, Branches):
            yield from _fields(case for case, _ in part.cases)
