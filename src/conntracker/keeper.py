"""What a capture keeps: the flow table in memory, the recording on disk, the log at the end."""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import numpy as np

from conntracker.clock import now
from conntracker.flows import FlowTable
from conntracker.formats import log
from conntracker.formats.steps import step_lines
from conntracker.model import LOG_GROUPS, U32, U64, Batch, Loss, protocol_name
from conntracker.owning import Owning
from conntracker.recording.writer import RecordingWriter
from conntracker.rules.snapshot import Texts
from conntracker.steps import Trace
from conntracker.tracekeeper import TraceKeeper
from conntracker.tracker import Item

_LOGGED = {(family, proto) for _, family, proto in LOG_GROUPS}
_MOST_TRACES = 50_000  # rows in memory; more go to disk
_JOINED = 1_000_000  # µs between two losses that are kept as one


class Keeper:
    """Takes in what a capture gives; bounded in memory.

    recording       where flows are kept, every `interval` µs, or None
    max_flows       beyond this many flows in memory, finished ones go to disk (to a private temporary recording if
                    there is none); flows that are alive stay, and the kernel's own table bounds them
    notice          called with a line for a person
    expected        how many flows there will be at once, about
    everything      whether the log shows traced packets that never became a flow, too
    """

    def __init__(
        self,
        recording: RecordingWriter | None,
        interval: int,
        max_flows: int,
        notice: Callable[[str], None],
        expected: int = 0,
        everything: bool = False,
    ) -> None:
        self.table = FlowTable(expected)
        self.traces = TraceKeeper()
        self.losses: list[Loss] = []
        self._recording, self._interval, self._notice = recording, interval, notice
        self._flushed = self._written = now()
        self._max_flows = self._limit = max_flows
        self._everything, self._trace_limit = everything, _MOST_TRACES
        self._spilled = self._failing = self._private = self._traced = False
        self.owning: Owning | None = None  # who knows the owners of flows
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take(self, items: Iterable[Item]) -> None:
        """Batches go into the table, losses into the list and the recording."""
        for item in items:
            if isinstance(item, Batch):
                self.table.apply(item)
                if len(self.table) > self._limit:
                    self._make_room()
            else:
                self._lose(item)

    def take_traces(self, traces: Iterable[Trace], losses: Iterable[Loss], rulesets: list[tuple[int, Texts]]) -> None:
        """Traces, the windows in which some were lost, and the rulesets that were read (taken out of the list)."""
        self.traces.take(traces)
        for loss in losses:
            self._lose(loss)
        if self._recording is not None and not self._private:
            while rulesets:
                with self._tolerant():
                    self._recording.add_ruleset(_named(rulesets[0][1]), rulesets[0][0])
                del rulesets[0]
        rulesets.clear()
        if len(self.traces) > self._trace_limit:
            self._make_room_for_traces()

    def note_tracing(self, facts: dict[str, int | str | bool | None]) -> None:
        """What the recording says of tracing: its options, and at the end what it missed."""
        if self._recording is not None:
            with self._tolerant():
                self._recording.update_meta(trace=facts)

    def note_owners(self, facts: dict[str, int | str | bool | None]) -> None:
        """What the recording says of how owners are known."""
        if self._recording is not None:
            with self._tolerant():
                self._recording.update_meta(owners=facts)

    def _lose(self, loss: Loss) -> None:
        """Keeps a loss, joined with the last one where hardly any time lies between."""
        last = self.losses[-1] if self.losses else None
        if last is not None and last.kind == loss.kind and loss.since - last.until < _JOINED:
            events = None if last.events is None or loss.events is None else last.events + loss.events
            self.losses[-1] = Loss(last.since, loss.until, loss.kind, events, loss.repaired)
        else:
            self.losses.append(loss)
        if loss.kind == "events" and loss.repaired:
            self.table.conclude_ended(loss.until, now())
        if self._recording is not None:
            with self._tolerant():
                self._recording.update_meta(losses=tuple(self.losses))

    def tick(self) -> None:
        """Looks for owners, and writes a segment if the interval is over. A full disk is said once, and tried again."""
        time = now()
        if self.owning is not None:
            self.owning.tick(self.table)
        if self._recording is not None and time - self._flushed >= self._interval:
            self._flushed = time
            with self._tolerant():
                self.flush()

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._failing:
                self._notice(f"{error.strerror or error}: kept in memory and tried again")
            self._failing = True
        else:
            self._failing = False

    def flush(self) -> None:
        """Writes what changed since the last time. Raises OSError; then nothing is lost and it can be tried again."""
        if self._recording is None:
            return
        self._traced = self._traced or bool(len(self.traces))
        self.traces.flush(self._recording)
        if self.owning is not None:
            self.owning.assign(self.table)
        changed = self.table.changed()
        if not changed:
            return
        rows = {name: np.concatenate([part[name] for part in changed]) for name in changed[0]}
        self._recording.append(rows, None if self.owning is None else self.owning.owners)
        self.table.mark_written()
        self._written = now()

    def _make_room(self) -> None:
        """Finished flows go to disk. Without room there, memory may grow to twice its bound; then OSError is raised."""
        try:
            self._spill()
        except (OSError, ImportError) as error:
            text = getattr(error, "strerror", None) or str(error)
            if len(self.table) > 2 * self._max_flows:
                raise OSError(errno.ENOSPC, f"too many flows for the memory, and no room on disk: {text}") from error
            self._notice(f"{text}: finished flows stay in memory")
        self._limit = max(self._max_flows, len(self.table) + self._max_flows // 8)

    def _make_room_for_traces(self) -> None:
        """Traces go to disk. Without room there they stay in memory, and after some more the oldest are given up."""
        try:
            self._open_private(f"more than {_MOST_TRACES:,} traces")
            self.flush()
            self._trace_limit = _MOST_TRACES
        except (OSError, ImportError) as error:
            text = getattr(error, "strerror", None) or str(error)
            if self._trace_limit == _MOST_TRACES:
                self._notice(f"{text}: traces stay in memory")
            if len(self.traces) > 4 * _MOST_TRACES:
                self._notice(f"{text}: {self.traces.drop():,} traces given up, for lack of memory")
            self._trace_limit = len(self.traces) + _MOST_TRACES

    def _spill(self) -> None:
        self._open_private(f"more than {self._max_flows:,} flows: finished ones")
        self.flush()
        self._spilled = bool(self.table.drop_finished()) or self._spilled

    def _open_private(self, what: str) -> None:
        """A recording in a private temporary directory, where there is none."""
        if self._recording is None:
            directory = tempfile.mkdtemp(prefix="conntracker-")
            self._stack.callback(shutil.rmtree, directory, ignore_errors=True)
            self._recording = self._stack.enter_context(RecordingWriter(directory))
            self._interval, self._private = 1 << 62, True
            self._notice(f"{what} go to {directory} until the end")

    def finish(self, counters: dict[str, int]) -> None:
        """The last segment of the recording, and its numbers. Raises OSError; what is missing is then noted, too."""
        if self._recording is None or self._private:
            return
        try:
            self.flush()
        except OSError:
            unwritten = sum(len(part["flow"]) for part in self.table.changed())
            self.losses.append(Loss(self._written, now(), "unwritten", unwritten))
            with contextlib.suppress(OSError):
                self._recording.update_meta(counters=counters, losses=tuple(self.losses))
            raise
        self._recording.update_meta(counters=counters)

    def conclude(self, dump_since: int) -> None:
        """After the last dump: what it did not show has ended, though no event said so (flows older than us)."""
        self.table.conclude_ended(dump_since, now())

    def write_log(self, out: BinaryIO) -> int:
        """Writes the whole sorted log and returns its number of lines."""
        if self.owning is not None:
            self.owning.assign(self.table)
        if self._recording is None or not (self._spilled or self._traced):
            return self._write_own_log(out)
        try:
            self.flush()
        except OSError:
            if self._spilled:
                raise
            return self._write_own_log(out)  # without the traces on the full disk
        from conntracker.recording.reader import open_recording
        from conntracker.recording.stepped import log_with_steps

        with open_recording(self._recording.path) as recording:
            return log.write_groups(out, *log_with_steps(recording, step_lines, everything=self._everything))

    def _write_own_log(self, out: BinaryIO) -> int:
        """From memory."""
        if self.owning is None:
            return log.write_log(out, self._directions, self.traces.steps())
        return log.write_log(out, self._owned_directions, self.traces.steps(), self.owning.owners)

    def _directions(self, family: int, proto: int) -> tuple[tuple[U64, ...], U32]:
        """Those of the flows and, if everything is wanted, of the traced packets."""
        addresses, ports = self.table.directions(family, proto)
        if not self._everything:
            return addresses, ports
        more, more_ports = self.traces.directions(family, proto)
        return _joined(addresses, more), np.concatenate([ports, more_ports])

    def _owned_directions(self, family: int, proto: int) -> tuple[tuple[U64, ...], U32, U32]:
        """As `_directions`, with the numbers of who sends."""
        addresses, ports, owners = self.table.directions(family, proto, owners=True)
        if not self._everything:
            return addresses, ports, owners
        more, more_ports = self.traces.directions(family, proto)
        nobody = np.zeros(len(more_ports), np.uint32)
        return _joined(addresses, more), np.concatenate([ports, more_ports]), np.concatenate([owners, nobody])

    def count(self) -> str:
        """How many flows of which protocol, for the summary."""
        by_name: Counter[str] = Counter()
        other = 0
        for (family, proto), number in self.table.made().items():
            by_name[protocol_name(proto)] += number
            other += number if (family, proto) not in _LOGGED else 0
        text = ", ".join(f"{name} {number:,}" for name, number in by_name.most_common())
        kept = f"; {other:,} of protocols that the log does not show" if other else ""
        return f"{self.table.seen:,} flows ({text}{kept})" if text else "0 flows"


def _joined(some: tuple[U64, ...], more: tuple[U64, ...]) -> tuple[U64, ...]:
    return tuple(np.concatenate(pair) for pair in zip(some, more, strict=True))


def _named(texts: Texts) -> dict[str, str]:
    """The texts of a ruleset by the names that they have in a recording."""
    named = {} if texts.nft is None else {"nft": texts.nft}
    return named | {f"{kind}-{family}": text for (kind, family), text in texts.saves.items()}
