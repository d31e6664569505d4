"""Writing a recording: a directory of Parquet segments that are only ever added, and meta.json."""

from __future__ import annotations

import errno
import os
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from conntracker import __version__
from conntracker.recording.database import Database, translated
from conntracker.recording.meta import Meta, to_text
from conntracker.recording.schema import RAW_COLUMNS, select_raw

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from numpy.typing import NDArray


__all__ = ["RecordingWriter"]


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
        self.path = os.path.abspath(path)
        self._directory = _make_directory(self.path)
        self._database: Database | None = None
        self._limits = memory_limit, threads
        self._segments = 0
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
            os.close(self._directory)
            raise

    def append(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Adds a segment: the present state of flows, raw flow columns (schema.RAW_COLUMNS), each flow at most once.

        It is on disk when this returns. On OSError (disk full) nothing was added, and it can be tried again. Raises
        ValueError if columns are missing or of different lengths.
        """
        rows = _checked(columns)
        if not rows["flow"].size:
            return
        name = f"flows-{self._segments + 1:06}.parquet"
        with self._new_file(name) as descriptor:
            self._copy(rows, descriptor)
        self._segments += 1

    def update_meta(self, **changes: Any) -> None:
        """Replaces fields of Meta, on disk too. On OSError they are kept, and written with the next change."""
        self.meta = replace(self.meta, **changes)
        self._write_meta(self.meta)

    def close(self, end: int | None = None) -> None:
        """Writes the time of the end (microseconds since the epoch, UTC; now if not given). Once is enough."""
        if self._directory < 0:
            return
        try:
            self.update_meta(end=_now() if end is None else end)
        finally:
            if self._database:
                self._database.close()
            os.close(self._directory)
            self._directory = -1

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _copy(self, rows: dict[str, NDArray[Any]], descriptor: int) -> None:
        if self._database is None:
            self._database = Database(*self._limits, spill=f"{self.path}/spill.tmp")
        connection = self._database.connection
        # Through the descriptor: nobody can put another file in the name's place, and no character of the path matters.
        copy = (
            f"COPY ({select_raw('raw')}) TO '/proc/self/fd/{descriptor}'"
            " (FORMAT parquet, COMPRESSION zstd, USE_TMP_FILE false)"
        )
        connection.register("raw", rows)
        try:
            with translated():
                connection.execute(copy, {"host": self.meta.host})
        finally:
            connection.unregister("raw")

    def _write_meta(self, meta: Meta) -> None:
        with self._new_file("meta.json") as descriptor, open(descriptor, "w", closefd=False) as file:
            file.write(to_text(meta))

    @contextmanager
    def _new_file(self, name: str) -> Iterator[int]:
        """The descriptor of a file that appears under its name when it is whole and on disk, or not at all."""
        temporary = f"{name}.tmp"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(temporary, flags, 0o600, dir_fd=self._directory)
            try:
                yield descriptor
                os.fsync(descriptor)
                os.rename(temporary, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
                os.fsync(self._directory)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=self._directory)
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise OSError(error.errno, f"writing {self.path}/{name}: {error.strerror}") from error


def _make_directory(path: str) -> int:
    """Makes the directory, or takes an empty one; gives a descriptor of it."""
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if os.listdir(directory):
        os.close(directory)
        raise FileExistsError(errno.EEXIST, "the directory is not empty, and nothing in it is overwritten", path)
    return directory


def _checked(columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    missing = RAW_COLUMNS.keys() - columns.keys()
    if missing:
        raise ValueError(f"raw flow columns missing: {', '.join(sorted(missing))}")
    rows = {name: np.ascontiguousarray(columns[name], dtype) for name, dtype in RAW_COLUMNS.items()}
    if len({len(column) for column in rows.values()}) != 1:
        raise ValueError("raw flow columns of different lengths")
    return rows


def _now() -> int:
    return time.time_ns() // 1000
