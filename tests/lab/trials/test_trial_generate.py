"""Random rulesets: the same for a seed, of all matches and targets, and understood."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntracker.lab.trials.generate import KINDS, random_ruleset, with_sets
from conntracker.lab.trials.iptables_matches import MATCHES
from conntracker.lab.trials.iptables_targets import TARGETS
from conntracker.rules.iptables import parse_save

SEEDS = range(60)
NFT = [random_ruleset(seed, "nft") for seed in SEEDS]


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from(KINDS))
def test_same_seed_same_text(seed: int, kind: str) -> None:
    """A seed always gives the same ruleset, so that what failed can be tried again."""
    assert random_ruleset(seed, kind) == random_ruleset(seed, kind)


@pytest.mark.parametrize(("kind", "family"), [("iptables", "ip"), ("ip6tables", "ip6")])
def test_saves_are_understood(kind: str, family: str) -> None:
    """Random saves have rules, in chains of several tables, that the parser takes."""
    for seed in SEEDS:
        chains = parse_save(random_ruleset(seed, kind), family=family, kind="iptables-legacy")
        rules = sum(len(known.chain.rules) for known in chains)
        assert 5 <= rules <= 90


def test_every_match_and_target_is_used() -> None:
    """All that real rulesets use comes up in sixty seeds: each module, each target, each negation."""
    texts = "".join(random_ruleset(seed, kind) for seed in SEEDS for kind in ("iptables", "ip6tables"))
    modules = set(re.findall(r"-m (\S+)", texts))
    targets = set(re.findall(r"-j (\S+)", texts))
    wanted = {name.partition("-")[0] for name in MATCHES} - {"fragment", "hl"} | {
        "hl",
        "ttl",
        "tcp",
        "udp",
        "multiport",
    }
    assert wanted <= modules
    assert {name.partition("-")[0] for name in TARGETS} - {"none"} <= targets
    for form in ("! -s", "! -d", "! -i", "! -o", "--tcp-flags", " -g ", "eth+", "/255.0.255.0", " -f "):
        assert form in texts


@pytest.mark.parametrize(
    "form",
    ["vmap @", "vmap {", " . ", "@nets4", "@seen6", "tcp flags {", "tcp flags !=", "fib saddr . iif", "ct status",
     "limit rate over", "notrack", "masquerade", "redirect", "snat ", "dnat ", "jump ", "goto ", "reject with",
     "mark set", "numgen", "th dport", "table inet", "table ip6", "type route", "priority -300", "!= {", "eth*"],
)  # fmt: skip
def test_every_form_of_nft_is_used(form: str) -> None:
    """What nft's own language has comes up in sixty seeds."""
    assert any(form in text for text in NFT)


def test_rules_that_ask_for_sets() -> None:
    """Some rules of a save ask for a set as well, and all else stays; the parser takes it."""
    save = random_ruleset(0, "iptables")
    asking = with_sets(save, 1)
    assert re.sub(r"-m set (! )?--match-set trial (src|dst) ", "", asking) == save
    assert "-m set --match-set trial src" in asking
    atoms = [one for known in parse_save(asking, family="ip", kind="iptables-legacy") for one in known.meanings]
    assert any(atom.name == "set" for meaning in atoms for atom in meaning.atoms)
