"""The table of scenarios, a module for each subject."""

from __future__ import annotations

from kernel.scenarios import chains, effects, handovers, mixed, nat, native, shapes, states, verdicts

__all__ = ["SCENARIOS"]

SCENARIOS = (
    *verdicts.ENDS,
    *verdicts.WAYS,
    *verdicts.REJECTS,
    *verdicts.REJECTS_IPV6,
    *chains.CHAINS,
    *chains.PLACES,
    *effects.EFFECTS,
    *effects.TABLES,
    *states.STATES,
    *states.LOST,
    *nat.NAT,
    *nat.NAT_IPV6,
    *shapes.FRAGMENTS,
    *shapes.EXTENSIONS,
    *shapes.PROTOCOLS,
    *native.SETS,
    *native.HOOKS,
    *handovers.HANDOVERS,
    *handovers.MANY,
    *mixed.MIXED,
    *mixed.BRIDGES,
)
