"""Rules that let through far more than a recording has of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from conntracker.steps import Rule

__all__ = ["Wide"]


@dataclass(frozen=True, slots=True)
class Wide:
    """A rule that is wide."""

    rule: Rule
    reason: str

    def numbers(self) -> dict[str, Any]:
        """What was counted."""
        return {}
