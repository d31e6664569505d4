"""The lab's programs, and who a capture on the router says they are."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import conntracker
from conntracker.lab.programs import CLIENTS, drive_programs
from conntracker.lab.topology import SERVER, Lab
from conntracker.sources.socket_dumps import namespaces
from kernel.owners.cgroup import needed_cgroup

MODULE = (sys.executable, "-m", "conntracker")

# The protocol and port, the client's name and user, the server's, and how many flows.
EXPECTED = [
    ("tcp", 80, "browser", "nobody", "web", "nobody", 6),
    ("tcp", 7001, "backup", "root", "database", "root", 1),
    ("tcp", 7001, "reports", "daemon", "database", "root", 4),
    ("udp", 53, "browser", "nobody", "resolver", "daemon", 3),
]
QUESTION = """
SELECT proto, dport, owner_comm, owner_user, peer_owner_comm, peer_owner_user, count(*)
FROM flows WHERE dport != 23 GROUP BY ALL ORDER BY ALL
"""
WORKERS = (
    "SELECT count(DISTINCT peer_owner_pid), bool_and(peer_owner_netns != owner_netns) FROM flows WHERE dport = 7001"
)
METHODS = "SELECT DISTINCT owner_method, peer_owner_method FROM flows WHERE dport != 23"


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A directory of cgroup2 for the lab of the test alone."""
    with needed_cgroup("conntracker-programs") as path:
        yield path


def emptied(lab: Lab) -> bool:
    """Whether no process is in the lab, or will be in a moment."""
    inside = {space.inode for space in lab.spaces.values()}
    for _ in range(100):
        if not inside & namespaces().keys():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.needs("nft")
def test_who_they_are(cgroup: str, tmp_path: Path) -> None:
    """`conntracker -b` on the router names every program and its user at both ends, servers' workers included."""
    recording = tmp_path / "recording"
    capture = [*MODULE, "-b", "--cgroup", cgroup, "-w", str(recording), "-o", str(tmp_path / "log")]
    command = [*MODULE, "lab", "--programs", "--", *capture]
    enter = f'echo $$ > {cgroup}/cgroup.procs && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", enter, "sh", *command], capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "programs talked to each other 15 times" in done.stderr
    assert "BPF refused" not in done.stderr
    with conntracker.open_recording(str(recording)) as found:
        assert found.sql(QUESTION).fetchall() == EXPECTED, done.stderr
        assert found.sql(METHODS).fetchall() == [("bpf", "bpf")]
        ((workers, apart),) = found.sql(WORKERS).fetchall()
    assert 1 <= workers <= 3
    assert apart
    log = (tmp_path / "log").read_text()
    assert "(port=80) (browser,pid:" in log
    assert ",uid:nobody)" in log


def test_they_are_gone_at_the_end() -> None:
    """Every exchange is had, and no program is left: clients have ended, and servers are told to."""
    with Lab() as lab:
        assert drive_programs(lab) == sum(exchanges for *_, exchanges, _ in CLIENTS)
        assert emptied(lab)


def test_a_server_that_cannot_start_is_told() -> None:
    """Where a server's port is taken, the lab says so and leaves no program."""
    with Lab() as lab:
        with lab.server:
            taken = socket.create_server((SERVER[4], 80))
        with taken, pytest.raises(OSError, match="server of the lab"):
            drive_programs(lab)
        assert emptied(lab)


def test_the_lab_drives_programs_or_flows() -> None:
    """--programs and --flows are one or the other."""
    command = [*MODULE, "lab", "--programs", "--flows", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "--programs and --flows: one or the other" in done.stderr
