"""Why a rule is dead: the rules that leave nothing for it."""

from __future__ import annotations

from dataclasses import dataclass

from conntracker.rules.solve.boxes import Boxes
from conntracker.rules.solve.circuit import FALSE
from conntracker.rules.solve.encode import Encoded
from conntracker.rules.solve.model import Question
from conntracker.rules.solve.session import QUICK, Session
from conntracker.steps import Rule

__all__ = ["Reason", "Reasons", "blamed"]

_MOST = 300  # questions to make cores minimal; in rulesets of usual size, these are enough for all
_FEW = 10  # a core of no more rules than this is made minimal


@dataclass(frozen=True, slots=True)
class Reason:
    """The rules to blame, or words where there are none."""

    rules: tuple[Rule, ...] = ()
    text: str = ""


class Reasons:
    """Of the rules of one ruleset, for one IP version."""

    def __init__(self, asked: Question, minimal: bool = True) -> None:
        self._spare = _MOST if minimal else 0
        self._session = asked.session
        self._domain = asked.domain
        self._boxes: dict[int, Boxes] = {}
        self._near: Session | None = None
        self._callers: dict[int, list[tuple[Encoded, int]]] = {}
        self._changing = {id(made) for made in asked.ways[0].made if made.changing}
        for made in asked.ways[0].made:
            for called, _, index in made.calls:
                self._callers.setdefault(id(called), []).append((made, index))

    def boxes(self, made: Encoded) -> Boxes:
        """The chain's rules as boxes."""
        if id(made) not in self._boxes:
            self._boxes[id(made)] = Boxes(made.chain, self._domain)
        return self._boxes[id(made)]

    def covered(self, made: Encoded, index: int) -> Reason | None:
        """The one earlier rule of the chain that covers the rule, where that can be seen without a solver."""
        if id(made) in self._changing:
            return None  # what was asked before a change says nothing of what is asked behind it
        other = self.boxes(made).covering(index)
        return None if other is None else Reason((made.chain.chain.rules[other],))

    def near(self, made: Encoded, index: int) -> Reason | dict[int, int]:
        """Why nothing comes through its own chain, and those that alone lead there; or a packet that seems to.

        The solver for this knows the terms of rules, and not the order in which whole rulesets are gone through, which
        is too much for each rule. The packet is told as Circuit.simulate takes it.
        """
        session = self._near = self._near or Session(self._domain.circuit, self._domain.always, QUICK)
        levels = self._levels(made, index)
        conditions, blame, jumps = levels[-1]
        if session.ask(*conditions, *blame):  # an answer yes is the dear one: every variable gets a value
            model = session.model()
            inputs = self._domain.circuit.inputs
            return {one: int(one <= len(model) and model[one - 1] > 0) for one in inputs}
        if len(levels) > 1:
            conditions, blame, jumps = next(one for one in levels if not session.ask(*one[0], *one[1]))
        asked = session.asked
        found = blamed(session, conditions, blame, _FEW if self._spare > 0 else 0)
        self._spare -= session.asked - asked
        if found.rules:
            return found
        if jumps:
            return Reason(jumps, "the way to its chain excludes it")
        with Session(self._domain.circuit) as free:
            impossible = not free.ask(made.terms[index])
        return Reason(text="its own matches exclude each other" if impossible else "no packet has all that it asks for")

    def _levels(self, made: Encoded, index: int) -> list[tuple[tuple[int, ...], dict[int, Rule], tuple[Rule, ...]]]:
        """What must hold for a packet to come to a rule from the beginning of its chain, then of the only one that
        leads there, and so on: conditions, rules in the way, and the jumps taken.
        """
        found: list[tuple[tuple[int, ...], dict[int, Rule], tuple[Rule, ...]]] = [
            ((made.terms[index],), self._blockers(made, index), ())
        ]
        while len(callers := self._callers.get(id(made), [])) == 1 and made.entry == FALSE:
            made, number = callers[0]
            conditions, blame, jumps = found[-1]
            jumps = *jumps, made.chain.chain.rules[number]
            found.append(((*conditions, made.terms[number]), blame | self._blockers(made, number), jumps))
        return found

    def of(self, stand: tuple[Encoded, int], index: int) -> Reason:
        """Why a rule is dead for which `near` found a packet, where the chain has these packets."""
        made, entry = stand
        if not self._session.ask(entry):
            return Reason(text="no packet comes to its chain")
        blame = self._blockers(made, index)
        conditions = (made.terms[index], entry)
        if self._session.ask(*conditions, *blame):
            return Reason(text="no packet that comes to its chain gets to it")
        found = blamed(self._session, conditions, blame)
        return found if found.rules else Reason(text="no packet that comes to its chain has all that it asks for")

    def close(self) -> None:
        """Frees the solver that `near` asked."""
        if self._near is not None:
            self._near.close()
            self._near = None

    def _blockers(self, made: Encoded, index: int) -> dict[int, Rule]:
        rules = made.chain.chain.rules
        if id(made) in self._changing:
            return {-made.blocking[i]: rules[i] for i in range(index) if made.blocking[i] != FALSE}
        return {
            -made.blocking[i]: rules[i]
            for i in map(int, self.boxes(made).overlapping(index)) if made.blocking[i] != FALSE
        }  # fmt: skip


def blamed(session: Session, conditions: tuple[int, ...], blame: dict[int, Rule], most: int = _FEW) -> Reason:
    """The fewest that are found, after an answer no; of more than `most` none is tried to leave out."""
    ask = session.ask
    core = [literal for literal in session.core() if literal in blame and literal not in conditions]
    if not core:
        return Reason()
    if 1 < len(core) <= most:
        for one in list(core):
            rest = [other for other in core if other != one]
            if len(rest) < len(core) and not ask(*conditions, *rest):
                needed = set(session.core())
                core = [other for other in rest if other in needed]
    return Reason(tuple(rule for literal, rule in blame.items() if literal in core))
