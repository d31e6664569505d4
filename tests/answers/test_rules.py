from __future__ import annotations

from dataclasses import replace
from pathlib import Path as File
from typing import Any

import pytest

from conntracker.answers.rules import Decided, by_rule
from conntracker.filters import Filter
from conntracker.recording.reader import open_recording
from conntracker.steps import Path
from support.columns import MINUTE, NOON
from support.traces import ACCEPTED, DROPPED, LOST, PATHS, record, row, step, tcp


def answers(path: File | list[File], filter: Filter | None = None, **times: Any) -> list[Decided]:
    """All rules of a recording."""
    with open_recording(path) as recording:
        return by_rule(recording, filter, **times)


def packets(count: int, path: int, first: int = 0, at: int = NOON) -> list[Any]:
    """Rows of as many different tuples, two packets each."""
    return [
        row(tcp("10.0.0.7", first + number, "10.0.0.2", 443), path=path, packets=2, at=at) for number in range(count)
    ]


def test_most_flows_first(tmp_path: File) -> None:
    """Each rule or policy has its flows, packets and times; so have packets that none decided about."""
    traces = [*packets(3, 2), *packets(1, 1, 100), *packets(2, 3, 200), *packets(1, 2, at=NOON + MINUTE)]
    found = answers(record(tmp_path / "rec", traces=traces))
    assert [(one.path, one.step, one.flows, one.traced, one.first, one.last) for one in found] == [
        (DROPPED, DROPPED.steps[3], 3, 8, NOON, NOON + MINUTE),
        (LOST, None, 2, 4, NOON, NOON),
        (ACCEPTED, ACCEPTED.steps[0], 1, 2, NOON, NOON),
    ]


def test_both_directions_are_one_flow(tmp_path: File) -> None:
    """A rule that lets both directions of a flow through has one flow."""
    traces = [row(tcp("10.0.0.1", 40000, "10.0.0.2", 80)), row(tcp("10.0.0.2", 80, "10.0.0.1", 40000))]
    assert [(one.flows, one.traced) for one in answers(record(tmp_path / "rec", [{}], traces))] == [(1, 2)]


def test_other_paths_to_the_same_rule(tmp_path: File) -> None:
    """A rule is its text and its place, on whichever path it was met, under whichever handle."""
    handled = step("input", "inet fw in", "drop", "drop", 2, "nft", handle=5)
    again = step("input", "inet fw in", "drop", "drop", 2, "nft", handle=9)
    moved = step("input", "inet fw in", "drop", "drop", 3, "nft", handle=9)
    before = step("input", "ip mangle INPUT", "accept", priority=-150)
    paths = {
        1: Path((handled,), "drop", 0, "input"),
        2: Path((before, again), "drop", 1, "input"),
        3: Path((moved,), "drop", 0, "input"),
    }
    traces = [row(tcp("10.0.0.1", number, "10.0.0.2", 80), path=number) for number in paths]
    found = answers(record(tmp_path / "rec", traces=traces, paths=paths))
    assert [one.flows for one in found] == [2, 1]


def test_unknown_texts_are_told_apart_by_handle(tmp_path: File) -> None:
    """Rules whose text was never read are different where their handles are."""
    paths = {
        handle: Path((step("input", "inet fw in", "drop", None, None, "nft", handle=handle),), "drop", 0, "input")
        for handle in (5, 6)
    }
    traces = [row(tcp("10.0.0.1", number, "10.0.0.2", 80), path=number) for number in paths]
    assert len(answers(record(tmp_path / "rec", traces=traces, paths=paths))) == 2


@pytest.mark.parametrize(
    ("where", "flows"),
    [
        ({"filter": Filter.parse(sport="1")}, 1),
        ({"since": NOON + 1}, 2),
        ({"until": NOON}, 3),
        ({"filter": Filter.parse(proto="udp")}, 0),
    ],
)
def test_where(tmp_path: File, where: dict[str, Any], flows: int) -> None:
    """Only what is asked for, and was seen then, is counted: of a flow that lived on, the packets of that time."""
    traces = [*packets(3, 2), *packets(2, 2, at=NOON + MINUTE)]
    known = [{"src": "10.0.0.7", "sport": number, "dport": 443} for number in range(3)]
    assert sum(one.flows for one in answers(record(tmp_path / "rec", known, traces), **where)) == flows


def test_hosts_stand_apart(tmp_path: File) -> None:
    """The same rule on two hosts is two rules; two recordings of one host are one."""
    paths = [
        record(tmp_path / name, traces=packets(1, 2), host=host)
        for name, host in (("a", "gate"), ("b", "gate"), ("c", "wall"))
    ]
    assert [(one.host, one.flows) for one in answers(paths)] == [("gate", 2), ("wall", 1)]


def test_no_chain_at_all(tmp_path: File) -> None:
    """What passed without a chain in its way was let through by no rule."""
    nothing = Path((), "accept", None, "postrouting")
    other = replace(nothing, reached="input")
    traces = [row(tcp("10.0.0.1", number, "10.0.0.2", 80), path=number) for number in (1, 2)]
    found = answers(record(tmp_path / "rec", traces=traces, paths=PATHS | {1: nothing, 2: other}))
    assert sorted(str(one.path.reached) for one in found) == ["input", "postrouting"]


def test_blind_paths_stand_apart(tmp_path: File) -> None:
    """What rules that were not traced may have decided is not counted with what was decided."""
    paths = PATHS | {4: replace(ACCEPTED, blind=True), 5: replace(DROPPED, blind=True)}
    traces = [row(tcp("10.0.0.1", number, "10.0.0.2", 80), path=number) for number in (1, 2, 4, 5)]
    found = answers(record(tmp_path / "rec", traces=traces, paths=paths))
    assert sorted((one.path.verdict, one.flows) for one in found) == [("accept", 1), ("accept", 1), ("drop", 2)]
