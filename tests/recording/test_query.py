from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.filters import Filter
from conntracker.model import IPS_SEEN_REPLY, UNKNOWN
from conntracker.recording.choices import FLOW_NAMES
from conntracker.recording.query import flows_query, groups_query, log_directions
from conntracker.recording.reader import open_recording
from conntracker.recording.schema import MACROS
from conntracker.recording.writer import RecordingWriter
from support.columns import MINUTE, NOON
from support.owners import owned
from support.traces import icmp, row, tcp
from support.traces import record as traced

Make = Callable[..., Any]


@pytest.fixture
def record(tmp_path: Path) -> Make:
    """Writes a recording of one segment and gives its path."""

    def record(segment: Any) -> Path:
        with RecordingWriter(tmp_path / "rec") as writer:
            writer.append(segment)
        return tmp_path / "rec"

    return record


def answer(path: Path, query: str) -> list[tuple[Any, ...]]:
    """The rows of a query's answer."""
    with open_recording(path) as recording:
        return recording.sql(query).fetchall()


CONNECTION = duckdb.connect()
for macro in MACROS:
    CONNECTION.execute(macro)

WORDS = st.one_of(st.just(0), st.just(0xFFFF), st.integers(0, 0xFFFF))


def sql_address(family: int, number: int) -> str:
    """The text that SQL makes of an address."""
    rows = CONNECTION.execute(
        "SELECT address($family, $hi::UBIGINT, $lo::UBIGINT)",
        {"family": family, "hi": number >> 64, "lo": number & 2**64 - 1},
    ).fetchall()
    return str(rows[0][0])


@given(st.lists(WORDS, min_size=8, max_size=8))
def test_ipv6_text(words: list[int]) -> None:
    """An IPv6 address reads exactly as inet_ntop prints it."""
    packed = b"".join(word.to_bytes(2, "big") for word in words)
    assert sql_address(6, int.from_bytes(packed, "big")) == socket.inet_ntop(socket.AF_INET6, packed)


@pytest.mark.parametrize(
    "text",
    [
        "::",
        "::1",
        "::1:0",
        "::ffff",
        "::1.2.3.4",
        "::ffff:1.2.3.4",
        "1::",
        "0:0:1::",
        "1:0:0:2::3",
        "::2:3:0:0:0",
        "1:0:2::",
    ],
)
def test_ipv6_corners(text: str) -> None:
    """Runs of zeros at either end, equal runs, and the addresses that end in dots."""
    packed = socket.inet_pton(socket.AF_INET6, text)
    assert sql_address(6, int.from_bytes(packed, "big")) == socket.inet_ntop(socket.AF_INET6, packed)


@given(st.integers(0, 2**32 - 1))
def test_ipv4_text(number: int) -> None:
    """An IPv4 address reads in dots."""
    assert sql_address(4, number) == str(ipaddress.IPv4Address(number))


def test_sort_addresses_by_number(record: Make, flows: Make) -> None:
    """Addresses sort as numbers, IPv4 before IPv6, and '-' turns it round."""
    path = record(flows({"src": "10.0.0.10"}, {"src": "10.0.0.9"}, {"src": "9::", "dst": "1::"}, {"src": "100.0.0.1"}))
    expected = [("10.0.0.9",), ("10.0.0.10",), ("100.0.0.1",), ("9::",)]
    assert answer(path, flows_query(["src"], sort="src")) == expected
    assert answer(path, flows_query(["src"], sort="-src")) == expected[::-1]


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("user", [8, 0, 1, 2, 3, 4, 5, 6, 7]),
        ("-user", [0, 1, 2, 8, 3, 4, 5, 6, 7]),
        ("unit", [8, 0, 1, 2, 3, 4, 5, 6, 7]),
        ("-pid", [0, 1, 2, 8, 3, 4, 5, 6, 7]),
        ("peer_process", [6, 5, 0, 3, 4, 8, 1, 2, 7]),
    ],
)
def test_sort_by_owners(tmp_path: Path, sort: str, expected: list[int]) -> None:
    """By what is known of owners flows sort by the owner of their source, then by that of their destination."""
    order = [flow for (flow,) in answer(owned(tmp_path / "rec"), flows_query(["flow"], sort=sort))]
    assert order == expected


@pytest.mark.parametrize("name", FLOW_NAMES)
def test_sort_by_any(tmp_path: Path, name: str) -> None:
    """Flows can be sorted by each column that is named to people, owners or not."""
    assert len(answer(owned(tmp_path / "rec"), flows_query(["flow"], sort=f"-{name}"))) == 9


def test_sort_unknown_last(record: Make, flows: Make) -> None:
    """What was never counted comes last, in either direction."""
    path = record(flows({"bytes": 5}, {"bytes": UNKNOWN}, {"bytes": 7}))
    assert answer(path, flows_query(["flow"], sort="-bytes")) == [(2,), (0,), (1,)]
    assert answer(path, flows_query(["flow"], sort="bytes", limit=2)) == [(0,), (2,)]


def test_groups(record: Make, flows: Make) -> None:
    """Groups have sums, null where nothing was counted, and stand in the order of bytes, then flows."""
    path = record(
        flows(
            {"dst": "10.0.0.9", "bytes": 10, "packets": 1},
            {"dst": "10.0.0.9", "bytes": 20, "packets": 2},
            {"dst": "10.0.0.8", "bytes": 40},
            {"dport": 22},
            {"dport": 22},
            {"dport": 23},
        )
    )
    query = f"SELECT dst, dport, flows, packets, bytes FROM ({groups_query('dst,dport')})"  # noqa: S608
    assert answer(path, query) == [
        ("10.0.0.8", 80, 1, None, 40),
        ("10.0.0.9", 80, 2, 3, 30),
        ("10.0.0.2", 22, 2, None, None),
        ("10.0.0.2", 23, 1, None, None),
    ]
    assert answer(path, groups_query("dport", sort="-flows", limit=1))[0][:2] == (80, 3)


@pytest.mark.parametrize("name", ["nope", "", "src; DROP TABLE flows", 'src"', "bytes", "src_lo"])
def test_only_known_columns(name: str) -> None:
    """Only names of columns reach SQL; any other is named, with those that are known."""
    with pytest.raises(ValueError, match=r"--group-by: no column .*; there are: process, user"):
        groups_query(f"proto,{name}")
    if name != "bytes":
        with pytest.raises(ValueError, match="--sort: no column"):
            flows_query(["src"], sort=name)


def directions(path: Path, where: dict[str, Any] | None = None, **limits: Any) -> list[tuple[str, str, str, int, int]]:
    """Log directions as rows, addresses as text."""

    def text(high: int, low: int, kind: str) -> str:
        return str(ipaddress.IPv4Address(low) if kind.endswith("4") else ipaddress.IPv6Address(high << 64 | low))

    lines = []
    with open_recording(path, **limits) as recording:
        for kind, columns in log_directions(recording, **where or {}):
            for a, b, c, d, sport, dport in zip(*(column.tolist() for column in columns.values()), strict=True):
                lines.append((kind, text(a, b, kind), text(c, d, kind), sport, dport))
    return lines


def test_log_directions(record: Make, flows: Make) -> None:
    """Groups in the log's order, both directions where a reply was seen, as each one's packets carry the addresses."""
    path = record(
        flows(
            {"reply_src": "192.168.0.1", "reply_dst": "1.1.1.1"},
            {"proto": 17, "status": 0},
            {"proto": 17, "status": 0, "zone": 5},
            {"proto": 1, "sport": 7, "dport": 8 << 8, "tcp_state": 255},
            {"proto": 132},
            {"src": "fd00::2", "dst": "fd00::1"},
        )
    )
    assert directions(path) == [
        ("TCPv4", "10.0.0.1", "10.0.0.2", 40000, 80),
        ("TCPv4", "192.168.0.1", "1.1.1.1", 80, 40000),
        ("UDPv4", "10.0.0.1", "10.0.0.2", 40000, 80),
        ("ICMPv4", "10.0.0.1", "10.0.0.2", 8, 0),
        ("TCPv6", "fd00::1", "fd00::2", 80, 40000),
        ("TCPv6", "fd00::2", "fd00::1", 40000, 80),
    ]


def test_log_is_sorted_and_distinct_across_chunks(tmp_path: Path, many: Make) -> None:
    """A log of many chunks, sorted on disk, is what sorting a set of all directions gives."""
    columns = many(90_000)
    columns["src_lo"] &= 7
    columns["dst_lo"] &= 3
    columns["src_hi"][:] = columns["dst_hi"][:] = 0
    columns["sport"] &= 0xFFF
    columns["dport"] &= 1
    with RecordingWriter(tmp_path / "rec") as writer:
        writer.append(columns)
    names = ("src_lo", "dst_lo", "sport", "dport")
    for kind, family, proto in (("TCPv4", 4, 6), ("UDPv6", 6, 17)):
        rows = (columns["family"] == family) & (columns["proto"] == proto)
        replied = rows & (columns["status"] & IPS_SEEN_REPLY != 0)
        expected = set(zip(*(columns[name][rows].tolist() for name in names), strict=True))
        expected |= set(zip(*(columns["reply_" + name][replied].tolist() for name in names), strict=True))
        got = [
            (int(ipaddress.ip_address(src)), int(ipaddress.ip_address(dst)), sport, dport)
            for group, src, dst, sport, dport in directions(tmp_path / "rec", memory_limit="60MB", threads=1)
            if group == kind
        ]
        assert got == sorted(expected)


def test_everything(tmp_path: Path) -> None:
    """With everything, traced packets that never became a flow are there too, each direction once."""
    drop = tcp("10.0.0.9", 1, "10.0.0.2", 443)
    path = traced(
        tmp_path / "rec",
        [{}, {"proto": 1, "sport": 7, "dport": 8 << 8}],
        [
            row(drop, path=2),
            row(drop, path=3, at=NOON + MINUTE),
            row(tcp("10.0.0.1", 40000, "10.0.0.2", 80)),
            row(tcp("fd00::1", None, "fd00::2", None, proto=17, fragment=True)),
            row(icmp("10.0.0.1", "10.0.0.2", 8, 0, 7)),
            row(icmp("10.0.0.2", "10.0.0.1", 0, 0, 7)),
            row(icmp("10.0.0.3", "10.0.0.1", 0, 0, 7)),
            row(icmp("10.0.0.3", "10.0.0.1", 3, 13)),
            row(tcp("10.0.0.1", 1, "10.0.0.2", 2, proto=47)),
        ],
    )
    known = [
        ("TCPv4", "10.0.0.1", "10.0.0.2", 40000, 80),
        ("TCPv4", "10.0.0.2", "10.0.0.1", 80, 40000),
        ("ICMPv4", "10.0.0.1", "10.0.0.2", 8, 0),
    ]
    assert directions(path) == known
    assert directions(path, {"everything": True}) == [
        *known[:2],
        ("TCPv4", "10.0.0.9", "10.0.0.2", 1, 443),
        known[2],
        ("ICMPv4", "10.0.0.3", "10.0.0.1", 0, 0),
        ("ICMPv4", "10.0.0.3", "10.0.0.1", 3, 13),
        ("UDPv6", "fd00::1", "fd00::2", 0, 0),
    ]
    assert directions(path, {"everything": True, "filter": Filter.parse(dport="443")}) == [
        ("TCPv4", "10.0.0.9", "10.0.0.2", 1, 443)
    ]
    late = directions(path, {"everything": True, "since": NOON + 1})
    assert late == [*known[:2], ("TCPv4", "10.0.0.9", "10.0.0.2", 1, 443), known[2]]
