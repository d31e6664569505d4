"""The kernel agrees with the engine, packet by packet and step by step, on rulesets at random and those of tools."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from conntracker.lab.trials.generate import random_ruleset, with_sets
from conntracker.lab.trials.sharpness import sharpness
from conntracker.lab.trials.tally import Tally
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
DATA = Path(__file__).parent.parent / "rules" / "data"
FILES = [
    ("ferm-router.v4", "iptables-legacy", "ip"),
    ("ufw-server.v6", "iptables-nft", "ip6"),
    ("shorewall-router.v4", "iptables-nft", "ip"),
    ("fail2ban-nft.nft", "nft", ""),
]
SOURCES = [
    Source(f"{name} {seed} ({kind})", random_ruleset(seed, name), kind, family)
    for seed, (name, kind, family) in enumerate(CASES, 100)
]
SOURCES.append(Source("sets", with_sets(random_ruleset(106, "iptables"), 0), "iptables-legacy", "ip"))
SOURCES += [Source(name, (DATA / name).read_text(), kind, family) for name, kind, family in FILES]


@pytest.mark.parametrize("source", SOURCES, ids=[source.name for source in SOURCES])
def test_kernel_agrees(source: Source) -> None:
    """Each packet on the borders of a ruleset takes the steps and has the end that the engine says; none is lost."""
    record = recorded(source, 250, seed=1)
    comparison, _ = judged(record)
    assert not comparison.mismatches, f"{comparison.packets - comparison.same} differ, as {comparison.mismatches[0]}"
    assert comparison.same == comparison.packets > 100
    assert record.lost == 0


SMALL = """*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:ssh - [0:0]
-A INPUT ! -s 10.0.0.0/8 -p tcp -m tcp --dport 22 -j ssh
-A INPUT -p udp -m udp --dport 53:60 -j ACCEPT
-A INPUT -m limit --limit 1/sec -j ACCEPT
-A FORWARD -i lan0 -p udp -m multiport --dports 53,123 -j ACCEPT
-A FORWARD -d 192.168.0.0/16 -p tcp --syn -j REJECT
-A ssh -i eth0 -j REJECT
-A ssh -m conntrack --ctstate NEW -j ACCEPT
COMMIT
"""


def test_faults_are_found() -> None:
    """Every fault that a packet can show is shown by the packets that were sent."""
    record = recorded(Source("small", SMALL, "iptables-legacy"), 800, seed=1)
    found = sharpness(record, 25, 1, judged(record, Tally())[1])
    assert found.missed == []
    assert sum(count for (_, what), count in found.counts.items() if what == "found") >= 20


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
