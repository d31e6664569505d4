"""The stage: a process that starts servers and clients by the table of cases, each a child of its own.

    python -m kernel.owners.stage CGROUP TRUTH QUICK host=FD a=FD b=FD [CASE...]

CGROUP is a directory that it moves into; TRUTH, QUICK and FD are open descriptors: the file of ends, the program of
quick.c, network namespaces. It answers lines on standard input with a line: "before" starts what is to be there before
the capture; "play" all else, and answers when all clients have ended. At the end of its input it kills every process
that it started, then itself.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from conntracker.sources.netns import Namespace
from kernel.owners import clients, datagrams, echoes, programs, servers
from kernel.owners.plan import CASES, LISTENER, Case
from kernel.owners.post import Post, libc

SERVERS: dict[str, Callable[..., None]] = {
    **{name: getattr(servers, name) for name in servers.__all__}, "http": programs.http, "udp": datagrams.serve,
}  # fmt: skip
CLIENTS: dict[str, Callable[..., None]] = {
    **{name: getattr(clients, name) for name in clients.__all__}, "udp": datagrams.ask,
    "udp_refused": datagrams.refused, "echo": echoes.echo, "ping": echoes.ping, "raw": echoes.raw,
    "quick": programs.quick, "udp_multicast": datagrams.multicast, "raw_udp": echoes.raw_udp, "tool": programs.tool,
}  # fmt: skip
PATIENCE = 30  # seconds that a server takes to start, or all clients to end
IO_URING_SETUP = 425  # the same number on every architecture
BURST, PAUSE = 40, 0.1  # so many clients begin at once, then a pause in seconds


def lacks(case: Case) -> str | None:
    """What of the kernel a case needs and does not have."""
    words = f"{case.server} {case.client}"
    if "mptcp" in words:
        try:
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, clients.MPTCP).close()
        except OSError:
            return "MPTCP"
    if "ring" in words:
        libc.syscall(IO_URING_SETUP, 0, None)
        if ctypes.get_errno() in (errno.ENOSYS, errno.EPERM):
            return "io_uring"
    return None


class Stage:
    """Servers and clients of some cases."""

    def __init__(self, truth: int, quick: int, spaces: dict[str, Namespace], cases: list[Case]) -> None:
        self._truth, self._quick, self._spaces = truth, quick, spaces
        self._cases = [case for case in cases if not lacks(case)]
        for case in cases:
            if case not in self._cases:
                print(f"{case.name}: {lacks(case)}: {programs.ABSENT}", file=sys.stderr, flush=True)
        self._gate, self._open_gate = os.pipe()
        self._servers: dict[str, int] = {}
        self._clients: dict[int, Case] = {}
        self._waited: dict[int, Case] = {}  # descriptors that children write to when they are ready

    def before(self) -> None:
        """What is there before the capture."""
        early = [case for case in self._cases if case.before]
        self._start_servers(early)
        self._start_clients([case for case in early if case.before != LISTENER], wait=True)

    def play(self) -> None:
        """All else, until the clients have ended."""
        late = [case for case in self._cases if not case.before]
        self._start_servers(late)
        os.close(self._open_gate)
        self._open_gate = -1
        self._start_clients(late + [case for case in self._cases if case.before == LISTENER], wait=False)
        self._wait()

    def _start_servers(self, cases: list[Case]) -> None:
        for case in cases:
            post = Post(case, self._truth, self._quick)
            self._servers[case.name] = self._child(post, case.on, SERVERS, case.server)
        self._all_ready()

    def _start_clients(self, cases: list[Case], wait: bool) -> None:
        begun = 0
        for case in cases:
            post = Post(case, self._truth, self._quick, gate=self._gate)
            for number in range(case.count):
                mine = post.take(number, self._servers[case.name])
                pid = self._child(mine, case.at, CLIENTS, case.client, wait)
                self._clients[pid] = case
                begun += 1
                if begun % BURST == 0 and not wait:
                    time.sleep(PAUSE)
        self._all_ready()

    def _child(
        self, post: Post, place: str, functions: dict[str, Callable[..., None]], words: str, wait: bool = True
    ) -> int:
        """Its pid. It has no descriptors but its own and the stage's few: ss(8) looks at those of every process."""
        ready, post.started = os.pipe() if wait else (-1, -1)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for fd in (self._open_gate, ready, *self._waited):
                    if fd >= 0:
                        os.close(fd)
                self._spaces[place].__enter__()
                name, *arguments = words.split()
                functions[name](post, *arguments)
                code = 0
            except BaseException:
                print(f"{post.case.name}:", traceback.format_exc(limit=-3), file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        if wait:
            os.close(post.started)
            self._waited[ready] = post.case
        return pid

    def _all_ready(self) -> None:
        """Until all servers can be asked, all early flows are there."""
        for ready, case in self._waited.items():
            if not select.select([ready], [], [], PATIENCE)[0] or not os.read(ready, 1):
                print(f"{case.name}: not ready", file=sys.stderr, flush=True)
            os.close(ready)
        self._waited.clear()

    def _wait(self) -> None:
        """Until all clients have ended; says which failed, and which lacked something."""
        ends = time.monotonic() + PATIENCE
        while self._clients and time.monotonic() < ends:
            pid, status = os.waitpid(-1, os.WNOHANG)
            case = self._clients.pop(pid, None)
            if pid == 0:
                time.sleep(0.01)
            elif case is not None and status:
                code = os.waitstatus_to_exitcode(status)
                why = programs.ABSENT if code == programs.MISSING else f"ended with {code}"
                print(f"{case.name}: a client: {why}", file=sys.stderr, flush=True)
        for pid, case in self._clients.items():
            print(f"{case.name}: client {pid} does not end", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> None:
    """Obeys."""
    cgroup, truth, quick, *rest = arguments
    Path(cgroup, "cgroup.procs").write_text("0")
    spaces = {place: Namespace(int(fd)) for place, _, fd in (word.partition("=") for word in rest if "=" in word)}
    names = [word for word in rest if "=" not in word]
    stage = Stage(int(truth), int(quick), spaces, [case for case in CASES if not names or case.name in names])
    gc.disable()
    os.setpgid(0, 0)
    try:
        for line in sys.stdin:
            {"before": stage.before, "play": stage.play}[line.strip()]()
            print("done", flush=True)
    finally:
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
