"""Chains made ready for many packets: which rules may match, by plain tests, and what is left to do then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from conntracker.rules.intervals import normal, single
from conntracker.rules.lookup import Index, Space
from conntracker.rules.rows import requires_of, width_in
from conntracker.rules.ruleset import ChainKey, KnownChain, Meaning, Ruleset
from conntracker.rules.terms import AnyOf, Assign, Atom, Box, Branches, Effect, In, Named, Nat, Part, Test, Verdict
from conntracker.steps import Rule

__all__ = ["Boxes", "Cases", "Guard", "Op", "Plan", "Program", "Programs"]

# What a rule does whose plain tests hold: a verdict, a jump, or something to be done packet by packet.
ACCEPT, DROP, REJECT, QUEUE, STOLEN, RETURN, JUMP, GOTO, MORE = range(9)
_CODES = {
    "accept": ACCEPT, "drop": DROP, "reject": REJECT, "queue": QUEUE, "stolen": STOLEN, "return": RETURN,
    "jump": JUMP, "goto": GOTO,
}  # fmt: skip


# What a field may follow from.
_SOURCES = {
    "saddr_type": ("saddr",), "daddr_type": ("daddr",), "oif": ("daddr", "daddr_type"), "nexthdr": ("protocol",),
    "reverse_path": ("saddr", "iif", "daddr"),
}  # fmt: skip


# Tables of which packets of a version see nothing.
_OTHERS = {4: "ip6", 6: "ip"}


class Boxes:
    """An AnyOf, of the boxes that packets of one version can be in."""

    def __init__(self, term: AnyOf, boxes: list[Box], needs: tuple[str, ...]) -> None:
        self.term, self.boxes, self.needs = term, boxes, needs
        self.index: Index | None = None


class Cases:
    """A verdict map, as a chain of its own: rule i is box i, and leads to verdicts[i]."""

    def __init__(self, boxes: list[Box], verdicts: list[Verdict]) -> None:
        self.boxes, self.verdicts = boxes, verdicts
        self.index: Index | None = None


@dataclass(frozen=True, slots=True)
class Guard:
    """One case of a verdict map that is no box: where it holds, a verdict."""

    question: Boxes | Atom
    verdict: Verdict


Op = Test | Boxes | Atom | Assign | Nat | Verdict | Cases | Guard


@dataclass(slots=True)
class Program:
    """A chain: `tests`, `rules` and `more` by number of those of its rules that can do something.

    tests    that must hold for a rule to be looked at at all
    rules    index into Programs.rules
    codes    what it does then, one of ACCEPT to MORE
    target   of a jump or goto, -1 for a chain that is not there
    more     ops of a rule with code MORE
    """

    key: ChainKey
    tests: list[Box] = field(default_factory=list)
    rules: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    codes: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    target: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    more: dict[int, list[Op]] = field(default_factory=dict)
    index: Index | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is left of a rule for packets of one version."""

    tests: Box
    ops: tuple[Op, ...]


class Programs:
    """All chains of a ruleset, made ready for packets of one IP version.

    rules    of all chains; chains: all of them
    space    of all tests
    exact    fields of which the values matter beyond tests: they become parts of others
    """

    def __init__(self, ruleset: Ruleset, version: int, more: Iterable[Test], own: Iterable[int] = ()) -> None:
        """`more`: tests that are asked besides those of rules; `own`: addresses that the host may give packets."""
        self.version = version
        self._own = ((127 << 24) + 1 if version == 4 else 1, *own)
        self._translates = False
        self.chains = ruleset.chains
        self.rules: tuple[Rule, ...] = tuple(rule for known in ruleset.chains for rule in known.chain.rules)
        self.space = Space()
        self.exact: set[str] = set()
        self.programs = [Program(known.key) for known in ruleset.chains]
        self._numbers = {known.key: number for number, known in enumerate(ruleset.chains)}
        self._asked: dict[object, int] = {}
        first = 0
        for program, known in zip(self.programs, ruleset.chains, strict=True):
            self._fill(program, known, first)
            first += len(known.chain.rules)
        for test in more:
            self._see(test)
        asked = {name for name, _ in self.space.axes} | self.exact
        self.exact |= asked & ({"ttl", "ct_status"} if self._translates else {"ttl"})
        self.space.freeze()
        self._often = self._visited_often()

    def fields(self) -> set[str]:
        """Of packets, those that matter."""
        names = {name for name, _ in self.space.axes} | self.exact | {"first"}
        return names | {source for name, sources in _SOURCES.items() if name in names for source in sources}

    def number(self, known: KnownChain) -> int:
        """The chain's index in `chains` and `programs`."""
        return self._numbers[known.key]

    def target(self, program: Program, verdict: Verdict) -> int:
        """The index of the chain that a verdict leads to, -1 if there is none."""
        return self._numbers.get((*program.key[:3], verdict.chain or ""), -1)

    def index(self, one: Program | Boxes | Cases) -> Index:
        """The index of its rules or boxes."""
        if one.index is None:
            one.index = Index(self.space, one.tests if isinstance(one, Program) else one.boxes)
        return one.index

    def is_asked_again(self, atom: Atom) -> bool:
        """Whether one packet may come to the same question twice; a stateful match may then answer otherwise."""
        key = question_of(atom)
        return not atom.occurrence and (self._asked[key] > 1 or key in self._often)

    # --- making ---

    def _fill(self, program: Program, known: KnownChain, first: int) -> None:
        rules: list[int] = []
        codes: list[int] = []
        targets: list[int] = []
        if known.chain.family == _OTHERS[self.version]:
            return
        for number, (_, meaning) in enumerate(known.items()):
            plan = _plan(meaning, self.version)
            if plan is None:
                continue
            self._see_all(plan)
            verdict = plan.ops[0]
            code, target = self.action(program, verdict) if isinstance(verdict, Verdict) else (MORE, -1)
            if code == JUMP and target < 0:
                continue
            if code == MORE:
                program.more[len(rules)] = list(plan.ops)
            program.tests.append(plan.tests)
            rules.append(first + number)
            codes.append(code)
            targets.append(target)
        program.rules = np.array(rules, np.int64)
        program.codes, program.target = np.array(codes, np.uint8), np.array(targets, np.int32)

    def action(self, program: Program, verdict: Verdict) -> tuple[int, int]:
        """(code, target) of a verdict in a chain."""
        code, target = _CODES[verdict.kind], -1
        if code in {JUMP, GOTO}:
            target = self.target(program, verdict)
            if code == GOTO and target < 0:
                return RETURN, -1
        return code, target

    def _see_all(self, plan: Plan) -> None:
        for test in plan.tests:
            self._see(test)
        for op in plan.ops:
            self._see_op(op.question if isinstance(op, Guard) else op)

    def _see_op(self, op: Op) -> None:
        if isinstance(op, In | Named):
            self._see(op)
        elif isinstance(op, Boxes | Cases):
            for test in (test for box in op.boxes for test in box):
                self._see(test)
            for name in op.needs if isinstance(op, Boxes) else ():
                self._need(name)
        elif isinstance(op, Atom):
            self._asked[question_of(op)] = self._asked.get(question_of(op), 0) + 1
        elif isinstance(op, Assign):
            names = [name for name in (op.field, op.source) if name is not None]
            if op.field in {"saddr", "daddr"}:
                self._see(In(op.field, single(op.value or 0)))
            self.exact.update(names)
            for name in names:
                self._need(name)
        elif isinstance(op, Nat):
            self._see_nat(op)

    def _see_nat(self, nat: Nat) -> None:
        """Whether it changes anything matters, and so whether the packet had what it is given."""
        self._translates = True
        own = nat.kind == "masquerade" or (nat.kind == "redirect" and nat.addresses is None)
        addresses = self._own if own else (0,) if nat.addresses is None else nat.addresses[:1]
        for address, port in (("saddr", "sport"), ("daddr", "dport")):
            for name, given in ((address, addresses), (port, (0,) if nat.ports is None else nat.ports[:1])):
                self._see(In(name, normal((one, one) for one in given)))
            if nat.kind == "netmap":
                self.exact.add(address)
        if own:
            self.exact.add("oif" if nat.kind == "masquerade" else "iif")

    def _see(self, test: Test) -> None:
        self.space.add(test, width_in(test.field, self.version))
        self._need(test.field)

    def _need(self, name: str) -> None:
        for other, values in requires_of(name):
            self._see(In(other, values))

    def _visited_often(self) -> set[object]:
        """Questions in chains that a packet may come to more than once."""
        callers: dict[int, list[int]] = {}
        for number, program in enumerate(self.programs):
            for target in self._targets(program):
                callers.setdefault(target, []).append(number)
        often = {number for number, found in callers.items() if len(found) > 1}
        grown = True
        while grown:
            more = {number for number, found in callers.items() if often & set(found)} - often
            often |= more
            grown = bool(more)
        ops = (op for number in often for more in self.programs[number].more.values() for op in more)
        asked = (op.question if isinstance(op, Guard) else op for op in ops)
        return {question_of(one) for one in asked if isinstance(one, Atom)}

    def _targets(self, program: Program) -> Iterator[int]:
        yield from (int(one) for one in program.target if one >= 0)
        for op in (op for more in program.more.values() for op in more):
            ends = op.verdicts if isinstance(op, Cases) else [op.verdict if isinstance(op, Guard) else op]
            verdicts = (one for one in ends if isinstance(one, Verdict))
            yield from (found for one in verdicts if (found := self.target(program, one)) >= 0)


def question_of(atom: Atom) -> tuple[str, str, str]:
    """What has one answer for one packet."""
    return atom.name, atom.text, atom.occurrence


def _plan(meaning: Meaning, version: int) -> Plan | None:
    """What a rule does with packets of a version; None if that is nothing."""
    tests: list[Test] = []
    ops: list[Op] = []
    for part in meaning.parts:
        made = _made(part, version)
        if made is None:
            break
        for op in made:
            leading = isinstance(op, In | Named) and all(isinstance(one, Atom | Boxes) for one in ops)
            (tests if leading else ops).append(op)  # type: ignore[arg-type]
        if isinstance(part, Verdict | Branches) or (isinstance(part, Nat) and made):
            break
    while ops and isinstance(ops[-1], In | Named | Atom | Boxes):
        ops.pop()
    return Plan(tuple(tests), tuple(ops)) if ops else None


def _made(part: Part, version: int) -> list[Op] | None:
    """A part as ops; None if the rule ends here, without a verdict."""
    if isinstance(part, Effect) or (isinstance(part, Nat) and part.family not in (None, version)):
        return []
    if isinstance(part, Verdict):
        return None if part.kind == "continue" else [part]
    if isinstance(part, In | Named):
        box = _box((part,), version)
        return None if box is None else list(box)
    if isinstance(part, AnyOf):
        return _any_of(part, version)
    if isinstance(part, Branches):
        return _cases(part, version)
    return [part]


def _box(box: Box, version: int) -> Box | None:
    """The tests that packets of a version can fail; None if none of them can pass."""
    out = []
    for test in box:
        if isinstance(test, In):
            if test.field == "family":
                value = version if test.mask is None else version & test.mask
                if not any(low <= value <= high for low, high in test.values):
                    return None
                continue
            if not test.values:
                return None
        out.append(test)
    return tuple(out)


def _any_of(term: AnyOf, version: int) -> list[Op] | None:
    boxes = [made for box in term.boxes if (made := _box(box, version)) is not None]
    if not term.negated:
        if not boxes:
            return None
        if len(boxes) == 1:
            return list(boxes[0])
    return [Boxes(term, boxes, _needs(term))]


def _cases(part: Branches, version: int) -> list[Op]:
    """Cases, in runs of such as are boxes."""
    out: list[Op] = []
    for case, verdict in part.cases:
        if isinstance(case, Atom):
            out.append(Guard(case, verdict))
            continue
        boxes = [made for box in case.boxes if (made := _box(box, version)) is not None]
        if case.negated:
            out.append(Guard(Boxes(case, boxes, _needs(case)), verdict))
            continue
        if not out or not isinstance(out[-1], Cases):
            out.append(Cases([], []))
        last = out[-1]
        if isinstance(last, Cases):
            last.boxes += boxes
            last.verdicts += [verdict] * len(boxes)
    return out


def _needs(term: AnyOf) -> tuple[str, ...]:
    """The fields that a packet must have, to be in none of the boxes."""
    tests = term.boxes[0] if term.boxes and term.negated else ()
    return tuple(test.field for test in tests if isinstance(test, In) and test.field != "family")
