"""The kernel agrees with the engine, packet by packet and step by step, on rulesets made at random."""

from __future__ import annotations

import subprocess

import pytest

from conntracker.lab.trials.generate import random_ruleset
from conntracker.lab.trials.sharpness import sharpness
from conntracker.lab.trials.trial import Source, judged, recorded

pytestmark = pytest.mark.needs("ip", "nft", "iptables-legacy", "iptables-nft", "ip6tables-legacy", "ip6tables-nft")

SOURCES = [
    Source(f"{kind} {seed}", random_ruleset(seed, name), kind, family)
    for name, family, kinds in (
        ("nft", "", ("nft", "nft", "nft", "nft")),
        ("iptables", "ip", ("iptables-legacy", "iptables-nft")),
        ("ip6tables", "ip6", ("iptables-legacy", "iptables-nft")),
    )
    for seed, kind in enumerate(kinds, 100)
]


@pytest.mark.parametrize("source", SOURCES, ids=[source.name + source.family for source in SOURCES])
def test_kernel_agrees(source: Source) -> None:
    """Each packet on the borders of a random ruleset takes the steps that the engine says, and none is lost."""
    record = recorded(source, 400, seed=1)
    comparison, judge = judged(record)
    assert not comparison.mismatches, comparison.mismatches[0]
    assert comparison.same == comparison.packets > 200
    assert record.lost == 0
    found = sharpness(record, 4, 1, judge).counts
    assert sum(found.values()) > 0


@pytest.mark.parametrize("kind", ["nft", "iptables", "ip6tables"])
def test_random_rulesets_load(kind: str) -> None:
    """What the generator writes, the real tools take."""
    programs = {"nft": ["nft", "-c", "-f", "-"]}
    program = programs.get(kind, [f"{kind}-nft-restore", "--test"])
    for seed in range(8):
        text = random_ruleset(seed, kind)
        made = "".join(f"ip link add {name} type dummy; " for name in ("eth0", "eth1", "wan0", "lan0"))
        done = subprocess.run(
            ["unshare", "-n", "sh", "-c", f"{made} exec {' '.join(program)}"], input=text, capture_output=True, text=True,
            check=False, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
