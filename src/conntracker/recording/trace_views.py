"""The views `paths`, `steps` and `traces`, over `trace_rows_N` and `paths_N` of each part of a recording."""

from __future__ import annotations

import json

from conntracker.recording.traces import TRACES

__all__ = ["PATHS_VIEW", "STEPS_VIEW", "TRACES_VIEW"]

# What of Step.json SQL sees.
STEP = {
    "hook": "VARCHAR", "priority": "INTEGER", "kind": "VARCHAR", "family": "VARCHAR", "table": "VARCHAR",
    "chain": "VARCHAR", "type": "VARCHAR",
    "rule": {"position": "UINTEGER", "handle": "UBIGINT", "text": "VARCHAR"},
    "verdict": "VARCHAR", "target": "VARCHAR", "certain": "BOOLEAN",
}  # fmt: skip
ALL_STEPS = f"from_json(steps, '{json.dumps([STEP])}')"


def _step(step: str, *names: str) -> str:
    """Columns of a step: its own, and position, handle and text (as `rule`) of its rule."""
    own = [f'{step}."{name}"' for name in names]
    return ", ".join([*own, f"{step}.rule.position", f"{step}.rule.handle", f"{step}.rule.text AS rule"])


PATHS_VIEW = f"SELECT *, {ALL_STEPS}[decided + 1] AS deciding FROM path_rows"  # noqa: S608

STEPS_VIEW = (
    "SELECT part, host, path, step, coalesce(step = decided, false) AS decides,"  # noqa: S608
    f" {_step('one', 'hook', 'priority', 'kind', 'family', 'table', 'chain', 'type')},"
    " one.verdict, one.target, one.certain"
    " FROM (SELECT part, host, path, decided, unnest(list) AS one, unnest(range(len(list))) AS step"
    f" FROM (SELECT *, {ALL_STEPS} AS list FROM paths))"
)

# What tells equal packets from others, whenever they were seen.
_TIMES = ("first_seen", "last_seen", "packets")
TRACE_KEY = ("part", *(name for name, _, _ in TRACES.columns if name not in _TIMES))

_ADDRESSES = ", ".join(
    f"CASE WHEN {name}_lo IS NOT NULL THEN address(family, {name}_hi, {name}_lo) END AS {name}"
    for name in ("src", "dst", "left_src", "left_dst", "about_src", "about_dst")
)
_SUMS = "min(first_seen) AS first_seen, max(last_seen) AS last_seen, sum(packets)::UBIGINT AS packets"
TRACES_VIEW = (
    f"SELECT t.*, {_ADDRESSES}, verdict, deciding.kind AS kind, deciding.family AS rule_family,"  # noqa: S608
    f" {_step('deciding', 'table', 'chain')}"
    f" FROM (SELECT {', '.join(TRACE_KEY)}, {_SUMS} FROM trace_rows GROUP BY ALL) t"
    " LEFT JOIN paths p ON t.part = p.part AND t.path = p.path"
)
