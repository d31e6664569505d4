"""Chosen packets: each rule that can match has a witness, and each border of it packets on both sides."""

from __future__ import annotations

import random

import pytest

from conntracker.lab.trials.borders import around, choose, way_of
from conntracker.lab.trials.routing import stopped
from conntracker.lab.trials.space import Space, of_local_scope
from conntracker.rules.fields import CT_STATES, PACKET_TYPES
from conntracker.rules.host import Host
from conntracker.rules.iptables import parse_save
from conntracker.rules.packets import Packet
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.walk import walk

HERE = {"eth0": {4: 0xC6120101, 6: 0x20010DB8 << 96 | 1}, "eth1": {4: 0xC6120201, 6: 0x20010DB8 << 96 | 2}}
SPACE = Space(
    HERE, Host({version: ((HERE["eth0"][version], HERE["eth0"][version]),) for version in (4, 6)}, {}, None, {})
)
SAVE = """*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:web - [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -p tcp -m tcp --dport 20:30 -j REJECT
-A INPUT -p tcp -m tcp --dport 22 -j DROP
-A FORWARD -i eth0 -s 10.0.0.0/8 -p tcp -m multiport --dports 80,443 -j web
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A OUTPUT -m owner --uid-owner 1000 -j DROP
-A web ! -d 10.1.0.0/16 -j ACCEPT
COMMIT
"""
RULESET = Ruleset(parse_save(SAVE, family="ip", kind="iptables-legacy"))
PACKETS = choose(RULESET, SPACE, 400, seed=1)


def matched(packet: Packet) -> set[tuple[str, int]]:
    """(chain, position) of the rules in the packet's steps."""
    steps = walk(RULESET, packet, way_of(packet), host=SPACE.host).outcomes[0].path.steps
    return {(step.chain, step.rule.position or 0) for step in steps if step.rule is not None}


def test_every_live_rule_has_a_witness() -> None:
    """Each rule that some packet matches is matched by one; those left over are the dead ones."""
    assert [(rule.chain, rule.position) for rule in PACKETS.without] == [("INPUT", 3)]
    found = set().union(*(matched(packet) for packet in PACKETS.packets))
    assert len(found) == 6


@pytest.mark.parametrize("port", [19, 20, 21, 22, 23, 30, 31])
def test_ports_on_both_sides_of_each_end(port: int) -> None:
    """The ends of a rule's ports are tried just inside and just outside."""
    tried = {packet["dport"] for packet in PACKETS.packets if packet["way"] == "input" and packet["protocol"] == 6}
    assert port in tried


def test_prefixes_and_interfaces_are_left_by_one() -> None:
    """A prefix is left at its ends and by its last bit, an interface for another."""
    tried = [packet for packet in PACKETS.packets if packet["way"] == "forward"]
    assert {0x09FFFFFF, 0x0A000000, 0x0AFFFFFF, 0x0B000000} <= {packet["saddr"] for packet in tried}
    assert {"eth0", "eth1"} <= {packet["iif"] for packet in tried}


def test_all_packets_differ() -> None:
    """No packet is chosen twice, and no more than were asked for."""
    assert len({tuple(packet.values()) for packet in PACKETS.packets}) == len(PACKETS.packets) <= 400


def test_same_seed_same_packets() -> None:
    """A seed always gives the same packets."""
    assert choose(RULESET, SPACE, 400, seed=1).packets == PACKETS.packets


def packet(**fields: int | str | None) -> Packet:
    """An ordinary packet that is forwarded, with some fields changed."""
    made = SPACE.settled(SPACE.blank(4, "forward", random.Random(1)) | fields)  # noqa: S311
    return made | {"daddr_type": SPACE.host.address_type(4, int(made["daddr"] or 0))}


@pytest.mark.parametrize(
    ("fields", "hook"),
    [
        ({}, None),
        ({"ttl": 1}, "forward"),
        ({"ttl": 2}, None),
        ({"packet_type": PACKET_TYPES.index("broadcast")}, "forward"),
        ({"packet_type": PACKET_TYPES.index("otherhost")}, "prerouting"),
        ({"saddr": 0xE0000001}, "forward"),
        ({"way": "input", "oif": "", "ttl": 1}, None),
        ({"way": "input", "oif": "", "saddr": 0xFFFFFFFF}, "input"),
    ],
)
def test_routing_drops(fields: Packet, hook: str | None) -> None:
    """What the kernel drops without asking rules is told before, with the first hook that does not see it."""
    made = packet(**fields)
    found = stopped(made, made)
    assert (found and found[0]) == hook


@pytest.mark.parametrize(
    ("fields", "absent"),
    [
        ({"protocol": 17}, {"tcp_flags", "icmp_type"}),
        ({"protocol": 1}, {"tcp_flags", "sport", "dport"}),
        ({"fragment": 1}, {"tcp_flags", "sport", "dport"}),
        ({"ct_state": CT_STATES.index("invalid")}, {"ct_status", "ct_direction", "ct_mark"}),
    ],
)
def test_settled_packets_have_only_what_goes_together(fields: Packet, absent: set[str]) -> None:
    """A packet keeps no field that its protocol or its state does not have."""
    made = packet(**fields)
    assert {name for name in absent if made[name] is not None} == set()


def test_impossible_flags_are_invalid() -> None:
    """A first segment with flags that begin no flow is one that connection tracking calls invalid."""
    assert packet(tcp_flags=18)["ct_state"] == CT_STATES.index("invalid")
    assert packet(tcp_flags=2)["ct_state"] == CT_STATES.index("new")


def test_space_names_an_address_of_each_type() -> None:
    """There is an address of each type that packets can have, and it is of that type."""
    for kind in (1, 2, 3, 5):
        found = SPACE.typed(4, kind, random.Random(1))  # noqa: S311
        assert found is not None
        if kind != 2:
            assert SPACE.host.address_type(4, found) == kind
    assert SPACE.typed(6, 3, random.Random(1)) is None  # noqa: S311


def test_a_term_that_nothing_holds_is_tried() -> None:
    """Where no packet matches a rule, one is chosen that only one term keeps from it: it would if that were lost."""
    save = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -p tcp --dport 22 -m mark --mark 0x1 -j DROP\nCOMMIT\n"
    ruleset = Ruleset(parse_save(save, family="ip", kind="iptables-legacy"))
    for packets in (choose(ruleset, SPACE, 60, seed=1).packets, around(ruleset, 0, 0, SPACE, sendable=lambda _: True)):
        assert any(one["dport"] == 22 and not one["mark"] and one["way"] == "forward" for one in packets)


def test_packets_of_the_host_to_itself() -> None:
    """A rule for what comes in by lo is tried with packets that the host sends to itself."""
    save = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i lo -p udp -j DROP\nCOMMIT\n"
    ruleset = Ruleset(parse_save(save, family="ip", kind="iptables-legacy"))
    packets = choose(ruleset, SPACE, 60, seed=1).packets
    assert any((one["way"], one["oif"], one["protocol"]) == ("output", "lo", 17) for one in packets)


def test_routes_while_a_packet_is_sent() -> None:
    """All that the host sends leaves by the interface that was asked for, but for the networks of the others."""
    packet: Packet = {"way": "output", "oif": "eth0", "family": 4}
    host = SPACE.host_of(packet)
    assert (host.out_interface(4, 0x08080808), host.out_interface(4, 0xC6120205)) == ("eth0", "eth1")
    assert SPACE.host_of(packet | {"way": "forward"}) is SPACE.host


@pytest.mark.parametrize(
    ("address", "local"),
    [(0xFF02 << 112 | 1, True), (0xFF0E << 112, False), (0xFEFF << 112, True), (0x2001 << 112, False)],
)
def test_scopes(address: int, local: bool) -> None:
    """Link-local and site-local destinations of IPv6 are of local scope, be they multicast or not."""
    assert of_local_scope({"family": 6, "daddr": address}) == local
