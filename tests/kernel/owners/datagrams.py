"""Servers and clients of UDP."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress

from kernel.owners.children import WORKERS, alike, fork, wait_for_ever, workers
from kernel.owners.plan import BUSY, IDLE
from kernel.owners.post import HOLD, Post, family
from kernel.owners.truth import UDP, Hello

__all__ = ["ask", "multicast", "refused", "serve"]

MANY = 5  # ports of a server with many


def serve(post: Post, how: str) -> None:
    """Takes datagrams with recvfrom(2), `null`: with recv(2); with several workers, sockets, or ports."""
    kind = socket.SOCK_DGRAM
    if how == "reuseport":
        alike(post, lambda sock: _serve(post, sock, how), kind)
    sock = post.listen(kind=kind)
    if how == "prefork":
        workers(post, WORKERS - 1, lambda: _serve(post, sock, how))
    if how == "many":
        for n in range(1, MANY):
            more = socket.socket(socket.AF_INET, kind)
            more.bind((post.case.to, post.case.inside + n))
            threading.Thread(target=_serve, args=(post, more, "address", n), daemon=True).start()
    if how == "two":
        other_version(post)
    post.ready()
    _serve(post, sock, how)


def other_version(post: Post) -> None:
    """Another process takes what comes to the same port by IPv6."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("::", post.case.inside))
    fork(wait_for_ever)
    sock.close()


def _serve(post: Post, sock: socket.socket, how: str, n: int = 0) -> None:
    peer = None
    while True:
        if how == "null":
            data = sock.recv(4096)
        else:
            data, peer = sock.recvfrom(4096)
        if how == "connects" and peer is not None:
            sock.connect(peer)
        hello = Hello.decode(data)
        if hello is not None:
            post.answered(UDP, hello, post.case.inside + n)
        if how == "connects":
            sock.send(b"ok\n")
        elif peer is not None:
            sock.sendto(b"ok\n", peer)
        if how == "prefork":
            time.sleep(0.05)  # another worker takes the next


def ask(post: Post, *how: str) -> None:
    """A datagram to each port of the server, and the answers; connected or not, or sent by a child of the maker."""
    sock = socket.socket(family(post.to), socket.SOCK_DGRAM)
    connected = "connected" in how or "anew" in how
    if connected:
        sock.connect((post.to, post.case.port))
    else:
        sock.bind(("", 0))
    if "child" in how and os.fork():
        os.wait()
        return
    own = (sock.getsockname()[0] if connected else _source(post), sock.getsockname()[1])
    answered = "null" not in post.case.server
    for port in range(post.case.port, post.case.port + (MANY if "many" in how else 1)):
        if "anew" in how:
            sock.connect((post.to, port))
        post.client(UDP, own, port, holders=(os.getppid(),) if "child" in how else ())
        _ask(sock, post.hello(own), None if connected else (post.to, port), answered)
    if post.case.before in (IDLE, BUSY):
        post.stay(lambda: _ask(sock, b"x\n", None if connected else (post.to, post.case.port), answered))
    time.sleep(HOLD)
    if "child" in how:
        os._exit(0)


def _ask(sock: socket.socket, message: bytes, target: tuple[str, int] | None, answered: bool) -> None:
    sock.settimeout(5)
    if target is None:
        sock.send(message)
    else:
        sock.sendto(message, target)
    if answered and target is None:
        sock.recv(10)
    elif answered:
        sock.recvfrom(10)


def _source(post: Post) -> str:
    """The address that the kernel takes for a socket that has none."""
    with socket.socket(family(post.to), socket.SOCK_DGRAM) as sock:
        sock.connect((post.to, 9))
        return str(sock.getsockname()[0])


def multicast(post: Post) -> None:
    """To a group of which nobody is a member, by loopback: there is no other end."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.77.0.1"))
        sock.bind(("", 0))
        post.client(UDP, ("10.77.0.1", sock.getsockname()[1]), post.case.port)
        sock.sendto(b"x", (post.to, post.case.port))
        time.sleep(HOLD)


def refused(post: Post) -> None:
    """Nobody is there; the kernel answers with port unreachable."""
    with socket.socket(family(post.to), socket.SOCK_DGRAM) as sock:
        sock.connect((post.to, post.case.port))
        sock.send(b"x")
        with suppress(ConnectionRefusedError):
            sock.recv(10)
            raise OSError("not refused")
        post.client(UDP, (None, sock.getsockname()[1]), post.case.port)
        post.other(UDP, port=post.case.port)
        time.sleep(HOLD)
