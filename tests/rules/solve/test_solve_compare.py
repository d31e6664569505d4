from __future__ import annotations

import pytest

from conntracker.rules.solve.equal import Equal, Unequal, equivalent
from conntracker.rules.solve.redundant import redundant
from conntracker.rules.solve.regions import difference
from support.small_rulesets import forward, saved

EQUAL = [
    ("-p tcp --dport 20:30 -j ACCEPT", "-p tcp --dport 20:25 -j ACCEPT\n-p tcp --dport 26:30 -j ACCEPT"),
    ("-s 10.0.0.0/8 -j ACCEPT", "-s 10.0.0.0/9 -j ACCEPT\n-s 10.128.0.0/9 -j ACCEPT"),
    ("-p tcp -j ACCEPT\n-p udp -j ACCEPT", "-p udp -j ACCEPT\n-p tcp -j ACCEPT"),
    ("-m limit --limit 1/sec -j ACCEPT", "-m limit --limit 1/sec -j ACCEPT\n-j DROP"),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_sees_that_rules_do_the_same(one: str, other: str) -> None:
    """Rules written otherwise that do the same are equal, and have no difference."""
    assert isinstance(equivalent(forward(one), forward(other)), Equal)
    assert not difference(forward(one), forward(other))


def test_shows_a_packet_that_ends_otherwise() -> None:
    """Of unequal rulesets there is a packet, with both of its ends."""
    found = equivalent(forward("-p tcp --dport 20:30 -j ACCEPT"), forward("-p tcp --dport 20:29 -j ACCEPT"))
    assert isinstance(found, Unequal)
    assert (found.before, found.after, found.witness.packet["dport"]) == ("accept", "drop", 30)


def test_tells_changes_as_ranges() -> None:
    """A change is told by the service and the prefix, not by its points."""
    old = forward("-p tcp -s 10.0.0.0/8 --dport 20:30 -j ACCEPT")
    new = forward("-p tcp -s 10.0.0.0/8 --dport 25:35 -j ACCEPT")
    found = {one.kind: one for one in difference(old, new).changes}
    source = ((10 << 24, (11 << 24) - 1),)
    assert found["newly accepted"].box == {"saddr": source, "dport": ((31, 35),), "protocol": ((6, 6),)}
    assert found["newly dropped"].box == {"saddr": source, "dport": ((20, 24),), "protocol": ((6, 6),)}
    assert len(found) == 2


def test_tells_a_reject_from_a_drop() -> None:
    """Refusing in another way is a change of its own kind."""
    found = difference(forward("-p udp -j DROP"), forward("-p udp -j REJECT")).changes
    assert [one.kind for one in found] == ["otherwise refused"]


def test_says_that_there_are_more() -> None:
    """No more changes are told than were asked for, and that is said."""
    rules = "\n".join(f"-p tcp --dport {port} -s 10.0.{port}.0/24 -j ACCEPT" for port in range(10, 16))
    found = difference(forward(rules), forward("-p udp -j DROP"), limit=2)
    assert (len(found.changes) <= 2, found.more) == (True, True)


def test_finds_redundant_rules() -> None:
    """A rule is redundant if later rules, or the policy, do the same with its packets; a log is not."""
    rules = forward("""
        -p tcp --dport 22 -j ACCEPT
        -p tcp --dport 23 -j DROP
        -p tcp -j LOG
        -p tcp --dport 1:100 -j ACCEPT
        -p udp -j DROP
    """)
    found = {one.rule.position: [rule.position for rule in one.because] for one in redundant(rules)}
    assert found == {1: [4], 5: []}


def test_follows_redundancy_to_the_caller() -> None:
    """What a chain's caller does behind the jump counts."""
    rules = saved(""":one
        -A FORWARD -p tcp -j one
        -A FORWARD -j DROP
        -A one -p tcp --dport 5 -j DROP
        -A one -p tcp --dport 6 -j ACCEPT""")
    assert [one.rule.position for one in redundant(rules) if one.rule.chain == "one"] == [1]
