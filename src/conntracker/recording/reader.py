"""Reading recordings: one or several directories as one set of flows, the last known state of each."""

from __future__ import annotations

import os
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from conntracker.recording import join
from conntracker.recording.arrow import concatenate, read_stream
from conntracker.recording.database import Database, translated
from conntracker.recording.meta import RULES, MetaError, from_text
from conntracker.recording.schema import FLOWS, MACROS
from conntracker.recording.segments import find_segments, is_segment
from conntracker.recording.traces import PATHS, TRACES
from conntracker.recording.views import OWNER_NAMES, VIEW_NAMES, Part, condition, create_part, create_views

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from duckdb import DuckDBPyConnection, DuckDBPyRelation

    from conntracker.filters import Filter
    from conntracker.model import Loss
    from conntracker.recording.arrow import Columns
    from conntracker.recording.meta import Meta
    from conntracker.rules.stored import Situation

__all__ = ["Flows", "NotARecording", "Recording", "open_recording"]


class NotARecording(ValueError):
    """A directory that holds no recording, or one of a newer format."""


def open_recording(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    memory_limit: str = "512MB",
    threads: int | None = None,
) -> Recording:
    """Opens a recording, or several as one set of flows.

    What is damaged is left out and listed in `.damaged`. Raises NotARecording for a directory without one, OSError if
    it cannot be read. DuckDB spills to a private temporary directory beyond memory_limit.
    """
    paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    paths = list({os.path.realpath(one): one for one in paths}.values())  # the same one twice is one
    database = Database(memory_limit, threads)
    try:
        return Recording(database, [os.fspath(one) for one in paths])
    except BaseException:
        database.close()
        raise


class Recording:
    """An open recording; a context manager.

    parts     its directories
    damaged   files that are left out, and why
    owned     whether owners were looked for (-b); without, the columns for them are null

    Offers tables to .sql(): `flows`, the last state of each flow, and `states`, every state that was kept; `traces`,
    equal packets as one row, with their verdict and the rule that decided, `paths`, and the `steps` of those.
    """

    def __init__(self, database: Database, paths: Sequence[str]) -> None:
        self._database = database
        self._cursors: list[DuckDBPyConnection] = []
        self._numbers = count(1)
        self.damaged: list[tuple[str, str]] = []
        for macro in (*MACROS, *join.MACROS):
            database.connection.execute(macro)
        self.parts = tuple(self._open_part(path) for path in paths)
        self.owned = False
        for index, part in enumerate(self.parts):
            with translated():
                self.owned |= create_part(database.connection, index, part)
        create_views(database.connection, len(self.parts))

    @property
    def meta(self) -> Meta | None:
        """What the first directory says of itself; None if that is lost."""
        return self.parts[0].meta

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns of the view `flows`; those of owners only if there may be any."""
        return VIEW_NAMES if self.owned else tuple(name for name in VIEW_NAMES if name not in OWNER_NAMES)

    def situation(self) -> Situation | None:
        """The rules that were in force at the start, and their host; None if no part has them.

        Of several parts, the first that has some. What is damaged is added to `.damaged`.
        """
        for part in self.parts:
            file = os.path.join(part.path, RULES)
            try:
                from conntracker.rules.stored import from_text as from_stored

                return from_stored(Path(file).read_text(encoding="utf-8", errors="surrogateescape"))
            except FileNotFoundError:
                continue
            except ValueError as error:
                self.damaged.append((file, str(error)))
        return None

    @property
    def losses(self) -> tuple[Loss, ...]:
        """Windows in which flows may have been missed."""
        return tuple(loss for part in self.parts if part.meta for loss in part.meta.losses)

    def flows(
        self,
        filter: Filter | None = None,
        since: int | None = None,
        until: int | None = None,
        columns: Sequence[str] | None = None,
    ) -> Flows:
        """The flows that a filter wants and whose lifetime overlaps since..until (microseconds since the epoch, UTC).

        columns: names of the view's columns; `.columns` if not given. Raises ValueError for one that is not there.
        """
        chosen = self.columns if columns is None else tuple(columns)
        for name in chosen:
            if name not in VIEW_NAMES:
                raise ValueError(f"no column {name!r}; there are: {', '.join(VIEW_NAMES)}")
        select = ", ".join(f'"{name}"' for name in chosen)
        return Flows(self, f"SELECT {select} FROM flows WHERE {condition(filter, since, until)}")  # noqa: S608

    def sql(self, text: str) -> DuckDBPyRelation:
        """The answer to an SQL query on the tables, as a DuckDB relation. Raises duckdb.Error."""
        # A cursor of its own: a query would end the streams that still run on the same one. With the last reference to
        # a cursor its relations die (DuckDB 1.4).
        cursor = self._database.connection.cursor()
        self._cursors.append(cursor)
        return cursor.sql(text)

    def chunks(self, text: str) -> Iterator[Columns]:
        """The answer to an SQL query as dicts of numpy columns (see arrow.read_stream). Raises OSError."""
        with translated(), closing(self._database.connection.cursor()) as cursor:
            yield from read_stream(cursor.sql(text))

    @contextmanager
    def kept(self, query: str) -> Iterator[str]:
        """The name of a table with the answer to a query, in memory or spilled, as long as the block lasts."""
        name = f"kept_{next(self._numbers)}"
        connection = self._database.connection
        with translated():
            connection.execute(f"CREATE TABLE {name} AS {query}")
        try:
            yield name
        finally:
            # The recording may have been closed before a generator that was never finished.
            with suppress(OSError), translated():
                connection.execute(f"DROP TABLE {name}")

    def close(self) -> None:
        """Ends all that still reads from it."""
        self._database.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_part(self, path: str) -> Part:
        names = _list(path)
        meta = self._read_meta(path, any(map(is_segment, names)))
        kinds = []
        for kind in (FLOWS, TRACES, PATHS):
            segments, damaged = find_segments(self._database.connection, path, names, kind)
            kinds.append(segments)
            self.damaged += damaged
        return Part(path, meta, *kinds)

    def _read_meta(self, path: str, has_segments: bool) -> Meta | None:
        file = os.path.join(path, "meta.json")
        try:
            return from_text(Path(file).read_text(encoding="utf-8", errors="replace"))
        except FileNotFoundError:
            why = "missing"
            if not has_segments:
                raise NotARecording(f"{path}: not a recording (no meta.json, no segments)") from None
        except MetaError as error:
            why = str(error)
            if "newer" in why or not has_segments:
                raise NotARecording(f"{path}: {why}") from None
        self.damaged.append((file, why))
        return None


class Flows:
    """Flows of a recording: iterate for dicts of numpy columns (see arrow.read_stream), in bounded memory.

    Libraries that read the Arrow C stream take it as it is: `polars.DataFrame(flows)`.
    """

    def __init__(self, recording: Recording, query: str) -> None:
        self._recording = recording
        self._query = query

    def __iter__(self) -> Iterator[Columns]:
        return self._recording.chunks(self._query)

    def __len__(self) -> int:
        with translated():
            rows = self._recording.sql(f"SELECT count(*) FROM ({self._query})").fetchall()  # noqa: S608
            return int(rows[0][0])

    def numpy(self) -> Columns:
        """All rows in one dict of columns."""
        return concatenate(iter(self))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        with translated():
            return self._recording.sql(self._query).__arrow_c_stream__(requested_schema)


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except NotADirectoryError:
        raise NotARecording(f"{path}: not a recording (a recording is a directory)") from None
