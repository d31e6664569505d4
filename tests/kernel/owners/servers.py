"""Servers of TCP, each run in a process of its own. None asks the kernel who its peer is."""

from __future__ import annotations

import array
import os
import selectors
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from kernel.owners.children import WORKERS, alike, execute, fork, new_pids, wait_for_ever, workers
from kernel.owners.post import PR_SET_NAME, Post, libc
from kernel.owners.truth import TCP, Hello, host_pid

__all__ = ["activation", "fork_each", "none", "pass_on", "pids", "prefork", "reuseport", "ring", "tcp", "threads"]

MPTCP = 262  # linux/in.h


def accept_with_address(sock: socket.socket) -> int:
    """accept(2) that asks for the peer's address, as most programs do."""
    return sock._accept()[0]  # type: ignore[attr-defined,no-any-return]


def accept_without(sock: socket.socket) -> int:
    """accept(2) that does not; Python's own always does."""
    fd: int = libc.accept(sock.fileno(), None, None)
    if fd < 0:
        raise BlockingIOError
    return fd


ACCEPT = {"address": accept_with_address, "null": accept_without, "mptcp": accept_with_address}


def answer(post: Post, fd: int) -> bool:
    """Reads what there is and answers the first message. False at the end."""
    try:
        data = os.read(fd, 65536)
        hello = Hello.decode(data)
        if hello is not None:
            post.answered(TCP, hello, post.case.inside)
        if data:
            os.write(fd, b"ok\n")
    except OSError:
        return False
    return bool(data)


def attend(post: Post, fd: int) -> None:
    """One connection until its end."""
    while answer(post, fd):
        pass
    os.close(fd)


def loop(post: Post, sock: socket.socket, accept: Callable[[socket.socket], int]) -> None:
    """Accepts and answers in one thread, for ever."""
    sock.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == sock.fileno():
                    with suppress(BlockingIOError):
                        selector.register(accept(sock), selectors.EVENT_READ)
                elif not answer(post, key.fd):
                    selector.unregister(key.fd)
                    os.close(key.fd)


def tcp(post: Post, how: str) -> None:
    """One process."""
    sock = post.listen(proto=MPTCP if how == "mptcp" else 0)
    post.ready()
    loop(post, sock, ACCEPT[how])


def prefork(post: Post, how: str) -> None:
    """Workers accept from the parent's listening socket; each has held that as well."""
    sock = post.listen()
    workers(post, WORKERS + 1, lambda: loop(post, sock, ACCEPT[how]))


def reuseport(post: Post, how: str) -> None:
    """Workers each have a listening socket at one port; none has a part in another's."""
    alike(post, lambda sock: loop(post, sock, ACCEPT[how]), socket.SOCK_STREAM)


def activation(post: Post, how: str) -> None:
    """A program is executed that inherits the listening socket, as systemd(1) does it."""
    holder = host_pid()
    sock = post.listen()
    post.ready()
    fork(lambda: _execute(post, how, sock, holder))
    wait_for_ever()


def ring(post: Post) -> None:
    """A program that accepts, receives and sends by io_uring."""
    sock = post.listen()
    post.ready()
    _execute(post, "ring", sock, 0)


def _execute(post: Post, how: str, sock: socket.socket, holder: int) -> None:
    words = [str(sock.fileno()), str(post.truth), post.case.name, post.case.on, str(post.case.inside), str(holder)]
    execute(post, "serve", how, *words, inherited=(sock.fileno(),))


def fork_each(post: Post, how: str) -> None:
    """The parent accepts, and a new child answers."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sock = post.listen()
    post.holders = [host_pid()]
    post.ready()
    while True:
        fd = ACCEPT[how](sock)

        def work(fd: int = fd) -> None:
            sock.close()
            attend(post, fd)

        fork(work)
        os.close(fd)


def pass_on(post: Post) -> None:
    """One accepts, and gives connections to a worker that was there before; see unix(7), SCM_RIGHTS."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    post.holders = [host_pid()]

    def work() -> None:
        while True:
            _, control, _, _ = theirs.recvmsg(1, 64)
            fd = array.array("i", control[0][2])[0]
            threading.Thread(target=attend, args=(post, fd), daemon=True).start()

    fork(work)
    sock = post.listen()
    post.ready()
    while True:
        fd = accept_with_address(sock)
        socket.send_fds(ours, [b"x"], [fd])
        os.close(fd)


def threads(post: Post) -> None:
    """A thread for each connection, with a name of its own."""
    sock = post.listen()
    post.ready()
    while True:
        fd = accept_with_address(sock)

        def work(fd: int = fd) -> None:
            libc.prctl(PR_SET_NAME, b"attendant", 0, 0, 0)
            attend(post, fd)

        threading.Thread(target=work, daemon=True).start()


def pids(post: Post) -> None:
    """A server that is process 1 of a namespace of pids."""
    new_pids()
    fork(lambda: tcp(post, "address"))
    wait_for_ever()


def none(post: Post) -> None:
    """Nobody."""
    post.ready()
