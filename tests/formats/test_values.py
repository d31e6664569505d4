"""Values and packets in words."""

from __future__ import annotations

import pytest

from conntracker.formats.packets import packet_json, packet_text, reason
from conntracker.formats.values import value_text, values_text
from conntracker.rules.intervals import Intervals
from conntracker.rules.terms import In, Named
from conntracker.rules.walk import Passed
from conntracker.steps import Rule

RULE = Rule("iptables-legacy", "ip", "filter", "INPUT", 1, None, "-A INPUT -j DROP")


@pytest.mark.parametrize(
    ("field", "values", "mask", "text"),
    [
        ("saddr", ((0x0A010000, 0x0A01FFFF),), None, "10.1.0.0/16"),
        ("saddr", ((0x0A010001, 0x0A010005),), None, "10.1.0.1-10.1.0.5"),
        ("dport", ((22, 22), (80, 90)), None, "22, 80-90"),
        ("dport", ((0, 442), (444, 65535)), None, "any but 443"),
        ("dport", ((0, 65535),), None, "any"),
        ("dport", (), None, "nothing"),
        ("ct_state", ((1, 2),), None, "established, related"),
        ("ct_state", ((0, 0), (2, 4)), None, "any but established"),
        ("protocol", ((6, 6), (17, 17)), None, "tcp, udp"),
        ("mark", ((1, 1),), 0xFF, "0x1/0xff"),
        ("tcp_flags", ((2, 2),), 0x12, "syn/syn|ack"),
    ],
)
def test_sets_of_values_read_as_people_write_them(field: str, values: Intervals, mask: int | None, text: str) -> None:
    """Prefixes, ranges, names, and what is left out where that is shorter."""
    assert values_text(field, values, 4, mask) == text


def test_a_long_set_says_how_much_more_there_is() -> None:
    """Of many parts the first are written out, the others counted."""
    values = tuple((port, port) for port in range(1, 41, 2))
    assert values_text("dport", values).endswith("15 and 12 more")


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("daddr", 1, "0.0.0.1"), ("mac", 0x020000000001, "02:00:00:00:00:01"), ("iif", "", "none"),
        ("packet_type", 2, "multicast"), ("skuid", None, "none"), ("mark", 16, "0x10"), ("tcp_flags", 0, "none"),
    ],
)  # fmt: skip
def test_single_values_have_their_names(field: str, value: int | str | None, text: str) -> None:
    """Addresses, flags and numbers are written as their fields are."""
    assert value_text(field, value) == text


PACKET: dict[str, int | str | None] = {
    "family": 6, "saddr": 1, "daddr": 0xFE80 << 112, "protocol": 6, "sport": 40000, "dport": 443, "tcp_flags": 2,
    "ct_state": 3, "iif": "eth0", "oif": "eth1", "mark": 0, "icmp_type": None,
}  # fmt: skip


def test_a_packet_is_one_line() -> None:
    """Ends, interfaces, and the details that are not the usual ones; what is not known is a star."""
    assert packet_text(PACKET) == ("TCP [::1]:40000 -> [fe80::]:443 in eth0 out eth1, TCP flags syn, state new")
    assert packet_text({"family": 4, "protocol": 17, "dport": 53}) == "UDP *:* -> *:53"
    assert packet_text(
        {
            "family": 4,
            "saddr": 0x01020304,
            "protocol": 1,
            "icmp_type": 8,
            "icmp_code": 0,
            "sport": None,
            "dport": None,
            "daddr": 0x05060708,
        }
    ) == ("ICMP 1.2.3.4 -> 5.6.7.8 type 8 code 0 (echo request)")


def test_a_packet_as_json_has_names_for_addresses_and_states() -> None:
    """Only what is known is there; null is a field that the packet has not."""
    found = packet_json(PACKET)
    assert (found["daddr"], found["protocol"], found["ct_state"]) == ("fe80::", "tcp", "new")
    assert found["icmp_type"] is None
    assert "length" not in found


@pytest.mark.parametrize(
    ("term", "text"),
    [
        (In("saddr", ((0x10 << 112, 0x10 << 112),)), "source ::1 is not 10::"),
        (In("dport", ((80, 80),)), "destination port 443 is not 80"),
        (In("dport", ((80, 90),)), "destination port 443 is not in 80-90"),
        (In("icmp_type", ((8, 8),)), "the packet has no ICMP type"),
        (In("tcp_flags", ((0, 0),), 2), "TCP flags syn & syn is syn, not none"),
        (Named("iif", ("lo",)), "in interface eth0 is not lo"),
        (Named("oif", ("eth*",), negated=True), "out interface eth1 is among eth*"),
    ],
)
def test_a_match_that_failed_is_said_with_both_sides(term: In | Named, text: str) -> None:
    """What the packet has, and what the rule wants."""
    assert reason(Passed(0, RULE, term, PACKET)) == text
