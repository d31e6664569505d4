from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path as File
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conntracker.filters import Filter
from conntracker.recording.join import SLACK, joined
from conntracker.recording.reader import open_recording
from conntracker.recording.traces import TraceRow
from conntracker.steps import Packet
from support.columns import MINUTE, NOON
from support.traces import icmp, record, row, tcp

CLIENT, SERVER, ROUTER, REAL = "10.0.0.5", "192.0.2.9", "203.0.113.7", "10.9.0.2"
# Its packets are CLIENT -> SERVER, then CLIENT -> REAL, and leave as ROUTER -> REAL.
TRANSLATED: dict[str, Any] = {
    "src": CLIENT, "sport": 40312, "dst": SERVER, "dport": 443, "reply_src": REAL, "reply_sport": 8443,
    "reply_dst": ROUTER, "reply_dport": 999,
}  # fmt: skip
GOING = tcp(CLIENT, 40312, SERVER, 443)
BETWEEN = tcp(CLIENT, 40312, REAL, 8443)
LEFT = tcp(ROUTER, 999, REAL, 8443)
COMING = tcp(REAL, 8443, ROUTER, 999)
PLAIN = tcp("10.0.0.1", 40000, "10.0.0.2", 80)  # of the flow that support.columns makes without being told anything


def turned(packet: Packet) -> Packet:
    """The packet that answers on the same side of NAT."""
    return Packet(packet.family, packet.proto, packet.dst, packet.src, packet.dport, packet.sport)


def ways(
    path: File | Sequence[File], filter: Filter | None = None, since: int | None = None, until: int | None = None,
    only_inside: bool = False,
) -> list[tuple[int, int | None, str, bool, int]]:  # fmt: skip
    """(number of the path, flow, direction, certain, packets), sorted by path."""
    with open_recording(path) as recording, joined(recording, filter, since, until, only_inside) as (_, table):
        query = f"SELECT path, flow, direction, certain, packets FROM {table} ORDER BY ALL"  # noqa: S608
        return recording.sql(query).fetchall()


@pytest.mark.parametrize(
    ("packet", "left", "direction"),
    [
        (GOING, LEFT, "original"),
        (BETWEEN, LEFT, "original"),
        (LEFT, LEFT, "original"),
        (COMING, turned(GOING), "reply"),
        (turned(BETWEEN), turned(GOING), "reply"),
        (turned(GOING), turned(GOING), "reply"),
        (tcp("1.1.1.1", 1, "2.2.2.2", 2), LEFT, "original"),
        (tcp("1.1.1.1", 1, "2.2.2.2", 2), turned(GOING), "reply"),
    ],
)
def test_through_nat(tmp_path: File, packet: Packet, left: Packet, direction: str) -> None:
    """A packet of a flow is known at any side of NAT, by what it was or by what it became."""
    path = record(tmp_path / "rec", [{}, TRANSLATED], [row(packet, left)])
    assert ways(path) == [(1, 1, direction, True, 1)]


@pytest.mark.parametrize(
    "packet",
    [
        tcp(CLIENT, 40313, SERVER, 443),
        tcp(CLIENT, 40312, SERVER, 444),
        tcp(CLIENT, 40312, SERVER, 443, proto=17),
        tcp(SERVER, 40312, CLIENT, 443),
        tcp("::a00:5", 40312, "::c000:209", 443),
        tcp(CLIENT, None, SERVER, None, fragment=True),
    ],
)
def test_near_misses(tmp_path: File, packet: Packet) -> None:
    """Another port, protocol, end or family is no packet of the flow, and stands alone."""
    assert ways(record(tmp_path / "rec", [TRANSLATED], [row(packet)])) == [(1, None, "original", True, 1)]


@pytest.mark.parametrize("packet", [GOING, BETWEEN, LEFT, COMING, turned(BETWEEN), turned(GOING)])
def test_icmp_errors(tmp_path: File, packet: Packet) -> None:
    """An ICMP error is of the flow that its inner packet belongs to, whichever side of NAT that was on."""
    error = icmp("198.51.100.1", CLIENT, 3, 1, about=packet)
    assert ways(record(tmp_path / "rec", [{}, TRANSLATED], [row(error)])) == [(1, 1, "error", True, 1)]


def test_icmp_errors_by_id(tmp_path: File) -> None:
    """An ICMP error that does not say what it is about has its flow's id; without that it stands alone."""
    error = icmp("198.51.100.1", CLIENT, 3, 1)
    other = icmp("198.51.100.1", CLIENT, 11, 0)
    path = record(tmp_path / "rec", [TRANSLATED | {"id": 77}], [row(error, ct_id=77), row(other, path=2)])
    assert ways(path) == [(1, 0, "error", True, 1), (2, None, "original", True, 1)]


def test_icmp_errors_about_no_flow(tmp_path: File) -> None:
    """An error about a packet that was dropped stands with that packet, by its tuple or by the same id."""
    errors = [icmp(ROUTER, CLIENT, 3, 13, about=GOING), icmp(ROUTER, CLIENT, 3, 3)]
    path = record(
        tmp_path / "rec",
        traces=[row(GOING, path=2, ct_id=5), row(errors[0]), row(errors[1], path=3, ct_id=5)],
    )
    for filter in (None, Filter.parse(dport="443")):
        with open_recording(path) as recording, joined(recording, filter) as (_, table):
            query = f"SELECT path, direction, unit = first(unit) OVER () FROM {table} ORDER BY path"  # noqa: S608
            found = recording.sql(query).fetchall()
        assert found == [(1, "error", True), (2, "original", True), (3, "error", True)]


def test_echo(tmp_path: File) -> None:
    """An echo and its answer are one flow by type, code and id; another id, or a second request back, is not."""
    known = {"proto": 1, "sport": 7, "dport": 8 << 8, "src": CLIENT, "dst": SERVER, "reply_sport": 900}
    traces = [
        row(icmp(CLIENT, SERVER, 8, 0, 7), path=1),
        row(icmp(SERVER, CLIENT, 0, 0, 900), path=2),
        row(icmp(CLIENT, SERVER, 8, 0, 8), path=3),
        row(icmp(SERVER, CLIENT, 8, 0, 7), path=4),
    ]
    assert ways(record(tmp_path / "rec", [known], traces)) == [
        (1, 0, "original", True, 1),
        (2, 0, "reply", True, 1),
        (3, None, "original", True, 1),
        (4, None, "original", True, 1),
    ]


def test_lives_of_one_tuple(tmp_path: File) -> None:
    """Of several lives of one tuple a trace goes to the one that was alive, or nearest to it within seconds."""
    lives = [{"start": NOON + at, "first_seen": NOON + at, "end": NOON + at + MINUTE} for at in (0, 2 * MINUTE)]
    times = (0, MINUTE + SLACK - 1, MINUTE + SLACK + 1, 2 * MINUTE - SLACK, 2 * MINUTE, 3 * MINUTE + SLACK)
    traces = [row(PLAIN, path=number, at=NOON + at) for number, at in enumerate(times)]
    assert [way[:2] for way in ways(record(tmp_path / "rec", lives, traces))] == [
        (0, 0), (1, 0), (2, None), (3, 1), (4, 1), (5, 1),
    ]  # fmt: skip


def test_ids_tell_lives_apart(tmp_path: File) -> None:
    """The id of a trace outweighs its time, and one that contradicts the flow's keeps them apart."""
    lives = [{"id": 7, "end": NOON + MINUTE}, {"id": 8, "first_seen": NOON + MINUTE}]
    traces = [row(PLAIN, path=number, at=NOON + MINUTE, ct_id=number) for number in (7, 8, 9)]
    assert [way[:2] for way in ways(record(tmp_path / "rec", lives, traces))] == [(7, 0), (8, 1), (9, None)]


def test_an_id_alone(tmp_path: File) -> None:
    """A trace with a flow's id and another tuple of the same protocol is its own, in no known direction."""
    traces = [row(tcp("1.1.1.1", 1, "2.2.2.2", 2), ct_id=7), row(tcp("1.1.1.1", 1, "2.2.2.2", 2, 17), path=2, ct_id=7)]
    assert ways(record(tmp_path / "rec", [{"id": 7}], traces)) == [
        (1, 0, "unknown", True, 1),
        (2, None, "original", True, 1),
    ]


def test_zones(tmp_path: File) -> None:
    """Without an id a trace goes to the flows of all zones, marked; with one to its own."""
    zones = [{"zone": 1, "id": 7}, {"zone": 2, "id": 8}]
    path = record(tmp_path / "rec", zones, [row(PLAIN), row(PLAIN, path=2, ct_id=8)])
    assert ways(path) == [(1, 0, "original", False, 1), (1, 1, "original", False, 1), (2, 1, "original", True, 1)]


def test_the_very_tuple_is_nearer(tmp_path: File) -> None:
    """A tuple that is one flow's own, and another's between two NATs, is the former's."""
    other = {"src": CLIENT, "sport": 40312, "dst": REAL, "dport": 8443, "reply_dst": ROUTER, "reply_dport": 1}
    assert ways(record(tmp_path / "rec", [TRANSLATED, other], [row(BETWEEN)])) == [(1, 1, "original", True, 1)]


def test_recordings_do_not_mix(tmp_path: File) -> None:
    """Traces join flows of their own recording only."""
    paths = [record(tmp_path / "a", [{}]), record(tmp_path / "b", [TRANSLATED], [row(PLAIN), row(GOING, path=2)])]
    assert ways(paths) == [(1, None, "original", True, 1), (2, 0, "original", True, 1)]


def test_equal_packets_of_all_intervals_are_one_way(tmp_path: File) -> None:
    """A way has the sum of its packets, with the id and without."""
    path = record(tmp_path / "rec", [{"id": 7}], [row(PLAIN, at=NOON + i, ct_id=7 if i else None) for i in range(3)])
    assert ways(path) == [(1, 0, "original", True, 3)]


def test_filters(tmp_path: File) -> None:
    """Of a flow that is wanted all packets are there; those without a flow are there if they are wanted themselves."""
    traces = [
        row(GOING, path=1),
        row(COMING, path=2),
        row(PLAIN, path=3),
        row(tcp(CLIENT, 1, SERVER, 443), tcp(CLIENT, 1, REAL, 8443), path=4),
        row(icmp(ROUTER, SERVER, 3, 1, about=tcp("9.9.9.9", 2, SERVER, 443)), path=5),
    ]
    path = record(tmp_path / "rec", [TRANSLATED, {}], traces)
    assert [way[:2] for way in ways(path, Filter.parse(dport="443"))] == [(1, 0), (2, 0), (4, None), (5, None)]
    assert [way[:2] for way in ways(path, Filter.parse(dst=REAL))] == [(1, 0), (2, 0), (4, None)]
    assert [way[:2] for way in ways(path, Filter.parse(src=CLIENT, proto="tcp"))] == [(1, 0), (2, 0), (4, None)]
    assert [way[:2] for way in ways(path, Filter.parse(sport="40000"))] == [(3, 1)]
    assert ways(path, Filter.parse(src="9.9.9.9", dst=SERVER)) == [(5, None, "original", True, 1)]
    assert ways(path, Filter.parse(proto="udp")) == []


def test_a_filter_does_not_change_whose_a_packet_is(tmp_path: File) -> None:
    """A packet of a flow that is not wanted is not shown as one without a flow."""
    known = [TRANSLATED | {"mark": 1}]
    path = record(tmp_path / "rec", known, [row(tcp(ROUTER, 999, REAL, 8443), tcp(ROUTER, 999, "1.2.3.4", 8443))])
    assert ways(path, Filter.parse(dst="1.2.3.4")) == []


def test_times(tmp_path: File) -> None:
    """A flow that lived then has all its packets, or only those of then; others are there if they were seen then."""
    seen = enumerate(((PLAIN, 1), (PLAIN, 5), (LEFT, 1), (LEFT, 5), (LEFT, 9)), 1)
    traces = [row(packet, path=i, at=NOON + at * MINUTE, until=NOON + (at + 1) * MINUTE) for i, (packet, at) in seen]
    path = record(tmp_path / "rec", [{}], traces)
    since, until = NOON + 4 * MINUTE, NOON + 8 * MINUTE
    assert [way[0] for way in ways(path, None, since, until)] == [1, 2, 4]
    assert [way[0] for way in ways(path, None, since, until, only_inside=True)] == [2, 4]
    assert [way[0] for way in ways(path, None, since)] == [1, 2, 4, 5]
    assert [way[0] for way in ways(path, None, None, until)] == [1, 2, 3, 4]


# --- the same, told in Python ----------------------------------------------------------------------------------------

HOSTS = st.sampled_from(("10.0.0.1", "10.0.0.2", "10.0.0.3"))
PORTS = st.integers(1, 2)
TIMES = st.integers(0, 3).map(lambda number: NOON + number * SLACK)
IDS = st.integers(0, 2)
KNOWN = st.fixed_dictionaries(
    {
        "src": HOSTS, "sport": PORTS, "dst": HOSTS, "dport": PORTS, "reply_src": HOSTS, "reply_sport": PORTS,
        "reply_dst": HOSTS, "reply_dport": PORTS, "id": IDS, "first_seen": TIMES, "zone": st.just(0),
    }
)  # fmt: skip
TCP = st.builds(tcp, HOSTS, PORTS, HOSTS, PORTS)
TRACED = st.builds(lambda packet, left, at, id: row(packet, left, at=at, ct_id=id or None), TCP, TCP, TIMES, IDS)


def nearness(trace: TraceRow, flow: dict[str, Any]) -> tuple[tuple[int, int, int], str] | None:
    """How near a flow is to a trace, and the direction; None if it is not its flow."""
    ends = (("src", "sport"), ("dst", "dport"), ("reply_src", "reply_sport"), ("reply_dst", "reply_dport"))
    o_src, o_dst, r_src, r_dst = ((int(ip_address(flow[address])), flow[port]) for address, port in ends)
    same_id = bool(trace.ct_id) and trace.ct_id == flow["id"]
    if trace.ct_id and flow["id"] and not same_id:
        return None
    gap = max(flow["first_seen"] - trace.last, 0)
    going = [(o_src, o_dst), (o_src, r_src), (r_dst, r_src)]
    coming = [(dst, src) for src, dst in going]
    tuples = [((one.src, one.sport), (one.dst, one.dport)) for one in (trace.packet, trace.left)]
    directions = [
        name for one in tuples for name, known in (("original", going), ("reply", coming)) if one in known
    ]  # fmt: skip
    if gap > SLACK or not (directions or same_id):
        return None
    by_id = 2 if not same_id else 0 if directions else 1
    far = tuples[0] not in ((o_src, o_dst), (r_src, r_dst))
    return (by_id, gap, int(far)), directions[0] if directions else "unknown"


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=40)
@given(st.lists(KNOWN, min_size=1, max_size=4), st.lists(TRACED, min_size=1, max_size=4))
def test_the_join_is_what_it_says(
    tmp_path_factory: pytest.TempPathFactory, known: list[dict[str, Any]], traces: list[TraceRow]
) -> None:
    """Each trace goes to the nearest flows by id, then time, then tuple, as a plain loop finds them."""
    numbered = [trace._replace(path=number) for number, trace in enumerate(traces)]
    expected: set[tuple[int, int | None, str, bool]] = set()
    for trace in numbered:
        near = {number: found for number, flow in enumerate(known) if (found := nearness(trace, flow))}
        best = min((tie for tie, _ in near.values()), default=None)
        nearest = {number: direction for number, (tie, direction) in near.items() if tie == best}
        expected |= {(trace.path, number, direction, len(nearest) == 1) for number, direction in nearest.items()}
        if not nearest:
            expected.add((trace.path, None, "original", True))
    path = record(tmp_path_factory.mktemp("join") / "rec", known, numbered)
    assert {way[:4] for way in ways(path)} == expected
