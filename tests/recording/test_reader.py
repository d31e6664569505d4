from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from conntracker.filters import Filter
from conntracker.model import IPS_OFFLOAD, IPS_SRC_NAT, UNKNOWN
from conntracker.recording.reader import NotARecording, open_recording
from conntracker.recording.writer import RecordingWriter

Make = Callable[..., Any]
MINUTE = 60 * 10**6
NOON = 1_767_268_800 * 10**6


@pytest.fixture
def write(tmp_path: Path) -> Make:
    """Writes a recording of segments and gives its path."""

    def write(*segments: Any, name: str = "rec", **options: Any) -> Path:
        with RecordingWriter(tmp_path / name, **{"host": "gate", "start": NOON, **options}) as writer:
            for segment in segments:
                writer.append(segment)
            writer.close(NOON + 60 * MINUTE)
        return tmp_path / name

    return write


def rows(path: Path, *names: str, **where: Any) -> list[tuple[Any, ...]]:
    """Columns of flows as rows."""
    with open_recording(path) as recording:
        columns = recording.flows(columns=names, **where).numpy()
    return list(zip(*(columns[name].tolist() for name in names), strict=True)) if columns else []


def test_tcp_flow(write: Make, flows: Make) -> None:
    """A TCP flow has ports, a state and text addresses, and null for all that is ICMP's or not known."""
    path = write(flows({"mark": 7, "zone": 3}))
    names = (
        "host",
        "family",
        "proto",
        "src",
        "sport",
        "dst",
        "dport",
        "reply_src",
        "reply_dport",
        "state",
        "mark",
        "zone",
    )
    assert rows(path, *names) == [
        ("gate", 4, "tcp", "10.0.0.1", 40000, "10.0.0.2", 80, "10.0.0.2", 40000, "ESTABLISHED", 7, 3)
    ]
    unknown = ("icmp_type", "icmp_code", "icmp_id", "packets", "bytes", "reply_packets", "reply_bytes", "start", "end")
    assert rows(path, *unknown) == [(None,) * len(unknown)]


def test_icmp_flow(write: Make, flows: Make) -> None:
    """An ICMP flow has type, code and id, and no ports."""
    path = write(
        flows({"proto": 58, "src": "fd00::1", "dst": "fd00::2", "sport": 7, "dport": 128 << 8 | 3, "tcp_state": 255})
    )
    assert rows(
        path, "proto", "icmp_type", "icmp_code", "icmp_id", "sport", "dport", "reply_sport", "state", "src"
    ) == [("icmpv6", 128, 3, 7, None, None, None, None, "fd00::1")]


def test_other_protocols(write: Make, flows: Make) -> None:
    """A protocol without a name is its number; one without ports has none."""
    path = write(flows({"proto": 50, "sport": 0, "dport": 0}, {"proto": 99, "sport": 0, "dport": 0}))
    assert rows(path, "proto", "sport", "dport") == [("esp", None, None), ("99", None, None)]


def test_zero_is_not_null(write: Make, flows: Make) -> None:
    """A counter of 0 stays 0."""
    assert rows(write(flows({"packets": 0, "bytes": UNKNOWN})), "packets", "bytes") == [(0, None)]


def test_status_in_words(write: Make, flows: Make) -> None:
    """Offloaded and translated flows are marked."""
    path = write(flows({"status": IPS_OFFLOAD}, {"status": IPS_SRC_NAT}))
    assert rows(path, "offloaded", "snat", "dnat") == [(True, False, False), (False, True, False)]


def test_last_state_wins(write: Make, flows: Make) -> None:
    """Of a flow that is in several segments the last row counts, and each flow is there once."""
    path = write(
        flows({"bytes": 1}, {"bytes": 10}),
        flows({"bytes": 2}, {"bytes": 20}, {"bytes": 200}),
        flows({"bytes": 3}),
    )
    assert sorted(rows(path, "flow", "bytes")) == [(0, 3), (1, 20), (2, 200)]
    with open_recording(path) as recording:
        assert recording.sql("SELECT count(*) FROM states").fetchall() == [(6,)]
        assert len(recording.flows()) == 3


def test_two_recordings(write: Make, flows: Make) -> None:
    """Several recordings are one set of flows; the same number in two of them is two flows."""
    paths = [write(flows({}), flows({}), name="a", host="a"), write(flows({}), name="b", host="b")]
    with open_recording(paths) as recording:
        assert sorted(recording.flows(columns=["host"]).numpy()["host"]) == ["a", "b"]


def test_no_flows(write: Make) -> None:
    """A recording without flows is a recording."""
    with open_recording(write()) as recording:
        assert len(recording.flows()) == 0
        assert list(recording.flows()) == []


def test_filter(write: Make, flows: Make) -> None:
    """A filter selects flows, through NAT."""
    path = write(flows({"reply_src": "192.168.0.9"}, {"dst": "10.9.9.9"}))
    assert rows(path, "flow", filter=Filter.parse(dst="192.168.0.0/16")) == [(0,)]


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        (None, None, [0, 1, 2]),
        (NOON + 5 * MINUTE, None, [1, 2]),
        (None, NOON - MINUTE, []),
        (NOON + 5 * MINUTE, NOON + 6 * MINUTE, [1]),
        (None, NOON + 10 * MINUTE, [0, 1, 2]),
        (NOON + 61 * MINUTE, None, []),
    ],
)
def test_lifetimes(write: Make, flows: Make, since: int | None, until: int | None, expected: list[int]) -> None:
    """Flows are selected by lifetimes that overlap; one without an end lives until the recording ends."""
    path = write(
        flows(
            {"start": NOON, "end": NOON + MINUTE},
            {"first_seen": NOON + 2 * MINUTE},
            {"start": NOON + 10 * MINUTE, "end": NOON + 11 * MINUTE},
        )
    )
    assert rows(path, "flow", since=since, until=until) == [(flow,) for flow in expected]


def test_unknown_column(write: Make) -> None:
    """A column that is not there is named, with those that are."""
    with open_recording(write()) as recording, pytest.raises(ValueError, match=r"no column 'nope'; there are: host, "):
        recording.flows(columns=["nope"])


def test_chunks_are_bounded(write: Make, many: Make) -> None:
    """Chunks are small, and together they are all rows in order."""
    path = write(many(150_000))
    with open_recording(path) as recording:
        chunks = [chunk["flow"] for chunk in recording.flows(columns=["flow"])]
    assert max(map(len, chunks)) <= 65536
    assert np.array_equal(np.concatenate(chunks), np.arange(150_000))


def test_spills(write: Make, many: Make) -> None:
    """A sort far larger than the memory limit works, on disk."""
    path = write(many(300_000), many(300_000, seed=2))
    with open_recording(path, memory_limit="60MB", threads=1) as recording:
        last = 0
        for chunk in recording.chunks("SELECT bytes, host, flow, src_lo, dst_lo, start FROM flows ORDER BY bytes"):
            assert last <= chunk["bytes"][0]
            last = int(chunk["bytes"][-1])


def test_arrow_stream(write: Make, flows: Make) -> None:
    """Polars and DuckDB take the flows as they are."""
    polars = pytest.importorskip("polars")
    with open_recording(write(flows({}, {"proto": 17}))) as recording:
        frame = polars.DataFrame(recording.flows())
    assert frame["proto"].to_list() == ["tcp", "udp"]
    assert frame["bytes"].null_count() == 2


def test_open_streams_do_not_disturb_each_other(write: Make, many: Make) -> None:
    """A query in the middle of an iteration does not end it."""
    with open_recording(write(many(200_000))) as recording:
        flows = iter(recording.flows(columns=["flow"]))
        seen = len(next(flows)["flow"])
        assert len(recording.flows()) == 200_000
        assert seen + sum(len(chunk["flow"]) for chunk in flows) == 200_000


def test_segment_cut_short(write: Make, flows: Make, many: Make) -> None:
    """A segment cut short is left out and named; the others are read."""
    path = write(flows({}), many(1000, first=1), flows({}, first=5000))
    segment = path / "flows-000002.parquet"
    segment.write_bytes(segment.read_bytes()[:-100])
    with open_recording(path) as recording:
        assert recording.damaged == [(str(segment), "cut short")]
        assert len(recording.flows()) == 2


@pytest.mark.parametrize("content", [b"", b"PAR1", b"text, and more of it", b"PAR1" + bytes(8) + b"PAR1", None])
def test_segment_damaged(write: Make, flows: Make, content: bytes | None) -> None:
    """Whatever stands in the place of a segment, it is left out and named."""
    path = write(flows({}), flows({}, first=1))
    segment = path / "flows-000001.parquet"
    segment.write_bytes(segment.read_bytes()[:-60] + segment.read_bytes()[-8:] if content is None else content)
    with open_recording(path) as recording:
        assert [file for file, _ in recording.damaged] == [str(segment)]
        assert rows(path, "flow") == [(1,)]


def test_segment_damaged_inside(write: Make, many: Make) -> None:
    """Damage that only shows while reading is an OSError, whenever it shows."""
    path = write(many(1000), many(400_000, first=1000))
    segment = path / "flows-000002.parquet"
    content = bytearray(segment.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 50_000] = b"\xff" * 50_000
    segment.write_bytes(content)
    with open_recording(path) as recording, pytest.raises(OSError, match=r".+"):
        list(recording.flows())


def test_foreign_parquet(write: Make, flows: Make) -> None:
    """A Parquet file that is no segment is left out and named."""
    path = write(flows({}))
    with open_recording(path) as recording:
        recording.sql("SELECT 1 AS flow").write_parquet(str(path / "flows-000002.parquet"))
    with open_recording(path) as recording:
        assert recording.damaged == [(str(path / "flows-000002.parquet"), "not a segment of a recording")]
        assert len(recording.flows()) == 1


def test_temporary_files_are_ignored(write: Make, flows: Make) -> None:
    """What a crash left half written is no part of the recording."""
    path = write(flows({}))
    (path / "flows-000002.parquet.tmp").write_bytes(b"PAR1")
    with open_recording(path) as recording:
        assert (len(recording.flows()), recording.damaged) == (1, [])


@pytest.mark.parametrize("text", [None, "", '{"version": 1', "[]", '{"version": 1}', '{"version": true, "start": 5}'])
def test_meta_lost(write: Make, flows: Make, text: str | None) -> None:
    """Without a readable meta.json the flows are still there, and the loss of it is named."""
    path = write(flows({}))
    (path / "meta.json").unlink()
    if text is not None:
        (path / "meta.json").write_text(text)
    with open_recording(path) as recording:
        assert recording.meta is None
        assert [file for file, _ in recording.damaged] == [str(path / "meta.json")]
        assert len(recording.flows()) == 1


def test_newer_format(write: Make, flows: Make) -> None:
    """A recording of a newer format is refused, with both versions."""
    path = write(flows({}))
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "version": 2}))
    with pytest.raises(NotARecording, match=r"version 2 is newer than this conntracker reads \(1\)"):
        open_recording(path)


def test_not_a_recording(tmp_path: Path) -> None:
    """A directory of something else, and a file, are no recordings; a missing one is a missing file."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(NotARecording, match="not a recording"):
            open_recording(path)
    with pytest.raises(FileNotFoundError):
        open_recording(tmp_path / "missing")


def test_a_segment_of_an_earlier_version_has_nulls(write: Make, flows: Make, tmp_path: Path) -> None:
    """Columns that an earlier version did not write are null, beside segments that have them."""
    path = write(flows({"id": 7}, {"id": 8}), flows({"id": 9}, first=2))
    old = path / "flows-000001.parquet"
    with duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT * EXCLUDE (id, mark) FROM '{old}') TO '{tmp_path}/old' (FORMAT parquet)")  # noqa: S608
    (tmp_path / "old").replace(old)
    with open_recording(path) as recording:
        assert recording.damaged == []
        found = recording.sql("SELECT id, mark IS NULL FROM flows ORDER BY flow").fetchall()
    assert found == [(None, True), (None, True), (9, False)]
