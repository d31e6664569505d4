"""Network namespaces without names: each is held by a file descriptor and gone when the last one closes.

A namespace lives as long as a process, a socket or a descriptor refers to it (network_namespaces(7)). Nothing is
mounted under /run/netns, so there is nothing to clean up: when the process dies, kill -9 included, the kernel takes the
namespace and every veth, route and rule in it down.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Namespace", "enter_user_namespace", "has_ipv6"]

CLONE_NEWUSER = 0x10000000  # linux/sched.h
CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
SO_NETNS_COOKIE = 71  # asm-generic/socket.h

_libc = ctypes.CDLL(None, use_errno=True)  # os.setns and os.unshare came with Python 3.12


class _Entered(threading.local):
    """The descriptors of the namespaces to return to, innermost last; setns(2) works on one thread, so does this."""

    def __init__(self) -> None:
        self.previous: list[int] = []


_entered = _Entered()


class Namespace:
    """A network namespace, held open by `fd`. As a context manager: the calling thread is inside it.

    A socket stays in the namespace in which it was made, and a subprocess starts in that of the calling thread.
    Entering nests, also into the same namespace again.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def create(cls) -> Namespace:
        """A new, empty namespace (`lo` is down). Raises OSError: EPERM without CAP_SYS_ADMIN."""
        before = _open_current()
        try:
            _call("unshare", CLONE_NEWNET, doing="make a network namespace")
            try:
                return cls(_open_current())
            finally:
                _call("setns", before, CLONE_NEWNET, doing="return to the network namespace")
        finally:
            os.close(before)

    @classmethod
    def current(cls) -> Namespace:
        """The namespace of the calling thread."""
        return cls(_open_current())

    @classmethod
    def find(cls, where: str) -> Namespace:
        """The namespace with a name (of `ip netns`), of a process (digits) or at a path (with a slash).

        Raises OSError if it cannot be opened, ValueError if it is no network namespace.
        """
        path = _path_of(where)
        try:
            # O_NONBLOCK: opening a FIFO that somebody names by mistake must not hang.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise OSError(error.errno, f"network namespace {where!r}: {path}: {error.strerror}") from None
        try:
            kind = fcntl.ioctl(fd, NS_GET_NSTYPE)
        except OSError:
            kind = 0
        if kind != CLONE_NEWNET:
            os.close(fd)
            raise ValueError(f"{path} is not a network namespace")
        return cls(fd)

    @property
    def inode(self) -> int:
        """The number that tells this namespace from all others alive (nsfs inode)."""
        return os.fstat(self.fd).st_ino

    @property
    def cookie(self) -> int:
        """A number that no other namespace has until the next boot, as inodes are used again; 0 before Linux 5.14."""
        with self, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            try:
                return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)
            except OSError:
                return 0

    @property
    def path(self) -> str:
        """A path by which other processes can open it while this one holds it, e.g. `nsenter --net=PATH`."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self) -> None:
        """Let go of it; again is harmless."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Namespace:
        before = _open_current()
        try:
            if os.fstat(before).st_ino != self.inode:  # setns(2) into the same one would need CAP_SYS_ADMIN as well
                _call("setns", self.fd, CLONE_NEWNET, doing="enter the network namespace")
        except OSError:
            os.close(before)
            raise
        _entered.previous.append(before)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        before = _entered.previous.pop()
        try:
            if os.fstat(before).st_ino != self.inode:
                _call("setns", before, CLONE_NEWNET, doing="return to the network namespace")
        finally:
            os.close(before)


def has_ipv6() -> bool:
    """Whether the calling thread's namespace has any IPv6 address, loopback's included."""
    try:
        with open("/proc/thread-self/net/if_inet6") as addresses:
            return bool(addresses.read(1))
    except FileNotFoundError:
        return False


def enter_user_namespace() -> None:
    """Give this unprivileged process all rights over network namespaces that it makes from now on.

    It becomes root of a new user namespace, in a new, empty network namespace: the way back to the old one needs rights
    that it does not have any more. Must run while the process has one thread (numpy starts some when it is imported).
    Raises OSError, with what to do, when the kernel forbids it. See user_namespaces(7).
    """
    uid, gid = os.getuid(), os.getgid()
    try:
        _call("unshare", CLONE_NEWUSER | CLONE_NEWNET, doing="make a user namespace")
        # gid_map can only be written by the unprivileged once setgroups(2) is off.
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise OSError(error.errno, "a process with several threads cannot make a user namespace") from None
        raise OSError(
            error.errno,
            f"no CAP_SYS_ADMIN, and no user namespaces here ({os.strerror(error.errno or 0)}): run as root, or allow "
            "them (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
            "kernel.apparmor_restrict_unprivileged_userns)",
        ) from None


def _path_of(where: str) -> str:
    if not where or where in {".", ".."} or "\0" in where:
        raise ValueError(f"not a network namespace: {where!r}")
    if "/" in where:
        return where
    if where.isascii() and where.isdigit():
        return f"/proc/{where}/ns/net"
    return f"/run/netns/{where}"


def _open_current() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _call(name: str, *arguments: int, doing: str) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        needs = " (needs CAP_SYS_ADMIN: run as root)" if number == errno.EPERM else ""
        raise OSError(number, f"cannot {doing}: {os.strerror(number)}{needs}")
