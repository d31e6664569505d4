"""The sockets that are open already, against processes that say which ones they have."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conntracker import clock, owner
from conntracker.sources import holders, open_sockets
from conntracker.sources.holders import find_holders, holder, why_blind
from conntracker.sources.netns import Namespace
from conntracker.sources.open_sockets import OpenSocket
from conntracker.wire.sides import ANY_LOCAL, ANY_REMOTE, mapped

# Makes one socket a case, says on standard output what each is, and keeps them until standard input ends.
ACTOR = """
import json, os, socket, sys
from socket import *
here = socket(AF_INET, SOCK_STREAM); here.bind(("127.0.0.1", 0)); here.listen()
here6 = socket(AF_INET6, SOCK_STREAM); here6.bind(("::1", 0)); here6.listen()
def made(domain, kind, protocol=0, bind=None, connect=None, v6only=None):
    s = socket(domain, kind, protocol)
    if v6only is not None: s.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, v6only)
    if bind: s.bind(bind)
    if connect == "listen": s.listen()
    elif connect: s.connect(connect if connect[1] >= 0 else (connect[0], l.getsockname()[1]))
    return s
"""
ANY = ANY_REMOTE | ANY_LOCAL
LO4, LO6, ZERO4, ZERO6 = mapped(0x7F000001, 4), mapped(1, 6), mapped(0, 4), mapped(0, 6)
U = "AF_INET, SOCK_DGRAM"
U6 = "AF_INET6, SOCK_DGRAM"

# arguments of made(); protocol; sides as (local, remote, wild)
CASES = [
    ("AF_INET, SOCK_STREAM, 0, None, here.getsockname()", 6, [(LO4, LO4, 0)]),
    ("AF_INET6, SOCK_STREAM, 0, None, here6.getsockname()", 6, [(LO6, LO6, 0)]),
    ("AF_INET6, SOCK_STREAM, 0, None, ('::ffff:127.0.0.1', here.getsockname()[1])", 6, [(LO4, LO4, 0)]),
    ("AF_INET, SOCK_STREAM, 262, None, here.getsockname()", 6, [(LO4, LO4, 0)]),
    ("AF_INET, SOCK_STREAM, 0, ('127.0.0.1', 0), 'listen'", 6, []),
    ("AF_INET, SOCK_STREAM", 6, []),
    (U, 17, []),
    (f"{U}, 0, ('127.0.0.1', 0)", 17, [(LO4, (0, 0), ANY_REMOTE)]),
    (f"{U}, 0, ('0.0.0.0', 0)", 17, [(ZERO4, (0, 0), ANY)]),
    (f"{U}, 0, None, ('127.0.0.1', 9)", 17, [(LO4, LO4, 0)]),
    (f"{U}, 136, ('127.0.0.1', 0)", 136, [(LO4, (0, 0), ANY_REMOTE)]),
    (f"{U6}, 0, ('::1', 0)", 17, [(LO6, (0, 0), ANY_REMOTE)]),
    (f"{U6}, 0, ('::', 0), None, 1", 17, [(ZERO6, (0, 0), ANY)]),
    (f"{U6}, 0, ('::', 0), None, 0", 17, [(ZERO6, (0, 0), ANY), (ZERO4, (0, 0), ANY)]),
    (f"{U6}, 0, None, ('::ffff:127.0.0.1', 9)", 17, [(LO4, LO4, 0)]),
    (f"{U}, IPPROTO_ICMP, ('127.0.0.1', 0)", 1, [(LO4, (0, 0), ANY_REMOTE)]),
    (f"{U6}, IPPROTO_ICMPV6, ('::1', 4711)", 58, [(LO6, (0, 0), ANY_REMOTE)]),
    (f"{U}, IPPROTO_ICMP, None, ('127.0.0.1', 1)", 1, [(LO4, LO4, 0)]),
    (f"{U}, IPPROTO_ICMP, None, ('127.0.0.1', 0)", 1, [(LO4, (0, 0), ANY_REMOTE)]),  # getpeername wants a port
    ("AF_INET, SOCK_RAW, IPPROTO_ICMP", 1, []),
    ("AF_INET, SOCK_RAW, 89, ('127.0.0.1', 0)", 89, [(LO4, (0, 0), ANY_REMOTE)]),
]


@contextlib.contextmanager
def actor(code: str) -> Iterator[tuple[int, Any]]:
    """A process that runs the code, in the namespace of the calling thread: (its id, what it said)."""
    keep = "\nsys.stdout.flush(); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", ACTOR + code + keep], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.pid, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.fixture
def inside(space: Namespace) -> Namespace:
    """A namespace in which loopback is up and everybody may ping."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")
    return space


def visited(space: Namespace) -> tuple[dict[int, OpenSocket], Any]:
    """What was visited in a namespace, by cookie, and the rows of its sides."""
    found: dict[int, OpenSocket] = {}

    def visit(fd: int, opened: OpenSocket) -> None:
        if opened.netns == space.cookie:
            with socket.socket(fileno=os.dup(fd)) as sock:
                assert int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 57, 8), sys.byteorder) == opened.cookie
            found[opened.cookie] = opened

    result = open_sockets.open_sockets(visit)
    assert result.complete == (result.why is None)
    return found, result.sides[result.sides["netns"] == space.cookie]


SAY = """
def said(s):
    try: peer = s.getpeername()[1]
    except OSError: peer = 0
    return [int.from_bytes(s.getsockopt(SOL_SOCKET, 57, 8), sys.byteorder), s.getsockname()[1], peer]
print(json.dumps([said(s) for s in kept]))
"""


def test_cases(inside: Namespace) -> None:
    """Each kind of socket is visited, and is the end of what it sends and receives."""
    begin = clock.now()
    with actor("kept = [" + ", ".join(f"made({case})" for case, _, _ in CASES) + "]" + SAY) as (pid, said):
        found, sides = visited(inside)
    for (case, protocol, expected), (cookie, lport, rport) in zip(CASES, said, strict=True):
        assert found[cookie].holder.pid == pid, case
        assert found[cookie].listening == ("listen" in case), case
        rows = sides[sides["cookie"] == cookie]
        ends = [
            ((int(r["local_hi"]), int(r["local_lo"])), (int(r["remote_hi"]), int(r["remote_lo"])), int(r["wild"]))
            for r in rows
        ]
        assert ends == expected, case
        assert set(rows["proto"].tolist()) <= {protocol}, case
        assert set(rows["lport"].tolist()) <= {lport if protocol != 89 else 0}, case
        assert set(rows["rport"].tolist()) <= {rport if protocol not in (1, 58, 89) else 0}, case
    assert set(sides["pid"]) == {pid}
    assert set(sides["uid"]) == {os.getuid()}
    assert set(sides["comm"]) == {Path(sys.executable).name.encode()[:15]}
    assert {owner.METHODS[int(m)] for m in sides["method"]} == {owner.OPEN}
    assert {owner.CERTAINTIES[int(c)] for c in sides["certainty"]} == {owner.HOLDER}
    assert (sides["time"] >= begin).all()
    assert (sides["first"] == sides["time"]).all()
    assert (sides["last"] == sides["time"]).all()


def test_inherited(inside: Namespace) -> None:
    """A socket that a child has, too, is the older process's, and the rows say that it was inherited."""
    fork = """
kept = [made(AF_INET, SOCK_DGRAM, 0, ("127.0.0.1", 0)), made(AF_INET, SOCK_STREAM, 0, None, here.getsockname())]
import time; time.sleep(0.03)  # /proc tells the begin of a process in hundredths of a second
r, w = os.pipe()
if os.fork() == 0: os.close(w); os.read(r, 1); os._exit(0)
"""
    with actor(fork + SAY) as (pid, _):
        found, sides = visited(inside)
    assert {one.certainty for one in found.values()} == {owner.INHERITED}
    assert {one.holder.pid for one in found.values()} == {pid}
    assert {owner.CERTAINTIES[int(c)] for c in sides["certainty"]} == {owner.INHERITED}
    assert len(sides) == 2


def test_another_user(inside: Namespace) -> None:
    """The user of a process is its effective one, also where it is not dumpable."""
    code = 'kept = [made(AF_INET, SOCK_DGRAM, 0, ("127.0.0.1", 0))]\nos.setresuid(0, 12345, 0)' + SAY
    with actor(code) as (_, said):
        found, sides = visited(inside)
    assert found[said[0][0]].holder.uid == 12345
    assert set(sides["uid"]) == {12345}


def test_own_sockets_are_left_out(inside: Namespace) -> None:
    """The sockets of this process are not visited."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        assert visited(inside)[0] == {}


def test_nothing_stays_open(inside: Namespace) -> None:
    """No descriptor is left behind, when the visitor raises neither, and the sockets go on working."""
    code = 'kept = [made(AF_INET, SOCK_DGRAM, 0, ("127.0.0.1", 0)) for _ in range(20)]' + SAY
    with actor(code) as (_, _):
        before = sorted(os.listdir("/proc/self/fd"))
        assert len(visited(inside)[0]) == 22

        def refuse(fd: int, opened: OpenSocket) -> None:
            raise RuntimeError("enough")

        with pytest.raises(RuntimeError, match="enough"):
            open_sockets.open_sockets(refuse)
        assert sorted(os.listdir("/proc/self/fd")) == before


def test_without_the_right(inside: Namespace) -> None:
    """Who may not look into other processes gets what it may see, and is told why there may be more."""
    code = 'kept = [made(AF_INET, SOCK_DGRAM, 0, ("127.0.0.1", 0))]' + SAY
    with actor(code):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.setresuid(65534, 65534, 65534)
            result = open_sockets.open_sockets()
            os.write(writer, json.dumps([result.count, result.complete, result.why]).encode())
            os._exit(0)
        os.waitpid(child, 0)
        count, complete, why = json.loads(os.read(reader, 1 << 16))
        os.close(reader)
        os.close(writer)
    assert count == 0
    assert not complete
    assert "CAP_SYS_PTRACE" in why


def test_bounded(inside: Namespace) -> None:
    """A walk ends at its limit, and says so."""
    code = 'kept = [made(AF_INET, SOCK_DGRAM, 0, ("127.0.0.1", 0)) for _ in range(20)]' + SAY
    with actor(code):
        found = find_holders(skip=os.getpid(), limit=10)
    assert len(found) <= 10
    assert found.why == "more than 10 descriptors of sockets"


def test_cgroups_that_mark_sockets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where net_cls or net_prio mark sockets, nothing is duplicated."""
    table = tmp_path / "cgroups"
    real = open
    monkeypatch.setattr("builtins.open", lambda name, *a: real(table if name == "/proc/cgroups" else name, *a))
    for line, why in (("net_cls\t0\t60\t1", False), ("net_cls\t4\t1\t1", False), ("net_prio\t4\t2\t1", True)):
        table.write_text(f"#subsys_name\thierarchy\tnum_cgroups\tenabled\n{line}\n")
        assert ("in use" in (open_sockets.open_sockets().why or "")) == why


def test_holder(inside: Namespace) -> None:
    """A process's name may hold anything, and one that has ended is None."""
    code = 'open("/proc/self/comm", "w").write(") S 1 (\\n x")' + "\nkept = []" + SAY
    with actor(code) as (pid, _):
        found = holder(pid)
    assert found is not None
    assert (found.pid, found.uid, found.comm) == (pid, os.getuid(), b") S 1 (\n x")
    assert found.start > 0
    assert holder(pid) is None


URING = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
ring = libc.syscall(425, 4, ctypes.create_string_buffer(120))  # io_uring_setup
s = made(AF_INET, SOCK_DGRAM, 0, ("127.0.0.1", 0))
if ring >= 0 and %d: libc.syscall(427, ring, 2, ctypes.byref(ctypes.c_int(s.fileno())), 1)  # IORING_REGISTER_FILES
print(json.dumps(ring >= 0))
"""


def test_io_uring(inside: Namespace) -> None:
    """A process that has files registered with io_uring may have sockets that nobody sees, and the walk says so."""
    for registers in (0, 1):
        with actor(URING % registers) as (pid, works):
            if not works:
                pytest.skip("no io_uring here")
            found = holders.Holders()
            holders._add_process(found, pid, 100)
            assert ("io_uring" in (found.why or "")) == bool(registers)


def test_namespace_of_process_ids(inside: Namespace) -> None:
    """In a namespace of process ids of its own, a process knows that it does not see all others."""
    code = "from conntracker.sources.holders import why_blind; print(why_blind())"
    for options, why in ((["--mount-proc"], "in a namespace of process ids"), ([], "/proc is of another namespace")):
        command = ["unshare", "--pid", "--fork", *options, sys.executable, "-c", code]
        assert why in subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def test_why_blind() -> None:
    """With all rights in the initial namespace of process ids nothing is in the way."""
    assert why_blind() is None or os.stat("/proc/self/ns/pid").st_ino != 0xEFFFFFFC
