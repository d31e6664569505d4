"""ACCEPTs that let through far more than a recording has of them.

What a rule admits is what its own matches say, and those of the jumps that lead to it where only one does. What was
seen is each packet that the rule decided about: its sources and destinations joined to a few prefixes, so that a
neighbour of what was seen is no news, and its ports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from conntracker.recording.paths import load_paths
from conntracker.recording.reader import Recording
from conntracker.rules.fields import width_of
from conntracker.rules.intervals import Intervals, contains, intersect, normal
from conntracker.rules.ruleset import KnownChain, Meaning, Ruleset, namespace_of
from conntracker.rules.terms import AnyOf, Branches, In, Verdict
from conntracker.steps import Rule, Step

__all__ = ["Side", "Wide", "covering", "wide_rules"]

_FIELDS = ("saddr", "daddr", "dport")
_NEW = 3  # in CT_STATES
_MOST_PREFIXES = 8
# How many times as much as was seen is far wider, and of how many values a set is at least that is called wide.
_FAR = {"saddr": 1 << 16, "daddr": 1 << 16, "dport": 16}
_LEAST = {"saddr": 1 << 16, "daddr": 1 << 16, "dport": 64}
_COLUMNS = {"saddr": "src_hi, src_lo", "daddr": "dst_hi, dst_lo", "dport": "proto, dport"}
# At these hooks one end of a packet is always this host.
_OWN = {"input": "daddr", "output": "saddr"}

Key = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Side:
    """One field of what a rule admits.

    field     saddr, daddr or dport
    admitted  what the rule lets through
    seen      what was seen of it; addresses joined to prefixes
    values    how many different ones were seen
    """

    field: str
    admitted: Intervals
    seen: Intervals
    values: int

    @property
    def factor(self) -> float:
        """How many times as much as was seen is let through."""
        return size(self.admitted) / max(1, size(self.seen))

    @property
    def wide(self) -> bool:
        """Whether that is worth a word."""
        return size(self.admitted) >= _LEAST[self.field] and self.factor >= _FAR[self.field]


@dataclass(frozen=True, slots=True)
class Wide:
    """A rule, what it admits and what was seen; `sides` are those that are far wider. `version` is that of IP."""

    rule: Rule
    version: int
    sides: tuple[Side, ...]

    @property
    def factor(self) -> float:
        """That of the widest side, as a share of what is called far."""
        return max(side.factor / _FAR[side.field] for side in self.sides)


def wide_rules(ruleset: Ruleset, recording: Recording) -> list[Wide]:
    """The rules that are far wider than what they decided about in the recording, widest first."""
    deciding = _deciding(recording)
    seen = {field: _seen(recording, field, deciding) for field in _FIELDS}
    steps = {_key(step.rule): step for step in deciding.values() if step.rule is not None}
    callers = _callers(ruleset)
    found = []
    for known in ruleset.chains:
        for rule, meaning in known.items():
            step = steps.get(_key(rule))
            if step is None or _only_known_flows(meaning):
                continue
            tests = _tests((*_of_callers(known, callers), meaning))
            for version in (4, 6):
                sides = tuple(_sides(step, tests, seen, _key(rule), version))
                if sides:
                    found.append(Wide(rule, version, sides))
    return sorted(found, key=lambda one: -one.factor)


def size(values: Intervals) -> int:
    """How many numbers are in a set."""
    return sum(high - low + 1 for low, high in values)


def covering(values: Sequence[int], width: int, most: int = _MOST_PREFIXES) -> Intervals:
    """At most so many prefixes of numbers of `width` bits in which all of these are, as small as they can be."""
    ordered = sorted(set(values))
    # Two neighbours have in common what stands before the highest bit in which they differ: the highest part them.
    gaps = sorted(range(1, len(ordered)), key=lambda i: -(ordered[i] ^ ordered[i - 1]).bit_length())
    starts = sorted([0, *gaps[: most - 1]])
    groups = [ordered[low:high] for low, high in zip(starts, [*starts[1:], len(ordered)], strict=True)]
    found = []
    for group in groups:
        if group:
            free = (group[0] ^ group[-1]).bit_length()
            low = group[0] >> free << free
            found.append((low, min(low + (1 << free) - 1, (1 << width) - 1)))
    return normal(found)


def _sides(
    step: Step, tests: Mapping[str, Intervals], seen: Mapping[str, Mapping[tuple[Key, int], set[int]]], key: Key,
    version: int,
) -> Iterator[Side]:  # fmt: skip
    for field in _FIELDS:
        values = seen[field].get((key, version))
        if not values or _OWN.get(step.hook or "") == field:
            continue
        width = width_of(field, version)
        admitted = intersect(tests.get(field, ((0, (1 << width) - 1),)), ((0, (1 << width) - 1),))
        joined = covering(sorted(values), width) if field != "dport" else normal((value, value) for value in values)
        side = Side(field, admitted, joined, len(values))
        if side.wide:
            yield side


def _deciding(recording: Recording) -> dict[tuple[int, int], Step]:
    """By part and number of a path, the step at which a rule let the packet through."""
    return {
        key: step
        for key, path in load_paths(recording).items()
        if path.verdict == "accept" and (step := path.deciding) is not None and step.rule is not None
    }


def _seen(
    recording: Recording, field: str, deciding: Mapping[tuple[int, int], Step]
) -> dict[tuple[Key, int], set[int]]:
    """By rule and IP version, the different values of a field."""
    found: dict[tuple[Key, int], set[int]] = {}
    query = f"SELECT DISTINCT part, path, family, {_COLUMNS[field]} FROM trace_rows"  # noqa: S608
    if field == "dport":
        query += " WHERE dport IS NOT NULL"
    for chunk in recording.chunks(query):
        columns = [column.tolist() for column in chunk.values()]
        for part, path, family, high, low in zip(*columns, strict=True):
            step = deciding.get((part, path))
            if step is None or step.rule is None:
                continue
            key = _key(step.rule), 6 if family in {6, 10, "ipv6"} else 4
            found.setdefault(key, set()).add(low if field == "dport" else high << 64 | low)
    return found


def _key(rule: Rule) -> Key:
    """What a rule is known by in both: its place and its text; not its kind, which a save does not say."""
    text = " ".join((rule.text or f"rule {rule.position}").split())
    return rule.family, rule.table, rule.chain, text


def _only_known_flows(meaning: Meaning) -> bool:
    """Whether the rule is for packets of flows only that others let in, or lets nothing in."""
    verdict = meaning.verdict
    if verdict is None or verdict.kind != "accept":
        return True
    return any(
        isinstance(part, In) and part.field == "ct_state" and part.mask is None and not contains(part.values, _NEW)
        for part in meaning.parts
    )


def _tests(meanings: Sequence[Meaning]) -> dict[str, Intervals]:
    """What all of the meanings together ask of each field."""
    tests: dict[str, Intervals] = {}
    for meaning in meanings:
        for part in meaning.parts:
            if isinstance(part, In) and part.mask is None:
                one = {part.field: part.values}
            elif isinstance(part, AnyOf) and not part.negated:
                one = _any(part)
            else:
                continue
            for field, values in one.items():
                tests[field] = intersect(tests[field], values) if field in tests else values
    return tests


def _any(part: AnyOf) -> dict[str, Intervals]:
    """What every box asks: of the fields that all of them ask for, all values."""
    boxes = [{test.field: test.values for test in box if isinstance(test, In) and test.mask is None}
             for box in part.boxes]  # fmt: skip
    common = set(boxes[0]).intersection(*boxes) if boxes else set()
    return {field: normal(pair for box in boxes for pair in box[field]) for field in common}


def _callers(ruleset: Ruleset) -> dict[tuple[str, str, str, str], list[tuple[KnownChain, Meaning]]]:
    """By chain, the rules that lead to it."""
    found: dict[tuple[str, str, str, str], list[tuple[KnownChain, Meaning]]] = {}
    for known in ruleset.chains:
        for rule, meaning in known.items():
            verdicts = [part for part in meaning.parts if isinstance(part, Verdict)]
            verdicts += [one for part in meaning.parts if isinstance(part, Branches) for _, one in part.cases]
            for verdict in verdicts:
                if verdict.chain is not None:
                    key = namespace_of(rule.kind), rule.family, rule.table, verdict.chain
                    found.setdefault(key, []).append((known, meaning))
    return found


def _of_callers(
    known: KnownChain, callers: Mapping[tuple[str, str, str, str], list[tuple[KnownChain, Meaning]]]
) -> list[Meaning]:
    """The jumps that lead to the chain, as far as there is only one way."""
    found: list[Meaning] = []
    seen = {known.key}
    while len(calls := callers.get(known.key, [])) == 1:
        known, meaning = calls[0]
        if known.key in seen:
            break
        seen.add(known.key)
        found.append(meaning)
    return found
