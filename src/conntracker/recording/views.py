"""The tables `states` and `flows` over the segments of one or several recordings, and the conditions on them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from conntracker.recording.database import file_list
from conntracker.recording.owned import OWNER_WORDS
from conntracker.recording.schema import FLOWS, VIEW_COLUMNS
from conntracker.recording.trace_views import PATHS_VIEW, STEPS_VIEW, TRACES_VIEW
from conntracker.recording.traces import PATHS, TRACES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duckdb import DuckDBPyConnection

    from conntracker.filters import Filter
    from conntracker.recording.meta import Meta
    from conntracker.recording.schema import Segments
    from conntracker.recording.segments import Range

__all__ = [
    "IN_WORDS", "OWNER_NAMES", "VIEW_NAMES", "Part", "condition", "create_part", "create_views", "timestamp",
]  # fmt: skip

# Addresses, owners and status bits as words: behind the columns of rows with all columns of FLOWS.
IN_WORDS = ", ".join(f"{expression} AS {name}" for name, expression in VIEW_COLUMNS)
VIEW_NAMES = (
    *(name for name, _, _ in FLOWS.columns),
    *(name for name, _ in VIEW_COLUMNS),
    *(name for name, _, _ in FLOWS.optional),
)
# Those that are null in every row where no segment has owners.
OWNER_NAMES = (*(name for name, _, _ in FLOWS.optional), *(name for name, _ in OWNER_WORDS))


@dataclass(frozen=True, slots=True)
class Part:
    """One directory: what it says of itself (None if that is lost), and its readable segments of each kind, oldest
    first, each with the lowest and the highest number of a flow, or of a path, in it.
    """

    path: str
    meta: Meta | None
    flows: dict[str, Range]
    traces: dict[str, Range]
    paths: dict[str, Range]


def condition(filter: Filter | None, since: int | None, until: int | None) -> str:
    """The WHERE condition on the view `flows`. A flow that has not ended lives until its recording ends."""
    conditions = [filter.sql() if filter else "true"]
    if since is not None:
        conditions.append(f'coalesce("end", recording_end) >= {timestamp(since)}')
    if until is not None:
        conditions.append(f"coalesce(start, first_seen) <= {timestamp(until)}")
    return " AND ".join(conditions)


def timestamp(time: int) -> str:
    """Microseconds since the epoch as an SQL timestamp."""
    return f"make_timestamp({int(time)})"


def create_part(connection: DuckDBPyConnection, index: int, part: Part) -> bool:
    """states_N, every row of a part with the number of its segment, flows_N, the last row of each flow; trace_rows_N,
    path_rows_N. Gives whether any segment has columns for owners.
    """
    end = part.meta.end if part.meta else None
    known_end = f"make_timestamp({end})" if end is not None else "'infinity'::TIMESTAMP"
    owned = False
    for view, segments, kind, extra in (
        (f"states_{index}", part.flows, FLOWS, f", {known_end} AS recording_end"),
        (f"trace_rows_{index}", part.traces, TRACES, ""),
        (f"path_rows_{index}", part.paths, PATHS, ""),
    ):
        source, optional = _rows(connection, list(segments), kind)
        owned |= optional
        connection.execute(f"CREATE VIEW {view} AS SELECT *, {index} AS part{extra} FROM ({source})")  # noqa: S608
    connection.execute(f"CREATE VIEW flows_{index} AS {_last_states(connection, index, part)}")
    return owned


def _rows(connection: DuckDBPyConnection, segments: list[str], kind: Segments) -> tuple[str, bool]:
    """The query for all rows of segments of a kind, with the number of the segment, and whether any segment has
    optional columns.
    """
    nothing = f"SELECT {_nulls(kind.columns + kind.optional)}, 0::UBIGINT AS segment LIMIT 0"
    if not segments:
        return nothing, False
    files = file_list(segments)
    complete, optional = _complete(connection, files, kind)
    # Columns that no segment has cost nothing; they do not make it incomplete.
    missing = f", {_nulls(kind.optional)}" if kind.optional and not optional else ""
    read = f"SELECT *, file_index AS segment{missing} FROM read_parquet({files}"  # noqa: S608
    # Segments of an earlier version lack columns; only then is each file's own list of them looked at.
    if complete:
        return f"{read})", optional
    return f"({nothing}) UNION ALL BY NAME {read}, union_by_name = true)", optional


def _nulls(columns: tuple[tuple[str, str, str], ...]) -> str:
    return ", ".join(f'NULL::{type} AS "{name}"' for name, type, _ in columns)


def _complete(connection: DuckDBPyConnection, files: str, kind: Segments) -> tuple[bool, bool]:
    """Whether all these files have every column, optional ones if any file has one; and whether any has."""
    names = ", ".join(
        f"('{name}', {columns is kind.optional})" for columns in (kind.columns, kind.optional) for name, _, _ in columns
    )
    query = (
        "SELECT min(columns), min(optional), max(optional) FROM"  # noqa: S608
        " (SELECT count(*) FILTER (NOT asked) AS columns, count(*) FILTER (asked) AS optional"
        f" FROM parquet_schema({files}) JOIN (VALUES {names}) names(name, asked) USING (name) GROUP BY file_name)"
    )
    least, fewest, most = connection.execute(query).fetchall()[0]
    return least == len(kind.columns) and fewest == most and most in (0, len(kind.optional)), most > 0


def _last_states(connection: DuckDBPyConnection, index: int, part: Part) -> str:
    """The query for the last row of each flow; cheap where no flow, or few, have more than one."""
    states = f"SELECT * EXCLUDE (segment) FROM states_{index}"  # noqa: S608
    if not _overlap(part.flows.values()):
        return states
    connection.execute(
        f"CREATE TABLE repeated_{index} AS SELECT flow, max(segment) AS last FROM states_{index}"  # noqa: S608
        " GROUP BY flow HAVING count(*) > 1"
    )
    if connection.execute(f"SELECT 1 FROM repeated_{index} LIMIT 1").fetchone() is None:  # noqa: S608
        return states
    return (
        f"SELECT s.* EXCLUDE (segment) FROM states_{index} s LEFT JOIN repeated_{index} r ON s.flow = r.flow"  # noqa: S608
        " WHERE r.flow IS NULL OR s.segment = r.last"
    )


def _overlap(ranges: Iterable[Range]) -> bool:
    """Whether a flow can be in two segments."""
    return any(low <= before for (_, before), (low, _) in pairwise(sorted(ranges)))


def create_views(connection: DuckDBPyConnection, parts: int) -> None:
    """The views over all parts: `states` and `flows`, with addresses as text and status bits as words; `traces`,
    `paths` and `steps`; and what these are made of: `state_rows`, `flow_rows`, `trace_rows`, `path_rows`.
    """

    def union(view: str) -> str:
        return " UNION ALL BY NAME ".join(f"SELECT * FROM {view}_{index}" for index in range(parts))  # noqa: S608

    for rows, view in (("state_rows", "states"), ("flow_rows", "flows"), ("trace_rows", ""), ("path_rows", "")):
        connection.execute(f"CREATE VIEW {rows} AS {union(view or rows)}")
        if view:
            connection.execute(f"CREATE VIEW {view} AS SELECT *, {IN_WORDS} FROM {rows}")  # noqa: S608
    connection.execute(f"CREATE VIEW paths AS {PATHS_VIEW}")
    connection.execute(f"CREATE VIEW steps AS {STEPS_VIEW}")
    connection.execute(f"CREATE VIEW traces AS {TRACES_VIEW}")
