from __future__ import annotations

import pytest

from conntracker.rules.nft import parse_json
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.solve.dead import ALWAYS, dead, policies_never_reached
from conntracker.rules.solve.equal import Equal, Unequal, equivalent
from support.small_rulesets import forward, saved
from support.solve_fuzz import iptables_ruleset, mutants, packets, unsound_dead, unsound_equal, unsound_witnesses


@pytest.mark.parametrize("seed", range(3))
def test_the_walk_agrees(seed: int) -> None:
    """No packet matches a dead rule, ends otherwise in an equal ruleset, or fails to be the evidence that it is."""
    rules = iptables_ruleset(seed, 6 if seed % 3 == 0 else 4)
    tries = list(packets(rules, 60, seed))
    wrong = unsound_dead(rules, tries) + unsound_witnesses(rules)
    for mutant in mutants(rules, 1, seed):
        wrong += unsound_equal(rules, mutant, tries)
    assert wrong == []


def dead_texts(rules: Ruleset) -> list[str | None]:
    """Of rules that are dead for every outcome of atoms."""
    return [one.rule.text for one in dead(rules) if one.certainty == ALWAYS and one.versions]


def tables(text: str) -> Ruleset:
    """A save of iptables-legacy."""
    return Ruleset.parse(text, family="ip", kind="iptables-legacy")


QUEUED = """*mangle
:FORWARD ACCEPT [0:0]
-A FORWARD -j NFQUEUE --queue-num 0
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -p tcp -j {target}
COMMIT
"""


def test_a_queued_packet_may_go_on() -> None:
    """Behind a queue rules are live, and what they do is compared."""
    rules = tables(QUEUED.format(target="ACCEPT"))
    assert dead_texts(rules) == []
    assert policies_never_reached(rules) == [("legacy", "ip", "mangle", "FORWARD")]
    assert isinstance(equivalent(rules, tables(QUEUED.format(target="DROP"))), Unequal)


REMARKED = """*mangle
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A OUTPUT -p udp -j MARK --set-xmark 0x1/0xffffffff
-A POSTROUTING -p udp -o eth1 -m owner --uid-owner 0 -j LOG
COMMIT
*filter
:OUTPUT ACCEPT [0:0]
-A OUTPUT -o eth1 -j DROP
COMMIT
"""


def test_a_marked_packet_is_routed_again() -> None:
    """Behind a mark of mangle's OUTPUT, a packet may leave by another interface than rules saw before."""
    assert dead_texts(tables(REMARKED)) == []


def test_a_hop_is_taken_off() -> None:
    """Packets that are forwarded have a hop less there than in prerouting, and one at least."""
    rules = tables("*mangle\n:PREROUTING ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n"
                   "-A PREROUTING -m ttl ! --ttl-eq 64 -j DROP\n-A FORWARD -m ttl --ttl-eq 64 -j DROP\n"
                   "-A FORWARD -m ttl --ttl-eq 63 -j DROP\nCOMMIT\n")  # fmt: skip
    assert dead_texts(rules) == ["-A FORWARD -m ttl --ttl-eq 64 -j DROP"]


def test_a_limit_may_answer_otherwise_the_next_time() -> None:
    """A chain with a limit that packets come to twice lets more through than one that they come to once."""
    once, twice = (
        saved(":one\n" + "-A FORWARD -j one\n" * count + "-A one -m limit --limit 1/sec -j ACCEPT") for count in (1, 2)
    )
    assert isinstance(equivalent(once, twice), Unequal)
    assert isinstance(equivalent(twice, twice), Equal)


def test_marks_that_routing_reads_are_compared() -> None:
    """A mark that is set before routing and taken away behind it is a difference."""
    text = "*mangle\n:PREROUTING ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n{rules}COMMIT\n"
    marked = "".join(
        f"-A {chain} -j MARK --set-xmark {mark}/0xffffffff\n"
        for chain, mark in (("PREROUTING", "0x1"), ("FORWARD", "0x0"), ("INPUT", "0x0"))
    )
    plain = marked.replace("0x1/", "0x0/")
    assert isinstance(equivalent(tables(text.format(rules=marked)), tables(text.format(rules=plain))), Unequal)


def test_says_what_it_did_not_compare() -> None:
    """Rulesets that differ in what is not compared are not called equal: it is named."""
    found = equivalent(forward("-p tcp -j TCPMSS --clamp-mss-to-pmtu", policy="ACCEPT"),
                       forward("-p tcp -j LOG", policy="ACCEPT"))  # fmt: skip
    assert not found


def flags_of(*matches: str) -> Ruleset:
    """Rules of nft, as JSON tells them: tests of TCP flags, each accepted."""
    rules = ",".join(
        f'{{"rule": {{"family": "ip", "table": "t", "chain": "c", "handle": {number}, "expr": [{match}, '
        '{"accept": null}]}}'
        for number, match in enumerate(matches, 2)
    )
    return parse_json(
        '{"nftables": [{"table": {"family": "ip", "name": "t", "handle": 1}}, {"chain": {"family": "ip", "table": "t", '
        f'"name": "c", "handle": 1, "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}}}}, {rules}]}}'
    )


_FLAGS = '{"payload": {"protocol": "tcp", "field": "flags"}}'
BIT = f'{{"match": {{"op": "in", "left": {_FLAGS}, "right": "syn"}}}}'
WHOLE = f'{{"match": {{"op": "==", "left": {_FLAGS}, "right": {{"set": ["syn", "ack"]}}}}}}'


def test_knows_flags_asked_by_bit_from_flags_in_a_set() -> None:
    """nft's `tcp flags syn` asks one bit; `tcp flags { syn, ack }` asks for packets with that flag alone."""
    assert [rule.handle for rule in (one.rule for one in dead(flags_of(BIT, WHOLE)))] == []
    alone = WHOLE.replace('["syn", "ack"]', '["syn"]')
    assert [one.rule.handle for one in dead(flags_of(BIT, alone))] == [3]
