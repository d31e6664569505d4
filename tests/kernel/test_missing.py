"""Tracing where a piece is missing: what works still works, and one line says what is not there."""

from __future__ import annotations

import ctypes.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conntracker.lab.topology import ROUTER, Lab

pytestmark = pytest.mark.needs("nft", "iptables-legacy-restore", "iptables-nft-restore", "unshare", "mount", "setpriv")

RULES = """*filter
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
-A INPUT -p udp --dport 7 -j DROP
-A INPUT -m conntrack --ctstate INVALID -j DROP
COMMIT
"""


def library() -> str:
    """Where libnftables is."""
    with open("/proc/self/maps") as maps:
        ctypes.CDLL("libnftables.so.1")
        found = re.search(r"/\S*libnftables\.so\S*", maps.read())
    assert found is not None
    return found[0]


def program(name: str) -> str:
    """The file behind a program's name."""
    return os.path.realpath(subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout.strip())


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The lab, with legacy rules that keep connection tracking on."""
    with Lab(None) as lab:
        with lab.router:
            for family in ("iptables", "ip6tables"):
                subprocess.run([f"{family}-legacy-restore"], input=RULES, text=True, check=True)
        yield lab


def watch(lab: Lab, hide: str, log: Path) -> tuple[int, str]:
    """Runs `conntracker -t -e` where a path is hidden, lets a packet be dropped; its exit code and words."""
    empty = "mount -t tmpfs none" if os.path.isdir(hide) else "mount --bind /dev/null"
    script = f'{empty} {hide} && exec "$@"' if hide else 'exec "$@"'
    command = [sys.executable, "-m", "conntracker", "-t", "-e", "-o", str(log)]
    with lab.router:
        running = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script, "sh", *command], stderr=subprocess.PIPE, text=True
        )
    assert running.stderr is not None
    said = ""
    try:
        for line in running.stderr:
            said += line
            if "capturing" in line:
                break
        with lab.client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x", (ROUTER[4], 7))
        time.sleep(1.2)
        running.send_signal(signal.SIGINT)
        said += running.communicate(timeout=20)[1]
    finally:
        running.kill()
        running.wait()
    return running.returncode, said


def one_line(said: str, pattern: str) -> None:
    """One line, and no more, says so; nothing says it in Python's words."""
    assert len(re.findall(pattern, said)) == 1, said
    assert "Traceback" not in said


def test_all_there(lab: Lab, tmp_path: Path) -> None:
    """With everything in its place, the rule is named."""
    code, said = watch(lab, "", tmp_path / "log")
    assert code == 0, said
    assert "rule: -A INPUT -p udp -m udp --dport 7 -j DROP" in (tmp_path / "log").read_text()


def test_without_the_library(lab: Lab, tmp_path: Path) -> None:
    """Without libnftables flows are logged, without rules."""
    code, said = watch(lab, library(), tmp_path / "log")
    assert code == 0, said
    one_line(said, "no traces: libnftables")
    assert "capturing" in said


def test_without_the_legacy_programs(lab: Lab, tmp_path: Path) -> None:
    """Without iptables-legacy-save steps have their position, not the rule's text, and no verdict is made up."""
    code, said = watch(lab, program("iptables-legacy-save"), tmp_path / "log")
    assert code == 0, said
    one_line(said, "[^6]iptables-legacy-save")
    log = (tmp_path / "log").read_text()
    assert "table: filter, chain: INPUT, type: rule, position: 1" in log
    assert "verdict: drop" not in log


def test_without_the_loggers(lab: Lab, tmp_path: Path) -> None:
    """On a kernel without nf_log sysctls legacy rules are not traced, and all else is."""
    code, said = watch(lab, "/proc/sys/net/netfilter/nf_log", tmp_path / "log")
    assert code == 0, said
    one_line(said, "no traces of iptables-legacy rules: .*nf_log")


def test_where_the_group_is_taken(lab: Lab, tmp_path: Path) -> None:
    """Where another program reads NFLOG group 0, it is named; all but legacy rules are traced."""
    holder = (
        "import time\n"
        "from conntracker.sources.tracing import LogSocket\n"
        "log = LogSocket()\n"
        "print(1, flush=True)\n"
        "time.sleep(30)\n"
    )
    with lab.router:
        other = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        other.stdout.readline()
        code, said = watch(lab, "", tmp_path / "log")
    finally:
        other.kill()
        other.wait()
    assert code == 0, said
    one_line(said, rf"no traces of iptables-legacy rules: .*process {other.pid}\)")


def test_without_privilege(tmp_path: Path) -> None:
    """Without CAP_NET_ADMIN it is one line and exit code 3, for the capture and for blame."""
    for arguments in (["-t", "-o", "-"], ["blame", "--for", "1s"]):
        done = subprocess.run(
            ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-m", "conntracker",
             *arguments],
            capture_output=True, text=True, timeout=20, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 3, done.stderr
        assert "CAP_NET_ADMIN" in done.stderr
        assert "Traceback" not in done.stderr
