"""What is true of the ends of flows: each process writes down its own, a line of JSON an end.

Servers do not ask the kernel who their peer is, as getpeername(2) would help those who are tested: a client says in its
first message which case it is of and what its own end is.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field

__all__ = ["ICMP", "ICMPV6", "KERNEL", "TCP", "UDP", "End", "Hello", "comm", "host_pid", "plain", "read", "write"]

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
KERNEL = 0  # in place of a pid


@dataclass(frozen=True, slots=True)
class End:
    """One end of a flow.

    local, lport, remote, rport   as its socket has them, IPv4 never mapped; None: whatever it is
    pid         of the process that sent and received there, or KERNEL
    doers       pids of others that did so, too
    holders     of those that had the socket, or the listening one that it is from, at any time, besides
    comms       names that the process had while it used the socket
    uid         its effective user; None: anybody
    place       the network namespace of the socket
    time        when its first byte went or came: seconds since the epoch
    """

    case: str
    end: str
    proto: int
    local: str | None
    lport: int | None
    remote: str | None
    rport: int | None
    pid: int
    holders: list[int] = field(default_factory=list)
    comms: list[str] = field(default_factory=list)
    uid: int | None = None
    place: str = "host"
    time: float = 0.0
    doers: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Hello:
    """A client's first message, "case address port to\\n": its own end as the server sees it, and where it went to."""

    case: str
    address: str
    port: int
    to: str

    def encode(self) -> bytes:
        """As bytes."""
        return f"{self.case} {self.address} {self.port} {self.to}\n".encode()

    @classmethod
    def decode(cls, data: bytes) -> Hello | None:
        """None for what is no such message."""
        words = data.split(b"\n")[0].decode(errors="replace").split()
        if len(words) != 4 or not words[2].isdigit():
            return None
        return cls(words[0], words[1], int(words[2]), words[3])


def host_pid() -> int:
    """The pid of this process where /proc was mounted, which is outside of any namespace of pids made since."""
    return int(os.readlink("/proc/self"))


def comm() -> str:
    """The name of this process."""
    with open("/proc/self/comm") as file:
        return file.read().rstrip("\n")


def plain(address: str) -> str:
    """An address without the prefix of mapped ones (RFC 4291, 2.5.5.2)."""
    return address.removeprefix("::ffff:")


def write(fd: int, end: End) -> None:
    """Adds an end to a file that was opened to append; several processes may at a time."""
    os.write(fd, (json.dumps(asdict(end) | {"time": end.time or time.time()}) + "\n").encode())


def read(lines: Iterable[str]) -> Iterator[End]:
    """The ends of a file."""
    for line in lines:
        yield End(**json.loads(line))
