"""Walking a packet through a ruleset."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import pairwise

import pytest

from conntracker.rules.fields import CT_STATES, ROUTE_TYPES
from conntracker.rules.host import Host, Route
from conntracker.rules.intervals import single
from conntracker.rules.packets import Packet
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.terms import Assign, In, Nat, Verdict
from conntracker.rules.walk import Answer, walk
from support.plain_rules import chain

FILTER = """*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:web - [0:0]
:limited - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 80 -j web
-A INPUT -p udp -g limited
-A INPUT -p icmp -j REJECT --reject-with icmp-port-unreachable
-A web -s 10.0.0.0/8 -j RETURN
-A web ! -s 192.168.0.0/16 -j DROP
-A web -j ACCEPT
-A limited -m limit --limit 5/sec -j ACCEPT
-A limited -d 10.9.9.9/32 -j DROP
COMMIT
"""


def number(text: str) -> int:
    """An address as a number."""
    return int(ip_address(text))


def packet(**fields: int | str | None) -> Packet:
    """A TCP packet of a new flow from 10.0.0.5 to 10.1.1.1, port 80, by eth0, and what is changed of it."""
    usual: Packet = {
        "family": 4, "saddr": number("10.0.0.5"), "daddr": number("10.1.1.1"), "protocol": 6, "sport": 40000,
        "dport": 80, "tcp_flags": 2, "ct_state": CT_STATES.index("new"), "ct_status": 0, "ct_direction": 0,
        "ct_mark": 0, "mark": 0, "fragment": 0, "iif": "eth0",
    }  # fmt: skip
    return {name: value for name, value in (usual | fields).items() if value != "unknown"}


def said(answer: Answer) -> list[str]:
    """Each step of the only outcome: `chain position verdict`, `chain policy verdict`."""
    (outcome,) = answer.outcomes
    return [
        f"{step.chain} {step.type if step.rule is None else step.rule.position} {step.verdict}"
        for step in outcome.path.steps
    ]


@pytest.mark.parametrize(
    ("changed", "steps", "verdict"),
    [
        ({}, ["INPUT 3 jump", "web 1 return", "INPUT policy drop"], "drop"),
        ({"saddr": number("192.168.3.4")}, ["INPUT 3 jump", "web 3 accept"], "accept"),
        ({"saddr": number("8.8.8.8")}, ["INPUT 3 jump", "web 2 drop"], "drop"),
        ({"iif": "lo"}, ["INPUT 1 accept"], "accept"),
        ({"ct_state": 1}, ["INPUT 2 accept"], "accept"),
        ({"protocol": 1, "icmp_type": 8, "icmp_code": 0}, ["INPUT 5 reject"], "reject"),
        ({"dport": 81}, ["INPUT policy drop"], "drop"),
    ],
)
def test_a_packet_takes_the_steps_that_the_kernel_takes(
    changed: dict[str, int | str | None], steps: list[str], verdict: str
) -> None:
    """Rules that match are steps, in order, and so are the ends of user chains and policies."""
    answer = walk(Ruleset.parse(FILTER), packet(**changed), "input")
    assert (said(answer), answer.verdict) == (steps, verdict)


def test_a_limit_makes_two_outcomes() -> None:
    """Where a limit decides, both answers are given, and the verdict is undecided if they differ."""
    answer = walk(Ruleset.parse(FILTER), packet(protocol=17), "input")
    assert answer.verdict == "undecided"
    assert "limit" in answer.undecided_by[0]
    found = {one.path.verdict: [item.value for item in one.assumed] for one in answer.outcomes}
    assert found == {"accept": [True], "drop": [False]}


def test_only_questions_that_matter_are_named() -> None:
    """A question whose answers lead to the same verdicts is not what the verdict hangs on."""
    text = FILTER.replace("-A web -j ACCEPT", "-A web -m string --string x --algo bm -j LOG\n-A web -j ACCEPT")
    answer = walk(Ruleset.parse(text), packet(saddr=number("192.168.3.4"), dport="unknown"), "input")
    assert answer.verdict == "undecided"
    assert answer.undecided_by == ("the packet's destination port",)


def test_a_limit_that_changes_nothing_leaves_the_verdict_decided() -> None:
    """If all outcomes come to the same verdict, it is that."""
    text = FILTER.replace("-m limit --limit 5/sec -j ACCEPT", "-m limit --limit 5/sec -j DROP")
    assert walk(Ruleset.parse(text), packet(protocol=17), "input").verdict == "drop"


def test_a_field_that_is_not_known_is_tried_both_ways_and_consistently() -> None:
    """Without a source, it is in one network, the other, or neither, and never in two."""
    answer = walk(Ruleset.parse(FILTER), packet(saddr="unknown"), "input")
    assert answer.verdict == "undecided"
    paths = {tuple(one.path.steps[-1].chain for one in [outcome]) for outcome in answer.outcomes}
    assert len(answer.outcomes) == 3
    assert {outcome.path.verdict for outcome in answer.outcomes} == {"accept", "drop"}
    assert paths == {("INPUT",), ("web",)}


def test_an_interface_that_is_not_known_has_one_name() -> None:
    """Nobody is eth0 and yet nothing that begins with eth."""
    text = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i eth+ -j RETURN\n-A INPUT -i wlan0 -j RETURN\n{}COMMIT\n"
    asked = packet(iif="unknown")
    assert walk(Ruleset.parse(text.format("-A INPUT -i eth0 -j DROP\n")), asked, "input").verdict == "accept"
    assert walk(Ruleset.parse(text.format("-A INPUT -i wlan+ -j DROP\n")), asked, "input").verdict == "undecided"


def test_an_address_that_a_rule_sets_has_its_own_type() -> None:
    """`ip daddr set` makes a packet one for the host, as far as rules behind it ask (fib and addrtype look it up)."""
    rules = (
        chain("pre", (Assign("daddr", number("10.1.1.1"), 0xFFFFFFFF),), hook="prerouting"),
        chain("in", (In("daddr_type", single(ROUTE_TYPES.index("local"))), Verdict("drop")), hook="input"),
    )
    asked = packet(daddr=number("8.8.8.8"))
    assert walk(Ruleset(rules), asked, "input", host=HOST).verdict == "drop"


def test_netmap_onto_one_address_needs_not_know_the_old_one() -> None:
    """All bits are those of the new address."""
    rules = (
        chain("nat", (Nat("netmap", (7, 7), None, ""),), hook="prerouting", kind="nat"),
        chain("in", (In("daddr", single(7)), Verdict("drop")), hook="input"),
    )
    assert walk(Ruleset(rules), packet(daddr="unknown"), "input").verdict == "drop"


def test_a_rule_passed_over_tells_the_match_that_failed() -> None:
    """Each rule passed over is there with its first term that did not hold."""
    (outcome,) = walk(Ruleset.parse(FILTER), packet(saddr=number("8.8.8.8")), "input", passed=True).outcomes
    assert [(one.rule.chain, one.rule.position) for one in outcome.passed] == [("INPUT", 1), ("INPUT", 2), ("web", 1)]
    assert getattr(outcome.passed[2].term, "field", None) == "saddr"


NAT = """*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -i eth0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 192.168.1.9:8080
-A POSTROUTING -o eth1 -j MASQUERADE
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -d 192.168.1.9/32 -o eth1 -p tcp -m tcp --dport 8080 -j ACCEPT
COMMIT
"""
HOST = Host(
    local={4: ((number("10.1.1.1"), number("10.1.1.1")),)},
    routes={4: (Route(number("192.168.1.0"), number("192.168.1.255"), "eth1"), Route(0, 2**32 - 1, "eth0"))},
    primary={(4, "eth1"): number("192.168.1.1")},
    by_mark=False,
)


def test_nat_changes_the_packet_for_what_follows() -> None:
    """A destination that is translated is routed and filtered as it is then; the source leaves as ours."""
    answer = walk(Ruleset.parse(NAT), packet(), None, host=HOST)
    (outcome,) = answer.outcomes
    assert said(answer) == ["PREROUTING 1 accept", "FORWARD 1 accept", "POSTROUTING 1 accept"]
    left = outcome.packet
    assert (left["daddr"], left["dport"], left["oif"]) == (number("192.168.1.9"), 8080, "eth1")
    assert left["saddr"] == number("192.168.1.1")
    deciding = outcome.path.deciding
    assert deciding is not None
    assert deciding.chain == "FORWARD"


def test_nat_is_asked_once_a_flow() -> None:
    """A packet of an established flow passes no chain of nat."""
    answer = walk(Ruleset.parse(NAT), packet(ct_state=1), "forward")
    assert "PREROUTING" not in {step.chain for one in answer.outcomes for step in one.path.steps}


MARKS = """*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -s 10.0.0.0/24 -j CT --notrack
-A PREROUTING -m conntrack --ctstate INVALID -j MARK --set-xmark 0x8/0x8
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -j MARK --set-xmark 0x1/0x3
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m mark --mark 0x9/0xf -j DROP
-A INPUT -m conntrack --ctstate UNTRACKED -j REJECT --reject-with icmp-port-unreachable
COMMIT
"""


def test_marks_and_states_are_what_rules_made_of_them() -> None:
    """In front of connection tracking there is no state but untracked, and a mark stays with the packet."""
    untracked = walk(Ruleset.parse(MARKS), packet(), "input")
    assert said(untracked)[0] == "PREROUTING 1 continue"
    assert untracked.verdict == "reject"
    tracked = walk(Ruleset.parse(MARKS), packet(saddr=number("10.5.0.1")), "input")
    assert said(tracked)[0] == "PREROUTING 2 continue"
    assert tracked.verdict == "drop"


def test_neighbour_discovery_is_never_tracked() -> None:
    """ICMPv6 types of neighbour discovery are untracked, whatever was said of their state."""
    text = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m conntrack --ctstate UNTRACKED -j DROP\nCOMMIT\n"
    ruleset = Ruleset.parse(text, family="ip6")
    asked = {"family": 6, "saddr": 1, "daddr": number("ff02::1"), "protocol": 58, "icmp_type": 135, "icmp_code": 0}
    assert walk(ruleset, {**asked, "ct_state": 3, "iif": "eth0", "fragment": 0}, "input").verdict == "drop"
    assert walk(ruleset, {**asked, "icmp_type": 128, "ct_state": 3, "iif": "eth0", "fragment": 0}, "input").verdict == (
        "accept"
    )


def test_addresses_have_types_where_the_host_is_known() -> None:
    """addrtype is answered from the host's addresses, and for multicast always."""
    text = (
        "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m addrtype --dst-type LOCAL -j REJECT\n"
        "-A INPUT -m addrtype --dst-type MULTICAST -j DROP\nCOMMIT\n"
    )
    ruleset = Ruleset.parse(text)
    assert walk(ruleset, packet(), "input", host=HOST).verdict == "reject"
    assert walk(ruleset, packet(daddr=number("224.0.0.5")), "input").verdict == "drop"
    unknown = walk(ruleset, packet(daddr=number("10.1.1.7")), "input")
    assert unknown.verdict == "undecided"
    assert ROUTE_TYPES[HOST.address_type(4, number("10.1.1.7"))] == "unicast"


def test_a_packet_through_loopback_comes_in_again() -> None:
    """What goes out by lo passes output, postrouting, prerouting and input, and its flow is known there."""
    text = (
        "*filter\n:INPUT DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n-A INPUT -i lo -p tcp -m conntrack --ctstate NEW -j ACCEPT\n"
        "COMMIT\n*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n"
    )
    answer = walk(Ruleset.parse(text), packet(oif="lo"), "output")
    assert said(answer) == [*["OUTPUT policy accept"] * 2, "PREROUTING policy accept", "INPUT 1 accept"]


@pytest.mark.parametrize(
    ("source", "interface", "verdict"),
    [
        ("192.168.1.7", "eth1", "accept"), ("192.168.1.7", "eth0", "drop"), ("8.8.8.8", "eth0", "accept"),
        ("8.8.8.8", "eth1", "drop"), ("10.1.1.1", "eth0", "drop"), ("10.1.1.1", "lo", "accept"),
    ],
)  # fmt: skip
def test_the_reverse_path_is_known_where_routes_are(source: str, interface: str, verdict: str) -> None:
    """A packet whose source is routed out of another interface has no reverse path, nor has one from ourselves."""
    text = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -m rpfilter --invert -j DROP\nCOMMIT\n"
    asked = packet(saddr=number(source), iif=interface)
    assert walk(Ruleset.parse(text), asked, "input", host=HOST).verdict == verdict


def test_what_the_kernel_changes_on_the_way_is_seen() -> None:
    """A packet that is forwarded has one hop less, and one that DNAT changed has the status bit for it."""
    mangle = "*mangle\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m ttl --ttl-eq 63 -j MARK --set-mark 0x7\nCOMMIT\n*filter"
    text = NAT.replace("*filter", mangle)
    text = text.replace("-A FORWARD -d", "-A FORWARD -m mark --mark 0x7 -m conntrack --ctstate DNAT -d")
    assert walk(Ruleset.parse(text), packet(ttl=64), None, host=HOST).verdict == "accept"
    assert walk(Ruleset.parse(text), packet(ttl=63), None, host=HOST).verdict == "drop"


def test_a_limit_that_is_asked_twice_may_answer_twice() -> None:
    """A packet that comes by the same limit again is not answered as before."""
    text = (
        "*filter\n:INPUT ACCEPT [0:0]\n:c - [0:0]\n-A INPUT -j c\n-A INPUT -j c\n"
        "-A c -m limit --limit 5/sec -m mark --mark 0x1 -j DROP\n-A c -m mark ! --mark 0x1 -j MARK --set-mark 1\n"
        "COMMIT\n"
    )
    answer = walk(Ruleset.parse(text), packet(), "input")
    assert len({tuple(item.value for item in one.assumed) for one in answer.outcomes}) == 4


@pytest.mark.parametrize(("host", "verdict"), [(HOST, "drop"), (Host(HOST.local, by_mark=True), "undecided")])
def test_a_mark_may_send_a_packet_another_way(host: Host, verdict: str) -> None:
    """Behind a mark set in mangle OUTPUT the way out is not known, unless routing asks for no marks."""
    text = (
        "*mangle\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n-A OUTPUT -p tcp -j MARK --set-mark 7\n"
        "-A POSTROUTING -o eth0 -j DROP\nCOMMIT\n"
    )
    assert walk(Ruleset.parse(text), packet(iif="", oif="eth0"), "output", host=host).verdict == verdict


def test_chains_may_be_deep_but_not_lead_back() -> None:
    """A hundred chains inside each other are walked; one that leads back to itself is a ValueError that names it."""
    names = [f"c{number}" for number in range(100)]
    lines = [f":{name} - [0:0]" for name in names] + ["-A INPUT -j c0"]
    lines += [f"-A {one} -j {other}" for one, other in pairwise(names)]
    text = "\n".join(["*filter", ":INPUT ACCEPT [0:0]", *lines, "-A c99 -j {}", "COMMIT", ""])
    assert walk(Ruleset.parse(text.format("DROP")), packet(), "input").verdict == "drop"
    with pytest.raises(ValueError, match="chain c7 of table filter leads back to itself"):
        walk(Ruleset.parse(text.format("c7")), packet(), "input")


def test_a_zone_has_other_flows() -> None:
    """In another zone a packet may be the first of a flow, though it is not where it was looked at: NAT is asked."""
    text = (
        "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j CT --zone 7\nCOMMIT\n"
        "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j ACCEPT\nCOMMIT\n"
    )
    outcomes = walk(Ruleset.parse(text), packet(ct_state=3, first=0), "input").outcomes
    assert {any(step.table == "nat" for step in one.path.steps) for one in outcomes} == {True, False}
    plain = walk(
        Ruleset.parse(text.replace("-A PREROUTING -j CT --zone 7\n", "")), packet(ct_state=3, first=0), "input"
    )
    assert all(step.table != "nat" for one in plain.outcomes for step in one.path.steps)


def test_hops_at_routing_are_told() -> None:
    """An outcome tells how many hops a packet had left when routing sent it on, with what rules made of them."""
    text = "*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -j TTL --ttl-set 9\nCOMMIT\n"
    asked = [packet(ttl=1, oif="eth1"), packet(ttl=1, oif="eth1", protocol=17)]
    assert [walk(Ruleset.parse(text), one, "forward").outcomes[0].hops for one in asked] == [9, 1]
    assert walk(Ruleset.parse(text), packet(ttl=1), "input").outcomes[0].hops is None


@pytest.mark.parametrize("match", ["pkttype --pkt-type unicast", "conntrack --ctstatus CONFIRMED", "rpfilter"])
def test_what_loopback_makes_of_a_packet(match: str) -> None:
    """What the host sends to itself comes in as a packet for it, on the way back, of a flow that is confirmed."""
    text = f"*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -i lo -m {match} -j DROP\nCOMMIT\n"
    sent = packet(iif="", oif="lo", ct_state=3, ct_status=0, reverse_path=None)
    assert walk(Ruleset.parse(text), sent, "output").verdict == "drop"


def test_the_last_address_of_the_loopback_network_is_its_broadcast() -> None:
    """All of 127.0.0.0/8 is the host's own, but for the last address, which is a broadcast's."""
    kinds = [ROUTE_TYPES[HOST.address_type(4, (128 << 24) - last)] for last in (1, 2)]
    assert kinds == ["broadcast", "local"]
