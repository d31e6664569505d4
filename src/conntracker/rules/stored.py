"""A ruleset and its host as JSON, to be kept in a recording: what was understood when it was in force, none less.

Records are objects whose key `is` names their class, tuples are lists, and mappings are records of pairs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from conntracker.rules import terms
from conntracker.rules.chain import Chain
from conntracker.rules.host import Host, Route
from conntracker.rules.ruleset import KnownChain, Meaning, NamedSet, Ruleset
from conntracker.steps import Rule

__all__ = ["Situation", "from_text", "to_text"]

FORMAT = 1

_TERMS = (
    terms.In, terms.Named, terms.AnyOf, terms.Atom, terms.Assign, terms.Nat, terms.Effect, terms.Verdict,
    terms.Branches,
)  # fmt: skip
_CLASSES: dict[str, Any] = {
    one.__name__: one for one in (Ruleset, KnownChain, Chain, Meaning, NamedSet, Rule, Host, Route, *_TERMS)
}


@dataclass(frozen=True, slots=True)
class Situation:
    """The rules in force at a time (microseconds since the epoch, UTC), and the host they were on, if it is known."""

    time: int
    ruleset: Ruleset
    host: Host | None


def to_text(situation: Situation) -> str:
    """The situation as JSON."""
    known = {"format": FORMAT, "time": situation.time, "host": situation.host, "ruleset": situation.ruleset}
    return json.dumps({name: _plain(value) for name, value in known.items()}, separators=(",", ":"))


def from_text(text: str) -> Situation:
    """The reverse of to_text. Raises ValueError for what is none, or of a newer format."""
    try:
        values = json.loads(text)
        if values["format"] != FORMAT:
            raise ValueError(f"rules in format {values['format']}, which this version does not know")
        made = Situation(int(values["time"]), _made(values["ruleset"]), _made(values["host"]))
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"no rules of a recording: {error}") from None
    if not isinstance(made.ruleset, Ruleset) or not isinstance(made.host, Host | None):
        raise ValueError("no rules of a recording")
    return made


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        known = {"is": type(value).__name__}
        return known | {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {"is": "pairs", "pairs": [[_plain(key), _plain(one)] for key, one in value.items()]}
    return value


def _made(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_made(one) for one in value)
    if not isinstance(value, dict):
        return value
    kind = value["is"]
    if kind == "pairs":
        return {_made(key): _made(one) for key, one in value["pairs"]}
    known = {name: _made(one) for name, one in value.items() if name != "is"}
    if kind not in _CLASSES:
        raise KeyError(kind)
    return _CLASSES[kind](**known)
