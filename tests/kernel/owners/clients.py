"""Clients of TCP, each run in a process of its own."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time

from kernel.owners.children import fork, new_pids
from kernel.owners.plan import BUSY, IDLE
from kernel.owners.post import HOLD, PR_SET_NAME, Post, be_nobody, family, libc
from kernel.owners.truth import TCP, comm, host_pid

__all__ = ["passed", "refused", "reuse", "silent", "tcp", "unanswered"]

MPTCP = 262  # linux/in.h


def say(sock: socket.socket, message: bytes, how: str) -> None:
    """Sends a message by a way that is not send(2), if so asked."""
    if how not in ("sendfile", "splice"):
        sock.sendall(message)
        return
    with open(os.memfd_create("message"), "w+b", buffering=0) as file:
        file.write(message)
        if how == "sendfile":
            os.sendfile(sock.fileno(), file.fileno(), 0, len(message))
            return
        read_end, write_end = os.pipe()
        os.splice(file.fileno(), write_end, len(message), 0)
        os.splice(read_end, sock.fileno(), len(message))


def tcp(post: Post, how: str = "") -> None:
    """Connects, says hello, is answered, waits, closes."""
    if how == "thread":
        thread = threading.Thread(target=_named, args=(post,))
        thread.start()
        thread.join()
    elif how == "pids":
        new_pids()
        fork(lambda: _tcp(post, ""))
        os.wait()
    else:
        if how == "nobody":
            be_nobody()
        _tcp(post, how)


def _named(post: Post) -> None:
    name = comm()
    libc.prctl(PR_SET_NAME, b"a-thread", 0, 0, 0)
    _tcp(post, "", (name,))


def _tcp(post: Post, how: str, comms: tuple[str, ...] = ()) -> None:
    proto = MPTCP if how == "mptcp" else 0
    sock = socket.socket(family(post.to), socket.SOCK_STREAM, proto)
    if how == "same-ports":
        sock.bind((post.to, post.case.port + 1 + post.number))
    if how == "fastopen":
        sock.sendto(b"", socket.MSG_FASTOPEN, (post.to, post.case.port))
    else:
        sock.connect((post.to, post.case.port))
    own = sock.getsockname()
    doers = (host_pid(),) if how == "shared" else ()
    if how == "shared":
        sock.send(b"\n")
        sock.recv(10)
        if os.fork():
            os.wait()
            return
    holders = (fork(lambda: time.sleep(HOLD + 0.3)),) if how == "leak" else ()
    comms = {"rename": (comm(), "another-name"), "execute": (comm(), "sleep")}.get(how, comms)
    post.client(TCP, own[:2], post.case.port, comms=comms, doers=doers, holders=holders)
    say(sock, post.hello(own), how)
    sock.recv(10)
    if how == "execute":
        sock.set_inheritable(True)
        os.execvp("sleep", ["sleep", str(HOLD)])  # noqa: S606
    if post.case.before in (IDLE, BUSY):
        post.stay(lambda: _once_more(sock))
    time.sleep(HOLD)
    if how == "rename":
        libc.prctl(PR_SET_NAME, b"another-name", 0, 0, 0)
    sock.close()


def _once_more(sock: socket.socket) -> None:
    sock.sendall(b"x\n")
    sock.recv(10)


def silent(post: Post) -> None:
    """Connects and says nothing; nor does the server."""
    with socket.create_connection((post.to, post.case.port)) as sock:
        own = sock.getsockname()
        post.client(TCP, own[:2], post.case.port)
        post.other(TCP, post.server, post.case.port, own[:2])
        time.sleep(HOLD)


def passed(post: Post) -> None:
    """One process connects, another one talks; see unix(7), SCM_RIGHTS."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    talker = os.fork()
    if talker == 0:
        maker = int(ours.recv(10))
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        sock = socket.socket(fileno=fds[0])
        own = sock.getsockname()
        post.client(TCP, own[:2], post.case.port, holders=(maker,))
        sock.sendall(post.hello(own))
        sock.recv(10)
        time.sleep(HOLD)
        os._exit(0)
    theirs.send(str(host_pid()).encode())
    with socket.create_connection((post.to, post.case.port)) as sock:
        socket.send_fds(theirs, [b"x"], [sock.fileno()])
    os.wait()


def reuse(post: Post) -> None:
    """Two processes, one after the other at once, with the same ports: the first one resets its connection."""
    for _ in range(2):
        fork(lambda: _reset(post))
        os.wait()


def _reset(post: Post) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.bind((post.to, post.case.port + 1 + post.number))
        sock.connect((post.to, post.case.port))
        own = sock.getsockname()
        post.client(TCP, own, post.case.port)
        sock.sendall(post.hello(own))
        sock.recv(10)
        time.sleep(HOLD / 2)


def unanswered(post: Post) -> None:
    """Asks for an address that nobody has."""
    with socket.socket(family(post.to), socket.SOCK_STREAM) as sock:
        sock.settimeout(HOLD)
        post.client(TCP, (None, None), post.case.port)
        sock.connect_ex((post.to, post.case.port))


def refused(post: Post) -> None:
    """Nobody listens; the kernel answers with RST."""
    for _ in range(2):
        with socket.socket(family(post.to), socket.SOCK_STREAM) as sock:
            try:
                sock.connect((post.to, post.case.port))
            except ConnectionRefusedError:
                continue
            raise OSError("not refused")
    post.client(TCP, (None, None), post.case.port)
    post.other(TCP, port=post.case.port)
