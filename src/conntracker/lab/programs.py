"""Programs that talk to each other through the lab: processes of their own, with names, users and workers.

python -m conntracker.lab.programs serve web tcp 198.51.100.2 80        one of them, in its namespace
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from conntracker.lab.topology import SERVER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conntracker.lab.topology import Lab

__all__ = ["drive_programs"]

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15  # linux/prctl.h
NOBODY, DAEMON = 65534, 1  # user ids that every Debian has
WAIT = 10.0  # seconds for an answer, which comes in a millisecond

# name, user id, transport, port, processes that serve
SERVERS = (("web", NOBODY, "tcp", 80, 1), ("resolver", DAEMON, "udp", 53, 1), ("database", 0, "tcp", 7001, 3))
# name, user id, transport, port, exchanges, bytes of each answer
CLIENTS = (
    ("browser", NOBODY, "udp", 53, 3, 120), ("browser", NOBODY, "tcp", 80, 6, 40_000),
    ("reports", DAEMON, "tcp", 7001, 4, 900), ("backup", 0, "tcp", 7001, 1, 2_000_000),
    ("scanner", NOBODY, "tcp", 23, 1, 0),
)  # fmt: skip


def drive_programs(lab: Lab) -> int:
    """Starts servers and clients in their namespaces and waits for the clients; returns how many exchanges they had.

    The scanner knocks at a port that the firewall does not let through, and gives up. Raises OSError when a program
    does not do what it should.
    """
    other_users = os.geteuid() == 0 and _maps_all_users()
    with _running(lab, other_users):
        for name, uid, kind, port, exchanges, size in CLIENTS:
            arguments = ("ask", name, kind, SERVER[4], port, exchanges, size, uid if other_users else -1)
            with lab.client:
                client = _start(*arguments)
            if client.wait(WAIT + exchanges) != 0 and name != "scanner":
                raise OSError(0, f"the lab's {name} got no answer")
    return sum(exchanges for *_, exchanges, _ in CLIENTS)


@contextlib.contextmanager
def _running(lab: Lab, other_users: bool) -> Iterator[None]:
    servers: list[subprocess.Popen[bytes]] = []
    try:
        for name, uid, kind, port, workers in SERVERS:
            with lab.server:
                servers.append(_start("serve", name, kind, SERVER[4], port, workers, uid if other_users else -1))
        for server in servers:
            assert server.stdout is not None  # noqa: S101  asked for with PIPE
            if server.stdout.readline() != b"ready\n":
                raise OSError(0, "a server of the lab does not start")
        yield
    finally:
        for server in servers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()
            if server.stdout is not None:
                server.stdout.close()


def _start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", __name__, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)


def _maps_all_users() -> bool:
    with open("/proc/self/uid_map") as file:
        return file.read().split() == ["0", "0", "4294967295"]


# --- what runs in the processes ------------------------------------------------------------------------------------


def _become(name: str, uid: int) -> None:
    """Takes a name and a user, and ends with its parent."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_NAME, name.encode(), 0, 0, 0)
    if uid > 0:
        os.setgid(uid)
        os.setuid(uid)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _serve(name: str, kind: str, address: str, port: int, workers: int, uid: int) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    if kind == "tcp":
        sock.listen()
    _become(name, uid)
    for _ in range(workers - 1):
        if os.fork() == 0:
            _become(name, 0)
            break
    else:
        os.write(1, b"ready\n")
    while True:
        if kind == "udp":
            request, client = sock.recvfrom(2048)
            sock.sendto(bytes(int(request)), client)
            continue
        connection, _ = sock.accept()
        with connection:
            while request := connection.recv(2048):
                connection.sendall(bytes(int(request)))


def _ask(name: str, kind: str, address: str, port: int, exchanges: int, size: int, uid: int) -> None:
    _become(name, uid)
    for _ in range(exchanges):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as sock:
            sock.settimeout(WAIT if size else 0.3)
            sock.connect((address, port))
            sock.send(b"%d" % size)
            left = size
            while left > 0:
                received = len(sock.recv(65536))
                if not received:
                    raise ConnectionResetError
                left -= received


def _main(role: str, name: str, kind: str, address: str, *numbers: str) -> int:
    try:
        if role == "serve":
            port, workers, uid = map(int, numbers)
            _serve(name, kind, address, port, workers, uid)
        else:
            port, exchanges, size, uid = map(int, numbers)
            _ask(name, kind, address, port, exchanges, size, uid)
    except OSError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
