from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from conntracker.rules.snapshot import Snapshot, Texts
from conntracker.steps import Rule

LISTING = """# Warning: table ip filter is managed by iptables-nft, do not touch!
table ip filter { # handle 1
	chain INPUT { # handle 1
		type filter hook input priority filter; policy drop;
		tcp dport 22 counter accept # handle 5
		counter jump user # handle 9
		tcp dport { 1, 2 } counter accept # handle 7
	}

	chain user { # handle 6
		counter drop # handle 8
	}
}
table ip6 filter { # handle 2
	chain INPUT { # handle 1
		type filter hook input priority filter; policy accept;
		counter drop # handle 2
	}
}
table inet filter { # handle 3
	chain INPUT { # handle 1
		type filter hook input priority filter + 1; policy accept;
		counter drop # handle 2
	}
}
"""
SAVE = """*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:user - [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -j user
-A INPUT -p tcp -j ACCEPT
-A user -j DROP
COMMIT
"""
NFT_SAVES = {("iptables-nft", "ip"): SAVE}


def snapshot(nft: str | None = LISTING, saves: Mapping[tuple[str, str], str] = NFT_SAVES) -> Snapshot:
    """The snapshot of these texts."""
    return Snapshot.parse(Texts(nft, saves, 1))


def test_a_rule_of_iptables_nft_has_handle_position_and_its_own_syntax() -> None:
    """A handle of nf_tables leads to what iptables-save prints in the same place."""
    found = snapshot().nft_rule("ip", "filter", "INPUT", 9)
    assert found == Rule("iptables-nft", "ip", "filter", "INPUT", 2, 9, "-A INPUT -j user")
    chain = snapshot().nft_chain("ip", "filter", "INPUT")
    assert chain is not None
    assert (chain.kind, chain.hook, chain.priority, chain.policy) == ("iptables-nft", "input", 0, "drop")


def test_a_rule_that_the_save_does_not_say_whole_stays_in_nft_syntax() -> None:
    """A rule of nft in a table of iptables is shown as nft prints it, in its position."""
    found = snapshot().nft_rule("ip", "filter", "INPUT", 7)
    assert found == Rule("nft", "ip", "filter", "INPUT", 3, 7, "tcp dport { 1, 2 } counter accept")


def test_families_are_apart() -> None:
    """The same names in other families are other tables, of nft where there is no save."""
    for family in ("ip6", "inet"):
        found = snapshot().nft_rule(family, "filter", "INPUT", 2)
        assert found == Rule("nft", family, "filter", "INPUT", 1, 2, "counter drop")


def test_a_table_of_another_shape_is_one_of_nft() -> None:
    """Where a chain has more rules in one text than in the other, the save is not believed."""
    for save in (
        SAVE.replace("-A user -j DROP\n", ""),
        SAVE.replace(":user - [0:0]\n", "").replace("-A user -j DROP\n", ""),
        SAVE.replace("COMMIT", "-A FORWARD -j DROP\nCOMMIT"),
        "",
    ):
        found = snapshot(saves={("iptables-nft", "ip"): save})
        assert {chain.kind for chain in found.chains} == {"nft"}


def test_legacy_rules_are_found_by_position() -> None:
    """Position N is the N-th rule of the chain; there is none before the first and behind the last."""
    found = snapshot(saves={("iptables-legacy", "ip"): SAVE})
    assert found.legacy_rule("ip", "filter", "INPUT", 1) == Rule(
        "iptables-legacy", "ip", "filter", "INPUT", 1, None, "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT"
    )
    assert [found.legacy_rule("ip", "filter", "INPUT", n) is None for n in (-1, 0, 3, 4)] == [True, True, False, True]
    assert found.legacy_rule("ip6", "filter", "INPUT", 1) is None
    chain = found.legacy_chain("ip", "filter", "INPUT")
    assert chain is not None
    assert (chain.hook, chain.priority, chain.policy, chain.type) == ("input", 0, "drop", "filter")


def test_a_table_can_be_of_both_kinds() -> None:
    """A legacy table beside one of iptables-nft of the same name takes nothing from it."""
    other = SAVE.replace("--dport 22", "--dport 23")
    found = snapshot(saves={**NFT_SAVES, ("iptables-legacy", "ip"): other})
    legacy, nft = found.legacy_rule("ip", "filter", "INPUT", 1), found.nft_rule("ip", "filter", "INPUT", 5)
    assert [rule and rule.text for rule in (legacy, nft)] == [
        "-A INPUT -p tcp -m tcp --dport 23 -j ACCEPT",
        "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT",
    ]


def test_legacy_tables_are_known_of_when_they_cannot_be_read() -> None:
    """An empty save says that there are legacy tables; no save that there are none."""
    assert snapshot(saves={("iptables-legacy", "ip6"): ""}).has_legacy
    assert snapshot(saves={("iptables-legacy", "ip"): SAVE}).has_legacy
    assert not snapshot().has_legacy


def test_what_is_not_there_is_not_found() -> None:
    """Unknown handles, chains and tables give None, and so does a ruleset that was not read."""
    assert snapshot().nft_rule("ip", "filter", "INPUT", 8) is None
    assert snapshot().nft_chain("ip", "nat", "INPUT") is None
    assert snapshot().legacy_chain("ip", "filter", "INPUT") is None
    assert snapshot(None, {}).chains == ()


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_texts_are_parsed(nft: str, save: str) -> None:
    """Nothing is raised for any texts, also as parts of good ones."""
    snapshot(nft, {("iptables-nft", "ip"): save, ("iptables-legacy", "ip6"): save})
    half = len(nft) * 7 % len(LISTING)
    snapshot(
        LISTING[:half] + nft + LISTING[half:],
        {("iptables-nft", "ip"): SAVE[: half // 3] + save + SAVE[half // 3 :], ("iptables-legacy", "ip"): SAVE + save},
    )
