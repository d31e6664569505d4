"""Sums over the sides of flows: which program, user, unit or container talks to whom.

A flow counts for the owner of its source and for that of its destination, and once for an owner who has both. Ends that
are not on this host are nobody's here; a flow with no owner here counts once, as forwarded or as not known. With
conditions on owners, only ends whose owner meets them count.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from conntracker.owner import FORWARDED, KERNEL, PROCESS
from conntracker.recording.choices import SIDE_NAMES, group_names, keys, limited, order, shown
from conntracker.recording.owned import owner_value, process_word
from conntracker.recording.views import condition

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conntracker.filters import Filter
    from conntracker.recording.arrow import Columns
    from conntracker.recording.reader import Recording

__all__ = ["CLIENT", "SERVER", "Peer", "Peers", "by_owner", "sides"]

CLIENT, SERVER = "client", "server"

# Sums over sides: what each sent and received, as far as it was counted.
SUMS = {
    "flows": "sum(fresh)::UBIGINT",
    **{name: f"sum({name})::UBIGINT" for name in ("sent_bytes", "received_bytes", "sent_packets", "received_packets")},
    "first_seen": "min(first_seen)",
    "last_seen": "max(last_seen)",
}


class Peer(NamedTuple):
    """Who a side talks to.

    role      what the side is: CLIENT, SERVER, or None where it is nobody's
    address   of the other end, as this side sees it
    port      that of the service: the other's for a client, its own for a server; None for protocols without
    proto     the protocol's name
    process   the name of the other end's process, if that is on this host, too
    flows     how many flows
    """

    role: str | None
    address: str
    port: int | None
    proto: str
    process: str | None
    flows: int


class Peers(NamedTuple):
    """How many peers a side has, and the first of them, most flows first."""

    total: int
    first: list[Peer]


def by_owner(by: str) -> bool:
    """Whether the rows of --group-by are sides of flows."""
    return any(name in SIDE_NAMES for name in group_names(by))


def sides(
    recording: Recording,
    by: str,
    filter: Filter | None = None,
    since: int | None = None,
    until: int | None = None,
    sort: str | None = None,
    limit: int | None = None,
    most: int | None = None,
    terse: bool = False,
) -> Iterator[Columns]:
    """Chunks of columns: those of `by`, `kind` (see Owner), the names of SUMS; most flows first if not sorted.

    Where `by` has columns of owners only, there is `peers`, too: Peers of each row, at most `most` of them. Else there
    is `role`: columns of flows do not tell at which end the owner is. Raises ValueError for a column that is not there.

    terse   without `kind` where that was not asked for and all owners are processes
    """
    asked = group_names(by)
    with_peers = all(name in SIDE_NAMES for name in asked)
    names = list(dict.fromkeys([*asked, *([] if with_peers else ["role"]), "kind"]))
    first = order(sort, (*names, *SUMS)) or "flows DESC, sent_bytes DESC NULLS LAST"
    by_keys = ", ".join(dict.fromkeys(key for name in names for key in _keys(name)))
    with ExitStack() as stack:
        pairs = stack.enter_context(recording.kept(_pairs(names, filter, condition(filter, since, until), with_peers)))
        groups = stack.enter_context(recording.kept(_groups(pairs, by_keys, first, limit)))
        peers = _peers(recording, _peers_query(pairs, groups, by_keys, most)) if with_peers else None
        if terse and "kind" not in asked and _all_processes(recording, groups):
            names.remove("kind")
        chosen = ", ".join([*map(shown, names), *SUMS, "number"])
        for chunk in recording.chunks(f"SELECT {chosen} FROM {groups} ORDER BY number"):  # noqa: S608
            count = len(chunk.pop("number"))
            yield chunk if peers is None else chunk | _taken(peers, count)


def _all_processes(recording: Recording, groups: str) -> bool:
    others = f"SELECT 1 AS one FROM {groups} WHERE kind IS DISTINCT FROM '{PROCESS}' LIMIT 1"  # noqa: S608
    return not any(True for _ in recording.chunks(others))


def _keys(name: str) -> tuple[str, ...]:
    # A process of the same number that began at another time is another one.
    return ("pid", "pid_start") if name == "pid" else keys(name)


def _here(end: str) -> str:
    return f"coalesce({end}_kind IN ('{PROCESS}', '{KERNEL}'), false)"


def _counted(end: str, filter: Filter | None) -> str:
    """Whether an end is of an owner here, and of one who is wanted."""
    return _here(end) if filter is None else f"({_here(end)} AND coalesce({filter.owner_sql(end)}, false))"


def _of_end(name: str, end: str) -> str:
    """The expression for a column of one end's owner."""
    if name == "role":
        return f"'{CLIENT if end == 'owner' else SERVER}'"
    return owner_value(end, {"pid_start": "start"}.get(name, name))


def _either(source: str, destination: str) -> str:
    return f"CASE WHEN peer THEN {destination} ELSE {source} END"


def _side(name: str) -> str:
    """The expression for a column of a side's owner, or of a flow that nobody here owns."""
    forwarded = f"CASE WHEN '{FORWARDED}' IN (owner_kind, peer_owner_kind) THEN '{FORWARDED}' END"
    nobody = {"kind": forwarded, "process": f"'(' || {forwarded} || ')'"}.get(name, "NULL")
    source = f"CASE WHEN {_here('owner')} THEN {_of_end(name, 'owner')} ELSE {nobody} END"
    return _either(source, _of_end(name, "peer_owner"))


def _pairs(names: list[str], filter: Filter | None, where: str, with_peers: bool) -> str:
    """Sums for each distinct side, with peers for each that it talks to, from one pass over the flows."""
    owned = [key for name in names if name in SIDE_NAMES for key in _keys(name)]
    columns = [f"{_side(key.strip(chr(34)))} AS {key}" for key in owned]
    columns += [key for name in names if name not in SIDE_NAMES for key in keys(name)]
    if with_peers:
        process = [f"CASE WHEN {_here(end)} THEN {process_word(end)} END" for end in ("peer_owner", "owner")]
        columns += [
            f'{_side("role")} AS "role"',
            "family",
            "proto",
            f"{_either('dst_hi', 'reply_dst_hi')} AS peer_hi",
            f"{_either('dst_lo', 'reply_dst_lo')} AS peer_lo",
            f"{_either('dport', 'reply_sport')} AS port",
            f"{_either(*process)} AS peer_process",
        ]
    same = " AND ".join(
        f"{_of_end(name, 'owner')} IS NOT DISTINCT FROM {_of_end(name, 'peer_owner')}"
        for name in (key.strip('"') for key in owned)
    )
    counted = ", ".join(
        f"sum({_either(own, other)})::UBIGINT AS {name}"
        for name, own, other in (
            ("sent_bytes", "bytes", "reply_bytes"), ("received_bytes", "reply_bytes", "bytes"),
            ("sent_packets", "packets", "reply_packets"), ("received_packets", "reply_packets", "packets"),
        )
    )  # fmt: skip
    source, destination = (_counted(end, filter) for end in ("owner", "peer_owner"))
    nobody = f"NOT ({_here('owner')} OR {_here('peer_owner')})"
    return (
        f"SELECT {', '.join(dict.fromkeys(columns))}, count(*) AS pair_flows,"  # noqa: S608
        f" count(*) FILTER (NOT peer OR NOT {source} OR NOT ({same})) AS fresh, {counted},"
        " min(first_seen) AS first_seen, max(last_seen) AS last_seen"
        f" FROM flows, (VALUES (false), (true)) ends(peer) WHERE {where}"
        f" AND CASE WHEN peer THEN {destination} ELSE {source} OR {nobody} END"
        " GROUP BY ALL"
    )


def _groups(pairs: str, by_keys: str, first: str, limit: int | None) -> str:
    sums = ", ".join(f"{sum} AS {name}" for name, sum in SUMS.items())
    return (
        f"SELECT *, row_number() OVER (ORDER BY {first}, {by_keys}) AS number"  # noqa: S608
        f" FROM (SELECT {by_keys}, {sums} FROM {pairs} GROUP BY {by_keys}) ORDER BY number{limited(limit)}"
    )


def _peers_query(pairs: str, groups: str, by_keys: str, most: int | None) -> str:
    """A row for each peer, in the order of groups and in each by flows; all columns of Peer, and how many there are."""
    same = " AND ".join(f"g.{key} IS NOT DISTINCT FROM p.{key}" for key in by_keys.split(", "))
    rank = "PARTITION BY number ORDER BY p.pair_flows DESC, p.role, family, peer_hi, peer_lo, port, proto, peer_process"
    few = "" if most is None else f" QUALIFY rank <= {int(most)}"
    return (
        "SELECT number, count(*) OVER (PARTITION BY number) AS total, p.role,"  # noqa: S608
        " address(family, peer_hi, peer_lo) AS address, port, proto, peer_process, p.pair_flows,"
        f" row_number() OVER ({rank}) AS rank FROM {groups} g JOIN {pairs} p ON {same}{few} ORDER BY number, rank"
    )


def _peers(recording: Recording, query: str) -> Iterator[Peers]:
    """Those of each group."""

    def rows() -> Iterator[tuple[Any, ...]]:
        for chunk in recording.chunks(query):
            yield from zip(*(column.tolist() for column in chunk.values()), strict=True)

    for (_, count), group in groupby(rows(), key=lambda row: row[:2]):
        yield Peers(count, [Peer(*row[2:8]) for row in group])


def _taken(peers: Iterator[Peers], count: int) -> Columns:
    column = np.empty(count, object)
    for place in range(count):
        column[place] = next(peers)
    return {"peers": column}
