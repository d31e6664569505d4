"""Rules whose removal changes nothing, although packets match them: what comes behind decides the same.

A packet that the rule decides is sent through the rules without it: most rules are needed for that one alone. The rest
are proven by the solver, for every packet and every outcome of what is not understood. Rules with a limit of their own,
that change packets, or that log are not looked at: they are there for more than their verdict.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from conntracker.answers.replay import replay
from conntracker.rules.intervals import Intervals
from conntracker.rules.ruleset import Meaning, Ruleset
from conntracker.rules.solve.domain import Witness
from conntracker.rules.solve.encode import Place
from conntracker.rules.solve.equal import unequal
from conntracker.rules.solve.model import Question, evaluation, question
from conntracker.rules.terms import AnyOf, Effect, In, Named, Verdict
from conntracker.rules.walk import Course
from conntracker.steps import Rule, Step

__all__ = ["Redundant", "redundant_rules"]

_MOST_LOOKED_AT = 500
_MOST_WORK = 20_000  # rules, times rulesets that are compared
_FINAL = frozenset(("accept", "drop", "reject", "return"))


@dataclass(frozen=True, slots=True)
class Redundant:
    """A rule that could go.

    step     what decides the same, behind it, about the witness
    witness  a packet that matches the rule
    """

    rule: Rule
    step: Step | None
    witness: Witness


def redundant_rules(
    ruleset: Ruleset, dead: Collection[int] = (), local: dict[int, Intervals] | None = None
) -> tuple[list[Redundant], str]:
    """(the rules of which each alone could go, in the order of the ruleset; a note where not all were looked at).

    dead   id(rule) of rules that no packet matches
    """
    places = [
        (known.key, index)
        for known in ruleset.chains
        for index, (rule, meaning) in enumerate(known.items())
        if id(rule) not in dead and _only_decides(meaning)
    ]
    left = max(0, len(places) - _MOST_LOOKED_AT)
    found: dict[Place, Redundant] = {}
    needed: set[Place] = set()
    for version in ruleset.families():
        able = _able(ruleset, places[:_MOST_LOOKED_AT], version, needed, local)
        most = _MOST_WORK // max(1, sum(len(known.meanings) for known in ruleset.chains))
        left += max(0, len(able) - most)
        needed |= set(list(able)[most:])
        proven = _proven(ruleset, list(able)[:most], version, local)
        needed |= {place for place in able if place not in proven}
        for place in proven:
            found.setdefault(place, able[place])
    note = f"redundant: {left:,} more rules were not looked at" if left else ""
    return [found[place] for place in places if place in found and place not in needed], note


def without_rule(ruleset: Ruleset, place: Place) -> Ruleset:
    """The ruleset without one rule."""
    key, index = place
    chains = []
    for known in ruleset.chains:
        if known.key == key:
            rules = known.chain.rules[:index] + known.chain.rules[index + 1 :]
            meanings = known.meanings[:index] + known.meanings[index + 1 :]
            chains.append(replace(known, chain=replace(known.chain, rules=rules), meanings=meanings))
        else:
            chains.append(known)
    return replace(ruleset, chains=tuple(chains))


def _only_decides(meaning: Meaning) -> bool:
    verdict = meaning.verdict
    return verdict is not None and verdict.kind in _FINAL and all(
        isinstance(part, In | Named | AnyOf | Verdict) or (isinstance(part, Effect) and part.name == "counter")
        for part in meaning.parts
    )  # fmt: skip


def _able(
    ruleset: Ruleset, places: list[Place], version: int, needed: set[Place], local: dict[int, Intervals] | None
) -> dict[Place, Redundant]:
    """Rules of which one packet that matches ends alike without; those of which it does not are `needed`."""
    found: dict[Place, Redundant] = {}
    course = Course(ruleset, version)
    with question([ruleset], version, local) as asked:
        stands = asked.ways[0].by_place()
        for place in places:
            if place in needed or place not in stands:
                continue
            tried = (_any(asked, entry, made.matched[place[1]]) for made, entry in stands[place])
            shown = next((one for one in tried if one is not None), None)
            if shown is None:
                continue
            now = replay(course, shown)
            then = replay(Course(without_rule(ruleset, place), version), shown)
            if now.outcome.path.verdict != then.outcome.path.verdict:
                needed.add(place)
                continue
            rule = stands[place][0][0].chain.chain.rules[place[1]]
            found[place] = Redundant(rule, then.step, shown)
    return found


def _any(asked: Question, *literals: int) -> Witness | None:
    """Any packet for which the literals hold: not as usual as possible, but quickly found."""
    if not asked.session.ask(*literals):
        return None
    true = evaluation(asked.domain.circuit, asked.session.model())
    atoms = [(atom.text, literal) for literal, (atom, _) in asked.atoms.outcomes.items()]
    return asked.domain.witness(true, atoms)


def _proven(ruleset: Ruleset, places: list[Place], version: int, local: dict[int, Intervals] | None) -> set[Place]:
    """The places of which the solver finds no packet that ends differently without."""
    found: set[Place] = set()
    for start in range(0, len(places), 8):
        batch = places[start : start + 8]
        with question([ruleset, *(without_rule(ruleset, place) for place in batch)], version, local) as asked:
            whole, *others = asked.ways
            for place, other in zip(batch, others, strict=True):
                if not asked.session.ask(unequal(asked.domain.circuit, whole, other)):
                    found.add(place)
    return found
