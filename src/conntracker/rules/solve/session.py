"""A SAT solver over a circuit: clauses are given to it as they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from conntracker.rules.solve.circuit import TRUE, Circuit

__all__ = ["QUICK", "Session"]

SOLVER = "cadical153"
QUICK = "glucose4"  # for many small questions: it starts each one faster


class Session:
    """One solver. Close it, or use it in a `with` statement."""

    def __init__(self, circuit: Circuit, always: Iterable[int] = (), solver: str = SOLVER) -> None:
        """Of a circuit and the literals that hold in every question.

        Raises ImportError without python-sat.
        """
        from pysat.solvers import Solver  # type: ignore[import-untyped]

        self.circuit = circuit
        self._solver: Any = Solver(name=solver)
        self._given = bytearray(2)
        self._solver.add_clause([TRUE])
        self.asked = 0
        for literal in always:
            self.hold(literal)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the solver."""
        self._solver.delete()

    def hold(self, literal: int) -> None:
        """From now on the literal holds."""
        self._give((literal,))
        self._solver.add_clause([literal])

    def imply(self, literals: Sequence[int]) -> None:
        """From now on one of the literals holds."""
        self._give(literals)
        self._solver.add_clause(list(literals))

    def ask(self, *literals: int) -> bool:
        """Whether all of the literals can hold together."""
        self._give(literals)
        self.asked += 1
        return bool(self._solver.solve(assumptions=list(literals)))

    def core(self) -> tuple[int, ...]:
        """Of the literals of the last question, which was answered no, some that cannot hold together."""
        return tuple(self._solver.get_core() or ())

    def model(self) -> list[int]:
        """Of the last question, which was answered yes: the literals, by variable less one."""
        found: list[int] = self._solver.get_model()
        return found

    def _give(self, literals: Sequence[int]) -> None:
        """Adds the clauses of all gates that the literals depend on."""
        gates, given, add = self.circuit.gates, self._given, self._solver.add_clause
        if len(given) < len(gates):
            given.extend(bytes(len(gates) - len(given)))
        open_ = [abs(literal) for literal in literals if not given[abs(literal)]]
        while open_:
            variable = open_.pop()
            if given[variable]:
                continue
            given[variable] = 1
            gate = gates[variable]
            if gate is None or variable == TRUE:
                continue
            add([variable, *(-literal for literal in gate)])
            for literal in gate:
                add([-variable, literal])
                if not given[abs(literal)]:
                    open_.append(abs(literal))
