from __future__ import annotations

import pytest

from conntracker.rules.ruleset import Ruleset
from conntracker.rules.solve.dead import dead, policies_never_reached
from conntracker.rules.solve.equal import Equal, equivalent
from conntracker.rules.solve.names import Interfaces
from conntracker.rules.solve.redundant import redundant
from conntracker.rules.solve.refusals import refusal
from conntracker.rules.solve.regions import Masked, difference
from support.small_rulesets import forward, saved

NAT = """*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -d 1.2.3.4/32 -p tcp --dport 80 -j DNAT --to-destination {target}
{more}
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -d 10.0.0.5/32 -p tcp --dport 8080 -j ACCEPT
-A FORWARD -s 10.0.0.0/24 -j ACCEPT
COMMIT
"""
MASQUERADE = "-A POSTROUTING -o eth0 -j MASQUERADE"


def nat(target: str = "10.0.0.5:8080", more: str = MASQUERADE) -> Ruleset:
    """A host that passes port 80 on, and masquerades."""
    return Ruleset.parse(NAT.format(target=target, more=more), family="ip", kind="iptables-legacy")


def mangled(rule: str) -> Ruleset:
    """A rule of mangle FORWARD."""
    return saved(f"-A FORWARD {rule}".replace("-A", ":FORWARD\n-A", 1), table="mangle")


def test_there_is_always_another_interface() -> None:
    """Whatever names rules have, an interface of no such name can be."""
    rules = forward("-i lo -j ACCEPT\n-i eth+ -j ACCEPT\n-i net+ -j ACCEPT\n-i wlan+ -j ACCEPT\n-j REJECT")
    assert not dead(rules)
    assert "any other" in Interfaces([rules]).labels


def test_names_stand_for_more() -> None:
    """A name that stands for all behind a pattern is told as the pattern."""
    rules = forward("-i eth+ -j ACCEPT\n-i eth1 -j DROP\n-i tun+ -j ACCEPT")
    assert Interfaces([rules]).labels == ("none", "lo", "eth1", "any other", "other eth*", "tun*")


REFUSALS = [
    ("", 4, "with icmp port-unreachable"),
    ("", 6, "with icmpv6 port-unreachable"),
    ("with icmpx host-unreachable", 4, "with icmp host-unreachable"),
    ("with icmpx host-unreachable", 6, "with icmpv6 addr-unreachable"),
    ("with icmpx no-route", 4, "with icmp net-unreachable"),
    ("icmp-proto-unreachable", 4, "with icmp prot-unreachable"),
    ("icmp6-adm-prohibited", 6, "with icmpv6 admin-prohibited"),
    ("tcp-reset", 4, "with tcp reset"),
    ("with tcp reset", 6, "with tcp reset"),
    ("with something new", 4, "with something new"),
]


@pytest.mark.parametrize(("text", "version", "expected"), REFUSALS)
def test_equal_answers_have_equal_names(text: str, version: int, expected: str) -> None:
    """What a refused packet is answered with has one name for iptables and nft."""
    assert refusal(text, version) == expected


def test_a_shared_limit_is_not_redundant() -> None:
    """A rule with a hashlimit of a name is seen by others of that name; a limit of its own is not."""
    rules = """
        -p tcp --dport 22 -m hashlimit --hashlimit-upto 1/min --hashlimit-name ssh --hashlimit-mode srcip -j DROP
        -p tcp --dport 80 -m hashlimit --hashlimit-upto 1/min --hashlimit-name ssh --hashlimit-mode srcip -j ACCEPT
        -p tcp --dport 23 -m limit --limit 1/min -j DROP
    """
    assert [one.rule.position for one in redundant(forward(rules))] == [3]


@pytest.mark.parametrize("rule", ["-j TOS --set-tos 0x10/0xff", "-j TTL --ttl-set 9", "-j MARK --set-xmark 0x1/0x1"])
def test_changed_packets_are_a_difference(rule: str) -> None:
    """Rulesets are not equal if one of them changes a packet's TOS, TTL or mark."""
    assert not equivalent(mangled(rule), mangled("-p tcp"))
    assert isinstance(equivalent(mangled(rule), mangled(rule)), Equal)


def test_tells_marks_by_the_bits() -> None:
    """A mark is told by its value, or by the bits that matter, and not point by point."""
    found = difference(mangled("-p tcp"), mangled("-p tcp -j MARK --set-xmark 0x1/0xffffffff"))
    assert [(one.box["mark"], found.more) for one in found.changes] == [(((0, 0), (2, (1 << 32) - 1)), False)]
    found = difference(mangled("-p tcp"), mangled("-p tcp -j MARK --set-xmark 0x10/0x10"))
    boxes = [one.box["mark"] for one in found.changes]
    assert Masked(0, 16) in boxes
    assert not found.more


def test_tells_nat_by_service() -> None:
    """Another target of a DNAT changes what is let through, and where the rest goes; NAT's choices make no points."""
    found = difference(nat(), nat("10.0.0.6:8080"))
    assert not found.more
    dropped = [one.box for one in found.changes if one.kind == "newly dropped"]
    assert [(box["daddr"], box["dport"]) for box in dropped] == [(((0x01020304, 0x01020304),), ((80, 80),))]
    assert all("mac" not in one.box for one in found.changes)


def test_tells_masquerading_by_network() -> None:
    """Without masquerading, packets to its interface leave with another source: told by network, not one by one."""
    found = difference(nat(), nat(more=""))
    assert not found.more
    assert all(one.box.get("oif") == ("eth0",) and "mac" not in one.box for one in found.changes)


def test_changes_of_one_kind_keep_out_of_others() -> None:
    """What was told as newly dropped is not told again as otherwise changed."""
    found = difference(nat(), nat("10.0.0.6:8080")).changes
    changed = [one.box for one in found if (one.kind, one.way) == ("otherwise changed", "forward")]
    new = [box for box in changed if (3, 3) in box["ct_state"] or (2, 3) in box["ct_state"]]  # type: ignore[operator]
    assert [box["saddr"] for box in new] == [((0x0A000000, 0x0A0000FF),)]


def test_policies_behind_any_interface() -> None:
    """The policy of a chain that lets known interfaces through is for the others."""
    rules = forward("-i lo -j ACCEPT\n-i eth+ -j ACCEPT\n-i net+ -j ACCEPT")
    assert ("legacy", "ip", "filter", "FORWARD") not in policies_never_reached(rules)
