"""Writing a recording: a directory of Parquet segments that are only ever added, and meta.json."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from conntracker import __version__
from conntracker.recording.database import Database, translated
from conntracker.recording.directory import Directory
from conntracker.recording.meta import RULES, Meta, Rulesets, to_text
from conntracker.recording.owned import ENDS, known_owners, with_owners
from conntracker.recording.schema import FLOWS, RAW_COLUMNS, Segments
from conntracker.recording.traces import PATHS, TRACES, path_lists, trace_columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from duckdb import DuckDBPyConnection
    from numpy.typing import NDArray

    from conntracker.owner import Owner
    from conntracker.recording.traces import TraceRow
    from conntracker.steps import Path

__all__ = ["RecordingWriter"]

import os as _o

ROWS = int(_o.environ.get("ROWS", "122880"))
RULESET_NAME = re.compile(r"[a-z0-9-]+", re.ASCII)


class RecordingWriter:
    """Writes one recording into a directory of its own, made with mode 0700, its files with mode 0600.

    start                       microseconds since the epoch, UTC; now if not given
    netns                       the network namespace looked into, if another
    accounting, timestamps      whether the kernel counts and times flows, None if unknown
    memory_limit, threads       DuckDB's, while a segment is written

    Raises FileExistsError if the directory has anything in it, and OSError. After a crash everything that append()
    returned from can be read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        host: str | None = None,
        kernel: str | None = None,
        start: int | None = None,
        netns: str | None = None,
        accounting: bool | None = None,
        timestamps: bool | None = None,
        memory_limit: str = "256MB",
        threads: int | None = None,
    ) -> None:
        self._directory = Directory(path)
        self.path = self._directory.path
        self._database: Database | None = None
        self._limits = memory_limit, threads
        self._segments: Counter[str] = Counter()
        uname = os.uname()
        self.meta = Meta(
            host=host or uname.nodename,
            kernel=kernel or uname.release,
            conntracker=__version__,
            start=_now() if start is None else start,
            netns=netns,
            accounting=accounting,
            timestamps=timestamps,
        )
        try:
            self._write_meta(self.meta)
        except OSError:
            self._directory.close()
            raise

    def append(self, columns: Mapping[str, NDArray[Any]], owners: Mapping[int, Owner] | None = None) -> None:
        """Adds a segment: the present state of flows, raw flow columns (schema.RAW_COLUMNS), each flow at most once.

        owners   who the numbers in the raw columns `owner` and `peer_owner` (uint32) are; any other number, and a
                 column that is not there, is an owner who is not known. None: the segment has no columns for owners

        It is on disk when this returns. On OSError (disk full) nothing was added, and it can be tried again. Raises
        ValueError if columns are missing or of different lengths.
        """
        rows = _checked(columns, RAW_COLUMNS)
        if not rows["flow"].size:
            return
        if owners is None:
            self._add(FLOWS, FLOWS.select_raw("raw"), rows, {})
            return
        nobody = np.zeros(rows["flow"].size, np.uint32)
        rows = _checked({**dict.fromkeys(ENDS, nobody), **columns}, RAW_COLUMNS | dict.fromkeys(ENDS, "u4"))
        numbers = sorted({number for end in ENDS for number in np.unique(rows[end]).tolist()})
        with translated(), known_owners(self._connection(), owners, numbers):
            self._add(FLOWS, FLOWS.select_raw(with_owners("raw"), optional=True), rows, {})

    def append_traces(self, rows: Sequence[TraceRow]) -> None:
        """Adds a segment of traces: what was seen since the last one, equal packets as one row.

        Their paths were written before. It is on disk when this returns; on OSError nothing was added.
        """
        if rows:
            columns, interfaces = trace_columns(rows)
            self._add(TRACES, TRACES.select_raw("raw"), columns, {"interfaces": interfaces})

    def append_paths(self, paths: Sequence[tuple[int, Path]]) -> None:
        """Adds a segment of paths, each with a number below 2**32 that no other path of the recording has."""
        if paths:
            lists = path_lists(paths)
            columns = ", ".join(f"unnest(${name}) AS {name}" for name in lists)
            self._add(PATHS, PATHS.select_raw(f"(SELECT {columns})"), None, lists)

    def add_ruleset(self, texts: Mapping[str, str], time: int) -> None:
        """Keeps the rulesets that are in force from `time` on (microseconds since the epoch, UTC).

        texts   by name ('nft', 'iptables-legacy-ip'), each as its tool prints it, with none or all of the kinds there

        Raises ValueError for a name that is none, OSError when they cannot be written.
        """
        number = len(self.meta.rulesets) + 1
        names = {name: f"ruleset-{number:04}-{name}.txt" for name in texts}
        for name in names:
            if not RULESET_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a ruleset")
        for name, text in texts.items():
            self._directory.write_text(names[name], text)
        self.update_meta(rulesets=(*self.meta.rulesets, Rulesets(time, tuple(names.values()))))

    def keep_rules(self, text: str) -> None:
        """Keeps the rules in force at the start, and the host they are on (rules.stored). Raises OSError.

        May be called from another thread, once.
        """
        self._directory.write_text(RULES, text)

    def update_meta(self, **changes: Any) -> None:
        """Replaces fields of Meta, on disk too. On OSError they are kept, and written with the next change."""
        self.meta = replace(self.meta, **changes)
        self._write_meta(self.meta)

    def close(self, end: int | None = None) -> None:
        """Writes the time of the end (microseconds since the epoch, UTC; now if not given). Once is enough."""
        if self._directory.closed:
            return
        try:
            self.update_meta(end=_now() if end is None else end)
        finally:
            if self._database:
                self._database.close()
            self._directory.close()

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _add(
        self, kind: Segments, query: str, raw: Mapping[str, NDArray[Any]] | None, values: Mapping[str, list[Any]]
    ) -> None:
        """The next segment of a kind: the answer to a query on the columns `raw`, with `values` as its parameters."""
        with self._directory.new_file(f"{kind.name}-{self._segments[kind.name] + 1:06}.parquet") as descriptor:
            connection = self._connection()
            # Through the descriptor: nobody can put another file in the name's place, and no character of the path
            # matters.
            copy = (
                f"COPY ({query}) TO '/proc/self/fd/{descriptor}' (FORMAT parquet, COMPRESSION zstd, USE_TMP_FILE false)"
            )
            if raw is not None:
                connection.register("raw", raw)
            try:
                with translated():
                    connection.execute(copy, {"host": self.meta.host, **values})
            finally:
                connection.unregister("raw")
        self._segments[kind.name] += 1

    def _connection(self) -> DuckDBPyConnection:
        if self._database is None:
            self._database = Database(*self._limits, spill=f"{self.path}/spill.tmp")
        return self._database.connection

    def _write_meta(self, meta: Meta) -> None:
        self._directory.write_text("meta.json", to_text(meta))


def _checked(columns: Mapping[str, NDArray[Any]], dtypes: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    missing = dtypes.keys() - columns.keys()
    if missing:
        raise ValueError(f"raw flow columns missing: {', '.join(sorted(missing))}")
    rows = {name: np.ascontiguousarray(columns[name], dtype) for name, dtype in dtypes.items()}
    if len({len(column) for column in rows.values()}) != 1:
        raise ValueError("raw flow columns of different lengths")
    return rows


def _now() -> int:
    return time.time_ns() // 1000
