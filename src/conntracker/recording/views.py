"""The tables `states` and `flows` over the segments of one or several recordings, and the conditions on them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from conntracker.recording.database import file_list
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

__all__ = ["IN_WORDS", "VIEW_NAMES", "Part", "condition", "create_part", "create_views", "timestamp"]

# Addresses as text and status bits as words: behind the columns of rows with all columns of FLOWS.
IN_WORDS = ", ".join(f"{expression} AS {name}" for name, expression in VIEW_COLUMNS)
VIEW_NAMES = (*(name for name, _, _ in FLOWS.columns), *(name for name, _ in VIEW_COLUMNS))


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


def create_part(connection: DuckDBPyConnection, index: int, part: Part) -> None:
    """states_N, every row of a part with the number of its segment, flows_N, the last row of each flow; trace_rows_N,
    path_rows_N.
    """
    end = part.meta.end if part.meta else None
    known_end = f"make_timestamp({end})" if end is not None else "'infinity'::TIMESTAMP"
    for view, segments, kind, extra in (
        (f"states_{index}", part.flows, FLOWS, f", {known_end} AS recording_end"),
        (f"trace_rows_{index}", part.traces, TRACES, ""),
        (f"path_rows_{index}", part.paths, PATHS, ""),
    ):
        source = _rows(connection, list(segments), kind)
        connection.execute(f"CREATE VIEW {view} AS SELECT *, {index} AS part{extra} FROM ({source})")  # noqa: S608
    connection.execute(f"CREATE VIEW flows_{index} AS {_last_states(connection, index, part)}")


def _rows(connection: DuckDBPyConnection, segments: list[str], kind: Segments) -> str:
    """The query for all rows of segments of a kind, with the number of the segment."""
    columns = ", ".join(f'NULL::{type} AS "{name}"' for name, type, _ in kind.columns)
    nothing = f"SELECT {columns}, 0::UBIGINT AS segment LIMIT 0"
    if not segments:
        return nothing
    files = file_list(segments)
    read = f"SELECT *, file_index AS segment FROM read_parquet({files}"  # noqa: S608
    # Segments of an earlier version lack columns; only then is each file's own list of them looked at.
    if _complete(connection, files, kind):
        return f"{read})"
    return f"({nothing}) UNION ALL BY NAME {read}, union_by_name = true)"


def _complete(connection: DuckDBPyConnection, files: str, kind: Segments) -> bool:
    """Whether all these files have every column."""
    names = ", ".join(f"'{name}'" for name, _, _ in kind.columns)
    query = (
        f"SELECT count(*) FROM (SELECT 1 FROM parquet_schema({files}) WHERE name IN ({names})"  # noqa: S608
        f" GROUP BY file_name HAVING count(*) < {len(kind.columns)})"
    )
    return connection.execute(query).fetchone() == (0,)


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
