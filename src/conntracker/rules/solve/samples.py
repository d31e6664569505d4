"""Packets made of what the rules themselves ask: most rules that can match are shown to by one of these.

A rule's packets have values of its own terms and of the jumps that lead to it: the ends of intervals, and something
between. All are worked out at once (Circuit.simulate); what they cannot show is left to the solver.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

import numpy as np

from conntracker.rules.fields import FIELDS, NAMES, width_of
from conntracker.rules.intervals import Intervals, intersect, normal
from conntracker.rules.ruleset import ChainKey, Meaning, Ruleset, namespace_of
from conntracker.rules.solve.domain import Domain
from conntracker.rules.solve.encode import Place
from conntracker.rules.terms import AnyOf, Branches, In, Named, Part, Verdict

__all__ = ["Samples", "Wishes", "paths_to", "wishes_of"]

# By field, the values that a packet should have; interfaces as numbers.
Wishes = dict[str, Intervals]

_WAYS = {"prerouting": ("input", "forward"), "input": ("input",), "forward": ("forward",), "output": ("output",),
         "postrouting": ("forward", "output")}  # fmt: skip
_MOST_PATHS = 3
_BORDERED = ("saddr", "daddr", "sport", "dport")
_ANY_NAME: Intervals = ((1, 1 << 16),)
_USUAL = {"ct_state": 3, "ttl": 64, "length": 60, "saddr_type": 1, "reverse_path": 1}


def wishes_of(parts: tuple[Part, ...], domain: Domain, chance: random.Random, target: str | None = None) -> Wishes:
    """What a packet should be for the parts to hold: of alternatives one, of a verdict map one to `target`."""
    wishes: Wishes = {}
    for part in parts:
        if isinstance(part, In | Named):
            _wish(wishes, part, domain)
        elif isinstance(part, AnyOf) and not part.negated and part.boxes:
            for test in chance.choice(part.boxes):
                _wish(wishes, test, domain)
        elif isinstance(part, Branches):
            cases = [case for case, verdict in part.cases if target is None or verdict.chain == target]
            if cases:
                for field, values in wishes_of((chance.choice(cases),), domain, chance).items():
                    wishes[field] = intersect(wishes[field], values) if field in wishes else values
    return wishes


def _wish(wishes: Wishes, test: In | Named, domain: Domain) -> None:
    if isinstance(test, Named):
        values = domain.interfaces.matching(test.patterns)
        if test.negated:
            values = normal(
                (i, i) for i in range(len(domain.interfaces.names)) if not any(low <= i <= high for low, high in values)
            )
    else:
        values = test.values
    wishes[test.field] = intersect(wishes[test.field], values) if test.field in wishes else values


def paths_to(ruleset: Ruleset) -> dict[ChainKey, list[tuple[tuple[tuple[Part, ...], str], ...]]]:
    """A few ways to each chain: the parts of the rules that lead there, each with the chain that it leads to."""
    chains = ruleset.by_key()
    found: dict[ChainKey, list[tuple[tuple[tuple[Part, ...], str], ...]]] = {}
    open_ = [(chain.key, ()) for chain in ruleset.chains if chain.chain.hook is not None]
    paths: list[tuple[ChainKey, tuple[tuple[tuple[Part, ...], str], ...]]] = list(open_)
    while paths:
        key, path = paths.pop()
        known = found.setdefault(key, [])
        if len(known) >= _MOST_PATHS or len(path) > 32 or key not in chains:
            continue
        known.append(path)
        for rule, meaning in chains[key].items():
            for name in _targets(meaning):
                paths.append(((namespace_of(rule.kind), rule.family, rule.table, name), (*path, (meaning.parts, name))))
    return found


def _targets(meaning: Meaning) -> list[str]:
    verdicts = [part for part in meaning.parts if isinstance(part, Verdict)]
    verdicts += [one for part in meaning.parts if isinstance(part, Branches) for _, one in part.cases]
    return [one.chain for one in verdicts if one.chain is not None]


class _Columns:
    """Values of each field, packet by packet."""

    def __init__(self, domain: Domain, chance: random.Random, borders: Mapping[str, list[int]]) -> None:
        self.domain, self.chance, self.borders = domain, chance, borders
        self.values: dict[str, list[int]] = {name: [] for name in (*FIELDS, *NAMES)}
        self.ways: list[str] = []

    def add(self, wishes: Mapping[str, Intervals], way: str) -> None:
        """A packet: what is wished, else what is usual."""
        chance = self.chance
        for name, column in self.values.items():
            values = wishes.get(name)
            if name in NAMES:
                none = (name == "iif" and way == "output") or (name == "oif" and way == "input")
                column.append(0 if none else _pick(intersect(values or _ANY_NAME, _ANY_NAME) or _ANY_NAME, chance))
            else:
                column.append(self._pick(name, values or self._everything(name, way)))
        columns = self.values
        if self.domain.version == 6 and not wishes.get("nexthdr"):
            columns["nexthdr"][-1] = columns["protocol"][-1]
        self.ways.append(way)

    def _everything(self, name: str, way: str) -> Intervals:
        """What is usual, or now and then anything: a border of some rule."""
        if name in _BORDERED and not self.chance.getrandbits(2):
            return ((0, (1 << width_of(name, self.domain.version)) - 1),)
        value = self._usual(name, way)
        return ((value, value),)

    def _pick(self, name: str, values: Intervals) -> int:
        """A value of the set; half of the time one at which some rule's values begin."""
        low, high = values[0] if len(values) == 1 else self.chance.choice(values)
        borders = self.borders.get(name)
        if low < high and borders and self.chance.getrandbits(1):
            first, last = bisect_left(borders, low), bisect_right(borders, high)
            if first < last:
                return borders[first + self.chance.getrandbits(62) % (last - first)]
        return _pick(((low, high),), self.chance)

    def _usual(self, name: str, way: str) -> int:
        bits = self.chance.getrandbits
        if name in {"saddr", "daddr"}:
            if self.domain.version == 4:
                return (0x0B000000 if name == "saddr" else 0x0C000000) + bits(24)
            return ((0x2A00 if name == "saddr" else 0x2A01) << 112) + bits(64)
        if name == "protocol":
            return (6, 17, 6, 1 if self.domain.version == 4 else 58, 99)[bits(8) % 5]
        if name in {"sport", "dport"}:
            return 1024 + bits(15)
        drawn = {"daddr_type": 2 if way == "input" else 1, "tcp_flags": (2, 16, 18, 4)[bits(2)], "icmp_type": bits(7)}
        return drawn[name] if name in drawn else _USUAL.get(name, 0)


def _pick(values: Intervals, chance: random.Random) -> int:
    low, high = values[0] if len(values) == 1 else chance.choice(values)
    if low == high:
        return low
    which = chance.getrandbits(2)
    return low if which == 0 else high if which == 1 else low + chance.getrandbits(128) % (high - low + 1)


class Samples:
    """Draws packets for the rules of a ruleset, for one IP version."""

    def __init__(self, ruleset: Ruleset, domain: Domain, seed: int = 0) -> None:
        self._chance = random.Random(seed)  # noqa: S311 - packets, not secrets
        self._domain = domain
        self._borders = _borders(ruleset)
        self._paths, self._chains = paths_to(ruleset), ruleset.by_key()
        self._routes = {
            key: [way for hook in sorted(hooks) for way in _WAYS.get(hook, ())]
            for key, hooks in _hooks_of(ruleset).items()
        }

    def words(self, places: Sequence[Place]) -> dict[int, int]:
        """Input words for Circuit.simulate, without those of atoms: bit n is of a packet made for places[n]."""
        columns = _Columns(self._domain, self._chance, self._borders)
        for key, index in places:
            wishes = wishes_of(self._chains[key].meanings[index].parts, self._domain, self._chance)
            for parts, target in self._chance.choice(self._paths[key]):
                for field, values in wishes_of(parts, self._domain, self._chance, target).items():
                    both = intersect(wishes[field], values) if field in wishes else values
                    wishes[field] = both or values
            columns.add(wishes, self._chance.choice(self._routes[key]))
        return _words(columns, self._domain)


def _borders(ruleset: Ruleset) -> dict[str, list[int]]:
    """By field, the values at which some rule's values begin, or have just ended."""
    found: dict[str, set[int]] = {name: set() for name in _BORDERED}
    for known in ruleset.chains:
        for meaning in known.meanings:
            for part in meaning.parts:
                if isinstance(part, In) and part.field in found and part.mask is None:
                    found[part.field].update(value for low, high in part.values for value in (low, high + 1))
    return {name: sorted(values) for name, values in found.items()}


def _hooks_of(ruleset: Ruleset) -> dict[ChainKey, set[str]]:
    """The hooks from which each chain can be got to."""
    chains = ruleset.by_key()
    found: dict[ChainKey, set[str]] = {}
    open_ = [(chain.key, chain.chain.hook) for chain in ruleset.chains if chain.chain.hook is not None]
    while open_:
        key, hook = open_.pop()
        if key not in chains or hook in found.setdefault(key, set()):
            continue
        found[key].add(hook)
        for rule, meaning in chains[key].items():
            open_ += [((namespace_of(rule.kind), rule.family, rule.table, name), hook) for name in _targets(meaning)]
    return found


def _words(columns: _Columns, domain: Domain) -> dict[int, int]:
    """The bits of all packets, turned: a word for each input of the circuit."""
    count = len(columns.ways)
    words: dict[int, int] = {}
    for name, column in columns.values.items():
        bits = domain.start[name].bits
        width = domain.interfaces.width if name in NAMES else width_of(name, domain.version)
        words |= zip(bits, _turned(column, width, len(domain.interfaces.names) if name in NAMES else None), strict=True)
    forward = _word([way == "forward" for way in columns.ways])
    output = _word([way == "output" for way in columns.ways])
    # The order in which Domain makes them: see Domain.ways.
    words[domain.choosers[0]], words[domain.choosers[1]] = forward, output
    full = (1 << count) - 1
    words |= dict.fromkeys(domain.held, full)
    words[domain.has["mac"]] = full & ~output
    words[domain.has["socket"]] = output
    return words


def _word(flags: list[bool]) -> int:
    return int.from_bytes(np.packbits(np.array(flags, bool), bitorder="little").tobytes(), "little")


def _turned(column: list[int], width: int, count: int | None) -> list[int]:
    """Bit by bit, most significant first."""
    if count is not None:
        column = [number if number < count else 2 + number % max(1, count - 2) for number in column]
    size = (width + 7) // 8
    raw = b"".join((number & ((1 << width) - 1)).to_bytes(size, "big") for number in column)
    table = np.unpackbits(np.frombuffer(raw, np.uint8).reshape(len(column), size), axis=1)[:, size * 8 - width :]
    packed = np.packbits(table, axis=0, bitorder="little")
    return [int.from_bytes(packed[:, i].tobytes(), "little") for i in range(width)]
