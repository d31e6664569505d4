"""Verdicts, and the maps that choose one by a key of the packet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from conntracker.rules.intervals import normal
from conntracker.rules.nft.matches import Operand, box_of
from conntracker.rules.nft.texts import VERDICTS
from conntracker.rules.nft.values import Unreadable, interval
from conntracker.rules.terms import AnyOf, Verdict

__all__ = ["cases_of", "keys_of", "pair_of", "readable_verdicts", "verdict_of"]


def verdict_of(statement: Any) -> Verdict:
    """Of a statement, or an element of a map. Raises Unreadable."""
    if isinstance(statement, dict) and len(statement) == 1:
        (name, inner), *_ = statement.items()
        if name in {"jump", "goto"}:
            target = inner.get("target") if isinstance(inner, dict) else None
            if isinstance(target, str):
                return Verdict(name, target)
        elif name in VERDICTS:
            return Verdict(name)
    raise Unreadable(f"no verdict: {statement}")


def readable_verdicts(listed: Any) -> Iterator[Verdict]:
    """Those of a map's elements that are verdicts."""
    for element in listed if isinstance(listed, list) else []:
        try:
            yield verdict_of(pair_of(element)[1])
        except Unreadable:
            continue


def pair_of(element: Any) -> tuple[Any, Any]:
    """Key and value of an element of a map. Raises Unreadable."""
    if isinstance(element, list) and len(element) == 2:
        key, value = element
        if isinstance(key, dict) and isinstance(key.get("elem"), dict):
            key = key["elem"].get("val")
        return key, value
    raise Unreadable("no element of a map")


def keys_of(data: Any) -> Any:
    """The keys of a map without a name, as a set; a named one as it is."""
    if isinstance(data, dict) and isinstance(data.get("set"), list):
        return {"set": [one[0] if isinstance(one, list) and one else one for one in data["set"]]}
    return data


def cases_of(selectors: tuple[Operand, ...], listed: list[tuple[Any, Any]]) -> tuple[tuple[AnyOf, Verdict], ...]:
    """Keys of one map do not overlap, but for `*`, which stands for the others: so those of one verdict go together."""
    grouped: dict[Verdict, list[Any]] = {}
    last: Verdict | None = None
    for key, value in listed:
        verdict = verdict_of(value)
        if key == "*":
            last = verdict
        else:
            grouped.setdefault(verdict, []).append(key)
    cases = [(AnyOf(_boxes(selectors, keys)), verdict) for verdict, keys in grouped.items()]
    if last is not None:
        cases.append((AnyOf((box_of(selectors, "*"),)), last))
    return tuple(cases)


def _boxes(selectors: tuple[Operand, ...], keys: list[Any]) -> Any:
    one = selectors[0]
    if len(selectors) == 1 and not one.selector.is_name and not one.selector.guessed and not one.xor and not one.right:
        values = normal(interval(key, one.selector.kind) for key in keys)
        return ((one.selector.test(values, one.mask),),)
    return tuple(box_of(selectors, key) for key in keys)
