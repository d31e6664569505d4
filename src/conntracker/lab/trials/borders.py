"""Which packets to try: those by which a wrong engine would be found out.

For each rule that some packet matches: a witness; for each of its terms packets just inside, just outside and far from
what it allows, that come as far as the term and hold all others, so that they take other steps if the term is lost or
moved by one; and for each later rule of another verdict that can match the same packets, one that both match.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from conntracker.lab.trials.aim import Aim
from conntracker.lab.trials.space import Space
from conntracker.lab.trials.variants import variants
from conntracker.rules.fields import CT_STATES
from conntracker.rules.order import WAYS
from conntracker.rules.packets import Packet
from conntracker.rules.ruleset import ChainKey, KnownChain, Meaning, Ruleset, namespace_of
from conntracker.rules.state import State
from conntracker.rules.terms import AnyOf, Atom, Branches, In, Named, Part, Verdict
from conntracker.rules.walk import Course, Outcome, Passed, walk
from conntracker.steps import Rule

__all__ = ["Choice", "around", "choose", "way_of"]

_TRIES = 12  # at a witness of a rule, each round
_UNTRACKED_TRIES = frozenset((3, 6, 9, 10, 11))  # of these
_ROUNDS = 8
_NEARLY = 6  # at a packet that one term alone keeps from a rule
_PAIRS = 3
_LEAST = 8  # packets a round for each rule
_OFTEN, _SELDOM = 0.5, 0.05  # that a packet for this host is one that it sends to itself
_NO_VERDICT = Verdict("continue")


@dataclass(slots=True)
class Choice:
    """The packets, each once; and the rules that no packet was found for."""

    packets: list[Packet] = field(default_factory=list)
    without: list[Rule] = field(default_factory=list)


def choose(
    ruleset: Ruleset,
    space: Space,
    most: int,
    *,
    seed: int = 0,
    sendable: Callable[[Packet], bool] = lambda _: True,
    witnesses: Mapping[int, Packet] = MappingProxyType({}),
) -> Choice:
    """At most `most` packets of all IP versions that the ruleset has chains for.

    sendable   whether a packet can be made
    witnesses  packets that match rules, by id of the rule: where to start from
    """
    choice, versions = Choice(), ruleset.families()
    found: set[int] = set()
    for number, version in enumerate(versions):
        draw = random.Random(f"{seed}/{version}")  # noqa: S311 - nothing secret hangs on it
        limit = most * (number + 1) // len(versions)
        chooser = _Chooser(ruleset, space, version, draw, sendable, choice, limit)
        for rule, packet in witnesses.items():
            if packet.get("family") == version:
                made = space.settled(space.completed(packet, draw))
                if chooser.keep(made):
                    chooser.given[rule] = made
        chooser.choose()
        found |= chooser.matched
    choice.without = [rule for known in ruleset.chains for rule in known.chain.rules if id(rule) not in found]
    return choice


def around(
    ruleset: Ruleset, chain: int, rule: int, space: Space, *, sendable: Callable[[Packet], bool], most: int = 120
) -> list[Packet]:
    """Packets on the borders of one rule, and of the next one: rule number `rule`, from 0, of chain number `chain`."""
    choice, known = Choice(), ruleset.chains[chain]
    for version in ruleset.families():
        draw = random.Random(f"{version}")  # noqa: S311 - nothing secret hangs on it
        limit = len(choice.packets) + most
        chooser = _Chooser(ruleset, space, version, draw, sendable, choice, limit)
        for index in (rule, rule, rule + 1):
            if index < len(known.meanings) and chooser.has(known):
                chooser.rule(known, index, deep=True)
    return choice.packets


def way_of(packet: Packet) -> str | None:
    """For walk(): what would be forwarded is for this host, if a rule gives it the host's address."""
    way = packet["way"]
    return None if way == "forward" else str(way)


@dataclass(slots=True)
class _Alike:
    """Answers every question about a match that is not known alike."""

    holding: bool
    asked: bool = False

    def __call__(self, atom: Atom, _: Rule) -> bool:
        self.asked = True
        return self.holding != atom.negated


class _Chooser:
    """Chooses packets of one IP version."""

    def __init__(
        self,
        ruleset: Ruleset,
        space: Space,
        version: int,
        draw: random.Random,
        sendable: Callable[[Packet], bool],
        choice: Choice,
        limit: int,
    ) -> None:
        self.ruleset, self.space, self.draw = ruleset, space, draw
        self.version, self.choice, self.limit = version, choice, limit
        self.aim = Aim(ruleset, space, version, draw)
        self.sendable: Callable[[Packet], bool] = lambda packet: (
            space.plain(packet) and self.aim.in_state(packet) and sendable(packet)
        )
        self.course, self.host = Course(ruleset, version), space.host
        self.matched: set[int] = set()  # id of rules
        self.given: dict[int, Packet] = {}  # by id of the rule
        self._kept: set[tuple[object, ...]] = set()
        self._tried: set[tuple[object, ...]] = set()  # (rule, term, fields changed)
        self._until = limit
        self._known = ruleset.by_key()
        self._callers = _callers(ruleset)
        self._bases = {known.key for hook in self.course.hooks for known in self.course.hooks[hook]}

    def choose(self) -> None:
        """Rounds over all rules, until there are enough; what is missing then is packets at random."""
        rules = [
            (known, index)
            for known in self.ruleset.chains
            if self.has(known)
            for index in range(len(known.chain.rules))
        ]
        share = max(_LEAST, self.limit // (2 * max(1, len(rules))))
        for number in range(_ROUNDS):
            for known, index in rules:
                if self.full():
                    return
                self._until = len(self.choice.packets) + share
                if number < _ROUNDS - 2 or id(known.chain.rules[index]) in self.matched:
                    self.rule(known, index, deep=number > 0)
        self._until = self.limit
        for _ in range(8 * max(0, self.limit - len(self.choice.packets))):
            if self.full():
                return
            self.keep(self.space.settled(self.aim.background(self.draw.choice(("input", "forward", "output")))))

    def has(self, known: KnownChain) -> bool:
        """Whether packets of the version can come to the chain."""
        return known.chain.family in {"inet", {4: "ip", 6: "ip6"}[self.version]}

    def full(self) -> bool:
        """Whether there are enough."""
        return len(self.choice.packets) >= self.limit

    def _enough(self) -> bool:
        """Whether there are, for now, of one rule: each is to have its share."""
        return len(self.choice.packets) >= min(self.limit, self._until)

    def keep(self, packet: Packet) -> bool:
        """Takes a packet, if it is new and can be sent."""
        key = tuple(packet.values())
        if key in self._kept or self._enough() or not self.sendable(packet):
            return False
        self._kept.add(key)
        self.choice.packets.append(packet)
        return True

    # --- one rule ---

    def rule(self, known: KnownChain, index: int, deep: bool) -> None:
        """Packets for one rule: a witness, and if it is `deep`, those on its borders."""
        rule, meaning = known.chain.rules[index], known.meanings[index]
        packet = self._matching(known, rule, meaning)
        if packet is not None:
            self.matched.add(id(rule))
            self.keep(packet)
        if not deep:
            return
        if packet is not None:
            self._pairs(packet, known, index)
            self._borders(packet, rule, meaning)
        else:
            self._nearly(known, rule, meaning)

    def _matching(self, known: KnownChain, rule: Rule, meaning: Meaning) -> Packet | None:
        """A packet that comes to the rule and matches it."""
        given = self.given.get(id(rule))
        for number in range(_TRIES):
            packet = given if given is not None and number == 0 else self._witness(known, meaning)
            if packet is not None and number in _UNTRACKED_TRIES:  # rules often sort out all that is tracked before
                packet = self.space.settled(packet | {"ct_state": CT_STATES.index("untracked")})
                packet = packet if self.sendable(packet) else None
            if packet is not None and self._matches(packet, rule):
                return packet
        return None

    def _nearly(self, known: KnownChain, rule: Rule, meaning: Meaning) -> None:
        """Packets that one term alone keeps from a rule that no packet matches: they would, if the term were lost."""
        for part in meaning.parts:
            if not isinstance(part, In | Named | AnyOf) or (isinstance(part, In) and part.field == "family"):
                continue
            rest = replace(meaning, parts=tuple(one for one in meaning.parts if one is not part))
            for _ in range(_NEARLY):
                packet = self._witness(known, rest)
                if packet is not None and self._observable(packet, rule, meaning, part):
                    self.keep(packet)
                    self._variants(packet, rule, meaning, [part])
                    break

    def _witness(self, known: KnownChain, meaning: Meaning, *more: Meaning) -> Packet | None:
        """A packet made for the rule and for the jumps that lead to it: it may be taken away before."""
        approach = self._approach(known.key)
        if approach is None:
            return None
        base, path = approach
        ways = [way for way, hooks in WAYS.items() if base.chain.hook in hooks]
        if not ways:
            return None
        way = self.draw.choice(ways)
        if "output" in ways and self.draw.random() < _OFTEN and _asks_for_sender(meaning):
            way = "output"
        packet = self.aim.background(way)
        if "input" in ways and self.draw.random() < (_OFTEN if _asks_for_loopback(meaning) else _SELDOM):
            packet = self.aim.to_itself(packet)
        for one in (*path, meaning, *more):
            if not self.aim.toward(packet, one.parts):
                return None
        packet = self.space.settled(packet)
        return packet if self.sendable(packet) else None

    def _approach(self, key: ChainKey) -> tuple[KnownChain, list[Meaning]] | None:
        """A base chain, and the jumps from there to a chain."""
        path: list[Meaning] = []
        while key not in self._bases:
            callers = self._callers.get(key)
            if not callers or len(path) > 16:
                return None
            known, meaning = self.draw.choice(callers)
            path.insert(0, meaning)
            key = known.key
        return self._known[key], path

    def _outcomes(self, packet: Packet) -> Iterator[Outcome]:
        """With all matches that are not known holding, and with none of them, if there are any."""
        for answer in (_Alike(True), _Alike(False)):
            found = walk(self.course, packet, way_of(packet), host=self.host, passed=True, answers=answer)
            yield found.outcomes[0]
            if not answer.asked:
                return

    def _matches(self, packet: Packet, rule: Rule) -> bool:
        return any(step.rule is rule for outcome in self._outcomes(packet) for step in outcome.path.steps)

    def _borders(self, packet: Packet, rule: Rule, meaning: Meaning) -> None:
        parts = [part for part in meaning.parts if isinstance(part, In | Named | AnyOf | Branches)]
        self._variants(packet, rule, meaning, parts)

    def _variants(
        self, packet: Packet, rule: Rule, meaning: Meaning, parts: Sequence[In | Named | AnyOf | Branches]
    ) -> None:
        """Packets over the borders of some terms, in any order, but those first that were not tried yet."""
        made = [(part, one) for part in parts for one in variants(self.aim, packet, part)]
        made = self.draw.sample(made, len(made))
        changes = [(id(rule), id(part), *sorted(one.items() - packet.items(), key=str)) for part, one in made]
        order = sorted(range(len(made)), key=lambda number: changes[number] in self._tried)
        for number in order:
            if self._enough():
                return
            part, variant = made[number]
            self._tried.add(changes[number])
            settled = self.space.settled(variant)
            if self.sendable(settled) and self._observable(settled, rule, meaning, part):
                self.keep(settled)

    def _observable(self, packet: Packet, rule: Rule, meaning: Meaning, part: Part) -> bool:
        """Whether the packet matches the rule, or does not for this term alone."""
        for outcome in self._outcomes(packet):
            if any(step.rule is rule for step in outcome.path.steps):
                return True
            for passed in outcome.passed:
                if passed.rule is rule and passed.term is part and self._alone(passed, meaning):
                    return True
        return False

    def _alone(self, passed: Passed, meaning: Meaning) -> bool:
        state = State(dict(passed.packet), self.version, self.host, [], None)
        return all(
            state.holds(part)
            for part in meaning.parts
            if isinstance(part, In | Named | AnyOf) and part is not passed.term and not isinstance(part, Atom)
        )

    def _pairs(self, packet: Packet, known: KnownChain, index: int) -> None:
        """Packets that the next rule, or a later one of another verdict, would have if it were the earlier."""
        rule, meaning = known.chain.rules[index], known.meanings[index]
        mine = meaning.verdict or _NO_VERDICT
        later = [one for one in known.meanings[index + 2 :] if (one.verdict or _NO_VERDICT).kind != mine.kind]
        for other in (*known.meanings[index + 1 : index + 2], *self.draw.sample(later, min(_PAIRS, len(later)))):
            both = dict(packet)
            if self.aim.toward(both, other.parts) and self.aim.toward(both, meaning.parts):
                made = self.space.settled(both)
                if self.sendable(made) and self._matches(made, rule):
                    self.keep(made)


def _asks_for_sender(meaning: Meaning) -> bool:
    return any(isinstance(one, In) and one.field in {"skuid", "skgid", "mark"} for one in meaning.parts)


def _asks_for_loopback(meaning: Meaning) -> bool:
    return any(isinstance(part, Named) and part.field == "iif" and "lo" in part.patterns for part in meaning.parts)


def _callers(ruleset: Ruleset) -> dict[ChainKey, list[tuple[KnownChain, Meaning]]]:
    """For each chain, the rules that lead to it; of a verdict map, made a rule of the case that does."""
    found: dict[ChainKey, list[tuple[KnownChain, Meaning]]] = defaultdict(list)
    for known in ruleset.chains:
        for rule, meaning in known.items():
            for target, way in _targets(meaning):
                found[namespace_of(rule.kind), rule.family, rule.table, target].append((known, way))
    return found


def _targets(meaning: Meaning) -> Iterator[tuple[str, Meaning]]:
    for index, part in enumerate(meaning.parts):
        if isinstance(part, Verdict) and part.chain is not None:
            yield part.chain, meaning
        elif isinstance(part, Branches):
            for case, verdict in part.cases:
                if verdict.chain is not None:
                    yield verdict.chain, Meaning((*meaning.parts[:index], case))
