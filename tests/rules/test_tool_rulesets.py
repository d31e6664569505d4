"""Rulesets that real tools made (bench/tool_rulesets.py, bench/tool_configs), in tests/rules/data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conntracker.rules.iptables import detect, format_save, parse_save
from conntracker.rules.nft import format_json, parse_json
from conntracker.rules.ruleset import KnownChain

DATA = Path(__file__).parent / "data"

# What is not understood exactly in each file: stateful matches, and those that ask what no packet tells.
ATOMS: dict[str, set[str]] = {
    "docker.v4": set(),
    "fail2ban.v4": set(),
    "fail2ban.v6": set(),
    "fail2ban-nft.json": set(),
    "ferm-router.v4": {"limit", "statistic"},
    "ferm-server.v4": {"recent", "connlimit", "hashlimit", "limit"},
    "ferm-server.v6": {"recent", "connlimit", "hashlimit", "limit"},
    "firewalld-iptables.v4": {"limit"},
    "firewalld-iptables.v6": {"rpfilter"},  # --validmark
    "firewalld-router.json": {"ether daddr"},
    "firewalld-server.json": {"limit"},
    "libvirt.v4": set(),
    "libvirt.v6": set(),
    "podman.v4": set(),
    "podman.v6": set(),
    "shorewall-dmz.v4": {"ctorigdst", "hashlimit", "limit", "recent", "rpfilter", "connlimit"},
    "shorewall-router.v4": {"ctorigdst", "ctorigdstport", "hashlimit", "limit", "recent"},
    "shorewall-server.v4": {"hashlimit", "recent"},
    "shorewall6-router.v6": {"hashlimit", "recent", "rpfilter"},
    "shorewall6-server.v6": {"hashlimit", "recent"},
    "ufw-desktop.v4": {"limit"},
    "ufw-desktop.v6": {"limit", "rt"},
    "ufw-router.v4": {"limit", "recent"},
    "ufw-router.v6": {"limit", "recent", "rt"},
    "ufw-server.v4": {"limit", "recent"},
    "ufw-server.v6": {"limit", "recent", "rt"},
}
SAVES = sorted(name for name in ATOMS if not name.endswith(".json"))
LISTINGS = sorted(name for name in ATOMS if name.endswith(".json"))
_RULE = re.compile(r"^(?:\[(\d+):(\d+)\] )?(-A .*)$", re.MULTILINE)


def read(name: str) -> tuple[KnownChain, ...]:
    """The chains of a file."""
    text = (DATA / name).read_text()
    if name.endswith(".json"):
        return parse_json(text, listing=(DATA / name).with_suffix(".nft").read_text()).chains
    return parse_save(text)


def test_every_file_is_looked_at() -> None:
    """No ruleset of a tool lies there that no test reads."""
    assert {path.name for path in DATA.iterdir() if path.suffix in {".v4", ".v6", ".json"}} == set(ATOMS)


@pytest.mark.parametrize("name", sorted(ATOMS))
def test_atoms(name: str) -> None:
    """Of what tools write, only stateful matches and questions of routes and connections are left open."""
    found = {atom.name for chain in read(name) for meaning in chain.meanings for atom in meaning.atoms}
    assert found == ATOMS[name]


@pytest.mark.parametrize("name", SAVES)
def test_rules_of_saves(name: str) -> None:
    """Every line with a rule is a rule, with its text and its counters."""
    text = (DATA / name).read_text()
    rules = [(rule.text, meaning.counters) for chain in read(name) for rule, meaning in chain.items()]
    lines = [(m[3], None if m[1] is None else (int(m[1]), int(m[2]))) for m in _RULE.finditer(text)]
    assert sorted(rules, key=repr) == sorted(lines, key=repr)


@pytest.mark.parametrize("name", SAVES)
def test_kind_and_family(name: str) -> None:
    """The header says which iptables wrote the file, and for which version of IP."""
    text = (DATA / name).read_text()
    kind = "iptables-nft" if "(nf_tables)" in text else "iptables-legacy"
    assert detect(text, None) == (kind, "ip" if name.endswith(".v4") else "ip6")


@pytest.mark.parametrize("name", SAVES)
def test_saves_come_back(name: str) -> None:
    """What is formatted is read as the same chains."""
    chains = read(name)
    assert parse_save(format_save(chains)) == chains


@pytest.mark.parametrize("name", LISTINGS)
def test_rules_of_listings(name: str) -> None:
    """Every rule of nft's listing is a rule, with the text that nft writes."""
    listing = (DATA / name).with_suffix(".nft").read_text()
    rules = [line.strip().rpartition(" # handle ")[0] for line in listing.splitlines() if " # handle " in line]
    rules = [rule for rule in rules if not rule.endswith("{")]
    assert sorted(str(rule.text) for chain in read(name) for rule in chain.chain.rules) == sorted(rules)


@pytest.mark.parametrize("name", LISTINGS)
def test_listings_come_back(name: str) -> None:
    """What is formatted as JSON is read as the same ruleset."""
    ruleset = parse_json((DATA / name).read_text())
    assert parse_json(format_json(ruleset)) == ruleset
