"""`conntracker why` beside the kernel: what it says of a packet is what the kernel's trace of that packet says."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conntracker.cli.main import main
from conntracker.lab.topology import CLIENT, ROUTER, SERVER, Lab

pytestmark = pytest.mark.needs("nft", "iptables-legacy-restore")

NFT = """
table inet fw {
    set web { type inet_service; flags interval; elements = { 80, 443, 7000-7099 } }
    chain early { type filter hook prerouting priority raw; meta l4proto udp th dport 7050 accept; }
    chain forward {
        type filter hook forward priority 10; policy drop
        ct state established,related accept
        meta l4proto tcp goto services
        ip saddr 192.0.2.0/24 udp dport @web accept
        meta l4proto icmpv6 accept
    }
    chain services { tcp dport @web counter accept; tcp dport 81 reject; }
    chain nat {
        type nat hook prerouting priority dstnat
        ip daddr 192.0.2.1 udp dport 8053 dnat ip to 198.51.100.2:53
    }
    chain local { type filter hook input priority 10; udp dport 9 drop; }
}
"""
LEGACY = """*mangle
-A PREROUTING -p udp -j MARK --set-mark 0x7
COMMIT
*filter
:udp - [0:0]
-A FORWARD -p udp -j udp
-A FORWARD -p tcp --dport 82 -j REJECT --reject-with tcp-reset
-A udp -m mark ! --mark 0x7 -j DROP
-A udp -p udp --dport 53 -j ACCEPT
-A udp -p udp --dport 7001 -j DROP
-A udp -s 10.0.0.0/8 -j RETURN
COMMIT
"""
# (protocol, where to, port, the verdict)
SENT = (
    ("udp", SERVER[4], 53, "drop"), ("udp", SERVER[4], 7000, "accept"), ("udp", SERVER[4], 7001, "drop"),
    ("udp", SERVER[4], 7050, "accept"), ("udp", ROUTER[4], 8053, "drop"), ("udp", ROUTER[4], 9, "drop"),
    ("tcp", SERVER[4], 80, "accept"), ("tcp", SERVER[4], 81, "reject"), ("tcp", SERVER[4], 82, "reject"),
    ("tcp", SERVER[4], 23, "drop"), ("udp", SERVER[6], 7000, "drop"), ("tcp", SERVER[6], 443, "accept"),
)  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, Path]]:
    """The lab with rules of both kinds, and a recording of what was sent through its router."""
    directory = tmp_path_factory.mktemp("why") / "rec"
    with Lab(NFT) as lab:
        with lab.router:
            subprocess.run(["iptables-legacy-restore"], input=LEGACY, text=True, check=True, timeout=20)
            running = subprocess.Popen(
                [sys.executable, "-m", "conntracker", "-t", "-e", "-w", str(directory), "-o", "-"],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        assert running.stderr is not None
        try:
            for line in running.stderr:
                if "capturing" in line:
                    break
            for protocol, to, port, _ in SENT:
                send(lab, protocol, to, port)
            time.sleep(0.3)
            running.send_signal(2)
            assert running.wait(timeout=20) == 0
        finally:
            running.kill()
            running.wait()
            running.stderr.close()
        yield lab, directory


def send(lab: Lab, protocol: str, to: str, port: int) -> None:
    """The first packet of a flow from the client, whatever becomes of it."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with lab.client, socket.socket(family, kind) as sock:
        sock.setblocking(False)
        sock.connect_ex((to, port))
        if protocol == "udp":
            sock.send(b"x")


def lines(capfd: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    """What a command prints with --json; its exit code is 0."""
    assert main([*words, "--json"]) == 0, capfd.readouterr().err
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def told(path: list[dict[str, Any]]) -> list[str]:
    """A line for each step: all of it but handle, source and text."""
    return [
        " ".join(str(step[name]) for name in ("hook", "kind", "family", "table", "chain", "type", "verdict", "target"))
        + f" {step['rule'] and step['rule']['position']}"
        for step in path
    ]


def asked(lab: Lab, protocol: str, to: str, port: int, capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """`conntracker why` about a packet, live."""
    (answer,) = lines(
        capfd, "why", "--netns", lab.router.path, "--in", "client", "--src", CLIENT[6 if ":" in to else 4], "--dst", to,
        "--proto", protocol, "--sport", "40000", "--dport", str(port),
    )  # fmt: skip
    return answer


def test_recorded_flows(recorded: tuple[Lab, Path], capfd: pytest.CaptureFixture[str]) -> None:
    """For each flow that was traced, `why -r` says the same steps as the kernel did, line by line."""
    _, directory = recorded
    seen, said = (lines(capfd, command, "-r", str(directory)) for command in ("blame", "why"))
    assert len(seen) == len(said)
    compared = set()
    for traced, answer in zip(seen, said, strict=True):
        way = traced["ways"][0]
        packet = way["packet"]
        if packet["dst"] not in {to for _, to, _, _ in SENT}:
            continue  # multicast that hosts send to the router
        assert (way["direction"], answer["verdict"]) == ("original", way["verdict"])
        assert told(answer["path"]) == told(way["path"]), packet
        compared.add((packet["proto"], packet["dst"], packet["dport"], way["verdict"]))
    assert compared == set(SENT)


def test_live(recorded: tuple[Lab, Path], capfd: pytest.CaptureFixture[str]) -> None:
    """A packet that is typed in takes the same steps as the one that was sent."""
    lab, directory = recorded
    seen = {
        (way["packet"]["proto"], way["packet"]["dst"], way["packet"]["dport"]): way
        for traced in lines(capfd, "blame", "-r", str(directory))
        for way in traced["ways"][:1]
    }
    for protocol, to, port, verdict in SENT[2::2]:
        answer = asked(lab, protocol, to, port, capfd)
        assert answer["verdict"] == verdict, (protocol, to, port)
        assert told(answer["path"]) == told(seen[protocol, to, port]["path"])


def test_nat(recorded: tuple[Lab, Path], capfd: pytest.CaptureFixture[str]) -> None:
    """What DNAT made of a packet is told, and rules behind it see that."""
    lab, _ = recorded
    (outcome,) = asked(lab, "udp", ROUTER[4], 8053, capfd)["outcomes"]
    assert (outcome["left_as"]["daddr"], outcome["left_as"]["dport"]) == (SERVER[4], 53)


def test_the_rules_are_kept(recorded: tuple[Lab, Path]) -> None:
    """The recording has the rules in force, for their owner alone."""
    _, directory = recorded
    kept = directory / "rules.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert json.loads(kept.read_text())["format"] == 1


def test_files_in_the_syntax_of_nft(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """nft's own syntax is read by nft, in a namespace of its own: no interface or rule of the host is needed."""
    path = tmp_path / "fw.nft"
    path.write_text(NFT)
    packet = ["--in", "client", "--out", "server", "--src", CLIENT[4], "--dst", SERVER[4], "--proto", "tcp"]
    (answer,) = lines(capfd, "why", "--rules", str(path), "--way", "forward", *packet, "--dport", "81")
    assert answer["verdict"] == "reject"
    assert answer["rule"]["text"].startswith("tcp dport 81 reject")


def test_nft_syntax_from_standard_input() -> None:
    """Standard input may be of nft's own syntax, too; an error names it, with line and column."""
    command = [sys.executable, "-m", "conntracker", "why", "--rules", "-", "--way", "output", "--src", CLIENT[4]]
    text = "table ip t {\n chain c {\n  tcp dport 99999 accept\n }\n}\n"
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("conntracker: standard input:3:13: ")


def test_in_the_lab() -> None:
    """`conntracker lab --rounds 0` sends nothing, and runs a command to its end: the lab's rules can be asked."""
    lab = [sys.executable, "-m", "conntracker", "lab", "--rounds", "0", "--", "conntracker"]
    packet = ["--in", "client", "--src", CLIENT[4], "--dst", SERVER[4], "--proto", "tcp", "--dport", "23"]
    done = subprocess.run([*lab, "why", *packet], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert "  by   inet lab forward, policy (nft)\n" in done.stdout
