"""Why a rule is dead: the rules that leave nothing for it."""

from __future__ import annotations

from dataclasses import dataclass

from conntracker.rules.solve.boxes import Boxes
from conntracker.rules.solve.circuit import FALSE
from conntracker.rules.solve.encode import Encoded
from conntracker.rules.solve.model import Question
from conntracker.rules.solve.session import Session
from conntracker.rules.solve.ways import entered
from conntracker.steps import Rule

__all__ = ["Reason", "Reasons", "blamed"]

_LONG = 300  # rules
_FEW = 24  # a core of no more rules than this is made minimal


@dataclass(frozen=True, slots=True)
class Reason:
    """The rules to blame, or words where there are none."""

    rules: tuple[Rule, ...] = ()
    text: str = ""


class Reasons:
    """Of the rules of one ruleset, for one IP version."""

    def __init__(self, asked: Question) -> None:
        self._session = asked.session
        self._domain = asked.domain
        self._boxes: dict[int, Boxes] = {}
        self._callers: dict[int, list[tuple[Encoded, int]]] = {}
        self._entries = {id(made): entry for made, entry in entered(asked.ways[0])}
        self._changing = {id(made) for made in asked.ways[0].made if made.changed or made.accepted}
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

    def within(self, made: Encoded, index: int) -> Reason | dict[int, int] | None:
        """In a long chain: the earlier rules of the chain that leave nothing, or a packet that passes them all.

        Only the rules that may meet the rule's packets are looked at, with a solver of their own: a chain of thousands
        is too much to go through for each. The packet is told as Circuit.simulate takes it.
        """
        if len(made.matched) < _LONG or id(made) in self._changing:
            return None
        blame = self._blockers(made, index)
        terms = made.terms[index]
        with Session(self._domain.circuit, self._domain.always) as alone:
            if not alone.ask(terms, *blame):
                return blamed(alone, (terms,), blame)
            model = alone.model()
        return {
            variable: int(variable <= len(model) and model[variable - 1] > 0)
            for variable in self._domain.circuit.inputs
        }

    def of(self, stand: tuple[Encoded, int], index: int) -> Reason:
        """Why the rule is dead, where the chain has these packets. What is dead is known: this only names the cause."""
        made, entry = stand
        terms = made.terms[index]
        if terms == FALSE:
            return Reason(text="its own matches exclude each other")
        if not self._session.ask(terms):
            return Reason(text="no packet has all that it asks for")
        blame = self._blockers(made, index)
        if not self._session.ask(terms, *blame):
            return blamed(self._session, (terms,), blame)
        conditions = [terms]
        current = made
        while len(callers := self._callers.get(id(current), [])) == 1 and current.entry == FALSE:
            current, number = callers[0]
            conditions.append(current.terms[number])
            blame |= self._blockers(current, number)
            if not self._session.ask(*conditions, *blame):
                return blamed(self._session, tuple(conditions), blame)
        if not self._session.ask(entry):
            return Reason(text="no packet comes to its chain")
        conditions.append(self._entries[id(current)])
        if not self._session.ask(*conditions, *blame):
            found = blamed(self._session, tuple(conditions), blame)
            return found if found.rules else Reason(text="no packet that comes to its chain has all that it asks for")
        return Reason(text="no packet that comes to its chain gets to it")

    def _blockers(self, made: Encoded, index: int) -> dict[int, Rule]:
        rules = made.chain.chain.rules
        if id(made) in self._changing:
            return {-made.blocking[i]: rules[i] for i in range(index) if made.blocking[i] != FALSE}
        return {
            -made.blocking[i]: rules[i]
            for i in map(int, self.boxes(made).overlapping(index)) if made.blocking[i] != FALSE
        }  # fmt: skip


def blamed(session: Session, conditions: tuple[int, ...], blame: dict[int, Rule]) -> Reason:
    """The fewest that are found, after a question that was answered no."""
    ask = session.ask
    core = [literal for literal in session.core() if literal in blame and literal not in conditions]
    if not core:
        return Reason(text="no packet comes to its chain that it could match")
    if 1 < len(core) <= _FEW:
        alone = next((one for one in core if not ask(*conditions, one)), None)
        if alone is not None:
            core = [alone]
    if 1 < len(core) <= _FEW:
        for one in list(core):
            rest = [other for other in core if other != one]
            if not ask(*conditions, *rest):
                core = rest
    return Reason(tuple(rule for literal, rule in blame.items() if literal in core))
