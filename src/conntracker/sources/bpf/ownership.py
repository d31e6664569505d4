"""The BPF programs that note which process is at each socket (owners.bpf.c): loaded, attached, read, taken down."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conntracker.sources.bpf.calls import (
    BpfError,
    Map,
    attach_cgroup,
    attach_tracepoint,
    load_program,
)
from conntracker.sources.privilege import capabilities, in_first_pid_namespace
from conntracker.wire.elf import read_object
from conntracker.wire.ownership import KEY, SIDE, USER, sides_of, users_of

__all__ = ["OBJECT", "Ownership"]

OBJECT = Path(__file__).parent / "owners.bpf.o"

CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 12, 21, 38, 39  # linux/capability.h
_SO_COOKIE = 57
_COOKIE = np.dtype("u8")

_USES = ("ct_sent", "ct_received")
_RECEIVES = ("ct_recvmsg4", "ct_recvmsg6")  # not needed where uses are seen, and they lock the socket

# Elements of ct_numbers
_ROWS, _LOST, _USERS, _SELF = range(4)


class Ownership:
    """The programs on one cgroup and everything below it.

    cgroup   a descriptor of its directory in cgroup2; the root's for all sockets of the host
    uses     whether to see who sends and receives, too, where the kernel can

    missing  what cannot be had, a line each
    lost     rows that the kernel had no room for

    Raises PermissionError naming the capability that is missing, BpfError (an OSError) for what the kernel refuses.
    """

    def __init__(self, cgroup: int, uses: bool = True) -> None:
        self._cgroup, self._links, self._programs = cgroup, list[int](), list[int]()
        self._maps: dict[str, Map] = {}
        self.missing: list[str] = []
        self._seen = self._seen_users = 0
        held = capabilities()
        self._named = bool(held >> CAP_PERFMON & 1 or held >> CAP_SYS_ADMIN & 1)
        _require(held)
        _unlimit()
        self._object = read_object(OBJECT.read_bytes())
        try:
            self._maps = {name: Map(name, shape) for name, shape in self._object.maps.items()}
            if in_first_pid_namespace():
                self._set(_SELF, os.getpid())
            self.sees_uses = uses and self._attach_uses()
            for name in self._object.programs:
                if name not in _USES and not (self.sees_uses and name in _RECEIVES):
                    self._attach(name)
        except BaseException:
            self.close()
            raise

    def take(self) -> NDArray[Any] | None:
        """SIDES rows that came since the last call; None if there are none."""
        rows = self._number(_ROWS)
        if rows == self._seen:
            return None
        self._seen = rows
        return sides_of(*self._maps["ct_sides"].take(KEY, SIDE), _boot_offset(), self.sees_uses)

    def users(self) -> NDArray[Any] | None:
        """USERS rows of the sockets that are open; None if none came since the last call."""
        users = self._number(_USERS)
        if users == self._seen_users:
            return None
        self._seen_users = users
        return users_of(self._maps["ct_users"].read(_COOKIE, USER)[1], _boot_offset())

    @property
    def lost(self) -> int:
        """How many rows did not fit."""
        return self._number(_LOST)

    def close(self) -> None:
        """Takes everything down: at once, and completely."""
        for descriptor in (*self._links, *self._programs):
            os.close(descriptor)
        for held in self._maps.values():
            held.close()
        self._links, self._programs, self._maps = [], [], {}

    def __enter__(self) -> Ownership:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- attaching ---------------------------------------------------------------------------------------------

    def _attach(self, name: str) -> None:
        program = self._object.programs[name]
        loaded = load_program(name, program, self._object, self._maps, self._named)
        self._programs.append(loaded)
        try:
            if program.section.startswith("raw_tp/"):
                self._links.append(attach_tracepoint(loaded, program.section))
            else:
                self._links.append(attach_cgroup(loaded, program.section, self._cgroup))
        except OSError as error:
            raise BpfError(error.errno, f"attaching {name}: {error.strerror}") from error

    def _attach_uses(self) -> bool:
        """Attaches the two raw tracepoints, and proves that they see what they should; else does without them."""
        if not self._named:
            self.missing.append("no CAP_PERFMON: who serves a socket that several processes share is not seen")
            return False
        before = len(self._links), len(self._programs)
        try:
            for name in _USES:
                self._attach(name)
            proven = self._prove()
            why = "the kernel's sockets look unlike those known"
        except OSError as error:
            proven, why = False, error.strerror or str(error)
            if error.errno == errno.ENOENT:
                why = "the kernel has no tracepoints for it (Linux 6.3)"
        if not proven:
            for descriptor in (*self._links[before[0] :], *self._programs[before[1] :]):
                os.close(descriptor)
            del self._links[before[0] :], self._programs[before[1] :]
            self.missing.append(f"{why}: who serves a socket that several processes share is not seen")
        return proven

    def _prove(self) -> bool:
        """Whether a socket of ours is noted under its cookie when it sends and when it receives, with our process.

        A pair of local sockets: nothing goes over any network.
        """
        ends = socket.socketpair()
        cookies = [end.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8) for end in ends]
        users = self._maps["ct_users"]
        try:
            ends[0].send(b"x")
            ends[1].recv(1)
            noted = [users.lookup(cookie) for cookie in cookies]
            pids = {struct.unpack_from("=I", one)[0] for one in noted if one is not None}
            if not in_first_pid_namespace() and len(pids) == 1:
                self._set(_SELF, pids.pop())
                return None not in noted
            return None not in noted and pids == {os.getpid()}
        finally:
            for end, cookie in zip(ends, cookies, strict=True):
                users.delete(cookie)
                end.close()

    # --- numbers -----------------------------------------------------------------------------------------------

    def _number(self, which: int) -> int:
        value = self._maps["ct_numbers"].lookup(struct.pack("=I", which))
        return 0 if value is None else int.from_bytes(value, sys.byteorder)

    def _set(self, which: int, value: int) -> None:
        self._maps["ct_numbers"].update(struct.pack("=I", which), struct.pack("=Q", value))


def _require(held: int) -> None:
    """CAP_SYS_ADMIN stands for CAP_BPF, as before Linux 5.8."""
    missing = [] if held >> CAP_BPF & 1 or held >> CAP_SYS_ADMIN & 1 else ["CAP_BPF"]
    missing += [] if held >> CAP_NET_ADMIN & 1 else ["CAP_NET_ADMIN"]
    if missing:
        raise PermissionError(errno.EPERM, f"no {' and no '.join(missing)}")


def _unlimit() -> None:
    """Before Linux 5.11 maps count as locked memory, of which there is little by default."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        return


def _boot_offset() -> int:
    """Nanoseconds from CLOCK_BOOTTIME to the epoch."""
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
