"""Owners as a part of a capture: real flows of namespaces of the test's own, sockets of a cgroup of its own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from conntracker import ownerwatch, tracker
from conntracker.clock import now
from conntracker.flows import FlowTable
from conntracker.lab import firewall
from conntracker.lab.topology import SERVER, Lab
from conntracker.model import DESTROY, NEW, NO_STATE, UDP, Batch
from conntracker.owner import BPF, EXACT, FORWARDS, HOLDER, KERNELS, SHARED, Owner
from conntracker.ownernumbers import NOBODY
from conntracker.ownerwatch import OwnerOptions
from conntracker.owning import Owning
from conntracker.sources.netns import Namespace
from kernel.owners.cgroup import needed_cgroup
from kernel.test_sockets import Actor

PATIENCE = 8.0  # seconds for an answer, which comes in a second
Both = tuple[Owner | None, Owner | None]


@dataclass
class Watched:
    """A capture with owners, and what it has seen."""

    flows: tracker.Capture
    owning: Owning
    table: FlowTable = field(default_factory=FlowTable)

    def take(self, seconds: float) -> None:
        """Takes in what comes for so long, and assigns."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for item in self.flows.poll(left):
                if isinstance(item, Batch):
                    self.table.apply(item)
        self.owning.assign(self.table)

    def finish(self) -> None:
        """Takes all that has happened until now."""
        self.take(0.2)
        self.owning.finish(self.table)

    def ends(self, dport: int) -> list[Both]:
        """The owners of the ends of flows to a port; of echo requests it is type << 8 | code."""
        owners = self.owning.owners
        found: list[Both] = []
        for ends in self.table.ends(0):
            for i in np.flatnonzero(ends.dport == dport).tolist():
                found.append((owners.get(int(ends.owner[i])), owners.get(int(ends.peer_owner[i]))))
        return found

    def wait(self, dport: int, fits: Callable[[Both], bool]) -> Both:
        """The owners of the one flow to a port, as soon as they fit, or at last."""
        end = time.monotonic() + PATIENCE
        while True:
            self.take(0.2)
            found = self.ends(dport)
            if (len(found) == 1 and fits(found[0])) or time.monotonic() > end:
                (both,) = found
                return both


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A directory of cgroup2 for the test alone."""
    with needed_cgroup("conntracker-owning") as path:
        yield path


@pytest.fixture
def start(cgroup: str) -> Iterator[Callable[[Namespace], Actor]]:
    """Starts processes in the cgroup and a namespace."""
    with contextlib.ExitStack() as stack:

        def begin(space: Namespace) -> Actor:
            with space:
                actor = stack.enter_context(contextlib.closing(Actor()))
            actor.do(f"open('{cgroup}/cgroup.procs', 'w').write('0')")
            return actor

        yield begin


@contextlib.contextmanager
def watching(space: Namespace, cgroup: str) -> Iterator[Watched]:
    """A capture in a namespace."""
    said: list[str] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(space)
        flows = stack.enter_context(tracker.capture(notice=said.append))
        options = OwnerOptions(cgroup)
        owning = stack.enter_context(Owning(flows.namespace, options, lambda: flows.lag, said.append))
        assert owning.method == BPF, said
        yield Watched(flows, owning)


@pytest.fixture
def watched(space: Namespace, cgroup: str) -> Iterator[Watched]:
    """A capture in a namespace in which loopback is up."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with watching(space, cgroup) as made:
        yield made


def is_of(owner: Owner | None, actor: Actor) -> bool:
    """Whether it is that process."""
    return owner is not None and owner.process is not None and owner.process.pid == actor.pid


def certainty(owner: Owner | None) -> str | None:
    """How sure an owner is."""
    return None if owner is None else owner.certainty


def known(both: Both) -> bool:
    """Whether both ends are."""
    return None not in both


@pytest.fixture
def router() -> Iterator[Lab]:
    """The lab, whose router tracks and lets all pass."""
    with Lab(firewall.CONNTRACK_ONLY) as made:
        yield made


def ask(server: Namespace, client: Namespace) -> None:
    """An exchange of the test's own process, which is in no cgroup that is watched."""
    with server:
        there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with client:
        here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with there, here:
        there.settimeout(5)
        here.settimeout(5)
        there.bind((SERVER[4], 4000))
        here.sendto(b"x", (SERVER[4], 4000))
        there.sendto(*there.recvfrom(10))
        here.recv(10)


def test_what_passes_through(router: Lab, cgroup: str) -> None:
    """On a router a flow between others is forwarded at both ends."""
    with watching(router.router, cgroup) as watched:
        ask(router.server, router.client)
        watched.finish()
        assert watched.ends(4000) == [(FORWARDS, FORWARDS)]


def test_a_process_behind_the_router(router: Lab, cgroup: str, start: Callable[[Namespace], Actor]) -> None:
    """An end in another namespace that is seen is its process's, and says which namespace; the other is forwarded."""
    with watching(router.router, cgroup) as watched:
        client = start(router.client)
        client.do(f"c = socket(AF_INET, SOCK_DGRAM); c.sendto(b'x', ('{SERVER[4]}', 4001))")
        owner, peer = watched.wait(4001, lambda both: is_of(both[0], client))
        assert is_of(owner, client)
        assert owner is not None
        assert owner.netns == router.client.cookie
        assert peer == FORWARDS


ECHO = (
    "import struct; p = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP); "
    "p.sendto(struct.pack('!BBHHH', 8, 0, 0xffff - 0x0800 - 77 - 1, 77, 1), ('127.0.0.1', 0))"
)


@pytest.mark.parametrize("answered", [True, False])
def test_echo_requests(watched: Watched, start: Callable[[Namespace], Actor], answered: bool) -> None:
    """The kernel answers echo requests; where none is answered, nobody is named."""
    Path("/proc/sys/net/ipv4/icmp_echo_ignore_all").write_text("0" if answered else "1")
    actor = start(watched.flows.namespace)
    actor.do(ECHO)
    watched.wait(8 << 8, lambda both: is_of(both[0], actor))
    watched.finish()
    ((owner, peer),) = watched.ends(8 << 8)
    assert is_of(owner, actor)
    assert peer == (KERNELS if answered else None)


def test_a_connection_that_was_handed_on(
    watched: Watched, start: Callable[[Namespace], Actor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that one process accepted and passed on to another is that one's, though it does nothing yet; once
    it uses the connection, it is so for certain.
    """
    for name, value in (("_PATIENCE", 0.3), ("_REFINED", 0.3), ("_REFINES", 1)):
        monkeypatch.setattr(ownerwatch, name, value)
    server, worker, client = (start(watched.flows.namespace) for _ in range(3))
    worker.do("u = socket(AF_UNIX, SOCK_DGRAM); u.bind('\\0worker')")
    server.do("v = socket(AF_UNIX, SOCK_DGRAM); v.connect('\\0worker')")
    server.do("l = socket(); l.bind(('127.0.0.1', 5000)); l.listen()")
    client.do("c = socket(); c.connect(('127.0.0.1', 5000)); c.send(b'x')")
    server.do("a, _ = l.accept(); send_fds(v, [b'x'], [a.fileno()]); a.close()")
    worker.do("a = socket(fileno=recv_fds(u, 10, 1)[1][0])")
    owner, peer = watched.wait(5000, lambda both: is_of(both[1], worker))
    assert is_of(owner, client)
    assert is_of(peer, worker)
    assert certainty(peer) == HOLDER
    worker.do("a.send(a.recv(10))")
    client.do("c.recv(10)")
    owner, peer = watched.wait(5000, lambda both: is_of(both[1], worker) and certainty(both[1]) != HOLDER)
    assert is_of(owner, client)
    assert is_of(peer, worker)
    assert certainty(peer) in (EXACT, SHARED)


def test_a_connection_that_goes_round(watched: Watched, start: Callable[[Namespace], Actor]) -> None:
    """A connection that one process used and another one goes on with is the later one's, and said to be shared."""
    server, worker, client = (start(watched.flows.namespace) for _ in range(3))
    worker.do("u = socket(AF_UNIX, SOCK_DGRAM); u.bind('\\0worker')")
    server.do("v = socket(AF_UNIX, SOCK_DGRAM); v.connect('\\0worker')")
    server.do("l = socket(); l.bind(('127.0.0.1', 5000)); l.listen()")
    client.do("c = socket(); c.connect(('127.0.0.1', 5000)); c.send(b'x')")
    server.do("a, _ = l.accept(); a.recv(10)")
    owner, peer = watched.wait(5000, lambda both: is_of(both[1], server))
    assert is_of(peer, server)
    server.do("send_fds(v, [b'x'], [a.fileno()]); a.close()")
    worker.do("a = socket(fileno=recv_fds(u, 10, 1)[1][0]); a.send(b'y')")
    watched.take(0.2)
    watched.finish()
    ((owner, peer),) = watched.ends(5000)
    assert is_of(owner, client)
    assert is_of(peer, worker)
    assert certainty(peer) == SHARED


def test_an_address_that_was_taken_over(watched: Watched, start: Callable[[Namespace], Actor]) -> None:
    """A flow of UDP whose server gave way to another one is the later one's, and said to be shared."""
    first, second, client = (start(watched.flows.namespace) for _ in range(3))
    serve = "s = socket(AF_INET, SOCK_DGRAM); s.bind(('127.0.0.1', 5000))"
    answer = "s.sendto(*s.recvfrom(10))"
    client.do("c = socket(AF_INET, SOCK_DGRAM); c.bind(('127.0.0.1', 4000))")
    peers = []
    for server in (first, second):
        server.do(serve)
        client.do("c.sendto(b'x', ('127.0.0.1', 5000))")
        server.do(answer)
        client.do("c.recv(10)")
        owner, peer = watched.wait(5000, known)
        watched.finish()
        ((owner, peer),) = watched.ends(5000)
        assert is_of(owner, client)
        assert is_of(peer, server)
        peers.append(peer)
        server.do("s.close()")
    assert [certainty(peer) for peer in peers] == [EXACT, SHARED]


def flows_of(kind: int, time: int, ports: list[int]) -> Batch:
    """Events of flows of UDP between two addresses of others."""
    n = len(ports)

    def words(values: list[int]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        return np.array(values, np.uint64)

    there, back = 0xC0000202_C6336402, 0xC6336402_C0000202  # 192.0.2.2 and 198.51.100.2
    nothing = np.zeros(n, np.uint32)
    return Batch(
        4, time, np.full(n, kind, np.uint8), (words([there] * n),),
        words([4000 << 48 | port << 32 | UDP << 8 for port in ports]), (words([back] * n),),
        words([port << 48 | 4000 << 32 | UDP << 8 for port in ports]),
        np.array(ports, np.uint32), nothing, nothing, np.full(n, NO_STATE, np.uint8),
    )  # fmt: skip


def test_what_ended_long_ago_is_left_alone(watched: Watched) -> None:
    """Flows that are alive or ended just now get their owners; those that ended a minute before nobody looks at."""
    then, minute = now(), 60_000_000
    watched.table.apply(flows_of(NEW, then - 2 * minute, [7001, 7002, 7003]))
    watched.table.apply(flows_of(DESTROY, then - minute, [7001]))
    watched.table.apply(flows_of(DESTROY, then - 1_000_000, [7002]))
    for _ in range(2):
        watched.owning.assign(watched.table)
    assert watched.ends(7001) == [(None, None)]
    assert watched.ends(7002) == watched.ends(7003) == [(FORWARDS, FORWARDS)]
    assert NOBODY not in watched.owning.owners


def test_sockets_that_were_open_before(space: Namespace, cgroup: str, start: Callable[[Namespace], Actor]) -> None:
    """A connection that was there before the capture has its owners from the start, and keeps them when it ends."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    server, client = start(space), start(space)
    with tracker.capture():  # connections are tracked from now on
        server.do("l = socket(); l.bind(('127.0.0.1', 5000)); l.listen()")
        client.do("c = socket(); c.connect(('127.0.0.1', 5000))")
        server.do("a, _ = l.accept()")
        with watching(space, cgroup) as watched:
            owner, peer = watched.wait(5000, known)
            assert is_of(owner, client)
            assert is_of(peer, server)
            client.do("c.close()")
            server.do("a.close()")
            watched.finish()
            ((owner, peer),) = watched.ends(5000)
            assert is_of(owner, client)
            assert is_of(peer, server)


def test_a_server_that_was_there_before(space: Namespace, cgroup: str, start: Callable[[Namespace], Actor]) -> None:
    """A server of UDP that was there before the capture and does not read what comes is still known to be the server,
    also after it is gone.
    """
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    server, client = start(space), start(space)
    server.do("s = socket(AF_INET, SOCK_DGRAM); s.bind(('127.0.0.1', 5000))")
    with watching(space, cgroup) as watched:
        client.do("c = socket(AF_INET, SOCK_DGRAM); c.sendto(b'x', ('127.0.0.1', 5000))")
        watched.take(0.3)
        server.do("s.close()")
        watched.finish()
        ((owner, peer),) = watched.ends(5000)
        assert is_of(owner, client)
        assert is_of(peer, server)
