"""The sockets that are there, and who has them, against processes that do as they are told."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from conntracker import owner
from conntracker.clock import now
from conntracker.sources import inventory
from conntracker.sources.holders import Holders, find_holders
from conntracker.sources.inventory import Inventory, take_inventory
from conntracker.sources.netns import Namespace
from conntracker.sources.socket_dumps import SocketDumps
from conntracker.wire.sides import ANY_LOCAL, ANY_REMOTE, mapped
from kernel.owners.capture import without
from kernel.test_sockets import Actor, ends, listen

LO4, LO6, ZERO4, ZERO6, NONE = mapped(0x7F000001, 4), mapped(1, 6), mapped(0, 4), mapped(0, 6), (0, 0)
ANY = ANY_REMOTE | ANY_LOCAL
UDP4 = "s = socket(AF_INET, SOCK_DGRAM); s.bind(('127.0.0.1', 5000))"


@pytest.fixture
def inside(space: Namespace) -> Namespace:
    """A namespace in which loopback is up."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return space


@pytest.fixture
def actor(inside: Namespace) -> Iterator[Actor]:
    """A process in it."""
    with contextlib.closing(Actor()) as made:
        yield made


@pytest.fixture
def _all_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where every process can be looked into: one of the host that forbids it has none of the sockets tested."""

    def find(skip: int | None = None) -> Holders:
        return dataclasses.replace(find_holders(skip), why=None)

    monkeypatch.setattr(inventory, "find_holders", find)


def of(space: Namespace, found: Inventory) -> Any:
    """The sides of one namespace; those of the rest of this machine come and go."""
    return found.sides[found.sides["netns"] == space.cookie]


# what is done; the ends that are found
CASES = [
    (listen("AF_INET", "127.0.0.1"), [(LO4, 4000, LO4, 5000, 6, 0), (LO4, 5000, LO4, 4000, 6, 0)]),
    (listen("AF_INET6", "::1"), [(LO6, 4000, LO6, 5000, 6, 0), (LO6, 5000, LO6, 4000, 6, 0)]),
    (listen("AF_INET6", "::ffff:127.0.0.1"), [(LO4, 4000, LO4, 5000, 6, 0), (LO4, 5000, LO4, 4000, 6, 0)]),
    ("l = socket(AF_INET); l.bind(('127.0.0.1', 5000)); l.listen()", []),
    (UDP4, [(LO4, 5000, NONE, 0, 17, ANY_REMOTE)]),
    (f"{UDP4}; s.connect(('127.0.0.1', 9))", [(LO4, 5000, LO4, 9, 17, 0)]),
    ("s = socket(AF_INET6, SOCK_DGRAM); s.bind(('::1', 5000))", [(LO6, 5000, NONE, 0, 17, ANY_REMOTE)]),
    (
        "s = socket(AF_INET6, SOCK_DGRAM); s.bind(('::', 5000))",
        [(ZERO4, 5000, NONE, 0, 17, ANY), (ZERO6, 5000, NONE, 0, 17, ANY)],
    ),
    ("s = socket(AF_INET, SOCK_DGRAM)", []),
]


@pytest.mark.parametrize(("done", "expected"), CASES)
def test_who_has_what(inside: Namespace, actor: Actor, done: str, expected: list[Any]) -> None:
    """Connected sockets, and bound ones of UDP, are found with the one process that has them, at that moment."""
    actor.do(done)
    before = now()
    found = take_inventory(inside)
    rows = of(inside, found)
    assert ends(rows) == sorted(expected)
    assert set(rows["cookie"].tolist()) <= set(found.cookies.tolist()) - {0}
    told = {(int(row["pid"]), owner.METHODS[row["method"]], owner.CERTAINTIES[row["certainty"]]) for row in rows}
    assert told == ({(actor.pid, owner.OPEN, owner.HOLDER)} if expected else set())
    assert all(row["uid"] == 0 and row["comm"].startswith(b"python") for row in rows)
    assert all(before <= row["time"] == row["first"] == row["last"] <= now() for row in rows)


def test_other_namespaces(inside: Namespace, actor: Actor) -> None:
    """The sockets of a namespace that another process is in are found, too, each with its namespace's cookie."""
    actor.do(UDP4)
    other = Namespace.create()
    try:
        with other:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            second = Actor()
        with contextlib.closing(second):
            second.do(UDP4)
            found = take_inventory(inside)
        assert [of(space, found)["pid"].tolist() for space in (inside, other)] == [[actor.pid], [second.pid]]
    finally:
        other.close()


def test_shared_with_a_child(inside: Namespace, actor: Actor) -> None:
    """A socket that a child has inherited is the older process's, which is said not to be certain."""
    actor.do(UDP4)
    actor.do("import subprocess; p = subprocess.Popen(['cat'], stdin=subprocess.PIPE, pass_fds=[s.fileno()])")
    (row,) = of(inside, take_inventory(inside))
    assert (row["pid"], owner.CERTAINTIES[row["certainty"]]) == (actor.pid, owner.INHERITED)
    actor.do("s.close()")
    (row,) = of(inside, take_inventory(inside))
    assert (row["comm"], owner.CERTAINTIES[row["certainty"]]) == (b"cat", owner.HOLDER)
    actor.do("p.kill(); p.wait()")


WAITING = (
    "l = socket(); l.bind(('127.0.0.1', 5000)); l.listen(); c = socket(); c.bind(('127.0.0.1', 4000)); "
    "c.connect(('127.0.0.1', 5000))"
)
# what is done; the local ports of sockets that have a side
NOBODYS = [
    (WAITING, [4000]),
    (f"{listen('AF_INET', '127.0.0.1')}; c.close()", [5000]),
    (f"{listen('AF_INET', '127.0.0.1')}; a.send(b'x'); a.close()", [4000]),
    (f"{listen('AF_INET', '127.0.0.1')}; c.close(); a.close()", []),
    (f"{WAITING}; c.close()", []),
]


@pytest.mark.usefixtures("_all_seen")
@pytest.mark.parametrize(("done", "ports"), NOBODYS)
def test_sockets_of_no_process(inside: Namespace, actor: Actor, done: str, ports: list[int]) -> None:
    """What was closed, or waits to be accepted, is nobody's: it has no side and is not the kernel's."""
    before = set(take_inventory(inside).kernels.tolist())
    actor.do(done)
    found = take_inventory(inside)
    assert of(inside, found)["lport"].tolist() == ports
    assert found.why is None
    mine = _cookies(inside)
    assert mine <= set(found.cookies.tolist())
    assert not mine & (set(found.kernels.tolist()) - before)


def _cookies(space: Namespace) -> set[int]:
    """Of all sockets of a namespace that are ends of flows."""
    with contextlib.closing(SocketDumps(space)) as dumps:
        return set(dumps.read()["cookie"].tolist())


@pytest.mark.usefixtures("_all_seen")
def test_sockets_of_the_kernel(inside: Namespace, actor: Actor) -> None:
    """A socket that the kernel made for itself, here that of a tunnel, is the kernel's, and has no side."""
    add = ["ip", "link", "add", "tunnel", "type", "vxlan", "id", "1", "dstport", "4789", "dev", "lo"]
    if subprocess.run(add, capture_output=True, check=False).returncode:
        pytest.skip("no vxlan in this kernel")
    actor.do(UDP4)
    before = _cookies(inside)
    subprocess.run(["ip", "link", "set", "tunnel", "up"], check=True)
    made = _cookies(inside) - before
    found = take_inventory(inside)
    assert made
    assert made <= set(found.kernels.tolist())
    assert not before & set(found.kernels.tolist())
    assert of(inside, found)["pid"].tolist() == [actor.pid]


# Closes and binds the same ports over and over, for two seconds; says which errors came.
REBINDS = """
import time
from socket import *
def bound(port):
    s = socket(AF_INET, SOCK_DGRAM); s.bind(("127.0.0.1", port)); return s
ports = range(20000, 20200)
socks = [bound(port) for port in ports]
print("ready", flush=True)
end, rounds, errors = time.monotonic() + 2, 0, []
while time.monotonic() < end:
    for i, port in enumerate(ports):
        socks[i].close()
        try: socks[i] = bound(port)
        except OSError as error: errors.append(error.errno)
    rounds += 1
print(rounds, len(errors), set(errors) <= {98}, flush=True)
"""


def test_nobody_is_disturbed(inside: Namespace) -> None:
    """While inventories are taken without a pause, ports are free as soon as their process closed the socket, but for
    the microsecond in which the kernel itself holds what /proc/PID/fd is read of: no descriptor is duplicated.
    """
    process = subprocess.Popen([sys.executable, "-c", REBINDS], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        taken, seen = 0, 0
        while process.poll() is None:
            seen += len(of(inside, take_inventory(inside)))
            taken += 1
        rounds, errors, all_taken = process.communicate(timeout=10)[0].split()
    finally:
        process.kill()
        process.communicate()
    assert all_taken == "True"
    # With duplicates there are some per inventory; so there is one in some hundred.
    assert int(errors) <= 3 + taken // 10, f"{taken} inventories, {rounds} rounds"
    assert int(rounds) > 3
    assert taken > 3
    assert seen


POOR = """
import json
from conntracker.sources.inventory import take_inventory
from conntracker.sources.netns import Namespace
space = Namespace.current()
found = take_inventory(space)
rows = found.sides[found.sides["netns"] == space.cookie]
print(json.dumps([rows["pid"].tolist(), len(found.cookies), len(found.kernels), found.why]))
"""


@pytest.mark.needs("setpriv")
@pytest.mark.parametrize("missing", ["sys_ptrace", "sys_admin"])
def test_with_fewer_rights(inside: Namespace, actor: Actor, missing: str) -> None:
    """Without the rights to see all, what can be seen is, the reason is told, and nothing is taken for the kernel's."""
    actor.do(UDP4)
    command = [*without(missing), sys.executable, "-c", POOR]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    pids, listed, kernels, why = json.loads(done.stdout)
    assert listed >= 1
    assert kernels == 0
    assert why
    assert pids == [actor.pid] or (missing == "sys_ptrace" and pids == [])


def test_no_socket_at_all(inside: Namespace) -> None:
    """A namespace without sockets has no sides."""
    assert np.array_equal(of(inside, take_inventory(inside))["cookie"], [])
