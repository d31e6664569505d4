"""Owners: the process behind an end of a flow, and how that is known.

A flow has two ends. The owner of its source sends the packets of the original direction, the owner of its destination
(behind DNAT, if there is any) those of the reply direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = [
    "BPF", "CERTAINTIES", "EXACT", "FORWARDED", "FORWARDS", "HOLDER", "INHERITED", "KERNEL", "KERNELS", "METHODS",
    "NO_ID", "OPEN", "PROCESS", "SHARED", "SOCK_DIAG", "Owner", "Process",
]  # fmt: skip

# Kinds of owners.
PROCESS, KERNEL, FORWARDED = "process", "kernel", "forwarded"

# How an owner is known: a BPF program saw the process at it; the socket was open already when the capture began, and
# the process had it; or the socket was found by sock_diag(7), and the process that had it by /proc.
BPF, OPEN, SOCK_DIAG = "bpf", "open", "sock_diag"
METHODS = (BPF, OPEN, SOCK_DIAG)

# How sure that is: the process was seen connecting, sending or receiving on this very socket; it made the socket, or
# the listening one that the socket comes from, and another may serve; several processes used it, this one last; it had
# the socket when somebody looked, when it was accepted or connected, or when it was closed, and who used it was not
# seen.
EXACT, INHERITED, SHARED, HOLDER = "exact", "inherited", "shared", "holder"
CERTAINTIES = (EXACT, INHERITED, SHARED, HOLDER)

NO_ID = 2**32 - 1  # a user id that is none: (uid_t) -1


@dataclass(frozen=True, slots=True)
class Process:
    """A process as it was when it was at the socket; None for what is not known (it had ended before one could look).

    pid          its id as seen from the namespace of pids in which conntracker runs
    start        when it began: microseconds since the epoch, UTC; tells it from a later process of the same id
    comm         its name, as ps(1) shows it: /proc/PID/comm; empty if not known
    exe          its program: /proc/PID/exe
    cmdline      its arguments, joined as one would type them; None without permission, and with --no-cmdline
    uid, user    its real user id when it was at the socket (the effective one where /proc told), and that one's name
                 on this host
    loginuid, login   who logged in to start it, see audit(8)
    ppid, parent the process that started it, and that one's name
    cgroup       its path in the unified hierarchy, as /proc/PID/cgroup shows it
    unit         the systemd unit that it is part of
    container, engine   the container's id or name, and what runs it: docker, podman, kubernetes, lxc, ...
    """

    pid: int
    comm: str
    uid: int
    start: int | None = None
    exe: str | None = None
    cmdline: str | None = None
    user: str | None = None
    loginuid: int | None = None
    login: str | None = None
    ppid: int | None = None
    parent: str | None = None
    cgroup: str | None = None
    unit: str | None = None
    container: str | None = None
    engine: str | None = None


@dataclass(frozen=True, slots=True)
class Owner:
    """Who is at one end of a flow.

    kind        PROCESS; KERNEL: the kernel itself, as for echo replies, NFS and WireGuard;
                FORWARDED: the flow only passes through here
    process     None unless kind is PROCESS
    method      one of METHODS; None unless kind is PROCESS
    certainty   one of CERTAINTIES; None unless kind is PROCESS
    netns       the cookie of its network namespace (SO_NETNS_COOKIE) where that is another than the one captured
    """

    kind: str
    process: Process | None = None
    method: str | None = None
    certainty: str | None = None
    netns: int | None = None

    def json(self) -> dict[str, Any]:
        """The keys of an owner as JSON has them everywhere."""
        own = self.process
        return {"kind": self.kind} | {
            name: None if own is None or (value := getattr(own, name)) == "" else value
            for name in Process.__dataclass_fields__
        } | {"method": self.method, "certainty": self.certainty, "netns": self.netns}  # fmt: skip


KERNELS, FORWARDS = Owner(KERNEL), Owner(FORWARDED)
