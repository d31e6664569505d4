"""Sockets of several network namespaces, as the kernel lists them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from conntracker.sources import socket_dumps
from conntracker.sources.netns import Namespace
from conntracker.sources.socket_dumps import Elsewhere, SocketDumps, namespaces
from kernel.owners.capture import without
from kernel.test_sockets import Actor

UDP4 = "s = socket(AF_INET, SOCK_DGRAM); s.bind(('0.0.0.0', 5000))"


@pytest.fixture
def other(space: Namespace) -> Iterator[Namespace]:
    """A namespace beside the one that the test is in."""
    made = Namespace.create()
    yield made
    made.close()


@pytest.fixture
def elsewhere(space: Namespace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    """The sockets of all namespaces but the test's; which there are is looked at each time."""
    monkeypatch.setattr(socket_dumps, "_ANEW", 0.0)
    with contextlib.closing(SocketDumps()) as own, contextlib.closing(Elsewhere(own)) as made:
        yield made


def inside(space: Namespace, *lines: str) -> Actor:
    """A process in a namespace that has done something."""
    with space:
        actor = Actor()
    for line in lines:
        actor.do(line)
    return actor


def ports(elsewhere: Elsewhere, space: Namespace) -> list[int]:
    """The local ports of a namespace's sockets."""
    return [int(row["lport"]) for rows in elsewhere.read() for row in rows if row["netns"] == space.cookie]


def descriptors() -> int:
    """How many this process has."""
    return len(os.listdir("/proc/self/fd"))


def test_namespaces_with_processes(space: Namespace, other: Namespace) -> None:
    """Those that a process is in are found, each by a path that leads to it, and others are not."""
    assert other.inode not in namespaces()
    with contextlib.closing(inside(other)):
        paths = namespaces()
        assert {os.stat(path).st_ino for path in paths.values()} == set(paths)
        assert other.inode in paths
    assert other.inode not in namespaces()


def test_a_namespace_comes_and_goes(elsewhere: Elsewhere, other: Namespace) -> None:
    """A new namespace is noticed, and one that its processes have left is let go of."""
    assert ports(elsewhere, other) == []
    before = descriptors()
    with contextlib.closing(inside(other, UDP4)) as actor:
        assert ports(elsewhere, other) == [5000]
        actor.do("s.close()")
        assert ports(elsewhere, other) == []
    elsewhere.read()
    assert descriptors() <= before
    assert elsewhere.why is None


def test_the_own_namespace_is_left_out(elsewhere: Elsewhere, space: Namespace) -> None:
    """What is asked for elsewhere are others' sockets, not those of the namespace that is asked for itself."""
    with contextlib.closing(inside(space, UDP4)):
        assert ports(elsewhere, space) == []


def test_not_looked_at_each_time(other: Namespace, space: Namespace) -> None:
    """Which namespaces there are is asked now and then, not with each reading."""
    with contextlib.closing(SocketDumps()) as own, contextlib.closing(Elsewhere(own)) as elsewhere:
        elsewhere.read()
        with contextlib.closing(inside(other, UDP4)):
            assert ports(elsewhere, other) == []


def test_nothing_is_left_when_closed(other: Namespace, space: Namespace) -> None:
    """Closing gives every socket back."""
    before = descriptors()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(inside(other, UDP4)))
        own = stack.enter_context(contextlib.closing(SocketDumps()))
        elsewhere = stack.enter_context(contextlib.closing(Elsewhere(own)))
        assert ports(elsewhere, other) == [5000]
    assert descriptors() == before


def test_like_another(other: Namespace, space: Namespace) -> None:
    """One made like another is of its own namespace, and lists what is there."""
    with contextlib.closing(inside(other, UDP4)), contextlib.closing(SocketDumps()) as own:
        with contextlib.closing(own.like(other)) as dumps:
            assert (own.netns, dumps.netns) == (space.cookie, other.cookie)
            assert [(row["lport"], row["netns"]) for row in dumps.read()] == [(5000, other.cookie)]
        assert len(own.read()) == 0


POOR = """
import json
from conntracker.sources.socket_dumps import Elsewhere, SocketDumps
own = SocketDumps()
elsewhere = Elsewhere(own)
parts = elsewhere.read()
print(json.dumps([len(own.read()), len(parts), elsewhere.why]))
"""


@pytest.mark.needs("setpriv")
def test_without_rights_over_namespaces(other: Namespace, space: Namespace) -> None:
    """Without CAP_SYS_ADMIN the own sockets are listed, and why no others are is told."""
    command = [*without("sys_admin"), sys.executable, "-c", POOR]
    with contextlib.closing(inside(other, UDP4)), contextlib.closing(inside(space, UDP4)):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    own, others, why = json.loads(done.stdout)
    assert (own, others) == (1, 0)
    assert why.startswith("sockets of other network namespaces: ")
    assert "CAP_SYS_ADMIN" in why or "ermi" in why
