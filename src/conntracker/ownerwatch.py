"""Who is at the sockets of this host, watched in a thread: sides as they come, each with the number of its owner.

The ladder: BPF programs see every socket; where they are refused, sock_diag(7) is polled, which misses what lives
shorter than an interval. Processes are looked at as soon as they show up, since they may be gone in a moment.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conntracker.clock import now
from conntracker.model import U32, DecodeError
from conntracker.owner import BPF, CERTAINTIES, EXACT, HOLDER, INHERITED, METHODS, SHARED
from conntracker.ownernumbers import KERNEL, OwnerNumbers
from conntracker.sources.bpf.ownership import Ownership
from conntracker.sources.cgroups import is_whole, open_root
from conntracker.sources.inventory import Inventory, take_inventory
from conntracker.sources.netns import Namespace
from conntracker.sources.privilege import in_first_pid_namespace
from conntracker.sources.processes import Processes
from conntracker.sources.sockets import INTERVAL, SocketTable
from conntracker.wire.ownership import USERS
from conntracker.wire.sides import CLOSER, SIDES

__all__ = ["OwnerOptions", "OwnerWatch"]

_PERIOD = 0.1  # seconds between two looks at the programs' rows
_REFINED = (
    30.0  # seconds between two looks at who has sockets of which only is known who made them; more if that is slow
)
_REFINES = 50  # that many times as long as a look took, at least
_MOST_UNCERTAIN, _MOST_OPEN = 20_000, 200_000
_MOST_WAITING, _MOST_USERS = 1_000_000, 10  # rows, and readings, that the capture has not taken yet
_RECONCILED = 600.0  # and at least so often, to find out which sockets are gone without a word
_PATIENCE = 5.0  # seconds in which a process may yet be seen using its socket
_EXACT, _INHERITED, _SHARED, _HOLDER = (CERTAINTIES.index(name) for name in (EXACT, INHERITED, SHARED, HOLDER))
_BY_BPF = METHODS.index(BPF)

Sides = tuple[NDArray[Any], U32]


@dataclass(frozen=True, slots=True)
class OwnerOptions:
    """What -b does.

    cgroup    only sockets of this directory of cgroup2 and those below it; None for all of the host
    cmdline   whether the arguments of processes are kept
    """

    cgroup: str | None = None
    cmdline: bool = True


class _Unsure(NamedTuple):
    """A socket whose process was not seen using it: who may have it (0: nobody is known), and since when that is so
    (time.monotonic).
    """

    pid: int
    since: float


class OwnerWatch:
    """Watches in a thread of its own until `close`.

    namespace   the network namespace that the flows are of
    notice      called with a line for a person

    numbers     every owner by its number
    method      owner.BPF or owner.SOCK_DIAG
    whole       whether a socket that is not known of cannot be a process's
    lost        rows that were lost, in the kernel or here
    ended       when watching broke off, microseconds since the epoch; None if it did not
    """

    def __init__(self, namespace: Namespace, options: OwnerOptions, notice: Callable[[str], None]) -> None:
        self._namespace, self._notice = namespace, notice
        self.netns = namespace.cookie
        self._sides: list[Sides] = []
        self._users: list[Sides] = []  # USERS rows
        self._lock = threading.Lock()
        self._turn = self._waiting = self._given_up = 0
        self._open_now: tuple[NDArray[np.uint64], int] | None = None
        self._open_before: dict[int, Any] = {}  # SIDES rows by cookie
        self._netns_of: dict[int, int] = {}  # of all sockets that were open before, accepted or not
        self._uncertain: dict[int, _Unsure] = {}  # open sockets, by their cookies
        self._ownerless: set[int] = set()  # cookies of sockets that no process had when that was looked at last
        self._refined = time.monotonic()
        self._failed: Exception | None = None
        self._failing = False
        self.ended: int | None = None
        self.whole, self.lost, self.restricted = False, 0, options.cgroup is not None
        self._stack = contextlib.ExitStack()
        try:
            self._open(options)
        except BaseException:
            self._stack.close()
            raise
        self._thread = threading.Thread(target=self._run, name="owners", daemon=True)
        self._thread.start()

    def _open(self, options: OwnerOptions) -> None:
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for fd in (self._wake_read, self._wake_write):
            self._stack.callback(os.close, fd)
        self._bpf: Ownership | None = None
        self._table: SocketTable | None = None
        root = self._open_root()
        try:
            cgroup = root if options.cgroup is None else self._open_cgroup(options.cgroup)
            self._bpf = self._stack.enter_context(Ownership(_there(cgroup)))
        except OSError as error:
            everywhere = "" if options.cgroup is None else "; --cgroup is without effect then"
            self._notice(
                f"owners: BPF refused ({error.strerror or error}): sockets are listed every {INTERVAL:g}s instead, and"
                f" what lives shorter has no owner{everywhere}"
            )
        self.method = "bpf" if self._bpf is not None else "sock_diag"
        self._processes = Processes(options.cmdline, None if isinstance(root, OSError) else root)
        self._stack.callback(self._processes.close)
        self._known_pids = in_first_pid_namespace()
        self.numbers = OwnerNumbers(self._processes if self._known_pids else None, self.netns)
        if self._bpf is not None:
            for line in self._bpf.missing:
                self._notice(f"owners: {line}")
            self._begin(options.cgroup is None and is_whole(_there(root)))
        else:
            with self._namespace:
                self._table = SocketTable()
            self._stack.callback(self._table.close)
            if self._table.missing is not None:
                self._notice(f"owners: {self._table.missing}")
            self._poll(self._table)

    def _open_root(self) -> int | OSError:
        """The root of cgroup2, or why not: where there is a directory in its place it takes none."""
        try:
            return self._keep_open(open_root())
        except OSError as error:
            return error

    def _open_cgroup(self, path: str) -> int:
        return self._keep_open(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def _keep_open(self, fd: int) -> int:
        self._stack.callback(os.close, fd)
        return fd

    def _begin(self, all_cgroups: bool) -> None:
        """The owners of the sockets that are open already."""
        found = self._take_inventory()
        self.whole = found.why is None and all_cgroups and self._known_pids
        if found.why is not None:
            self._notice(f"owners: some sockets that are open already may have no owner: {found.why}")
        if not all_cgroups and not self.restricted:
            self._notice("owners: only the sockets of this container's cgroups are seen")
        if not self._known_pids:
            self._notice("owners: in another pid namespace: process ids are the host's, and only names are known")
        sides = found.sides if self._known_pids else found.sides[:0]
        self._open_before = {int(row["cookie"]): row for row in sides[:_MOST_OPEN]}
        self._netns_of = dict(zip(found.cookies[:_MOST_OPEN].tolist(), found.netns[:_MOST_OPEN].tolist(), strict=True))
        self._ownerless = set(found.kernels.tolist())
        self._keep(sides)

    def _take_inventory(self) -> Inventory:
        try:
            return take_inventory(self._namespace)
        except OSError as error:
            nothing = np.zeros(0, np.uint64)
            return Inventory(np.zeros(0, SIDES), nothing, nothing, nothing, False, error.strerror or str(error))

    @property
    def skipped(self) -> int:
        """How often a process was not looked at, as there were too many at a time."""
        return self._processes.skipped

    # --- for the capture's thread ------------------------------------------------------------------------------

    def take(self) -> tuple[list[Sides], list[Sides]]:
        """(sides, users) that came since the last call, with the numbers of their owners: SIDES and USERS rows."""
        with self._lock:
            sides, self._sides, self._waiting = self._sides, [], 0
            users, self._users = self._users, []
        if self._failed is not None:
            failed, self._failed = self._failed, None
            self._notice(f"owners: watching ended early: {getattr(failed, 'strerror', None) or failed}")
        return sides, users

    def take_open(self) -> tuple[NDArray[np.uint64], int] | None:
        """The cookies of all sockets that were open at a time (microseconds since the epoch), if they were listed since
        the last call; then the sides of others are over.
        """
        with self._lock:
            found, self._open_now = self._open_now, None
        return found

    def settle(self) -> None:
        """Returns when all that has happened until now is there to be taken."""
        if self._thread.is_alive():
            self._settled = threading.Event()
            with contextlib.suppress(OSError):
                os.write(self._wake_write, b"s")
            self._settled.wait(2.0)

    def forget(self, keep: U32) -> None:
        """Drops the owners whose numbers nobody uses."""
        with self._lock:
            waiting = [numbers for _, numbers in self._sides + self._users]
        self.numbers.forget(set(np.concatenate([keep, *waiting]).tolist()))

    def close(self) -> None:
        """Ends the thread and takes all programs down."""
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"x")
        self._thread.join(5.0)
        self._stack.close()

    def __enter__(self) -> OwnerWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop()
        except Exception as error:  # the capture goes on without; `take` says it
            self._failed, self.ended = error, now()

    def _loop(self) -> None:
        due = time.monotonic() + self._period()
        waiting = select.poll()
        for fd in (self._wake_read, *self._processes.filenos()):
            waiting.register(fd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in waiting.poll(max(0.0, due - time.monotonic()) * 1000)}
            said = os.read(self._wake_read, 64) if self._wake_read in ready else b""
            self._try(self._processes.take)
            if said or time.monotonic() >= due:
                due = time.monotonic() + self._period()
                self._try(self._look, bool(said))
            if b"s" in said:
                self._settled.set()
            if b"x" in said:
                return

    def _period(self) -> float:
        return _PERIOD if self._table is None else self._table.interval

    def _try(self, do: Callable[..., None], *arguments: bool) -> None:
        """What goes wrong once may go well the next time: it is said, once."""
        try:
            do(*arguments)
        except (OSError, DecodeError) as error:
            if not self._failing:
                self._notice(f"owners: {getattr(error, 'strerror', None) or error}: tried again")
            self._failing = True

    def _look(self, all_of_it: bool) -> None:
        if self._table is not None:
            self._poll(self._table)
        if self._bpf is None:
            return
        rows = self._bpf.take()
        if rows is not None:
            self._recall(rows)
            self._keep(rows)
            self._note_uncertain(rows)
            self.lost = self._bpf.lost + self._given_up
        self._turn += 1
        if all_of_it or self._turn % 20 == 0:
            used = self._bpf.users()
            if used is not None:
                for cookie in used["cookie"].tolist():
                    self._uncertain.pop(cookie, None)
                certainty = np.where(used["shared"], _SHARED, _EXACT)
                numbers = self.numbers.of_rows(used, np.full(len(used), _BY_BPF), certainty)
                with self._lock:
                    self._users = [*self._users[-_MOST_USERS:], (used, numbers)]
        if not self._known_pids:
            return
        moment = time.monotonic()
        oldest = next(iter(self._uncertain.values())).since if self._uncertain else moment
        if (
            (all_of_it and self._uncertain)
            or (moment > self._refined and moment > oldest + _PATIENCE)
            or moment > self._refined + _RECONCILED
        ):
            self._refine()

    def _recall(self, rows: NDArray[Any]) -> None:
        """Sockets that were open before: the programs know nobody, or only who asked for a peer. Then who had them."""
        for i in np.flatnonzero(rows["netns"] == 0).tolist() if self._netns_of else ():
            rows["netns"][i] = self._netns_of.get(int(rows["cookie"][i]), 0)
        if not self._open_before:
            return
        ignorant = (rows["pid"] == 0) | (rows["certainty"] == _HOLDER) & (rows["wild"] & CLOSER == 0)
        for i in np.flatnonzero(ignorant).tolist():
            known = self._open_before.get(int(rows["cookie"][i]))
            if known is not None:
                for name in ("pid", "uid", "comm", "cgroup", "time", "method", "certainty", "netns"):
                    rows[name][i] = known[name]
        for cookie in rows["cookie"][rows["last"] >= 0].tolist():
            self._open_before.pop(cookie, None)
            self._netns_of.pop(cookie, None)

    def _note_uncertain(self, rows: NDArray[Any]) -> None:
        """Which sockets nobody is known to have, or only who made them."""
        is_open = rows["last"] < 0
        since = time.monotonic()
        doubtful = (rows["certainty"] == _INHERITED) | (rows["certainty"] == _HOLDER) & (rows["method"] == _BY_BPF)
        unsure = is_open & (doubtful | (rows["pid"] == 0))
        for cookie, pid in zip(*(rows[name][unsure].tolist() for name in ("cookie", "pid")), strict=True):
            if len(self._uncertain) < _MOST_UNCERTAIN:
                self._uncertain[cookie] = _Unsure(pid, since)
        if self._uncertain:
            for cookie in rows["cookie"][~unsure].tolist():
                self._uncertain.pop(cookie, None)

    def _refine(self) -> None:
        """Looks who has these sockets. What no process has is the kernel's, if every process could be looked into."""
        began, looked = time.monotonic(), now()
        found = self._take_inventory()
        took = time.monotonic() - began
        self._refined = began + max(_REFINED, _REFINES * took)
        cookies = np.array(list(self._uncertain), np.uint64)
        mine = found.sides[np.isin(found.sides["cookie"], cookies) & (found.sides["certainty"] == _HOLDER)]
        named = [self._uncertain[cookie].pid for cookie in mine["cookie"].tolist()]
        mine = mine[mine["pid"] != np.array(named, np.uint32)]
        self._tell(mine, self.numbers.of_rows(mine, mine["method"], mine["certainty"]))
        if self.whole and found.why is None:
            # Twice in a row: a socket may have been on its way from one process to another.
            nobodys = [c for c, one in self._uncertain.items() if not one.pid and c in self._ownerless]
            rows = np.zeros(len(found.kernels), SIDES)
            rows["cookie"] = found.kernels
            rows = rows[np.isin(found.kernels, np.array(nobodys, np.uint64))]
            self._ownerless = set(found.kernels.tolist())
            self._tell(rows, np.full(len(rows), KERNEL, np.uint32))
        if found.listed:
            there = set(found.cookies.tolist())
            self._uncertain = {
                cookie: one
                for cookie, one in self._uncertain.items()
                if not one.pid and (cookie in there or began < one.since)
            }
            with self._lock:
                self._open_now = found.cookies, looked

    def _tell(self, rows: NDArray[Any], numbers: U32) -> None:
        """What was found out of sockets, by their cookies."""
        used = np.zeros(len(rows), USERS)
        for name in ("cookie", "pid", "uid", "cgroup", "time", "comm"):
            used[name] = rows[name]
        for cookie in used["cookie"].tolist():
            self._uncertain.pop(cookie, None)
        if len(used):
            with self._lock:
                self._users.append((used, numbers))

    def _poll(self, table: SocketTable) -> None:
        self._keep(table.poll())

    def _keep(self, rows: NDArray[Any]) -> None:
        if len(rows):
            numbers = self.numbers.of_rows(rows, rows["method"], rows["certainty"])
            with self._lock:
                self._sides.append((rows, numbers))
                self._waiting += len(rows)
                while self._waiting > _MOST_WAITING:  # the capture is stopped, or far behind
                    self._waiting -= len(self._sides[0][0])
                    self._given_up += len(self._sides.pop(0)[0])


def _there(fd: int | OSError) -> int:
    if isinstance(fd, OSError):
        raise fd
    return fd
