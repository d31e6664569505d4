"""What an audit tells: findings, each with its evidence."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from conntracker.answers.audit_summary import Summary
from conntracker.answers.audit_wide import Wide
from conntracker.rules.solve.dead import ALWAYS
from conntracker.rules.solve.domain import Witness
from conntracker.steps import Rule

__all__ = ["KINDS", "NOWHERE", "Audit", "Finding"]

# What is looked for, in the order in which it is told, each with what it is.
KINDS = {
    "dead": "rules that no packet ever matches",
    "redundant": "rules of which each could go, and nothing would change",
    "policy": "policies that no packet ever comes to",
    "unused-chain": "chains that nothing leads to",
    "unused-set": "sets and maps that no rule refers to",
    "unhit": "rules that packets can match, and none did",
    "order": "rules of which the order matters",
    "wide": "rules that let through far more than was seen",
}

NOWHERE = "where it leads, nothing is decided that would not be so anyway"  # of a jump that is redundant


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that somebody should look at.

    kind       one of KINDS
    place      family, table, and the chain or set
    rule       None where it is about a policy, a chain or a set
    reason     why, in one sentence
    because    the rules to blame
    witness    a packet as evidence
    asked      (text, outcome) of the matches that its way hangs on
    certainty  ALWAYS, or `unless ...`
    source     file:line of a set, or of a chain's first rule
    numbers    what was counted, by name
    wide       what it admits and what was seen
    """

    kind: str
    place: tuple[str, str, str]
    rule: Rule | None
    reason: str
    because: tuple[Rule, ...] = ()
    witness: Witness | None = None
    asked: tuple[tuple[str, bool], ...] = ()
    certainty: str = ALWAYS
    source: str | None = None
    numbers: dict[str, Any] = field(default_factory=dict)
    wide: Wide | None = None


@dataclass(frozen=True, slots=True)
class Audit:
    """All that was found, by kind in the order of KINDS, then in the order of the ruleset; and what was looked at.

    notes   lines on what was left out, and why
    """

    summary: Summary
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    def of(self, kinds: Collection[str]) -> bool:
        """Whether anything of these kinds was found."""
        return any(one.kind in kinds for one in self.findings)
