"""The kernel agrees with the engine, packet by packet and step by step, on rulesets made at random."""

from __future__ import annotations

import subprocess

import pytest

from conntracker.lab.trials.generate import random_ruleset
from conntracker.lab.trials.sharpness import sharpness
from conntracker.lab.trials.trial import Source, judged, recorded

pytestmark = pytest.mark.needs("ip", "nft", "iptables-legacy", "iptables-nft", "ip6tables-legacy", "ip6tables-nft")

CASES = [
    ("nft", "nft", ""),
    ("nft", "nft", ""),
    ("iptables", "iptables-legacy", "ip"),
    ("iptables", "iptables-nft", "ip"),
    ("ip6tables", "iptables-legacy", "ip6"),
    ("ip6tables", "iptables-nft", "ip6"),
]
SOURCES = [
    Source(f"{name} {seed} ({kind})", random_ruleset(seed, name), kind, family)
    for seed, (name, kind, family) in enumerate(CASES, 600)
]


@pytest.mark.parametrize("source", SOURCES, ids=[source.name for source in SOURCES])
def test_kernel_agrees(source: Source) -> None:
    """Each packet on the borders of a random ruleset takes the steps that the engine says, and none is lost."""
    record = recorded(source, 300, seed=1)
    comparison, _ = judged(record)
    assert not comparison.mismatches, f"{comparison.packets - comparison.same} differ, as {comparison.mismatches[0]}"
    assert comparison.same == comparison.packets > 200
    assert record.lost == 0


def test_faults_are_found() -> None:
    """Of faults that a packet can show, most are shown by the packets that were sent."""
    record = recorded(SOURCES[2], 600, seed=1)
    counts = sharpness(record, 10, 1, judged(record)[1]).counts
    found = sum(count for (_, what), count in counts.items() if what == "found")
    missed = sum(count for (_, what), count in counts.items() if what == "missed")
    assert found >= 8
    assert missed <= 2


@pytest.mark.parametrize("kind", ["nft", "iptables", "ip6tables"])
def test_random_rulesets_load(kind: str) -> None:
    """What the generator writes, the real tools take."""
    programs = {"nft": ["nft", "-c", "-f", "-"]}
    program = programs.get(kind, [f"{kind}-nft-restore", "--test"])
    for seed in range(8):
        links = "".join(
            f"ip link add {name} type veth peer name {name}-; " for name in ("eth0", "eth1", "wan0", "lan0")
        )
        done = subprocess.run(
            ["unshare", "-n", "sh", "-c", f"{links} exec {' '.join(program)}"],
            input=random_ruleset(seed, kind), capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
