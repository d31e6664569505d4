"""Owners by number: each distinct one gets the next number, and keeps it as long as somebody uses it."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conntracker.model import U32
from conntracker.owner import CERTAINTIES, FORWARDS, KERNELS, METHODS, PROCESS, SHARED, Owner, Process
from conntracker.sources.processes import Processes
from conntracker.wire import procfs
from conntracker.wire.sides import CLOSER

__all__ = ["FORWARDED", "KERNEL", "NOBODY", "OwnerNumbers"]

NOBODY, KERNEL, FORWARDED = 0, 1, 2  # numbers that always are
_LATEST = 10_000


class OwnerNumbers:
    """Numbers for rows of SIDES and USERS; used by one thread, but for `variant`, `forget` and `owners`.

    processes   who they are; None where process ids are those of another namespace, and only names are known
    netns       the cookie of the captured network namespace
    owners      every owner by its number
    """

    def __init__(self, processes: Processes | None, netns: int) -> None:
        self._processes, self._netns = processes, netns
        self.owners: dict[int, Owner] = {KERNEL: KERNELS, FORWARDED: FORWARDS}
        self._numbers: dict[tuple[int, int, int, int], int] = {}
        self._next = FORWARDED + 1
        self._strangers: dict[tuple[int, int, str], Process] = {}
        self._lock = threading.Lock()

    def of_rows(self, rows: NDArray[Any], method: NDArray[Any], certainty: NDArray[Any]) -> U32:
        """The numbers of rows with pid, time, uid, comm and cgroup, of one reading; netns and wild are of use, too.

        method, certainty   of each row, positions in owner.METHODS and owner.CERTAINTIES
        """
        names = rows.dtype.names or ()
        nothing = [0] * len(rows)
        netns = rows["netns"].tolist() if "netns" in names else nothing
        closer = (rows["wild"] & CLOSER).tolist() if "wild" in names else nothing
        seen = zip(*(rows[name].tolist() for name in ("pid", "uid", "comm", "cgroup")), strict=True)
        known: dict[tuple[Any, ...], int] = {}  # a reading is of a moment: a process is the same all through it
        numbers = np.zeros(len(rows), np.uint32)
        times = rows["time"].tolist()
        for i, key in enumerate(zip(seen, method.tolist(), certainty.tolist(), netns, closer, strict=True)):
            if not key[0][0]:
                continue
            number = known.get(key)
            if number is None:
                number = known[key] = self._number(times[i], *key)
            numbers[i] = number
        return numbers

    def _number(
        self, when: int, seen: tuple[int, int, bytes, int], method: int, certainty: int, netns: int, closer: int
    ) -> int:
        pid, uid, comm, cgroup = seen
        name = procfs.text(comm)
        if self._processes is None:
            process = self._strangers.setdefault((pid, uid, name), Process(pid, name, uid))
        else:
            found = self._processes.find(pid, when, uid, name, cgroup)
            if found is None:  # a thread of the kernel; that it closed a socket says nothing
                return NOBODY if closer else KERNEL
            process = found
        other = netns if netns not in (0, self._netns) else None
        with self._lock:
            return self._intern(Owner(PROCESS, process, METHODS[method], CERTAINTIES[certainty], other))

    def _intern(self, owner: Owner) -> int:
        """An owner holds its process, so that the identity is not another's meanwhile."""
        method, certainty = METHODS.index(owner.method or ""), CERTAINTIES.index(owner.certainty or "")
        key = id(owner.process), method, certainty, owner.netns or 0
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = self._next
            self.owners[number] = owner
            self._next += 1
        return number

    def variant(self, number: int, netns: int | None) -> int:
        """The number of the same owner in another network namespace (its cookie), or, with None, as one of several that
        shared the socket.
        """
        with self._lock:
            owner = self.owners.get(number)
            if owner is None or owner.process is None:
                return number
            return self._intern(replace(owner, certainty=SHARED) if netns is None else replace(owner, netns=netns))

    def forget(self, keep: set[int], latest: int = _LATEST) -> None:
        """Drops the owners whose numbers are not among those to keep, but for the latest, which may be on their way."""
        with self._lock:
            keep = keep | {KERNEL, FORWARDED, *range(max(0, self._next - latest), self._next)}
            self.owners = {number: owner for number, owner in self.owners.items() if number in keep}
            self._numbers = {key: number for key, number in self._numbers.items() if number in keep}
            self._strangers.clear()
