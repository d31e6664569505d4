"""A packet that a solver found, sent through the plain walk: what really becomes of it, and what was asked on its way."""

from __future__ import annotations

from dataclasses import dataclass

from conntracker.rules.ruleset import Ruleset
from conntracker.rules.solve.domain import Witness
from conntracker.rules.terms import Atom
from conntracker.rules.walk import Course, Outcome, walk
from conntracker.steps import Rule, Step

__all__ = ["Replayed", "replay"]


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

    def passes(self, rule: Rule) -> bool:
        """Whether the rule is among its steps."""
        return any(step.rule is rule for step in self.outcome.path.steps)


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
