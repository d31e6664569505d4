"""`conntracker -d`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conntracker.lab.topology import Lab
from conntracker.lab.traffic import Traffic
from support.expected import lines_of_flow, parse

PROGRAM = [sys.executable, "-m", "conntracker", "-d"]


def start(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Starts it on the router; returns when the starter does."""
    with lab.router:
        return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=30, check=False)


def until(condition: Callable[[], bool]) -> bool:
    """Waits for at most ten seconds."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_the_life_of_a_daemon(lab: Lab, tmp_path: Path) -> None:
    """It detaches when it captures, a second one is refused, SIGUSR1 writes the log, SIGTERM writes it and ends it."""
    log, pidfile = tmp_path / "log", tmp_path / "pid"
    done = start(lab, "-o", str(log), "--pidfile", str(pidfile))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    pid = int(pidfile.read_text())
    try:
        assert os.getsid(pid) != os.getsid(0)
        second = start(lab, "-o", str(tmp_path / "other"), "--pidfile", str(pidfile))
        assert second.returncode == 1
        assert second.stderr == f"conntracker: conntracker is running already (process {pid}, {pidfile})\n"
        with Traffic(lab) as traffic:
            expected = {line for flow in traffic.tcp(4) + traffic.udp(6) for line in lines_of_flow(flow)}
        os.kill(pid, signal.SIGUSR1)
        assert until(log.exists)
        assert set(parse(log.open())) == expected
        log.unlink()
        os.kill(pid, signal.SIGTERM)
        assert until(lambda: not pidfile.exists() and not Path(f"/proc/{pid}").exists())
    finally:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)
    assert set(parse(log.open())) == expected
    assert log.stat().st_mode & 0o777 == 0o600


def test_what_goes_wrong_at_the_start_reaches_the_starter(tmp_path: Path) -> None:
    """The starter has the detached process's error line and exit code."""
    with Lab(None) as lab:
        done = start(lab, "--no-enable", "-o", str(tmp_path / "log"), "--pidfile", str(tmp_path / "pid"))
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "--no-enable" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_pid_file_is_left_alone(lab: Lab, tmp_path: Path) -> None:
    """Somebody's file, named by mistake, is neither emptied nor removed."""
    (tmp_path / "precious").write_text("precious\n")
    done = start(lab, "-o", "/dev/null", "--pidfile", str(tmp_path / "precious"))
    assert (done.returncode, (tmp_path / "precious").read_text()) == (2, "precious\n")
    assert "no pid file" in done.stderr


def test_a_daemon_holds_nothing_of_its_starter(lab: Lab, tmp_path: Path) -> None:
    """A descriptor that the starter had open, with a lock say, is closed."""
    with open(tmp_path / "lock", "w") as lock, lab.router:
        command = [*PROGRAM, "-o", "/dev/null", "--pidfile", str(tmp_path / "pid"), "--duration", "1"]
        subprocess.run(command, pass_fds=[lock.fileno()], check=True, capture_output=True)
        pid = int((tmp_path / "pid").read_text())
        held = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    assert str(tmp_path / "lock") not in held
    assert until(lambda: not (tmp_path / "pid").exists())


@pytest.mark.parametrize("left", ["", "4194303\n"])
def test_a_pid_file_left_behind_is_taken_over(lab: Lab, tmp_path: Path, left: str) -> None:
    """A file that nobody holds, after kill -9 say, does not keep the next start away."""
    pidfile = tmp_path / "pid"
    pidfile.write_text(left)
    done = start(lab, "-o", "/dev/null", "--pidfile", str(pidfile), "--duration", "0.2")
    assert done.returncode == 0, done.stderr
    assert until(lambda: not pidfile.exists())
