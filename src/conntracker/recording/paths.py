"""The paths of a recording, as they were before they became rows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from conntracker.steps import UNDECIDED, Path, Step, step_from_json

if TYPE_CHECKING:
    from conntracker.recording.reader import Recording

__all__ = ["UNKNOWN_PATH", "load_paths"]

# Of a trace whose path was in a segment that is damaged.
UNKNOWN_PATH = Path((), UNDECIDED, None, complete=False)


def load_paths(recording: Recording) -> dict[tuple[int, int], Path]:
    """All paths by part and number; equal ones are the same object. Raises ValueError for steps that are none."""
    known: dict[tuple[Any, ...], Path] = {}
    steps: dict[str, Step] = {}
    paths: dict[tuple[int, int], Path] = {}
    names = ("part", "path", "verdict", "decided", "reached", "expected", "complete", "blind", "steps")
    for chunk in recording.chunks(f"SELECT {', '.join(names)} FROM path_rows"):  # noqa: S608
        for part, number, *row in zip(*(chunk[name].tolist() for name in names), strict=True):
            if (key := tuple(row)) not in known:
                try:
                    known[key] = _path(row, steps)
                except (ValueError, KeyError, TypeError, IndexError, AttributeError):
                    raise ValueError(f"{recording.parts[part].path}: the steps of path {number} are damaged") from None
            paths[part, number] = known[key]
    return paths


def _path(row: list[Any], known: dict[str, Step]) -> Path:
    verdict, decided, reached, expected, complete, blind, text = row
    steps = []
    for values in json.loads(text):
        one = json.dumps(values)
        if one not in known:
            known[one] = step_from_json(values)
        steps.append(known[one])
    if decided is not None:
        steps[decided]  # raises IndexError
    hooks = tuple(expected.split(",")) if expected else ()
    return Path(tuple(steps), str(verdict), decided, reached, hooks, complete is not False, blind is True)
