"""Questions to a recording: sorted flows, sums by column, and the directions that the text log consists of."""

from __future__ import annotations

from contextlib import ExitStack
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
from conntracker.recording.choices import FLOW_NAMES, OWN_NAMES, group_names, keys, known, limited, order, shown
from conntracker.recording.join import REQUESTS, matching, seen_inside
from conntracker.recording.owned import ENDS, owner_number, owner_value
from conntracker.recording.senders import TIME_ORDER, owners_of_flows, sender_numbers, with_senders
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


def flows_query(
    columns: Sequence[str],
    filter: Filter | None = None,
    since: int | None = None,
    until: int | None = None,
    sort: str | None = None,
    limit: int | None = None,
) -> str:
    """The query for columns of flows, sorted by a column (descending with '-' before it; addresses as numbers; by what
    is known of owners, that of the source first).

    `owner` and `peer_owner` among the columns are the numbers that ownertexts.owner_texts puts texts for.
    Raises ValueError for a column that is not there.
    """
    chosen = ", ".join(_chosen(name) for name in columns)
    by = order(sort, FLOW_NAMES, _sorted_by)
    query = f"SELECT {chosen} FROM flows WHERE {condition(filter, since, until)}"  # noqa: S608
    return query + (f" ORDER BY {by}, flow" if by else "") + limited(limit)


def _sorted_by(name: str) -> tuple[str, ...]:
    if name == "process":
        return "process", "peer_process"  # with pids
    return tuple(owner_value(end, name) for end in ENDS) if name in OWN_NAMES else keys(name)


def _chosen(name: str) -> str:
    if name in ENDS:
        return f"{owner_number(name)} AS {name}"
    return f'"{known("--columns", name, VIEW_NAMES)}"'


def groups_query(
    by: str,
    filter: Filter | None = None,
    since: int | None = None,
    until: int | None = None,
    sort: str | None = None,
    limit: int | None = None,
) -> str:
    """The query for sums of flows by columns ('dst,dport,proto'; for owners see `sides`), most bytes first if no order
    is given.

    Columns: those of `by`, then flows, packets, bytes, reply_packets, reply_bytes (null if never counted),
    first_seen, last_seen. Raises ValueError for a column that is not there.
    """
    names = group_names(by)
    by_keys = ", ".join(dict.fromkeys(key for name in names for key in keys(name)))
    sums = ", ".join(f"sum({name})::UBIGINT AS {name}" for name in COUNTERS)
    inner = (
        f"SELECT {by_keys}, count(*) AS flows, {sums}, min(first_seen) AS first_seen,"  # noqa: S608
        f" max(last_seen) AS last_seen FROM flows WHERE {condition(filter, since, until)} GROUP BY {by_keys}"
    )
    chosen = [shown(name) for name in names]
    by = order(sort, (*names, *SUM_NAMES)) or "bytes DESC NULLS LAST, flows DESC"
    query = f"SELECT {', '.join([*chosen, *SUM_NAMES])} FROM ({inner}) ORDER BY {by}, {by_keys}"  # noqa: S608
    return query + limited(limit)


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
    If owners were looked for, there are those who sent, too: `owner`, for each row where in `owners` they are, and
    `owners`, tuples of senders.Sender, in the order of time, the first one empty.

    sets   a table with a number `paths` for directions, told by their hashes; then that is a column, 0 for none
    """
    protocols = ", ".join(sorted({f"'{protocol_name(protocol)}'" for _, _, protocol in LOG_GROUPS}))
    columns = ", ".join(f"{side}{name}" for side in ("", "reply_") for name in TUPLE)
    senders = f", {sender_numbers()}" if recording.owned else ""
    where = f"proto IN ({protocols}) AND {condition(filter, since, until)}"
    # One pass over the segments, which may be thousands, however many groups there are.
    query = (
        f"SELECT family, proto, status & {IPS_SEEN_REPLY} <> 0 AS replied, icmp_type, icmp_code, {columns}{senders}"  # noqa: S608
        f" FROM flows WHERE {where}"
    )
    if everything:
        query += f" UNION ALL BY NAME ({_traced(filter, since, until)})"
    with ExitStack() as stack:
        table = stack.enter_context(recording.kept(query))
        owners = stack.enter_context(recording.kept(owners_of_flows(where))) if recording.owned else None
        for kind, family, protocol in LOG_GROUPS:
            query = _directions(table, family, protocol_name(protocol), sets, recording.owned)
            chunks = recording.chunks(query)
            for chunk in _distinct(chunks) if owners is None else with_senders(recording, owners, chunks):
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


def _directions(table: str, family: int, proto: str, sets: str | None, owned: bool) -> str:
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
        sender = f", {side}sender AS sender, first_seen, part, flow, {bool(side)} AS reply" if owned else ""
        return (
            f"SELECT {address}, {ports}{hashes}{sender} FROM {table}"  # noqa: S608
            f" WHERE family = {family} AND proto = '{proto}'{extra}"
        )

    if proto.startswith("icmp"):
        both = select("", "icmp_type", "icmp_code", "")
    else:
        replied = select("reply_", "reply_sport", "reply_dport", " AND replied")
        both = select("", "sport", "dport", "") + " UNION ALL " + replied
    if sets is None and not owned:
        return f"SELECT * FROM ({both}) ORDER BY ALL"  # noqa: S608
    key = "a, ports" if family == 4 else "a, b, c, d, ports"
    paths = "" if sets is None else ", coalesce(paths, 0::UBIGINT) AS paths"
    joined = "" if sets is None else f" LEFT JOIN {sets} USING (h1, h2)"
    sender, order = (
        (", coalesce(sender, 0::UBIGINT) AS sender", f"{key}, {', '.join(TIME_ORDER)}") if owned else ("", "ALL")
    )
    return f"SELECT {key}{paths}{sender} FROM ({both}){joined} ORDER BY {order}"  # noqa: S608


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
        **{name: columns[name] for name in ("paths", "owner", "owners") if name in columns},
    }
