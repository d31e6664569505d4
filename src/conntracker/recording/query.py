"""Questions to a recording: sorted flows, sums by column, and the directions that the text log consists of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from conntracker.model import (
    ADDRESS_COLUMNS,
    COUNTERS,
    IPS_SEEN_REPLY,
    LOG_GROUPS,
    protocol_name,
    unpack_addresses,
)
from conntracker.recording.join import REQUESTS, matching, seen_inside
from conntracker.recording.views import VIEW_NAMES, condition

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from conntracker.filters import Filter
    from conntracker.recording.arrow import Columns
    from conntracker.recording.reader import Recording

    Direction = tuple[int, int, int, int, int, int]

__all__ = ["direction_hashes", "flows_query", "groups_query", "log_directions"]

TUPLE = ("src_hi", "src_lo", "dst_hi", "dst_lo", "sport", "dport")
SUM_NAMES = ("flows", *COUNTERS, "first_seen", "last_seen")
ADDRESSES = ("src", "dst", "reply_src", "reply_dst")
GROUP_NAMES = (
    "host", "family", "proto", *ADDRESSES, "sport", "dport", "reply_sport", "reply_dport", "icmp_type", "icmp_code",
    "icmp_id", "zone", "mark", "state", "replied", "offloaded", "snat", "dnat",
)  # fmt: skip


def flows_query(
    columns: Sequence[str],
    filter: Filter | None = None,
    since: int | None = None,
    until: int | None = None,
    sort: str | None = None,
    limit: int | None = None,
) -> str:
    """The query for columns of flows, sorted by a column (descending with '-' before it; addresses as numbers).

    Raises ValueError for a column that is not there.
    """
    chosen = ", ".join(f'"{_known("--columns", name, VIEW_NAMES)}"' for name in columns)
    order = _order(sort, VIEW_NAMES)
    query = f"SELECT {chosen} FROM flows WHERE {condition(filter, since, until)}"  # noqa: S608
    return query + (f" ORDER BY {order}, flow" if order else "") + _limit(limit)


def groups_query(
    by: str,
    filter: Filter | None = None,
    since: int | None = None,
    until: int | None = None,
    sort: str | None = None,
    limit: int | None = None,
) -> str:
    """The query for sums of flows by columns ('dst,dport,proto'), most bytes first if no order is given.

    Columns: those of `by`, then flows, packets, bytes, reply_packets, reply_bytes (null if never counted),
    first_seen, last_seen. Raises ValueError for a column that is not there.
    """
    names = [_known("--group-by", name.strip(), GROUP_NAMES) for name in by.split(",")]
    keys = list(dict.fromkeys(key for name in names for key in _keys(name)))
    sums = ", ".join(f"sum({name})::UBIGINT AS {name}" for name in COUNTERS)
    inner = (
        f"SELECT {', '.join(keys)}, count(*) AS flows, {sums}, min(first_seen) AS first_seen,"  # noqa: S608
        f" max(last_seen) AS last_seen FROM flows WHERE {condition(filter, since, until)} GROUP BY {', '.join(keys)}"
    )
    chosen = [_shown(name) for name in dict.fromkeys(names)]
    order = _order(sort, (*names, *SUM_NAMES)) or "bytes DESC NULLS LAST, flows DESC"
    return f"SELECT {', '.join([*chosen, *SUM_NAMES])} FROM ({inner}) ORDER BY {order}, {', '.join(keys)}" + _limit(  # noqa: S608
        limit
    )


def log_directions(
    recording: Recording,
    filter: Filter | None = None,
    since: int | None = None,
    until: int | None = None,
    everything: bool = False,
    sets: str | None = None,
) -> Iterator[tuple[str, Columns]]:
    """The distinct directions of all flows, group after group, each sorted by numbers, as (kind, columns).

    kind is a label of model.LOG_GROUPS; columns src_hi, src_lo, dst_hi, dst_lo (uint64), sport, dport (uint16; for
    ICMP type and code). A flow's reply direction is there once a reply was seen, but not for ICMP. With `everything`
    the directions of traced packets are there, too, but of ICMP no answer beside its request. Rows are sorted by
    source, destination, source port, destination port, in chunks; DuckDB sorts beyond its memory limit on disk.

    sets   a table with a number `paths` for directions, told by their hashes; then that is a column, 0 for none
    """
    protocols = ", ".join(sorted({f"'{protocol_name(protocol)}'" for _, _, protocol in LOG_GROUPS}))
    columns = ", ".join(f"{side}{name}" for side in ("", "reply_") for name in TUPLE)
    # One pass over the segments, which may be thousands, however many groups there are.
    query = (
        f"SELECT family, proto, status & {IPS_SEEN_REPLY} <> 0 AS replied, icmp_type, icmp_code, {columns}"  # noqa: S608
        f" FROM flows WHERE proto IN ({protocols}) AND {condition(filter, since, until)}"
    )
    if everything:
        query += f" UNION ALL BY NAME ({_traced(filter, since, until)})"
    with recording.kept(query) as table:
        for kind, family, protocol in LOG_GROUPS:
            query = _directions(table, family, protocol_name(protocol), sets)
            for chunk in _distinct(recording.chunks(query)):
                yield kind, _unpack(chunk)


def _traced(filter: Filter | None, since: int | None, until: int | None) -> str:
    """The directions of traced packets, each once."""
    names = ("icmp_type", "icmp_code", *TUPLE[:4])
    rows = (
        f"SELECT DISTINCT family, proto, {', '.join(names)}, coalesce(sport, 0) AS sport, coalesce(dport, 0) AS dport"  # noqa: S608
        f" FROM trace_rows WHERE {matching(filter)} AND {seen_inside(since, until)}"
    )
    request = "SELECT dst_hi, dst_lo, src_hi, src_lo, icmp_type, icmp_code FROM rows WHERE icmp_type IS NOT NULL"
    asked = "answer(icmp_type::USMALLINT << 8) >> 8"
    return (
        f"WITH rows AS ({rows}) SELECT *, false AS replied FROM rows WHERE icmp_type IS NULL"  # noqa: S608
        f" OR icmp_type NOT IN {tuple(REQUESTS)}"
        f" OR (src_hi, src_lo, dst_hi, dst_lo, {asked}, icmp_code) NOT IN ({request})"
    )


def _directions(table: str, family: int, proto: str, sets: str | None) -> str:
    # IPv4 sorts by one word of both addresses, and ports by one word of both: less to compare and to move.
    def select(side: str, first: str, second: str, extra: str) -> str:
        source, destination = f"{side}src", f"{side}dst"
        address = (
            f"{source}_lo << 32 | {destination}_lo AS a"
            if family == 4
            else f"{source}_hi AS a, {source}_lo AS b, {destination}_hi AS c, {destination}_lo AS d"
        )
        ports = f"{first}::UINTEGER << 16 | {second} AS ports"
        hashes = "" if sets is None else f", {direction_hashes(side, first, second)}"
        return f"SELECT {address}, {ports}{hashes} FROM {table} WHERE family = {family} AND proto = '{proto}'{extra}"  # noqa: S608

    if proto.startswith("icmp"):
        both = select("", "icmp_type", "icmp_code", "")
    else:
        replied = select("reply_", "reply_sport", "reply_dport", " AND replied")
        both = select("", "sport", "dport", "") + " UNION ALL " + replied
    if sets is None:
        return f"SELECT * FROM ({both}) ORDER BY ALL"  # noqa: S608
    key = "a, ports" if family == 4 else "a, b, c, d, ports"
    paths = f"FROM ({both}) LEFT JOIN {sets} USING (h1, h2)"
    return f"SELECT {key}, coalesce(paths, 0::UBIGINT) AS paths {paths} ORDER BY ALL"


def direction_hashes(side: str, first: str, second: str) -> str:
    """Two hashes, h1 and h2, that tell directions apart; `first` and `second` are ports, or type and code."""
    ends = ", ".join(f"{side}{name}" for name in TUPLE[:4])
    values = f"family, proto, {ends}, ({first})::USMALLINT, ({second})::USMALLINT"
    return f"hash(1, {values}) AS h1, hash(2, {values}) AS h2"


def _distinct(chunks: Iterator[Columns]) -> Iterator[Columns]:
    """Sorted rows without those equal to the row before them."""
    last: dict[str, int] = {}
    for chunk in chunks:
        size = len(chunk["ports"])
        fresh = np.zeros(size, np.bool_)
        for name, column in chunk.items():
            fresh[1:] |= column[1:] != column[:-1]
            fresh[0] |= not last or last[name] != column[0]
        last = {name: int(column[-1]) for name, column in chunk.items()}
        yield chunk if fresh.all() else {name: column[fresh] for name, column in chunk.items()}


def _unpack(columns: Columns) -> Columns:
    ports, first = columns["ports"], columns["a"]
    words = (first, columns["b"], columns["c"], columns["d"]) if "b" in columns else (first,)
    return {
        **dict(zip(ADDRESS_COLUMNS, unpack_addresses(words), strict=True)),
        "sport": (ports >> np.uint32(16)).astype(np.uint16),
        "dport": ports.astype(np.uint16),
        **({"paths": columns["paths"]} if "paths" in columns else {}),
    }


def _known(option: str, name: str, names: Sequence[str]) -> str:
    if name not in names:
        raise ValueError(f"{option}: no column {name!r}; there are: {', '.join(dict.fromkeys(names))}")
    return name


def _keys(name: str) -> tuple[str, ...]:
    """What a column is compared by: an address by its numbers."""
    return ("family", f"{name}_hi", f"{name}_lo") if name in ADDRESSES else (f'"{name}"',)


def _shown(name: str) -> str:
    return f"address(family, {name}_hi, {name}_lo) AS {name}" if name in ADDRESSES else f'"{name}"'


def _order(sort: str | None, names: Sequence[str]) -> str:
    if sort is None:
        return ""
    name = _known("--sort", sort.removeprefix("-"), names)
    direction = "DESC" if sort.startswith("-") else "ASC"
    return ", ".join(f"{key} {direction} NULLS LAST" for key in _keys(name))


def _limit(limit: int | None) -> str:
    return "" if limit is None else f" LIMIT {int(limit)}"
