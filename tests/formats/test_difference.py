from __future__ import annotations

import json

import pytest

from conntracker.answers.diff import Diff, diff
from conntracker.formats.difference import box_text, diff_json, diff_lines
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.solve.regions import Values

OLD = """*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -s 10.0.0.0/8 -p udp -m udp --dport 53 -m limit --limit 1/s -j ACCEPT
COMMIT
"""
NEW = OLD.replace("--dport 22", "--dport 80")


def changes(old: str = OLD, new: str = NEW) -> Diff:
    """What changes from one save to the other."""
    one, other = (Ruleset.parse(text, source=name, family="ip") for text, name in ((old, "old"), (new, "new")))
    return diff(one, other)


def test_equal() -> None:
    """Equal rulesets are said to be so, with what that rests on."""
    other = OLD.replace("-s 10.0.0.0/8 -p udp", "-p udp -s 10.0.0.0/255.0.0.0")
    assert "".join(diff_lines(changes(OLD, other))) == (
        "equal: every packet (IPv4) has the same fate under both\n"
        "taken to be answered alike by both: -m limit --limit 1/s\n"
        "not compared: what rules log, count and remember\n"
    )


def test_lines() -> None:
    """Each change is a set of packets with what decides before and after, and a packet."""
    shown = "".join(diff_lines(changes()))
    assert shown.startswith(
        "NEWLY ACCEPTED  1\n"
        "  input: IPv4 tcp 80 from any to any\n"
        "    before: drop by the policy of ip filter INPUT\n"
        "    after:  accept by ip filter INPUT rule 1   new:5\n"
        "              -A INPUT -p tcp -m tcp --dport 80 -j ACCEPT\n"
        "    packet, input: TCP "
    )
    assert (
        "NEWLY DROPPED  1\n"
        "  input: IPv4 tcp 22 from any to any\n"
        "    before: accept by ip filter INPUT rule 1   old:5\n"
        "              -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n"
        "    after:  drop by the policy of ip filter INPUT\n" in shown
    )
    assert max(map(len, shown.splitlines())) <= 80


def test_json() -> None:
    """First whether they are equal, then an object a change."""
    first, accepted, dropped = map(json.loads, diff_json(changes()))
    taken = ["-m limit --limit 1/s"]
    assert first == {"equal": False, "versions": [4], "taken_alike": taken, "more": False, "not_compared": []}
    assert (accepted["change"], accepted["verdict_before"], accepted["verdict_after"]) == (
        "newly accepted", "drop", "accept",
    )  # fmt: skip
    assert (accepted["packets"], accepted["witness"]["dport"]) == ({"protocol": "tcp", "dport": "80"}, 80)
    assert (accepted["rule_before"], accepted["rule_after"]["source"]) == (None, "new:5")
    assert (dropped["by_before"], dropped["by_after"]) == ("ip filter INPUT rule 1", "ip filter INPUT policy")


def test_what_a_change_hangs_on() -> None:
    """A change that is there only if a limit allows it says so."""
    (one,) = changes(OLD, OLD.replace("-s 10.0.0.0/8 -p udp", "-s 10.0.0.0/9 -p udp")).changes
    assert one.change.atoms == (("-m limit --limit 1/s", True),)
    assert "    if -m limit --limit 1/s\n" in "".join(diff_lines(Diff((one,), False, (4,), ())))


def test_more() -> None:
    """That there are more changes than are shown is said."""
    old, new = (Ruleset.parse(text, family="ip") for text in (OLD, NEW))
    found = diff(old, new, limit=1)
    assert (len(found.changes), found.more) == (1, True)
    assert "there are more changes than these" in "".join(diff_lines(found))


@pytest.mark.parametrize(
    ("box", "version", "text"),
    [
        ({}, 4, "IPv4 all from any to any"),
        ({"protocol": ((6, 6),), "dport": ((22, 22),), "saddr": ((0x0A000000, 0x0AFFFFFF),)}, 4,
         "tcp 22 from 10.0.0.0/8 to any"),
        ({"protocol": ((17, 17),), "sport": ((53, 53),), "iif": ("eth0", "eth1")}, 4,
         "IPv4 udp from any port 53 to any, in eth0, eth1"),
        ({"icmp_type": ((8, 8),)}, 4, "IPv4 icmp type 8 from any to any"),
        ({"daddr": ((0, 5),), "ct_state": ((3, 7),)}, 6, "IPv6 all from any to ::-::5, state new, untracked"),
        ({"mac": None, "fragment": ((1, 1),)}, 4, "IPv4 all from any to any, no source MAC, later fragments"),
    ],
)  # fmt: skip
def test_a_set_of_packets(box: dict[str, Values], version: int, text: str) -> None:
    """A set of packets is one line: service, prefixes, interfaces, state, and the rest."""
    assert box_text(box, version) == text
