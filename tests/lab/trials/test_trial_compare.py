"""The comparison: equal steps agree, all others are told with their first difference; faults are found by it."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest

from conntracker.lab.trials.compare import Comparison, Judge
from conntracker.lab.trials.ends import End
from conntracker.lab.trials.faults import KINDS, seeded
from conntracker.lab.trials.lines import lines_of
from conntracker.lab.trials.tally import Tally, asked_of
from conntracker.rules.iptables import parse_save
from conntracker.rules.packets import Packet
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.walk import walk
from conntracker.steps import Rule

SAVE = """*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:ssh - [0:0]
-A INPUT ! -s 10.0.0.0/8 -p tcp -m tcp --dport 22 -j ssh
-A INPUT -p tcp -m limit --limit 1/sec -j ACCEPT
-A INPUT -p udp -m udp --dport 53:60 -j ACCEPT
-A ssh -i eth0 -j REJECT
-A ssh -j RETURN
COMMIT
"""
RULESET = Ruleset(parse_save(SAVE, family="ip", kind="iptables-legacy"))


def packet(**fields: int | str | None) -> Packet:
    """One of TCP to port 22 of the host."""
    made: Packet = {
        "way": "input", "iif": "eth1", "oif": "", "family": 4, "protocol": 6, "saddr": 0xC0A80001, "daddr": 0xC6120101,
        "sport": 1024, "dport": 22, "tcp_flags": 2, "fragment": 0, "ttl": 64, "packet_type": 0, "ct_state": 3,
        "ct_status": 0, "ct_direction": 0, "ct_mark": 0,
    }  # fmt: skip
    return made | fields


def test_equal_steps_agree() -> None:
    """The steps of either outcome of a limit are what the kernel may say; others are a mismatch."""
    judge, result = Judge(RULESET, None), Comparison()
    sides = [lines_of(one.path.steps) for one in walk(RULESET, packet(), "input").outcomes]
    assert len(sides) == 2
    for lines in sides:
        assert judge.judge(packet(), lines, result) is None
    assert result.undecided == 2
    found = judge.judge(packet(), sides[0][:-1], result)
    assert found is not None
    assert found.at == len(sides[0]) - 1


def test_mismatch_shows_packet_and_first_difference() -> None:
    """A mismatch is told with the packet, both sides, and a mark at the first line that differs."""
    judge = Judge(RULESET, None)
    wrong = lines_of(walk(RULESET, packet(iif="eth0"), "input").outcomes[0].path.steps)
    text = str(judge.compare([packet()], [wrong], [End("left", "", ())]).mismatches[0])
    assert "iif=eth1" in text
    assert "kernel > input 0 iptables-legacy ip filter ssh:1 rule reject" in text
    assert "engine > input 0 iptables-legacy ip filter ssh:2 return return" in text


def test_predicted_drop_by_routing_is_no_mismatch() -> None:
    """A packet that routing drops has no steps from there on, and is counted with the reason."""
    judge, result = Judge(RULESET, None), Comparison()
    assert judge.judge(packet(packet_type=3), (), result) is None
    assert result.routed == {"for another host's link address": 1}
    assert judge.judge(packet(), (), result) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_faults_change_the_ruleset(kind: str) -> None:
    """Each kind of fault is made somewhere, changes one chain, and keeps rules and meanings together."""
    found = [fault for fault in islice(seeded(RULESET, 1), 200) if fault.kind == kind]
    assert found or kind == "widened prefix"  # the only prefix is negated
    for fault in found:
        changed = [a for a, b in zip(RULESET.chains, fault.ruleset.chains, strict=True) if a != b]
        assert len(changed) == 1
        assert all(len(known.meanings) == len(known.chain.rules) for known in fault.ruleset.chains)


def test_a_prefix_is_widened_by_one_bit() -> None:
    """A widened prefix is the prefix of one bit less."""
    text = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -s 10.1.0.0/16 -j DROP\nCOMMIT\n"
    ruleset = Ruleset(parse_save(text, family="ip", kind="iptables-legacy"))
    fault = next(one for one in seeded(ruleset, 1) if one.kind == "widened prefix")
    wide = Ruleset(parse_save(text.replace("10.1.0.0/16", "10.0.0.0/15"), family="ip", kind="iptables-legacy"))
    assert [known.meanings for known in fault.ruleset.chains] == [known.meanings for known in wide.chains]


def test_faults_are_found_by_their_packets() -> None:
    """A rule with another verdict gives other steps to the packets that it matches, and to no others."""
    kernel = lines_of(walk(RULESET, packet(iif="eth0"), "input").outcomes[0].path.steps)
    flipped = [one for one in islice(seeded(RULESET, 1), 300) if one.kind == "flipped verdict"]
    by_place = {one.place: one.ruleset for one in flipped}
    assert not Judge(by_place["ssh:1"], None).agrees(packet(iif="eth0"), kernel)
    assert Judge(by_place["INPUT:3"], None).agrees(packet(iif="eth0"), kernel)


def test_no_faults_without_rules() -> None:
    """A ruleset without rules has no faults."""
    assert list(seeded(replace(RULESET, chains=()), 1)) == []


ASKED = [
    ("iptables-legacy", "-A F ! -s 10.0.0.0/255.0.0.0 -i eth+ -p tcp -m tcp --syn -j DROP",
     {"tcp", "! -s", "dotted mask", "-i", "interface+", "--tcp-flags", "DROP"}),
    ("iptables-nft", '-A F -m comment --comment "-j ACCEPT -m mac" -g other', {"comment", "goto"}),
    ("iptables-nft", "-A F -m limit --limit 1/sec", {"limit", "no target"}),
    ("iptables-nft", "-A F -j other", {"chain"}),
    ("nft", "tcp dport { 22, 80-90 } jump ssh", {"tcp dport", "anonymous set", "range", "jump"}),
    ("nft", 'ip saddr . tcp dport @pairs != 5 log prefix "goto x" return',
     {"ip saddr", "tcp dport", "concatenation", "named set", "!=", "return"}),
    ("nft", "tcp flags syn / syn,ack ip6 daddr fd00::/8 vmap { 1 : drop }",
     {"tcp flags", "bit mask", "ip6 daddr", "prefix", "vmap", "anonymous set"}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "expected"), ASKED, ids=[text for _, text, _ in ASKED])
def test_what_a_rule_asks(kind: str, text: str, expected: set[str]) -> None:
    """Matches, forms and targets are told from a rule's text, but for what stands in strings."""
    assert set(asked_of(Rule(kind, "ip", "t", "F", 1, None, text))) == expected


def test_tally_counts_both_sides() -> None:
    """A match counts where its rule matched, and where the rule was passed over for what the match looks at."""
    tally = Tally()
    for one in (packet(iif="eth0"), packet(dport=23), packet(protocol=17, sport=5, tcp_flags=None, dport=52)):
        for outcome in walk(RULESET, one, "input", passed=True).outcomes[:1]:
            tally.add(outcome)
    assert tally.matched["REJECT"] == 1
    assert tally.matched["tcp"] == 2
    assert tally.passed["tcp"] == 3
    assert tally.passed["udp"] == 1
    assert tally.zeros(["tcp", "mac"]) == ["mac"]
