"""The directions of the text log together with the steps of their traced packets, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from conntracker.model import LOG_GROUPS
from conntracker.recording.join import REQUESTS
from conntracker.recording.paths import UNKNOWN_PATH, load_paths
from conntracker.recording.query import log_directions

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

_ENDS = "src_hi, src_lo, dst_hi, dst_lo"
_SEEN = "part, path, first_seen, row_number() OVER () AS n"
# Every direction with a number that stands for its distinct paths, in the order in which they were first seen. Those of
# an ICMP answer, which may have no line of its own, are under its request, too.
SETS = f"""
    SELECT * EXCLUDE (members), hash(members) AS paths, members FROM (
        SELECT family, proto, {_ENDS}, first, second,
        string_agg(part || ':' || path, ',' ORDER BY seen, place) AS members FROM (
            SELECT family, proto, {_ENDS}, first, second, part, path, min(first_seen) AS seen, min(n) AS place FROM (
                SELECT family, proto, {_ENDS}, coalesce(icmp_type, sport, 0) AS first,
                coalesce(icmp_code, dport, 0) AS second, {_SEEN} FROM trace_rows
                UNION ALL
                SELECT family, proto, dst_hi, dst_lo, src_hi, src_lo, answer(icmp_type::USMALLINT << 8) >> 8,
                icmp_code, {_SEEN} FROM trace_rows WHERE icmp_type IN {tuple(REQUESTS)}
            ) GROUP BY ALL
        ) GROUP BY ALL
    )
"""  # noqa: S608


def log_with_steps(
    recording: Recording, lines: Callable[[list[Path]], T], **where: Any
) -> tuple[Iterator[tuple[str, Columns]], dict[Direction, T]]:
    """(groups, steps): those of log_directions, and what `lines` makes of the paths of each direction.

    steps   only of the directions in the columns that were given last: it is filled anew with each part of a group
    where   the other arguments of log_directions
    """
    steps: dict[Direction, T] = {}

    def groups() -> Iterator[tuple[str, Columns]]:
        with recording.kept(SETS) as sets:
            made = {0: None} | _made(recording, sets, lines)
            for kind, columns in log_directions(recording, **where, sets=sets):
                steps.clear()
                steps.update(_of_rows(kind, columns, made))
                yield kind, columns

    return groups(), steps


def _made(recording: Recording, sets: str, lines: Callable[[list[Path]], T]) -> dict[int, T]:
    """What `lines` makes of each distinct set of paths."""
    paths = load_paths(recording)
    made: dict[int, T] = {}
    for chunk in recording.chunks(f"SELECT DISTINCT paths, members FROM {sets}"):  # noqa: S608
        for number, members in zip(chunk["paths"].tolist(), chunk["members"].tolist(), strict=True):
            pairs = (member.split(":") for member in members.split(","))
            of_set = [paths.get((int(part), int(path)), UNKNOWN_PATH) for part, path in pairs]
            made[number] = lines(list(dict.fromkeys(of_set)))
    return made


def _of_rows(kind: str, columns: Columns, made: dict[int, Any]) -> Iterator[tuple[Direction, Any]]:
    names = ("src_hi", "src_lo", "dst_hi", "dst_lo", "sport", "dport", "paths")
    for src_hi, src_lo, dst_hi, dst_lo, sport, dport, paths in zip(
        *(columns[name].tolist() for name in names), strict=True
    ):
        if paths:
            yield (*NUMBERS[kind], src_hi << 64 | src_lo, dst_hi << 64 | dst_lo, sport, dport), made[paths]
