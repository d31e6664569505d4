"""Where nft's rules do not mean what they seem to: each is read as nft lists it, and asked about packets."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from conntracker.rules.fields import CT_STATES
from conntracker.rules.nft import parse_json
from conntracker.rules.packets import Packet
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.walk import walk
from conntracker.sources.translate import translate

SYN, ACK, SYN_ACK, FIN_SYN = 2, 16, 18, 3

Fields = dict[str, int | str]
# A rule; fields of packets that it matches; of packets that it does not.
TRAPS: list[tuple[str, list[Fields], list[Fields]]] = [
    # A bit test, and a comparison of the whole: they must never be merged.
    ("tcp flags syn", [{"tcp_flags": SYN}, {"tcp_flags": SYN_ACK}, {"tcp_flags": FIN_SYN}], [{"tcp_flags": ACK}]),
    ("tcp flags { syn, ack }", [{"tcp_flags": SYN}, {"tcp_flags": ACK}], [{"tcp_flags": SYN_ACK}, {"tcp_flags": 0}]),
    ("tcp flags == syn", [{"tcp_flags": SYN}], [{"tcp_flags": SYN_ACK}]),
    ("tcp flags != syn", [{"tcp_flags": SYN_ACK}, {"tcp_flags": 0}], [{"tcp_flags": SYN}]),
    ("tcp flags syn,ack", [{"tcp_flags": SYN}, {"tcp_flags": ACK}, {"tcp_flags": SYN_ACK}], [{"tcp_flags": 1}]),
    ("tcp flags & (syn | ack) == syn", [{"tcp_flags": SYN}, {"tcp_flags": FIN_SYN}], [{"tcp_flags": SYN_ACK}]),
    # Bits of a flow's status: any of them.
    ("ct status dnat", [{"ct_status": 32}, {"ct_status": 32 | 8}], [{"ct_status": 16}, {"ct_status": 0}]),
    ("ct status snat,dnat", [{"ct_status": 16}, {"ct_status": 32}], [{"ct_status": 8}]),
    # A packet has one state: unequal to two of them at once is every packet.
    ("ct state != { established, related }", [{"ct_state": 3}, {"ct_state": 0}], [{"ct_state": 1}, {"ct_state": 2}]),
    ("ct state established,related", [{"ct_state": 1}, {"ct_state": 2}], [{"ct_state": 3}]),
    # Intervals that touch are one, with both their ends.
    ("tcp dport { 10-19, 20-29 }", [{"dport": 10}, {"dport": 19}, {"dport": 20}, {"dport": 29}], [{"dport": 30}]),
    ("tcp dport != { 10-19, 20-29 }", [{"dport": 9}, {"dport": 30}], [{"dport": 19}, {"dport": 20}]),
    # Ranges in a concatenation belong together, and so does what is excluded.
    (
        "ip saddr . tcp dport { 10.0.0.0/24 . 1-9, 10.0.1.0/24 . 90-99 }",
        [{"saddr": "10.0.0.255", "dport": 9}, {"saddr": "10.0.1.0", "dport": 90}],
        [{"saddr": "10.0.0.1", "dport": 90}, {"saddr": "10.0.1.1", "dport": 9}, {"protocol": 17, "dport": 9}],
    ),
    (
        "ip saddr . tcp dport != { 10.0.0.0/24 . 1-9 }",
        [{"saddr": "10.0.0.1", "dport": 10}, {"saddr": "10.0.1.1", "dport": 9}],
        [{"saddr": "10.0.0.1", "dport": 9}, {"protocol": 17, "saddr": "10.0.1.1", "dport": 9}],
    ),
    # Matches that nft puts in front, and leaves out when it lists: of the protocol, and of the IP version.
    ("tcp dport 80", [{"dport": 80}], [{"protocol": 17, "dport": 80}]),
    ("ip saddr != 10.0.0.1", [{"saddr": "10.0.0.2"}], [{"saddr": "10.0.0.1"}, {"family": 6, "saddr": "fe80::1"}]),
    ("icmp type echo-request", [{"protocol": 1, "icmp_type": 8}], [{"protocol": 1, "icmp_type": 0}, {"protocol": 6}]),
    ("ct state new tcp dport 22", [{"dport": 22}], [{"dport": 23}, {"ct_state": 1, "dport": 22}]),
]


@pytest.fixture(scope="module")
def ruleset() -> Ruleset:
    """A chain for each trap, `c0` and so on, which drops what the rule matches; mark N jumps to chain cN."""
    jumps = " ".join(f"meta mark {number} jump c{number};" for number in range(len(TRAPS)))
    chains = "\n".join(f"chain c{number} {{ {rule} drop; }}" for number, (rule, _, _) in enumerate(TRAPS))
    text = f"table inet t {{\n{chains}\nchain i {{ type filter hook input priority 0; {jumps} }}\n}}\n"
    document, listing = translate(text, "traps")
    return parse_json(document, listing=listing)


def asked(number: int, changes: Fields) -> Packet:
    """A packet for the chain of that number."""
    family = changes.get("family", 4)
    packet: Packet = {
        "family": family, "saddr": 1, "daddr": 2, "protocol": 6, "sport": 40000, "dport": 443, "tcp_flags": SYN,
        "ct_state": CT_STATES.index("new"), "ct_status": 0, "ct_direction": 0, "ct_mark": 0, "mark": number,
        "fragment": 0, "iif": "eth0", "icmp_code": 0,
    }  # fmt: skip
    known = {name: int(ip_address(value)) if isinstance(value, str) else value for name, value in changes.items()}
    return {**packet, **known}


@pytest.mark.parametrize("number", range(len(TRAPS)), ids=[rule for rule, _, _ in TRAPS])
def test_rules_that_seem_to_mean_something_else(ruleset: Ruleset, number: int) -> None:
    """Each rule matches the packets that the kernel matches, and no others."""
    _, matched, passed = TRAPS[number]
    verdicts = [walk(ruleset, asked(number, one), "input").verdict for one in (*matched, *passed)]
    assert verdicts == ["drop"] * len(matched) + ["accept"] * len(passed)
