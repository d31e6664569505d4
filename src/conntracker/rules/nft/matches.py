"""Matches of nf_tables made into terms: what the kernel compares, and with which numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from conntracker.rules.intervals import Intervals, complement, is_subset, normal
from conntracker.rules.nft.expressions import WITH_PORTS, Known, Selector, implied, select
from conntracker.rules.nft.sets import Sets
from conntracker.rules.nft.values import Unreadable, elements, interval, intervals, number
from conntracker.rules.terms import AnyOf, Box, In, Named, Term, Test

__all__ = ["Operand", "box_of", "key_boxes", "key_needs", "key_selectors", "match_terms", "operand"]

_FLAGS = {"tcp_flags", "ct_state", "ct_status"}  # types of which a list means 'any of'


@dataclass(frozen=True, slots=True)
class Operand:
    """(field & mask) ^ xor, then shifted to the right."""

    selector: Selector
    mask: int | None = None
    xor: int = 0
    right: int = 0


def match_terms(match: dict[str, Any], known: Known, sets: Sets) -> list[Term]:
    """The terms of a match, what it needs first. Raises Unreadable for what is opaque, Changing for a set that is."""
    op, left, right = match.get("op"), match.get("left"), match.get("right")
    if isinstance(left, dict) and "concat" in left:
        return _concatenation(op, left, right, known, sets)
    found = operand(left, known)
    if found is None or found.selector.guessed:
        raise Unreadable("a field that is not known")
    selector = found.selector
    if selector.is_name:
        return _name(op, selector, right, sets)
    term = _compared(op, found, right, sets)
    more = implied(term) if op in {"==", "in"} else None
    return [*selector.needs, term, *([more] if more else [])]


def operand(left: Any, known: Known) -> Operand | None:
    """A field, perhaps with constants applied to it; None where it is anything else. Raises Unreadable."""
    if not isinstance(left, dict) or len(left) != 1:
        return None
    (op, inner), *_ = left.items()
    if op not in {"&", "|", "^", ">>"}:
        selector = select(left, known)
        return None if selector is None else Operand(selector)
    if not isinstance(inner, list) or len(inner) < 2:
        return None
    found = operand(inner[0], known)
    for value in inner[1:]:
        if found is None or found.selector.is_name:
            return None
        found = _applied(op, found, value)
    return found


def _applied(op: str, found: Operand, value: Any) -> Operand:
    full = (1 << found.selector.bits) - 1
    constant = number(value, "byte" if op == ">>" else found.selector.kind)
    mask, xor = full if found.mask is None else found.mask, found.xor
    if op == ">>":
        if xor:
            raise Unreadable("a shift of what was added to")
        return Operand(found.selector, found.mask, 0, found.right + constant)
    if found.right:
        raise Unreadable("arithmetic behind a shift")
    if op == "&":
        return Operand(found.selector, mask & constant, xor & constant)
    if op == "|":
        return Operand(found.selector, mask & ~constant, xor & ~constant | constant)
    return Operand(found.selector, mask, xor ^ constant)


def _compared(op: Any, found: Operand, right: Any, sets: Sets) -> In:
    selector, kind = found.selector, found.selector.kind
    top = (1 << selector.bits) - 1 if found.mask is None else found.mask
    if op in {"in", "!"}:  # a bit of the right side is set, or none is
        if kind not in _FLAGS:
            raise Unreadable("a test of bits")
        mask = number(right, kind) & top
        return selector.test(normal([(1, mask)]) if op == "in" else ((0, 0),), mask)
    values, top = _values(right, kind, sets), top >> found.right
    if found.xor:
        if op not in {"==", "!="} or any(low != high for low, high in values):
            raise Unreadable("a range of what was added to")
        values = normal((low ^ found.xor, low ^ found.xor) for low, _ in values)
    if op in {"<", ">", "<=", ">="}:
        values = _beside(op, values, top)
    elif op == "!=":
        values = complement(values, 0, top)
    elif op != "==":
        raise Unreadable(f"operator {op}")
    if found.right:
        values = normal((low << found.right, (high + 1 << found.right) - 1) for low, high in values)
    return selector.test(values, found.mask)


def _beside(op: str, values: Intervals, top: int) -> Intervals:
    if len(values) != 1 or values[0][0] != values[0][1]:
        raise Unreadable("less or more than several")
    limit = values[0][0]
    match op:
        case "<":
            return normal([(0, limit - 1)])
        case "<=":
            return normal([(0, min(limit, top))])
        case ">":
            return normal([(limit + 1, top)])
    return normal([(limit, top)])


def _is_set(right: Any) -> bool:
    return (isinstance(right, dict) and "set" in right) or (isinstance(right, str) and right.startswith("@"))


def _values(right: Any, kind: str, sets: Sets) -> Intervals:
    if not _is_set(right):
        if isinstance(right, list) and kind not in _FLAGS:
            raise Unreadable("a list of what are no flags")
        return normal([interval(right, kind)])
    listed = sets.elements(right)
    if not isinstance(right, str):
        return intervals(listed, kind)
    made: Intervals | None = sets.made.get((right, kind))
    if made is None:
        made = sets.made[right, kind] = intervals(listed, kind)
    return made


def _name(op: Any, selector: Selector, right: Any, sets: Sets) -> list[Term]:
    if op not in {"==", "!="}:
        raise Unreadable(f"operator {op}")
    listed = elements(sets.elements(right)) if _is_set(right) else [right]
    return [Named(selector.field, tuple(dict.fromkeys(map(_pattern, listed))), op == "!=")]


def _pattern(value: Any) -> str:
    if not isinstance(value, str) or not value or value.endswith("\\*"):
        raise Unreadable("no name of an interface")
    return value


def _concatenation(op: Any, left: Any, right: Any, known: Known, sets: Sets) -> list[Term]:
    if op not in {"==", "!="}:
        raise Unreadable(f"operator {op}")
    selectors = key_selectors(left, known)
    boxes = key_boxes(selectors, right, sets)
    if op == "!=" and (not boxes or any(one.selector.guessed for one in selectors)):
        raise Unreadable("not in a set without elements")
    return [*key_needs(selectors), AnyOf(boxes, op == "!=")]


def key_selectors(key: Any, known: Known) -> tuple[Operand, ...]:
    """The fields of a key, of which there are several in a concatenation. Raises Unreadable."""
    parts = key.get("concat") if isinstance(key, dict) and "concat" in key else [key]
    found = [operand(part, known) for part in parts] if isinstance(parts, list) else []
    if not found or None in found:
        raise Unreadable("a field that is not known")
    return tuple(one for one in found if one is not None)


def key_needs(selectors: Iterable[Operand]) -> list[Term]:
    """What a packet must be to have such a key."""
    return list(dict.fromkeys(need for one in selectors for need in one.selector.needs))


def key_boxes(selectors: tuple[Operand, ...], right: Any, sets: Sets) -> tuple[Box, ...]:
    """A box for each element of the set. Raises Unreadable, Changing."""
    named = (right, selectors) if isinstance(right, str) else None
    if named is not None and (made := sets.made.get(named)) is not None:
        return made  # type: ignore[no-any-return]
    boxes = tuple(box_of(selectors, element) for element in elements(sets.elements(right)))
    if named is not None:
        sets.made[named] = boxes
    return boxes


def box_of(selectors: tuple[Operand, ...], element: Any) -> Box:
    """One element of a set: a test of each field of the key. Raises Unreadable."""
    if element == "*":
        values: list[Any] = ["*"] * len(selectors)
    elif len(selectors) == 1 and not (isinstance(element, dict) and "concat" in element):
        values = [element]
    else:
        values = element.get("concat") if isinstance(element, dict) else None  # type: ignore[assignment]
    if not isinstance(values, list) or len(values) != len(selectors):
        raise Unreadable("an element that does not fit its key")
    box = tuple(_test(one, value) for one, value in zip(selectors, values, strict=True))
    if any(one.selector.guessed for one in selectors) and not any(map(_has_ports, box)):
        raise Unreadable("a port of any protocol")
    return box


def _has_ports(test: Test) -> bool:
    return isinstance(test, In) and test.field == "protocol" and is_subset(test.values, WITH_PORTS)


def _test(one: Operand, value: Any) -> Test:
    selector = one.selector
    if selector.is_name:
        return Named(selector.field, (_pattern(value),))
    if one.xor or one.right:
        raise Unreadable("arithmetic in a key")
    return selector.test(normal([interval(value, selector.kind)]), one.mask)
