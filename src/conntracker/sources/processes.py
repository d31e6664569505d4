"""What is known of a process: from /proc, read when it starts a program, as it may be gone a millisecond later.

The kernel's process events (NETLINK_CONNECTOR) tell when to read, and which of several processes of one id is meant.
Without them, /proc is read when somebody asks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import socket
import time as clock
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from conntracker.model import DecodeError
from conntracker.owner import NO_ID, Process
from conntracker.sources.cgroups import path_of
from conntracker.sources.netlink import SO_RCVBUFFORCE
from conntracker.wire import connector, procfs
from conntracker.wire.connector import COMM, EXEC, EXIT, FORK, UID, ProcessEvent

__all__ = ["READS_PER_SECOND", "Processes"]

READS_PER_SECOND = 500  # of processes, on events; and twice as many of those that are asked for
_NETLINK_CONNECTOR = 11
_RECEIVE_BUFFER = 1 << 20
_IMAGES = 20_000
_IMAGES_OF_ONE = 32  # a process that renames itself all the time
_ANSWERS_OF_ONE = 64  # one whose threads have all their own names

# Microseconds.
_TICK = 1_000_000 // os.sysconf("SC_CLK_TCK")
_EARLY = 2 * _TICK  # start times in /proc are in ticks, and clocks are set
_SLACK = 100  # between two readings of how clocks differ
_SURE = 1_000_000  # without events: so long after /proc was read, a process is taken to be the same,
_LIKELY = 2_000_000  # and so long, if it is gone by then
_FOREVER = 1 << 62


class _Facts(NamedTuple):
    """What /proc said; None for what it did not."""

    comm: str | None
    exe: str | None
    cmdline: str | None
    uid: int | None
    loginuid: int | None
    ppid: int | None
    start: int | None
    cgroup: str | None
    kernel_thread: bool


@dataclass(slots=True, eq=False)
class _Image:
    """What a process was from a time on, until its next image. `tried`: /proc has no more to say."""

    since: int
    facts: _Facts | None = None
    tried: bool = False
    answers: dict[Process, Process] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Life:
    """One process; its id may have others before and after. `checked`: when it was last seen alive."""

    start: int | None
    checked: int
    images: list[_Image]
    ppid: int | None = None
    parent: str | None = None
    end: int | None = None  # an exit was told, or nothing was there when /proc was read, or another has the id


class Processes:
    """The processes of this host, by id and time. `take` and `find` are for one thread.

    cmdline   whether command lines are read
    root      the root of cgroup2 (cgroups.open_root), for the paths of those that are gone
    missing   why there are no process events, None if there are
    skipped   how many processes were not read because too many started at once
    """

    def __init__(self, cmdline: bool = True, root: int | None = None) -> None:
        self.missing: str | None = None
        self.skipped = 0
        self._cmdline = cmdline
        self._root = root
        self._lives: dict[int, list[_Life]] = {}
        self._images = 0
        self._ended: deque[tuple[int, _Life]] = deque()
        self._answers: dict[int, dict[tuple[int, str, int], tuple[int, int, Process | None]]] = {}
        self._unknown: dict[Process, Process] = {}  # answers of which there is no image
        self._absent: dict[int, int] = {}  # when /proc was seen not to have an id
        self._on_event, self._on_demand = _Allowance(READS_PER_SECOND), _Allowance(2 * READS_PER_SECOND)
        self._pending: deque[tuple[int, ProcessEvent]] = deque()
        self._number = 0  # of the last pending event; and by id, of the last that makes another image, or none
        self._renewed: dict[int, int] = {}
        self._exited: dict[int, int] = {}
        self._boot = self._monotonic = 0
        self._set_clocks()
        self._lost = 0  # until when events may have been missed
        self._taken = _FOREVER
        self._socket: socket.socket | None = None
        self._path = lru_cache(4096)(self._look_up_path)
        try:
            self._socket = _listen()
            self._taken = 0
        except OSError as error:
            self.missing = error.strerror or str(error)

    def filenos(self) -> list[int]:
        """What to wait on until it is readable, and then to call take() without delay."""
        return [] if self._socket is None else [self._socket.fileno()]

    def take(self) -> None:
        """Takes the events that wait, and reads the files of processes that started a program."""
        if self._socket is None:
            return
        self._set_clocks()
        taken = _now()
        self._receive()
        while self._pending:
            self._apply(*self._pending.popleft())
        self._renewed.clear()
        self._exited.clear()
        self._taken = taken

    def find(self, pid: int, time: int, uid: int = NO_ID, comm: str = "", cgroup: int = 0) -> Process | None:
        """The process that had an id at a time (microseconds since the epoch); None for a thread of the kernel.

        uid, comm, cgroup   as the kernel saw them then; NO_ID, '' and 0 if not known

        The same process is the same object. Where nothing is known of it, it has what was given, and no more.
        """
        if time > self._taken:
            self.take()
        answers = self._answers.get(pid)
        if answers is not None:
            known = answers.get((uid, comm, cgroup))
            if known is not None and known[0] <= time < known[1]:
                return known[2]
        return self._resolve(pid, time, uid, comm, cgroup)

    def close(self) -> None:
        """No more events; again is harmless."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send(connector.ignore())
            self._socket.close()
            self._socket = None
            self._taken = _FOREVER
            self.missing = "closed"

    # Events

    def _receive(self) -> None:
        """Puts what waits behind the pending events."""
        assert self._socket is not None  # noqa: S101
        while True:
            try:
                datagram, (sender, _) = self._socket.recvfrom(4096)
                events = connector.decode(datagram) if sender == 0 else []
            except BlockingIOError:
                return
            except (DecodeError, OSError) as error:
                if isinstance(error, OSError) and error.errno != errno.ENOBUFS:
                    raise
                self._lost = _now()
                self._answers.clear()
                continue
            for event in events:
                self._number += 1
                self._pending.append((self._number, event))
                if event.what == EXEC or (event.what == FORK and event.thread == event.pid):
                    self._renewed[event.pid] = self._number
                elif event.what == EXIT and event.thread == event.pid:
                    self._exited[event.pid] = self._number

    def _apply(self, number: int, event: ProcessEvent) -> None:
        what, thread, pid = event.what, event.thread, event.pid
        if thread != pid and what != EXEC:  # other threads come and go, and have names of their own
            return
        time = self._monotonic + event.time // 1000
        self._answers.pop(pid, None)
        if what == FORK:
            self._forked(number, event, time)
            return
        life = self._current(pid)
        if what == EXEC:
            if life is None:
                life = self._add_life(pid, _Life(None, time, []))
            self._executed(number, pid, life, time)
        elif life is not None and what == EXIT:
            self._end(pid, life, time)
        elif life is not None and life.images[-1].facts is not None:
            facts = life.images[-1].facts
            if what == UID:
                self._add_image(life, _Image(time, facts._replace(uid=event.value), True))
            elif what == COMM:
                self._add_image(life, _Image(time, facts._replace(comm=event.comm), True))

    def _forked(self, number: int, event: ProcessEvent, time: int) -> None:
        """The child is what its parent is, until it executes something."""
        parent = self._current(event.parent)
        if parent is None:
            facts = self._read_at(number, event.parent)
            if facts is not None:
                parent = self._add_known(event.parent, facts, time)
        else:
            facts = parent.images[-1].facts
        life = _Life(time, time, [], event.parent or None, facts.comm if facts else None)
        self._add_life(event.pid, life)
        self._add_image(life, _Image(time, facts, facts is not None))

    def _executed(self, number: int, pid: int, life: _Life, time: int) -> None:
        life.end, life.checked = None, time
        image = _Image(time)
        facts = self._read_at(number, pid)
        if facts is not None and _same(life.start, facts.start):
            image.facts, image.tried = facts, True
            if life.start is None:
                life.start = facts.start
        self._add_image(life, image)

    def _read_at(self, number: int, pid: int) -> _Facts | None:
        """What /proc says of a process, if no pending event later than `number` makes it another by now."""
        if self._renewed.get(pid, 0) > number or self._exited.get(pid, 0) > number:
            return None
        if not self._on_event.spend():
            self.skipped += 1
            return None
        facts = self._read(pid)
        self._receive()
        return None if self._renewed.get(pid, 0) > number else facts

    # Lives and images

    def _current(self, pid: int) -> _Life | None:
        lives = self._lives.get(pid)
        return lives[-1] if lives else None

    def _add_life(self, pid: int, life: _Life) -> _Life:
        lives = self._lives.setdefault(pid, [])
        if lives and lives[-1].end is None:
            self._end(pid, lives[-1], lives[-1].checked)
        lives.append(life)
        return life

    def _end(self, pid: int, life: _Life, time: int) -> None:
        life.end = time
        self._ended.append((pid, life))

    def _add_known(self, pid: int, facts: _Facts, now: int) -> _Life:
        start = now if facts.start is None else facts.start
        life = self._add_life(pid, _Life(facts.start, now, []))
        self._add_image(life, _Image(start - _EARLY, facts, True))
        return life

    def _add_image(self, life: _Life, image: _Image) -> None:
        if len(life.images) == _IMAGES_OF_ONE:
            del life.images[0]
            self._images -= 1
        life.images.append(image)
        self._images += 1
        while self._images > _IMAGES:
            self._forget()

    def _forget(self) -> None:
        """The process that ended first, or if none ended, all of the id that was seen first."""
        if self._ended:
            pid, life = self._ended.popleft()
            lives = self._lives.get(pid, [])
            if life.end is None or life not in lives:
                return
            lives.remove(life)
            gone = [life]
        else:
            pid = next(iter(self._lives))
            gone, lives = self._lives[pid], []
        if not lives:
            self._lives.pop(pid, None)
        self._answers.pop(pid, None)
        self._images -= sum(len(life.images) for life in gone)

    def _at(self, pid: int, time: int) -> tuple[_Life | None, _Image | None, int]:
        """The process and image of an id at a time, None if that is not known, and until when that holds."""
        until = _FOREVER
        for life in reversed(self._lives.get(pid, ())):
            for image in reversed(life.images):
                if image.since - _SLACK <= time:
                    return life, image, until
                until = image.since - _SLACK
        return None, None, until

    def _certain(self, life: _Life) -> int:
        """Until when it is certain that an id has not gone on to another process or program."""
        if self._socket is not None and life.checked >= self._lost:
            return _FOREVER
        return max(life.checked + _SURE, life.end or 0)

    # Answers

    def _resolve(self, pid: int, time: int, uid: int, comm: str, cgroup: int) -> Process | None:
        life, image, until = self._at(pid, time)
        if until == _FOREVER and not self._settled(pid, time, life, image):
            if self._on_demand.spend():
                self._look(pid)
                life, image, until = self._at(pid, time)
            else:
                self.skipped += 1
        if life is None or image is None or time >= max(self._certain(life), life.checked + _LIKELY):
            since, until = time, until if until != _FOREVER else self._absent.get(pid, 0) + 1
            process = _process(pid, None, None, uid, comm, self._path(cgroup))
            found: Process | None = _interned(self._unknown, process, _IMAGES)
        else:
            since, until = image.since - _SLACK, min(until, self._certain(life))
            found = self._answer(pid, life, image, uid, comm, cgroup)
        if len(self._answers) >= _IMAGES:
            self._answers.clear()
        answers = self._answers.setdefault(pid, {})
        if len(answers) >= _ANSWERS_OF_ONE:
            answers.clear()
        answers[uid, comm, cgroup] = since, until, found
        return found

    def _settled(self, pid: int, time: int, life: _Life | None, image: _Image | None) -> bool:
        """Whether /proc has no more to say of the newest image of an id."""
        if life is None or image is None:
            return time <= self._absent.get(pid, 0)
        return (image.tried or life.end is not None) and time < self._certain(life)

    def _look(self, pid: int) -> None:
        """Reads /proc for what an id is now."""
        self._set_clocks()
        now, before = _now(), self._at(pid, _FOREVER)
        facts = self._read(pid)
        self.take()
        life, image, _ = after = self._at(pid, _FOREVER)
        if before != after:
            return  # an event came meanwhile: nobody knows what was read, before it or behind it
        self._answers.pop(pid, None)
        if facts is None:
            if len(self._absent) >= _IMAGES:
                self._absent.clear()
            self._absent[pid] = now
            if life is not None and image is not None:
                image.tried = True
                if life.end is None:
                    self._end(pid, life, life.checked)
        elif life is None or image is None or not _same(life.start, facts.start):
            self._add_known(pid, facts, now)
        else:
            if image.facts is None:
                image.facts = facts
            elif (image.facts.comm, image.facts.exe, image.facts.uid) != (facts.comm, facts.exe, facts.uid):
                image = _Image(life.checked, facts)
                self._add_image(life, image)
            image.tried, life.checked = True, now
            life.start = facts.start if life.start is None else life.start

    def _answer(self, pid: int, life: _Life, image: _Image, uid: int, comm: str, cgroup: int) -> Process | None:
        facts = image.facts
        if facts is not None and facts.kernel_thread:
            return None
        path = self._path(cgroup)
        if facts is not None and path in (None, "/"):  # in hybrid hierarchies the other one says more
            path = facts.cgroup or path
        ppid = life.ppid or (facts.ppid if facts else None)
        if life.parent is None and ppid:
            life.parent = self._name_of(ppid, life.start)
        return _interned(image.answers, _process(pid, life, facts, uid, comm, path), _ANSWERS_OF_ONE)

    def _name_of(self, ppid: int, start: int | None) -> str | None:
        """The name of the parent of a process that began at `start`."""
        _, image, _ = self._at(ppid, start or 0)
        if image is not None and image.facts is not None:
            return image.facts.comm
        with contextlib.suppress(OSError, DecodeError):
            stat = procfs.stat(_file(f"/proc/{ppid}/stat"))
            if start is None or self._start(stat.start) <= start + _EARLY:
                return stat.comm
        return None

    def _look_up_path(self, cgroup: int) -> str | None:
        path = path_of(self._root, cgroup) if cgroup and self._root is not None else None
        return None if path is None else procfs.text(os.fsencode(path))

    # /proc

    def _read(self, pid: int) -> _Facts | None:
        """What there is to read, first what is gone first. None if the process is."""
        try:
            # Held open, the directory stays that of this process, and is empty when it has ended.
            directory = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        exe = cmdline = stat = cgroup = loginuid = uid = None
        try:
            with contextlib.suppress(OSError):
                exe = procfs.text(os.fsencode(os.readlink("exe", dir_fd=directory)))
            if self._cmdline and (arguments := _try("cmdline", directory)):
                cmdline = procfs.cmdline(arguments)
            # /proc/PID belongs to the effective user (task_dump_owner), and to root once the process is gone.
            owner = os.fstat(directory).st_uid
            with contextlib.suppress(DecodeError):
                stat = procfs.stat(_try("stat", directory))
                cgroup = procfs.cgroup(_try("cgroup", directory))
                uid = owner
                loginuid = procfs.loginuid(_try("loginuid", directory))
        finally:
            os.close(directory)
        if stat is None:
            return None if exe is None else _Facts(None, exe, cmdline, uid, loginuid, None, None, cgroup, False)
        start = self._start(stat.start)
        return _Facts(stat.comm, exe, cmdline, uid, loginuid, stat.ppid, start, cgroup, stat.kernel_thread)

    def _start(self, ticks: int) -> int:
        return self._boot + ticks * _TICK

    def _set_clocks(self) -> None:
        """How far the epoch is from the zeros of the two clocks in which the kernel tells times."""
        now = clock.time_ns()
        self._monotonic = (now - clock.monotonic_ns()) // 1000
        boot = (now - clock.clock_gettime_ns(clock.CLOCK_BOOTTIME)) // 1000
        if abs(boot - self._boot) > _TICK // 2:  # small steps would give one process many start times
            self._boot = boot


class _Allowance:
    """So many a second, and as many saved up."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._left, self._last = float(rate), clock.monotonic()

    def spend(self) -> bool:
        """Whether there was one left, which is gone now."""
        now = clock.monotonic()
        self._left = min(self._rate, self._left + (now - self._last) * self._rate)
        self._last = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _interned(known: dict[Process, Process], process: Process, limit: int) -> Process:
    """The object that is there for an equal process; the oldest go where there are too many."""
    if len(known) >= limit and process not in known:
        del known[next(iter(known))]
    return known.setdefault(process, process)


def _process(pid: int, life: _Life | None, facts: _Facts | None, uid: int, comm: str, path: str | None) -> Process:
    """What was seen at the socket comes before what /proc said, but for the name: that may be a thread's."""
    if facts is not None and uid == NO_ID and facts.uid is not None:
        uid = facts.uid
    place = procfs.Place() if path is None else procfs.place(path)
    ppid = (life.ppid if life else None) or (facts.ppid if facts else None)
    return Process(
        pid, (facts.comm if facts else None) or comm, uid,
        start=life.start if life else None,
        exe=facts.exe if facts else None,
        cmdline=facts.cmdline if facts else None,
        user=_user(uid),
        loginuid=facts.loginuid if facts else None,
        login=_user(facts.loginuid) if facts and facts.loginuid is not None else None,
        ppid=ppid or None,
        parent=life.parent if life else None,
        cgroup=path, unit=place.unit, container=place.container, engine=place.engine,
    )  # fmt: skip


@lru_cache(4096)
def _user(uid: int) -> str | None:
    try:
        return None if uid == NO_ID else pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _same(one: int | None, other: int | None) -> bool:
    """Whether two start times may be of one process."""
    return one is None or other is None or abs(one - other) <= _EARLY


def _now() -> int:
    return clock.time_ns() // 1000


def _file(path: str, directory: int | None = None) -> bytes:
    """The first bytes of a file, more than any but a command line has."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(fd, procfs.CMDLINE_LIMIT + 1)
    finally:
        os.close(fd)


def _try(name: str, directory: int) -> bytes:
    try:
        return _file(name, directory)
    except OSError:
        return b""


def _listen() -> socket.socket:
    """A socket on which process events come. Raises OSError, with what is missing."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_CONNECTOR)
    except OSError as error:
        raise OSError(error.errno, f"no process events: this kernel has no connector ({error.strerror})") from None
    try:
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        _subscribe(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def _subscribe(sock: socket.socket) -> None:
    token = int.from_bytes(os.urandom(3), "little")
    try:
        sock.bind((0, connector.CN_IDX_PROC))
        first, second = connector.listen(token)
        sock.send(first)  # is answered before send(2) returns
        answer = _answer_to(token, sock)
    except OSError as error:
        raise OSError(error.errno, f"no process events: {_WHY.get(error.errno or 0, error.strerror)}") from None
    if answer is None:
        raise OSError(errno.EOPNOTSUPP, f"no process events: {_NO_ANSWER}")
    if answer:
        raise OSError(answer, f"no process events: {_WHY.get(answer, os.strerror(answer))}")
    sock.send(second)


_NO_ANSWER = "not in the first pid and user namespaces, or not in this kernel"
_WHY = {errno.EPERM: "needs CAP_NET_ADMIN", errno.ECONNREFUSED: "not in the first network namespace"}


def _answer_to(token: int, sock: socket.socket) -> int | None:
    """The errno with which a request was answered, None if it was not; events before that are of no use yet."""
    with contextlib.suppress(BlockingIOError):
        while True:
            for event in connector.decode(sock.recv(4096)):
                if event.what == connector.ACK and event.answers == token:
                    return event.value
    return None
