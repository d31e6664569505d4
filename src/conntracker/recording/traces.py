"""Traces in a recording: how they become the rows of Parquet files, and the columns of the views over those.

A row of a traces segment is what an interval of some seconds had of equal packets: the same headers as they came and
as they left, the same interfaces, the same flow and the same path. The paths themselves stand in segments of their own,
each once, with a number that is unique in the recording.
"""

from __future__ import annotations

import json
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from conntracker.model import PROTOCOLS
from conntracker.recording.schema import Segments, case, time_column

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from conntracker.steps import Packet, Path

__all__ = ["PATHS", "TRACES", "TraceRow", "path_lists", "trace_columns"]

LOW = 2**64 - 1
NONE = -1  # in raw columns, for null


class TraceRow(NamedTuple):
    """Equal packets of an interval.

    packet, left, in_interface, out_interface, ct_id   as in Trace. Of `left` only what NAT can change is kept:
                      addresses, ports and the ICMP id; of `about` neither a further `about` nor `fragment`.
    path              the number of their path
    packets           how many there were
    first, last       when the first and the last of them was read: microseconds since the epoch, UTC
    """

    packet: Packet
    left: Packet
    in_interface: str | None
    out_interface: str | None
    ct_id: int | None
    path: int
    packets: int
    first: int
    last: int


# The header fields of a packet in raw columns, and their dtypes; its addresses are apart.
HEADERS = {"sport": "i4", "dport": "i4", "icmp_id": "i4"}
NEVER_CHANGED = {"proto": "i2", "icmp_type": "i2", "icmp_code": "i2"}


def trace_columns(rows: Sequence[TraceRow]) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """The raw columns of rows, and the names of interfaces, which the columns count from 1 (0 for none)."""
    packet, left, come_in, go_out, ct_id, path, packets, first, last = zip(*rows, strict=True)
    names = sorted({name for name in (*come_in, *go_out) if name is not None})
    numbers: dict[str | None, int] = {None: 0} | {name: number for number, name in enumerate(names, 1)}
    columns = {
        "family": np.array([one.family for one in packet], "u1"),
        "fragment": np.array([one.fragment for one in packet], "?"),
        "in_interface": np.array([numbers[name] for name in come_in], "u4"),
        "out_interface": np.array([numbers[name] for name in go_out], "u4"),
        "ct_id": _numbers(ct_id, "i8"),
        "path": np.array(path, "u4"),
        "packets": np.array(packets, "u8"),
        "first_seen": np.array(first, "i8"),
        "last_seen": np.array(last, "i8"),
        **_headers("", packet, HEADERS | NEVER_CHANGED),
        **_headers("left_", left, HEADERS),
        **_about(packet),
    }
    return columns, names


def _headers(prefix: str, packets: Sequence[Packet], fields: dict[str, str]) -> dict[str, NDArray[Any]]:
    columns = {f"{prefix}{name}": _numbers(list(map(attrgetter(name), packets)), fields[name]) for name in fields}
    for name in ("src", "dst"):
        addresses = list(map(attrgetter(name), packets))
        wide = max(addresses, default=0) > LOW
        high = [address >> 64 for address in addresses] if wide else np.zeros(len(addresses), "u8")
        columns[f"{prefix}{name}_hi"] = np.array(high, "u8")
        columns[f"{prefix}{name}_lo"] = np.array([address & LOW for address in addresses] if wide else addresses, "u8")
    return columns


def _about(packets: Sequence[Packet]) -> dict[str, NDArray[Any]]:
    """The headers of the packets that errors are about; about_proto is NONE where there is none."""
    where = [i for i, packet in enumerate(packets) if packet.about is not None]
    errors = [packet.about for packet in packets if packet.about is not None]
    some = _headers("about_", errors, HEADERS | NEVER_CHANGED)
    columns = {}
    for name, values in some.items():
        columns[name] = np.full(len(packets), 0 if values.dtype.kind == "u" else NONE, values.dtype)
        columns[name][where] = values
    return columns


def _numbers(values: Sequence[int | None], kind: str) -> NDArray[Any]:
    return np.array([NONE if value is None else value for value in values] if None in values else values, kind)


def _known(name: str, kind: str) -> tuple[str, str, str]:
    return name, kind, f"nullif({name}, {NONE})"


def _proto(name: str) -> tuple[str, str, str]:
    return name, "VARCHAR", f"CASE WHEN {name} >= 0 THEN {case(name, PROTOCOLS, f'{name}::VARCHAR')} END"


def _tuple(prefix: str) -> tuple[tuple[str, str, str], ...]:
    words = [f"{prefix}{name}" for name in ("src_hi", "src_lo", "dst_hi", "dst_lo")]
    known = "about_proto >= 0" if prefix == "about_" else "true"
    return (
        *((word, "UBIGINT", f"CASE WHEN {known} THEN {word} END") for word in words),
        *(_known(f"{prefix}{name}", "USMALLINT") for name in ("sport", "dport", "icmp_id")),
    )


def _kind(prefix: str) -> tuple[tuple[str, str, str], ...]:
    return (
        _proto(f"{prefix}proto"),
        *(_known(f"{prefix}{name}", "UTINYINT") for name in ("icmp_type", "icmp_code")),
    )


TRACES = Segments(
    "traces",
    key="path",
    essential=("path", "packets", "family", "proto", "src_hi", "src_lo", "dst_hi", "dst_lo", "first_seen", "last_seen"),
    columns=(
        ("host", "VARCHAR", "$host"),
        time_column("first_seen"),
        time_column("last_seen"),
        ("packets", "UBIGINT", "packets"),
        ("path", "UINTEGER", "path"),
        _known("ct_id", "UINTEGER"),
        *((name, "VARCHAR", f"($interfaces::VARCHAR[])[{name}]") for name in ("in_interface", "out_interface")),
        ("family", "UTINYINT", "family"),
        *_kind(""),
        *_tuple(""),
        ("fragment", "BOOLEAN", "fragment"),
        *_tuple("left_"),
        *_kind("about_"),
        *_tuple("about_"),
    ),
)

PATHS = Segments(
    "paths",
    key="path",
    essential=("path", "verdict", "steps"),
    columns=(
        ("host", "VARCHAR", "$host"),
        ("path", "UINTEGER", "path"),
        ("verdict", "VARCHAR", "verdict"),
        ("decided", "UINTEGER", "decided"),
        ("reached", "VARCHAR", "reached"),
        ("expected", "VARCHAR", "expected"),
        ("complete", "BOOLEAN", "complete"),
        ("blind", "BOOLEAN", "blind"),
        ("steps", "VARCHAR", "steps"),
    ),
)


def path_lists(paths: Iterable[tuple[int, Path]]) -> dict[str, list[Any]]:
    """Numbered paths as lists of equal length; steps as JSON text, expected hooks with commas between."""
    lists: dict[str, list[Any]] = {
        name: [] for name in ("path", "verdict", "decided", "reached", "expected", "complete", "blind", "steps")
    }
    for number, path in paths:
        # What is no text (a comment in another encoding, read with surrogates) would be no JSON for DuckDB.
        steps = json.dumps([step.json() for step in path.steps], separators=(",", ":"), ensure_ascii=False)
        steps = steps.encode(errors="replace").decode()
        row = (number, path.verdict, path.decided, path.reached, ",".join(path.expected), path.complete, path.blind)
        for values, value in zip(lists.values(), (*row, steps), strict=True):
            values.append(value)
    return lists
