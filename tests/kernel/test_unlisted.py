"""Sockets that no dump lists, of real processes."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess

import numpy as np
import pytest

from conntracker.sources import unlisted
from conntracker.sources.descriptors import Descriptors
from conntracker.sources.netns import Namespace
from conntracker.sources.unlisted import Unlisted
from conntracker.wire.sides import ANY_REMOTE

HERE = Namespace.current().cookie
NONE_LISTED = np.zeros(0, np.uint32)


class Asked:
    """What is said of the sockets of one namespace."""

    def __init__(self, netns: int) -> None:
        self._netns = netns
        self._descriptors, self.unlisted = Descriptors(), Unlisted(HERE)

    def ends(self, listed: tuple[int, ...] = ()) -> list[tuple[int, int, int, int]]:
        """(protocol, port, port of the peer, wild) of each."""
        news = self._descriptors.look(())
        rows = self.unlisted.update(self._descriptors, news, np.array(listed, np.uint32))
        rows = rows[rows["netns"] == self._netns]
        return sorted(rows[["proto", "lport", "rport", "wild"]].tolist())


@pytest.fixture
def asked(space: Namespace, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Of a new namespace, in which the thread is; it looks into all processes each time."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for name in ("_YOUNG", "_SAVED", "_SEEK"):
        monkeypatch.setattr(f"conntracker.sources.descriptors.{name}", 3600)
    return Asked(space.cookie)


def udp() -> socket.socket:
    """A bound socket."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 5000))
    return sock


def test_as_it_changes(asked: Asked) -> None:
    """A socket is told as it is: unbound, bound, connected, closed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert asked.ends() == []
        sock.bind(("127.0.0.1", 5000))
        assert asked.ends() == [(17, 5000, 0, ANY_REMOTE)]
        sock.connect(("127.0.0.1", 9))
        assert asked.ends() == [(17, 5000, 9, 0)]
    assert asked.ends() == []


def test_connections(asked: Asked) -> None:
    """Connections have two ends, and the listening socket none; they are asked once."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 5000)))
        one = stack.enter_context(socket.create_connection(("127.0.0.1", 5000)))
        stack.enter_context(listening.accept()[0])
        port = one.getsockname()[1]
        assert asked.ends() == sorted([(6, port, 5000, 0), (6, 5000, port, 0)])


def test_listed(asked: Asked) -> None:
    """What is listed is not asked."""
    with udp() as sock:
        assert asked.ends(listed=(os.fstat(sock.fileno()).st_ino,)) == []


def test_bounded(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number of sockets no more are kept."""
    monkeypatch.setattr(unlisted, "_MOST", 0)
    with udp():
        assert asked.ends() == []


def test_not_allowed(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where sockets must not be duplicated none are, and the reason is given."""
    monkeypatch.setattr(unlisted, "why_not", lambda: "net_cls")
    refused = Unlisted(HERE)
    asked.unlisted = refused
    with udp():
        assert asked.ends() == []
    assert refused.why == "net_cls"
