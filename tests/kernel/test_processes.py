"""What is known of processes, against the kernel."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from conntracker.owner import Process
from conntracker.sources import cgroups, processes
from conntracker.sources.netns import Namespace
from conntracker.sources.processes import Processes

LOOP = "while [ $i -lt 500 ]; do i=$((i+1)); done"
# Each prints `pid time` once a process of it is over; the time is one at which it lived.
BRIEF = f"""
import os, time
for i in range(300):
    arguments = ["/bin/sh", "-c", f"i=0; {LOOP}; : {{i}}"] if i % 2 else ["/bin/sleep", f"0.001{{i:04}}"]
    pid = os.posix_spawn(arguments[0], arguments, os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    print(pid, time.time_ns() // 1000, flush=False)
    os.waitpid(pid, 0)
"""
# Two processes of one id, one right after the other: clone3(2) with set_tid.
REUSED = """
import ctypes, os, struct, time
call = ctypes.CDLL(None, use_errno=True).syscall
for i in range(20):
    pid = os.posix_spawn("/bin/sleep", ["sleep", f"0.0{i % 3}1"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    first = time.time_ns() // 1000
    os.waitpid(pid, 0)
    tid = (ctypes.c_int * 1)(pid)
    arguments = struct.pack("=11Q", 0, 0, 0, 0, 17, 0, 0, 0, ctypes.addressof(tid), 1, 0)
    child = call(435, arguments, len(arguments))
    if child == 0:
        os.execv("/bin/sh", ["sh", "-c", ":; sleep 0.01"])
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    print(pid, first, time.time_ns() // 1000)
    os.waitpid(pid, 0)
"""
STAGES = """
import os, time
def say(): print(time.time_ns() // 1000, flush=True); os.read(0, 1)
say()
{change}
say()
os.execv("/bin/cat", ["cat", "-u"])
"""


def now() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


@contextlib.contextmanager
def taking(known: Processes) -> Iterator[None]:
    """A thread takes events meanwhile; `find` is for afterwards."""
    done = threading.Event()

    def loop() -> None:
        while not done.is_set():
            select.select(known.filenos(), [], [], 0.05)
            known.take()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def run(code: str) -> list[list[int]]:
    """The numbers on the lines that a Python program prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    return [list(map(int, line.split())) for line in done.stdout.splitlines()]


def found(known: Processes, pid: int, at: int) -> Process:
    """The process, which must not be the kernel's."""
    process = known.find(pid, at)
    assert process is not None
    return process


@pytest.fixture
def known() -> Iterator[Processes]:
    """All processes, with events."""
    made = Processes()
    if made.missing is not None:
        made.close()
        pytest.skip(made.missing)
    yield made
    made.close()


@contextlib.contextmanager
def cat() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until it is not needed any more."""
    process = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(b"begun\n")
        process.stdin.flush()
        process.stdout.readline()
        yield process
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def test_itself(known: Processes) -> None:
    """A process that was there before has all that /proc says, and so has its parent's name."""
    process = found(known, os.getpid(), now())
    assert process.pid == os.getpid()
    assert process.exe == os.readlink("/proc/self/exe")
    assert process.comm == Path("/proc/self/comm").read_text().rstrip("\n")
    assert process.uid == os.geteuid()
    assert process.cmdline is not None
    assert "pytest" in process.cmdline
    assert process.ppid == os.getppid()
    assert process.parent == Path(f"/proc/{os.getppid()}/comm").read_text().rstrip("\n")
    assert process.start is not None
    assert process.start < now()
    assert found(known, os.getpid(), now()) is process


def test_short_lived(known: Processes) -> None:
    """Of processes that live a millisecond or two, most are known with program and arguments, and none is mistaken."""
    best = 0.0
    for _ in range(3):  # others may keep this machine busy
        with taking(known):
            ended = run(BRIEF)
        right = 0
        for number, (pid, at) in enumerate(ended):
            process = found(known, pid, at)
            if process.exe is not None and process.cmdline is not None:
                expected = f"/bin/sh -c 'i=0; {LOOP}; : {number}'" if number % 2 else f"/bin/sleep 0.001{number:04}"
                assert process.cmdline == expected
                right += 1
        best = max(best, right / len(ended))
        if best >= 0.8:
            break
    assert best >= 0.8


def test_reused_id(known: Processes) -> None:
    """Two processes that had the same id, one right after the other, are told apart by time."""
    with taking(known):
        rounds = run(REUSED)
    complete = 0
    for pid, first, second in rounds:
        one, other = found(known, pid, first), found(known, pid, second)
        assert one is not other
        assert "sh" not in (one.cmdline or "").split()
        assert "0.0" not in (other.cmdline or "") or other.cmdline == "sh -c ':; sleep 0.01'"
        assert one.start is not None
        assert other.start is not None
        assert one.start < first <= other.start < second
        complete += one.cmdline is not None and other.cmdline is not None
    assert complete >= 0.8 * len(rounds)


def test_reused_id_without_events(space: Namespace) -> None:
    """What /proc has now is not taken for an earlier process of the same id."""
    known = Processes()
    with cat() as process:
        earlier = known.find(process.pid, now() - 10_000_000, 5, "was", 0)
        assert earlier == Process(process.pid, "was", 5, user=earlier.user if earlier else None)
        assert found(known, process.pid, now()).exe == os.path.realpath("/bin/cat")
        assert known.find(process.pid, now() - 10_000_000, 5, "was", 0) is earlier
    known.close()


CHANGES = [
    ("os.setresuid(65534, 65534, 65534)", {"uid": 65534}),
    ("open('/proc/self/comm', 'w').write('renamed')", {"comm": "renamed"}),
]


@pytest.mark.parametrize(("change", "expected"), CHANGES)
def test_images(known: Processes, change: str, expected: dict[str, object]) -> None:
    """A process that changes its user or name, and one that executes another program, was another before."""
    process = subprocess.Popen(
        [sys.executable, "-c", STAGES.format(change=change)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    times = []
    try:
        for _ in range(2):
            times.append(int(process.stdout.readline()))
            found(known, process.pid, times[-1])
            process.stdin.write(b"\n")
            process.stdin.flush()
        process.stdin.write(b"echo\n")
        process.stdin.flush()
        process.stdout.readline()
        last = found(known, process.pid, now())
        first, second = (found(known, process.pid, at) for at in times)
        assert (first.uid, first.comm[:6]) == (os.geteuid(), "python")
        assert {name: getattr(second, name) for name in expected} == expected
        assert first.exe == second.exe == os.path.realpath(sys.executable)
        assert (last.exe, last.cmdline, last.comm) == (os.path.realpath("/bin/cat"), "cat -u", "cat")
        assert first.start == second.start == last.start
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def test_fork_without_exec(known: Processes) -> None:
    """A child that executes nothing is what its parent is, with its own id, start and parent, also after its end."""
    parent = found(known, os.getpid(), now())
    began = now()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    ended = now()
    process = found(known, child, ended)
    assert (process.exe, process.cmdline, process.comm) == (parent.exe, parent.cmdline, parent.comm)
    assert (process.pid, process.ppid, process.parent) == (child, os.getpid(), parent.comm)
    assert process.start is not None
    assert began - 1000 <= process.start <= ended


def test_given(known: Processes) -> None:
    """The user that the kernel saw comes before what /proc says, the name does not; equal answers are one object."""
    with cat() as process:
        at = now()
        answer = known.find(process.pid, at, 65534, "a thread")
        assert answer is not None
        assert (answer.uid, answer.comm) == (65534, "cat")
        assert known.find(process.pid, at, 65534, "other") is answer
        assert known.find(process.pid, at, 65534, "a thread") is answer
        assert known.find(process.pid, at, 0) is not answer


@pytest.mark.parametrize("events", [True, False])
def test_never_was(events: bool) -> None:
    """Of an id that nobody has, there is what was given, and no more."""
    space = Namespace.current() if events else Namespace.create()
    with space:
        known = Processes()
    at = now()
    answer = known.find(4194300, at, 0, "gone")
    assert answer == Process(4194300, "gone", 0, user="root")
    assert known.find(4194300, at, 0, "gone") is answer
    known.close()
    space.close()


def test_cgroup_of_the_gone() -> None:
    """A process of which nothing else is known has a place by the id of its cgroup."""
    root = cgroups.open_root()
    name = f"conntracker-{uuid.uuid4().hex}.service"
    os.mkdir(name, dir_fd=root)
    known = Processes(root=root)
    try:
        answer = known.find(4194300, now(), 0, "gone", os.stat(name, dir_fd=root).st_ino)
        assert answer is not None
        assert (answer.cgroup, answer.unit) == (f"/{name}", name)
    finally:
        known.close()
        os.rmdir(name, dir_fd=root)
        os.close(root)


@pytest.mark.skipif(not Path("/proc/2/exe").exists() and not Path("/proc/2/comm").exists(), reason="no kernel threads")
def test_kernel_thread(known: Processes) -> None:
    """A thread of the kernel is no process."""
    assert known.find(2, now()) is None


def test_no_command_lines() -> None:
    """Command lines can be left out."""
    known = Processes(cmdline=False)
    with cat() as process:
        answer = found(known, process.pid, now())
    assert answer.cmdline is None
    assert answer.exe == os.path.realpath("/bin/cat")
    known.close()


def test_without_events(space: Namespace) -> None:
    """In another network namespace there are no events, which is said, and what lives is known all the same."""
    known = Processes()
    assert known.missing is not None
    assert "first network namespace" in known.missing
    assert known.filenos() == []
    known.take()
    with cat() as process:
        first = found(known, process.pid, now())
        assert first.exe == os.path.realpath("/bin/cat")
        time.sleep(1.1)
        assert found(known, process.pid, now()) is first
    assert found(known, process.pid, now() + 3_000_000).exe is None
    known.close()


@pytest.mark.needs("unshare")
def test_other_pid_namespace() -> None:
    """In another pid namespace the kernel does not answer, which is said."""
    code = "from conntracker.sources.processes import Processes; print(Processes().missing)"
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "first pid and user namespaces" in said


def test_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the allowance processes are not read when they start, which is counted, but still when asked for."""
    monkeypatch.setattr(processes, "READS_PER_SECOND", 1)
    known = Processes()
    with cat(), cat(), cat() as process:
        known.take()
        assert known.skipped >= 1
        assert found(known, process.pid, now()).exe == os.path.realpath("/bin/cat")
    known.close()


def test_dropped_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the kernel drops events, what lives is looked at again."""
    monkeypatch.setattr(processes, "_RECEIVE_BUFFER", 1)
    known = Processes()
    with cat() as process:
        before = found(known, process.pid, now())
        for _ in range(30):
            subprocess.run(["/bin/true"], check=True)
        known.take()
        assert found(known, process.pid, now()) is before
        assert found(known, os.getpid(), now()).exe == os.readlink("/proc/self/exe")
    known.close()


def test_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of processes that ended does not grow; what lives is kept."""
    monkeypatch.setattr(processes, "_IMAGES", 60)
    known = Processes()
    with cat() as process:
        first = found(known, process.pid, now())
        with taking(known):
            run(BRIEF)
        assert sum(len(life.images) for lives in known._lives.values() for life in lives) == known._images <= 60
        assert found(known, process.pid, now()) is first
    known.close()


def test_close() -> None:
    """Closing twice is harmless and leaves no descriptor."""
    before = os.listdir("/proc/self/fd")
    known = Processes()
    known.close()
    known.close()
    assert known.filenos() == []
    assert os.listdir("/proc/self/fd") == before
