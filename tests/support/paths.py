"""Paths in few words: one step a line, as the tables of scenarios have them and as a failed test shows them.

    prerouting ip mangle PREROUTING policy accept
    forward ip filter FORWARD rule 2 jump A
    forward ip filter A rule 1 continue
    forward ip filter A return                  at its end; `return 3` by its third rule
  * forward inet late forward rule 1 drop       the step that decided
    undecided after prerouting                  instead of a step that decides

A line may begin with the kind of the rules and a colon, where a scenario has several.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from conntracker.steps import UNDECIDED, Path, Step

__all__ = ["Expected", "expected", "written"]


@dataclass(frozen=True, slots=True)
class Expected:
    """A path as written: its lines, the verdict, and the hook after which an undecided packet was lost."""

    lines: list[str]
    verdict: str
    reached: str | None


def expected(text: str, kind: str | None) -> Expected:
    """Parse the notation; `kind` is that of steps that do not say theirs."""
    lines, verdict, reached = [], "accept", None
    for raw in filter(None, map(str.strip, re.split(r"[;\n]", text))):
        star, line = ("* ", raw[1:]) if raw.startswith("*") else ("  ", raw)
        words = line.split()
        if words[0] == UNDECIDED:
            verdict, reached = UNDECIDED, words[-1]
            continue
        if not words[0].endswith(":"):
            assert kind is not None, f"whose rules: {raw}"
            words.insert(0, f"{kind}:")
        if star == "* ":
            verdict = words[7] if words[5] == "rule" else words[6]
        lines.append(star + " ".join(words))
    return Expected(lines, verdict, reached)


def written(path: Path) -> list[str]:
    """A path in the notation, with every kind."""
    return [("* " if index == path.decided else "  ") + _written(step) for index, step in enumerate(path.steps)]


def _written(step: Step) -> str:
    words: list[object] = [f"{step.kind}:", step.hook, step.family, step.table, step.chain, step.type]
    if step.rule is not None:
        words.append(step.rule.position)
    if step.type != "return":
        words.append(step.verdict)
    if step.target is not None:
        words.append(step.target)
    return " ".join(map(str, words))
