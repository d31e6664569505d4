"""The tables `states` and `flows` over the segments of one or several recordings, and the conditions on them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from conntracker.recording.database import file_list
from conntracker.recording.schema import COLUMNS, VIEW_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duckdb import DuckDBPyConnection

    from conntracker.filters import Filter
    from conntracker.recording.meta import Meta

__all__ = ["VIEW_NAMES", "Part", "Range", "condition", "create_states", "create_views"]

Range = tuple[int, int]

VIEW_NAMES = (*(name for name, _, _ in COLUMNS), *(name for name, _ in VIEW_COLUMNS))


@dataclass(frozen=True, slots=True)
class Part:
    """One directory: what it says of itself (None if that is lost), and its readable segments, oldest first, each with
    the lowest and the highest number of a flow in it.
    """

    path: str
    meta: Meta | None
    segments: dict[str, Range]


def condition(filter: Filter | None, since: int | None, until: int | None) -> str:
    """The WHERE condition on the view `flows`. A flow that has not ended lives until its recording ends."""
    conditions = [filter.sql() if filter else "true"]
    if since is not None:
        conditions.append(f'coalesce("end", recording_end) >= {_timestamp(since)}')
    if until is not None:
        conditions.append(f"coalesce(start, first_seen) <= {_timestamp(until)}")
    return " AND ".join(conditions)


def _timestamp(time: int) -> str:
    return f"make_timestamp({int(time)})"


def create_states(connection: DuckDBPyConnection, index: int, part: Part) -> None:
    """states_N, every row of a part with the number of its segment, and flows_N, the last row of each flow."""
    columns = ", ".join(f'NULL::{kind} AS "{name}"' for name, kind, _ in COLUMNS)
    source = f"SELECT {columns}, 0::UBIGINT AS segment LIMIT 0"
    if part.segments:
        files = file_list(list(part.segments))
        read = f"SELECT *, file_index AS segment FROM read_parquet({files}"  # noqa: S608
        # Segments of an earlier version lack columns; only then is each file's own list of them looked at.
        source = f"{read})" if _complete(connection, files) else (
            f"({source}) UNION ALL BY NAME {read}, union_by_name = true)")  # fmt: skip
    end = part.meta.end if part.meta else None
    known_end = f"make_timestamp({end})" if end is not None else "'infinity'::TIMESTAMP"
    connection.execute(f"CREATE VIEW states_{index} AS SELECT *, {known_end} AS recording_end FROM ({source})")  # noqa: S608
    connection.execute(f"CREATE VIEW flows_{index} AS {_last_states(connection, index, part)}")


def _complete(connection: DuckDBPyConnection, files: str) -> bool:
    """Whether all these files have every column."""
    names = ", ".join(f"'{name}'" for name, _, _ in COLUMNS)
    query = (
        f"SELECT count(*) FROM (SELECT 1 FROM parquet_schema({files}) WHERE name IN ({names})"  # noqa: S608
        f" GROUP BY file_name HAVING count(*) < {len(COLUMNS)})"
    )
    return connection.execute(query).fetchone() == (0,)


def _last_states(connection: DuckDBPyConnection, index: int, part: Part) -> str:
    """The query for the last row of each flow; cheap where no flow, or few, have more than one."""
    states = f"SELECT * EXCLUDE (segment) FROM states_{index}"  # noqa: S608
    if not _overlap(part.segments.values()):
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
    """`states` and `flows`: those of all parts, with addresses as text and status bits as words."""
    extra = ", ".join(f"{expression} AS {name}" for name, expression in VIEW_COLUMNS)
    for view in ("states", "flows"):
        union = " UNION ALL BY NAME ".join(f"SELECT * FROM {view}_{index}" for index in range(parts))  # noqa: S608
        connection.execute(f"CREATE VIEW {view} AS SELECT *, {extra} FROM ({union})")  # noqa: S608
