from __future__ import annotations

import json

from conntracker.answers.audit import audit
from conntracker.answers.diff import diff
from conntracker.answers.unseen import unseen_note
from conntracker.formats.difference import diff_json, diff_lines
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.solve.apart import chains_apart, doings_apart
from support.small_rulesets import saved

INGRESS = {
    "nftables": [
        {"table": {"family": "netdev", "name": "t", "handle": 1}},
        {"chain": {"family": "netdev", "table": "t", "name": "i", "handle": 1, "dev": "lo", "type": "filter",
                   "hook": "ingress", "prio": 0, "policy": "accept"}},
    ]
}  # fmt: skip
DROP = {"rule": {"family": "netdev", "table": "t", "chain": "i", "handle": 2, "expr": [{"drop": None}]}}


def ingress(*rules: object) -> Ruleset:
    """A chain of a device."""
    return Ruleset.parse(json.dumps({"nftables": [*INGRESS["nftables"], *rules]}))


def test_chains_beside_the_way_of_packets() -> None:
    """Chains of devices are not looked at, and that is said; a ruleset that differs in one is not called equal."""
    one, other = ingress(), ingress(DROP)
    assert unseen_note(one) == "not looked at, as they are not on the way of IP packets: netdev t i"
    assert unseen_note(one) in audit(one).notes
    assert (chains_apart(one, other), chains_apart(one, one)) == (("netdev t",), ())
    found = diff(one, other)
    assert found.equal is None
    assert "equal: every packet" not in "".join(diff_lines(found))
    assert json.loads(next(iter(diff_json(found))))["equal"] is None
    assert diff(one, one).equal is True


def test_what_rules_do_beside() -> None:
    """What only one ruleset does to packets, and no other rule sees, is named; logs and counters are not."""
    plain = saved(":FORWARD\n-A FORWARD -p tcp -j LOG", table="mangle")
    more = saved(":FORWARD\n-A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu", table="mangle")
    assert doings_apart(plain, plain) == ()
    assert [text for text in doings_apart(plain, more) if "TCPMSS" in text]
    assert "TCPMSS" in "".join(diff_lines(diff(plain, more)))


def test_how_nat_chooses() -> None:
    """Whether NAT takes ports at random is nothing that packets show: it is named."""
    old, new = (saved(f":POSTROUTING\n-A POSTROUTING -j MASQUERADE{more}", table="nat") for more in ("", " --random"))
    assert doings_apart(old, new) == ("masquerade random",)


def test_says_what_packets_leave_with() -> None:
    """Of packets that both let through, what is otherwise is said."""
    old, new = (saved(f":FORWARD\n-A FORWARD -p tcp{more}", table="mangle") for more in ("", " -j TTL --ttl-set 9"))
    found = diff(old, new)
    assert {field: new for one in found.changes for field, _, new in one.left} == {"ttl": 9}
    assert "it leaves with TTL 9, not " in "".join(diff_lines(found))
