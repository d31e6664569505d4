"""The segments that a directory has: found, and proved readable before anything is asked of them."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from conntracker.recording.database import file_list, translated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duckdb import DuckDBPyConnection

    from conntracker.recording.schema import Segments

__all__ = ["Range", "find_segments", "is_segment"]

Range = tuple[int, int]

NAME = re.compile(r"(flows|traces|paths)-(\d{6,})\.parquet", re.ASCII)
MAGIC = b"PAR1"


def is_segment(name: str) -> bool:
    """Whether a file of this name is a segment of any kind."""
    return NAME.fullmatch(name) is not None


def find_segments(
    connection: DuckDBPyConnection, path: str, names: Sequence[str], kind: Segments
) -> tuple[dict[str, Range], list[tuple[str, str]]]:
    """(readable, damaged) segments of a kind among the files of a directory.

    readable   oldest first, each with the lowest and highest value of the kind's key
    damaged    files that are left out, and why; also those that should be there and are not
    """
    numbers = {int(match[2]): name for name in names if (match := NAME.fullmatch(name)) and match[1] == kind.name}
    whole: list[str] = []
    damaged: list[tuple[str, str]] = []
    for number in range(1, max(numbers, default=0) + 1):
        if number not in numbers:
            damaged.append((os.path.join(path, f"{kind.name}-{number:06}.parquet"), "missing"))
    # By number: the name of the millionth segment is longer, and stands before the others as text.
    for _, name in sorted(numbers.items()):
        file = os.path.join(path, name)
        why = _why_unreadable(file)
        if why:
            damaged.append((file, why))
        else:
            whole.append(file)
    return _ranges(connection, kind, whole, damaged), damaged


def _ranges(
    connection: DuckDBPyConnection, kind: Segments, files: list[str], damaged: list[tuple[str, str]]
) -> dict[str, Range]:
    """The range of keys in each file that DuckDB can read and that has the columns that belong there."""
    try:
        return _footers(connection, kind, files)
    except OSError as error:
        if len(files) == 1:
            damaged.append((files[0], error.strerror or str(error)))
            return {}
        middle = len(files) // 2
        halves = files[:middle], files[middle:]
        return _ranges(connection, kind, halves[0], damaged) | _ranges(connection, kind, halves[1], damaged)


def _footers(connection: DuckDBPyConnection, kind: Segments, files: list[str]) -> dict[str, Range]:
    if not files:
        return {}
    names = ", ".join(f"'{name}'" for name in kind.essential)
    bounds = ", ".join(
        f"{bound}(CASE WHEN path_in_schema = '{kind.key}' THEN try_cast(stats_{bound}_value AS UBIGINT) END)"
        for bound in ("min", "max")
    )
    query = (
        f"SELECT parse_filename(file_name), {bounds} FROM parquet_metadata({file_list(files)})"  # noqa: S608
        f" WHERE path_in_schema IN ({names})"
        f" GROUP BY file_name HAVING count(DISTINCT path_in_schema) = {len(kind.essential)}"
    )
    with translated():
        ranges = {name: (low, high) for name, low, high in connection.execute(query).fetchall()}
    if len(ranges) != len(files):
        raise OSError(0, "not a segment of a recording")
    return {file: ranges[os.path.basename(file)] for file in files}


def _why_unreadable(path: str) -> str | None:
    """Why a file cannot be a whole Parquet file, at the cost of a few bytes."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(4)
        if size < 12 or head != MAGIC:
            return "not a Parquet file" if size >= 4 else "cut short"
        file.seek(-8, os.SEEK_END)
        tail = file.read(8)
    if tail[4:] != MAGIC or int.from_bytes(tail[:4], "little") > size - 12:
        return "cut short"
    return None
