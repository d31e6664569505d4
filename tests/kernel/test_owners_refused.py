"""`conntracker -b` where BPF is refused: owners by sock_diag(7), and one line that says so and what is missing."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conntracker.sources.netns import Namespace
from kernel.owners.bpf_objects import SYSCALL, held
from kernel.owners.capture import Run, without
from kernel.owners.cgroup import needed_cgroup
from kernel.owners.truth import TCP

pytestmark = pytest.mark.needs("nft", "setpriv", "unshare", "umount")

RULES = "table inet t { chain c { type filter hook output priority 0; ct state new counter; }; }"
# Becomes another program, with a filter of seccomp(2) that answers bpf(2), or one of its commands, with an error and
# lets all else pass: four or six instructions of classic BPF (linux/filter.h) over struct seccomp_data
# (linux/seccomp.h).
# Arguments: the call's number, the error, the command or -1, the program and its arguments.
FILTER = """
import ctypes, os, struct, sys
LOAD_WORD, EQUAL, RETURN, NUMBER, FIRST = 0x20, 0x15, 0x06, 0, 16 if sys.byteorder == "little" else 20
ERROR, ALLOW = 0x00050000, 0x7FFF0000
call, error, command = map(int, sys.argv[1:4])
code = [(LOAD_WORD, 0, 0, NUMBER), (EQUAL, 0, 1 if command < 0 else 3, call)]
if command >= 0:
    code += [(LOAD_WORD, 0, 0, FIRST), (EQUAL, 0, 1, command)]
code += [(RETURN, 0, 0, ERROR | error), (RETURN, 0, 0, ALLOW)]
text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(text))
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0):
    sys.exit(os.strerror(ctypes.get_errno()))
os.execv(sys.argv[4], sys.argv[4:])
"""
# A process with both ends of a connection: it enters a cgroup, talks to itself, and stays until its input ends.
ACTOR = """
import socket, sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
    with server.accept()[0] as accepted:
        client.send(b"x")
        accepted.recv(1)
        print("ready", flush=True)
        sys.stdin.read()
"""
EVERY, MAP_CREATE, PROG_LOAD, RAW_TRACEPOINT_OPEN, LINK_CREATE = -1, 0, 5, 17, 28  # linux/bpf.h: enum bpf_cmd
NO_CGROUPS = 'umount -l -a -t cgroup2; exec "$@"'


def filtered(error: int, command: int = EVERY) -> list[str]:
    """What to put before a command whose bpf(2) shall fail."""
    return [sys.executable, "-c", FILTER, str(SYSCALL), str(error), str(command)]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A way to be refused.

    before   stands before the command
    says     what the one line says
    method   how owners are known then
    whole    whether the root of cgroup2 is asked for, which then cannot be found
    """

    name: str
    before: list[str]
    says: str
    method: str = "sock_diag"
    whole: bool = False


REFUSALS = [
    Refusal("no-bpf", without("bpf", "sys_admin"), r"BPF refused.*CAP_BPF"),
    Refusal("no-perfmon", without("perfmon", "sys_admin"), r"no CAP_PERFMON", "bpf"),
    Refusal(
        "no-cgroup2",
        ["unshare", "-m", "sh", "-c", NO_CGROUPS, "sh", *without("sys_admin")],
        r"BPF refused.*CAP_SYS_ADMIN",
        whole=True,
    ),
    Refusal("no-bpf-for-anybody", filtered(errno.EPERM), r"BPF refused.*not permitted"),
    Refusal("no-bpf-in-the-kernel", filtered(errno.ENOSYS), r"BPF refused.*not implemented"),
    Refusal("no-maps", filtered(errno.ENOMEM, MAP_CREATE), r"BPF refused.*[Cc]annot allocate"),
    Refusal("no-programs", filtered(errno.EACCES, PROG_LOAD), r"BPF refused.*ct_\w+.*denied"),
    Refusal("no-links", filtered(errno.EINVAL, LINK_CREATE), r"BPF refused.*ct_\w+.*[Ii]nvalid"),
    Refusal("no-tracepoints", filtered(errno.ENOENT, RAW_TRACEPOINT_OPEN), r"no tracepoints", "bpf"),
]


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A network namespace with loopback and connection tracking."""
    space = Namespace.create()
    with space:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=10)
        subprocess.run(["nft", "-f", "-"], input=RULES, text=True, check=True, timeout=10)
    yield space
    space.close()


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A directory of cgroup2 for the test alone."""
    with needed_cgroup("conntracker-refused") as path:
        yield path


@pytest.mark.parametrize("refusal", REFUSALS, ids=[refusal.name for refusal in REFUSALS])
def test_owners_all_the_same(host: Namespace, cgroup: str, tmp_path: Path, refusal: Refusal) -> None:
    """Both ends of a connection have their process, and one line, no more, says what is missing."""
    run = Run(host, tmp_path / "recording", None if refusal.whole else cgroup, refusal.before)
    try:
        with host:
            command = [sys.executable, "-c", ACTOR, cgroup]
            actor = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert actor.stdout is not None
            assert actor.stdout.readline() == "ready\n"
            time.sleep(1)  # it is polled four times a second
            assert (refusal.method == "bpf") == bool(held(run.process.pid)), "something is half attached"
            assert run.end() == 0, run.said
        finally:
            actor.kill()
            actor.communicate()
    finally:
        run.kill()
    assert len([line for line in run.said if re.search(refusal.says, line)]) == 1, run.said
    assert len([line for line in run.said if "owners:" in line and "open already" not in line]) == 1, run.said
    assert not [line for line in run.said if "Traceback" in line], run.said
    answers = [flow.answers[end] for flow in run.flows() for end in ("client", "server") if flow.proto == TCP]
    assert [(one.pids, one.method) for one in answers] == [((actor.pid,), refusal.method)] * 2


def test_no_rights_over_the_network_are_another_error(host: Namespace, tmp_path: Path) -> None:
    """Without CAP_NET_ADMIN there is no capture at all, with -b or without: one line, exit code 3."""
    command = [*without("net_admin"), sys.executable, "-m", "conntracker", "-b", "-o", str(tmp_path / "log")]
    with host:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 3, done.stderr
    assert "CAP_NET_ADMIN" in done.stderr
    assert "Traceback" not in done.stderr
