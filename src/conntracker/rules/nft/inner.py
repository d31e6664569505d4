"""Chains without a name, `jump { ... }`, which libnftables 1.0.6 writes into its JSON as nothing but text.

"stmt ops chain have no json callback", it says. The verdict of each rule in there can be read from its text; its
matches cannot, and are kept as one atom.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from conntracker.rules.chain import Chain
from conntracker.rules.effect import effect
from conntracker.rules.ruleset import KnownChain, Meaning
from conntracker.rules.terms import Atom, Effect, Part, Verdict
from conntracker.steps import Rule

__all__ = ["INNER", "InnerChain", "inner_chain"]

INNER = "__chain_of_"  # what the names of such chains begin with

_FORM = re.compile(r"\s*(jump|goto) \{\s*(.*?)\s*\}\s*", re.DOTALL)
_HANDLE = re.compile(r" # handle \d+$")
_MATCHLESS = re.compile(r"(?:counter(?: packets \d+ bytes \d+)? )?(?:accept|drop|return|continue|(?:jump|goto) \S+)")


@dataclass(frozen=True, slots=True)
class InnerChain:
    """A chain without a name, called by one rule."""

    verb: str
    name: str
    texts: tuple[str, ...]

    @property
    def statement(self) -> dict[str, Any]:
        """The jump to it, as the JSON of a named one."""
        return {self.verb: {"target": self.name}}

    def chain(self, family: str, table: str, source: str | None) -> KnownChain:
        """Itself."""
        rules, meanings = [], []
        for position, text in enumerate(self.texts, 1):
            rule = Rule("nft", family, table, self.name, position, None, text, source)
            rules.append(rule)
            meanings.append(Meaning(tuple(_parts(rule))))
        made = Chain("nft", family, table, self.name, None, None, None, None, None, tuple(rules))
        return KnownChain(made, tuple(meanings))


def inner_chain(statement: str, number: int) -> InnerChain | None:
    """The chain in a statement that is text; number: what tells it from others of its table."""
    found = _FORM.fullmatch(statement)
    if found is None:
        return None
    lines = (_HANDLE.sub("", line.strip()) for line in re.split(r"\n|; (?![^\"]*\")", found[2]))
    return InnerChain(found[1], f"{INNER}{number}", tuple(line.rstrip(";") for line in lines if line))


def _parts(rule: Rule) -> list[Part]:
    text = rule.text or ""
    verdict, target = effect(rule)
    parts: list[Part] = []
    if not _MATCHLESS.fullmatch(text):
        place = f"{rule.family}/{rule.table}/{rule.chain}/{rule.position}/1"
        parts.append(Atom("rule of a chain without a name", text, place))
    if verdict in {None, "continue"}:
        parts.append(Effect("statement", text))
    else:
        parts.append(Verdict(verdict or "continue", target))
    return parts
