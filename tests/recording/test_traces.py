from __future__ import annotations

import json
import stat
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path as File
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conntracker.recording.meta import Rulesets
from conntracker.recording.paths import load_paths
from conntracker.recording.reader import open_recording
from conntracker.recording.traces import TraceRow
from conntracker.recording.writer import RecordingWriter
from conntracker.steps import HOOKS, KINDS, Packet, Path, Rule, Step, step_from_json
from support.columns import NOON
from support.traces import DROPPED, PATHS, icmp, record, row, step, tcp

Make = Callable[..., Any]


def answer(path: File, query: str) -> list[tuple[Any, ...]]:
    """The rows of a query's answer."""
    with open_recording(path) as recording:
        return recording.sql(query).fetchall()


def test_a_trace_is_a_row(tmp_path: File) -> None:
    """A trace has its headers before and after NAT, its interfaces, its verdict and the rule that decided."""
    packet, left = tcp("10.0.0.5", 40312, "192.0.2.9", 443), tcp("10.0.0.5", 40312, "10.9.0.2", 8443)
    path = record(tmp_path / "rec", traces=[row(packet, left, 2, packets=3, ct_id=2**32 - 1)])
    names = "host, proto, src, sport, dst, dport, left_dst, left_dport, in_interface, out_interface, ct_id, packets"
    assert answer(path, f"SELECT {names} FROM traces") == [  # noqa: S608
        ("gate", "tcp", "10.0.0.5", 40312, "192.0.2.9", 443, "10.9.0.2", 8443, "eth0", "eth1", 2**32 - 1, 3)
    ]
    names = 'path, verdict, kind, rule_family, "table", chain, position, handle, rule, icmp_type, about_src'
    assert answer(path, f"SELECT {names} FROM traces") == [  # noqa: S608
        (2, "drop", "iptables-nft", "ip", "filter", "LOGS", 2, None, DROPPED.steps[3].rule.text, None, None)  # type: ignore[union-attr]
    ]


def test_icmp_errors_and_ipv6(tmp_path: File) -> None:
    """An ICMP error has the packet that it is about; addresses of IPv6 read as text; what is not there is null."""
    about = tcp("fd00::1", 7, "fd00::2", 443)
    path = record(
        tmp_path / "rec",
        traces=[
            row(icmp("fd00::9", "fd00::1", 1, 3, about=about), interfaces=(None, "lo")),
            row(icmp("10.0.0.1", "10.0.0.2", 8, 0, 77)),
        ],
    )
    names = "family, proto, src, icmp_type, icmp_code, icmp_id, about_proto, about_dst, about_dport, in_interface"
    assert answer(path, f"SELECT {names} FROM traces ORDER BY family") == [  # noqa: S608
        (4, "icmp", "10.0.0.1", 8, 0, 77, None, None, None, "eth0"),
        (6, "icmpv6", "fd00::9", 1, 3, None, "tcp", "fd00::2", 443, None),
    ]


def test_steps_are_rows(tmp_path: File) -> None:
    """Every step of every path is a row of `steps`, in order, and the deciding one is marked."""
    path = record(tmp_path / "rec")
    query = 'SELECT step, hook, kind, "table", chain, type, position, rule, verdict, target, decides FROM steps'
    steps = answer(path, f"{query} WHERE path = 2 ORDER BY step")
    assert [one[:5] for one in steps] == [
        (0, "prerouting", "iptables-legacy", "raw", "PREROUTING"),
        (1, "forward", "iptables-nft", "filter", "FORWARD"),
        (2, "forward", "iptables-nft", "filter", "LOGS"),
        (3, "forward", "iptables-nft", "filter", "LOGS"),
    ]
    assert steps[1][5:] == ("rule", 2, "-A FORWARD -p tcp -j LOGS", "jump", "LOGS", False)
    assert [one[-1] for one in steps] == [False, False, False, True]
    assert answer(path, "SELECT path, verdict, reached, expected, complete FROM paths ORDER BY path")[2] == (
        3, "undecided", "prerouting", "input,forward", True,
    )  # fmt: skip


def test_segments_add_up(tmp_path: File) -> None:
    """Equal rows of several intervals are one, with the sum of their packets and all of their time."""
    packet = tcp("10.0.0.1", 1, "10.0.0.2", 2)
    with RecordingWriter(tmp_path / "rec") as writer:
        writer.append_paths([(0, DROPPED)])
        for second in range(3):
            writer.append_traces([row(packet, path=0, at=NOON + second, packets=second + 1)])
    assert answer(tmp_path / "rec", "SELECT packets, epoch_us(first_seen), epoch_us(last_seen) FROM traces") == [
        (6, NOON, NOON + 2)
    ]


PACKETS = st.builds(
    Packet,
    family=st.sampled_from((4, 6)),
    proto=st.sampled_from((6, 17, 1, 58, 99)),
    src=st.integers(0, 2**32 - 1),
    dst=st.integers(0, 2**32 - 1),
    sport=st.none() | st.integers(0, 65535),
    dport=st.none() | st.integers(0, 65535),
    icmp_type=st.none() | st.integers(0, 255),
    icmp_code=st.none() | st.integers(0, 255),
    icmp_id=st.none() | st.integers(0, 65535),
)
NAMES = st.none() | st.sampled_from(("eth0", "lo", "a b'c", ""))
ROWS = st.builds(
    TraceRow, PACKETS, PACKETS, NAMES, NAMES, st.none() | st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1),
    st.integers(1, 2**40), st.just(NOON), st.just(NOON),
)  # fmt: skip


def key(one: TraceRow) -> tuple[Any, ...]:
    """What a recording tells packets by."""
    packet, left = one.packet, one.left
    headers = (packet.family, packet.src, packet.dst, packet.sport, packet.dport, packet.icmp_id, packet.icmp_type)
    changed = (left.src, left.dst, left.sport, left.dport, left.icmp_id)
    return (*headers, packet.icmp_code, *changed, one.in_interface, one.out_interface, one.ct_id, one.path)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=15)
@given(st.lists(st.lists(ROWS, max_size=4), max_size=3), st.data())
def test_sums_are_those_of_a_dict(
    tmp_path_factory: pytest.TempPathFactory, segments: list[list[TraceRow]], data: st.DataObject
) -> None:
    """Whatever the rows, reading them gives the sums that a dict of the same rows gives."""
    rows = [one for segment in segments for one in segment]
    if rows:
        segments = [*segments, data.draw(st.lists(st.sampled_from(rows), max_size=3))]
    expected: dict[tuple[Any, ...], int] = defaultdict(int)
    path = tmp_path_factory.mktemp("sums") / "rec"
    with RecordingWriter(path) as writer:
        for segment in segments:
            writer.append_traces(segment)
            for one in segment:
                expected[one.packet.proto, *key(one)] += one.packets
    names = (
        "proto, family, src_lo, dst_lo, sport, dport, icmp_id, icmp_type, icmp_code, left_src_lo, left_dst_lo,"
        " left_sport, left_dport, left_icmp_id, in_interface, out_interface, ct_id, path, packets"
    )
    numbers = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "99": 99}
    found = answer(path, f"SELECT {names} FROM traces")  # noqa: S608
    assert {(numbers[proto], *rest): packets for proto, *rest, packets in found} == expected


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
NUMBER = st.none() | st.integers(0, 2**31 - 1)
RULES = st.builds(Rule, st.sampled_from(KINDS), TEXT, TEXT, TEXT, NUMBER, NUMBER, st.none() | TEXT, st.none() | TEXT)
STEPS = st.builds(
    Step, st.none() | st.sampled_from(HOOKS), st.none() | st.integers(-(2**31), 2**31 - 1), st.sampled_from(KINDS),
    TEXT, TEXT, TEXT, st.sampled_from(("rule", "return", "policy")), st.none() | RULES, st.none() | TEXT,
    st.none() | TEXT, st.booleans(),
)  # fmt: skip


@given(STEPS)
def test_a_step_is_its_json(one: Step) -> None:
    """A step survives JSON."""
    assert step_from_json(json.loads(json.dumps(one.json()))) == one


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=15)
@given(
    st.lists(
        st.builds(
            Path, st.lists(STEPS, max_size=3).map(tuple), st.sampled_from(("accept", "drop")), st.none(),
            st.none() | st.sampled_from(HOOKS), st.lists(st.sampled_from(HOOKS), max_size=2).map(tuple), st.booleans(),
            st.booleans(),
        ),
        max_size=4,
    )
)  # fmt: skip
def test_paths_come_back(tmp_path_factory: pytest.TempPathFactory, paths: list[Path]) -> None:
    """Paths are read as they were written, and equal ones are one object."""
    path = tmp_path_factory.mktemp("paths") / "rec"
    with RecordingWriter(path) as writer:
        for number, one in enumerate(paths):
            writer.append_paths([(number, one)])
    with open_recording(path) as recording:
        found = load_paths(recording)
        recording.sql("SELECT * FROM steps").fetchall()
    assert found == {(0, number): one for number, one in enumerate(paths)}
    assert len({id(one) for one in found.values()}) == len(set(paths))


def test_text_that_is_none(tmp_path: File) -> None:
    """A comment in another encoding does not make its rule unreadable."""
    one = Path((step("input", "ip filter INPUT", "drop", "-m comment --comment \udce4", 1),), "drop", 0, "input")
    path = record(tmp_path / "rec", traces=[row(tcp("10.0.0.1", 1, "10.0.0.2", 2))], paths={1: one})
    assert answer(path, "SELECT rule FROM traces") == [("-m comment --comment ?",)]


def test_without_traces(tmp_path: File, flows: Make) -> None:
    """A recording without traces has the same tables, and they are empty."""
    with RecordingWriter(tmp_path / "rec") as writer:
        writer.append(flows({}))
    for table in ("traces", "paths", "steps"):
        assert answer(tmp_path / "rec", f"SELECT count(*) FROM {table}") == [(0,)]  # noqa: S608


def test_nothing_to_append(tmp_path: File) -> None:
    """No rows and no paths make no segment."""
    with RecordingWriter(tmp_path / "rec") as writer:
        writer.append_traces([])
        writer.append_paths([])
    assert [file.name for file in (tmp_path / "rec").iterdir()] == ["meta.json"]


def test_two_recordings_have_numbers_of_their_own(tmp_path: File) -> None:
    """The same number of a path in two recordings is two paths."""
    packet = tcp("10.0.0.1", 1, "10.0.0.2", 2)
    paths = [
        record(tmp_path / name, traces=[row(packet)], paths={1: PATHS[number]}) for name, number in (("a", 1), ("b", 2))
    ]
    with open_recording(paths) as recording:
        found = recording.sql("SELECT part, verdict FROM traces ORDER BY part").fetchall()
        assert load_paths(recording) == {(0, 1): PATHS[1], (1, 1): PATHS[2]}
    assert found == [(0, "accept"), (1, "drop")]


@pytest.mark.parametrize("name", ["traces-000001.parquet", "paths-000001.parquet"])
def test_damaged(tmp_path: File, name: str) -> None:
    """A segment that is cut short is left out and named; traces without their paths have no verdict."""
    path = record(tmp_path / "rec", [{}], [row(tcp("10.0.0.1", 1, "10.0.0.2", 2))])
    file = path / name
    file.write_bytes(file.read_bytes()[:-20])
    with open_recording(path) as recording:
        assert recording.damaged == [(str(file), "cut short")]
        found = recording.sql("SELECT verdict FROM traces").fetchall()
        assert len(recording.flows()) == 1
    assert found == ([] if name.startswith("traces") else [(None,)])


def test_a_missing_segment_is_named(tmp_path: File) -> None:
    """A gap in the numbers of any kind of segment is damage."""
    path = record(tmp_path / "rec", traces=[row(tcp("10.0.0.1", 1, "10.0.0.2", 2))])
    (path / "paths-000001.parquet").rename(path / "paths-000003.parquet")
    with open_recording(path) as recording:
        assert recording.damaged == [
            (str(path / "paths-000001.parquet"), "missing"),
            (str(path / "paths-000002.parquet"), "missing"),
        ]


@pytest.mark.parametrize("text", ["{", "[1]", '[{"hook": null}]', "[]"])
def test_damaged_steps(tmp_path: File, text: str) -> None:
    """Steps that are none are one clear error."""
    path = record(tmp_path / "rec")
    with duckdb.connect() as connection:
        query = f"SELECT * REPLACE ('{text}' AS steps, 0::UINTEGER AS decided) FROM '{path}/paths-000001.parquet'"  # noqa: S608
        connection.execute(f"COPY ({query}) TO '{tmp_path}/new' (FORMAT parquet)")
    (tmp_path / "new").replace(path / "paths-000001.parquet")
    with open_recording(path) as recording, pytest.raises(ValueError, match=r"rec: the steps of path 1 are damaged"):
        load_paths(recording)


def test_an_earlier_version_had_fewer_columns(tmp_path: File) -> None:
    """Columns that an earlier version did not write are null."""
    path = record(tmp_path / "rec", traces=[row(tcp("10.0.0.1", 1, "10.0.0.2", 2), ct_id=7)])
    file = path / "traces-000001.parquet"
    with duckdb.connect() as connection:
        query = f"SELECT * EXCLUDE (ct_id, left_src_hi, left_src_lo, fragment, about_proto) FROM '{file}'"  # noqa: S608
        connection.execute(f"COPY ({query}) TO '{tmp_path}/old' (FORMAT parquet)")
    (tmp_path / "old").replace(file)
    assert answer(path, "SELECT ct_id, left_src, verdict FROM traces") == [(None, None, "accept")]


def test_paths_of_an_earlier_version(tmp_path: File) -> None:
    """Paths that do not say whether rules were not seen are read as such that were."""
    path = record(tmp_path / "rec")
    with duckdb.connect() as connection:
        query = f"SELECT * EXCLUDE (blind) FROM '{path}/paths-000001.parquet'"  # noqa: S608
        connection.execute(f"COPY ({query}) TO '{tmp_path}/old' (FORMAT parquet)")
    (tmp_path / "old").replace(path / "paths-000001.parquet")
    with open_recording(path) as recording:
        assert load_paths(recording) == {(0, number): one for number, one in PATHS.items()}


def test_rulesets(tmp_path: File) -> None:
    """Rulesets are text files for their owner only, byte for byte, and meta.json says since when each was in force."""
    with RecordingWriter(tmp_path / "rec") as writer:
        writer.add_ruleset({"nft": "table ip x {\r\n}\n\udcff", "iptables-legacy-ip": "*filter\n"}, NOON)
        writer.add_ruleset({"nft": ""}, NOON + 1)
    files = {file.name: file for file in (tmp_path / "rec").glob("ruleset-*")}
    assert files["ruleset-0001-nft.txt"].read_bytes() == b"table ip x {\r\n}\n\xff"
    assert {stat.S_IMODE(file.stat().st_mode) for file in files.values()} == {0o600}
    with open_recording(tmp_path / "rec") as recording:
        assert recording.meta == writer.meta
    assert writer.meta.rulesets == (
        Rulesets(NOON, ("ruleset-0001-nft.txt", "ruleset-0001-iptables-legacy-ip.txt")),
        Rulesets(NOON + 1, ("ruleset-0002-nft.txt",)),
    )
    assert len(files) == 3


@pytest.mark.parametrize("name", ["", "../nft", "a/b", "NFT"])
def test_bad_ruleset_names(tmp_path: File, name: str) -> None:
    """A name that could be a path is refused, and nothing is written."""
    with RecordingWriter(tmp_path / "rec") as writer, pytest.raises(ValueError, match="no name of a ruleset"):
        writer.add_ruleset({name: "x"}, NOON)
    assert [file.name for file in (tmp_path / "rec").iterdir()] == ["meta.json"]


def test_trace_options_come_back(tmp_path: File) -> None:
    """What the capture says of tracing is read as it was written."""
    facts = {"packets": 4, "window": 0.5, "only": None, "everything": True, "lost": 3, "start": NOON}
    with RecordingWriter(tmp_path / "rec") as writer:
        writer.update_meta(trace=facts)
    file = tmp_path / "rec" / "meta.json"
    assert json.loads(file.read_text())["trace"]["start"] == "2026-01-01T12:00:00.000000Z"
    for text in (file.read_text(), file.read_text().replace('"2026-01-01T12:00:00.000000Z"', str(NOON))):
        file.write_text(text)  # an earlier version wrote the number
        with open_recording(tmp_path / "rec") as recording:
            assert recording.meta
            assert recording.meta.trace == facts
