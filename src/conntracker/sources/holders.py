"""Which processes have which socket: one walk over the descriptors of all processes, /proc/PID/fd (proc_pid_fd(5)).

What has no descriptor is not found so: a socket on its way in an SCM_RIGHTS message, and one that is only registered
with io_uring(7). Where something could not be looked into, the walk says so.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from conntracker.sources.privilege import capabilities, in_first_pid_namespace

__all__ = ["MAX_DESCRIPTORS", "Holder", "Holders", "find_holders", "holder", "holder_in", "why_blind"]

MAX_DESCRIPTORS = 1 << 20  # of sockets, that a walk keeps: some 150 bytes each

_PID_BITS = 32
_CAP_SYS_PTRACE = 19  # linux/capability.h
_USER_FILES = re.compile(rb"^UserFiles:\s*[1-9]", re.MULTILINE)  # io_uring/fdinfo.c
_GONE = (errno.ENOENT, errno.ESRCH)


@dataclass(frozen=True, slots=True, order=True)
class Holder:
    """A process that has a socket. The least of several is the oldest.

    start   clock ticks after boot (proc_pid_stat(5), field 22)
    pid     as /proc shows it
    uid     effective
    comm    at most 15 bytes
    """

    start: int
    pid: int
    uid: int
    comm: bytes


@dataclass(slots=True)
class Holders:
    """The descriptors of sockets, by the socket's inode.

    why   why some may be missing; None if every process could be looked into
    """

    why: str | None = None
    _first: dict[int, int] = field(default_factory=dict)
    _further: dict[int, list[int]] = field(default_factory=dict)

    def add(self, inode: int, pid: int, fd: int) -> None:
        """Notes a descriptor; further ones of the same process are no news."""
        packed = fd << _PID_BITS | pid
        first = self._first.setdefault(inode, packed)
        if (first ^ packed) & 0xFFFFFFFF:
            further = self._further.setdefault(inode, [])
            if not further or (further[-1] ^ packed) & 0xFFFFFFFF:
                further.append(packed)

    def __iter__(self) -> Iterator[int]:
        return iter(self._first)

    def __len__(self) -> int:
        return len(self._first)

    def __contains__(self, inode: int) -> bool:
        return inode in self._first

    def of(self, inode: int) -> list[tuple[int, int]]:
        """(process id, descriptor) of each process that has the socket, one descriptor each."""
        first = self._first.get(inode)
        if first is None:
            return []
        return [(packed & 0xFFFFFFFF, packed >> _PID_BITS) for packed in (first, *self._further.get(inode, ()))]


def find_holders(skip: int | None = None, limit: int = MAX_DESCRIPTORS) -> Holders:
    """Walks over all processes but `skip`: some 2 µs a descriptor, of any kind."""
    found = Holders(why_blind())
    room = limit
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == skip:
            continue
        try:
            room -= _add_process(found, int(name), room)
        except OSError as error:
            if error.errno not in _GONE:
                found.why = found.why or f"process {name}: {error.strerror}"
        if room <= 0:
            found.why = f"more than {limit} descriptors of sockets"
            break
    return found


def _add_process(found: Holders, pid: int, room: int) -> int:
    directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    count = 0
    try:
        for name in os.listdir(directory):
            try:
                target = os.readlink(name, dir_fd=directory)
            except OSError as error:
                if error.errno in _GONE:
                    continue
                raise
            if target.startswith("socket:["):
                found.add(int(target[8:-1]), pid, int(name))
                count += 1
                if count == room:
                    break
            elif target == "anon_inode:[io_uring]" and _registers_files(pid, name):
                found.why = found.why or f"process {pid} has files registered with io_uring, maybe sockets"
    finally:
        os.close(directory)
    return count


def _registers_files(pid: int, fd: str) -> bool:
    try:
        with open(f"/proc/{pid}/fdinfo/{fd}", "rb") as file:
            return _USER_FILES.search(file.read()) is not None
    except OSError as error:
        return error.errno not in _GONE


def holder(pid: int) -> Holder | None:
    """What /proc says of a process; None if it has ended."""
    try:
        directory = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return holder_in(directory, pid)
    finally:
        os.close(directory)


def holder_in(directory: int, pid: int) -> Holder | None:
    """The same, of /proc/PID held open: that stays the directory of one process, even if its id is used again."""
    try:
        stat = os.open("stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        try:
            text = os.read(stat, 4096)
        finally:
            os.close(stat)
        uid = os.fstat(directory).st_uid  # of this directory always the effective one (task_dump_owner)
    except OSError:
        return None
    begin, end = text.index(b"(") + 1, text.rindex(b")")
    return Holder(int(text[end + 2 :].split(None, 20)[19]), pid, uid, text[begin:end][:15])


def why_blind() -> str | None:
    """Why this process cannot look into every other one, None if it can."""
    try:
        if not capabilities() >> _CAP_SYS_PTRACE & 1:
            return "no CAP_SYS_PTRACE: the descriptors of other users' processes cannot be seen"
        if os.readlink("/proc/self") != str(os.getpid()):
            return "/proc is of another namespace of process ids"
        if not in_first_pid_namespace():
            return "in a namespace of process ids: processes outside of it cannot be seen"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return None
