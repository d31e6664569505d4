"""DuckDB as this package uses it: in memory, no extensions from the network, bounded, its errors as OSError."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duckdb import DuckDBPyConnection

__all__ = ["Database", "file_list", "literal", "translated"]

# What a recording meets when it is written or read; DuckDB gives only the text of the error.
ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EROFS, errno.ENOENT, errno.EMFILE)


class Database:
    """A DuckDB connection with a directory to spill to, which goes away on close().

    memory_limit   DuckDB's: '256MB'
    threads        DuckDB's; None: as many as there are processors, four at most
    spill          a directory that DuckDB makes when it needs it; None: a private temporary one
    """

    def __init__(self, memory_limit: str, threads: int | None, spill: str | None = None) -> None:
        import duckdb

        self._private = None if spill else tempfile.TemporaryDirectory(prefix="conntracker-")
        config: dict[str, str | bool | int | float | list[str]] = {
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "memory_limit": memory_limit,
            "threads": threads or min(len(os.sched_getaffinity(0)), 4),
            "temp_directory": self._private.name if self._private else spill or "",
        }
        self.connection: DuckDBPyConnection = duckdb.connect(":memory:", config=config)

    def close(self) -> None:
        """Ends all queries and removes what was spilled."""
        self.connection.close()
        if self._private:
            self._private.cleanup()


@contextmanager
def translated() -> Iterator[None]:
    """DuckDB's errors inside are raised as OSError."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        text = str(error).partition("\n")[0]
        number = next((number for number in ERRNOS if os.strerror(number) in text), None)
        if number is None:
            raise OSError(errno.EIO, text) from error
        raise OSError(number, os.strerror(number)) from error


def literal(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def file_list(paths: list[str]) -> str:
    """Paths as an SQL list for read_parquet, which would take *, ? and [ in them as a pattern."""
    escaped = ("".join(f"[{c}]" if c in "*?[" else c for c in path) for path in paths)
    return "[" + ", ".join(literal(path) for path in escaped) + "]"
