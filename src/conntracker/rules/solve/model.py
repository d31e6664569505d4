"""A ruleset with a solver: the questions that all answers are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from conntracker.rules.intervals import Intervals
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.solve.circuit import FALSE, TRUE, Circuit
from conntracker.rules.solve.domain import Domain, Witness
from conntracker.rules.solve.encode import Atoms
from conntracker.rules.solve.names import Interfaces
from conntracker.rules.solve.session import Session
from conntracker.rules.solve.ways import Way, encode
from conntracker.rules.terms import Assign

__all__ = ["Local", "Question", "evaluation", "question", "witness"]

# The host's own addresses by IP version, where they are known.
Local = Mapping[int, Intervals] | None


class Question:
    """One or more rulesets in one circuit, for one IP version, and a solver that knows which packets there are."""

    def __init__(
        self, rulesets: Sequence[Ruleset], version: int, local: Local = None, *, anew: bool | None = None
    ) -> None:
        """`anew` as in Encoder; None where only comparisons of rulesets need it."""
        self.version = version
        self.domain = Domain(version, Interfaces(rulesets), local)
        self.atoms = Atoms(self.domain)
        repeating = len(rulesets) > 1 if anew is None else anew
        self.ways: list[Way] = [encode(ruleset, self.domain, self.atoms, repeating) for ruleset in rulesets]
        self.domain.settle(all(way.steady for way in self.ways))
        if not any(_sets_hops(ruleset) for ruleset in rulesets):
            self.domain.hops_are_left()
        self.usual = self.domain.usual()
        self.session = Session(self.domain.circuit, self.domain.always)


def _sets_hops(ruleset: Ruleset) -> bool:
    return any(
        isinstance(part, Assign) and part.field == "ttl"
        for known in ruleset.chains for meaning in known.meanings for part in meaning.parts
    )  # fmt: skip


@contextmanager
def question(
    rulesets: Sequence[Ruleset], version: int, local: Local = None, *, anew: bool | None = None
) -> Iterator[Question]:
    """A Question, closed at the end."""
    made = Question(rulesets, version, local, anew=anew)
    try:
        yield made
    finally:
        made.session.close()


def witness(asked: Question, literals: Sequence[int]) -> Witness | None:
    """A packet, as usual as possible, for which all literals hold; None if there is none."""
    session = asked.session
    held = [one for one in literals if one != TRUE]
    if FALSE in held:
        return None
    wanted = asked.usual
    while not session.ask(*held, *wanted):
        core = set(session.core())
        blamed = [one for one in wanted if one in core]
        if not blamed:
            return None
        wanted = [one for one in wanted if one != blamed[-1]]
    true = evaluation(asked.domain.circuit, session.model())
    atoms = [(atom, literal) for literal, (atom, _) in asked.atoms.outcomes.items()]
    return asked.domain.witness(true, atoms)


def evaluation(circuit: Circuit, model: Sequence[int]) -> Callable[[int], bool]:
    """Whether a literal holds, by the inputs of a model; inputs that the solver was never told of do not."""
    known: dict[int, bool] = {TRUE: True}

    def of(variable: int) -> bool:
        open_ = [variable]
        while open_:
            one = open_[-1]
            gate = circuit.gates[one]
            if one in known:
                open_.pop()
            elif gate is None:
                known[one] = one <= len(model) and model[one - 1] > 0
            else:
                missing = [abs(literal) for literal in gate if abs(literal) not in known]
                if missing:
                    open_ += missing
                else:
                    known[one] = all(known[abs(literal)] == (literal > 0) for literal in gate)
        return known[variable]

    return lambda literal: of(abs(literal)) == (literal > 0)
