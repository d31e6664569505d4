"""Rules that decide what would be decided without them.

A rule is redundant if every packet that it matches comes to the same end where the next rule stands: for every outcome
of the atoms. Proven chain by chain; a chain that leads back to one caller is followed there, for one that leads back to
several, coming back is an end of its own. In chains that change packets (NAT, marks) nothing is called redundant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from conntracker.rules.ruleset import Meaning, Ruleset
from conntracker.rules.solve.because import blamed
from conntracker.rules.solve.circuit import FALSE, TRUE
from conntracker.rules.solve.encode import Encoded, Place
from conntracker.rules.solve.model import Local, Question, question
from conntracker.rules.solve.samples import Samples
from conntracker.rules.solve.unused import elsewhere
from conntracker.rules.terms import Assign, Atom, Effect, Nat
from conntracker.steps import Rule

__all__ = ["Redundant", "redundant"]

# The literal of each end; "left" is coming back to a caller of several.
Fate = Mapping[str, int]

# Matches that rules may share, so that others notice when one asks no more: of one name in iptables, objects of nft.
_REMEMBERING = ("recent", "set", "connlimit", "quota", "hashlimit")
_OBJECT = re.compile(r"\b(?:limit|quota|ct count) (?:name|map) |@")
_BATCH = 2048


@dataclass(frozen=True, slots=True)
class Redundant:
    """A rule that matches packets, and changes nothing.

    because   the rules behind it in its chain that decide the same; empty where that is the policy, or another chain
    decides   whether it has a verdict; without one, all it does is count
    """

    rule: Rule
    because: tuple[Rule, ...]
    decides: bool


def redundant(ruleset: Ruleset, local: Local = None) -> list[Redundant]:
    """The rules of which each alone could be taken out and nothing would change, in the order of the ruleset."""
    proven: dict[Place, tuple[Rule, ...]] = {}
    refuted: set[Place] = set()
    for version in ruleset.families():
        with question([ruleset], version, local, anew=True) as asked:
            _Search(ruleset, asked, proven, refuted).run()
    out = []
    beside = elsewhere(ruleset)
    for known in ruleset.chains:
        if known.key in beside:
            continue
        for index, rule in enumerate(known.chain.rules):
            place = known.key, index
            if place in proven and place not in refuted:
                decides = known.meanings[index].verdict is not None
                out.append(Redundant(rule, proven[place], decides))
    return out


def _harmless(meaning: Meaning) -> bool:
    """Whether the rule does nothing but decide, and count."""
    for part in meaning.parts:
        if isinstance(part, Effect) and part.name != "counter":
            return False
        if isinstance(part, Assign | Nat):
            return False
        if isinstance(part, Atom) and part.occurrence and (part.name in _REMEMBERING or _OBJECT.search(part.text)):
            return False
    return True


class _Search:
    """One IP version."""

    def __init__(
        self, ruleset: Ruleset, asked: Question, proven: dict[Place, tuple[Rule, ...]], refuted: set[Place]
    ) -> None:
        self.ruleset, self.asked, self.proven, self.refuted = ruleset, asked, proven, refuted
        self.circuit, self.session = asked.domain.circuit, asked.session
        way = asked.ways[0]
        self.places = way.by_place()
        self.callers: dict[int, list[tuple[Encoded, int]]] = {}
        for made in way.made:
            for called, _, index in made.calls:
                self.callers.setdefault(id(called), []).append((made, index))
        self.changing = {id(made) for made in way.made if made.changed or made.accepted}
        self.bases = {id(base) for base in way.bases}
        self.silent: dict[int, bool] = {}
        self.fates: dict[int, list[Fate]] = {}

    def run(self) -> None:
        """Proves or refutes each rule."""
        differing = {}
        for place, stands in self.places.items():
            if place in self.refuted:
                continue
            literals = [self._differing(made, entry, place[1]) for made, entry in stands]
            if None in literals:
                self.refuted.add(place)
            else:
                differing[place] = self.circuit.some([one for one in literals if one is not None])
        self._simulated(differing)
        for place, literal in differing.items():
            if place not in self.refuted:
                self._prove(place, literal)

    def _prove(self, place: Place, literal: int) -> None:
        stands = self.places[place]
        if literal != FALSE and self.session.ask(literal):
            self.refuted.add(place)
            return
        made, entry = stands[0]
        if not any(self.session.ask(entry, made.matched[place[1]]) for made, entry in stands):
            return  # dead, for this version
        rules = made.chain.chain.rules
        behind = {
            -made.blocking[i]: rules[i] for i in range(place[1] + 1, len(rules)) if made.blocking[i] != FALSE
        }  # fmt: skip
        conditions = (entry, made.matched[place[1]])
        found: tuple[Rule, ...] = ()
        if not self.session.ask(*conditions, *behind):
            found = blamed(self.session, conditions, behind).rules
        self.proven.setdefault(place, found)

    def _differing(self, made: Encoded, entry: int, index: int) -> int | None:
        """Whether a packet that the rule matches would end otherwise without it; None where that cannot be told."""
        if id(made) in self.changing or not _harmless(made.chain.meanings[index]) or not self._quiet(made, index):
            return None
        fates = self._fates(made)
        if fates is None:
            return None
        here = self._through(made, index, fates[index + 1], self._back(made))
        behind = fates[index + 1]
        ends = [self.circuit.differ(here.get(end, FALSE), behind.get(end, FALSE)) for end in {*here, *behind}]
        return self.circuit.every([entry, made.matched[index], self.circuit.some(ends)])

    def _quiet(self, made: Encoded, index: int) -> bool:
        """Whether the chains that a rule leads to do nothing but decide."""
        return all(called is None or self._all_quiet(called) for _, _, called in made.results[index])

    def _all_quiet(self, made: Encoded) -> bool:
        if id(made) not in self.silent:
            self.silent[id(made)] = (
                id(made) not in self.changing
                and all(_harmless(meaning) for meaning in made.chain.meanings)
                and all(self._quiet(made, index) for index in range(len(made.results)))
            )
        return self.silent[id(made)]

    # --- what becomes of packets ---

    def _back(self, made: Encoded) -> Fate:
        """What becomes of packets that leave the chain."""
        if id(made) in self.bases:
            return {made.chain.chain.policy or "accept": TRUE}
        callers = self.callers.get(id(made), [])
        if len(callers) != 1:
            return {"left": TRUE}
        caller, index = callers[0]
        if id(caller) in self.changing:
            return {"left": TRUE}
        if any(kind == "goto" and called is made for _, kind, called in caller.results[index]):
            return self._back(caller)
        fates = self._fates(caller)
        return {"left": TRUE} if fates is None else fates[index + 1]

    def _fates(self, made: Encoded) -> list[Fate] | None:
        """By rule, what becomes of packets that come to where it stands; the last is of the chain's end."""
        if id(made) not in self.fates:
            back = self._back(made)
            found: list[Fate] = [back]
            for index in range(len(made.results) - 1, -1, -1):
                found.append(self._through(made, index, found[-1], back))
            self.fates[id(made)] = found[::-1]
        return self.fates[id(made)]

    def _through(self, made: Encoded, index: int, behind: Fate, back: Fate) -> Fate:
        """What becomes of packets where a rule stands, if it is known behind the rule and behind the chain."""
        circuit = self.circuit
        ends: dict[str, list[int]] = {}
        passed = TRUE

        def add(condition: int, fate: Fate) -> None:
            for end, literal in fate.items():
                ends.setdefault(end, []).append(circuit.both(condition, literal))

        for condition, kind, called in made.results[index]:
            passed = circuit.both(passed, -condition)
            if called is not None:
                add(condition, called.ended)
                add(circuit.both(condition, called.left), back if kind == "goto" else behind)
            else:
                add(condition, back if kind == "return" else {kind: TRUE})
        add(passed, behind)
        return {end: circuit.some(literals) for end, literals in ends.items()}

    def _simulated(self, differing: Mapping[Place, int]) -> None:
        """Refutes what a few packets can refute."""
        samples = Samples(self.ruleset, self.asked.domain)
        places = list(differing)
        for start in range(0, len(places), _BATCH):
            batch = [place for place in places[start : start + _BATCH] for _ in range(2)]
            mask = (1 << len(batch)) - 1
            values = self.circuit.simulate(samples.words(batch), mask)
            good = mask
            for literal in self.asked.domain.always:
                good &= self.circuit.value(values, mask, literal)
            for place, literal in differing.items():
                if self.circuit.value(values, mask, literal) & good:
                    self.refuted.add(place)
