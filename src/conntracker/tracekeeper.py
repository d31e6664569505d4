"""What a capture keeps of traces: equal packets counted together, their paths numbered, until they are written."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from conntracker.formats.steps import Key, all_step_lines, reply_of
from conntracker.model import U32, U64
from conntracker.recording.traces import TraceRow
from conntracker.recording.writer import RecordingWriter
from conntracker.steps import Packet, Path, Trace

_LOW_64 = (1 << 64) - 1
_MOST_PATHS = 100_000  # numbered at once; after that, numbers go on with paths that may have been seen before


class TraceKeeper:
    """Rows for a recording's traces, and what the text log shows of them. Emptied by `flush`."""

    def __init__(self) -> None:
        self._rows: dict[tuple[Packet, Packet, str | None, str | None, int | None, int], list[int]] = {}
        self._paths: dict[int, Path] = {}  # by number; holding them keeps their identities from being used again
        self._numbers: dict[int, int] = {}  # by identity: a path that was seen before is the same object
        self._next = 0
        self._unwritten: list[tuple[int, Path]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, traces: Iterable[Trace]) -> None:
        """Counts traces."""
        for trace in traces:
            key = (
                trace.packet, trace.left, trace.in_interface, trace.out_interface, trace.ct_id, self._number(trace.path)
            )  # fmt: skip
            row = self._rows.get(key)
            if row is None:
                self._rows[key] = [1, trace.time, trace.time]
            else:
                row[0] += 1
                row[1], row[2] = min(row[1], trace.time), max(row[2], trace.time)

    def _number(self, path: Path) -> int:
        number = self._numbers.get(id(path))
        if number is None:
            number = self._numbers[id(path)] = self._next
            self._paths[number] = path
            self._next += 1
            self._unwritten.append((number, path))
        return number

    def flush(self, recording: RecordingWriter) -> None:
        """Writes everything and forgets it. Raises OSError; then it can be tried again."""
        if self._unwritten:
            recording.append_paths(self._unwritten)
            self._unwritten = []
        if self._rows:
            recording.append_traces([TraceRow(*key, *counts) for key, counts in self._rows.items()])
            self._rows = {}
        if len(self._paths) > _MOST_PATHS:
            self._paths, self._numbers = {}, {}

    def drop(self) -> int:
        """Forgets all rows that were not written; returns how many."""
        dropped, self._rows = len(self._rows), {}
        return dropped

    # --- for the log -------------------------------------------------------------------------------------------

    def directions(self, family: int, proto: int) -> tuple[tuple[U64, ...], U32]:
        """As FlowTable.directions: the directions of all traced packets of one protocol."""
        keys = [key for key in map(_direction, self._packets()) if key[:2] == (family, proto)]
        known = set(keys)
        keys = [key for key in keys if (request := reply_of(key)) is None or request not in known]
        shift = 8 if proto in (1, 58) else 16
        ports = np.array([key[4] << shift | key[5] for key in keys], np.uint32)
        if family == 4:
            return (np.array([key[2] << 32 | key[3] for key in keys], np.uint64),), ports
        halves = [(key[2] >> 64, key[2] & _LOW_64, key[3] >> 64, key[3] & _LOW_64) for key in keys]
        words = np.array(halves, np.uint64).reshape(-1, 4)
        return tuple(words.T), ports

    def steps(self) -> dict[Key, list[str]]:
        """The lines below each direction: an ICMP answer's stand below its request, too."""
        paths: dict[Key, dict[int, Path]] = {}
        for (packet, *_, number), _ in sorted(self._rows.items(), key=lambda item: item[1][1]):
            key = _direction(packet)
            for one in (key, reply_of(key)):
                if one is not None:
                    paths.setdefault(one, {})[number] = self._paths[number]
        return all_step_lines({key: list(chosen.values()) for key, chosen in paths.items()})

    def _packets(self) -> Iterable[Packet]:
        return dict.fromkeys(key[0] for key in self._rows)


def _direction(packet: Packet) -> Key:
    if packet.icmp_type is not None:
        return packet.family, packet.proto, packet.src, packet.dst, packet.icmp_type, packet.icmp_code or 0
    return packet.family, packet.proto, packet.src, packet.dst, packet.sport or 0, packet.dport or 0
