"""The directions of the text log together with the steps of their traced packets, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from conntracker.model import LOG_GROUPS
from conntracker.recording.join import REQUESTS
from conntracker.recording.paths import UNKNOWN_PATH, load_paths
from conntracker.recording.query import direction_hashes, log_directions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conntracker.recording.arrow import Columns
    from conntracker.recording.reader import Recording
    from conntracker.steps import Path

    # Family, protocol, source, destination, and source and destination port (for ICMP type and code).
    Direction = tuple[int, int, int, int, int, int]

__all__ = ["log_with_steps"]

T = TypeVar("T")

NUMBERS = {label: (family, proto) for label, family, proto in LOG_GROUPS}

_SEEN = "part, path, place"
# The paths of each direction, told by its hashes, ranked by when they were first seen. Those of an ICMP answer, which
# may have no line of its own, are under its request, too.
RANKED = f"""
    WITH rows AS (
        SELECT *, epoch_us(first_seen)::HUGEINT * 4294967296 + row_number() OVER () AS place FROM trace_rows
    )
    SELECT h1, h2, part, path, row_number() OVER (PARTITION BY h1, h2 ORDER BY place) AS rank FROM (
        SELECT h1, h2, part, path, min(place) AS place FROM (
            SELECT {direction_hashes("", "coalesce(icmp_type, sport, 0)", "coalesce(icmp_code, dport, 0)")}, {_SEEN}
            FROM rows
            UNION ALL
            SELECT {direction_hashes("", "type", "icmp_code")}, {_SEEN} FROM (
                SELECT * REPLACE (dst_hi AS src_hi, dst_lo AS src_lo, src_hi AS dst_hi, src_lo AS dst_lo),
                answer(icmp_type::USMALLINT << 8) >> 8 AS type FROM rows WHERE icmp_type IN {tuple(REQUESTS)}
            )
        ) GROUP BY h1, h2, part, path
    )
"""  # noqa: S608
# States of a fixed size: what a query gathers in lists cannot go to disk. Hashed twice, because DuckDB combines hashes
# with XOR, which the ranks would not survive.
SETS = "SELECT h1, h2, bit_xor(hash(hash(part, path, rank))) AS paths FROM {ranked} GROUP BY h1, h2"
MEMBERS = "SELECT DISTINCT paths, rank, part, path FROM {ranked} JOIN {sets} USING (h1, h2) ORDER BY paths, rank"


def log_with_steps(
    recording: Recording, lines: Callable[[list[Path]], T], **where: Any
) -> tuple[Iterator[tuple[str, Columns]], dict[Direction, T]]:
    """(groups, steps): those of log_directions, and what `lines` makes of the paths of each direction.

    steps   only of the directions in the columns that were given last: it is filled anew with each part of a group
    where   the other arguments of log_directions
    """
    steps: dict[Direction, T] = {}

    def groups() -> Iterator[tuple[str, Columns]]:
        with recording.kept(RANKED) as ranked, recording.kept(SETS.format(ranked=ranked)) as sets:
            made = _made(recording, MEMBERS.format(ranked=ranked, sets=sets), lines)
            for kind, columns in log_directions(recording, **where, sets=sets):
                steps.clear()
                steps.update(_of_rows(kind, columns, made))
                yield kind, columns

    return groups(), steps


def _made(recording: Recording, query: str, lines: Callable[[list[Path]], T]) -> dict[int, T]:
    """What `lines` makes of each distinct set of paths."""
    paths = load_paths(recording)
    members: dict[int, dict[Path, None]] = {}
    for chunk in recording.chunks(query):
        for number, _, part, path in zip(*(column.tolist() for column in chunk.values()), strict=True):
            members.setdefault(number, {})[paths.get((part, path), UNKNOWN_PATH)] = None
    return {number: lines(list(of_set)) for number, of_set in members.items()}


def _of_rows(kind: str, columns: Columns, made: dict[int, Any]) -> Iterator[tuple[Direction, Any]]:
    names = ("src_hi", "src_lo", "dst_hi", "dst_lo", "sport", "dport", "paths")
    for src_hi, src_lo, dst_hi, dst_lo, sport, dport, paths in zip(
        *(columns[name].tolist() for name in names), strict=True
    ):
        if paths:
            yield (*NUMBERS[kind], src_hi << 64 | src_lo, dst_hi << 64 | dst_lo, sport, dport), made[paths]
