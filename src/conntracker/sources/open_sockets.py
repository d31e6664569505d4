"""The sockets that are open already: each is duplicated for a moment and asked (pidfd_getfd(2), socket(7)).

That finds the sockets of all network namespaces without entering them, raw, ping and MPTCP sockets and listeners
included, and the duplicate is what BPF socket storage takes as its key. It does nothing to a socket, with one
exception: the kernel marks a socket that a process receives with its cgroups of net_cls and net_prio (receive_fd in
fs/file.c), so where somebody uses those, which version 1 of cgroups has, nothing is duplicated.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conntracker import clock, owner
from conntracker.sources.holders import Holder, Holders, find_holders, holder
from conntracker.wire.sides import ANY_LOCAL, ANY_REMOTE, SIDES, mapped
from conntracker.wire.sockdiag import PORTED

__all__ = ["Duplicates", "End", "OpenSocket", "OpenSockets", "Visit", "ask", "open_sockets", "why_not"]

_PIDFD_GETFD = 438  # the same number on every architecture
_SO_ACCEPTCONN, _SO_PROTOCOL, _SO_COOKIE, _SO_NETNS_COOKIE = 30, 38, 57, 71  # asm-generic/socket.h
_IPPROTO_MPTCP = 262
_ICMPS = (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)
_BOTH_FAMILIES = (17, 132, 136)  # of which a socket of IPv6 takes IPv4, too
# What sockfs calls the sockets that are none of ours (xattr system.sockprotoname); others are asked themselves.
_FOREIGN = (b"UNIX", b"NETLINK", b"PACKET")
_INHERITED, _HOLDER = owner.CERTAINTIES.index(owner.INHERITED), owner.CERTAINTIES.index(owner.HOLDER)
_METHOD = owner.METHODS.index(owner.OPEN)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class End(NamedTuple):
    """Addresses of a side as words, its ports and `wild`, see wire/sides.py."""

    local: tuple[int, int]
    remote: tuple[int, int]
    lport: int
    rport: int
    wild: int


_UNASKED = End((0, 0), (0, 0), 0, 0, 0)


@dataclass(frozen=True, slots=True)
class OpenSocket:
    """A socket of IPv4 or IPv6, and who has it.

    netns, cookie   SO_NETNS_COOKIE and SO_COOKIE; 0 before Linux 5.14 and 4.12
    domain, type, protocol   as socket(2) takes them; MPTCP is 262
    listening       whether it accepts connections
    holder          the process that has it, of several the oldest
    certainty       owner.HOLDER, or owner.INHERITED where several have it
    ends            what it is the end of; none for listeners, and for what is neither bound nor connected
    """

    netns: int
    cookie: int
    domain: int
    type: int
    protocol: int
    listening: bool
    holder: Holder
    certainty: str
    ends: tuple[End, ...]


@dataclass(frozen=True, slots=True)
class OpenSockets:
    """What was open.

    sides      rows of SIDES: connected sockets, datagram sockets that are bound, ping sockets
    count      sockets that were visited
    complete   whether every process could be looked into; sockets on their way between two processes are still missed
    why        why not
    """

    sides: NDArray[Any]
    count: int
    complete: bool
    why: str | None


Visit = Callable[[int, OpenSocket], None]


def open_sockets(visit: Visit | None = None, ends: bool = True) -> OpenSockets:
    """Calls `visit` with a descriptor, valid during the call, and what is known of it, for every socket of IPv4 and
    IPv6 that another process has. Whatever `visit` raises ends the walk.

    ends   whether sockets are asked for their addresses, which other programs may see them asked for; without, each has
           one side, with its cookie and its holder only
    """
    why = why_not()
    if why is not None:
        return OpenSockets(np.zeros(0, SIDES), 0, False, why)
    found = find_holders(skip=os.getpid())
    rows: list[tuple[Any, ...]] = []
    now = clock.now()
    count = 0
    for fd, opened in _each(found, ends):
        count += 1
        if visit is not None:
            visit(fd, opened)
        rows.extend(_row(opened, end, now) for end in opened.ends)
    return OpenSockets(np.array(rows, SIDES), count, found.why is None, found.why)


def _row(opened: OpenSocket, end: End, now: int) -> tuple[Any, ...]:
    protocol = socket.IPPROTO_TCP if opened.protocol == _IPPROTO_MPTCP else opened.protocol
    return (
        opened.netns, opened.cookie, *end.local, *end.remote, end.lport, end.rport, protocol, end.wild, _METHOD,
        _INHERITED if opened.certainty == owner.INHERITED else _HOLDER, opened.holder.pid, opened.holder.uid, 0, now,
        now, now, opened.holder.comm,
    )  # fmt: skip


def _each(found: Holders, ends: bool) -> Iterator[tuple[int, OpenSocket]]:
    """Duplicates one socket after the other. Notes in `found` where that is refused."""
    known: dict[int, Holder | None] = {}
    with Duplicates() as duplicates:
        for inode in found:
            having = found.of(inode)
            try:
                fd = duplicates.of(inode, having)
            except OSError as error:
                found.why = found.why or f"pidfd_getfd: {error.strerror}"
                continue
            if fd is None:
                continue
            try:
                for pid, _ in having:
                    if pid not in known:
                        known[pid] = holder(pid)
                opened = ask(fd, [one for pid, _ in having if (one := known[pid]) is not None], ends)
                if opened is not None:
                    yield fd, opened
            finally:
                os.close(fd)


class Duplicates:
    """Duplicates descriptors of other processes. Keeps the process of the last one open: many come in a row."""

    def __init__(self) -> None:
        self._pid, self._pidfd = 0, -1

    def of(self, inode: int, having: list[tuple[int, int]]) -> int | None:
        """A new descriptor of a socket; None if it is closed now, or of a foreign kind.

        Raises OSError if every process that has it refuses.
        """
        refused = None
        for pid, fd in having:
            try:
                with contextlib.suppress(OSError):  # ENODATA: no name, ask the socket itself
                    if os.getxattr(f"/proc/{pid}/fd/{fd}", "system.sockprotoname").startswith(_FOREIGN):
                        return None
                made = self._duplicate(pid, fd)
            except OSError as error:
                if error.errno not in (errno.ESRCH, errno.EBADF):
                    refused = error
                continue
            # A descriptor, or even a process id, may have been used again since the walk.
            if os.fstat(made).st_ino == inode:
                return made
            os.close(made)
        if refused is not None:
            raise refused
        return None

    def _duplicate(self, pid: int, fd: int) -> int:
        if pid != self._pid:
            self.close()
            self._pidfd = os.pidfd_open(pid)
            self._pid = pid
        made = int(_libc.syscall(ctypes.c_long(_PIDFD_GETFD), self._pidfd, fd, 0))
        if made < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return made

    def close(self) -> None:
        """Lets go of that process; again is harmless."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pid, self._pidfd = 0, -1

    def __enter__(self) -> Duplicates:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask(fd: int, having: list[Holder], wanted: bool = True) -> OpenSocket | None:
    """What the socket says of itself, with its ends if wanted; None if it is of another family, or all that had it have
    ended.
    """
    sock = socket.socket(fileno=fd)
    try:
        domain, kind, protocol = int(sock.family), int(sock.type), sock.proto
        if domain not in (socket.AF_INET, socket.AF_INET6) or not having:
            return None
        listening = bool(sock.getsockopt(socket.SOL_SOCKET, _SO_ACCEPTCONN))
        ends: tuple[End, ...] = (_UNASKED,)
        if wanted:
            ends = (
                ()
                if listening and kind == socket.SOCK_STREAM
                else tuple(_ends(sock, domain, kind, protocol))
            )
        certainty = owner.HOLDER if len(having) == 1 else owner.INHERITED
        netns, cookie = _cookie(sock, _SO_NETNS_COOKIE), _cookie(sock, _SO_COOKIE)
        return OpenSocket(netns, cookie, domain, kind, protocol, listening, min(having), certainty, ends)
    except OSError:  # shut down while it was asked
        return None
    finally:
        sock.detach()


def _cookie(sock: socket.socket, name: int) -> int:
    try:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, name, 8), sys.byteorder)
    except OSError:
        return 0


def _ends(sock: socket.socket, domain: int, kind: int, protocol: int) -> Iterator[End]:
    if kind == socket.SOCK_RAW and protocol in PORTED:
        return
    local, lport = _words(domain, sock.getsockname())
    try:
        remote, rport = _words(domain, sock.getpeername())
        wild = 0
    except OSError:  # ENOTCONN; EOPNOTSUPP of SCTP with many peers
        remote, rport, wild = (0, 0), 0, ANY_REMOTE
        if kind == socket.SOCK_STREAM or not lport:
            return
    if protocol in _ICMPS:
        rport = 0
    elif kind == socket.SOCK_RAW:
        lport = rport = 0  # getsockname gives the protocol in its place
    zeros = [mapped(0, 4 if domain == socket.AF_INET else 6)]
    if local != zeros[0]:
        yield End(local, remote, lport, rport, wild)
        return
    both = domain == socket.AF_INET6 and wild and protocol in _BOTH_FAMILIES
    if both and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        zeros.append(mapped(0, 4))
    for zero in zeros:
        yield End(zero, remote, lport, rport, wild | ANY_LOCAL)


def _words(domain: int, name: tuple[Any, ...]) -> tuple[tuple[int, int], int]:
    """A socket address as the words of its address, and its port."""
    packed = socket.inet_pton(domain, name[0].partition("%")[0])
    return mapped(int.from_bytes(packed), 4 if domain == socket.AF_INET else 6), name[1]


def why_not() -> str | None:
    """Why sockets must not, or cannot, be duplicated."""
    if not hasattr(os, "pidfd_open"):
        return "this Python has no pidfd_open"
    try:
        with open("/proc/cgroups") as file:  # name, hierarchy, cgroups, enabled; hierarchy 0 is version 2 or none
            lines = [line.split() for line in file]
    except OSError:
        return None
    for name, hierarchy, cgroups, *_ in lines:
        if name in ("net_cls", "net_prio") and hierarchy != "0" and int(cgroups) > 1:
            return f"cgroups of {name} are in use: a duplicated socket would be moved to ours"
    return None
