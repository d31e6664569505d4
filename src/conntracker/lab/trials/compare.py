"""The engine's steps beside the kernel's, packet by packet, line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from conntracker.lab.trials.borders import way_of
from conntracker.lab.trials.ends import End, wrong_end
from conntracker.lab.trials.lines import Line, line_of, text_of
from conntracker.lab.trials.routing import stopped
from conntracker.rules.fields import FIELDS, NAMES
from conntracker.rules.host import Host
from conntracker.rules.packets import Packet
from conntracker.rules.ruleset import Ruleset, namespace_of
from conntracker.rules.terms import Atom
from conntracker.rules.walk import Answer, Course, Outcome, walk
from conntracker.steps import Rule, Step

__all__ = ["AtomKey", "Comparison", "Judge", "Mismatch"]

_HOOKS = ("prerouting", "input", "forward", "postrouting")
# Matches of iptables that drop packets which they cannot count (`hotdrop`, linux/netfilter/x_tables.h).
_DROPPING = frozenset(("connlimit", "hashlimit", "recent"))
_BEFORE, _BEHIND = 4, 6  # steps that are shown of a difference
# (name, text, occurrence)
AtomKey = tuple[str, str, str]
_PLACE = tuple[str, str, str, str, int | None]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A packet of which the kernel says something else than the engine.

    kernel   its lines
    engine   those of the outcome that agrees longest
    at       the index of the first line that differs
    reason   what is wrong, if it is not a line
    """

    packet: Packet
    kernel: tuple[Line, ...]
    engine: tuple[Line, ...]
    at: int
    reason: str = ""

    def __str__(self) -> str:
        fields = " ".join(f"{name}={value}" for name, value in self.packet.items() if value is not None)
        sides = [f"  {self.reason or 'the steps differ'} at step {self.at + 1}"]
        for name, lines in (("kernel", self.kernel), ("engine", self.engine)):
            near = range(max(0, self.at - _BEFORE), min(len(lines), self.at + _BEHIND))
            sides += [f"  {name} {'>' if i == self.at else ' '} {text_of(lines[i])}" for i in near]
        return "\n".join((fields, *sides))


@dataclass(slots=True)
class Comparison:
    """What came of a number of packets.

    same        of which the steps are those that the engine says, undecided ones included
    undecided   where they hang on an atom, and are one of the engine's outcomes
    unknown     where the engine did not know a field: what each was
    dropped     by a match itself, of those that may: no rule's verdict
    routed      dropped by routing, and not by rules: why, as was predicted
    """

    packets: int = 0
    same: int = 0
    undecided: int = 0
    dropped: int = 0
    unknown: dict[str, int] = field(default_factory=dict)
    routed: dict[str, int] = field(default_factory=dict)
    mismatches: list[Mismatch] = field(default_factory=list)

    def add(self, other: Comparison) -> None:
        """Counts those of another, too."""
        self.packets, self.same = self.packets + other.packets, self.same + other.same
        self.undecided, self.dropped = self.undecided + other.undecided, self.dropped + other.dropped
        for mine, theirs in ((self.unknown, other.unknown), (self.routed, other.routed)):
            for name, count in theirs.items():
                mine[name] = mine.get(name, 0) + count
        self.mismatches += other.mismatches


class Judge:
    """Compares for one ruleset.

    host   whose it is; or what says so of a packet, where each has routes of its own
    told   called with each packet's outcome that is the kernel's
    """

    def __init__(
        self,
        ruleset: Ruleset,
        host: Host | Callable[[Packet], Host] | None,
        told: Callable[[Packet, Outcome], None] | None = None,
    ) -> None:
        self._courses = {version: Course(ruleset, version) for version in (4, 6)}
        self._host, self._told = host, told
        self.outcomes: dict[AtomKey, set[bool]] = {}  # of the matches that the engine does not decide
        self._lines: dict[int, tuple[Step, Line]] = {}

    def compare(
        self, packets: Sequence[Packet], kernel: Iterable[tuple[Line, ...]], ends: Iterable[End], most: int = 20
    ) -> Comparison:
        """All packets; no more than `most` mismatches are kept, but all are counted (packets - same)."""
        result = Comparison()
        for packet, lines, end in zip(packets, kernel, ends, strict=True):
            result.packets += 1
            found = self.judge(packet, lines, result, end)
            if found is None:
                result.same += 1
            elif len(result.mismatches) < most:
                result.mismatches.append(found)
        return result

    def agrees(self, packet: Packet, kernel: tuple[Line, ...], end: End | None = None) -> bool:
        """Whether the kernel's lines, and the end, are among what the engine holds possible."""
        return self.judge(packet, kernel, Comparison(), end) is None

    def judge(
        self, packet: Packet, kernel: tuple[Line, ...], result: Comparison, end: End | None = None
    ) -> Mismatch | None:
        """None if the kernel's lines are those of an outcome, and the end is its end."""
        asked: list[tuple[Atom, bool | None]] = []
        guided = self._walk(packet, kernel, asked)
        fitting = self._fitting(packet, guided, kernel, end)
        if fitting is None and asked:
            asked = []
            guided = self._walk(packet, None, asked)
            fitting = self._fitting(packet, guided, kernel, end)
        if fitting is None:
            if self._dropped(packet, kernel, guided, [atom for atom, _ in asked if atom.name in _DROPPING]):
                result.dropped += 1
                return None
            return self._mismatch(packet, kernel, guided, end)
        self._remember(asked, fitting)
        result.undecided += bool(asked)
        if reason := self._seen(packet, fitting)[1]:
            result.routed[reason] = result.routed.get(reason, 0) + 1
        for assumed in fitting.assumed:
            if _is_field(assumed.name):
                result.unknown[assumed.name] = result.unknown.get(assumed.name, 0) + 1
        if self._told is not None:
            self._told(packet, fitting)
        return None

    def _remember(self, asked: list[tuple[Atom, bool | None]], fitting: Outcome) -> None:
        """Which outcomes matches had: of rules that matched, and of those that were passed over for them."""
        assumed = {(one.name, one.text): one.value for one in fitting.assumed}
        failed = {id(one.term) for one in fitting.passed}
        for atom, told in asked:
            value = assumed.get((atom.name, atom.text), told)
            if value is not None and (value != atom.negated or self._told is None or id(atom) in failed):
                self.outcomes.setdefault((atom.name, atom.text, atom.occurrence), set()).add(value)

    def possible(self, packet: Packet) -> list[tuple[Line, ...]]:
        """The lines of each outcome."""
        return [self._seen(packet, one)[0] for one in self._walk(packet, None, []).outcomes]

    def _walk(self, packet: Packet, kernel: tuple[Line, ...] | None, asked: list[tuple[Atom, bool | None]]) -> Answer:
        """With the kernel's lines, atoms of rules in them hold, and those of the others do not."""
        course = self._courses[4 if packet["family"] == 4 else 6]
        matched = None if kernel is None else {_place_of(line) for line in kernel}

        def answer(atom: Atom, rule: Rule) -> bool | None:
            told = None if matched is None else (_place(rule) in matched) != atom.negated
            asked.append((atom, told))
            return told

        host = self._host(packet) if callable(self._host) else self._host
        return walk(course, packet, way_of(packet), host=host, answers=answer, passed=self._told is not None)

    def _fitting(self, packet: Packet, answer: Answer, kernel: tuple[Line, ...], end: End | None) -> Outcome | None:
        for one in answer.outcomes:
            lines, reason = self._seen(packet, one)
            if lines == kernel and (end is None or wrong_end(packet, one, bool(reason), end) is None):
                return one
        return None

    def _seen(self, packet: Packet, outcome: Outcome) -> tuple[tuple[Line, ...], str]:
        """The lines of an outcome up to where routing drops the packet, and why it does."""
        lines = self.lines(outcome.path.steps)
        drop = stopped(packet, outcome.packet, outcome.hops)
        if drop is None:
            return lines, ""
        hook, reason = drop
        gone = _HOOKS if hook == "prerouting" else _HOOKS[1:]
        kept = tuple(line for line in lines if line[0] not in gone)
        ended = outcome.path.verdict != "accept" and kept == lines  # before it came that far
        return kept, "" if ended else reason

    def _dropped(self, packet: Packet, kernel: tuple[Line, ...], answer: Answer, atoms: Sequence[Atom]) -> bool:
        """Whether the kernel's lines end where a match may have dropped the packet itself: legacy tables are silent
        about it, nf_tables tells it as the rule's verdict.
        """
        if not atoms:
            return False
        if kernel and kernel[-1][5] == "rule" and kernel[-1][7] == "drop":
            position = () if kernel[-1][6] is None else (kernel[-1][6],)  # not always does it tell which rule it was
            place = "".join(f"{word}/" for word in (*kernel[-1][2:5], *position))
            if any(atom.occurrence.startswith(place) for atom in atoms):
                kernel = kernel[:-1]
        sides = [self._seen(packet, one)[0] for one in answer.outcomes]
        return any(len(side) > len(kernel) and side[: len(kernel)] == kernel for side in sides)

    def lines(self, steps: Iterable[Step]) -> tuple[Line, ...]:
        """What is compared of the steps."""
        found = []
        for step in steps:
            known = self._lines.get(id(step))
            if known is None:
                known = self._lines[id(step)] = (step, line_of(step))
            found.append(known[1])
        return tuple(found)

    def _mismatch(self, packet: Packet, kernel: tuple[Line, ...], answer: Answer, end: End | None) -> Mismatch:
        sides = [(self._seen(packet, one), one) for one in answer.outcomes]
        (lines, reason), one = max(sides, key=lambda side: _common(side[0][0], kernel))
        wrong = wrong_end(packet, one, bool(reason), end) if end is not None and lines == kernel else None
        return Mismatch(packet, kernel, lines, _common(lines, kernel), wrong or "")


def _place_of(line: Line) -> _PLACE:
    return namespace_of(line[1]), line[2], line[3], line[4], line[6]


def _place(rule: Rule) -> _PLACE:
    return namespace_of(rule.kind), rule.family, rule.table, rule.chain, rule.position


def _common(one: tuple[Line, ...], other: tuple[Line, ...]) -> int:
    """How many lines they begin with together."""
    count = 0
    for first, second in zip(one, other, strict=False):
        if first != second:
            break
        count += 1
    return count


def _is_field(name: str) -> bool:
    return name in FIELDS or name in NAMES or name == "routing"
