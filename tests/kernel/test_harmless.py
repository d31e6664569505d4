"""What tracing leaves of the host: everything."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conntracker.lab.topology import ROUTER, Lab
from conntracker.restore import leftovers, repair
from conntracker.sources.netns import Namespace

pytestmark = pytest.mark.needs("nft", "iptables-nft-restore", "iptables-legacy-restore", "ip")

NATIVE = """
table inet mine {
    set blocked { type ipv4_addr; flags interval; elements = { 203.0.113.0/24 } }
    chain input { type filter hook input priority filter; policy accept; ip saddr @blocked drop; udp dport 9 drop; }
}
"""
IPTABLES = """*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p udp -m udp --dport 7 -m comment --comment "a port" -j REJECT --reject-with icmp-port-unreachable
COMMIT
"""
LOGGER = Path("/proc/sys/net/netfilter/nf_log/2")
OWN = re.compile(r"^table \w+ conntracker_.*?^\}\n", re.MULTILINE | re.DOTALL)


@pytest.fixture
def pair() -> Iterator[Lab]:
    """The lab, with rules of all three kinds in its router."""
    with Lab(None) as lab:
        with lab.router:
            run("nft", "-f", "-", text=NATIVE)
            run("iptables-nft-restore", text=IPTABLES)
            run("iptables-legacy-restore", text=IPTABLES)
        yield lab


@pytest.fixture
def host(pair: Lab) -> Namespace:
    """The router's namespace."""
    return pair.router


@pytest.fixture
def client(pair: Lab) -> Namespace:
    """The client's namespace."""
    return pair.client


def run(*command: str, text: str = "") -> str:
    """What a program prints; it must succeed."""
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=20).stdout


def rules(space: Namespace) -> str:
    """All rulesets as they would be saved, without counters and without our own tables."""
    with space:
        texts = [run("nft", "-a", "list", "ruleset")]
        texts += [run(f"{program}-save") for program in ("iptables-nft", "iptables-legacy", "ip6tables-legacy")]
    text = OWN.sub("", "\n".join(texts))
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)  # the time of saving
    return re.sub(r"\[\d+:\d+\]|packets \d+ bytes \d+", "", text)


_running: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def no_process_stays() -> Iterator[None]:
    """Ends what a test that failed left running."""
    yield
    while _running:
        process = _running.pop()
        process.kill()
        process.wait()


class Tracing:
    """A `conntracker -t -e` in a namespace, from its first line of capturing on."""

    def __init__(self, space: Namespace, log: Path, *more: str) -> None:
        with space:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "conntracker", "-t", "-e", "-o", str(log), *more],
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        _running.append(self.process)
        self.said: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if "capturing" in line:
                break
        self._rest = threading.Thread(target=lambda: self.said.extend(self.process.stderr or ()), daemon=True)
        self._rest.start()

    def end(self, number: int = signal.SIGINT) -> int:
        """Sends a signal and waits for the end."""
        self.process.send_signal(number)
        code = self.process.wait(20)
        self._rest.join(5)
        return code


def ask(space: Namespace, port: int) -> None:
    """A datagram from the lab's client to its router."""
    with space, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", (ROUTER[4], port))


def own_tables(space: Namespace) -> list[str]:
    """Our tables that are there."""
    with space:
        return [line for line in run("nft", "list", "tables").splitlines() if "conntracker_" in line]


def test_rulesets_stay_as_they_are(host: Namespace, client: Namespace, tmp_path: Path) -> None:
    """Saved before, during and after a run, the rulesets of all three kinds are the same, ours apart."""
    before, logger = rules(host), logger_of(host)
    tracing = Tracing(host, tmp_path / "log")
    ask(client, 7)
    during = rules(host)
    assert own_tables(host)
    assert logger_of(host) == "nfnetlink_log"
    assert tracing.end() == 0
    assert before == during == rules(host)
    assert own_tables(host) == []
    assert logger_of(host) == logger


def owners(space: Namespace) -> set[int]:
    """The processes that have tables there."""
    return {int(line.split("conntracker_")[1].split("_")[0]) for line in own_tables(space)}


def logger_of(space: Namespace) -> str:
    """Which logger legacy traces go to."""
    with space:
        return LOGGER.read_text().strip()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_run_leaves_only_the_logger(host: Namespace, tmp_path: Path, number: int) -> None:
    """After kill -9 no table is left; the nf_log sysctls are, and the next start or `doctor --fix` puts them back."""
    logger, before = logger_of(host), rules(host)
    Tracing(host, tmp_path / "log").end(number)
    deadline = time.monotonic() + 5
    while own_tables(host) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert own_tables(host) == []
    assert rules(host) == before
    assert logger_of(host) == "nfnetlink_log"
    assert any("nf_log" in line for line in leftovers())
    with host:
        anybody = subprocess.Popen(["sleep", "20"])  # a namespace without any process cannot be found again
    try:
        repair()
    finally:
        anybody.kill()
        anybody.wait()
    assert logger_of(host) == logger


def test_flush_and_reload_during_a_run(host: Namespace, client: Namespace, tmp_path: Path) -> None:
    """`nft flush ruleset` and a reload leave our table, and what comes later is traced by the new rules."""
    tracing = Tracing(host, tmp_path / "log")
    ours = own_tables(host)
    with host:
        run("nft", "flush", "ruleset")
    assert own_tables(host) == ours
    time.sleep(0.3)
    with host:
        run("nft", "-f", "-", text=NATIVE.replace("udp dport 9 drop", 'udp dport 11 drop comment "new"'))
    time.sleep(0.5)
    ask(client, 11)
    time.sleep(0.8)
    assert tracing.end() == 0
    log = (tmp_path / "log").read_text()
    assert 'rule: udp dport 11 drop comment "new"' in log
    assert "verdict: drop, by family: inet, table: mine, chain: input" in log


def test_two_instances(host: Namespace, client: Namespace, tmp_path: Path) -> None:
    """A second instance has a table of its own and traces as well; legacy logs stay with the first, and it says so."""
    first = Tracing(host, tmp_path / "first")
    second = Tracing(host, tmp_path / "second")
    assert owners(host) == {first.process.pid, second.process.pid}
    for _ in range(3):
        ask(client, 9)
    time.sleep(0.8)
    assert second.end() == 0
    assert owners(host) == {first.process.pid}
    assert logger_of(host) == "nfnetlink_log"
    assert first.end() == 0
    assert own_tables(host) == []
    assert logger_of(host) != "nfnetlink_log"
    assert any(f"process {first.process.pid}" in line for line in second.said), second.said
    for name in ("first", "second"):
        log = (tmp_path / name).read_text()
        assert log.count("verdict: drop, by family: inet, table: mine, chain: input") == 3, log


def test_a_forked_child_holds_nothing(host: Namespace) -> None:
    """A child that was forked from a tracing process does not keep its tables after the parent was killed."""
    script = (
        "import os, sys, time\n"
        "from conntracker.sources.netns import Namespace\n"
        "from conntracker.tracer import Tracer\n"
        "from conntracker.tracetable import TraceOptions\n"
        "Tracer(Namespace.current(), TraceOptions(), lambda line: None).__enter__()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    time.sleep(30)\n"
        "    os._exit(0)\n"
        "print(child, flush=True)\n"
        "time.sleep(30)\n"
    )
    with host:
        parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        assert own_tables(host)
        parent.kill()
        parent.wait(5)
        deadline = time.monotonic() + 5
        while own_tables(host) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert own_tables(host) == []
    finally:
        os.kill(child, signal.SIGKILL)
        repair()
