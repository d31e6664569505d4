"""Owners as a part of a capture: the flows of its table get theirs, and what a person should know of it is said."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from conntracker.clock import now
from conntracker.flows import Ends, FlowTable
from conntracker.model import ICMP, ICMPV6, IPS_SEEN_REPLY, U32
from conntracker.owner import Owner
from conntracker.ownernumbers import FORWARDED, KERNEL
from conntracker.owners import NOBODY, Sides
from conntracker.ownerwatch import OwnerOptions, OwnerWatch
from conntracker.sources.addresses import LocalAddresses
from conntracker.sources.netns import Namespace

__all__ = ["Owning"]

_RECENT = 10_000_000  # µs; so long after its end a flow is looked at again
_FRESH = 3_000_000  # µs before the last look, after which a flow began that is looked at, whatever is new at its ends
_MOST_OWNERS = 50_000
_PERIOD, _PAUSE = 1.0, 20.0  # seconds between two looks, and how many times as long as the last one took, at least
_ECHO = {ICMP: 8, ICMPV6: 128}


class Owning:
    """Watches owners from its making to `close`, and assigns them.

    namespace   the network namespace that is captured
    lag         how long after the fact the times of flows may be, at the moment, in microseconds
    notice      called with a line for a person

    What cannot be had ends in a poorer way of knowing, which is said. Raises OSError where there is none.
    """

    def __init__(
        self, namespace: Namespace, options: OwnerOptions, lag: Callable[[], int], notice: Callable[[str], None]
    ) -> None:
        self._addresses = LocalAddresses(namespace)
        self._watch = OwnerWatch(namespace, options, notice)
        self._sides = Sides(self._watch.netns, self._watch.numbers.variant)
        self._lag, self._start = lag, now()
        self._assigned: int | None = None
        self._due = time.monotonic()

    @property
    def owners(self) -> Mapping[int, Owner]:
        """Owners by the numbers that flow rows have, as they are known now."""
        return dict(self._watch.numbers.owners)

    @property
    def method(self) -> str:
        """owner.BPF or owner.SOCK_DIAG."""
        return self._watch.method

    def tick(self, table: FlowTable) -> None:
        """As `assign`, if it is time for it: once a second, less often where it takes long."""
        if time.monotonic() >= self._due:
            self.assign(table)

    def assign(self, table: FlowTable) -> None:
        """Gives the flows of a table their owners, as far as they are known by now."""
        sides, users = self._watch.take()
        for rows, numbers in sides:
            self._sides.add(rows, numbers)
        for rows, numbers in users:
            self._sides.use(rows, numbers)
        if (open_then := self._watch.take_open()) is not None:
            self._sides.reconcile(*open_then)
        began, when = time.monotonic(), now()
        self._sides.merge()
        news = self._sides.news()
        with contextlib.suppress(OSError):  # those that are known will do
            self._addresses.refresh()
        before, self._assigned = self._assigned, when
        fresh = None if before is None else before - _FRESH
        for ends in table.ends((when if before is None else before) - _RECENT):
            chosen = ends if fresh is None else self._sides.asked(ends, news, fresh)
            if len(chosen.rows):
                table.set_owners(chosen, *self._assign(chosen))
        self._sides.forget(when)
        if len(self._watch.numbers.owners) > _MOST_OWNERS:
            self._watch.forget(np.concatenate([table.owner_numbers(), self._sides.numbers()]))
        self._due = began + max(_PERIOD, _PAUSE * (time.monotonic() - began))

    def _assign(self, ends: Ends) -> tuple[U32, U32]:
        source_local = self._addresses.contains(*ends.source)
        destination_local = self._addresses.contains(*ends.reply_source)
        owner, peer = self._sides.owners(ends, source_local, destination_local, self._lag())
        # What is known stays, but not that nobody was known.
        owner, peer = (
            np.where((new == NOBODY) & (old != FORWARDED), old, new)
            for new, old in ((owner, ends.owner), (peer, ends.peer_owner))
        )
        passing = ~source_local & ~destination_local
        kernel = (peer == NOBODY) & destination_local & _answered_by_kernel(ends)
        peer = np.where(kernel, np.uint32(KERNEL), peer)
        # With a process of this namespace at one end the flow ends here, whatever its addresses: a transparent proxy.
        passing &= ~self._is_here(owner) & ~self._is_here(peer)
        forwarded = np.uint32(FORWARDED)
        return np.where(passing & (owner == NOBODY), forwarded, owner), np.where(
            passing & (peer == NOBODY), forwarded, peer
        )

    def _is_here(self, numbers: U32) -> NDArray[np.bool_]:
        """Whether owners are processes of the captured namespace."""
        owners = self._watch.numbers.owners
        distinct, which = np.unique(numbers, return_inverse=True)
        here = [
            (owner := owners.get(number)) is not None and owner.process is not None and owner.netns is None
            for number in distinct.tolist()
        ]
        return np.array(here, np.bool_)[which]

    def finish(self, table: FlowTable) -> None:
        """Assigns what is known at the very end."""
        self._watch.settle()
        self.assign(table)

    def facts(self) -> dict[str, int | str | bool | None]:
        """What a recording says of it."""
        return {"method": self.method, "whole": self._watch.whole, "lost": self._watch.lost, "start": self._start,
                "ended": self._watch.ended is not None}  # fmt: skip

    def summary(self) -> list[str]:
        """What a person should know at the end, in lines."""
        lines = []
        if self._watch.lost:
            lines.append(f"{self._watch.lost:,} sides of sockets were lost: their flows have no owners")
        if self._watch.skipped:
            lines.append(f"{self._watch.skipped:,} times too many processes began at once: some are known by name only")
        return lines

    def close(self) -> None:
        """Takes all programs down."""
        self._watch.close()
        self._addresses.close()

    def __enter__(self) -> Owning:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _answered_by_kernel(ends: Ends) -> NDArray[np.bool_]:
    """Echo requests always are, where they are answered."""
    echo = np.zeros(len(ends.rows), np.bool_)
    for proto, kind in _ECHO.items():
        echo |= (ends.proto == proto) & (ends.dport >> np.uint64(8) == kind)
    answered: NDArray[np.bool_] = echo & (ends.status & IPS_SEEN_REPLY != 0)
    return answered
