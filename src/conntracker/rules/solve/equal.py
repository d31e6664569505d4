"""Whether two rulesets do the same with every packet.

They do if each packet ends alike: accepted, dropped, rejected with the same answer, queued; and if it is accepted, with
the same fields of packets and flows. What routing reads behind prerouting (marks, TOS, addresses) must be the same too,
and where a program is asked about a packet, what becomes of it in either case. Atoms of equal text have equal outcomes
in both; stateful ones are paired in the order in which they come, the first `limit` of a text with the other's first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from conntracker.rules.fields import FIELDS
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.solve.apart import apart, doing
from conntracker.rules.solve.circuit import FALSE, Circuit
from conntracker.rules.solve.dead import ALWAYS, dead
from conntracker.rules.solve.domain import ROUTING, Values, Witness
from conntracker.rules.solve.model import Local, Question, evaluation, question, witness
from conntracker.rules.solve.ways import Way
from conntracker.rules.terms import Atom
from conntracker.steps import Rule

__all__ = [
    "CHANGED_FIELDS",
    "Equal",
    "Unequal",
    "changed_fields",
    "equivalent",
    "outcomes",
    "unequal",
    "versions_of",
    "without_dead",
]

# What a packet that is accepted takes along.
_LARGE = 2_000  # rules of both
_FOLLOWING = ("saddr_type", "daddr_type")  # from the addresses
CHANGED_FIELDS = (*(name for name in FIELDS if name not in _FOLLOWING), "oif")


@dataclass(frozen=True, slots=True)
class Equal:
    """Both do the same with all packets of these IP versions, for every outcome of the atoms.

    apart   what is not the same in both, and was not compared: see solve.apart; true only if there is nothing
    """

    versions: tuple[int, ...]
    apart: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.apart


@dataclass(frozen=True, slots=True)
class Unequal:
    """A packet with which they do different things; `before` and `after` are the same if NAT or marks differ."""

    witness: Witness
    before: str
    after: str

    def __bool__(self) -> bool:
        return False


def equivalent(one: Ruleset, other: Ruleset, local: Local = None) -> Equal | Unequal:
    """Equal, or a packet as evidence."""
    versions = versions_of((one, other))
    one, other = _pruned(one, other, local)
    for version in versions:
        with question([one, other], version, local) as asked:
            found = _differing(asked)
            if found is not None:
                return found
    return Equal(versions, apart(one, other))


def _pruned(one: Ruleset, other: Ruleset, local: Local) -> tuple[Ruleset, Ruleset]:
    """Both without dead rules, where that helps: large ones are told to be alike by their form, and stateful matches
    are paired, and what else rules do is counted, where packets come to them.
    """
    only = _apart(one, other)
    if not only:
        return one, other
    size = sum(len(known.meanings) for ruleset in (one, other) for known in ruleset.chains)
    if size < _LARGE and not any(_asks(ruleset, only) for ruleset in (one, other)):
        return one, other
    one, other = without_dead(one, local, only), without_dead(other, local, only)
    if size < _LARGE or not _apart(one, other):
        return one, other
    return without_dead(one, local), without_dead(other, local)


def _asks(ruleset: Ruleset, only: Collection[Rule]) -> bool:
    return any(
        bool(doing(part)) or (isinstance(part, Atom) and bool(part.occurrence))
        for known in ruleset.chains for rule, meaning in known.items() if rule in only for part in meaning.parts
    )  # fmt: skip


def _apart(one: Ruleset, other: Ruleset) -> set[Rule]:
    """The rules of each that the other has no equal of in the same chain."""
    rules: list[dict[tuple[object, ...], list[Rule]]] = [{}, {}]
    for found, ruleset in zip(rules, (one, other), strict=True):
        for known in ruleset.chains:
            for rule, meaning in known.items():
                found.setdefault((known.key[1:], meaning.parts), []).append(rule)
    apart: set[Rule] = set()
    for mine, others in (rules, rules[::-1]):
        for key, found_ in mine.items():
            if len(found_) != len(others.get(key, ())):
                apart.update(found_)
    return apart


def without_dead(ruleset: Ruleset, local: Local = None, only: Collection[Rule] | None = None) -> Ruleset:
    """The ruleset without its dead rules, which does the same: what is left of two can be told to be alike by its form.

    only   rules to look at; None for all
    """
    dead_rules = dead(ruleset, local, explain=False, only=only)
    found = {id(one.rule) for one in dead_rules if one.certainty == ALWAYS and one.versions}
    chains = []
    for known in ruleset.chains:
        kept = [pair for pair in known.items() if id(pair[0]) not in found]
        chain = replace(known.chain, rules=tuple(rule for rule, _ in kept))
        chains.append(replace(known, chain=chain, meanings=tuple(meaning for _, meaning in kept)))
    return replace(ruleset, chains=tuple(chains))


def versions_of(rulesets: Sequence[Ruleset]) -> tuple[int, ...]:
    """The IP versions that any of them has chains for."""
    return tuple(sorted({version for one in rulesets for version in one.families()}))


def outcomes(ways: Sequence[Way]) -> list[str]:
    """What may become of packets, in any of them."""
    return sorted({kind for way in ways for kind, literal in way.ended.items() if literal != FALSE})


def changed_fields(circuit: Circuit, one: Way, other: Way) -> int:
    """Whether a packet that both accept leaves them with different fields, or comes to routing with what makes it
    choose otherwise.
    """
    literals = _unequal_fields(one, one.fields, other.fields, CHANGED_FIELDS)
    literals += _unequal_fields(one, one.routed[1], other.routed[1], ROUTING, one.routed[0], other.routed[0])
    accepted = circuit.both(one.ended["accept"], other.ended["accept"])
    return circuit.both(accepted, circuit.some(literals))


def _unequal_fields(way: Way, one: Values, other: Values, names: Iterable[str], *where: int) -> list[int]:
    circuit, present = way.domain.circuit, way.domain.present
    literals = []
    for name in names:
        unequal_ = circuit.unequal(one[name], other[name])
        if unequal_ != FALSE:
            has = circuit.either(present(one, name), present(other, name))
            literals.append(circuit.every([unequal_, has, *where]))
    return literals


def unequal(circuit: Circuit, one: Way, other: Way) -> int:
    """Whether a packet ends differently."""
    differing = [
        circuit.differ(one.ended.get(kind, FALSE), other.ended.get(kind, FALSE)) for kind in outcomes((one, other))
    ]
    return circuit.some([*differing, changed_fields(circuit, one, other)])


def _differing(asked: Question) -> Unequal | None:
    one, other = asked.ways
    circuit = asked.domain.circuit
    differs = unequal(circuit, one, other)
    found = witness(asked, (differs,))
    if found is None:
        return None
    true = evaluation(circuit, asked.session.model())
    before, after = (
        next((kind for kind, literal in way.ended.items() if true(literal)), "accept") for way in (one, other)
    )
    return Unequal(found, before, after)
