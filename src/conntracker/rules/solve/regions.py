"""What two rulesets do differently, as few and as simple sets of packets as were found.

From one packet that ends differently, fields that don't matter are dropped, and those that do are widened to all values
between which no rule of either tells; what is found is put aside, until no packet is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from conntracker.rules.fields import CT_STATES, FIELDS, NAMES, width_of
from conntracker.rules.intervals import Intervals, normal, single, union
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.solve.circuit import FALSE, TRUE
from conntracker.rules.solve.domain import SOMETIMES, Witness
from conntracker.rules.solve.equal import changed_fields, outcomes, versions_of
from conntracker.rules.solve.model import Local, Question, evaluation, question, witness
from conntracker.rules.terms import AnyOf, Assign, Branches, In, Nat, Part

__all__ = ["Change", "Differences", "Masked", "Values", "difference"]

# In this order fields are dropped: what a person would name a service and a host by comes last.
_DROPPED_FIRST = (
    "length", "ttl", "tos", "packet_type", "reverse_path", "saddr_type", "daddr_type", "ct_status", "ct_direction",
    "ct_mark", "mark", "mac", "skgid", "skuid", "fragment", "nexthdr", "tcp_flags", "sport", "icmp_code", "ct_state",
    "oif", "iif", "saddr", "daddr", "icmp_type", "dport", "protocol",
)  # fmt: skip
_MOST_CUTS = 400  # counterexamples while one field is widened
_MOST_POINTS = 3  # packets told alone, where nothing wider can be proven, of one sort
_GIVEN = " given"  # behind the name of a field: what it becomes by the NAT that the packet's flow was given before

_FEW = 16  # intervals of which each is tried, whether any packet of the box has it


@dataclass(frozen=True, slots=True)
class Masked:
    """The numbers of which the bits of a mask are these: of marks, rules look at bits."""

    value: int
    mask: int


Values = Intervals | tuple[str, ...] | Masked | None


@dataclass(frozen=True, slots=True)
class Change:
    """A set of packets that end otherwise than before.

    kind      newly accepted, newly dropped, newly rejected, otherwise refused, or otherwise changed (NAT, marks)
    box       by field (`daddr given`: what the flow's NAT makes of it), its values: intervals, bits, names of
              interfaces (Interfaces.labels), None for packets that lack the field; other fields don't matter
    atoms     (text, outcome) of matches that must be so
    witness   one of the packets
    """

    kind: str
    before: str
    after: str
    version: int
    way: str
    box: dict[str, Values]
    atoms: tuple[tuple[str, bool], ...]
    witness: Witness


@dataclass(frozen=True, slots=True)
class Differences:
    """All changes, unless there are `more` than were asked for."""

    changes: tuple[Change, ...]
    more: bool = False

    def __bool__(self) -> bool:
        return bool(self.changes)


def difference(old: Ruleset, new: Ruleset, local: Local = None, *, limit: int = 100) -> Differences:
    """What changes from old to new; empty if nothing does."""
    changes: list[Change] = []
    more = False
    for version in versions_of((old, new)):
        with question([old, new], version, local) as asked:
            search = _Search(asked, (old, new))
            for change in search.changes():
                if len(changes) == limit:
                    more = True
                    break
                changes.append(change)
            more = more or search.more
    return Differences(tuple(_merged(changes)), more)


def kind_of(before: str, after: str) -> str:
    """What a change is called."""
    if before == after:
        return "otherwise changed"
    if after == "accept":
        return "newly accepted"
    if before == "accept":
        return "newly dropped" if after == "drop" else f"newly {'rejected' if after.startswith('reject') else after}"
    return "otherwise refused"


@dataclass(slots=True)
class _Box:
    """Literals by what they are about: a field, or (an atom's literal, ...)."""

    literals: dict[str, int]
    values: dict[str, Intervals | Masked | None]
    atoms: dict[str, tuple[str, bool]]


class _Search:
    """One IP version."""

    def __init__(self, asked: Question, rulesets: Sequence[Ruleset]) -> None:
        self.asked, self.domain, self.session = asked, asked.domain, asked.session
        self.circuit = asked.domain.circuit
        self.cuts = _cuts(rulesets, asked.version)
        self.vectors = dict(self.domain.start)
        self.given = {f"{name}{_GIVEN}": vector for name, vector in self.domain.had().items()}
        self.vectors |= self.given
        self.cuts |= {name: self.cuts.get(_plain(name), set()) for name in self.given}
        self.fields = (*_DROPPED_FIRST[:-5], *self.given, *_DROPPED_FIRST[-5:])
        self.more = False  # whether there are packets that were not told

    def changes(self) -> Iterator[Change]:
        """Each set of packets that is found; together they are all packets that end differently."""
        one, other = self.asked.ways
        kinds = outcomes(self.asked.ways)
        pairs = [(before, after) for before in kinds for after in kinds if before != after]
        for before, after in (*pairs, ("accept", "accept")):
            if before == after:
                differs = changed_fields(self.circuit, one, other)
            else:
                differs = self.circuit.both(one.ended.get(before, FALSE), other.ended.get(after, FALSE))
            if differs == FALSE or not self.session.ask(differs):
                continue
            told = self.circuit.new()  # what was told is put aside for packets that end like this only
            for way, literal in self.domain.ways.items():
                for flow, chosen in self._sorts():
                    sort = [told, literal, *flow]
                    yield from self._of(before, after, way, differs, sort, self._possible(chosen, [differs, *sort]))

    def _possible(self, chosen: list[int], held: list[int]) -> list[int]:
        """Those of the literals that can hold together: packets that loop come by the same NAT twice."""
        kept: list[int] = []
        if not chosen or not self.session.ask(*held):
            return kept
        for literal in chosen:
            if self.session.ask(*held, *kept, literal):
                kept.append(literal)
        return kept

    def _sorts(self) -> Iterator[tuple[list[int], list[int]]]:
        """Packets of flows that have no NAT first, then those whose flow was given one; where NAT or routing are free
        to choose, those for which they choose something that tells first.
        """
        domain = self.domain
        one, other = domain.translated.values()
        telling = domain.telling()
        first = [-one, -other, -domain.later, *(-literal for literal in domain.handed)]
        for flow in (first, [-one, -other], [one, -other], [-one, other], [one, other]):
            if telling:
                yield flow, telling
            yield flow, []

    def _of(
        self, before: str, after: str, way: str, differs: int, sort: list[int], chosen: list[int]
    ) -> Iterator[Change]:
        points, held = 0, [*sort, *chosen]
        while self.session.ask(differs, *held) and (found := witness(self.asked, (differs, *held))) is not None:
            box = self._point(found)
            if self.session.ask(*held, *box.literals.values(), -differs):
                points += 1  # what NAT chooses decides it: the packet alone stands for it
            else:
                self._dropped(box, held, differs)
                for field in list(box.values):
                    self._widened(box, field, held, differs)
            # Told is told, whatever else might be chosen.
            self.session.imply([-literal for literal in (*box.literals.values(), *sort)])
            yield Change(
                kind_of(before, after), before, after, self.domain.version, way, self._shown(box),
                tuple(box.atoms.values()), found,
            )  # fmt: skip
            if points == _MOST_POINTS:
                self.more = self.more or self.session.ask(differs, *held)
                return

    def _point(self, found: Witness) -> _Box:
        """The packet alone."""
        box = _Box({}, {}, {})
        true = evaluation(self.circuit, self.session.model())
        for field, vector in self.given.items():
            number = sum(1 << i for i, bit in enumerate(reversed(vector.bits)) if true(bit))
            box.values[field], box.literals[field] = single(number), self._literal(field, single(number))
        for field in _DROPPED_FIRST:
            value = found.packet[field]
            if field in SOMETIMES and value is None:
                box.literals[field], box.values[field] = -self.domain.has[SOMETIMES[field]], None
            elif value is None:
                literal = -self.domain.present(self.domain.start, field)
                if literal != TRUE:
                    box.literals[field], box.values[field] = literal, None
            else:
                number = self.domain.interfaces.names.index(str(value)) if field in NAMES else int(value)
                box.values[field] = single(number)
                box.literals[field] = self._literal(field, single(number))
        for literal, (atom, _) in self.asked.atoms.outcomes.items():
            held = true(literal)
            box.literals[f"atom {literal}"] = literal if held else -literal
            box.atoms[f"atom {literal}"] = atom.text, held
        return box

    def _literal(self, field: str, values: Intervals) -> int:
        domain = self.domain
        return self.circuit.both(self._has(field), domain.within(self.vectors, field, values))

    def _has(self, field: str) -> int:
        return TRUE if field in self.given else self.domain.present(self.domain.start, field)

    def _dropped(self, box: _Box, held: list[int], differs: int) -> None:
        """Leaves out what doesn't matter: outcomes of atoms by the solver's proof, then all one by one."""
        core = set(self.session.core())
        for key in list(box.atoms):
            if box.literals[key] not in core:
                _forget(box, key)
        fields = [field for field in self.fields if field in box.values]
        for key in sorted([*box.atoms, *fields], key=lambda one: box.values.get(one, ()) is not None):
            rest = [literal for other, literal in box.literals.items() if other != key]
            if not self.session.ask(*held, *rest, -differs):
                _forget(box, key)

    def _widened(self, box: _Box, field: str, held: list[int], differs: int) -> None:
        """The most values for which all packets of the box still end differently."""
        values = box.values[field]
        if values is None or isinstance(values, Masked):
            return
        rest = [literal for other, literal in box.literals.items() if other != field]
        parts = self._parts(field, values[0][0])
        for _ in range(_MOST_CUTS):
            wide = normal(parts)
            literal = self._literal(field, wide)
            if not self.session.ask(*held, *rest, literal, -differs):
                if len(parts) <= _FEW:
                    wide = normal(
                        part for part in parts if self.session.ask(*held, *rest, self._literal(field, (part,)))
                    )
                box.values[field], box.literals[field] = wide, self._literal(field, wide)
                return
            true = evaluation(self.circuit, self.session.model())
            bits = self.vectors[field].bits
            number = sum(1 << i for i, bit in enumerate(reversed(bits)) if true(bit))
            kept = [part for part in parts if not part[0] <= number <= part[1]]
            if not any(low <= values[0][0] <= high for low, high in kept):
                self._masked(box, field, values[0][0], [*held, *rest, -differs])
                return
            if len(kept) == len(parts):
                return
            parts = kept

    def _masked(self, box: _Box, field: str, value: int, others: Sequence[int]) -> None:
        """Values that no interval around tells from others: the fewest bits of the value that matter."""
        if field in NAMES:
            return
        bits = self.vectors[field].bits
        width = len(bits)
        kept = {width - 1 - i: bit if value >> (width - 1 - i) & 1 else -bit for i, bit in enumerate(bits)}
        has = self._has(field)
        for number in range(width - 1, -1, -1):
            fewer = [literal for other, literal in kept.items() if other != number]
            if not self.session.ask(*others, has, *fewer):
                del kept[number]
        mask = sum(1 << number for number in kept)
        free = (1 << width) - 1 ^ mask
        value &= mask
        whole = free & (free + 1) == 0  # the lowest bits: an interval
        box.values[field] = ((value, value | free),) if whole else Masked(value, mask)
        box.literals[field] = self.circuit.every([has, *kept.values()])

    def _parts(self, field: str, found: int) -> list[tuple[int, int]]:
        """The intervals of a field between which no rule tells; of interfaces one, if the packet has one."""
        if field in NAMES:
            return [(i, i) for i in range(len(self.domain.interfaces.names)) if (i > 0) == (found > 0)]
        top = (1 << width_of(_plain(field), self.domain.version)) - 1
        starts = sorted({0, *(cut for cut in self.cuts.get(field, ()) if 0 <= cut <= top)})
        return [(low, high - 1) for low, high in zip(starts, [*starts[1:], top + 1], strict=True)]

    def _shown(self, box: _Box) -> dict[str, Values]:
        shown: dict[str, Values] = {}
        for field, values in box.values.items():
            if field in NAMES and isinstance(values, tuple):
                names = self.domain.interfaces.labels
                shown[field] = tuple(names[i] for low, high in values for i in range(low, high + 1))
            else:
                shown[field] = values
        return shown


def _plain(field: str) -> str:
    return field.removesuffix(_GIVEN)


def _forget(box: _Box, key: str) -> None:
    del box.literals[key]
    box.values.pop(key, None)
    box.atoms.pop(key, None)


def _cuts(rulesets: Iterable[Ruleset], version: int) -> dict[str, set[int]]:
    """By field, where values begin that some rule tells from the one before."""
    cuts: dict[str, set[int]] = {"ct_state": set(range(len(CT_STATES) + 1))}
    for ruleset in rulesets:
        for known in ruleset.chains:
            for meaning in known.meanings:
                for part in meaning.parts:
                    _cut(part, cuts, version)
    for field in FIELDS.values():
        for other, values in field.requires:
            cuts.setdefault(other, set()).update(value for low, high in values for value in (low, high + 1))
    return cuts


def _cut(part: Part, cuts: dict[str, set[int]], version: int) -> None:
    if isinstance(part, In):
        if part.mask is not None and width_of(part.field, version) <= 8:
            cuts.setdefault(part.field, set()).update(range(1 << width_of(part.field, version)))
        elif part.mask is None:
            cuts.setdefault(part.field, set()).update(value for low, high in part.values for value in (low, high + 1))
        else:
            cuts.setdefault(part.field, set()).update(
                start for i in range(width_of(part.field, version)) if part.mask >> i & 1 for start in (1 << i, 2 << i)
            )
    elif isinstance(part, AnyOf):
        for box in part.boxes:
            for test in box:
                _cut(test, cuts, version)
    elif isinstance(part, Branches):
        for case, _ in part.cases:
            _cut(case, cuts, version)
    elif isinstance(part, Assign) and part.value is not None:
        _cut(
            In(part.field, single(part.value & part.mask), None if _whole(part, version) else part.mask), cuts, version
        )
    elif isinstance(part, Nat) and part.addresses is not None:
        for name in ("saddr", "daddr"):
            cuts.setdefault(name, set()).update((part.addresses[0], part.addresses[1] + 1))


def _whole(part: Assign, version: int) -> bool:
    """Whether nothing is left of the old value."""
    full = (1 << width_of(part.field, version)) - 1
    return part.mask & full == full


def _merged(changes: list[Change]) -> list[Change]:
    """Changes that differ in the values of one field, or in the way, as one."""
    out: list[Change] = []
    for change in changes:
        merged = change
        again = True
        while again:
            again = False
            for number, other in enumerate(out):
                both = _joined(other, merged)
                if both is not None:
                    merged, again = both, True
                    del out[number]
                    break
        out.append(merged)
    return out


def _joined(one: Change, other: Change) -> Change | None:
    if (one.before, one.after, one.version, one.way, one.atoms) != (
        other.before, other.after, other.version, other.way, other.atoms
    ):  # fmt: skip
        return None
    if one.box.keys() != other.box.keys():
        return None
    apart = [field for field in one.box if one.box[field] != other.box[field]]
    if len(apart) > 1:
        return None
    if not apart:
        return one
    a, b = one.box[apart[0]], other.box[apart[0]]
    if not isinstance(a, tuple) or not isinstance(b, tuple):
        return None
    if apart[0] in NAMES:
        joined: Values = tuple(sorted({str(name) for name in (*a, *b)}))
    else:
        joined = union(a, b)  # type: ignore[arg-type]  # both are intervals
    return replace(one, box=one.box | {apart[0]: joined})
