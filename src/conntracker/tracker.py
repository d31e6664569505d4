"""The capture: what the kernel says of its connections, as batches and losses, for as long as one likes.

    with conntracker.capture() as capture:
        for item in capture:            # model.Batch or model.Loss
            ...

It subscribes first and dumps the table then, so that nothing falls between the two. When the kernel drops events, the
table is dumped again, and a Loss says which window of time may be incomplete.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

import numpy as np

from conntracker.clock import now
from conntracker.filters import Filter
from conntracker.model import Batch, DecodeError, Loss
from conntracker.restore import Changes, read_sysctl
from conntracker.sources import conntrack, netlink
from conntracker.sources.fullness import Gauge
from conntracker.sources.netns import Namespace
from conntracker.tracking import Tracking
from conntracker.wire.columns import Decoder

Item = Batch | Loss

ACCOUNTING = "net/netfilter/nf_conntrack_acct"
TIMESTAMPS = "net/netfilter/nf_conntrack_timestamp"
BUCKETS = "net/netfilter/nf_conntrack_buckets"

# Waking up for each event costs ten times what events cost in heaps: after the first, wait a little for more.
_NAP = 0.005
_OLDEST = 0.1  # seconds; and never keep one longer than this
_WORTH = 2000  # events that are worth waking up for
_MOST_RINGS = 4  # in one go, before other things are looked after
_SMALL_BUFFER = 32 << 20  # bytes; below it a long nap could lose events
_WAITED = 1_000  # µs
_REDUMP_PAUSE = 1_000_000  # µs between two dumps while events keep being lost


# 127.0.0.1 to itself and ::1 to itself, as words (model)
_LOOPBACK = {4: (0x7F000001_7F000001,), 6: (0, 1, 0, 1)}


class Capture:
    """See `capture`. Counts: `events`, `lost` (dropped by the kernel), `decoder.undecodable`, `decoder.unknown`."""

    def __init__(
        self, namespace: Namespace, wanted: Filter, enable: bool, accounting: bool, receive_buffer: int,
        dump: bool, notice: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.namespace, self._filter, self._notice = namespace, wanted, notice
        self._enable, self._accounting, self._receive_buffer, self._dumps = enable, accounting, receive_buffer, dump
        self.events = self.lost = 0
        self.decoder = Decoder()
        self.stopped = False
        self._undecodable = 0
        self._dump: conntrack.Dump | None = None
        self._dump_since = self.dumped = 0  # when the last dump was asked for; the last one that is whole
        self._dump_anew, self._whole = False, True  # events lost since it was asked for; it shows everything
        self._buckets: str | None = None
        self._last_event = now()
        self._loss: Loss | None = None  # being repaired
        self._calm = self._redumped = now()
        self._emptied, self._lags = now(), (0, 0)
        self._lags_since = self._emptied
        self._stack = contextlib.ExitStack()

    # --- begin and end -----------------------------------------------------------------------------------------

    def __enter__(self) -> Capture:
        try:
            with self.namespace:
                self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _open(self) -> None:
        self._stack.callback(self.namespace.close)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for fd in (self._wake_read, self._wake_write):
            self._stack.callback(os.close, fd)
        conntrack.require()
        if self._accounting:
            self._change()
        self._gauge = Gauge()
        self._stack.callback(self._gauge.close)
        self.tracking = Tracking(self.namespace, self._gauge, self._enable, self._notice)
        self._stack.callback(self.tracking.close)
        # The probe first, so that its datagram is no event of ours; then the subscription, since flows that begin
        # while nobody listens never send events (nf_conntrack_events=2, the default since 5.19); then tracking, and
        # last the dump.
        self.tracking.probe()
        self._socket = conntrack.EventSocket(self._receive_buffer)
        self._stack.callback(self._socket.close)
        self._longest_nap = _OLDEST if self._socket.receive_buffer >= _SMALL_BUFFER else _NAP
        self.tracking.begin()
        self._calm = now()
        self._stack.callback(self._abandon_dump)
        if self._dumps:
            self._begin_dump()

    def _abandon_dump(self) -> None:
        if self._dump is not None:
            self._dump.close()
            self._dump = None

    def _change(self) -> None:
        changes = Changes(self.namespace)
        self._stack.callback(lambda: [self._notice(line) for line in changes.release()])
        for name in (ACCOUNTING, TIMESTAMPS):
            if changes.set(name, "1"):
                self._notice(f"{name.replace('/', '.')} set to 1; it will be put back")

    def stop(self) -> None:
        """Ends the iteration soon. Safe in a signal handler and from another thread."""
        self.stopped = True
        self.wake()

    def wake(self) -> None:
        """Makes a `poll` that waits return. Safe in a signal handler and from another thread."""
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"x")

    def entries(self) -> int:
        """How many entries the connection table has now."""
        return self._gauge.read().count

    @property
    def lag(self) -> int:
        """How many microseconds after the fact events may have been read, in the last half minute or so."""
        return max(*self._lags, now() - self._emptied)

    def _empty(self) -> None:
        """Nothing was left to be read: what is read next is younger than this moment."""
        time = now()
        before, current = self._lags
        if time - self._lags_since > 15_000_000:
            before, current, self._lags_since = current, 0, time
        self._lags, self._emptied = (before, max(current, time - self._emptied)), time

    def sysctls(self) -> tuple[bool, bool]:
        """Whether the kernel counts packets, and whether it notes when flows begin and end."""
        with self.namespace:
            accounting, timestamps = (read_sysctl(name) == "1" for name in (ACCOUNTING, TIMESTAMPS))
        return accounting, timestamps

    # --- the loop ----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Item]:
        while not self.stopped:
            yield from self.poll(1.0)
        yield from self.finish()

    def poll(self, timeout: float, also: Sequence[int] = ()) -> list[Item]:
        """What came, after waiting for at most `timeout` seconds; an empty list if nothing did.

        also   descriptors of others whose input ends the waiting, too
        """
        if self._dump is None:
            before = now()
            ready = netlink.wait([self._socket.fileno(), self._wake_read, *also], timeout)
            if now() - before > _WAITED:  # for the first event, which is no older than that
                self._emptied = now()
            if self._wake_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 64)
        items: list[Item] = self._drain()
        items += self._watch_loss()
        if self._dump is not None:
            items += self._step_dump()
        items += self.tracking.check(now(), self._last_event)
        return items

    def finish(self) -> Iterator[Item]:
        """What is still waiting, and a last dump: it refreshes the counters of the flows alive."""
        yield from self._drain()
        yield from self._watch_loss()
        for attempt in range(3):  # a dump that is followed by a loss is worth another one, but not for ever
            if self._dumps:
                yield from self.refresh()
            yield from self._drain()
            yield from self._watch_loss()
            if self._loss is None and self._whole:
                break
            time.sleep(0.1 * attempt)
        if self._loss is not None:
            yield self._loss
            self._loss = None
        yield from self.tracking.end(now())

    def refresh(self) -> Iterator[Item]:
        """A dump asked for now: the counters of living flows as they are. Events go on."""
        yield from self._complete_dump()
        self._try_dump()
        yield from self._complete_dump()

    def _complete_dump(self) -> Iterator[Item]:
        while self._dump is not None:
            yield from self._drain()
            yield from self._step_dump()

    # --- events ------------------------------------------------------------------------------------------------

    def _drain(self) -> list[Item]:
        """What waits on the socket, in batches of at most a ring's size; some of it if it is very much."""
        items: list[Item] = []
        for _ in range(_MOST_RINGS):
            self._collect()
            full = not self._socket.room
            items += self._decode()
            self.tracking.guard(now())
            if not full:
                self._empty()
                break
        return items

    def _collect(self) -> None:
        """Fills the ring, napping between two looks: long naps while events are few, short ones while they are many."""
        count = self._socket.receive()
        if not count or self._dump is not None or self.stopped:
            return
        began = time.monotonic()
        nap, longest = _NAP, _NAP if self.tracking.is_ours else self._longest_nap
        while self._socket.room and (left := began + _OLDEST - time.monotonic()) > 0:
            time.sleep(min(nap, left))
            self.tracking.guard(now())
            count = self._socket.receive()
            nap = max(_NAP, min(longest, nap * _WORTH / (count + 1)))

    def _decode(self) -> list[Batch]:
        rows, lengths = self._socket.take()
        if not len(rows):
            return []
        self.events += len(rows)
        self._last_event = now()
        batches = self.decoder.decode_rows(rows, lengths, self._last_event)
        if self.tracking.own:
            batches = [part for batch in batches if len(part := self._without_probes(batch))]
        return self._wanted(batches)

    def _without_probes(self, batch: Batch) -> Batch:
        """Our own datagrams over loopback are nobody's flows."""
        own = np.isin(batch.ports >> np.uint64(32), np.array(list(self.tracking.own), np.uint64))
        for i, word in enumerate(_LOOPBACK[batch.family]):
            own &= batch.addresses[i] == np.uint64(word)
        return batch.take(~own) if own.any() else batch

    def _wanted(self, batches: list[Batch]) -> list[Batch]:
        if not self._filter:
            return batches
        masks = [(batch, self._filter.mask(batch)) for batch in batches]
        chosen = [batch if mask is None else batch.take(mask) for batch, mask in masks]
        return [batch for batch in chosen if len(batch)]

    # --- losses ------------------------------------------------------------------------------------------------

    def _watch_loss(self) -> list[Item]:
        """Opens a loss when the kernel dropped events or we could not read one; asks for a dump to repair it."""
        dropped, undecodable, when = self._socket.drops(), self.decoder.undecodable, now()
        losses: list[Item] = []
        if undecodable > self._undecodable:
            losses.append(Loss(self._calm, when, "undecodable", undecodable - self._undecodable))
            self._undecodable, self._whole = undecodable, False
        if dropped > self.lost:
            since, before = (self._calm, 0) if self._loss is None else (self._loss.since, self._loss.events or 0)
            self._loss = Loss(since, when, "events", before + dropped - self.lost)
            self.lost, self._dump_anew = dropped, True
        elif self._loss is None:
            self._calm = when
        if self._loss is not None and not self._dumps:
            losses.append(self._loss)
            self._loss, self._calm = None, when
        needed = self._loss is not None or not self._whole
        if needed and self._dumps and self._dump is None and when - self._redumped > _REDUMP_PAUSE:
            self._try_dump()
        return losses

    # --- dumps -------------------------------------------------------------------------------------------------

    def _begin_dump(self) -> None:
        self._dump_since = self._redumped = now()
        self._dump_anew, self._whole = False, False
        with self.namespace:
            self._buckets = read_sysctl(BUCKETS)
            self._dump = conntrack.Dump()

    def _try_dump(self) -> None:
        """As `_begin_dump`; what keeps it from happening is said, and tried again later."""
        try:
            self._begin_dump()
        except OSError as error:
            self._dump_failed(error)

    def _dump_failed(self, error: Exception) -> None:
        self._abandon_dump()
        self._redumped = now()
        self._notice(f"listing the connections failed: {error}; tried again")

    def _step_dump(self) -> list[Item]:
        """The next piece of the dump; with its last piece, the loss that it repaired."""
        dump = self._dump
        assert dump is not None  # noqa: S101
        try:
            words, offsets = dump.step()
        except (OSError, DecodeError) as error:
            self._dump_failed(error)
            return []
        items: list[Item] = []
        items += self._wanted(self.decoder.decode_buffer(words, offsets, now(), self._dump_since))
        if dump.done:
            self._dump = None
            items += self._end_dump()
        return items

    def _end_dump(self) -> list[Item]:
        with self.namespace:
            resized = read_sysctl(BUCKETS) != self._buckets
        if resized:  # entries moved while they were listed: some may not have been seen
            self._redumped = 0
            return []
        self.dumped, self._whole = self._dump_since, True
        if self._loss is None or self._dump_anew:
            return []
        loss, self._loss, self._calm = self._loss, None, now()
        return [Loss(loss.since, self._dump_since, "events", loss.events, repaired=True)]


def capture(
    *,
    netns: str | None = None,
    filter: Filter | None = None,
    enable: bool = True,
    accounting: bool = False,
    receive_buffer: int = conntrack.DEFAULT_RECEIVE_BUFFER,
    dump: bool = True,
    notice: Callable[[str], None] = lambda line: None,
) -> Capture:
    """Captures the flows of a network namespace: a context manager to iterate over.

    netns            name, process id or path of another namespace; None for the current one
    filter           which flows to give out, see Filter.parse; None for all
    enable           switch connection tracking on where it is off, by a table that the kernel removes with this process
    accounting       switch packet counters and timestamps on, and put them back at the end
    receive_buffer   bytes asked for the event socket
    dump             begin with the flows that are open already, and end with their counters
    notice           called with a line for a person when something is changed or goes wrong

    Entering raises PermissionError without CAP_NET_ADMIN, OSError where the kernel lacks what it takes, ImportError
    without libnftables where tracking has to be switched on. Iterating gives Batch and Loss in the order of arrival
    until `stop` is called. A Loss of kind 'events' comes when the dump that ends its window has been given out.
    """
    namespace = Namespace.current() if netns is None else Namespace.find(netns)
    return Capture(namespace, filter or Filter(), enable, accounting, receive_buffer, dump, notice)
