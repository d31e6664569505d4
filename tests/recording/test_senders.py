"""Who sends in the directions of a recording's log."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conntracker.filters import Filter
from conntracker.flows import FlowTable
from conntracker.formats import log
from conntracker.formats.steps import step_lines
from conntracker.model import IPS_SEEN_REPLY, NEW, NO_STATE, Batch
from conntracker.owner import CERTAINTIES, FORWARDS, HOLDER, INHERITED, KERNELS, NO_ID, Owner
from conntracker.recording.query import log_directions
from conntracker.recording.reader import open_recording
from conntracker.recording.stepped import log_with_steps
from conntracker.recording.writer import RecordingWriter
from support.columns import NOON, flows, many
from support.senders import owner
from support.traces import record as traced
from support.traces import row, tcp

SSH, NGINX, SHELL = owner("ssh", 5057, 1000, user="me"), owner("nginx", 7, 33, INHERITED), owner("sh", 8, NO_ID, HOLDER)
OWNERS = {1: SSH, 2: NGINX, 3: SHELL, 4: KERNELS, 5: FORWARDS}


def record(path: Path, *rows: dict[str, Any], owners: dict[int, Owner] | None = OWNERS, first: int = 0) -> Path:
    """A recording of a segment of flows; `owner` and `peer_owner` are numbers of OWNERS."""
    ends = {end: np.array([row.pop(end, 0) for row in rows], np.uint32) for end in ("owner", "peer_owner")}
    with RecordingWriter(path) as writer:
        writer.append(flows(*rows, first=first) | ends, owners)
    return path


def logged(path: Path | list[Path], limits: dict[str, Any] | None = None, **where: Any) -> list[str]:
    """The log of a recording, without the numbers of its lines."""
    out = io.BytesIO()
    with open_recording(path, **limits or {}) as recording:
        log.write_groups(out, *log_with_steps(recording, step_lines, **where))
    return [line[:7] + line[line.find("src = ") :] if " src = " in line else line for line in _lines(out)]


def _lines(out: io.BytesIO) -> list[str]:
    return out.getvalue().decode().splitlines()


THERE, BACK = (
    " TCPv4 src = 10.0.0.1 (port=40000) to dst = 10.0.0.2 (port=80) ",
    " TCPv4 src = 10.0.0.2 (port=80) to dst = 10.0.0.1 (port=40000) ",
)


def test_each_direction_shows_who_sends(tmp_path: Path) -> None:
    """The original direction has the owner of the flow's source, the reply that of its destination."""
    assert logged(record(tmp_path / "rec", {"owner": 1, "peer_owner": 2})) == [
        THERE + "(ssh,pid:5057,uid:me)", BACK + "(nginx,pid:7,uid:33,inherited)",
    ]  # fmt: skip


def test_a_direction_used_again(tmp_path: Path) -> None:
    """Its owners stand in the order of time, each once, whatever the order of the rows; who is not known gives way."""
    rows = [{"owner": number, "first_seen": NOON - at} for at, number in enumerate((4, 3, 0, 3, 1))]
    assert logged(record(tmp_path / "rec", *rows)) == [
        THERE + "(ssh,pid:5057,uid:me; sh,pid:8,uid:-,holder; kernel)", BACK + "(-)",
    ]  # fmt: skip


def test_icmp_has_an_owner_behind_its_type(tmp_path: Path) -> None:
    """A ping shows who sent it, and one of nobody nothing."""
    echo = {"proto": 1, "dport": 8 << 8}
    assert logged(record(tmp_path / "rec", {**echo, "owner": 5}, {**echo, "src": "10.0.0.9"})) == [
        "ICMPv4 src = 10.0.0.1 to dst = 10.0.0.2 (type=8 | code=0) (forwarded)",
        "ICMPv4 src = 10.0.0.9 to dst = 10.0.0.2 (type=8 | code=0)",
    ]


def test_recordings_with_and_without_owners(tmp_path: Path) -> None:
    """Beside a recording with owners, the flows of one without have none; the last state of a flow counts."""
    paths = [record(tmp_path / "a", {"src": "10.0.0.9"}, owners=None)]
    with RecordingWriter(tmp_path / "b") as writer:
        for number in (1, 3):
            writer.append(flows({}) | {"owner": np.array([number], np.uint32)}, OWNERS)
    lines = logged([*paths, tmp_path / "b"], filter=Filter.parse(dport="80"))
    assert lines[0] == THERE + "(sh,pid:8,uid:-,holder)"
    assert [line.endswith(" (-)") for line in lines] == [False, True, True, True]


def test_without_owners_there_is_no_column(tmp_path: Path) -> None:
    """A recording in which nobody looked for owners gives the columns that it always gave."""
    with open_recording(record(tmp_path / "rec", {}, owners=None)) as recording:
        ((_, columns),) = log_directions(recording)
    assert list(columns) == ["src_hi", "src_lo", "dst_hi", "dst_lo", "sport", "dport"]


def test_traced_packets_and_steps_beside_owners(tmp_path: Path) -> None:
    """Packets that are no flow have no owner, and the steps stand below the lines as ever."""
    packets = [tcp("10.0.0.1", 40000, "10.0.0.2", 80), tcp("10.0.0.1", 40001, "10.0.0.2", 80)]
    path = traced(tmp_path / "rec", [], [row(packet) for packet in packets])
    known = record(tmp_path / "known", {"owner": 1})
    step = "\t\t\t\ttable: filter, chain: FORWARD, type: policy"
    assert logged([path, known], everything=True) == [
        THERE + "(ssh,pid:5057,uid:me)", step, THERE.replace("40000", "40001") + "(-)", step, BACK + "(-)",
    ]  # fmt: skip


def test_more_rows_than_a_chunk(tmp_path: Path) -> None:
    """One direction of more flows than are read at once has its owners all the same, in the order of time."""
    columns = many(150_000)
    for name in ("family", "proto", "status"):
        columns[name][:] = columns[name][0] = {"family": 4, "proto": 17, "status": 0}[name]
    for name in ("src_hi", "dst_hi"):
        columns[name][:] = 0
    same = columns["flow"] < 100_000
    for name in ("src_lo", "dst_lo", "sport", "dport"):
        columns[name][same] = 7
    owners = {number: owner("dns", number) for number in range(1, 150_001)}
    with RecordingWriter(tmp_path / "rec") as writer:
        writer.append(columns | {"owner": (columns["flow"] + 1).astype(np.uint32)}, owners)
    lines = logged(tmp_path / "rec", {"memory_limit": "100MB", "threads": 1})
    (line,) = [line for line in lines if "(port=7) to dst = 0.0.0.7 (port=7)" in line]
    assert line.endswith("(dns,pid:1,uid:0; dns,pid:2,uid:0; dns,pid:3,uid:0; +99997)")
    assert sorted(int(line.split(":")[1].split(",")[0]) for line in lines if "+" not in line) == [
        *range(100_001, 150_001)
    ]  # fmt: skip


TEXT = st.text(st.characters(), max_size=4) | st.sampled_from(["a", "caf\udcff", "b\0\n", "\ufffd"])
ANYBODY = st.builds(
    owner, TEXT, st.integers(0, 3), st.integers(0, 2) | st.just(NO_ID), st.sampled_from(CERTAINTIES),
    user=st.none() | TEXT, start=st.none() | st.integers(0, 5),
) | st.sampled_from([KERNELS, FORWARDS])  # fmt: skip
FLOW = st.tuples(
    st.sampled_from([(4, 6), (4, 17), (4, 1), (6, 6), (6, 58)]), st.integers(1, 2), st.integers(1, 2),
    st.sampled_from([0, IPS_SEEN_REPLY]), st.integers(0, 6), st.integers(0, 6),
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60, deadline=None)
@given(st.lists(st.lists(FLOW, max_size=6), max_size=4), st.lists(ANYBODY, max_size=5))
def test_memory_and_recording_give_the_same_log(
    tmp_path_factory: pytest.TempPathFactory, times: list[list[Any]], owners: list[Owner]
) -> None:
    """Whatever flows there were and whoever had them, the log is the same from memory and from a recording."""
    table, known, made = FlowTable(), dict(enumerate(owners, 1)), 0
    path = tmp_path_factory.mktemp("log") / "rec"
    with RecordingWriter(path) as writer:
        for at, some in enumerate(times):
            for family in (4, 6):
                if chosen := [flow for flow in some if flow[0][0] == family]:
                    table.apply(_batch(chosen, NOON + at, made))
                    made += len(chosen)
                    rows, count = table.families[family], len(chosen)
                    here = slice(rows.size - count, rows.size)
                    rows.owner[here], rows.peer_owner[here] = (np.array([flow[i] for flow in chosen]) for i in (4, 5))
        for part in table.changed():
            writer.append(part, known)
    from_memory, from_recording = io.BytesIO(), io.BytesIO()
    log.write_log(from_memory, lambda family, proto: table.directions(family, proto, True), None, known)
    with open_recording(path) as recording:
        log.write_groups(from_recording, *log_with_steps(recording, step_lines))
    assert _lines(from_memory) == _lines(from_recording)


def _batch(chosen: list[Any], time: int, first_id: int) -> Batch:
    """New flows of one IP version, some of a socket that is connected to itself."""
    count, family = len(chosen), chosen[0][0][0]

    def words(values: list[int], dtype: str = "u8") -> Any:
        return np.array(values, dtype)

    src, dst = [flow[1] for flow in chosen], [flow[2] for flow in chosen]
    there: Any
    back: Any
    if family == 4:
        there, back = ((words([a << 32 | b for a, b in zip(*ends, strict=True)]),) for ends in ((src, dst), (dst, src)))
    else:
        zero = words([0] * count)
        there, back = (zero, words(src), zero, words(dst)), (zero, words(dst), zero, words(src))
    ports = words([5 << 48 | 5 << 32 | flow[0][1] << 8 for flow in chosen])
    none = words([0] * count, "u4")
    return Batch(
        family, time, words([NEW] * count, "u1"), there, ports, back, ports, none + np.uint32(first_id) + np.arange(
        count, dtype=np.uint32), words([flow[3] for flow in chosen], "u4"), none, words([NO_STATE] * count, "u1"),
    )  # fmt: skip
