"""Who has which socket, kept up to date at little cost: of all processes those are looked into first that may have got
one since, and the time this takes is limited.

A process is known by the inode of its /proc/PID, which the kernel makes anew for each: reading /proc tells which ones
are new without opening anything. What it has is read, with its name, through that directory held open, so that an id
that is used again gives nobody a stranger's sockets.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from conntracker import clock
from conntracker.sources.holders import MAX_DESCRIPTORS, Holder, holder_in, why_blind

__all__ = ["Descriptors", "Having"]

# Seconds of CPU a second: to look for sockets that came, and to look into all processes in turn, while sockets come and
# else.
_SEEK, _TURN, _TURN_IDLE = 0.12, 0.03, 0.001
_CALM = 1.0  # seconds without new ones, after which it is "else"
_SAVED = 0.1  # seconds of CPU at most that are saved up to seek
_YOUNG = 0.75  # seconds for which a new process is looked into each time: it starts a program, and connects
_RECENTS_SHARE = 0.7  # how much of what there is may be spent on those

_DIRECTORY = os.O_DIRECTORY | os.O_CLOEXEC
_SOCKET = "socket:["


@dataclass(slots=True, eq=False)
class Having:
    """A process as it was when it was looked into last.

    inode     of /proc/PID
    time      when that was: microseconds since the epoch
    sockets   inode to descriptor
    """

    pid: int
    inode: int
    since: float
    looked: float = 0.0
    got: float = 0.0
    time: int = 0
    holder: Holder | None = None
    sockets: dict[int, int] = field(default_factory=dict)
    refused: str | None = None


class Descriptors:
    """The descriptors of sockets of all processes, of those in threads with a table of their own not."""

    def __init__(self) -> None:
        self._blind = why_blind()
        self._processes: dict[int, Having] = {}
        self._havers: dict[int, list[Having]] = {}
        self._news: set[int] = set()
        self._credit, self._turn = _SAVED, 0.0
        self._last = self._busy = time.monotonic()

    @property
    def why(self) -> str | None:
        """Why some sockets may be missing; None if every process could be looked into."""
        if self._blind is not None:
            return self._blind
        if len(self._havers) >= MAX_DESCRIPTORS:
            return f"more than {MAX_DESCRIPTORS} descriptors of sockets"
        return next((one.refused for one in self._processes.values() if one.refused is not None), None)

    @property
    def whole_since(self) -> float:
        """Every process has been looked into since then (time.monotonic)."""
        return min((one.looked for one in self._processes.values()), default=0.0)

    def of(self, inode: int) -> list[Having]:
        """Those that have a socket, as far as is known."""
        return self._havers.get(inode, [])

    def holders(self, inode: int) -> list[tuple[Holder, int]]:
        """The same, as who they are and when they had it. Where there are several they are asked again: a debugger, or
        a tool like this one, duplicates sockets for a moment.
        """
        having = [one for one in self.of(inode) if one.holder is not None]
        if len(having) > 1:
            having = [one for one in having if _has(one, inode)] or having
        return [(one.holder, one.time) for one in having if one.holder is not None]

    def look(self, wanted: Iterable[int]) -> set[int]:
        """Looks into new processes, and as far as time allows into others: first into those where the wanted sockets
        (inodes) may be. Returns the inodes of sockets that others have than before.
        """
        began, before = time.monotonic(), time.thread_time()
        self._news = set()
        came = self._list(began)
        missing = {inode for inode in wanted if inode not in self._havers}
        if missing:
            self._busy = began
        passed, self._last = began - self._last, began
        self._credit = min(_SAVED, self._credit + passed * _SEEK)
        self._turn = min(0.0, self._turn) + passed * (_TURN if began - self._busy < _CALM else _TURN_IDLE)
        self._look_at(came, set(), began)
        missing -= self._havers.keys()
        self._seek(missing, began, before)
        sought = time.thread_time()
        self._credit -= sought - before
        if self._turn > 0:
            oldest = sorted(self._processes.values(), key=lambda one: one.looked)
            self._look_at(oldest, missing, began, sought + self._turn)
        self._turn -= time.thread_time() - sought
        return self._news

    def _seek(self, missing: set[int], began: float, before: float) -> None:
        everybody = list(self._processes.values())
        until = before + self._credit
        self._look_at((one for one in everybody if began - one.since < _YOUNG), missing, began, until)
        if missing:
            recents = sorted((one for one in everybody if one.sockets), key=lambda one: -one.got)
            self._look_at(recents, missing, began, before + self._credit * _RECENTS_SHARE, True)
        if missing:
            everybody.sort(key=lambda one: one.looked)
            self._look_at(everybody, missing, began, until, True)

    def _look_at(
        self, these: Iterable[Having], missing: set[int], began: float, until: float = math.inf, seek: bool = False
    ) -> None:
        """Looks into processes, except those that it has been looked into since `began`, until the thread has used so
        much CPU, and if it is to `seek` only as long as sockets are missing.
        """
        for one in these:
            if time.thread_time() >= until or (seek and not missing):
                return
            if one.looked < began:
                self._look_into(one, began)
                missing -= one.sockets.keys()

    def _list(self, now: float) -> list[Having]:
        """Drops processes that have ended; returns the new ones."""
        with os.scandir("/proc") as entries:
            alive = {int(entry.name): entry.inode() for entry in entries if entry.name.isdigit()}
        for pid in [pid for pid, one in self._processes.items() if alive.get(pid) != one.inode]:
            self._set(self._processes.pop(pid), {})
        new = [Having(pid, inode, now) for pid, inode in alive.items() if pid not in self._processes]
        self._processes.update((one.pid, one) for one in new)
        return new

    def _look_into(self, one: Having, now: float) -> None:
        one.looked, one.refused = now, None
        try:
            directory = os.open(f"/proc/{one.pid}", os.O_PATH | _DIRECTORY)
        except OSError:  # it has ended; the next list will tell
            return
        try:
            if os.fstat(directory).st_ino != one.inode:
                return
            found = _sockets(directory)
            if found.keys() != one.sockets.keys():
                one.holder = holder_in(directory, one.pid)
        except (FileNotFoundError, ProcessLookupError):
            return
        except OSError as error:
            one.refused = f"/proc/{one.pid}/fd: {error.strerror}"
            return
        finally:
            os.close(directory)
        if one.holder is not None or not found:
            self._set(one, found)
            one.time = clock.now()

    def _set(self, one: Having, found: dict[int, int]) -> None:
        for inode in one.sockets.keys() - found.keys():
            havers = self._havers[inode]
            havers.remove(one)
            if not havers:
                del self._havers[inode]
            self._news.add(inode)
        new = found.keys() - one.sockets.keys()
        if new and len(self._havers) + len(new) > MAX_DESCRIPTORS:
            return
        for inode in new:
            self._havers.setdefault(inode, []).append(one)
            self._news.add(inode)
        if new:
            one.got = one.looked
        one.sockets = found


def _has(one: Having, inode: int) -> bool:
    try:
        return os.readlink(f"/proc/{one.pid}/fd/{one.sockets[inode]}") == f"{_SOCKET}{inode}]"
    except OSError:
        return False


def _sockets(process: int) -> dict[int, int]:
    """Inode to descriptor of the sockets of a process, by its directory."""
    directory = os.open("fd", os.O_RDONLY | _DIRECTORY, dir_fd=process)
    found = {}
    try:
        for name in os.listdir(directory):
            try:
                target = os.readlink(name, dir_fd=directory)
            except FileNotFoundError:
                continue
            if target.startswith(_SOCKET):
                found[int(target[len(_SOCKET) : -1])] = int(name)
    finally:
        os.close(directory)
    return found
