from __future__ import annotations

from dataclasses import replace

import pytest

from conntracker.answers.causes import CAUSES, last_seen, possible_causes, unseen_rules
from conntracker.steps import HOOKS, UNDECIDED, Path
from support.traces import ACCEPTED, DROPPED, LOST


@pytest.mark.parametrize("path", [ACCEPTED, DROPPED])
def test_what_a_rule_decided_has_no_other_cause(path: Path) -> None:
    """Nothing is guessed where a rule or a policy ended it."""
    assert possible_causes(path) == ()


@pytest.mark.parametrize(
    ("hook", "expected", "cause"),
    [
        ("prerouting", ("input", "forward"), "rp_filter"),
        ("prerouting", ("input", "forward"), "forwarding is off"),
        ("prerouting", ("forward",), "TTL"),
        ("forward", ("postrouting",), "IPsec"),
        ("output", ("postrouting",), "no route"),
        ("postrouting", ("prerouting",), "loopback device"),
        ("postrouting", (), "masquerading"),
        ("ingress", ("prerouting",), "MAC address"),
    ],
)
def test_by_the_last_hook(hook: str, expected: tuple[str, ...], cause: str) -> None:
    """What may have become of a packet depends on where it was seen last."""
    path = Path((), UNDECIDED, None, hook, expected)
    assert any(cause in one for one in possible_causes(path))


def test_a_packet_that_was_to_be_forwarded_was_not_refused_for_being_ours() -> None:
    """A cause that does not go with what was expected next is not named."""
    assert not any("not for this host" in cause for cause in possible_causes(replace(LOST, expected=("forward",))))


def test_lost_messages_come_first() -> None:
    """Where messages were lost, that is the first thing that it may have been."""
    assert "lost" in possible_causes(replace(LOST, complete=False))[0]


def test_legacy_rules_that_were_not_traced_come_before_all() -> None:
    """A legacy rule may have ended a packet where none was traced; what was accepted or dropped has no such cause."""
    causes = possible_causes(replace(LOST, complete=False, blind=True))
    assert "iptables-legacy" in causes[0]
    assert "lost" in causes[1]
    assert unseen_rules(replace(LOST, complete=False, blind=True)) == causes[:2]
    assert unseen_rules(replace(ACCEPTED, blind=True)) == unseen_rules(LOST) == ()


def test_every_hook_is_known() -> None:
    """There is an answer for each hook, and for none."""
    assert set(HOOKS) - {"egress"} | {None} == set(CAUSES)


def test_last_seen() -> None:
    """The last hook and the next one are told, never a rule."""
    assert last_seen(LOST) == "last seen at prerouting; next should have been input or forward"
    assert last_seen(replace(LOST, reached="input", expected=())) == "last seen at input, not at its end"
    assert last_seen(replace(LOST, reached=None, expected=())) == "seen at no hook"
