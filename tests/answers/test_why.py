from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from conntracker.answers.blame import Blame
from conntracker.answers.ways import Way
from conntracker.answers.why import packet_of, way_of
from conntracker.rules.fields import CT_STATES
from conntracker.rules.host import Host
from conntracker.steps import Packet, Path
from support.columns import NOON
from support.traces import ACCEPTED, icmp, step, tcp

HOST = Host(local={4: ((int(ip_address("10.0.0.1")),) * 2,), 6: ()})
FLOW: dict[str, Any] = {
    "src": "10.0.0.1", "dst": "10.0.0.2", "proto": "tcp", "sport": 40000, "dport": 80, "icmp_type": None,
    "icmp_code": None,
}  # fmt: skip


def way(packet: Packet, path: Path = ACCEPTED, direction: str = "original", **more: Any) -> Way:
    """Packets that were traced, from eth0 to eth1."""
    interfaces = {"in_interface": "eth0", "out_interface": "eth1"} | more
    return Way(direction, True, 1, NOON, NOON, 0, packet, packet, path=path, **interfaces)


def of_flow(*ways: Way, **changed: object) -> Blame:
    """A flow, and what was traced of it."""
    return Blame("gate", FLOW | changed, None, ways[0] if ways else None, ways)


def of_packet(packet: Packet, *ways: Way) -> Blame:
    """Packets without a flow."""
    return Blame("gate", None, packet, ways[0] if ways else None, ways)


def test_the_first_packet_of_a_flow() -> None:
    """It has the flow's tuple, is in state new and a SYN, and came in where it was traced."""
    found = packet_of(of_flow(way(tcp("10.0.0.1", 40000, "10.0.0.2", 80))))
    assert found == {
        "family": 4, "saddr": 0x0A000001, "daddr": 0x0A000002, "protocol": 6, "sport": 40000, "dport": 80,
        "icmp_type": None, "icmp_code": None, "ct_state": CT_STATES.index("new"), "ct_status": 0, "ct_direction": 0,
        "ct_mark": 0, "mark": 0, "fragment": 0, "tcp_flags": 2, "iif": "eth0", "oif": "eth1",
    }  # fmt: skip


def test_a_flow_that_was_not_traced() -> None:
    """Its interfaces are not known, and replies tell nothing of its first packet."""
    reply = way(tcp("10.0.0.2", 80, "10.0.0.1", 40000), direction="reply")
    for one in (of_flow(), of_flow(reply)):
        assert {"iif", "oif"}.isdisjoint(packet_of(one))


def test_packets_without_a_flow() -> None:
    """They are asked about as they were traced."""
    packet = icmp("2001:db8::1", "2001:db8::2", 128)
    found = packet_of(of_packet(packet, way(packet, out_interface=None)))
    assert (found["family"], found["protocol"], found["icmp_type"], found["iif"]) == (6, 58, 128, "eth0")
    assert "oif" not in found
    assert "tcp_flags" not in found


@pytest.mark.parametrize(
    ("packet", "known"),
    [
        (icmp("10.0.0.1", "10.0.0.2", 8), True),
        (icmp("10.0.0.1", "10.0.0.2", 3, 1), False),
        (icmp("10.0.0.1", "10.0.0.2", 11), False),
        (icmp("2001:db8::1", "2001:db8::2", 3), False),
        (icmp("2001:db8::1", "2001:db8::2", 136), True),
    ],
)
def test_errors_are_never_new(packet: Packet, known: bool) -> None:
    """The state of an ICMP error that no flow is known for is left open."""
    assert ("ct_state" in packet_of(of_packet(packet))) is known


def test_neither_flow_nor_packet() -> None:
    """What is neither cannot be asked about."""
    with pytest.raises(ValueError, match="neither a flow nor a packet"):
        packet_of(Blame("gate", None, None, None, ()))


PACKET = tcp("10.0.0.9", 40000, "10.0.0.2", 80)
INPUT = Path((step("input", "ip filter INPUT", "accept"),), "accept", 0, "input")
EARLY = Path((step("prerouting", "ip raw PREROUTING", "drop"),), "drop", 0, "prerouting")
OUTPUT = Path((step("output", "ip filter OUTPUT", "accept"),), "accept", 0, "postrouting")


@pytest.mark.parametrize(
    ("path", "more", "wanted"),
    [
        (ACCEPTED, {}, "forward"),
        (INPUT, {}, "input"),
        (EARLY, {}, None),
        (OUTPUT, {"in_interface": None}, "output"),
    ],
)
def test_the_way_of_what_was_traced(path: Path, more: dict[str, Any], wanted: str | None) -> None:
    """It is that of the trace; where that ended before routing, the destination decides."""
    one = of_packet(PACKET, way(PACKET, path, **more))
    assert way_of(one, packet_of(one), HOST) == wanted


def test_the_way_of_a_flow_that_was_not_traced() -> None:
    """What has the host's own address as source went out; for others, the destination decides."""
    own, other = of_flow(), of_flow(src="10.0.0.7")
    assert way_of(own, packet_of(own), HOST) == "output"
    assert way_of(own, packet_of(own), None) is None
    assert way_of(other, packet_of(other), HOST) is None
