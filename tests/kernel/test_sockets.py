"""Owners by polling sockets, against processes that do as they are told."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from conntracker import owner
from conntracker.clock import now
from conntracker.sources import descriptors, sockets
from conntracker.sources.netns import Namespace
from conntracker.sources.sockets import SocketTable
from conntracker.wire.sides import ANY_LOCAL, ANY_REMOTE, mapped

# Does each line that it reads, and answers it.
ACTOR = """
import os, sys
from socket import *
for line in sys.stdin:
    exec(line); print("done", flush=True)
"""
LO4, LO6, ZERO4, ZERO6, NONE = mapped(0x7F000001, 4), mapped(1, 6), mapped(0, 4), mapped(0, 6), (0, 0)
ANY = ANY_REMOTE | ANY_LOCAL
UDP4 = "s = socket(AF_INET, SOCK_DGRAM); s.bind(('127.0.0.1', 5000))"


class Actor:
    """A process in the namespace of the calling thread."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", ACTOR], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid

    def do(self, line: str) -> None:
        """Has it do something."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def close(self) -> None:
        """Ends it, and its pipes, on which its children wait."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def inside(space: Namespace, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """A namespace in which loopback is up; processes are looked into with each poll."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for name in ("_YOUNG", "_SAVED", "_SEEK"):
        monkeypatch.setattr(descriptors, name, 3600)
    return space


@pytest.fixture
def actor(inside: Namespace) -> Iterator[Actor]:
    """A process in it."""
    with contextlib.closing(Actor()) as made:
        yield made


class Ours(SocketTable):
    """The sockets of one namespace; those of the rest of this machine come and go."""

    def poll(self) -> Any:
        """The rows of that namespace."""
        rows = super().poll()
        return rows[rows["netns"] == self._dumps.netns]


@pytest.fixture
def table(inside: Namespace) -> Iterator[SocketTable]:
    """Its sockets."""
    with contextlib.closing(Ours()) as made:
        yield made


def ends(rows: Any) -> list[tuple[Any, ...]]:
    """What the rows say of addresses, in order."""
    return sorted(
        ((int(r["local_hi"]), int(r["local_lo"])), int(r["lport"]), (int(r["remote_hi"]), int(r["remote_lo"])),
         int(r["rport"]), int(r["proto"]), int(r["wild"]))
        for r in rows
    )  # fmt: skip


def listen(domain: str, address: str) -> str:
    """A connection to itself, from port 4000 to 5000."""
    return (
        f"l = socket({domain}); l.bind(('{address}', 5000)); l.listen(); c = socket({domain}); "
        f"c.bind(('{address}', 4000)); c.connect(('{address}', 5000)); a, _ = l.accept()"
    )


# what is done; the ends that are found
CASES = [
    (listen("AF_INET", "127.0.0.1"), [(LO4, 4000, LO4, 5000, 6, 0), (LO4, 5000, LO4, 4000, 6, 0)]),
    (listen("AF_INET6", "::1"), [(LO6, 4000, LO6, 5000, 6, 0), (LO6, 5000, LO6, 4000, 6, 0)]),
    (listen("AF_INET6", "::ffff:127.0.0.1"), [(LO4, 4000, LO4, 5000, 6, 0), (LO4, 5000, LO4, 4000, 6, 0)]),
    ("l = socket(AF_INET); l.bind(('127.0.0.1', 5000)); l.listen()", []),
    (UDP4, [(LO4, 5000, NONE, 0, 17, ANY_REMOTE)]),
    ("s = socket(AF_INET, SOCK_DGRAM); s.bind(('', 5000))", [(ZERO4, 5000, NONE, 0, 17, ANY)]),
    (f"{UDP4}; s.connect(('127.0.0.1', 9))", [(LO4, 5000, LO4, 9, 17, 0)]),
    ("s = socket(AF_INET6, SOCK_DGRAM); s.bind(('::1', 5000))", [(LO6, 5000, NONE, 0, 17, ANY_REMOTE)]),
    (
        "s = socket(AF_INET6, SOCK_DGRAM); s.bind(('::', 5000))",
        [(ZERO6, 5000, NONE, 0, 17, ANY), (ZERO4, 5000, NONE, 0, 17, ANY)],
    ),
    (
        "s = socket(AF_INET6, SOCK_DGRAM); s.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1); s.bind(('::', 5000))",
        [(ZERO6, 5000, NONE, 0, 17, ANY)],
    ),
]


@pytest.mark.parametrize(("line", "found"), CASES)
def test_cases(actor: Actor, table: SocketTable, inside: Namespace, line: str, found: list[tuple[Any, ...]]) -> None:
    """Each kind of socket is found once, with the process that has it."""
    actor.do(line)
    rows = table.poll()
    assert ends(rows) == sorted(found)
    assert set(rows["pid"].tolist()) <= {actor.pid}
    assert set(rows["uid"].tolist()) <= {os.getuid()}
    assert set(rows["netns"].tolist()) <= {inside.cookie}
    assert {owner.METHODS[i] for i in rows["method"]} <= {owner.SOCK_DIAG}
    assert {owner.CERTAINTIES[i] for i in rows["certainty"]} <= {owner.HOLDER}
    assert (rows["last"] == -1).all()
    assert (rows["first"] <= rows["time"] + sockets._CAUTION).all()
    assert len(table.poll()) == 0


def test_closed(actor: Actor, table: SocketTable) -> None:
    """A socket that is gone is told once more, with the same owner, and the last poll that found it as its end."""
    actor.do(UDP4)
    before = table.poll()
    between = now()
    table.poll()
    actor.do("s.close()")
    (row,) = table.poll()
    assert between <= row["last"] + sockets._CAUTION <= now()
    row["last"] = -1
    assert row == before[0]
    assert len(table.poll()) == 0


def test_connected_later(actor: Actor, table: SocketTable) -> None:
    """A socket that gets another peer ends as what it was, and begins as what it is."""
    actor.do(UDP4)
    table.poll()
    actor.do("s.connect(('127.0.0.1', 9))")
    rows = table.poll()
    assert [(int(row["wild"]), bool(row["last"] > 0)) for row in rows] == [(ANY_REMOTE, True), (0, False)]
    assert rows["last"][0] < rows["first"][1]
    assert set(rows["pid"].tolist()) == {actor.pid}


def test_orphan(actor: Actor, table: SocketTable) -> None:
    """A connection that its process closed while it goes on stays that process's."""
    actor.do(listen("AF_INET", "127.0.0.1"))
    table.poll()
    actor.do("c.close()")  # FIN_WAIT2: the other end does not close
    assert len(table.poll()) == 0
    actor.do("a.close()")
    rows = table.poll()
    assert (rows["last"] > 0).all()
    assert set(rows["pid"].tolist()) == {actor.pid}
    assert len(rows) == 2


def test_not_accepted_yet(actor: Actor, table: SocketTable) -> None:
    """A connection that waits to be accepted is nobody's until it is."""
    actor.do(listen("AF_INET", "127.0.0.1").rpartition(";")[0])
    assert ends(table.poll()) == [(LO4, 4000, LO4, 5000, 6, 0)]
    actor.do("a, _ = l.accept()")
    assert ends(table.poll()) == [(LO4, 5000, LO4, 4000, 6, 0)]


def test_inherited(actor: Actor, table: SocketTable) -> None:
    """When a child gets the socket, that is told; when the parent closes it, the child has it alone."""
    actor.do(UDP4)
    table.poll()
    time.sleep(0.03)  # /proc tells the begin of a process in hundredths of a second
    actor.do("r, w = os.pipe(); pid = os.fork(); pid or (os.close(w), os.read(r, 1), os._exit(0))")
    (row,) = table.poll()
    assert (row["pid"], owner.CERTAINTIES[row["certainty"]], row["last"]) == (actor.pid, owner.INHERITED, -1)
    assert len(table.poll()) == 0
    actor.do("s.close()")
    (row,) = table.poll()
    assert row["pid"] not in (0, actor.pid)
    assert owner.CERTAINTIES[row["certainty"]] == owner.HOLDER


def test_nobody(actor: Actor, table: SocketTable) -> None:
    """A socket that no process has is nobody's until one has it, though another had it before."""
    actor.do("a, b = socketpair(AF_UNIX, SOCK_DGRAM)")
    actor.do(f"{UDP4}; send_fds(a, [b'x'], [s.fileno()]); s.close()")
    (row,) = table.poll()
    assert (row["pid"], row["uid"], row["last"]) == (0, owner.NO_ID, -1)
    assert len(table.poll()) == 0
    actor.do("_, (s,), _, _ = recv_fds(b, 1, 1)")
    (row,) = table.poll()
    assert (row["pid"], row["uid"]) == (actor.pid, os.getuid())


def test_ports_used_again(actor: Actor, table: SocketTable) -> None:
    """Two sockets that have the same ends one after the other do not meet in time."""
    actor.do(UDP4)
    table.poll()
    actor.do(f"s.close(); {UDP4}")
    gone, came = table.poll()
    assert gone["cookie"] != came["cookie"]
    assert 0 < gone["last"] < came["first"]


def test_longer_intervals(table: SocketTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where listing takes long, it is done more rarely, up to a bound."""
    table.poll()
    assert table.interval >= sockets.INTERVAL
    monkeypatch.setattr(sockets, "_SHARE", 1e9)
    assert table.interval == sockets._LONGEST


def test_another_namespace(actor: Actor, inside: Namespace) -> None:
    """The sockets of another namespace than the one that is listed are found, too, each as that one's."""
    actor.do(UDP4)
    other = Namespace.create()
    try:
        with other, contextlib.closing(SocketTable(inside)) as there, contextlib.closing(SocketTable()) as here:
            for table in (there, here):
                rows = table.poll()
                (row,) = rows[rows["pid"] == actor.pid]
                assert row["netns"] == inside.cookie != other.cookie
                assert ends([row]) == [(LO4, 5000, NONE, 0, 17, ANY_REMOTE)]
    finally:
        other.close()


def test_without_the_right(actor: Actor) -> None:
    """Without CAP_SYS_PTRACE other users' sockets are nobody's, and the reason is given."""
    actor.do(UDP4)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setresuid(65534, 65534, 65534)
        table = SocketTable()
        pids = np.concatenate([table.poll() for _ in range(3)])["pid"].tolist()
        os.write(writer, f"{pids} {table.missing}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    said = os.read(reader, 1 << 12).decode()
    os.close(reader)
    os.close(writer)
    assert said.startswith("[0] no CAP_SYS_PTRACE")


def test_many(actor: Actor, table: SocketTable) -> None:
    """Thousands of sockets are told once each, and each again when it ends."""
    actor.do("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))")
    actor.do("many = [socket(AF_INET, SOCK_DGRAM) for _ in range(3000)]")
    actor.do("[s.connect(('127.0.0.1', 9)) for s in many]")
    rows = table.poll()
    assert len(np.unique(rows["cookie"])) == len(rows) == 3000
    assert len(table.poll()) == 0
    actor.do("[s.close() for s in many[:1000]]")
    gone = table.poll()
    assert len(gone) == 1000
    assert np.isin(gone["cookie"], rows["cookie"]).all()
    assert (gone["last"] > 0).all()
