from __future__ import annotations

import json
from ipaddress import ip_address

import pytest

from conntracker.formats.packets import condition
from conntracker.formats.why import why_json, why_lines
from conntracker.rules.packets import Packet
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.state import Assumed
from conntracker.rules.terms import In, Named
from conntracker.rules.walk import walk
from conntracker.steps import Rule, step_from_json

RULE = Rule("nft", "ip", "t", "c", 1, 4, "limit rate 5/second")
SAVE = """*filter
:INPUT DROP [0:0]
:chain - [0:0]
-A INPUT -s 10.0.0.0/9 -p udp -m udp --dport 53 -m comment --comment "long enough that it does not fit" -j ACCEPT
-A INPUT -j chain
-A chain -m string --string evil --algo bm -j DROP
COMMIT
"""
PACKET: Packet = {
    "family": 4, "saddr": int(ip_address("10.200.0.5")), "daddr": 1, "protocol": 17, "sport": 40000, "dport": 53,
    "iif": "eth0", "ct_state": 3, "mark": 5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("assumed", "version", "said"),
    [
        (Assumed("routing", "whether it is for this host", True, None), 4, "it is for this host"),
        (Assumed("routing", "whether it is for this host", False, None), 4, "it is not for this host"),
        (Assumed("limit", "limit rate 5/second", True, RULE), 4, "limit rate 5/second"),
        (Assumed("limit", "limit rate 5/second", False, RULE), 4, "not limit rate 5/second"),
        (Assumed("dport", "", True, RULE, In("dport", ((22, 22),))), 4, "destination port is 22"),
        (Assumed("dport", "", False, RULE, In("dport", ((22, 22),))), 4, "destination port is not 22"),
        (Assumed("dport", "", True, RULE, In("dport", ((22, 22), (80, 90)))), 4, "destination port is in 22, 80-90"),
        (Assumed("saddr", "", False, RULE, In("saddr", ((0, 255),))), 6, "source is not in ::/120"),
        (Assumed("mark", "", True, RULE, In("mark", ((1, 1),), 15)), 4, "mark & 0xf is 0x1"),
        (Assumed("iif", "", True, RULE, Named("iif", ("eth0", "lo"))), 4, "in interface is eth0 or lo"),
        (Assumed("iif", "", False, RULE, Named("iif", ("eth*",))), 4, "in interface is not eth*"),
        (Assumed("iif", "", True, RULE, Named("iif", ("eth0",), True)), 4, "in interface is not eth0"),
        (Assumed("oif", "", False, RULE, Named("oif", ("",), True)), 4, "out interface is none"),
    ],
)
def test_conditions(assumed: Assumed, version: int, said: str) -> None:
    """What an outcome takes for granted is said in words."""
    assert condition(assumed, version) == said


def lines(packet: Packet, width: int = 80, passed: bool = False, **more: list[str]) -> list[str]:
    """What is printed of a packet to this host."""
    answer = walk(Ruleset.parse(SAVE, source="a"), packet, "input", passed=passed)
    return [line.rstrip("\n") for line in why_lines(packet, answer, width, **more)]


def test_two_outcomes() -> None:
    """Each outcome has its condition, its rule and its way; verdicts that agree are an answer all the same."""
    assert lines(PACKET) == [
        "UDP 10.200.0.5:40000 -> 0.0.0.1:53 in eth0, state new, mark 0x5   DROPPED",
        "  1. DROPPED if -m string --string evil --algo bm",
        "     by   ip filter chain, rule 1 (iptables-legacy)",
        "          -A chain -m string --string evil --algo bm -j DROP   a:6",
        "     input        ip filter INPUT          rule 2 jump chain  -A INPUT -j chain",
        "                    ip filter chain          rule 1 drop  <== decided",
        "                      -A chain -m string --string evil --algo bm -j DROP",
        "  2. DROPPED if not -m string --string evil --algo bm",
        "     by   ip filter INPUT, policy (iptables-legacy)",
        "     input        ip filter INPUT          rule 2 jump chain  -A INPUT -j chain",
        "                    ip filter chain          end of chain return",
        "                  ip filter INPUT          policy drop  <== decided",
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_width(width: int) -> None:
    """Packets and reasons are kept within the width, where words let them; rules are never cut."""
    found = lines(PACKET, width, passed=True)
    assert all(len(line) <= max(width, 75) for line in found if " -m " not in line)
    assert sum("--comment" in line for line in found) == 0
    assert " ".join(" ".join(found).split()).count("passed over:") == 3


def test_supposed() -> None:
    """What was supposed stands below the packet."""
    assert lines(PACKET, supposed=["not said, and so taken: mark 0"])[1] == "  not said, and so taken: mark 0"


def test_no_chain() -> None:
    """Where there are no chains, no rule and no policy decides."""
    answer = walk(Ruleset(()), PACKET, "input")
    assert list(why_lines(PACKET, answer))[1:] == ["  by   no rule and no policy: no chain is in its way\n"]
    found = json.loads(why_json(PACKET, answer))
    assert (found["verdict"], found["rule"], found["path"]) == ("accept", None, [])


def test_what_a_terminal_would_obey() -> None:
    """Control characters of rules do not get to the terminal."""
    save = '*filter\n-A INPUT -m comment --comment "\x1b[2Jgone" -j DROP\nCOMMIT\n'
    answer = walk(Ruleset.parse(save), PACKET, "input")
    assert "\x1b" not in "".join(why_lines(PACKET, answer))


def test_json_of_two_outcomes() -> None:
    """Where outcomes agree, there is a verdict and no single rule; each outcome has its own path."""
    answer = walk(Ruleset.parse(SAVE), PACKET, "input")
    found = json.loads(why_json(PACKET, answer, ["x"]))
    assert (found["verdict"], found["rule"], found["path"], found["supposed"]) == ("drop", None, None, ["x"])
    first, second = found["outcomes"]
    assert first["if"] == [{"name": "string", "text": "-m string --string evil --algo bm", "value": True}]
    assert [one["decided"] for one in (first, second)] == [1, 2]
    for outcome, walked in zip((first, second), answer.outcomes, strict=True):
        assert tuple(step_from_json(one) for one in outcome["path"]) == walked.path.steps
