"""Where a packet ends: what the kernel says beside an outcome of the engine."""

from __future__ import annotations

import pytest

from conntracker.lab.trials.ends import End, wrong_end
from conntracker.rules.packets import Packet
from conntracker.rules.walk import Outcome
from conntracker.steps import Path

SENT: Packet = {"ct_status": 0}
LATER: Packet = {"saddr": 1, "daddr": 2, "sport": 3, "dport": 80, "tos": 0, "ttl": 63, "length": 40, "oif": "eth1"}
SAME = (1, 2, 3, 80, 0, 63, 40)

# verdict, last hook, whether routing drops it, the kernel's end, what is wrong
CASES = [
    ("accept", "postrouting", False, End("left", "eth1", SAME), None),
    ("accept", "input", False, End("arrived", "", SAME), None),
    ("drop", "forward", False, End("gone", "", ()), None),
    ("accept", "forward", True, End("gone", "", ()), None),
    ("accept", "postrouting", False, End("gone", "", ()), "it has gone, and should have left"),
    ("reject", "input", False, End("arrived", "", SAME), "it has arrived, and should have gone"),
    ("accept", "postrouting", False, End("left", "eth2", SAME), "it left by eth2, and not by eth1"),
    ("accept", "input", False, End("arrived", "", (1, 2, 3, 81, 0, 63, 40)), "its dport is 81, and not 80"),
    ("accept", "input", False, End("arrived", "", (1, 2, None, None, 0, 63, 40)), None),
]


@pytest.mark.parametrize(("verdict", "hook", "stopped", "end", "wrong"), CASES)
def test_ends(verdict: str, hook: str, stopped: bool, end: End, wrong: str | None) -> None:
    """Whether a packet got through, where, and with which headers, is compared."""
    outcome = Outcome(Path((), verdict, None, hook), (), LATER)
    assert wrong_end(SENT, outcome, stopped, end) == wrong


def test_unknown_fields_are_not_compared() -> None:
    """What the engine does not know may be anything, and so may what NAT of an older flow changes."""
    end = End("arrived", "", (9, 2, 3, 80, 0, 63, 40))
    unknown = {name: value for name, value in LATER.items() if name != "saddr"}
    assert wrong_end(SENT, Outcome(Path((), "accept", None, "input"), (), unknown), False, end) is None
    outcome = Outcome(Path((), "accept", None, "input"), (), LATER)
    assert wrong_end(SENT, outcome, False, end) == "its saddr is 9, and not 1"
    assert wrong_end({"ct_status": 16}, outcome, False, end) is None
