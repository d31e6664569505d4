"""What a capture keeps of traces."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path as File
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.formats import log
from conntracker.formats.steps import Key, step_lines
from conntracker.recording.reader import open_recording
from conntracker.recording.writer import RecordingWriter
from conntracker.steps import Packet, Path, Trace
from conntracker.tracekeeper import TraceKeeper
from support.columns import NOON
from support.traces import ACCEPTED, DROPPED, LOST, icmp, tcp

PACKET = tcp("10.0.0.1", 1000, "10.0.0.2", 80)
SIX = tcp("2001:db8::1", 1000, "2001:db8::2", 53, 17)
HIGH = tcp("ffff:ffff::1", 65535, "ffff::ffff:ffff:ffff:ffff", 65535)


def trace(packet: Packet = PACKET, path: Path = ACCEPTED, at: int = NOON, **more: Any) -> Trace:
    """A trace of a packet that nothing changed."""
    values = {"left": packet, "in_interface": "eth0", "out_interface": "eth1", "ct_id": None, **more}
    return Trace(at, packet, path=path, **values)


def kept(*traces: Trace) -> TraceKeeper:
    """A keeper with traces."""
    keeper = TraceKeeper()
    keeper.take(traces)
    return keeper


def rows(file: File, names: str = "src, packets, epoch_us(first_seen), epoch_us(last_seen), path") -> list[Any]:
    """The traces of a recording."""
    with open_recording(file) as recording:
        return recording.sql(f"SELECT {names} FROM traces ORDER BY ALL").fetchall()  # noqa: S608


def flushed(keeper: TraceKeeper, file: File) -> None:
    """Writes a recording of what is kept."""
    with RecordingWriter(file, host="gate", start=NOON) as writer:
        keeper.flush(writer)


# --- counting and writing ------------------------------------------------------------------------------------------


def test_equal_packets_are_counted(tmp_path: File) -> None:
    """Packets with the same headers, interfaces, flow and path are one row, with the first and the last time."""
    keeper = kept(*(trace(at=NOON + second) for second in range(3)))
    assert len(keeper) == 1
    flushed(keeper, tmp_path / "rec")
    assert rows(tmp_path / "rec") == [("10.0.0.1", 3, NOON, NOON + 2, 0)]


def test_packets_that_are_over_in_another_order(tmp_path: File) -> None:
    """A packet that came first and was over last (it waited for a program) is the first one all the same."""
    flushed(kept(trace(at=NOON + 5), trace(at=NOON)), tmp_path / "rec")
    assert rows(tmp_path / "rec") == [("10.0.0.1", 2, NOON, NOON + 5, 0)]


DIFFERENT = [
    trace(tcp("10.0.0.1", 1001, "10.0.0.2", 80)),
    trace(left=tcp("10.0.0.1", 1000, "10.0.0.9", 80)),
    trace(in_interface="eth2"),
    trace(out_interface=None),
    trace(ct_id=5),
    trace(path=DROPPED),
]


@pytest.mark.parametrize("other", DIFFERENT)
def test_different_packets_are_rows_of_their_own(other: Trace) -> None:
    """Anything that differs makes another row."""
    assert len(kept(trace(), other, trace())) == 2


def test_what_a_recording_says(tmp_path: File) -> None:
    """Headers before and after NAT, interfaces, verdict and the rule that decided are read back as they were."""
    dropped = trace(path=DROPPED, left=tcp("10.0.0.1", 1000, "10.9.0.2", 8080), ct_id=2**32 - 1, out_interface=None)
    flushed(kept(dropped, trace(SIX), trace(HIGH, LOST)), tmp_path / "rec")
    names = "src, sport, dst, dport, left_dst, left_dport, in_interface, out_interface, ct_id, verdict, rule"
    rule = "-A LOGS -p tcp -m tcp --dport 443 -j DROP"
    assert rows(tmp_path / "rec", names) == [
        ("10.0.0.1", 1000, "10.0.0.2", 80, "10.9.0.2", 8080, "eth0", None, 2**32 - 1, "drop", rule),
        ("2001:db8::1", 1000, "2001:db8::2", 53, "2001:db8::2", 53, "eth0", "eth1", None, "accept", None),
        ("ffff:ffff::1", 65535, "ffff::ffff:ffff:ffff:ffff", 65535, "ffff::ffff:ffff:ffff:ffff", 65535, "eth0", "eth1",
         None, "undecided", None),
    ]  # fmt: skip


def test_paths_are_written_once(tmp_path: File) -> None:
    """What was flushed is forgotten, but for the numbers of paths: a later interval adds to it."""
    keeper = kept(trace(), trace(path=DROPPED))
    with RecordingWriter(tmp_path / "rec", start=NOON) as writer:
        keeper.flush(writer)
        assert (len(keeper), keeper.steps()) == (0, {})
        keeper.flush(writer)
        keeper.take([trace(path=DROPPED, at=NOON + 9), trace(path=LOST, at=NOON + 9)])
        keeper.flush(writer)
    assert rows(tmp_path / "rec", "path, verdict, packets") == [(0, "accept", 1), (1, "drop", 2), (2, "undecided", 1)]
    with open_recording(tmp_path / "rec") as recording:
        assert recording.sql("SELECT path, verdict FROM paths ORDER BY path").fetchall() == [
            (0, "accept"), (1, "drop"), (2, "undecided"),
        ]  # fmt: skip


class Full(RecordingWriter):
    """A recording whose disk is full for the first attempts."""

    def __init__(self, path: File, paths: int, traces: int) -> None:
        super().__init__(path, start=NOON)
        self.left = {"paths": paths, "traces": traces}

    def _try(self, name: str) -> None:
        self.left[name] -= 1
        if self.left[name] >= 0:
            raise OSError("no space left")

    def append_paths(self, paths: Any) -> None:
        """As there."""
        self._try("paths")
        super().append_paths(paths)

    def append_traces(self, rows: Any) -> None:
        """As there."""
        self._try("traces")
        super().append_traces(rows)


@pytest.mark.parametrize(("paths", "traces"), [(1, 0), (0, 1), (1, 1), (2, 2)])
def test_a_full_disk(tmp_path: File, paths: int, traces: int) -> None:
    """What could not be written is kept, with what comes meanwhile, and written once when there is room."""
    keeper = kept(trace(), trace(path=DROPPED))
    with Full(tmp_path / "rec", paths, traces) as writer:
        for _ in range(paths + traces):
            with pytest.raises(OSError, match="no space left"):
                keeper.flush(writer)
            keeper.take([trace(at=NOON + 1)])
        keeper.flush(writer)
    assert rows(tmp_path / "rec", "path, verdict, packets") == [(0, "accept", 1 + paths + traces), (1, "drop", 1)]


# --- the log -------------------------------------------------------------------------------------------------------


def directions(keeper: TraceKeeper) -> list[str]:
    """The log of all traced packets, without numbers."""
    out = io.BytesIO()
    log.write_log(out, keeper.directions)
    return [line.partition("] ")[2].removesuffix(" (-)") for line in out.getvalue().decode().splitlines()]


def test_directions() -> None:
    """Each direction of traced packets is a line, once, in both versions."""
    sctp = tcp("10.0.0.1", 5, "10.0.0.2", 6, 132)
    keeper = kept(trace(), trace(path=DROPPED), trace(HIGH), trace(SIX), trace(sctp), trace(replace(PACKET, proto=17)))
    assert directions(keeper) == [
        "src = 10.0.0.1 (port=1000) to dst = 10.0.0.2 (port=80)",
        "src = 10.0.0.1 (port=1000) to dst = 10.0.0.2 (port=80)",
        "src = ffff:ffff::1 (port=65535) to dst = ffff::ffff:ffff:ffff:ffff (port=65535)",
        "src = 2001:db8::1 (port=1000) to dst = 2001:db8::2 (port=53)",
    ]


def test_nothing_traced() -> None:
    """Without traces there are no directions, and their columns have the right kinds."""
    for family, words in ((4, 1), (6, 4)):
        addresses, ports = TraceKeeper().directions(family, 6)
        assert ([len(word) for word in addresses], len(ports)) == ([0] * words, 0)
        assert ({word.dtype.name for word in addresses}, ports.dtype.name) == ({"uint64"}, "uint32")


ICMP_LINES = [
    ([icmp("10.0.0.1", "10.0.0.2", 8, 0, 77)], ["src = 10.0.0.1 to dst = 10.0.0.2 (type=8 | code=0)"]),
    ([icmp("10.0.0.1", "10.0.0.2", 8, 0, 77), icmp("10.0.0.2", "10.0.0.1", 0, 0, 77)],
     ["src = 10.0.0.1 to dst = 10.0.0.2 (type=8 | code=0)"]),
    ([icmp("10.0.0.2", "10.0.0.1", 0, 0, 77)], ["src = 10.0.0.2 to dst = 10.0.0.1 (type=0 | code=0)"]),
    ([icmp("10.0.0.1", "10.0.0.2", 8, 0, 77), icmp("10.0.0.3", "10.0.0.1", 0, 0, 77)],
     ["src = 10.0.0.1 to dst = 10.0.0.2 (type=8 | code=0)", "src = 10.0.0.3 to dst = 10.0.0.1 (type=0 | code=0)"]),
    ([icmp("10.0.0.9", "10.0.0.1", 3, 13, about=PACKET)], ["src = 10.0.0.9 to dst = 10.0.0.1 (type=3 | code=13)"]),
    ([icmp("fd00::1", "fd00::2", 128, 0, 5), icmp("fd00::2", "fd00::1", 129, 0, 5)],
     ["src = fd00::1 to dst = fd00::2 (type=128 | code=0)"]),
    ([icmp("fd00::2", "fd00::1", 1, 4)], ["src = fd00::2 to dst = fd00::1 (type=1 | code=4)"]),
]  # fmt: skip


@pytest.mark.parametrize(("packets", "lines"), ICMP_LINES)
def test_directions_of_icmp(packets: list[Packet], lines: list[str]) -> None:
    """ICMP shows type and code; an answer has no line of its own where its request has one."""
    assert directions(kept(*map(trace, packets))) == lines


def key(packet: Packet) -> Key:
    """A packet's direction."""
    first, second = (packet.sport, packet.dport) if packet.icmp_type is None else (packet.icmp_type, packet.icmp_code)
    return packet.family, packet.proto, packet.src, packet.dst, first or 0, second or 0


def test_steps_of_directions() -> None:
    """Each direction has the steps of its packets' paths, in the order in which they came, however often."""
    other = tcp("10.0.0.2", 80, "10.0.0.1", 1000)
    keeper = kept(trace(path=DROPPED), trace(at=NOON + 1), trace(at=NOON + 2, path=DROPPED), trace(other, LOST))
    assert keeper.steps() == {key(PACKET): step_lines([DROPPED, ACCEPTED]), key(other): step_lines([LOST])}


def test_packets_that_differ_beside_their_direction() -> None:
    """Packets of one direction with another flow, interface or way out count together."""
    nat = replace(PACKET, src=int(ip_address("192.0.2.1")))
    keeper = kept(trace(), trace(left=nat, path=DROPPED), trace(in_interface="eth7", ct_id=3))
    assert keeper.steps() == {key(PACKET): step_lines([ACCEPTED, DROPPED])}


def test_steps_of_icmp_answers() -> None:
    """An answer's steps stand below its request, too, and below its own direction."""
    request, answer = icmp("10.0.0.1", "10.0.0.2", 8, 0, 77), icmp("10.0.0.2", "10.0.0.1", 0, 0, 77)
    keeper = kept(trace(request), trace(answer, DROPPED, NOON + 1))
    assert keeper.steps() == {key(request): step_lines([ACCEPTED, DROPPED]), key(answer): step_lines([DROPPED])}


PACKETS = st.sampled_from(
    [PACKET, SIX, HIGH, tcp("10.0.0.2", 80, "10.0.0.1", 1000), tcp("10.0.0.1", None, "10.0.0.2", None, 6),
     icmp("10.0.0.1", "10.0.0.2", 8, 0, 77), icmp("10.0.0.1", "10.0.0.2", 8, 0, 78),
     icmp("10.0.0.2", "10.0.0.1", 0, 0, 77), icmp("fd00::1", "fd00::2", 1, 3, about=SIX)]
)  # fmt: skip
TRACES = st.builds(trace, PACKETS, st.sampled_from([ACCEPTED, DROPPED, LOST]), st.integers(NOON, NOON + 9))


@given(st.lists(st.lists(TRACES, max_size=8), max_size=4))
def test_any_traces(parts: list[list[Trace]]) -> None:
    """Whatever is taken in whatever parts, all packets are counted and every line of the log has its steps."""
    keeper = TraceKeeper()
    for part in parts:
        keeper.take(part)
    every = [one for part in parts for one in part]
    assert len(keeper) == len({(one.packet, id(one.path)) for one in every})
    assert set(map(key, packets(every))) <= set(keeper.steps())
    out = io.BytesIO()
    log.write_log(out, keeper.directions, keeper.steps())
    lines = out.getvalue().decode().splitlines()
    follows = [line.startswith("\t") for line in lines[1:]] + [False]
    assert all(line.startswith("\t") or has for line, has in zip(lines, follows, strict=False))


def packets(traces: Iterable[Trace]) -> list[Packet]:
    """The packets of traces."""
    return [one.packet for one in traces]
