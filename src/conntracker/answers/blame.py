"""Which rule did this: for each flow its verdict, the step that decided, and the ways that its packets took."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from conntracker.answers.untraced import why_untraced
from conntracker.answers.ways import DIRECTIONS, Change, Way, answer_of, headline, sorted_ways
from conntracker.model import protocol_number
from conntracker.recording.join import WAY, joined
from conntracker.recording.paths import UNKNOWN_PATH, load_paths
from conntracker.recording.views import IN_WORDS
from conntracker.steps import Packet, Path, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from conntracker.filters import Filter
    from conntracker.recording.meta import Meta
    from conntracker.recording.reader import Recording

__all__ = ["Blame", "blame"]

BATCH = 50_000  # flows that are put together at once: their rows are wide, and sorting many takes much memory


@dataclass(frozen=True, slots=True)
class Blame:
    """What became of a flow, or of packets that never became one.

    flow        the recording's columns of a flow (times as datetime, UTC), None if conntrack had none
    packet      the packets' headers where there is no flow
    way         the one that answers for all (see ways.headline); None where only errors were traced, or nothing
    ways        everything that was traced: original direction first, copies last, each in the order in which it began
    why_not     why there is no way
    change      packets in the direction of `way` came to different ends
    answer      the ICMP error that says why the packets of `way` did not arrive, though no rule held them back
    limit       (N, window) where a direction has as many traced packets as are traced of it, N in each window
    """

    host: str
    flow: dict[str, Any] | None
    packet: Packet | None
    way: Way | None
    ways: tuple[Way, ...]
    why_not: str | None = None
    change: Change | None = None
    answer: Way | None = None
    limit: tuple[int, str] | None = None

    @property
    def verdict(self) -> str | None:
        """What became of the packets of `way`."""
        return None if self.way is None else self.way.path.verdict

    @property
    def deciding(self) -> Step | None:
        """The step that decided about them; None if no step did."""
        return None if self.way is None else self.way.path.deciding


def blame(
    recording: Recording,
    filter: Filter | None = None,
    since: int | None = None,
    until: int | None = None,
    limit: int | None = None,
    untraced: Callable[[int], None] | None = None,
) -> Iterator[Blame]:
    """Every flow that is wanted (see Recording.flows), and all other packets that were traced then, by time.

    limit       at most so many, the newest ones
    untraced    if given, flows of which nothing was traced are left out, and it is told their number

    Raises OSError, and ValueError where the paths are damaged.
    """
    paths = load_paths(recording)
    with (
        joined(recording, filter, since, until) as (wanted, ways),
        recording.kept(_units(wanted, ways, limit, untraced is None)) as units,
    ):
        if untraced is not None:
            query = f"SELECT count(*) AS flows FROM {wanted} w ANTI JOIN {ways} t ON {_SAME_FLOW}"  # noqa: S608
            for row in _rows(recording, query):
                untraced(row["flows"])
        for bounds in _rows(recording, f"SELECT min(number) AS low, max(number) AS high FROM {units}"):  # noqa: S608
            for first in range(bounds["low"] or 1, (bounds["high"] or 0) + 1, BATCH):
                rows = _rows(recording, _query(recording.columns, units, ways, first, first + BATCH - 1))
                for _, group in groupby(rows, key=lambda row: row["number"]):
                    yield _blame(recording, list(group), paths)


_SAME_FLOW = "w.part = t.part AND w.flow = t.flow"


def _units(wanted: str, ways: str, limit: int | None, all_flows: bool) -> str:
    """Each flow, or each that has a way, and all packets that stand together without one, numbered by time."""
    traced = "" if all_flows else f" SEMI JOIN {ways} t ON {_SAME_FLOW}"
    found = (
        f"SELECT part, flow, NULL AS unit, begin FROM {wanted} w{traced} UNION ALL"  # noqa: S608
        f" SELECT part, NULL, unit, epoch_us(min(first_seen)) FROM {ways} WHERE flow IS NULL GROUP BY part, unit"
    )
    newest = "" if limit is None else f" QUALIFY number > count(*) OVER () - {int(limit)}"
    return f"SELECT *, row_number() OVER (ORDER BY begin, part, flow, unit) AS number FROM ({found}){newest}"  # noqa: S608


def _query(columns: Sequence[str], units: str, ways: str, first: int, last: int) -> str:
    """A row for each way of those numbered first..last, the columns of its flow beside it; one for a flow without."""
    units = f"(SELECT * FROM {units} WHERE number BETWEEN {first} AND {last})"  # noqa: S608
    flow = ", ".join(f'f."{name}" AS "flow_{name}"' for name in columns)
    way = ", ".join(f"w.{name} AS {name}" for name in ("direction", "certain", "packets", "place", *WAY))
    times = "epoch_us(w.first_seen) AS first, epoch_us(w.last_seen) AS last"
    of_flows = (
        f"SELECT f.number, f.part, {flow}, {way}, {times} FROM"  # noqa: S608
        f" (SELECT *, {IN_WORDS} FROM (SELECT number, f.* FROM {units} u JOIN flow_rows f"
        " ON u.part = f.part AND u.flow = f.flow)) f"
        f" LEFT JOIN {ways} w ON f.part = w.part AND f.flow = w.flow"
    )
    of_none = (
        f"SELECT u.number, u.part, {way}, {times} FROM {units} u"  # noqa: S608
        f" JOIN {ways} w ON u.part = w.part AND u.unit = w.unit"
    )
    order = " ".join(f"WHEN '{name}' THEN {place}" for place, name in enumerate(DIRECTIONS))
    return (
        f"SELECT * FROM ({of_flows} UNION ALL BY NAME {of_none})"  # noqa: S608
        f" ORDER BY number, CASE direction {order} END, first, place"
    )


def _rows(recording: Recording, query: str) -> Iterator[dict[str, Any]]:
    for chunk in recording.chunks(query):
        names = list(chunk)
        for values in zip(*(column.tolist() for column in chunk.values()), strict=True):
            yield dict(zip(names, values, strict=True))


def _blame(recording: Recording, rows: list[dict[str, Any]], paths: dict[tuple[int, int], Path]) -> Blame:
    first = rows[0]
    flow = None
    if first["flow_flow"] is not None:
        flow = {name: first[f"flow_{name}"] for name in recording.columns}
    ways = sorted_ways(_way(row, paths) for row in rows if row["direction"] is not None)
    meta = recording.parts[first["part"]].meta
    way, change = headline(ways)
    why_not = None
    if way is None:
        about = "only ICMP errors about it were traced; of its own packets: " if ways else ""
        why_not = about + why_untraced(flow or {}, meta)
    host = str(first["flow_host"] if flow else first["host"])
    packet = None if flow else ways[0].packet
    answer = None if way is None else answer_of(way, ways)
    return Blame(host, flow, packet, way, ways, why_not, change, answer, _limit(ways, meta))


def _limit(ways: tuple[Way, ...], meta: Meta | None) -> tuple[int, str] | None:
    """How many packets are traced of a direction, in which time, if there may have been more."""
    facts = {} if meta is None or meta.trace is None else meta.trace
    most = facts.get("packets")
    traced: Counter[tuple[str, Packet]] = Counter()
    for way in ways:
        traced[way.direction, way.packet] += way.traced
    if not isinstance(most, int) or max(traced.values(), default=0) < most:
        return None
    return most, str(facts.get("window"))


def _way(row: dict[str, Any], paths: dict[tuple[int, int], Path]) -> Way:
    packet, left = _packets(row)
    return Way(
        row["direction"], row["certain"], row["packets"], row["first"], row["last"], row["place"], packet, left,
        row["in_interface"], row["out_interface"], paths.get((row["part"], row["path"]), UNKNOWN_PATH),
    )  # fmt: skip


def _packets(row: dict[str, Any]) -> tuple[Packet, Packet]:
    """The packet as it came, and as it left."""
    about = None if row["about_proto"] is None else _packet(row, "about_", "about_", None)
    packet = _packet(row, "", "", about)
    if row["left_src_lo"] is None:
        return packet, packet
    return packet, _packet(row, "left_", "", about)


def _packet(row: dict[str, Any], changed: str, kept: str, about: Packet | None) -> Packet:
    src, dst = (row[f"{changed}{end}_hi"] << 64 | row[f"{changed}{end}_lo"] for end in ("src", "dst"))
    return Packet(
        row["family"], protocol_number(row[f"{kept}proto"]), src, dst, row[f"{changed}sport"], row[f"{changed}dport"],
        row[f"{kept}icmp_type"], row[f"{kept}icmp_code"], row[f"{changed}icmp_id"],
        kept == "" and bool(row["fragment"]), about,
    )  # fmt: skip
