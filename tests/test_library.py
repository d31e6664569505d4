"""The library's front for rulesets."""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np
import pytest

import conntracker
from conntracker.rules.decide import VERDICTS, Decisions
from conntracker.rules.fields import CT_STATES
from conntracker.rules.walk import Answer

OLD = """*filter
:INPUT DROP [0:0]
-A INPUT -s 10.0.0.0/8 -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -s 10.1.0.0/16 -p tcp -m tcp --dport 22 -j DROP
COMMIT
"""
SAME = "*filter\n:INPUT DROP [0:0]\n-A INPUT -s 10.0.0.0/8 -p tcp -m multiport --dports 22 -j ACCEPT\nCOMMIT\n"
PACKET = {
    "family": 4, "saddr": int(ip_address("10.0.0.5")), "protocol": 6, "dport": 22, "ct_state": CT_STATES.index("new"),
}  # fmt: skip


def test_a_packet() -> None:
    """A packet of numbers has an answer with its steps."""
    answer = conntracker.Ruleset.parse(OLD, source="a").decide(PACKET, "input")
    assert isinstance(answer, Answer)
    (outcome,) = answer.outcomes
    assert outcome.path.deciding is not None
    assert (answer.verdict, outcome.path.deciding.rule and outcome.path.deciding.rule.source) == ("accept", "a:3")


def test_columns() -> None:
    """Columns have columns of answers."""
    columns = {name: np.full(4, value) for name, value in PACKET.items()} | {"dport": np.array([21, 22, 23, 22])}
    found = conntracker.Ruleset.parse(OLD).decide(columns, "input")
    assert isinstance(found, Decisions)
    assert [VERDICTS[verdict] for verdict in found.verdict] == ["drop", "accept", "drop", "accept"]


def test_columns_need_a_way() -> None:
    """Where columns go must be said."""
    columns = {name: np.full(1, value) for name, value in PACKET.items()}
    with pytest.raises(ValueError, match="columns need a way"):
        conntracker.Ruleset.parse(OLD).decide(columns, None)


def test_dead_rules() -> None:
    """Dead rules have their reasons."""
    (dead,) = conntracker.Ruleset.parse(OLD).dead()
    assert (dead.rule.position, [rule.position for rule in dead.because]) == (2, [1])


def test_two_rulesets() -> None:
    """Rulesets are equal, or they are not and there is a packet."""
    old, same = conntracker.Ruleset.parse(OLD), conntracker.Ruleset.parse(SAME)
    other = conntracker.Ruleset.parse(SAME.replace("10.0.0.0/8", "10.0.0.0/9"))
    assert conntracker.equivalent(old, same)
    assert not conntracker.difference(old, same)
    assert not conntracker.equivalent(old, other)
    changes = conntracker.difference(old, other).changes
    assert {(one.kind, one.before, one.after) for one in changes} == {("newly dropped", "accept", "drop")}
    assert {one.way for one in changes} == {"input", "output"}  # what comes in, also from the host itself by lo


def test_text_that_is_no_ruleset() -> None:
    """It is a RuleSyntaxError with file and line, which is a ValueError."""
    with pytest.raises(conntracker.RuleSyntaxError, match=r"^b:2:"):
        conntracker.Ruleset.parse("*filter\n-A INPUT -j\n", source="b")
    assert issubclass(conntracker.RuleSyntaxError, ValueError)


def test_what_is_not_there() -> None:
    """A name that the library does not have is an AttributeError."""
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        conntracker.nothing  # noqa: B018
    assert all(hasattr(conntracker, name) for name in conntracker.__all__)
