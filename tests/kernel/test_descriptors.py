"""Who has which socket, of real processes."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from conntracker.clock import now
from conntracker.sources import descriptors
from conntracker.sources.descriptors import Descriptors


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Descriptors]:
    """After a first look, with a hundred other processes, none of which counts as young."""
    monkeypatch.setattr(descriptors, "_YOUNG", 0)
    monkeypatch.setattr(descriptors, "_CALM", 0)
    others = [subprocess.Popen(["sleep", "60"]) for _ in range(100)]
    try:
        table = Descriptors()
        table.look(())
        yield table
    finally:
        for one in others:
            one.kill()
        for one in others:
            one.wait()


def inode(sock: socket.socket) -> int:
    """Of a socket."""
    return os.fstat(sock.fileno()).st_ino


def pids(table: Descriptors, number: int) -> list[int]:
    """Of those that have a socket."""
    return [one.pid for one in table.of(number)]


def test_seeks(calm: Descriptors) -> None:
    """A process that was there before is looked into when its new socket is looked for."""
    with socket.socket() as sock:
        number, before = inode(sock), now()
        assert number in calm.look([number])
        (one,) = calm.of(number)
        assert (one.pid, one.sockets[number]) == (os.getpid(), sock.fileno())
        assert one.holder is not None
        assert (one.holder.pid, one.holder.uid) == (os.getpid(), os.geteuid())
        assert before <= one.time <= now()


def test_new_processes(calm: Descriptors) -> None:
    """A new process is looked into at once, though nobody looks for a socket."""
    with socket.socket() as sock:
        one = subprocess.Popen(["sleep", "60"], pass_fds=[sock.fileno()])
        try:
            calm.look(())
            assert one.pid in pids(calm, inode(sock))
        finally:
            one.kill()
            one.wait()
        assert inode(sock) in calm.look(())
        assert one.pid not in pids(calm, inode(sock))


def test_for_a_moment(calm: Descriptors) -> None:
    """Who had a socket besides when it was looked at, and has it no more when asked, is none of its holders."""
    with socket.socket() as sock, subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[sock.fileno()]) as other:
        calm.look([inode(sock)])
        calm.look([inode(sock), 1])
        assert sorted(pids(calm, inode(sock))) == sorted([os.getpid(), other.pid])
        assert len(calm.holders(inode(sock))) == 2
        other.kill()
        other.wait()
        ((holder, _),) = calm.holders(inode(sock))
        assert holder.pid == os.getpid()


def test_costs_little_when_idle(calm: Descriptors, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a reason few processes are looked into at a time, and everyone in his turn."""
    monkeypatch.setattr(descriptors, "_TURN_IDLE", 0.02)  # a turn takes a second or two, and not half a minute
    begun = time.monotonic()
    calm.look([1])
    while calm.whole_since < begun:
        calm.look([1])
    time.sleep(0.05)
    before = calm.whole_since
    calm.look(())
    assert calm.whole_since == before
    ends = time.monotonic() + 30
    while calm.whole_since <= before and time.monotonic() < ends:
        time.sleep(0.05)
        calm.look(())
    assert calm.whole_since > before


def test_another_process(calm: Descriptors) -> None:
    """Where an id has become another process's since the list was read, nothing is taken from that one."""
    with socket.socket() as sock:
        calm._processes[os.getpid()].inode += 1
        number = inode(sock)
        calm._look_at(list(calm._processes.values()), {number}, time.monotonic())
        assert pids(calm, number) == []
        calm.look([number])
        assert pids(calm, number) == [os.getpid()]


def test_not_allowed() -> None:
    """Without the right to look into others' processes that is said, and one's own are seen all the same."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setresuid(65534, 65534, 65534)
        table = Descriptors()
        table.look(())
        os.write(writer, f"{table.why}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    said = os.read(reader, 1 << 12).decode()
    os.close(reader)
    os.close(writer)
    assert said.startswith("no CAP_SYS_PTRACE")


def test_bounded(calm: Descriptors, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more sockets are kept than a bound, and that is said."""
    monkeypatch.setattr(descriptors, "MAX_DESCRIPTORS", 0)
    with socket.socket() as sock:
        calm.look([inode(sock)])
        assert pids(calm, inode(sock)) == []
        assert calm.why == "more than 0 descriptors of sockets"
