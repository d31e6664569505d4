"""Raw flow columns: a few flows told by their differences from one plain TCP flow, or many at random."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conntracker.model import IPS_SEEN_REPLY, UNKNOWN
from conntracker.recording.schema import RAW_COLUMNS

MINUTE = 60 * 10**6
NOON = 1_767_268_800 * 10**6  # 2026-01-01T12:00:00Z

PLAIN: dict[str, Any] = {
    "proto": 6, "src": "10.0.0.1", "dst": "10.0.0.2", "sport": 40000, "dport": 80, "status": IPS_SEEN_REPLY,
    "tcp_state": 3, "packets": UNKNOWN, "bytes": UNKNOWN, "reply_packets": UNKNOWN, "reply_bytes": UNKNOWN,
    "start": -1, "end": -1, "first_seen": NOON, "last_seen": NOON + MINUTE,
}  # fmt: skip


def flows(*rows: dict[str, Any], first: int = 0) -> dict[str, NDArray[Any]]:
    """Columns of flows that differ from PLAIN as each dict says; without NAT unless reply_* are given."""
    filled = [_row(first + number, row) for number, row in enumerate(rows)]
    return {name: np.array([row[name] for row in filled], dtype) for name, dtype in RAW_COLUMNS.items()}


def _row(number: int, changes: dict[str, Any]) -> dict[str, Any]:
    row = {**dict.fromkeys(RAW_COLUMNS, 0), "flow": number, **PLAIN, **changes}
    row = {
        "reply_src": row["dst"], "reply_dst": row["src"], **row,
        "reply_sport": changes.get("reply_sport", row["dport"]),
        "reply_dport": changes.get("reply_dport", row["sport"]),
    }  # fmt: skip
    row["family"] = ip_address(row["src"]).version
    for name in ("src", "dst", "reply_src", "reply_dst"):
        address = int(ip_address(row[name]))
        row[f"{name}_hi"], row[f"{name}_lo"] = address >> 64, address & 2**64 - 1
    return row


def many(count: int, first: int = 0, seed: int = 1) -> dict[str, NDArray[Any]]:
    """Columns of `count` flows, one in five IPv6, with numbers from `first`."""
    random = np.random.default_rng(seed)
    columns = {name: np.zeros(count, dtype) for name, dtype in RAW_COLUMNS.items()}
    six = random.random(count) < 0.2
    columns["flow"][:] = np.arange(first, first + count)
    columns["family"][:] = np.where(six, 6, 4)
    columns["proto"][:] = random.choice([6, 17], count)
    for name in ("src", "dst"):
        columns[f"{name}_hi"][:] = np.where(six, random.integers(0, 2**63, count), 0)
        columns[f"{name}_lo"][:] = random.integers(0, 2**32, count)
    for name in ("sport", "dport"):
        columns[name][:] = random.integers(1, 65536, count)
    for reply, original in (("src", "dst"), ("dst", "src")):
        for word in ("hi", "lo"):
            columns[f"reply_{reply}_{word}"] = columns[f"{original}_{word}"]
    columns["reply_sport"], columns["reply_dport"] = columns["dport"], columns["sport"]
    columns["tcp_state"][:] = np.where(columns["proto"] == 6, 3, 255)
    columns["status"][:] = IPS_SEEN_REPLY
    for name in ("packets", "bytes", "reply_packets", "reply_bytes"):
        columns[name][:] = random.integers(0, 10**6, count)
    columns["first_seen"][:] = columns["start"][:] = NOON
    columns["last_seen"][:] = columns["end"][:] = NOON + MINUTE
    return columns
