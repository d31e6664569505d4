"""Decision diagrams over intervals: which packets a set holds, told by field after field; no solver in them.

An independent method to find dead rules, slow and simple. A node is (field, ((last value, child), ...)); 0 and 1 are
the ends. It knows single chains and jumps, fields that rules test by sets or masks of few bits, and atoms as fields.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from conntracker.rules.fields import FIELDS, NAMES, width_of
from conntracker.rules.intervals import Intervals, complement, contains, normal
from conntracker.rules.ruleset import ChainKey, KnownChain, Ruleset, namespace_of
from conntracker.rules.solve.names import Interfaces
from conntracker.rules.terms import AnyOf, Atom, Effect, In, Named, Term, Verdict

__all__ = ["Unfit", "diagram_dead"]

_NODE = tuple[int, tuple[tuple[int, int], ...]]


_WIDEST = 16  # bits of a field of which masks are written out


class Unfit(ValueError):
    """The ruleset has parts that diagrams are not made for."""


class Diagrams:
    """Sets of packets. Equal sets are equal numbers."""

    def __init__(self, tops: Sequence[int]) -> None:
        self.tops = tops
        self.nodes: list[_NODE] = [(len(tops), ()), (len(tops), ())]
        self._known: dict[_NODE, int] = {}
        self._memo: dict[tuple[str, int, int], int] = {}

    def node(self, level: int, edges: Sequence[tuple[int, int]]) -> int:
        """The set that goes on with a child for values up to the last of each edge."""
        merged: list[tuple[int, int]] = []
        for last, child in edges:
            if merged and merged[-1][1] == child:
                merged[-1] = last, child
            else:
                merged.append((last, child))
        if len(merged) == 1:
            return merged[0][1]
        key = level, tuple(merged)
        if key not in self._known:
            self.nodes.append(key)
            self._known[key] = len(self.nodes) - 1
        return self._known[key]

    def having(self, level: int, values: Intervals) -> int:
        """The packets with a value of the set."""
        edges, top = [], self.tops[level]
        for low, high in values:
            if low > top:
                break
            if low > 0:
                edges.append((low - 1, 0))
            edges.append((min(high, top), 1))
        if not edges or edges[-1][0] < top:
            edges.append((top, 0))
        return self.node(level, edges)

    def both(self, one: int, other: int) -> int:
        """Packets in both."""
        return self._applied(
            "both", one, other, lambda a, b: 0 if 0 in (a, b) else b if a == 1 else a if b == 1 else None
        )

    def without(self, one: int, other: int) -> int:
        """Packets of one that are not in the other."""
        return self._applied("without", one, other, lambda a, b: 0 if a == 0 or b == 1 else a if b == 0 else None)

    def either(self, one: int, other: int) -> int:
        """Packets in either."""
        return self.without(1, self.both(self.without(1, one), self.without(1, other)))

    def _applied(self, name: str, one: int, other: int, end: Callable[[int, int], int | None]) -> int:
        found = end(one, other)
        if found is not None:
            return found
        key = name, one, other
        if key not in self._memo:
            level = min(self.nodes[one][0], self.nodes[other][0])
            mine = self._edges(one, level)
            theirs = self._edges(other, level)
            edges, i, j = [], 0, 0
            while i < len(mine) and j < len(theirs):
                last = min(mine[i][0], theirs[j][0])
                edges.append((last, self._applied(name, mine[i][1], theirs[j][1], end)))
                i, j = i + (mine[i][0] == last), j + (theirs[j][0] == last)
            self._memo[key] = self.node(level, edges)
        return self._memo[key]

    def _edges(self, node: int, level: int) -> tuple[tuple[int, int], ...]:
        at, edges = self.nodes[node]
        return edges if at == level else ((self.tops[level], node),)


class _Chains:
    """The chains of one hook of one ruleset."""

    def __init__(self, ruleset: Ruleset, version: int) -> None:
        self.version = version
        self.interfaces = Interfaces([ruleset])
        self.chains = ruleset.by_key()
        parts = [part for known in ruleset.chains for meaning in known.meanings for part in meaning.atoms]
        atoms = sorted({(part.text, part.occurrence) for part in parts})
        names = [*NAMES, *FIELDS]
        self.levels: dict[object, int] = {name: number for number, name in enumerate(names)}
        tops = [
            len(self.interfaces.names) - 1 if name in NAMES else (1 << width_of(name, version)) - 1 for name in names
        ]
        for atom in atoms:
            self.levels["atom", *atom] = len(tops)
            tops.append(1)
        self.sets = Diagrams(tops)
        self.matched: dict[tuple[ChainKey, int], int] = {}

    def term(self, term: Term) -> int:
        """The packets for which a term holds."""
        sets = self.sets
        if isinstance(term, In):
            values = term.values
            if term.mask is not None:
                width = width_of(term.field, self.version)
                if width > _WIDEST:
                    raise Unfit(term.field)
                values = normal(
                    (value, value) for value in range(1 << width) if contains(term.values, value & term.mask)
                )
            found = sets.having(self.levels[term.field], values)
            for other, needed in FIELDS[term.field].requires:
                found = sets.both(found, sets.having(self.levels[other], needed))
            return found
        if isinstance(term, Named):
            values = self.interfaces.matching(term.patterns)
            if term.negated:
                values = complement(values, 0, len(self.interfaces.names) - 1)
            return sets.having(self.levels[term.field], values)
        if isinstance(term, Atom):
            wanted = 0 if term.negated else 1
            return sets.having(self.levels["atom", term.text, term.occurrence], ((wanted, wanted),))
        if isinstance(term, AnyOf) and not term.negated:
            found = 0
            for box in term.boxes:
                here = 1
                for test in box:
                    here = sets.both(here, self.term(test))
                found = sets.either(found, here)
            return found
        raise Unfit("a negated alternative")

    def walk(self, known: KnownChain, packets: int) -> int:
        """Sends packets through a chain; those that come out of it."""
        sets, back = self.sets, 0
        for index, (rule, meaning) in enumerate(known.items()):
            here, verdict = packets, None
            for part in meaning.parts:
                if isinstance(part, Verdict):
                    verdict = part
                elif isinstance(part, In | Named | AnyOf | Atom):
                    here = sets.both(here, self.term(part))
                elif not isinstance(part, Effect):
                    raise Unfit(type(part).__name__)
            place = known.key, index
            self.matched[place] = sets.either(self.matched.get(place, 0), here)
            if verdict is None or verdict.kind == "continue":
                continue
            packets = sets.without(packets, here)
            if verdict.kind in {"jump", "goto"}:
                key = namespace_of(rule.kind), rule.family, rule.table, verdict.chain or ""
                out = self.walk(self.chains[key], here)
                if verdict.kind == "jump":
                    packets = sets.either(packets, out)
                else:
                    back = sets.either(back, out)
            elif verdict.kind == "return":
                back = sets.either(back, here)
        return sets.either(packets, back)


def diagram_dead(
    ruleset: Ruleset, version: int, base: KnownChain, valid: Callable[[str, Interfaces], Intervals | None]
) -> set[int]:
    """The rules, by id, in and behind a base chain that no packet matches; rules that are not behind it are left out.

    valid   by field, the values that packets in this hook have; None for all
    Raises Unfit.
    """
    chains = _Chains(ruleset, version)
    packets = 1
    for name in (*NAMES, *FIELDS):
        values = valid(name, chains.interfaces)
        if values is not None:
            packets = chains.sets.both(packets, chains.sets.having(chains.levels[name], values))
    chains.walk(base, packets)
    places = {key: chain.chain.rules for key, chain in chains.chains.items()}
    return {id(places[key][index]) for (key, index), found in chains.matched.items() if found == 0}
