"""The flow table, held against a plain one that takes in one event after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntracker import model
from conntracker.flows import FlowTable
from conntracker.model import DESTROY, DUMP, NEW, NO_STATE, UNKNOWN, UPDATE, Batch
from conntracker.wire.columns import Decoder
from support.messages import message, rows


@dataclass(frozen=True)
class Event:
    """One message: which flow, and what it says."""

    kind: int
    family: int = 4
    src: int = 1
    sport: int = 1000
    id: int = 1
    proto: int = 6
    zone: int = 0
    status: int = 0
    mark: int = 0
    tcp_state: int = NO_STATE
    packets: int = UNKNOWN


def batch(events: list[Event], time: int, dump_since: int = 0) -> Batch:
    """Events of one family as a batch."""
    n, family = len(events), events[0].family

    def words(values: list[int]) -> np.ndarray[Any, np.dtype[np.uint64]]:
        return np.array(values, np.uint64)

    src, dst = [e.src for e in events], [77] * n
    there = (words([s << 32 | d for s, d in zip(src, dst, strict=True)]),)
    back = (words([d << 32 | s for s, d in zip(src, dst, strict=True)]),)
    if family == 6:
        there = (words([5] * n), words(src), words([6] * n), words(dst))  # type: ignore[assignment]
        back = (words([6] * n), words(dst), words([5] * n), words(src))  # type: ignore[assignment]
    counters = words([e.packets for e in events])
    return Batch(
        family, time, np.array([e.kind for e in events], np.uint8), there,
        words([e.sport << 48 | 80 << 32 | e.zone << 16 | e.proto << 8 for e in events]), back,
        words([80 << 48 | e.sport << 32 | e.zone << 16 | e.proto << 8 for e in events]),
        np.array([e.id for e in events], np.uint32), np.array([e.status for e in events], np.uint32),
        np.array([e.mark for e in events], np.uint32), np.array([e.tcp_state for e in events], np.uint8),
        packets=None if (counters == UNKNOWN).all() else counters, dump_since=dump_since,
    )  # fmt: skip


@dataclass
class Flow:
    """A life, as the plain table keeps it."""

    born: bool = False
    ended: int = -1
    status: int = 0
    mark: int = 0
    tcp_state: int = NO_STATE
    packets: int = UNKNOWN
    first: int = 0
    last: int = 0
    start: int = -1


@dataclass
class Plain:
    """One event after the other; the newest life of each key last."""

    lives: dict[tuple[int, ...], list[Flow]] = field(default_factory=dict)

    def apply(self, event: Event, time: int) -> None:
        """Takes in one event."""
        key = (event.family, event.src, event.sport, event.proto, event.zone, event.id)
        lives = self.lives.setdefault(key, [])
        if not lives or (event.kind == NEW and lives[-1].ended >= 0):
            lives.append(Flow(first=time))
        flow = lives[-1]
        flow.last, flow.status, flow.mark = time, event.status, event.mark
        flow.tcp_state = event.tcp_state if event.tcp_state != NO_STATE else flow.tcp_state
        flow.packets = event.packets if event.packets != UNKNOWN else flow.packets
        if event.kind == NEW and not flow.born:
            flow.born, flow.start = True, time
        if event.kind == DESTROY and flow.ended < 0:
            flow.ended = time


def contents(table: FlowTable) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    """What a table holds, lives of a key in the order of their serial numbers."""
    out: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for part in table.changed():
        for i in np.argsort(part["flow"]).tolist():
            row = {name: int(column[i]) for name, column in part.items()}
            key = (row["family"], row["src_lo"], row["sport"], row["proto"], row["zone"], row["id"])
            names = ("end", "status", "mark", "tcp_state", "packets", "first_seen", "last_seen", "start")
            out.setdefault(key, []).append(tuple(row[name] for name in names))
    return out


EVENTS = st.builds(
    Event,
    kind=st.sampled_from([NEW, UPDATE, DESTROY]),
    family=st.sampled_from([4, 6]),
    src=st.integers(1, 3),
    sport=st.integers(1, 3),
    id=st.integers(1, 2),
    proto=st.sampled_from([6, 17]),
    zone=st.integers(0, 1),
    status=st.integers(0, 3),
    mark=st.integers(0, 1),
    tcp_state=st.sampled_from([1, 3, NO_STATE]),
    packets=st.sampled_from([1, 5, UNKNOWN]),
)


@settings(max_examples=400)
@given(st.lists(st.lists(EVENTS, min_size=1, max_size=30), max_size=8))
def test_the_table_equals_one_event_after_the_other(batches: list[list[Event]]) -> None:
    """Whatever events come in whatever batches, the flows are those of the plain table, repeated lives included."""
    table, plain = FlowTable(), Plain()
    for time, events in enumerate(batches, 1):
        for family in (4, 6):
            part = [event for event in events if event.family == family]
            if part:
                table.apply(batch(part, time))
            for event in part:
                plain.apply(event, time)
    expected = {
        key: [(f.ended, f.status, f.mark, f.tcp_state, f.packets, f.first, f.last, f.start) for f in lives]
        for key, lives in plain.lives.items()
    }
    assert contents(table) == expected
    assert len(table) == table.seen == sum(map(len, expected.values()))


def test_many_flows_are_found_again() -> None:
    """A hundred thousand flows in random batches make as many rows, and their ends are found by their keys."""
    rng, table, n = np.random.default_rng(3), FlowTable(), 100_000
    events = [Event(NEW, src=int(i), sport=int(i) % 65536, id=int(i)) for i in rng.permutation(n)]
    for start in range(0, n, 7919):
        table.apply(batch(events[start : start + 7919], 1))
    assert (len(table), table.alive()) == (n, n)
    for start in range(0, n, 4096):
        table.apply(batch([Event(DESTROY, src=e.src, sport=e.sport, id=e.id) for e in events[start : start + 4096]], 2))
    assert (len(table), table.alive()) == (n, 0)


def test_a_dump_does_not_raise_the_dead() -> None:
    """A row of a dump whose DESTROY was read first, though it came later, is not a new life."""
    table = FlowTable()
    table.apply(batch([Event(NEW), Event(DESTROY)], time=20))
    table.apply(batch([Event(DUMP)], time=21, dump_since=10))
    assert (len(table), table.alive()) == (1, 0)


def test_a_dump_shows_a_new_life_of_an_ended_flow() -> None:
    """A row of a dump asked for after the end of a flow with the same key is a flow of its own."""
    table = FlowTable()
    table.apply(batch([Event(NEW), Event(DESTROY)], time=20))
    table.apply(batch([Event(DUMP)], time=40, dump_since=30))
    assert (len(table), table.alive()) == (2, 1)


def test_a_dump_does_not_undo_newer_events() -> None:
    """What an event said after the dump was asked for stays; the dump's counters are taken."""
    table = FlowTable()
    table.apply(batch([Event(NEW, status=0)], time=5))
    table.apply(batch([Event(UPDATE, status=model.IPS_SEEN_REPLY, tcp_state=3)], time=20))
    table.apply(batch([Event(DUMP, status=0, tcp_state=1, packets=9)], time=21, dump_since=10))
    ((end, status, _, state, packets, *_),) = contents(table)[(4, 1, 1000, 6, 0, 1)]
    assert (end, status, state, packets) == (-1, model.IPS_SEEN_REPLY, 3, 9)


def test_what_a_dump_after_a_loss_does_not_show_has_ended() -> None:
    """Such a flow gets an end that was not seen; an event or a dump that shows it later takes that back."""
    table = FlowTable()
    table.apply(batch([Event(NEW, src=1), Event(NEW, src=2)], time=5))
    table.apply(batch([Event(DUMP, src=2)], time=31, dump_since=30))
    assert table.conclude_ended(30, 40) == 1
    ((end, *_),) = contents(table)[(4, 1, 1000, 6, 0, 1)]
    assert (end, table.alive()) == (40, 1)
    assert not table.changed()[0]["end_seen"].any()
    table.apply(batch([Event(DUMP, src=1)], time=51, dump_since=50))
    assert (len(table), table.alive()) == (2, 2)


def test_finished_flows_are_dropped_once_written() -> None:
    """Only flows that ended and were written go; those that live are found by later events."""
    table = FlowTable()
    table.apply(batch([Event(NEW, src=i) for i in range(50)], time=1))
    table.apply(batch([Event(DESTROY, src=i) for i in range(40)], time=2))
    assert table.drop_finished() == 0
    table.mark_written()
    assert table.drop_finished() == 40
    table.apply(batch([Event(UPDATE, src=45, status=2)], time=3))
    assert (len(table), table.seen) == (10, 50)
    assert table.changed()[0]["src_lo"].tolist() == [45]


def test_an_event_that_is_sent_again_makes_no_flow() -> None:
    """NEW and DESTROY that come several times, as they do beside a reliable listener, are one flow with one end."""
    table = FlowTable()
    table.apply(batch([Event(NEW), Event(NEW), Event(UPDATE)], time=1))
    table.apply(batch([Event(NEW), Event(DESTROY), Event(DESTROY)], time=2))
    table.apply(batch([Event(DESTROY)], time=3))
    ((end, *_),) = contents(table)[(4, 1, 1000, 6, 0, 1)]
    assert (end, table.seen) == (2, 1)


def test_an_update_after_the_end_does_not_revive() -> None:
    """A late UPDATE of another processor leaves the flow ended."""
    table = FlowTable()
    table.apply(batch([Event(NEW), Event(DESTROY), Event(UPDATE, status=2)], time=1))
    assert table.alive() == 0


def test_kernel_times_replace_ours() -> None:
    """CTA_TIMESTAMP's nanoseconds become the flow's start and end in microseconds."""
    table = FlowTable()
    datagrams = [message(id=1), message("destroy", id=1, times=(10**18 + 1999, 10**18 + 5_000_000))]
    (decoded,) = Decoder().decode_rows(*rows(datagrams), time=7)
    table.apply(decoded)
    (part,) = table.changed()
    assert (part["start"].tolist(), part["end"].tolist()) == ([10**15 + 1], [10**15 + 5000])


@pytest.mark.parametrize(
    ("proto", "status", "lines"), [(6, 0, 1), (6, model.IPS_SEEN_REPLY, 2), (1, model.IPS_SEEN_REPLY, 1)]
)
def test_a_reply_is_a_direction_once_it_was_seen(proto: int, status: int, lines: int) -> None:
    """The reply direction is there when the kernel says that a reply was seen, and never for ICMP."""
    table = FlowTable()
    table.apply(batch([Event(NEW, proto=proto, status=status)], time=1))
    _, ports = table.directions(4, proto)
    assert len(ports) == lines


def test_directions_with_who_sends() -> None:
    """The original direction has the owner of the flow's source, the reply that of its destination; older flows
    first.
    """
    table = FlowTable()
    table.apply(batch([Event(NEW, src=src, status=model.IPS_SEEN_REPLY) for src in (9, 5)], time=1))
    table.apply(batch([Event(NEW, src=7)], time=2))
    family = table.families[4]
    family.owner[:3], family.peer_owner[:3] = (1, 2, 3), (4, 0, 6)
    (addresses,), ports, owners = table.directions(4, 6, owners=True)
    ends = [(address >> 32, address & 0xFFFFFFFF) for address in addresses.tolist()]
    assert list(zip(ends, ports.tolist(), owners.tolist(), strict=True)) == [
        ((9, 77), 1000 << 16 | 80, 1), ((77, 9), 80 << 16 | 1000, 4),
        ((5, 77), 1000 << 16 | 80, 2), ((77, 5), 80 << 16 | 1000, 0), ((7, 77), 1000 << 16 | 80, 3),
    ]  # fmt: skip


@pytest.mark.parametrize(("family", "proto"), [(4, 1), (6, 58), (6, 17)])
def test_owners_beside_the_same_directions(family: int, proto: int) -> None:
    """Of every protocol the directions are the same with owners and without."""
    table = FlowTable()
    table.apply(batch([Event(NEW, family, src, proto=proto, status=2) for src in range(5)], time=1))
    table.families[family].owner[:5] = range(5)
    addresses, ports, owners = table.directions(family, proto, owners=True)
    assert sorted(_rows(addresses, ports)) == sorted(_rows(*table.directions(family, proto)))
    assert sorted(owners.tolist())[-5:] == list(range(5))


def _rows(addresses: tuple[model.U64, ...], ports: model.U32) -> list[tuple[int, ...]]:
    columns: list[Any] = [*addresses, ports]
    return list(zip(*(column.tolist() for column in columns), strict=True))
