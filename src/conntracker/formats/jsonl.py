"""Rows as JSON, one object a line: null for what is not known, times in ISO 8601, UTC, with microseconds and Z."""

from __future__ import annotations

import json
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

__all__ = ["FLOW_KEYS", "json_lines"]

# The keys of a flow, in the order in which they are written.
FLOW_KEYS = (
    "family", "proto", "src", "sport", "dst", "dport", "reply_src", "reply_sport", "reply_dst", "reply_dport",
    "icmp_type", "icmp_code", "zone", "mark", "state", "replied", "packets", "bytes", "reply_packets", "reply_bytes",
    "start", "end", "end_seen", "host", "flow", "first_seen", "last_seen", "offloaded", "owner", "peer_owner",
)  # fmt: skip

BOOLEANS = {True: "true", False: "false", None: "null"}


def json_lines(
    columns: Mapping[str, NDArray[Any]], write: Mapping[str, Callable[[Any], str]] | None = None
) -> Iterator[str]:
    """One line, with its newline, for each row of columns of equal length, the names as keys.

    Columns as arrow.read_stream gives them: integers, booleans, datetime64[us], text in object arrays; masked values,
    NaT and None become null.

    write   what makes JSON of a value of other columns, by their names
    """
    keys = ", ".join(json.dumps(name).replace("%", "%%") + ": %s" for name in columns)
    template = "{" + keys + "}\n"
    write = write or {}
    texts = (
        list(map(write[name], column.tolist())) if name in write else _texts(column) for name, column in columns.items()
    )
    for row in zip(*texts, strict=True):
        yield template % row


def _texts(column: NDArray[Any]) -> list[Any]:
    """The JSON text of every value; numbers may stay numbers."""
    if column.dtype.kind == "M":
        return ["null" if text == "NaT" else f'"{text}Z"' for text in np.datetime_as_string(column, "us").tolist()]
    values = column.tolist()
    if column.dtype.kind == "b":
        return [BOOLEANS[value] for value in values]
    if column.dtype.kind == "O":
        return ["null" if value is None else encode_basestring_ascii(value) for value in values]
    return ["null" if value is None else value for value in values] if np.ma.isMaskedArray(column) else values
