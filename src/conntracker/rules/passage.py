"""The way of many packets through hooks and base chains, to what becomes of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from conntracker.rules import altering
from conntracker.rules.changes import LOST, Past, Xor
from conntracker.rules.crowd import Crowd, Numbers, States, joined, values_of
from conntracker.rules.deciding import weight
from conntracker.rules.fields import CT_STATES, PACKET_TYPES
from conntracker.rules.intervals import normal, single
from conntracker.rules.order import CONNTRACK, LEFT_ONCE, WAYS, base_chains, effective_priority
from conntracker.rules.packets import UNTRACKED_ICMPV6
from conntracker.rules.programs import (
    ACCEPT,
    GOTO,
    JUMP,
    MORE,
    RETURN,
    STOLEN,
    Boxes,
    Cases,
    Guard,
    Op,
    Program,
    Programs,
)
from conntracker.rules.rows import KNOWN, Rows
from conntracker.rules.ruleset import ChainKey, KnownChain, Ruleset
from conntracker.rules.terms import Assign, Atom, In, Named, Nat, Test, Verdict
from conntracker.steps import Step

__all__ = ["ENDS", "PASSAGE_TESTS", "Ends", "Passage", "device_tests"]

# What becomes of a packet, by the codes of programs.
ENDS = ("accept", "drop", "reject", "queue", "stolen")

_NEW, _RELATED = (In("ct_state", single(CT_STATES.index(name))) for name in ("new", "related"))
_ICMP = In("protocol", normal([(1, 1), (58, 58)]))
_ICMPV6 = In("protocol", single(58))
_BARE = In("icmp_type", UNTRACKED_ICMPV6)
_LATER = In("first", single(0))
_LOOPBACK, _TO_LOOPBACK = Named("iif", ("lo",)), Named("oif", ("lo",))
_UNTRACKED, _INVALID = (Xor(CT_STATES.index(name)) for name in ("untracked", "invalid"))

# What is asked besides what rules ask.
PASSAGE_TESTS: tuple[Test, ...] = (_NEW, _RELATED, _ICMP, _ICMPV6, _BARE, _LATER, _LOOPBACK, _TO_LOOPBACK)

_BEFORE_ROUTING = frozenset(("prerouting", "output"))
_DEVICES = {"ingress": "iif", "egress": "oif"}
_MOST_DEEP = 200  # as the walk


def device_tests(ruleset: Ruleset) -> Iterator[Test]:
    """The tests of chains that are bound to devices."""
    for known in ruleset.chains:
        if known.chain.device is not None and known.chain.hook in _DEVICES:
            yield _device(known)


def _device(known: KnownChain) -> Named:
    return Named(_DEVICES[known.chain.hook or ""], tuple((known.chain.device or "").split(",")))


@dataclass(slots=True)
class Ends:
    """Where states ended: rows, verdicts (indices into ENDS), and what decided: 1 for a rule, and its number or -1."""

    rows: list[Numbers] = field(default_factory=list)
    verdicts: list[Numbers] = field(default_factory=list)
    by_rule: list[Numbers] = field(default_factory=list)
    numbers: list[Numbers] = field(default_factory=list)

    def add(self, rows: Numbers, verdict: int, by_rule: Numbers | int, number: Numbers | int) -> None:
        """Some states ended."""
        self.rows.append(rows)
        self.verdicts.append(np.full(len(rows), verdict))
        self.by_rule.append(np.broadcast_to(np.asarray(by_rule, np.int64), len(rows)))
        self.numbers.append(np.broadcast_to(np.asarray(number, np.int64), len(rows)))


class Passage:
    """All packets of some rows, from the first hook to their ends."""

    def __init__(self, ruleset: Ruleset, programs: Programs, rows: Rows, way: str) -> None:
        self._ruleset, self._programs, self._way = ruleset, programs, way
        self.crowd = Crowd(programs, rows)
        self.ends = Ends()
        self._by_mark = rows.host is None or rows.host.by_mark
        self._weight = 0
        self._accepted: list[States] = []
        self._hook = ""
        self._inside: set[ChainKey] = set()

    def go(self) -> None:
        """To the ends."""
        crowd, none = self.crowd, Xor(0)  # the index of ""
        missing = "iif" if self._way == "output" else "oif"
        states = crowd.changed(crowd.all(), lambda past: past.put(missing, none))
        for hook in WAYS[self._way]:
            states = self._at(hook, states)
        if self._way == "output":
            states = self._looped(states)
        decided = states.best >= 0
        number = np.where(decided, states.best & ((1 << 40) - 1), -1)
        self._ended(states, ACCEPT, (states.best >> 40) & 1, number)

    def _ended(self, states: States, verdict: int, by_rule: Numbers | int, number: Numbers | int) -> None:
        self.ends.add(states.rows, verdict, by_rule, number)
        self.crowd.lineage.end(states.node, self.ends.verdicts[-1])

    def _looped(self, states: States) -> States:
        """The loopback device brings a packet in again: its state and mark stay."""
        crowd, space = self.crowd, self._programs.space
        loops = space.members(_TO_LOOPBACK)[crowd.classes(space.axis(_TO_LOOPBACK), states)]
        interface = Xor(crowd.rows.number_of("lo"))

        def arrived(past: Past) -> Past:
            past = past.put("iif", interface).put("oif", Xor(0)).put("packet_type", Xor(PACKET_TYPES.index("host")))
            past = past.put("reverse_path", Xor(1))
            for name in ("skuid", "skgid"):
                past = past.put(name, LOST)
            return past

        looping = altering.assign(crowd, LEFT_ONCE, crowd.changed(states.at(loops), arrived))
        for hook in WAYS["input"][1:]:
            looping = self._at(hook, looping)
        return joined([looping, states.at(~loops)])

    # --- hooks and base chains ---

    def _at(self, hook: str, states: States) -> States:
        self._hook = hook
        if hook == "forward":
            states = altering.forward(self.crowd, states)
        hidden = hook in _BEFORE_ROUTING
        if hidden:
            states = self._hide(hook, states)
        for known in base_chains(self._ruleset, self._programs.version, hook):
            if hidden and effective_priority(known) > CONNTRACK:
                states, hidden = self._show(states), False
            states = self._base(known, states)
        if hidden:
            states = self._show(states)
        states = altering.reroute(self.crowd, states, hook)
        if hook in {"ingress", "forward"}:
            return states
        asked = frozenset(("dst" if hook in _BEFORE_ROUTING else "src",))  # a packet that loops is asked no more
        return self.crowd.changed(states, lambda past: past.toward(asked))

    def _hide(self, hook: str, states: States) -> States:
        """Before connection tracking has seen a packet, there is no state: nft and iptables call that invalid."""
        if hook == "output":
            return self.crowd.changed(states, lambda past: past.hide(_INVALID))
        space = self._programs.space
        looped = space.members(_LOOPBACK)[self.crowd.classes(space.axis(_LOOPBACK), states)]
        hidden = self.crowd.changed(states.at(~looped), lambda past: past.hide(_INVALID))
        return joined([hidden, states.at(looped)])

    def _show(self, states: States) -> States:
        crowd = self.crowd

        def shown(past: Past, bare: bool) -> Past:
            untracked = bare or past.change("ct_state") == _UNTRACKED
            return past if past.hidden is None else past.show(_UNTRACKED if untracked else None)

        space, bare = self._programs.space, np.ones(len(states), np.bool_)
        for test in (_ICMPV6, _BARE):
            bare &= space.members(test)[crowd.classes(space.axis(test), states)]
        tracked = crowd.changed(states.at(~bare), lambda past: shown(past, False))
        return joined([tracked, crowd.changed(states.at(bare), lambda past: shown(past, True))])

    def _base(self, known: KnownChain, states: States) -> States:
        past_by = []
        if known.chain.device is not None and known.chain.hook in _DEVICES:
            states, others = self.crowd.ask(_device(known), states)
            past_by.append(others)
        if known.chain.type == "nat":
            states, others = self._nat_wanted(states)
            past_by.append(others)
        watched = known.chain.type == "route" and self._by_mark
        if watched:
            states = self.crowd.changed(states, Past.watch)
        step = Step(self._hook, None, known.chain.kind, "", known.chain.table, "", "policy", None, None)
        self._weight, self._accepted = weight(step, known.chain.type == "nat"), []
        number = self._programs.number(known)
        left = self._run(self._programs.programs[number], states)
        policy = known.chain.policy or "accept"
        if policy == "accept":
            self._accepted.append(left.accepted(self._weight, 0, number))
        else:
            self._ended(left, ENDS.index(policy), 0, number)
        left = joined(self._accepted)
        return self._once(joined([*past_by, altering.watched(self.crowd, left) if watched else left]))

    def _once(self, states: States) -> States:
        if not self.crowd.lineage.forked:
            return states
        return self.crowd.distinct(states, np.zeros(len(states), np.int64))[0]

    def _nat_wanted(self, states: States) -> tuple[States, States]:
        """nf_nat asks its chains for the first packet of a flow, once in each direction."""
        crowd = self.crowd
        direction = "dst" if self._hook in _BEFORE_ROUTING else "src"
        done = np.array([direction in past.translated for past in crowd.pasts])[states.past]
        status = crowd.values("first", states)
        done |= (status.status == KNOWN) & (status.values == 0)
        new, rest = crowd.ask(_NEW, states.at(~done))
        related, old = crowd.ask(_RELATED, rest)
        errors, related = crowd.ask(_ICMP, related)
        return joined([new, related]), joined([states.at(done), old, errors])

    # --- chains ---

    def _run(self, program: Program, states: States) -> States:
        """The states that came out of a chain; the others ended, or were accepted."""
        name, table = program.key[3], program.key[2]
        if program.key in self._inside:
            raise ValueError(f"chain {name} of table {table} leads back to itself")
        if len(self._inside) >= _MOST_DEEP:
            raise ValueError(f"more than {_MOST_DEEP} chains inside each other, at {name}")
        self._inside.add(program.key)
        index = self._programs.index(program)
        start = np.zeros(len(states), np.int64)
        left: list[States] = []
        while len(states):
            states, number = self.crowd.next(index, program.tests, states, start)
            if self.crowd.lineage.forked:
                states, number = self.crowd.distinct(states, number)
            left.append(states.at(number == index.size))
            inside = np.flatnonzero(number < index.size)
            states, start = self._obey(program, states.at(inside), number[inside], left)
        self._inside.discard(program.key)
        return joined(left)

    def _obey(self, program: Program, states: States, number: Numbers, left: list[States]) -> tuple[States, Numbers]:
        """Each state's rule is done; the states that go on in the chain, and where."""
        codes = program.codes[number]
        on: list[tuple[States, Numbers]] = []
        for code in values_of(codes):
            chosen = np.flatnonzero(codes == code)
            part, at = states.at(chosen), number[chosen]
            if code == MORE:
                for one in values_of(at):
                    on += self._more(program, one, part.at(at == one), left)
            elif code in {JUMP, GOTO}:
                targets = program.target[at]
                for target in values_of(targets):
                    same = np.flatnonzero(targets == target)
                    on += self._call(target, code, part.at(same), at[same], left)
            else:
                self._end(code, part, program.rules[at], left)
        numbers = [np.zeros(0, np.int64), *(at for _, at in on)]
        return joined(part for part, _ in on), np.concatenate(numbers)

    def _end(self, code: int, states: States, rules: Numbers, left: list[States]) -> None:
        if code == RETURN:
            left.append(states)
        elif code == ACCEPT:
            self._accepted.append(states.accepted(self._weight, 1, rules))
        elif code <= STOLEN:
            self._ended(states, code, 1, rules)

    def _call(
        self, target: int, code: int, states: States, number: Numbers, left: list[States]
    ) -> list[tuple[States, Numbers]]:
        inner = replace(states, back=np.arange(len(states)))
        out = self._run(self._programs.programs[target], inner)
        origin = out.back
        out = replace(out, back=states.back[origin])
        if code == GOTO:
            left.append(out)
            return []
        return [(out, number[origin] + 1)]

    # --- rules, part by part ---

    def _more(self, program: Program, number: int, states: States, left: list[States]) -> list[tuple[States, Numbers]]:
        passed: list[States] = []
        on: list[tuple[States, Numbers]] = []
        for op in program.more[number]:
            if not len(states):
                break
            if isinstance(op, Assign):
                states = altering.assign(self.crowd, op, states)
            elif isinstance(op, Nat):
                self._end(ACCEPT, altering.translate(self.crowd, op, self._hook, states), program.rules[[number]], left)
                states = joined([])
            elif isinstance(op, Verdict):
                on += self._verdict(program, number, op, states, left)
                states = joined([])
            elif isinstance(op, Cases):
                states = self._cases(program, number, op, states, left, on)
            elif isinstance(op, Guard):
                yes, states = self._ask(op.question, states)
                on += self._verdict(program, number, op.verdict, yes, left)
            else:
                states, no = self._ask(op, states)
                passed.append(no)
        on += [(part, np.full(len(part), number + 1)) for part in (*passed, states)]
        return on

    def _ask(self, op: Op, states: States) -> tuple[States, States]:
        if isinstance(op, Boxes):
            return self.crowd.ask_boxes(op, states)
        if isinstance(op, Atom):
            return self.crowd.ask_atom(op, states)
        if isinstance(op, In | Named):
            return self.crowd.ask(op, states)
        raise TypeError(f"no question: {op}")

    def _cases(
        self,
        program: Program,
        number: int,
        op: Cases,
        states: States,
        left: list[States],
        on: list[tuple[States, Numbers]],
    ) -> States:
        """Those that are no case."""
        found, case = self.crowd.ask_cases(op, states)
        for one in values_of(case):
            if one < len(op.verdicts):
                on += self._verdict(program, number, op.verdicts[one], found.at(case == one), left)
        return found.at(case == len(op.verdicts))

    def _verdict(
        self, program: Program, number: int, verdict: Verdict, states: States, left: list[States]
    ) -> list[tuple[States, Numbers]]:
        code, target = (-1, -1) if verdict.kind == "continue" else self._programs.action(program, verdict)
        if code < 0 or (code == JUMP and target < 0):
            return [(states, np.full(len(states), number + 1))]
        if code in {JUMP, GOTO}:
            return self._call(target, code, states, np.full(len(states), number), left)
        self._end(code, states, program.rules[[number]], left)
        return []
