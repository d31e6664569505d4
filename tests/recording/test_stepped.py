from __future__ import annotations

import ipaddress
from pathlib import Path as File
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conntracker.recording.reader import open_recording
from conntracker.recording.stepped import log_with_steps
from conntracker.recording.traces import TraceRow
from conntracker.steps import Path
from support.columns import NOON
from support.traces import ACCEPTED, DROPPED, LOST, PATHS, icmp, record, row, tcp

Steps = dict[tuple[int, int, int, int, int, int], list[Path]]


def steps_of(path: File | list[File], **where: Any) -> Steps:
    """The paths of every direction of the log that has some."""
    found: Steps = {}
    with open_recording(path) as recording:
        groups, steps = log_with_steps(recording, list, **where)
        for _, columns in groups:
            assert len(steps) <= len(columns["sport"])
            found |= steps
    return found


def number(text: str) -> int:
    """An address as a number."""
    return int(ipaddress.ip_address(text))


def test_distinct_paths_in_packet_order(tmp_path: File) -> None:
    """Each direction has its distinct paths in the order in which they were first seen, or else written."""
    packet = tcp("10.0.0.1", 40000, "10.0.0.2", 80)
    traces = [row(packet, path=2), row(packet), row(packet, path=2, ct_id=7), row(packet, path=3, at=NOON - 1)]
    assert steps_of(record(tmp_path / "rec", [{}], traces)) == {
        (4, 6, number("10.0.0.1"), number("10.0.0.2"), 40000, 80): [LOST, DROPPED, ACCEPTED]
    }


def test_answers_stand_under_their_request(tmp_path: File) -> None:
    """The paths of an echo's answer are under the echo, which alone has a line."""
    known = [{"proto": 58, "src": "fd00::1", "dst": "fd00::2", "sport": 7, "dport": 128 << 8}]
    traces = [row(icmp("fd00::1", "fd00::2", 128, 0, 7), path=3), row(icmp("fd00::2", "fd00::1", 129, 0, 7), path=2)]
    assert steps_of(record(tmp_path / "rec", known, traces), everything=True) == {
        (6, 58, number("fd00::1"), number("fd00::2"), 128, 0): [LOST, DROPPED]
    }


def test_both_directions_have_their_own(tmp_path: File) -> None:
    """A flow's replies have the paths of replies."""
    traces = [row(tcp("10.0.0.1", 40000, "10.0.0.2", 80)), row(tcp("10.0.0.2", 80, "10.0.0.1", 40000), path=3)]
    assert sorted(steps_of(record(tmp_path / "rec", [{}], traces)).values(), key=len) == [[ACCEPTED], [LOST]]


def test_recordings_have_paths_of_their_own(tmp_path: File) -> None:
    """The same number in two recordings is two paths of one direction."""
    packet = tcp("10.0.0.1", 40000, "10.0.0.2", 80)
    paths = [
        record(tmp_path / name, [{}], [row(packet, at=NOON + at)], {1: PATHS[at + 1]})
        for at, name in enumerate(("a", "b"))
    ]
    assert list(steps_of(paths).values()) == [[ACCEPTED, DROPPED]]


def test_no_traces(tmp_path: File) -> None:
    """Without traces there are the directions, and no steps."""
    with open_recording(record(tmp_path / "rec", [{}], paths={})) as recording:
        groups, steps = log_with_steps(recording, list)
        assert [len(columns["sport"]) for _, columns in groups if not steps] == [2]


PAIRS = st.sampled_from((("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1"), ("fd00::1", "fd00::2")))
TRACED = st.builds(
    lambda pair, sport, path, at: row(tcp(pair[0], sport, pair[1], 2), path=path, at=NOON + at),
    PAIRS, st.integers(1, 2), st.integers(1, 4), st.integers(0, 2),
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=40)
@given(st.lists(TRACED, max_size=12))
def test_a_dict_gives_the_same(tmp_path_factory: pytest.TempPathFactory, traces: list[TraceRow]) -> None:
    """Whatever the rows, each direction has what a dict of lists would have; path 4 is another one equal to path 1."""
    paths = PATHS | {4: ACCEPTED}
    expected: Steps = {}
    for one in sorted(traces, key=lambda one: one.first):
        packet = one.packet
        key = (packet.family, 6, packet.src, packet.dst, packet.sport or 0, packet.dport or 0)
        of_key = expected.setdefault(key, [])
        if paths[one.path] not in of_key:
            of_key.append(paths[one.path])
    path = record(tmp_path_factory.mktemp("log") / "rec", traces=traces, paths=paths)
    assert steps_of(path, everything=True) == expected
