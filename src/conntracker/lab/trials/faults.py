"""Faults put into a ruleset's meaning, of the kinds that an engine or a person makes: what the comparison must find."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from conntracker.rules.fields import FIELDS
from conntracker.rules.intervals import Intervals, complement, normal
from conntracker.rules.ruleset import KnownChain, Meaning, Ruleset
from conntracker.rules.terms import AnyOf, In, Named, Part, Verdict

__all__ = ["KINDS", "Fault", "seeded"]

_FLIPPED = {"accept": "drop", "drop": "accept", "reject": "accept", "return": "accept", "continue": "drop"}


@dataclass(frozen=True, slots=True)
class Fault:
    """A ruleset with one fault: in rule number `rule`, from 0, of chain number `chain`. `place` is chain:position."""

    kind: str
    place: str
    ruleset: Ruleset
    chain: int
    rule: int


def seeded(ruleset: Ruleset, seed: object) -> Iterator[Fault]:
    """Faults without end, each of another kind than the last; none if the ruleset has no rules."""
    draw = random.Random(repr(seed))  # noqa: S311 - nothing secret hangs on it
    rules = [(c, r) for c, known in enumerate(ruleset.chains) for r in range(len(known.meanings))]
    misses = 0
    kinds = draw.sample(list(KINDS.items()), len(KINDS))
    while rules and misses < 10_000:
        for kind, make in kinds:
            chain, index = draw.choice(rules)
            known = ruleset.chains[chain]
            made = make(draw, known, index)
            if made is None or made == known:
                misses += 1
                continue
            chains = (*ruleset.chains[:chain], made, *ruleset.chains[chain + 1 :])
            yield Fault(kind, f"{known.chain.name}:{index + 1}", replace(ruleset, chains=chains), chain, index)


_Maker = Callable[[random.Random, KnownChain, int], KnownChain | None]


def _deleted(draw: random.Random, known: KnownChain, index: int) -> KnownChain:
    rules, meanings = known.chain.rules, known.meanings
    return KnownChain(
        replace(known.chain, rules=rules[:index] + rules[index + 1 :]),
        meanings[:index] + meanings[index + 1 :],
        known.counters,
    )


def _swapped(draw: random.Random, known: KnownChain, index: int) -> KnownChain | None:
    if index + 1 >= len(known.meanings):
        return None
    rules, meanings = list(known.chain.rules), list(known.meanings)
    rules[index : index + 2] = reversed(rules[index : index + 2])
    meanings[index : index + 2] = reversed(meanings[index : index + 2])
    return KnownChain(replace(known.chain, rules=tuple(rules)), tuple(meanings), known.counters)


def _flipped(draw: random.Random, known: KnownChain, index: int) -> KnownChain | None:
    def flip(part: Part) -> Part | None:
        if isinstance(part, Verdict) and part.kind in _FLIPPED:
            return Verdict(_FLIPPED[part.kind])
        return None

    return _changed(draw, known, index, flip)


def _lost(draw: random.Random, known: KnownChain, index: int) -> KnownChain | None:
    """Without one of its terms; not without the version of IP, by which addresses are read."""
    parts = known.meanings[index].parts
    terms = [i for i, part in enumerate(parts) if isinstance(part, In | Named | AnyOf) and not _is_family(part)]
    if not terms:
        return None
    gone = draw.choice(terms)
    return _with(known, index, parts[:gone] + parts[gone + 1 :])


def _is_family(part: Part) -> bool:
    return isinstance(part, In) and part.field == "family"


def _turned(draw: random.Random, known: KnownChain, index: int) -> KnownChain | None:
    """With one term the other way round."""

    def turn(part: Part) -> Part | None:
        if isinstance(part, Named | AnyOf):
            return replace(part, negated=not part.negated)
        if isinstance(part, In) and not _is_family(part):
            return replace(part, values=complement(part.values, 0, _top(part, known)))
        return None

    return _changed(draw, known, index, turn)


def _moved(draw: random.Random, known: KnownChain, index: int) -> KnownChain | None:
    """With one end of an interval off by one."""

    def move(part: Part) -> Part | None:
        if isinstance(part, In) and part.field not in {"family", "ct_state"}:
            return replace(part, values=_off_by_one(draw, part.values, _top(part, known)))
        if isinstance(part, AnyOf) and part.boxes:
            at = draw.randrange(len(part.boxes))
            box = [move(test) or test for test in part.boxes[at]]
            return replace(part, boxes=(*part.boxes[:at], tuple(box), *part.boxes[at + 1 :]))  # type: ignore[arg-type]
        return None

    return _changed(draw, known, index, move)


def _off_by_one(draw: random.Random, values: Intervals, top: int) -> Intervals:
    if not values:
        return values
    at, step = draw.randrange(len(values)), draw.choice((-1, 1))
    low, high = values[at]
    low, high = (low + step, high) if draw.random() < 0.5 else (low, high + step)
    return normal((*values[:at], (max(low, 0), min(high, top)), *values[at + 1 :]))


def _widened(draw: random.Random, known: KnownChain, index: int) -> KnownChain | None:
    """With one bit less of a prefix."""

    def widen(part: Part) -> Part | None:
        if not (isinstance(part, In) and part.field in {"saddr", "daddr"} and part.mask is None and part.values):
            return None
        at = draw.randrange(len(part.values))
        low, high = part.values[at]
        size = high - low + 1
        if size & (size - 1) or low % size:
            return None
        low &= ~size
        made = (*part.values[:at], (low, low + 2 * size - 1), *part.values[at + 1 :])
        return replace(part, values=normal((a, min(b, _top(part, known))) for a, b in made))

    return _changed(draw, known, index, widen)


def _changed(
    draw: random.Random, known: KnownChain, index: int, change: Callable[[Part], Part | None]
) -> KnownChain | None:
    """With one part changed, of those that can be."""
    parts = known.meanings[index].parts
    made = [(i, new) for i, part in enumerate(parts) if (new := change(part)) is not None and new != part]
    if not made:
        return None
    at, new = draw.choice(made)
    return _with(known, index, (*parts[:at], new, *parts[at + 1 :]))


def _with(known: KnownChain, index: int, parts: tuple[Part, ...]) -> KnownChain:
    meaning: Meaning = replace(known.meanings[index], parts=parts)
    return replace(known, meanings=(*known.meanings[:index], meaning, *known.meanings[index + 1 :]))


def _top(part: In, known: KnownChain) -> int:
    """The largest number of the field; of addresses as far as the ruleset tells the version."""
    if part.mask is not None:
        return part.mask
    if part.field not in {"saddr", "daddr"}:
        return (1 << FIELDS[part.field].width) - 1
    short = known.chain.family == "ip" or all(high < 1 << 32 for _, high in part.values)
    return (1 << (32 if short else 128)) - 1


KINDS: dict[str, _Maker] = {
    "deleted rule": _deleted,
    "flipped verdict": _flipped,
    "off by one": _moved,
    "widened prefix": _widened,
    "swapped neighbours": _swapped,
    "lost field": _lost,
    "lost negation": _turned,
}
