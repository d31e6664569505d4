from __future__ import annotations

from pathlib import Path as File
from typing import Any

import pytest

from conntracker.answers.blame import Blame, blame
from conntracker.filters import Filter
from conntracker.model import Loss
from conntracker.recording.paths import UNKNOWN_PATH
from conntracker.recording.reader import open_recording
from conntracker.steps import Packet, Path
from support.columns import MINUTE, NOON
from support.traces import ACCEPTED, DROPPED, LOST, PATHS, TRACE, icmp, record, row, step, tcp

PLAIN = tcp("10.0.0.1", 40000, "10.0.0.2", 80)
BACK = tcp("10.0.0.2", 80, "10.0.0.1", 40000)
OTHER = tcp("10.0.0.9", 40000, "10.0.0.2", 443)


def answers(path: File, filter: Filter | None = None, **more: Any) -> list[Blame]:
    """All that blame says of a recording."""
    with open_recording(path) as recording:
        return list(blame(recording, filter, **more))


def test_a_dropped_packet(tmp_path: File) -> None:
    """Packets without a flow have the verdict, the step that decided and their whole path."""
    left = tcp("10.0.0.9", 40000, "10.9.0.2", 8443)
    (one,) = answers(record(tmp_path / "rec", traces=[row(OTHER, left, 2, packets=3, until=NOON + 7)]))
    assert (one.host, one.flow, one.packet, one.verdict, one.deciding) == (
        "gate", None, OTHER, "drop", DROPPED.steps[3],
    )  # fmt: skip
    (way,) = one.ways
    assert (way.direction, way.traced, way.first, way.last, way.left, way.path) == (
        "original", 3, NOON, NOON + 7, left, DROPPED,
    )  # fmt: skip
    assert (way.in_interface, way.out_interface, way.certain, one.why_not) == ("eth0", "eth1", True, None)


def test_a_flow(tmp_path: File) -> None:
    """A flow has its columns and its ways: original direction, replies, errors."""
    traces = [
        row(icmp("9.9.9.9", "10.0.0.1", 3, 1, about=PLAIN)),
        row(BACK, path=3, interfaces=("eth1", None)),
        row(PLAIN),
    ]
    (one,) = answers(record(tmp_path / "rec", [{"packets": 5}], traces))
    assert one.flow
    assert (one.flow["src"], one.flow["packets"], one.packet, one.verdict) == ("10.0.0.1", 5, None, "accept")
    assert [way.direction for way in one.ways] == ["original", "reply", "error"]
    assert [way.path for way in one.ways] == [ACCEPTED, LOST, ACCEPTED]


def test_icmp_errors_keep_what_they_are_about(tmp_path: File) -> None:
    """The packet in an ICMP error comes back, and what NAT does not change of a packet that left."""
    error = icmp("fd00::9", "fd00::1", 1, 3, about=tcp("fd00::1", 7, "fd00::2", 443))
    left = icmp("fd00::8", "fd00::1", 1, 3, about=error.about)
    (one,) = answers(record(tmp_path / "rec", traces=[row(error, left)]))
    assert (one.packet, one.ways[0].packet, one.ways[0].left) == (error, error, left)


@pytest.mark.parametrize(
    ("traces", "verdict"),
    [
        ([row(PLAIN), row(PLAIN, path=2, at=NOON + 5)], "drop"),
        ([row(PLAIN, path=2), row(PLAIN, at=NOON + 5)], "accept"),
        ([row(PLAIN, path=2), row(PLAIN)], "accept"),
        ([row(PLAIN, path=3, at=NOON), row(BACK, path=2, at=NOON + 9)], "undecided"),
        ([row(BACK, path=2)], "drop"),
        ([row(PLAIN, path=1, until=NOON + 9), row(PLAIN, path=2, at=NOON + 1)], "accept"),
        ([row(PLAIN, path=1), row(PLAIN, path=2, at=NOON + 1), row(PLAIN, path=1, at=NOON + 2)], "accept"),
    ],
)
def test_the_newest_original_packets_tell_the_verdict(tmp_path: File, traces: list[Any], verdict: str) -> None:
    """The verdict is that of the newest packets of the original direction, else of the replies; all ways are there."""
    (one,) = answers(record(tmp_path / "rec", [{}], traces))
    assert (one.verdict, len(one.ways)) == (verdict, len({(trace.packet, trace.path) for trace in traces}))


def test_the_first_packet_tells_the_rule(tmp_path: File) -> None:
    """The rule that let a flow through is that of its first packet, not the one for what is known already."""
    known = Path((step("forward", "ip filter FORWARD", "accept", "-m state --state ESTABLISHED", 1),), "accept", 0)
    traces = [row(PLAIN), row(PLAIN, path=4, at=NOON + 5, packets=3)]
    (one,) = answers(record(tmp_path / "rec", [{}], traces, paths=PATHS | {4: known}))
    assert (one.deciding, one.change, one.limit) == (ACCEPTED.steps[0], None, (4, "30"))


def test_a_copy_is_not_the_packet(tmp_path: File) -> None:
    """What this host sent of a packet that came in, with the same headers, is told as a copy, and decides nothing."""
    sent = Path((step("output", "ip filter OUTPUT", "accept", "-j ACCEPT", 1),), "accept", 0, "postrouting")
    traces = [
        row(PLAIN, path=4, at=NOON + 1, interfaces=(None, "eth1")), row(PLAIN, path=2, interfaces=("eth0", None)),
    ]  # fmt: skip
    (one,) = answers(record(tmp_path / "rec", traces=traces, paths=PATHS | {4: sent}))
    assert (one.verdict, one.deciding) == ("drop", DROPPED.steps[3])
    assert [way.direction for way in one.ways] == ["original", "copy"]


def test_this_host_answered(tmp_path: File) -> None:
    """An ICMP error of this host's own stands beside what it is about, with a flow and without one."""
    error = row(icmp("10.0.0.254", "10.0.0.1", 11, about=PLAIN), path=5, at=NOON + 1, interfaces=(None, "eth0"))
    paths = PATHS | {5: Path((), "accept", None, "postrouting")}
    cases: list[tuple[str, list[dict[str, Any]]]] = [("a", [{}]), ("b", [])]
    for name, known in cases:
        (one,) = answers(record(tmp_path / name, known, [row(PLAIN, path=3), error], paths=paths))
        assert one.verdict == "undecided"
        assert one.answer is not None
        assert one.answer.packet == error.packet


def test_flows_without_a_trace_can_be_left_out(tmp_path: File) -> None:
    """Then their number is told, and a limit is one of the others."""
    path = record(tmp_path / "rec", [{"first_seen": NOON}, {"sport": 1}, {"sport": 2}], [row(PLAIN), row(OTHER)])
    left_out: list[int] = []
    assert [one.verdict for one in answers(path, untraced=left_out.append)] == ["accept", "accept"]
    assert left_out == [2]
    assert len(answers(path, untraced=left_out.append, limit=1)) == 1


def test_only_errors(tmp_path: File) -> None:
    """An ICMP error about a flow is no verdict on it."""
    (one,) = answers(record(tmp_path / "rec", [{}], [row(icmp("9.9.9.9", "10.0.0.1", 3, 1, about=PLAIN), path=2)]))
    assert (one.verdict, one.deciding, len(one.ways)) == (None, None, 1)
    assert one.why_not
    assert one.why_not.startswith("only ICMP errors about it were traced; of its own packets: no packet")


def test_without_a_trace(tmp_path: File) -> None:
    """A flow without a trace says why."""
    (one,) = answers(record(tmp_path / "rec", [{}], trace=None))
    assert (one.verdict, one.ways, one.why_not) == (None, (), "the recording was made without -t")


def test_reasons_of_the_recording(tmp_path: File) -> None:
    """Ceiling, restriction and losses are reasons, each told as possible."""
    facts = TRACE | {"only": "tcp dport 443", "refused": 1200}
    losses = (Loss(NOON, NOON + MINUTE, "traces", 17), Loss(NOON - 2, NOON - 1, "traces", 4), Loss(0, 1, "events", 5))
    (one,) = answers(record(tmp_path / "rec", [{"start": NOON + 1}], trace=facts, losses=losses))
    assert one.why_not
    assert one.why_not.startswith("no packet of it was traced; possible reasons: tracing was restricted to --trace '")
    assert "1,200 packets were not traced: more came than 500 new flows" in one.why_not
    assert "17 trace messages were lost" in one.why_not
    assert "4 trace" not in one.why_not
    assert "5 trace" not in one.why_not


def test_the_order_is_that_of_time(tmp_path: File) -> None:
    """Flows and packets stand in the order in which they began; a limit keeps the newest."""
    known = [{"first_seen": NOON + 3, "sport": 3}, {"first_seen": NOON + 1, "sport": 1}]
    traces = [row(tcp("10.0.0.1", number, "10.0.0.2", 80), at=NOON + number, path=2) for number in (4, 2)]
    path = record(tmp_path / "rec", known, traces)

    def ports(limit: int | None = None) -> list[int | None]:
        found = answers(path, limit=limit)
        return [one.flow["sport"] if one.flow else one.ways[0].packet.sport for one in found]

    assert ports() == [1, 2, 3, 4]
    assert ports(2) == [3, 4]
    assert ports(0) == []


def test_filter_and_times(tmp_path: File) -> None:
    """Only what is asked for is answered."""
    path = record(tmp_path / "rec", [{}], [row(PLAIN), row(OTHER, path=2, at=NOON + MINUTE)])
    assert [one.verdict for one in answers(path, Filter.parse(port="443"))] == ["drop"]
    assert [one.verdict for one in answers(path, until=NOON + 1)] == ["accept"]
    assert answers(path, Filter.parse(src="10.0.0.77")) == []


def test_two_directions_of_untracked_packets_stand_apart(tmp_path: File) -> None:
    """Without a flow nothing says that a packet answers another."""
    assert len(answers(record(tmp_path / "rec", traces=[row(PLAIN), row(BACK)]))) == 2


def test_the_same_tuple_in_two_recordings(tmp_path: File) -> None:
    """Packets of two recordings do not stand together."""
    paths = [record(tmp_path / name, traces=[row(PLAIN, path=path)]) for name, path in (("a", 1), ("b", 2))]
    with open_recording(paths) as recording:
        assert sorted(str(one.verdict) for one in blame(recording)) == ["accept", "drop"]


def test_a_path_that_is_lost(tmp_path: File) -> None:
    """Where the paths are damaged, a trace is still a trace, without steps."""
    path = record(tmp_path / "rec", [{}], [row(PLAIN)])
    (path / "paths-000001.parquet").write_bytes(b"")
    (one,) = answers(path)
    assert (one.verdict, one.ways[0].path) == ("undecided", UNKNOWN_PATH)
    assert not one.ways[0].path.complete


def test_later_fragments(tmp_path: File) -> None:
    """A later fragment, which has no ports, stands alone."""
    packet = Packet(4, 17, PLAIN.src, PLAIN.dst, fragment=True)
    (flow, alone) = answers(record(tmp_path / "rec", [{"proto": 17}], [row(packet)]))
    assert (flow.verdict, alone.packet) == (None, packet)


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_many_flows_in_batches(tmp_path: File, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """However many there are, and however they are cut, each has its own ways."""
    monkeypatch.setattr("conntracker.answers.blame.BATCH", batch)
    known = [{"sport": number, "first_seen": NOON + number} for number in range(20)]
    traces = [row(tcp("10.0.0.1", number, "10.0.0.2", 80), path=1 + number % 3) for number in range(20)]
    found = answers(record(tmp_path / "rec", known, traces))
    assert [one.ways[0].path for one in found] == [PATHS[1 + number % 3] for number in range(20)]
