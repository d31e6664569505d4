"""Rules of opposite verdicts that match some of the same packets: what comes first decides, so their order matters.

Pairs are found as boxes, many at once, and proven by the solver: there is a packet that the first one decides and the
second one would match. That packet is sent through the rules as they are and with the two swapped, and must come to
something else. Pairs of which one rule matches all that the other does are the usual 'this, but not that', and
left out: there the order is the whole point.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from conntracker.answers.replay import replay
from conntracker.rules.intervals import Intervals, intersect
from conntracker.rules.ruleset import ChainKey, KnownChain, Meaning, Ruleset
from conntracker.rules.solve.boxes import Boxes
from conntracker.rules.solve.domain import Witness
from conntracker.rules.solve.encode import Encoded, Place
from conntracker.rules.solve.model import Question, question, witness
from conntracker.rules.terms import Branches, Effect, In, Verdict
from conntracker.rules.walk import Course
from conntracker.steps import Rule

__all__ = ["Overlap", "overlaps"]

_MOST_PROVEN = 1500  # pairs that the solver is asked about, for each IP version
_MOST_TOLD = 50
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
    """

    rule: Rule
    others: tuple[Rule, ...]
    verdict: str
    other_verdict: str
    first: bool
    witness: Witness
    before: str
    after: str
    asked: tuple[tuple[str, bool], ...] = ()
    only_state: bool = False


@dataclass(slots=True)
class _Found:
    """Pairs of one chain that are proven, each with a packet."""

    known: KnownChain
    pairs: dict[Pair, _Shown] = field(default_factory=dict)


class _Shown(NamedTuple):
    packet: Witness
    before: str
    after: str
    asked: tuple[tuple[str, bool], ...]


def overlaps(ruleset: Ruleset, local: dict[int, Intervals] | None = None) -> tuple[list[Overlap], str]:
    """(rules of which the order matters, most telling first; a note where not all were looked at, or are told)."""
    found: dict[object, _Found] = {}
    left = 0
    for version in ruleset.families():
        with question([ruleset], version, local) as asked:
            left += _Search(ruleset, asked, found).run()
    told = [one for of_chain in found.values() for one in _grouped(of_chain)]
    told.sort(key=_telling)
    notes = []
    if left:
        notes.append(f"order: {left:,} more pairs of overlapping rules were not looked at")
    if len(told) > _MOST_TOLD:
        notes.append(f"order: {len(told) - _MOST_TOLD:,} more rules of which the order matters are not told")
    return told[:_MOST_TOLD], "; ".join(notes)


class _Search:
    """One IP version."""

    def __init__(self, ruleset: Ruleset, asked: Question, found: dict[object, _Found]) -> None:
        self.ruleset, self.asked, self.found = ruleset, asked, found
        self.alive: dict[tuple[int, int], bool] = {}
        self.course = Course(ruleset, asked.version)
        self.places = asked.ways[0].by_place()

    def run(self) -> int:
        """Finds pairs; how many were left out."""
        chains = {place[0]: stands for place, stands in self.places.items() if place[1] == 0}
        left, budget = 0, _MOST_PROVEN
        for key, stands in chains.items():
            known = stands[0][0].chain
            pairs = candidates(known.meanings, Boxes(known, self.asked.domain))
            for number, pair in enumerate(pairs):
                if budget == 0:
                    left += len(pairs) - number
                    break
                of_chain = self.found.setdefault(key, _Found(known))
                if pair in of_chain.pairs:
                    continue
                budget -= 1
                shown = self._proven((key, pair[0]), pair)
                if shown is not None:
                    of_chain.pairs[pair] = shown
        return left

    def _proven(self, place: Place, pair: Pair) -> _Shown | None:
        one, other = pair
        ask = self.asked.session.ask
        for made, entry in self.places[place]:
            if not self._live(made, entry, other) or not ask(entry, made.matched[one], made.terms[other]):
                continue
            if self._contained(made, entry, one, other) or self._contained(made, entry, other, one):
                return None
            packet = witness(self.asked, (entry, made.matched[one], made.terms[other]))
            return None if packet is None else self._confirmed(place[0], pair, packet)
        return None

    def _confirmed(self, key: ChainKey, pair: Pair, packet: Witness) -> _Shown | None:
        """What becomes of the packet as the rules are and with two of them swapped, if that is not the same."""
        now = replay(self.course, packet)
        then = replay(Course(swapped(self.ruleset, key, *pair), packet.version), packet)
        before, after = now.outcome.path.verdict, then.outcome.path.verdict
        asked = tuple(dict.fromkeys((*now.asked, *then.asked)))
        return _Shown(packet, before, after, asked) if before != after else None

    def _live(self, made: Encoded, entry: int, index: int) -> bool:
        """Whether any packet matches the rule; one that is dead is told of as such."""
        key = id(made), index
        if key not in self.alive:
            self.alive[key] = self.asked.session.ask(entry, made.matched[index])
        return self.alive[key]

    def _contained(self, made: Encoded, entry: int, one: int, other: int) -> bool:
        """Whether one of the rules matches all that the other does, of packets that come to the chain."""
        return not self.asked.session.ask(entry, made.terms[one], -made.terms[other])


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
    """Pairs (earlier, later) of opposite verdicts of which the boxes overlap, by what their own matches say."""
    verdicts = [_final(meaning) for meaning in meanings]
    pairs = []
    for later, verdict in enumerate(verdicts):
        if verdict is None:
            continue
        for earlier in map(int, boxes.overlapping(later)):
            if verdicts[earlier] is not None and verdicts[earlier] != verdict and _meet(boxes, earlier, later):
                pairs.append((earlier, later))
    return pairs


def _final(meaning: Meaning) -> str | None:
    """accept or refuse, of rules that do nothing else."""
    if any(isinstance(part, Branches) for part in meaning.parts):
        return None
    verdict = next((part for part in meaning.parts if isinstance(part, Verdict)), None)
    if verdict is None:
        return None
    return "refuse" if verdict.kind in _REFUSING else "accept" if verdict.kind == "accept" else None


def _meet(boxes: Boxes, one: int, other: int) -> bool:
    """Whether some field of each tells more than the other's, and all have values in common."""
    first, second = boxes.tests[one], boxes.tests[other]
    if first is None or second is None:
        return True
    if not all(intersect(values, second[name]) for name, values in first.items() if name in second):
        return False
    ahead = any(intersect(values, second.get(name, values)) != second.get(name) for name, values in first.items())
    return ahead or len(first) < len(second)


def _grouped(found: _Found) -> Iterable[Overlap]:
    """The fewest rules that are in all pairs, those in most of them first; each with the others that it is paired with."""
    pairs = set(found.pairs)
    while pairs:
        count: dict[tuple[int, bool], set[Pair]] = {}
        for pair in pairs:
            count.setdefault((pair[0], True), set()).add(pair)
            count.setdefault((pair[1], False), set()).add(pair)
        (index, first), group = min(count.items(), key=lambda one: (-len(one[1]), one[0][0], not one[0][1]))
        pairs -= group
        others = sorted(pair[1] if first else pair[0] for pair in group)
        rules, meanings = found.known.chain.rules, found.known.meanings
        yield Overlap(
            rules[index], tuple(rules[other] for other in others), _kind(meanings[index]), _kind(meanings[others[0]]),
            first, *found.pairs[(index, others[0]) if first else (others[0], index)],
            only_state=all(isinstance(part, Verdict | Effect) or isinstance(part, In) and part.field == "ct_state"
                           for part in meanings[index].parts),
        )  # fmt: skip


def _kind(meaning: Meaning) -> str:
    verdict = meaning.verdict
    return verdict.kind if verdict is not None else ""


def _telling(one: Overlap) -> tuple[bool, bool]:
    """To sort by: rules that look at more than the state first, an ACCEPT before a refusal first of those."""
    return one.only_state, (one.verdict != "accept") == one.first
