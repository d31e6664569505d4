"""What an actor knows: its case, who it is, and where the truth is written."""

from __future__ import annotations

import ctypes
import os
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kernel.owners.plan import BUSY, Case
from kernel.owners.truth import KERNEL, End, Hello, comm, host_pid, plain, write

__all__ = ["HOLD", "PR_SET_NAME", "Post", "be_nobody", "family", "libc"]

libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NAME = 15  # linux/prctl.h
HOLD = 1.2  # so long clients stay: ss(8), every half a second, has its chance
NOBODY = 65534
PATIENCE = 60  # seconds
SO_REUSEADDR_AND_PORT = (socket.SO_REUSEADDR, socket.SO_REUSEPORT)


def be_nobody() -> None:
    """This process is of the user nobody from now on."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def family(address: str) -> socket.AddressFamily:
    """Of a socket for an address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@dataclass(slots=True)
class Post:
    """Where an actor stands.

    truth, quick   descriptors: of the file of ends, and of the program quick.c
    number      of a client among those of its case
    server      the pid of the case's server, for clients
    gate        a descriptor that becomes readable when the capture runs
    started     one to write to when set up; see ready()
    holders     pids of others that hold what this process uses
    """

    case: Case
    truth: int
    quick: int
    number: int = 0
    server: int = 0
    gate: int = -1
    started: int = -1
    holders: list[int] = field(default_factory=list)

    @property
    def to(self) -> str:
        """Where this client goes."""
        return self.case.to.format(n=self.number + 1)

    def ready(self) -> None:
        """Says that the server can be asked, or the flow is there."""
        os.write(self.started, b"r")

    def stay(self, once_more: Callable[[], None]) -> None:
        """For a flow that was there before the capture: waits for that, and says something more, or not."""
        self.ready()
        select.select([self.gate], [], [], PATIENCE)
        if self.case.before == BUSY:
            once_more()

    def client(
        self, proto: int, own: tuple[str | None, int | None], port: int | None = None, *,
        holders: tuple[int, ...] = (), comms: tuple[str, ...] = (), doers: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        """Writes this process's end down."""
        local = None if own[0] is None else plain(own[0])
        self._write(
            End(
                self.case.name, "client", proto, local, own[1], plain(self.to), port, host_pid(), list(holders),
                list(comms) or [comm()], os.geteuid(), self.case.at, doers=list(doers),
            )
        )  # fmt: skip

    def answered(self, proto: int, hello: Hello, port: int) -> None:
        """Writes this process's end down, as the other end told of it."""
        local = self.case.public or plain(hello.to)
        self._write(
            End(
                self.case.name, "server", proto, local, port, plain(hello.address), hello.port, host_pid(),
                self.holders, [comm()], os.geteuid(), self.case.on,
            )
        )  # fmt: skip

    def other(
        self,
        proto: int,
        pid: int = KERNEL,
        port: int | None = None,
        remote: tuple[str | None, int | None] = (None, None),
    ) -> None:
        """Writes down for the other end of this client: it is the server's, or the kernel's."""
        address, remote_port = remote
        self._write(
            End(
                self.case.name, "server", proto, plain(self.to), port, address and plain(address), remote_port, pid,
                place=self.case.on,
            )
        )  # fmt: skip

    def _write(self, end: End) -> None:
        write(self.truth, end)

    def listen(self, reuseport: bool = False, proto: int = 0, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A bound socket; one of TCP listens."""
        where = self.case.bind or self.case.to
        sock = socket.socket(family(where), kind, proto)
        sock.setsockopt(socket.SOL_SOCKET, SO_REUSEADDR_AND_PORT[reuseport], 1)
        if where == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((where, self.case.inside))
        if kind == socket.SOCK_STREAM:
            sock.listen(256)
        return sock

    def hello(self, own: tuple[str, int]) -> bytes:
        """The first message of a client."""
        address = self.case.seen_as or plain(own[0])
        return Hello(self.case.name, address, own[1], plain(self.to)).encode()

    def take(self, number: int, server: int) -> Post:
        """The same for one client."""
        return replace(self, number=number, server=server)
