"""Rules of opposite verdicts that match some of the same packets: what comes first decides, so their order matters.

Pairs are found as boxes, many at once, and proven by the solver: there is a packet that the first one decides and the
second one would match. That packet is sent through the rules as they are and with the two swapped, and must come to
something else. Pairs of which one rule matches all that the other does are the usual 'this, but not that', and
left out: there the order is the whole point.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from conntracker.answers.replay import replay
from conntracker.rules.intervals import Intervals, intersect, is_subset
from conntracker.rules.ruleset import ChainKey, KnownChain, Meaning, Ruleset
from conntracker.rules.solve.boxes import Boxes
from conntracker.rules.solve.domain import Witness
from conntracker.rules.solve.encode import Encoded
from conntracker.rules.solve.model import Question, question, witness
from conntracker.rules.terms import Branches, Effect, In, Named, Verdict
from conntracker.rules.walk import Course
from conntracker.steps import Rule

__all__ = ["Overlap", "overlaps"]

_MOST_PROVEN = 300  # pairs that the solver is asked about, for each IP version
_MOST_TOLD = 50
_MOST_TRIED = 4  # pairs of a group
_REFUSING = frozenset(("drop", "reject"))

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Overlap:
    """A rule that stands in an order with others of its chain.

    others   those of the opposite verdict that match some of the same packets, none of them all of the same
    first    whether it stands before them, or behind
    witness  a packet that becomes something else if the rule and the first of the others are swapped
    before   what becomes of it now
    after    and then
    asked    (text, outcome) of the matches that its way hangs on
    only_state   whether the rule looks at nothing but the state
    """

    rule: Rule
    others: tuple[Rule, ...]
    first: bool
    witness: Witness
    before: str
    after: str
    asked: tuple[tuple[str, bool], ...] = ()
    only_state: bool = False


def overlaps(ruleset: Ruleset, local: dict[int, Intervals] | None = None) -> tuple[list[Overlap], str]:
    """(rules of which the order matters, most telling first; a note where not all were looked at, or are told)."""
    told: list[Overlap] = []
    seen: set[tuple[ChainKey, Pair]] = set()
    left = 0
    for version in ruleset.families():
        with question([ruleset], version, local) as asked:
            search = _Search(ruleset, asked, seen)
            told += search.run()
            left += search.left
    told.sort(key=_telling)
    notes = []
    if left:
        notes.append(f"order: {left:,} more pairs of overlapping rules were not looked at")
    if len(told) > _MOST_TOLD:
        notes.append(f"order: {len(told) - _MOST_TOLD:,} more rules of which the order matters are not told")
    return told[:_MOST_TOLD], "; ".join(notes)


class _Search:
    """One IP version.

    seen   pairs that are known from the other one
    left   how many pairs were not looked at
    """

    def __init__(self, ruleset: Ruleset, asked: Question, seen: set[tuple[ChainKey, Pair]]) -> None:
        self.ruleset, self.asked, self.seen = ruleset, asked, seen
        self.course = Course(ruleset, asked.version)
        self.places = asked.ways[0].by_place()
        self.alive: dict[tuple[int, int], bool] = {}
        self.left = 0

    def run(self) -> list[Overlap]:
        """The rules that are in pairs, those of a chain that are in most of them first."""
        chains = {place[0]: stands[0][0].chain for place, stands in self.places.items() if place[1] == 0}
        budget = _MOST_PROVEN
        told = []
        for key, known in chains.items():
            pairs = [pair for pair in candidates(known.meanings, Boxes(known, self.asked.domain))
                     if (key, pair) not in self.seen]  # fmt: skip
            self.left += max(0, len(pairs) - budget)
            proven = {pair for pair in pairs[:budget] if self._proven(key, known, pair) is not None}
            budget -= min(budget, len(pairs))
            self.seen |= {(key, pair) for pair in proven}
            told += [one for group in _grouped(proven) if (one := self._overlap(key, known, *group)) is not None]
        return told

    def _proven(self, key: ChainKey, known: KnownChain, pair: Pair) -> tuple[int, ...] | None:
        """Literals that hold for packets which the first rule decides and the second one would match."""
        one, other = pair
        ask = self.asked.session.ask
        for made, entry in self.places[key, one]:
            literals = entry, made.matched[one], made.terms[other]
            if not self._live(made, entry, other) or not ask(*literals):
                continue
            if _plain(known.meanings[one]) and _plain(known.meanings[other]):
                return literals  # boxes have been compared before
            apart = ask(entry, made.terms[one], -made.terms[other]) and ask(entry, made.terms[other], -made.terms[one])
            return literals if apart else None
        return None

    def _live(self, made: Encoded, entry: int, index: int) -> bool:
        """Whether any packet matches the rule; one that is dead is told of as such."""
        key = id(made), index
        if key not in self.alive:
            self.alive[key] = self.asked.session.ask(entry, made.matched[index])
        return self.alive[key]

    def _overlap(
        self, key: ChainKey, known: KnownChain, index: int, first: bool, others: Sequence[int]
    ) -> Overlap | None:
        """The rule with the first of the others of which a packet shows that the order matters, and all behind it."""
        for number, other in enumerate(others[:_MOST_TRIED]):
            pair = (index, other) if first else (other, index)
            literals = self._proven(key, known, pair)
            packet = None if literals is None else witness(self.asked, literals)
            if packet is None:
                continue
            now = replay(self.course, packet)
            then = replay(Course(swapped(self.ruleset, key, *pair), packet.version), packet)
            before, after = now.outcome.path.verdict, then.outcome.path.verdict
            if before != after:
                rules = known.chain.rules
                return Overlap(
                    rules[index], tuple(rules[other] for other in others[number:]), first, packet, before, after,
                    tuple(dict.fromkeys((*now.asked, *then.asked))), _only_state(known.meanings[index]),
                )  # fmt: skip
        return None


def swapped(ruleset: Ruleset, key: ChainKey, one: int, other: int) -> Ruleset:
    """The ruleset with two rules of a chain in each other's place."""
    chains = list(ruleset.chains)
    number = next(i for i, known in enumerate(chains) if known.key == key)
    known = chains[number]
    rules, meanings = list(known.chain.rules), list(known.meanings)
    rules[one], rules[other] = rules[other], rules[one]
    meanings[one], meanings[other] = meanings[other], meanings[one]
    chains[number] = replace(known, chain=replace(known.chain, rules=tuple(rules)), meanings=tuple(meanings))
    return replace(ruleset, chains=tuple(chains))


def candidates(meanings: Sequence[Meaning], boxes: Boxes) -> list[Pair]:
    """Pairs (earlier, later) of opposite verdicts that overlap, neither inside the other; most telling first."""
    verdicts = [_final(meaning) for meaning in meanings]
    plain = [_plain(meaning) for meaning in meanings]
    pairs: list[tuple[bool, bool, Pair]] = []
    for later, verdict in enumerate(verdicts):
        if verdict is None:
            continue
        for earlier in map(int, boxes.overlapping(later)):
            if verdicts[earlier] is None or verdicts[earlier] == verdict:
                continue
            one, other = boxes.tests[earlier] or {}, boxes.tests[later] or {}
            nested = (plain[later] and _inside(one, other)) or (plain[earlier] and _inside(other, one))
            if not nested and _meet(one, other):
                pairs.append((_only_state(meanings[earlier]), verdicts[earlier] != "accept", (earlier, later)))
    return [pair for *_, pair in sorted(pairs)]


def _final(meaning: Meaning) -> str | None:
    """accept or refuse, of rules that do nothing else."""
    if any(isinstance(part, Branches) for part in meaning.parts):
        return None
    verdict = next((part for part in meaning.parts if isinstance(part, Verdict)), None)
    if verdict is None:
        return None
    return "refuse" if verdict.kind in _REFUSING else "accept" if verdict.kind == "accept" else None


def _meet(first: Mapping[str, Intervals], second: Mapping[str, Intervals]) -> bool:
    """Whether two boxes have packets in common."""
    return all(intersect(values, second[name]) for name, values in first.items() if name in second)


def _inside(inner: Mapping[str, Intervals], outer: Mapping[str, Intervals]) -> bool:
    """Whether all packets of a box are in another one."""
    return all(name in inner and is_subset(inner[name], values) for name, values in outer.items())


def _plain(meaning: Meaning) -> bool:
    """Whether all that the rule asks for is a box."""
    return all(
        isinstance(part, Verdict | Effect | Named) or (isinstance(part, In) and part.mask is None)
        for part in meaning.parts
    )


def _only_state(meaning: Meaning) -> bool:
    """Whether the rule looks at nothing but the state: most rulesets begin with such, and nobody wonders."""
    return all(
        isinstance(part, Verdict | Effect) or (isinstance(part, In) and part.field in {"ct_state", "family"})
        for part in meaning.parts
    )


def _grouped(pairs: Collection[Pair]) -> Iterator[tuple[int, bool, list[int]]]:
    """(rule, whether it is the earlier, others): few rules that are in all pairs, those in most of them first."""
    pairs = set(pairs)
    while pairs:
        count: dict[tuple[int, bool], set[Pair]] = {}
        for pair in pairs:
            count.setdefault((pair[0], True), set()).add(pair)
            count.setdefault((pair[1], False), set()).add(pair)
        (index, first), group = min(count.items(), key=lambda one: (-len(one[1]), one[0][0], not one[0][1]))
        pairs -= group
        yield index, first, sorted(pair[1] if first else pair[0] for pair in group)


def _telling(one: Overlap) -> tuple[bool, bool]:
    """To sort by: rules that look at more than the state first, an ACCEPT before a refusal first of those."""
    return one.only_state, one.before != "accept"
