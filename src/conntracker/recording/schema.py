"""The columns of a recording: how raw flow columns become the rows of a Parquet file, and how addresses read as text.

The names of the columns are public; a change of their meaning is a new FORMAT_VERSION.
"""

from __future__ import annotations

from dataclasses import dataclass

from conntracker.filters import PORT_PROTOCOLS
from conntracker.model import (
    ICMP,
    ICMPV6,
    IPS_DST_NAT,
    IPS_HW_OFFLOAD,
    IPS_OFFLOAD,
    IPS_SEEN_REPLY,
    IPS_SRC_NAT,
    PROTOCOLS,
    TCP_STATES,
    UNKNOWN,
)
from conntracker.recording.owned import OWNER_COLUMNS, OWNER_WORDS

__all__ = ["FLOWS", "FORMAT_VERSION", "MACROS", "RAW_COLUMNS", "VIEW_COLUMNS", "Segments", "case", "time_column"]

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Segments:
    """A kind of Parquet files, NAME-000001.parquet and so on.

    columns     name, SQL type, and the expression over raw columns; $host is the host's name
    essential   without these a file is no segment; the others may be missing, in one of an earlier version, and are
                null then
    key         an essential column whose lowest and highest value are looked up for each file
    optional    columns that a segment has all or none of; as `columns`, but their expressions have that type already
    """

    name: str
    key: str
    essential: tuple[str, ...]
    columns: tuple[tuple[str, str, str], ...]
    optional: tuple[tuple[str, str, str], ...] = ()

    def select_raw(self, table: str, optional: bool = False) -> str:
        """The SELECT that turns a table of raw columns into rows of a segment, with or without its optional columns."""
        chosen = [f'({expression})::{kind} AS "{name}"' for name, kind, expression in self.columns]
        if optional:
            chosen += [f'{expression} AS "{name}"' for name, _, expression in self.optional]
        columns = ", ".join(chosen)
        return f"SELECT {columns} FROM {table}"  # noqa: S608


# What the capture side hands over: one row a flow, all columns of equal length. Ports as in model.py (for ICMP the
# echo id and type << 8 | code); -1 for a time and model.UNKNOWN for a counter that is not known.
RAW_COLUMNS = {
    "flow": "u8", "family": "u1", "proto": "u1", "src_hi": "u8", "src_lo": "u8", "dst_hi": "u8", "dst_lo": "u8",
    "sport": "u2", "dport": "u2", "zone": "u2", "reply_src_hi": "u8", "reply_src_lo": "u8", "reply_dst_hi": "u8",
    "reply_dst_lo": "u8", "reply_sport": "u2", "reply_dport": "u2", "status": "u4", "mark": "u4", "id": "u4",
    "tcp_state": "u1", "packets": "u8", "bytes": "u8", "reply_packets": "u8", "reply_bytes": "u8", "start": "i8",
    "end": "i8", "first_seen": "i8", "last_seen": "i8", "end_seen": "?",
}  # fmt: skip


def case(column: str, names: dict[int, str], other: str) -> str:
    """A CASE that gives numbers their names."""
    return f"CASE {column} " + " ".join(f"WHEN {n} THEN '{name}'" for n, name in names.items()) + f" ELSE {other} END"


HAS_PORTS = f"proto IN {PORT_PROTOCOLS}"
IS_ICMP = f"proto IN ({ICMP}, {ICMPV6})"


def _when(condition: str, value: str) -> str:
    return f"CASE WHEN {condition} THEN ({value}) END"


def _counter(column: str) -> tuple[str, str, str]:
    return column, "UBIGINT", f"nullif({column}, {UNKNOWN})"


def time_column(column: str) -> tuple[str, str, str]:
    """A column of times; -1 is null in raw columns."""
    return column, "TIMESTAMP", f'make_timestamp(nullif("{column}", -1))'


FLOWS = Segments(
    "flows",
    key="flow",
    essential=(
        "flow", "family", "proto", "src_hi", "src_lo", "dst_hi", "dst_lo", "status", "first_seen", "last_seen",
    ),
    columns=(
        ("host", "VARCHAR", "$host"),
        ("flow", "UBIGINT", "flow"),
        ("family", "UTINYINT", "family"),
        ("proto", "VARCHAR", case("proto", PROTOCOLS, "proto::VARCHAR")),
        *((name, "UBIGINT", name) for name in ("src_hi", "src_lo", "dst_hi", "dst_lo")),
        *((name, "USMALLINT", _when(HAS_PORTS, name)) for name in ("sport", "dport")),
        ("icmp_type", "UTINYINT", _when(IS_ICMP, "dport >> 8")),
        ("icmp_code", "UTINYINT", _when(IS_ICMP, "dport & 255")),
        ("icmp_id", "USMALLINT", _when(IS_ICMP, "sport")),
        ("zone", "USMALLINT", "zone"),
        *((name, "UBIGINT", name) for name in ("reply_src_hi", "reply_src_lo", "reply_dst_hi", "reply_dst_lo")),
        *((name, "USMALLINT", _when(HAS_PORTS, name)) for name in ("reply_sport", "reply_dport")),
        ("reply_icmp_id", "USMALLINT", _when(IS_ICMP, "reply_sport")),
        ("mark", "UINTEGER", "mark"),
        ("status", "UINTEGER", "status"),
        ("id", "UINTEGER", "id"),
        ("state", "VARCHAR", case("tcp_state", dict(enumerate(TCP_STATES)), "NULL")),
        *(_counter(name) for name in ("packets", "bytes", "reply_packets", "reply_bytes")),
        *(time_column(name) for name in ("start", "end", "first_seen", "last_seen")),
        ("end_seen", "BOOLEAN", "end_seen"),
    ),
    optional=OWNER_COLUMNS,
)  # fmt: skip


def _address(column: str) -> tuple[str, str]:
    return column, f"address(family, {column}_hi, {column}_lo)"


# What the view `flows` has on top of the columns of the files.
VIEW_COLUMNS: tuple[tuple[str, str], ...] = (
    *(_address(name) for name in ("src", "dst", "reply_src", "reply_dst")),
    ("replied", f"status & {IPS_SEEN_REPLY} <> 0"),
    ("offloaded", f"status & {IPS_OFFLOAD | IPS_HW_OFFLOAD} <> 0"),
    ("snat", f"status & {IPS_SRC_NAT} <> 0"),
    ("dnat", f"status & {IPS_DST_NAT} <> 0"),
    *OWNER_WORDS,
)


def _squeeze() -> str:
    """The longest run of two or more zero groups, the first of equals, becomes '::' (RFC 5952, section 4.2).

    `text` is ':' and every group followed by ':', so that a run of n zeros is ':0' n times and ':'. Longer runs are
    looked for first: the first match of n is then a run of exactly n.
    """
    cases = " ".join(
        f"WHEN contains(text, '{':0' * n}:')"
        f" THEN concat(left(text, strpos(text, '{':0' * n}:') - 1), '::', substr(text, strpos(text, '{':0' * n}:')"
        f" + {2 * n + 1}))"
        for n in range(8, 1, -1)
    )
    return f"CASE WHEN NOT contains(text, ':0:0:') THEN text {cases} END"


# The colons at both ends go, unless they are half of '::'.
_TRIM = (
    "substr(text, CASE WHEN starts_with(text, '::') THEN 1 ELSE 2 END, length(text)"
    " - CASE WHEN starts_with(text, '::') THEN 0 ELSE 1 END - CASE WHEN ends_with(text, '::') THEN 0 ELSE 1 END)"
)
_GROUPS = ", ".join(f"({word} >> {shift}) & 65535" for word in ("hi", "lo") for shift in (48, 32, 16, 0))
_COLONS = f"format(':{':'.join(['{:x}'] * 8)}:', {_GROUPS})"


def _let(value: str, body: str) -> str:
    """`body` with `text` bound to a value. A macro would write the value out at every use, and plan for ever."""
    return f"list_transform([{value}], lambda text: {body})[1]"


# IPv6 as inet_ntop(3) prints it: RFC 5952, the last 32 bits dotted in ::ffff:0:0/96 and in ::/96 but for its first
# 65536 addresses.
MACROS = (
    "CREATE MACRO dotted(word) AS"
    " concat(word >> 24 & 255, '.', word >> 16 & 255, '.', word >> 8 & 255, '.', word & 255)",
    "CREATE MACRO address(family, hi, lo) AS CASE"
    " WHEN family = 4 THEN dotted(lo)"
    " WHEN hi = 0 AND lo >> 32 = 65535 THEN concat('::ffff:', dotted(lo))"
    " WHEN hi = 0 AND lo >> 32 = 0 AND lo >> 16 <> 0 THEN concat('::', dotted(lo))"
    f" ELSE {_let(_let(_COLONS, _squeeze()), _TRIM)} END",
)
