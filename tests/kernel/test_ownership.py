"""The BPF programs on a cgroup of the test's own: what they note of the sockets of a process in it, and how they go."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import errno
import json
import os
import platform
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from conntracker.owner import CERTAINTIES, METHODS
from conntracker.sources.bpf import ownership
from conntracker.sources.bpf.calls import BpfError, load_program
from conntracker.sources.bpf.ownership import Ownership
from conntracker.sources.cgroups import id_of, open_root
from conntracker.sources.netns import Namespace
from conntracker.wire.ownership import USER
from conntracker.wire.sides import CLOSER, FIXED, SIDES, mapped

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
LOOPBACK = mapped(0x7F000001, 4)
ENDS = ("netns", "cookie", "local_hi", "local_lo", "remote_hi", "remote_lo", "lport", "rport", "proto")


@dataclass(frozen=True)
class Cell:
    """A cgroup of our own, by its descriptor, and a network namespace in which loopback is up."""

    cgroup: int
    space: Namespace

    @contextlib.contextmanager
    def child(self, code: str) -> Iterator[subprocess.Popen[str]]:
        """A process in both that runs the code; it is killed at the end."""
        procs = f"/proc/{os.getpid()}/fd/{self.cgroup}/cgroup.procs"
        process = subprocess.Popen(
            [sys.executable, "-c", SHARED + code, procs], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def run(self, code: str) -> tuple[int, Any]:
        """Runs a process to its end: (its id, what it said)."""
        with self.child(code) as process:
            output, _ = process.communicate(timeout=60)
            assert process.returncode == 0
            return process.pid, json.loads(output or "null")


def line_of(process: subprocess.Popen[str], said: str | None = None) -> str:
    """The next line that a process says, after it was told one."""
    assert process.stdin is not None
    assert process.stdout is not None
    if said is not None:
        process.stdin.write(f"{said}\n")
        process.stdin.flush()
    return process.stdout.readline()


# What the children begin with: they move into the cgroup, and have a way to say something, and a server on loopback.
SHARED = """
import json, os, sys, threading
from socket import *
with open(sys.argv[1], "w") as procs: procs.write("0")
def say(what): print(json.dumps(what), flush=True)
def wait(): sys.stdin.readline()
def cookie(s): return int.from_bytes(s.getsockopt(SOL_SOCKET, 57, 8), sys.byteorder)
def server(family=AF_INET, to="127.0.0.1"):
    s = socket(family, SOCK_STREAM); s.bind((to, 0)); s.listen(512); return s
"""


@pytest.fixture
def cell(space: Namespace) -> Iterator[Cell]:
    """Both, gone at the end."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    try:
        root = open_root()
    except OSError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no cgroup2 here: {error.strerror}")
    name = f"conntracker-test-{os.getpid()}"
    try:
        os.mkdir(name, dir_fd=root)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=root)
        try:
            yield Cell(fd, space)
        finally:
            os.close(fd)
            remove(name, root)
    finally:
        os.close(root)


def remove(name: str, root: int) -> None:
    """Removes the cgroup, whose last process may be leaving still."""
    for _ in range(100):
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=root)
            return
        time.sleep(0.05)
    os.rmdir(name, dir_fd=root)


@pytest.fixture
def programs(cell: Cell) -> Iterator[Ownership]:
    """All programs on the cell's cgroup."""
    with attached(cell) as made:
        yield made


def attached(cell: Cell, uses: bool = True) -> Ownership:
    """The programs; skips where the kernel has no BPF for us."""
    try:
        return Ownership(cell.cgroup, uses)
    except OSError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no BPF here: {error.strerror}")


def taken(programs: Ownership) -> NDArray[Any]:
    """What there is to be taken."""
    rows = programs.take()
    return np.empty(0, SIDES) if rows is None else rows


def ended(rows: NDArray[Any]) -> list[tuple[int, int, int]]:
    """The sides whose sockets were closed: (protocol, local port, remote port)."""
    return sorted((row["proto"], row["lport"], row["rport"]) for row in rows if row["last"] >= 0)


CONNECTION = """
s = server({family}, {to!r})
c = socket({family}, SOCK_STREAM); c.connect(s.getsockname())
a, peer = s.accept()
c.send(b"x"); a.recv(1); a.send(b"y"); c.recv(1)
say([peer[1], s.getsockname()[1]])
c.close(); a.close()
"""


@pytest.mark.parametrize(("family", "to", "words"), [("AF_INET", "127.0.0.1", LOOPBACK), ("AF_INET6", "::1", (0, 1))])
@pytest.mark.parametrize("uses", [True, False])
def test_connection(cell: Cell, family: str, to: str, words: tuple[int, int], uses: bool) -> None:
    """Both sides of a connection have the process, when it was there, and when the socket was closed."""
    with attached(cell, uses) as programs:
        before = time.time_ns() // 1000
        pid, (client, server) = cell.run(CONNECTION.format(family=family, to=to))
        rows = taken(programs)
        after = time.time_ns() // 1000
        assert ended(rows) == [(TCP, *ports) for ports in sorted([(client, server), (server, client)])]
        for row in rows:
            assert (row["pid"], row["uid"]) == (pid, 0)
            assert row["comm"].startswith(b"python")
            assert (row["netns"], row["cgroup"]) == (cell.space.cookie, id_of(cell.cgroup))
            assert (row["local_hi"], row["local_lo"], row["remote_hi"], row["remote_lo"]) == words * 2
            assert METHODS[row["method"]] == "bpf"
            assert CERTAINTIES[row["certainty"]] == ("exact" if programs.sees_uses else "holder")
            assert before <= row["first"] <= row["last"] <= after
            assert before <= row["time"] <= after
        assert programs.take() is None
        assert programs.lost == 0


# code; the sides that there are: (protocol, which port of those said is local, which remote, certainty, bits of wild)
DATAGRAMS = [
    ("sendto", "c.sendto(b'x', to); s.recvfrom(9)", [(0, 1, "exact", FIXED), (1, 0, "exact", 0)]),
    ("connected", "c.connect(to); c.send(b'x'); s.recv(9)", [(0, 1, "exact", 0), (1, 0, "exact", 0)]),
    ("answered", "c.sendto(b'x', to); s.sendto(b'y', s.recvfrom(9)[1]); c.recvfrom(9)",
     [(0, 1, "exact", FIXED), (1, 0, "exact", FIXED)]),
]  # fmt: skip


@pytest.mark.parametrize(("code", "sides"), [case[1:] for case in DATAGRAMS], ids=[case[0] for case in DATAGRAMS])
def test_datagrams(cell: Cell, programs: Ownership, code: str, sides: list[tuple[int, int, str, int]]) -> None:
    """Both sides of a datagram have the process."""
    text = "s = socket(AF_INET, SOCK_DGRAM); s.bind(('127.0.0.1', 0)); to = s.getsockname()\n"
    text += f"c = socket(AF_INET, SOCK_DGRAM); c.bind(('127.0.0.1', 0))\n{code}\n"
    pid, ports = cell.run(text + "say([c.getsockname()[1], to[1]])")
    rows = taken(programs)
    assert set(rows["pid"].tolist()) == {pid}
    said = {(row["lport"], row["rport"], CERTAINTIES[row["certainty"]], int(row["wild"])) for row in rows}
    assert said == {(ports[one], ports[other], certainty, wild) for one, other, certainty, wild in sides}


def test_users(cell: Cell, programs: Ownership) -> None:
    """A connection that a child of its process uses has the child, while it is open, too."""
    with cell.child(
        """
s = server(); c = create_connection(s.getsockname()); a, _ = s.accept()
c.send(b"x"); a.recv(1)
if not os.fork():
    c.send(b"y"); os._exit(0)
pid = os.wait()[0]
say([cookie(c), pid]); wait()
"""
    ) as process:
        number, child = json.loads(line_of(process))
        users = programs.users()
        assert users is not None
        (row,) = users[users["cookie"] == number]
        assert (row["pid"], row["shared"]) == (child, True)
    rows = taken(programs)
    (row,) = rows[rows["cookie"] == number]
    assert (row["pid"], CERTAINTIES[row["certainty"]]) == (child, "shared")
    assert row["last"] >= 0


def test_closed_by_another(cell: Cell) -> None:
    """Where uses are not seen, a connection that was accepted for a child has the child that closed it last."""
    with attached(cell, uses=False) as programs:
        _, (number, child) = cell.run(
            """
s = server(); c = create_connection(s.getsockname()); a, _ = s.accept()
number, (leave, left) = cookie(a), os.pipe()
child = os.fork()
if not child:
    os.close(left); os.read(leave, 1); c.close(); a.close(); os._exit(0)
a.close(); c.close(); os.close(left); os.wait()
say([number, child])
"""
        )
        rows = taken(programs)
    (row,) = rows[rows["cookie"] == number]
    assert (row["pid"], CERTAINTIES[row["certainty"]], row["wild"]) == (child, "shared", CLOSER)


def test_others(cell: Cell, programs: Ownership) -> None:
    """Sockets of processes that are not in the cgroup make no sides."""
    with cell.space, socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as stack:
        stack.enter_context(socket.create_connection(server.getsockname()))
        stack.enter_context(server.accept()[0])
    assert programs.take() is None


OPEN_ALREADY = """
s = server(); c = create_connection(s.getsockname()); a, _ = s.accept()
say([cookie(c), cookie(a)]); wait()
c.send(b"x"); a.recv(1)
say(None); wait()
"""


@pytest.mark.parametrize("uses", [False, True])
def test_open_already(cell: Cell, uses: bool) -> None:
    """A socket that was open before the programs is nobody's until somebody is seen using it, or closing it."""
    with cell.child(OPEN_ALREADY) as process:
        cookies = json.loads(line_of(process))
        with attached(cell, uses) as programs:
            seen = programs.sees_uses
            assert line_of(process, "now") == "null\n"
            first = taken(programs)
            process.communicate("close")
            last = taken(programs)
    for rows in (first, last):
        assert sorted(rows["cookie"].tolist()) == sorted(cookies)
    assert 0 in first["pid"]
    assert set(last["pid"].tolist()) == {process.pid}
    assert {CERTAINTIES[row["certainty"]] for row in last} == {"exact" if seen else "holder"}


MANY = """
THREADS, EACH = 4, 1000
servers = [server() for _ in range(THREADS)]
seen = [[] for _ in range(THREADS)]
def work(n):
    to = servers[n].getsockname()
    for _ in range(EACH):
        c = create_connection(to); a, peer = servers[n].accept()
        c.send(b"x"); a.recv(1)
        seen[n].append([peer[1], to[1], cookie(c), cookie(a)])
        c.close(); a.close()
threads = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
for one in threads: one.start()
for one in threads: one.join()
say(sum(seen, []))
"""


def test_none_lost(cell: Cell, programs: Ownership) -> None:
    """While threads make connections and rows are taken all the time, each socket's side comes, at least when it was
    closed, and nothing comes twice.
    """
    parts: list[NDArray[Any]] = []
    with cell.child(MANY) as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        said = b""
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            rows = programs.take()
            if rows is not None:
                parts.append(rows)
            with contextlib.suppress(BlockingIOError):
                said += os.read(process.stdout.fileno(), 1 << 20)
        with contextlib.suppress(BlockingIOError):
            while more := os.read(process.stdout.fileno(), 1 << 20):
                said += more
    parts.append(taken(programs))
    expected = {}
    for client, server, one, other in json.loads(said):
        expected[one], expected[other] = (client, server), (server, client)
    rows = np.concatenate(parts)
    assert len(expected) == 8000
    assert len(parts) > 10
    assert programs.lost == 0
    assert {(row["cookie"], (row["lport"], row["rport"])) for row in rows} == set(expected.items())
    assert set(rows["pid"].tolist()) == {process.pid}
    closed = collections.Counter(rows["cookie"][rows["last"] >= 0].tolist())
    assert set(closed) == expected.keys()
    assert set(closed.values()) == {1}
    assert len(set(rows.tolist())) == len(rows)
    assert programs.take() is None


def test_full(cell: Cell, programs: Ownership) -> None:
    """Of more peers than there is room for, those that do not fit are counted, and all others are there."""
    peers = 70_000
    with cell.child(
        f"""
c = socket(AF_INET, SOCK_DGRAM); c.bind(("127.0.0.1", 0))
for i in range({peers}):
    to = (f"127.0.{{i // 250 % 200}}.{{1 + i % 250}}", 9 + i // 50_000)
    while True:
        try: c.sendto(b"x", to)
        except ConnectionRefusedError: continue
        break
say(None); wait()
"""
    ) as process:
        line_of(process)
        lost = programs.lost
        rows = taken(programs)
        assert len(rows) == 65536
        assert lost >= peers - 65536
        assert len({row[list(ENDS)].tolist() for row in rows}) == len(rows)
        assert programs.lost == lost
    assert len(taken(programs)) == 1  # the socket's end, as there is room again


def test_ports_used_again(cell: Cell, programs: Ownership) -> None:
    """Two sockets with the same ends, one after the other, are two sides, whose times do not overlap."""
    cell.run(
        """
s = socket(AF_INET, SOCK_DGRAM); s.bind(("127.0.0.1", 0))
for _ in range(2):
    c = socket(AF_INET, SOCK_DGRAM); c.bind(("127.0.0.1", 4711)); c.connect(s.getsockname()); c.send(b"x"); c.close()
"""
    )
    rows = taken(programs)
    one, other = np.sort(rows[rows["lport"] == 4711], order="first")
    assert one["cookie"] != other["cookie"]
    assert one["first"] <= one["last"] <= other["first"] <= other["last"]


def test_proof(cell: Cell) -> None:
    """Users are believed in only after a pair of local sockets was noted right, and are not asked for unless wanted."""
    with attached(cell, uses=False) as programs:
        assert not programs.sees_uses
        assert programs.missing == []
        assert programs.users() is None
        assert len(programs._links) == 14
    with attached(cell) as programs:
        assert programs.sees_uses or "6.3" in programs.missing[0]
        assert len(programs._links) == 14  # two more, and not those that would look at each datagram that comes


def test_proof_fails(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the proof fails, the tracepoints are let go of, which is said, and the rest goes on."""
    monkeypatch.setattr(Ownership, "_prove", lambda _: False)
    with attached(cell) as programs:
        assert not programs.sees_uses
        assert "unlike those known" in programs.missing[0] or "6.3" in programs.missing[0]
        cell.run(CONNECTION.format(family="AF_INET", to="127.0.0.1"))
        assert len(taken(programs)) == 2


# ------------------------------------------------------------------ how they go

BPF_OBJ_GET_INFO = 15
BY_ID = {"program": 13, "map": 14, "link": 30}  # enum bpf_cmd


def bpf(command: int, attributes: bytes) -> int:
    """bpf(2) as it is. Raises OSError."""
    number = {"x86_64": 321, "aarch64": 280, "riscv64": 280}[platform.machine()]
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(ctypes.c_long(number), command, attributes, len(attributes)))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def id_from(kind: str, fd: int) -> int:
    """The id of a program, a map or a link: in each struct of information the second word."""
    info = ctypes.create_string_buffer(64)
    bpf(BPF_OBJ_GET_INFO, struct.pack("<IIQ", fd, len(info), ctypes.addressof(info)))
    found: int = struct.unpack_from("<II", info)[1]
    return found


def is_there(kind: str, number: int) -> bool:
    """Whether the kernel has one of that id."""
    try:
        os.close(bpf(BY_ID[kind], struct.pack("<II", number, 0) + bytes(8)))
    except OSError as error:
        assert error.errno == errno.ENOENT
        return False
    return True


def test_close(cell: Cell) -> None:
    """Once closed, no program, no link and no map is left in the kernel, and sockets are as they were."""
    with cell.child(OPEN_ALREADY) as process:
        line_of(process)
        before = set(os.listdir("/proc/self/fd"))
        with attached(cell) as programs:
            ids = [("program", id_from("program", fd)) for fd in programs._programs]
            ids += [("link", id_from("link", fd)) for fd in programs._links]
            ids += [("map", id_from("map", held.fd)) for held in programs._maps.values()]
            assert all(is_there(*one) for one in ids)
            assert len(ids) == 2 * len(programs._links) + 5
        programs.close()
        assert set(os.listdir("/proc/self/fd")) == before
        deadline = time.monotonic() + 10  # the kernel frees them a moment later
        while any(is_there(*one) for one in ids) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [one for one in ids if is_there(*one)] == []
        assert process.poll() is None


@pytest.mark.parametrize("failing", ["ct_create", "ct_release", "ct_sent"])
def test_refused(cell: Cell, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """A refused program is named, and takes those before it down; without the tracepoints the rest goes on."""
    load, made = load_program, list[int]()

    def refuse(name: str, *arguments: Any) -> int:
        if name == failing:
            raise BpfError(errno.EACCES, f"program {name}: refused")
        made.append(load(name, *arguments))
        return made[-1]

    monkeypatch.setattr(ownership, "load_program", refuse)
    before = set(os.listdir("/proc/self/fd"))
    if failing == "ct_sent":
        with attached(cell) as programs:
            assert not programs.sees_uses
            assert "ct_sent: refused" in programs.missing[0]
    else:
        with pytest.raises(BpfError, match=f"program {failing}: refused"):
            Ownership(cell.cgroup)
        assert made
    assert set(os.listdir("/proc/self/fd")) == before


def test_users_are_forgotten(cell: Cell, programs: Ownership) -> None:
    """Nobody is noted any more as the user of a socket that was closed."""
    cell.run(CONNECTION.format(family="AF_INET", to="127.0.0.1"))
    users = programs._maps["ct_users"].read(np.dtype("u8"), USER)[1]
    assert id_of(cell.cgroup) not in users["actor"]["cgroup"]
