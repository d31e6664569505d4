from __future__ import annotations

import pytest

from conntracker.answers.audit import audit
from conntracker.answers.audit_findings import KINDS, Finding
from conntracker.answers.replay import replay
from conntracker.rules.ruleset import NamedSet, Ruleset


def saved(rules: str, chains: str = "") -> str:
    """An iptables-save of the filter table."""
    names = ["INPUT DROP", "FORWARD ACCEPT", "OUTPUT ACCEPT", *(f"{name} -" for name in chains.split())]
    head = "".join(f":{name} [0:0]\n" for name in names)
    return f"*filter\n{head}{rules.strip()}\nCOMMIT\n"


def found(text: str, *kinds: str) -> list[Finding]:
    """What an audit of a save finds."""
    return list(audit(Ruleset.parse(text, family="ip"), kinds or tuple(KINDS)).findings)


def places(findings: list[Finding]) -> list[tuple[str, int | None, list[int | None]]]:
    """Chain and position of each rule, and of the rules to blame."""
    return [
        (one.place[2], one.rule.position if one.rule else None, [rule.position for rule in one.because])
        for one in findings
    ]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("-A INPUT -p tcp -j ACCEPT\n-A INPUT -p tcp --dport 22 -j DROP", [("INPUT", 2, [1])]),
        (
            "-A INPUT -s 10.0.0.0/9 -j ACCEPT\n-A INPUT -s 10.128.0.0/9 -j ACCEPT\n-A INPUT -s 10.0.0.0/8 -j DROP",
            [("INPUT", 3, [1, 2])],
        ),
        ("-A INPUT -p tcp -m limit --limit 1/s -j ACCEPT\n-A INPUT -p tcp --dport 22 -j DROP", []),
        ("-A INPUT -i lo -j A\n-A A ! -i lo -j DROP", [("A", 1, [1])]),
        ("-A INPUT -p tcp -j ACCEPT\n-A INPUT -p udp -j ACCEPT", []),
    ],
)
def test_dead(rules: str, expected: list[tuple[str, int | None, list[int | None]]]) -> None:
    """A rule that no packet gets to is found with the rules that cover it; behind a limit it is not dead."""
    assert places(found(saved(rules, "A" if "-A A" in rules else ""), "dead")) == expected


def test_dead_by_the_way_to_its_chain() -> None:
    """A rule that the jump to its chain leaves nothing for is told as such."""
    (one,) = found(saved("-A INPUT -i lo -j A\n-A A ! -i lo -j DROP", "A"), "dead")
    assert one.reason == "the way to its chain excludes it"


def test_dead_unless() -> None:
    """A rule that packets only get to while a limit has run out is as certain as that."""
    rules = "-A INPUT -j A\n-A A -m limit --limit 1/s -j RETURN\n-A A -j DROP\n-A INPUT -p tcp -j ACCEPT"
    (one,) = [one for one in found(saved(rules, "A"), "dead") if one.rule and one.rule.chain == "INPUT"]
    assert one.certainty == "unless -m limit --limit 1/s"


def test_dead_with_a_counter() -> None:
    """A rule that is dead although its counter says otherwise is told with what the counter says."""
    rules = "[9:99] -A INPUT -p tcp -j ACCEPT\n[3:30] -A INPUT -p tcp --dport 22 -j DROP"
    (one,) = found(saved(rules), "dead")
    assert "its counter says 3 packets" in one.reason


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("-A INPUT -s 10.0.0.0/8 -j DROP\n-A INPUT -p tcp -j DROP\n-A INPUT -j ACCEPT", []),
        ("-A INPUT -p tcp --dport 22 -j ACCEPT\n-A INPUT -p tcp -j ACCEPT", [("INPUT", 1, [2])]),
        ("-A INPUT -p tcp --dport 22 -j ACCEPT\n-A INPUT -p udp -j DROP", [("INPUT", 2, [])]),
        ("-A INPUT -p tcp --dport 22 -j LOG\n-A INPUT -p tcp", []),
    ],
)
def test_redundant(rules: str, expected: list[tuple[str, int | None, list[int | None]]]) -> None:
    """What packets match but could go is found with what decides the same; logging and counting are not in vain."""
    assert places(found(saved(rules), "redundant")) == expected


def test_policy() -> None:
    """A policy that no packet comes to is found with the rule that takes all that is left."""
    rules = "-A INPUT -p tcp -j ACCEPT\n-A INPUT -j REJECT"
    assert places(found(saved(rules), "policy")) == [("INPUT", None, [2])]


def test_unused_chain() -> None:
    """A chain that no way leads to is one finding, also behind another such, and its rules are none besides."""
    rules = "-A A -j B\n-A B -j DROP\n-A B -j ACCEPT\n-A INPUT -j C\n-A C -j ACCEPT"
    findings = found(saved(rules, "A B C"), "dead", "unused-chain")
    assert [(one.kind, one.place[2], one.numbers) for one in findings] == [
        ("unused-chain", "A", {"rules": 1}), ("unused-chain", "B", {"rules": 2}),
    ]  # fmt: skip


NFT = """{"nftables": [
    {"table": {"family": "inet", "name": "t", "handle": 1}},
    {"set": {"family": "inet", "name": "used", "table": "t", "type": "ipv4_addr", "handle": 2,
             "elem": ["10.0.0.1"]}},
    {"set": {"family": "inet", "name": "idle", "table": "t", "type": "ipv4_addr", "handle": 3,
             "elem": ["10.0.0.1", "10.0.0.2"]}},
    {"chain": {"family": "inet", "table": "t", "name": "in", "handle": 4, "type": "filter", "hook": "input",
               "prio": 0, "policy": "accept"}},
    {"rule": {"family": "inet", "table": "t", "chain": "in", "handle": 5, "expr": [
        {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "@used"}},
        {"drop": null}]}}
]}"""


def test_unused_set() -> None:
    """A named set that no rule refers to is found."""
    ruleset = Ruleset.parse(NFT)
    assert [one.name for one in ruleset.sets] == ["used", "idle"]
    (one,) = audit(ruleset, ("unused-set",)).findings
    assert (one.place, one.numbers) == (("inet", "t", "idle"), {"elements": 2})


def test_a_set_of_another_table() -> None:
    """A set is used only if a rule of its own table refers to it."""
    ruleset = Ruleset.parse(NFT)
    other = NamedSet("ip", "t", "used", "set", "ipv4_addr", (), 0, "set used { }")
    both = Ruleset(ruleset.chains, (*ruleset.sets, other))
    assert [one.place for one in audit(both, ("unused-set",)).findings] == [("inet", "t", "idle"), ("ip", "t", "used")]


def test_unhit() -> None:
    """Rules that can be hit and were not are told with a packet that hits them, dead ones are not."""
    rules = """
[5:50] -A INPUT -p tcp -j ACCEPT
[0:0] -A INPUT -p tcp --dport 22 -j DROP
[0:0] -A INPUT -p udp --dport 53 -m limit --limit 1/s -j ACCEPT
[2:20] -A INPUT -j DROP"""
    ruleset = Ruleset.parse(saved(rules), family="ip")
    (one,) = audit(ruleset, ("unhit",), counted="since noon").findings
    assert one.rule is not None
    assert (one.rule.position, one.numbers, one.asked) == (
        3,
        {"counted": "since noon"},
        (("-m limit --limit 1/s", True),),
    )
    assert one.witness is not None
    deciding = replay(ruleset, one.witness).step
    assert deciding is not None
    assert deciding.rule is one.rule


@pytest.mark.parametrize(
    ("rules", "note"),
    [("-A INPUT -p tcp -j ACCEPT", "no rule has a counter"), ("[0:0] -A INPUT -j ACCEPT", "all counters are zero")],
)
def test_no_counters(rules: str, note: str) -> None:
    """Without counters, or with none that ever counted, nothing is said of rules never hit, and that is said."""
    answer = audit(Ruleset.parse(saved(rules), family="ip"), ("unhit",))
    assert answer.findings == ()
    assert [note in line for line in answer.notes] == [True]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("-A INPUT -s 10.0.0.0/8 -j DROP\n-A INPUT -p tcp --dport 22 -j ACCEPT", [("INPUT", 1, [2])]),
        ("-A INPUT -s 10.0.0.0/8 -p tcp -j ACCEPT\n-A INPUT -s 10.0.0.0/8 -j DROP", []),
        ("-A INPUT -p udp -j DROP\n-A INPUT -p tcp --dport 22 -j ACCEPT", []),
        (
            "-A INPUT -m conntrack --ctstate INVALID -j DROP\n-A INPUT -p tcp --dport 1:9 -j ACCEPT\n"
            "-A INPUT -p tcp --sport 5 -j DROP\n-A INPUT -p tcp --sport 6 -j DROP",
            [("INPUT", 2, [3, 4]), ("INPUT", 1, [2])],
        ),
        ("-A INPUT -p tcp -m multiport --dports 1,5 -j ACCEPT\n-A INPUT -p tcp --dport 1 -j DROP", []),
        (
            "-A INPUT -p tcp -m multiport --dports 1,5 -j ACCEPT\n-A INPUT -p tcp -m multiport --dports 5,7 -j DROP",
            [("INPUT", 1, [2])],
        ),
    ],
)
def test_order(rules: str, expected: list[tuple[str, int | None, list[int | None]]]) -> None:
    """Rules of opposite verdicts that overlap are found, unless one is inside the other; those of states are last."""
    findings = found(saved(rules), "order")
    assert places(findings) == expected
    assert all(one.witness is not None for one in findings)


def test_summary() -> None:
    """Rules that are understood are counted, and all others by what they ask."""
    rules = "-A INPUT -m limit --limit 1/s -j ACCEPT\n-A INPUT -m string --string x --algo bm -j DROP\n-A INPUT -j DROP"
    summary = audit(Ruleset.parse(saved(rules), family="ip"), ()).summary
    assert (summary.rules, summary.chains, summary.exact) == (3, 3, 1)
    assert dict(summary.opaque) == {"limit": 1, "string": 1}


def test_findings_stand_in_one_order() -> None:
    """Findings come by kind, and the same ruleset has the same ones each time."""
    rules = "[1:9] -A INPUT -p tcp -j ACCEPT\n[0:0] -A INPUT -p tcp -j DROP\n[0:0] -A INPUT -j DROP\n[0:0] -A A -j DROP"
    kinds = [one.kind for one in found(saved(rules, "A"))]
    assert kinds == sorted(kinds, key=list(KINDS).index)
    assert {"dead", "policy", "unused-chain", "unhit"} <= set(kinds)
    assert [one.reason for one in found(saved(rules, "A"))] == [one.reason for one in found(saved(rules, "A"))]


def test_many_rules() -> None:
    """Among thousands of rules redundant ones are only looked for if that is asked for, and that is said."""
    rules = "-A INPUT -s 10.0.0.1 -j DROP\n" * 3001
    answer = audit(Ruleset.parse(saved(rules), family="ip"), ("redundant",), slow=False)
    assert answer.findings == ()
    assert [line.startswith("redundant: not looked for") for line in answer.notes] == [True]
