from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from conntracker.answers.untraced import why_untraced
from conntracker.recording.meta import Meta
from support.columns import NOON

META = Meta("gate", "6.18", "1", NOON, trace={"packets": 4, "start": NOON})


def flow(**changes: Any) -> dict[str, Any]:
    """A flow that began a second after tracing and is alive; times in seconds from noon."""
    seconds = {"start": 1, "first_seen": 1, "last_seen": 9, "end": None} | changes
    offloaded = seconds.pop("offloaded", False)
    noon = datetime(2026, 1, 1, 12)
    times = {name: None if value is None else noon + timedelta(seconds=value) for name, value in seconds.items()}
    return times | {"offloaded": offloaded}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "no packet of it was traced, and nothing that was recorded says why"),
        ({"start": -5, "end": -1, "last_seen": -1}, "it was over before tracing began"),
        ({"start": -5}, "it began before tracing, and may have been silent since"),
        ({"start": None, "first_seen": 0}, "it may have begun before tracing, and been silent since"),
        ({"offloaded": True}, "it is offloaded: its packets pass by the rules"),
    ],
)
def test_reasons_of_the_flow(changes: dict[str, Any], reason: str) -> None:
    """A flow that was there before, or goes past the rules, may have no trace."""
    assert why_untraced(flow(**changes), META).endswith(reason)


def test_no_meta() -> None:
    """Where the recording does not say whether it traced, nobody knows."""
    assert "nobody knows" in why_untraced(flow(), None)
