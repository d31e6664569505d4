"""Packets that the solver finds, sent through the plain walk: what becomes of them, and what is asked on their way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conntracker.rules.intervals import Intervals
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.solve.domain import Witness
from conntracker.rules.solve.model import question, witness
from conntracker.rules.terms import Atom
from conntracker.rules.walk import Course, Outcome, walk
from conntracker.steps import Rule, Step

__all__ = ["Replayed", "packets_for", "replay"]


@dataclass(frozen=True, slots=True)
class Replayed:
    """What becomes of a packet.

    outcome   the way that it goes, if the matches that were asked have these outcomes
    asked     (text, outcome) of those, in the order in which they were asked
    """

    outcome: Outcome
    asked: tuple[tuple[str, bool], ...]

    @property
    def step(self) -> Step | None:
        """The step that decides."""
        return self.outcome.path.deciding


def replay(ruleset: Ruleset | Course, shown: Witness) -> Replayed:
    """The witness's way. Where stateful matches of one text had several outcomes, they are taken in their order."""
    outcomes: dict[str, list[bool]] = {}
    for text, outcome in shown.assumed:
        outcomes.setdefault(text, []).append(outcome)
    asked: dict[tuple[str, str], bool] = {}

    def answers(atom: Atom, rule: Rule) -> bool | None:
        key = atom.text, atom.occurrence
        if key not in asked:
            left = outcomes.get(atom.text, [])
            if not left:
                return None
            asked[key] = left.pop(0) if len(left) > 1 and atom.occurrence else left[0]
        return asked[key]

    answer = walk(ruleset, shown.packet, shown.way, answers=answers)
    return Replayed(answer.outcomes[0], tuple((text, outcome) for (text, _), outcome in asked.items()))


def packets_for(
    ruleset: Ruleset, rules: Sequence[Rule], local: dict[int, Intervals] | None = None
) -> dict[int, Witness]:
    """By id(rule), a packet that matches it, as usual as possible."""
    wanted = {id(rule) for rule in rules}
    found: dict[int, Witness] = {}
    if not wanted:
        return found
    for version in ruleset.families():
        with question([ruleset], version, local) as asked:
            for place, stands in asked.ways[0].by_place().items():
                for made, entry in stands:
                    rule = made.chain.chain.rules[place[1]]
                    if id(rule) not in wanted or id(rule) in found:
                        continue
                    one = witness(asked, (entry, made.matched[place[1]]))
                    if one is not None:
                        found[id(rule)] = one
    return found
