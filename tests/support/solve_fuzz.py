"""Random rulesets and packets: whether what the solver proves is what the plain walk does.

For a ruleset: no rule that a packet matches is called dead, and each packet shown as evidence matches its rule. For a
ruleset and a mutant of it: where a packet ends otherwise they are not called equal, the evidence ends otherwise, and so
do packets drawn from within each change.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from conntracker.lab.trials.aim import Aim
from conntracker.lab.trials.faults import seeded
from conntracker.lab.trials.generate import random_ruleset
from conntracker.lab.trials.space import Space
from conntracker.rules.host import Host
from conntracker.rules.intervals import normal, single
from conntracker.rules.iptables import parse_save
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.solve.dead import ALWAYS, dead, witnesses
from conntracker.rules.solve.domain import Witness
from conntracker.rules.solve.equal import Equal, Unequal, equivalent
from conntracker.rules.state import Answers
from conntracker.rules.terms import Atom, Nat
from conntracker.rules.walk import Course, Outcome, walk
from conntracker.steps import Rule

__all__ = ["ends", "iptables_ruleset", "mutants", "packets", "unsound_dead", "unsound_equal", "unsound_witnesses"]

Packet = Mapping[str, int | str | None]

_NAMES = ("lo", "eth0", "eth1", "wlan0", "wg0", "d0", "trial0")
_ADDRESSES = {
    name: {4: 0x0A630001 + (number << 8), 6: (0xFD99 << 112) + (number << 64) + 1}
    for number, name in enumerate(_NAMES[1:], 1)
}
_HOST = Host(local={version: normal([single(one[version])[0] for one in _ADDRESSES.values()]) for version in (4, 6)})
_WAYS = ("input", "forward", "output")


def iptables_ruleset(seed: int, version: int) -> Ruleset:
    """A random ruleset of iptables or ip6tables."""
    kind = {4: "iptables", 6: "ip6tables"}[version]
    family = {4: "ip", 6: "ip6"}[version]
    return Ruleset(parse_save(random_ruleset(seed, kind), family=family, kind="iptables-nft"))


def packets(ruleset: Ruleset, count: int, seed: int) -> Iterator[tuple[Packet, str]]:
    """Packets of which each was made for some rule, with their ways."""
    draw = random.Random(seed)  # noqa: S311 - nothing secret hangs on it
    space = Space(_ADDRESSES, _HOST)
    meanings = [meaning for known in ruleset.chains for meaning in known.meanings]
    aims = {version: Aim(ruleset, space, version, draw) for version in ruleset.families()}
    for _ in range(count):
        aim, way = draw.choice(list(aims.values())), draw.choice(_WAYS)
        packet = aim.background(way)
        for meaning in draw.sample(meanings, min(len(meanings), draw.randint(0, 3))):
            changed = dict(packet)
            if aim.toward(changed, meaning.parts):
                packet = changed
        packet = space.settled(packet)
        if way != "output" and draw.random() < 0.1:
            packet["mark"] = draw.getrandbits(3)  # by a device's own hooks
        ttl = packet.get("ttl")
        if way == "forward" and isinstance(ttl, int) and ttl < 2:
            packet["ttl"] = 64
        del packet["way"]
        yield packet, way


def unsound_dead(ruleset: Ruleset, tries: list[tuple[Packet, str]]) -> list[str]:
    """Rules called dead that one of the packets matches, for outcomes of atoms drawn at random."""
    draw = random.Random(len(tries))  # noqa: S311 - nothing secret hangs on it
    found = {id(one.rule): one for one in dead(ruleset) if one.certainty == ALWAYS}
    wrong = []
    if not found:
        return []
    courses = {version: Course(ruleset, version) for version in (4, 6)}
    for packet, way in tries:
        for outcome in walk(courses[int(packet["family"] or 0)], packet, way, answers=_drawn(draw)).outcomes:
            for step in outcome.path.steps:
                if step.rule is not None and id(step.rule) in found:
                    wrong.append(f"dead: {step.rule.chain} {step.rule.text} is matched by {way} {dict(packet)}")
    return wrong


def _drawn(draw: random.Random) -> Callable[[Atom, Rule], bool]:
    pure: dict[str, bool] = {}

    def answers(atom: Atom, _rule: Rule) -> bool:
        if atom.occurrence:
            return draw.random() < 0.5
        return pure.setdefault(atom.text, draw.random() < 0.5)

    return answers


def _by_text(draw: random.Random) -> Callable[[Atom, Rule], bool]:
    """Equal texts have equal outcomes: so they have however stateful ones are paired."""
    known: dict[str, bool] = {}
    return lambda atom, _: known.setdefault(atom.text, draw.random() < 0.5)


def unsound_witnesses(ruleset: Ruleset) -> list[str]:
    """Packets shown as evidence that do not match their rule."""
    wrong = []
    for rule, found in witnesses(ruleset).items():
        if _foreign(found):
            continue
        answer = walk(ruleset, found.packet, found.way)
        astray = any("oif" not in one.packet for one in answer.outcomes)  # routed again: the walk does not guess where
        if answer.whole and not astray and not any(_matches(one, rule) for one in answer.outcomes):
            wrong.append(f"witness: {rule.chain} {rule.text} is not matched by {found.way} {found.packet}")
    return wrong


def _matches(outcome: Outcome, rule: Rule) -> bool:
    return any(step.rule is rule for step in outcome.path.steps)


def _foreign(found: Witness) -> bool:
    """Whether the evidence rests on what the walk does not know: NAT of earlier packets, programs that queues ask, a
    match that answers otherwise once rules have changed the packet.
    """
    pure: dict[str, set[bool]] = {}
    for (text, occurrence), outcome in found.outcomes:
        if not occurrence:
            pure.setdefault(text, set()).add(outcome)
    if any(len(outcomes) > 1 for outcomes in pure.values()):
        return True
    return "first" in found.packet or any(
        text.startswith(("the flow's", "a program", "routing")) for text, outcome in found.assumed if outcome
    )


def mutants(ruleset: Ruleset, count: int, seed: int) -> Iterator[Ruleset]:
    """Rulesets with one fault each."""
    for fault in islice(seeded(ruleset, seed), count):
        yield fault.ruleset


def ends(course: Course, packet: Packet, way: str, answers: Answers | None = None) -> set[tuple[object, ...]] | None:
    """What may become of a packet: a verdict, and what it takes along; None where it hangs on too much."""
    answer = walk(course, packet, way, answers=answers)
    if not answer.whole:
        return None
    found: set[tuple[object, ...]] = set()
    for one in answer.outcomes:
        verdict = one.path.verdict
        kept: tuple[object, ...] = ()
        if verdict == "accept":
            kept = tuple(sorted((name, value) for name, value in one.packet.items() if value is not None))
        found.add((verdict, kept))
    return found


def unsound_equal(one: Ruleset, other: Ruleset, tries: list[tuple[Packet, str]]) -> list[str]:
    """What the solver says of the pair that packets show to be wrong."""
    answer, draw = equivalent(one, other), random.Random(len(tries))  # noqa: S311 - nothing secret hangs on it
    if isinstance(answer, Equal):
        courses = [{version: Course(ruleset, version) for version in (4, 6)} for ruleset in (one, other)]
        for packet, way in tries:
            version = int(packet["family"] or 0)
            answers = _by_text(draw)
            before, after = (ends(course[version], packet, way, answers) for course in courses)
            if before is not None and after is not None and _verdicts(before) != _verdicts(after):
                return [f"equal: but {way} {dict(packet)} ends as {_verdicts(before)}, then {_verdicts(after)}"]
        return []
    return _unequal(one, other, answer)


def _verdicts(found: set[tuple[object, ...]]) -> set[object]:
    return {verdict for verdict, _ in found}


def _unequal(one: Ruleset, other: Ruleset, answer: Unequal) -> list[str]:
    found = answer.witness
    if _foreign(found) or found.assumed or _free_nat(one) or _free_nat(other):
        return []
    before, after = (ends(Course(ruleset, found.version), found.packet, found.way) for ruleset in (one, other))
    if before is not None and before == after and answer.before != answer.after:
        return [f"unequal: but {found.way} {found.packet} ends as {_verdicts(before)} in both"]
    return []


def _free_nat(ruleset: Ruleset) -> bool:
    return any(
        isinstance(part, Nat) or (isinstance(part, Atom) and part.occurrence)
        for known in ruleset.chains for meaning in known.meanings for part in meaning.parts
    )  # fmt: skip
