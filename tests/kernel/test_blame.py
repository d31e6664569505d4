"""`conntracker blame` without a recording, on a router that forwards, drops and copies packets."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conntracker.lab.topology import CLIENT, SERVER, SERVER_SILENT, Lab
from conntracker.sources.netns import Namespace
from conntracker.sources.tracing import LogSocket

pytestmark = pytest.mark.needs("nft", "iptables-legacy-restore")

TRACKING = (
    "table inet filter { chain forward { type filter hook forward priority 0\n ct state established accept\n }\n }\n"
)
TEE = """*mangle
-A PREROUTING -p udp --dport 9 -j TEE --gateway 198.51.100.2
COMMIT
*filter
-A FORWARD -p udp --dport 9 -j DROP
-A OUTPUT -p udp --dport 9 -j ACCEPT
COMMIT
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The lab, its router with connection tracking."""
    with Lab(TRACKING) as made:
        yield made


def send(lab: Lab, port: int, to: str = SERVER[4], count: int = 1, ttl: int = 64) -> None:
    """UDP packets of the client, of one flow."""
    with lab.client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        sock.bind((CLIENT[4], 0))
        for _ in range(count):
            sock.sendto(b"x", (to, port))
            time.sleep(0.02)


def ask(space: Namespace, *words: str, do: Callable[[], None] | None = None) -> tuple[int, str, list[str]]:
    """Runs `conntracker blame` in a namespace, does something once it waits; its exit code, answer and lines said."""
    command = [sys.executable, "-m", "conntracker", "blame", *words]
    with tempfile.TemporaryFile("w+") as out:
        with space:
            running = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True)
        assert running.stderr is not None
        said = []
        try:
            for line in running.stderr:
                said.append(line.removeprefix("conntracker: ").rstrip())
                if "waiting" in line and do is not None:
                    time.sleep(0.1)
                    do()
            running.wait(timeout=30)
        finally:
            running.kill()
            running.wait()
        out.seek(0)
        return running.returncode, out.read(), said


def test_only_what_was_traced(lab: Lab) -> None:
    """Flows that were silent meanwhile are a number, and no answers; what is said is what it does, in one line."""
    for number in range(3):
        send(lab, 5000 + number)
    code, answer, said = ask(lab.router, "--proto", "udp", "--for", "8s", do=lambda: send(lab, 7000))
    assert code == 0
    assert "NOT TRACED" not in answer
    assert answer.startswith("UDP 192.0.2.2:")
    waiting = [line for line in said if line.startswith("waiting up to 8s for a packet of such a flow; Ctrl-C")]
    assert len(waiting) == 1
    assert re.search(r"private table inet conntracker_\d+", waiting[0])
    assert "3 other flows had no packet that was traced meanwhile" in said
    assert not [line for line in said if "nft list" in line or line.startswith("tracing")]


def test_nothing_came(lab: Lab) -> None:
    """Where no packet came, that is the last line, and the exit code is 1."""
    send(lab, 5000)
    code, answer, said = ask(lab.router, "--dport", "5000", "--for", "500ms")
    assert (code, answer, said[-1]) == (1, "", "no packet of such a flow within 0.5s")
    code, answer, said = ask(lab.server, "--for", "200ms")
    assert (code, answer, said[-1]) == (1, "", "no packet within 0.2s")


def test_a_copy_is_not_the_answer(lab: Lab) -> None:
    """A packet that was dropped is told as dropped, though its copy by TEE was let through."""
    with lab.router:
        subprocess.run(["iptables-legacy-restore"], input=TEE, text=True, check=True)
    code, answer, said = ask(lab.router, "--dport", "9", "--for", "8s", do=lambda: send(lab, 9, SERVER_SILENT[4]))
    assert code == 0
    assert answer.splitlines()[0].endswith("   DROPPED")
    assert "  by   ip filter FORWARD, rule 1 (iptables-legacy)\n" in answer
    assert answer.index("\n  original: dropped") < answer.index("\n  copy made on this host (TEE or dup): accepted")
    assert not [line for line in said if "nf_log" in line]


def test_the_host_says_why(lab: Lab) -> None:
    """A packet whose time to live ends here has no rule to blame: this host's own answer says why."""
    with lab.router:  # the logs of legacy rules tell what an error is about
        subprocess.run(["iptables-legacy", "-A", "OUTPUT", "-p", "icmp", "-j", "ACCEPT"], check=True)
    do: Callable[[], None] = lambda: send(lab, 7000, ttl=1)  # noqa: E731
    _, answer, _ = ask(lab.router, "--dport", "7000", "--for", "8s", do=do)
    assert "\n  this host answered: time to live exceeded (type 11 code 0)\n" in answer
    assert "possible causes" not in answer


def test_let_through_and_not_delivered(lab: Lab, tmp_path: Path) -> None:
    """A packet let through to a neighbour that is not there has its rule, and what this host answered."""
    with lab.router:
        Path("/proc/sys/net/ipv4/neigh/server/mcast_solicit").write_text("1")
    command = [sys.executable, "-m", "conntracker", "-t", "-e", "-w", str(tmp_path / "rec"), "-o", "-"]
    with lab.router:
        running = subprocess.Popen(
            [*command, "--duration", "5s"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
    assert running.stderr is not None
    for line in running.stderr:
        if "capturing" in line:
            send(lab, 7000, "198.51.100.77")
    assert running.wait(timeout=30) == 0
    code, answer, _ = ask(lab.router, "--dport", "7000", "-r", str(tmp_path / "rec"))
    assert code == 0
    assert answer.splitlines()[0].endswith("   ACCEPTED")
    assert "\n  by   inet filter forward, policy (nft)\n" in answer
    assert "\n  but this host answered: host unreachable (type 3 code 1)\n" in answer


def test_legacy_rules_that_cannot_be_traced(lab: Lab) -> None:
    """Where another program has the group, a legacy rule that may have decided is the first cause that is named."""
    with lab.router:
        subprocess.run(["iptables-legacy-restore"], input=TEE.partition("COMMIT\n")[2], text=True, check=True)
    with lab.router:
        log = LogSocket()
    try:
        code, answer, said = ask(lab.router, "--dport", "9", "--for", "8s", do=lambda: send(lab, 9))
    finally:
        log.close()
    assert code == 0
    assert len([line for line in said if line.startswith("no traces of iptables-legacy rules")]) == 1
    assert "   NOT SEEN TO LEAVE\n" in answer
    assert (
        "  what ended it is not known; possible causes:\n"
        "    a rule of iptables-legacy: those were not traced, and one of them may have decided\n"
    ) in answer


def test_a_full_disk(lab: Lab, tmp_path: Path) -> None:
    """Where there is no room for what is traced, it is one line that names the place, and exit code 3."""
    script = f'mount -t tmpfs -o size=16k none {tmp_path} && exec "$@"'
    run = [sys.executable, "-m", "conntracker", "blame", "--for", "2s"]
    with lab.router:
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", *run], capture_output=True, text=True, timeout=30, check=False,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert re.search(
        rf"^conntracker: writing {tmp_path}/conntracker-\w+/\S+: No space left on device \(TMPDIR", done.stderr, re.M
    )
    assert "Traceback" not in done.stderr
