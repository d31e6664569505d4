"""The table of scenarios, a module for each subject."""

from __future__ import annotations

from kernel.scenarios import verdicts

__all__ = ["SCENARIOS"]

SCENARIOS = (*verdicts.ENDS, *verdicts.WAYS, *verdicts.REJECTS, *verdicts.REJECTS_IPV6)
