"""Rules whose removal changes nothing, as far as that can be found out in a reasonable time."""

from __future__ import annotations

from conntracker.rules.intervals import Intervals
from conntracker.rules.ruleset import Ruleset
from conntracker.steps import Rule

__all__ = ["redundant_rules"]


def redundant_rules(
    ruleset: Ruleset, local: dict[int, Intervals] | None = None
) -> tuple[list[tuple[Rule, tuple[Rule, ...], str]], str]:
    """(rules with what decides the same behind them, and a reason in words; a note where some were not looked at)."""
    return [], ""
