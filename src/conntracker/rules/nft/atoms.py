"""Matches that are not understood, or have a state: their names and whether each of them has an outcome of its own."""

from __future__ import annotations

from typing import Any

__all__ = ["is_stateful", "name_of"]

_TIMES = {"time", "hour", "day"}


def name_of(left: Any) -> str:
    """What users call a match by what it looks at: `ct helper`, `tcp option`, `time`, `socket`, ..."""
    if isinstance(left, list) and left:
        return name_of(left[0])  # of a concatenation, or of arithmetic
    if not isinstance(left, dict) or len(left) != 1:
        return "match"
    (form, inner), *_ = left.items()
    if form in {"&", "|", "^", "<<", ">>", "concat"}:
        return name_of(inner)
    return _named(form, inner) if isinstance(inner, dict) else str(form)


def _named(form: str, inner: dict[str, Any]) -> str:
    if form == "payload":
        return f"{inner['protocol']} {inner.get('field')}" if "protocol" in inner else f"@{inner.get('base')}"
    key = inner.get("key")
    if form not in {"meta", "ct"} or not isinstance(key, str):
        return form
    return "time" if form == "meta" and key in _TIMES else f"{form} {key}"


def is_stateful(left: Any) -> bool:
    """Whether two equal matches can have different outcomes for one packet."""
    if isinstance(left, list):
        return any(map(is_stateful, left))
    if not isinstance(left, dict):
        return False
    if "numgen" in left or left.get("meta") == {"key": "random"}:
        return True
    return any(map(is_stateful, left.values()))
