"""Processes that servers and clients make: workers that share a socket, workers alike, namespaces of pids."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import NoReturn

from kernel.owners.post import Post, libc
from kernel.owners.truth import host_pid

__all__ = ["WORKERS", "alike", "execute", "fork", "new_pids", "wait_for_ever", "workers"]

CLONE_NEWPID = 0x20000000  # linux/sched.h
WORKERS = 3


def fork(work: Callable[[], None]) -> int:
    """The pid of a child that does the work and nothing else."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def new_pids() -> None:
    """The next child is process 1 of a new namespace of pids."""
    if libc.unshare(CLONE_NEWPID):
        raise OSError("no namespace of pids")


def wait_for_ever() -> NoReturn:
    """What the parent of workers does."""
    while True:
        signal.pause()


def workers(post: Post, number: int, work: Callable[[], None]) -> NoReturn:
    """Children that share what this process has made; each knows that the others have it, too."""
    gates, pids = [], []
    for _ in range(number):
        read_end, write_end = os.pipe()

        def start(gate: int = read_end) -> None:
            post.holders = [int(word) for word in os.read(gate, 4096).split()]
            work()

        gates.append(write_end)
        pids.append(fork(start))
    for gate in gates:
        os.write(gate, " ".join(map(str, [host_pid(), *pids])).encode())
    post.ready()
    wait_for_ever()


def alike(post: Post, serve: Callable[[socket.socket], None], kind: socket.SocketKind) -> NoReturn:
    """Children with a socket each, all at one port."""
    read_end, write_end = os.pipe()

    def work() -> None:
        sock = post.listen(reuseport=True, kind=kind)
        os.write(write_end, b"r")
        serve(sock)

    for _ in range(WORKERS):
        fork(work)
    for _ in range(WORKERS):
        os.read(read_end, 1)
    post.ready()
    wait_for_ever()


def execute(post: Post, *words: str, inherited: tuple[int, ...] = ()) -> NoReturn:
    """This process becomes the program quick.c, with these arguments and descriptors, and that of the truth."""
    for fd in (post.truth, *inherited):
        os.set_inheritable(fd, True)
    os.execve(post.quick, ["quick", *words], {})  # noqa: S606
