from __future__ import annotations

from collections.abc import Callable

import pytest

from conntracker.rules.intervals import Intervals, normal
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.solve.dead import dead, policies_never_reached, witnesses
from conntracker.rules.solve.domain import Witness
from conntracker.rules.solve.names import Interfaces
from conntracker.rules.terms import Atom
from conntracker.rules.walk import walk
from conntracker.steps import Rule
from support.interval_diagram import diagram_dead
from support.small_rulesets import forward, random_forward, saved

# Rules of FORWARD; behind `;` the numbers of those that cover it, or `!` for a rule that asks for what no packet has.
CASES = {
    "a port in a range": """
        -p tcp --dport 20:30 -j ACCEPT
        -p tcp --dport 22 -j DROP ; 1
        -p tcp --dport 30:31 -j DROP
    """,
    "two ranges that touch": """
        -p tcp --dport 20:25 -j ACCEPT
        -p tcp --dport 26:30 -j DROP
        -p tcp --dport 22:28 -j ACCEPT ; 1 2
    """,
    "a limit may not match": """
        -m limit --limit 1/sec -j ACCEPT
        -p tcp -j DROP
        -p tcp --dport 22 -j ACCEPT ; 2
    """,
    "flags asked by mask": """
        -p tcp --tcp-flags SYN,ACK SYN -j ACCEPT
        -p tcp --tcp-flags SYN,ACK,RST SYN -j DROP ; 1
        -p tcp --tcp-flags SYN SYN -j DROP
    """,
    "both sides of an address": """
        -s 10.0.0.0/8 -j ACCEPT
        ! -s 10.0.0.0/8 -j DROP
        -p udp -j ACCEPT ; 1 2
    """,
    "interfaces": """
        -i eth+ -j ACCEPT
        -i eth0 -j DROP ; 1
        ! -i eth+ -j ACCEPT
        -o lo -j DROP ; 1 3
    """,
    "ports are only of whole packets": """
        -p tcp --dport 0:65535 -j ACCEPT
        -p tcp -j DROP
    """,
    "all states": """
        -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT
        -m conntrack --ctstate RELATED,INVALID,UNTRACKED -j DROP
        -p tcp -j ACCEPT ; 1 2
    """,
    "a logged rule is no end": """
        -p tcp -j LOG
        -p tcp -j ACCEPT
        -p tcp --dport 5 -j LOG ; 2
    """,
}


@pytest.mark.parametrize("name", CASES)
def test_finds_dead_rules_and_what_covers_them(name: str) -> None:
    """Dead rules are found, each with the rules that cover it."""
    lines = [line.strip() for line in CASES[name].strip().splitlines()]
    rules = forward("\n".join(line.partition(";")[0] for line in lines))
    expected = {
        number: {int(word) for word in line.partition(";")[2].split()}
        for number, line in enumerate(lines, 1) if ";" in line
    }  # fmt: skip
    found = {one.rule.position: {rule.position for rule in one.because} for one in dead(rules)}
    assert found == expected


def test_tells_what_excludes_itself() -> None:
    """A rule that asks for two ports at once is dead by itself, and names no other."""
    found = dead(forward("-p tcp --dport 5 -m multiport --dports 6,7 -j DROP"))
    assert [one.reason for one in found] == ["its own matches exclude each other"]


def test_tells_unused_chains() -> None:
    """Rules of a chain that nothing leads to are dead for that."""
    found = dead(saved(":one\n-A one -j DROP\n-A INPUT -p tcp -j ACCEPT"))
    assert [(one.rule.chain, one.reason) for one in found] == [("one", "unused chain")]


def test_tells_the_jump_that_excludes() -> None:
    """A rule that the only jump to its chain excludes names the jump."""
    found = dead(saved(":one\n-A FORWARD -p tcp -j one\n-A one -p udp -j DROP\n-A one -p tcp -j DROP"))
    assert [(one.rule.text, one.because[0].text) for one in found] == [
        ("-A one -p udp -j DROP", "-A FORWARD -p tcp -j one")
    ]


def test_goes_through_chains_that_return() -> None:
    """What comes back from a chain is what none of its rules has ended."""
    found = dead(
        saved(""":one
        -A FORWARD -j one
        -A FORWARD -p tcp --dport 22 -j DROP
        -A FORWARD -p tcp --dport 23 -j DROP
        -A one -s 10.0.0.0/8 -j RETURN
        -A one -p tcp --dport 22 -j ACCEPT
        -A one -p tcp --dport 23 -s 10.0.0.0/8 -j DROP""")
    )
    assert [(one.rule.chain, one.rule.position) for one in found] == [("one", 3)]


def test_tells_what_hangs_on_an_atom() -> None:
    """A rule that is only got to if a limit has matched before is dead unless it does."""
    found = dead(
        saved(""":one
        -A FORWARD -j one
        -A FORWARD -p tcp -j ACCEPT
        -A one -m limit --limit 1/sec -j RETURN
        -A one -j DROP""")
    )
    assert [(one.rule.chain, one.rule.position, one.certainty.startswith("unless")) for one in found] == [
        ("FORWARD", 2, True)
    ]


def test_knows_what_nat_changes() -> None:
    """Behind a DNAT the new address is what rules see, and the old one of other packets only."""
    text = """*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -d 198.51.100.1/32 -j DNAT --to-destination 10.0.0.5
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -d 198.51.100.1/32 -m conntrack --ctstate NEW -m conntrack ! --ctstate DNAT -j ACCEPT
-A FORWARD -d 10.0.0.5/32 -j ACCEPT
COMMIT
"""
    rules = Ruleset.parse(text, family="ip", kind="iptables-legacy")
    assert {one.rule.position for one in dead(rules) if one.rule.table == "filter"} == {1}
    found = {rule.position: one for rule, one in witnesses(rules).items() if rule.table == "filter"}
    assert 2 in found


def test_tells_policies_that_nothing_comes_to() -> None:
    """A base chain whose last rule takes everything never comes to its policy."""
    assert [key[3] for key in policies_never_reached(forward("-p tcp -j DROP\n-j ACCEPT"))] == ["FORWARD"]


def _answers(found: Witness) -> Callable[[Atom, Rule], bool | None]:
    return lambda atom, _: found.told(atom)


@pytest.mark.parametrize("seed", range(4))
def test_packets_as_evidence_match(seed: int) -> None:
    """Each witness matches its rule, by a plain walk."""
    rules = random_forward(seed, 14)
    for rule, found in witnesses(rules).items():
        answer = walk(rules, found.packet, found.way, answers=_answers(found))
        assert len(answer.outcomes) == 1
        assert any(step.rule is rule for step in answer.outcomes[0].path.steps)


def _forwarded(name: str, interfaces: Interfaces) -> Intervals | None:
    if name in {"iif", "oif"}:
        return normal([(1, len(interfaces.names) - 1)])
    return {"family": ((4, 4),), "ct_state": ((0, 4),)}.get(name)


@pytest.mark.parametrize("seed", range(8))
def test_a_diagram_finds_the_same(seed: int) -> None:
    """An interval decision diagram finds the same dead rules."""
    rules = random_forward(seed, 18)
    base = next(known for known in rules.chains if known.chain.name == "FORWARD")
    found = {id(one.rule) for one in dead(rules) if one.versions and one.certainty == "always"}
    assert diagram_dead(rules, 4, base, _forwarded) == found
