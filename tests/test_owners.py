"""Sides of sockets and flows: who is at which end."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from conntracker import owners
from conntracker.flows import Ends
from conntracker.model import ICMP, TCP, TCP_STATES, UDP
from conntracker.owners import NOBODY, Sides
from conntracker.wire.ownership import USERS
from conntracker.wire.sides import ANY_LOCAL, ANY_REMOTE, FIXED, SIDES, mapped

T = 1_700_000_000_000_000  # microseconds since the epoch
SECOND = 1_000_000
LATE = 20_000  # owners._SLACK
HERE, THERE, ELSEWHERE = 1, 2, 3  # network namespaces

A, B, OUTSIDE, OTHER, ANY4 = "10.0.0.1", "10.0.0.2", "192.0.2.9", "10.0.0.3", "0.0.0.0"  # noqa: S104


@dataclass(frozen=True)
class Side:
    """A side of a socket; times are microseconds after T."""

    local: str
    lport: int
    remote: str
    rport: int
    number: int
    proto: int = TCP
    cookie: int = 0
    netns: int = HERE
    pid: int = -1
    wild: int = 0
    time: int = 0
    first: int = 0
    last: int = -1


@dataclass(frozen=True)
class Flow:
    """A flow; its reply tuple is the original one turned round where none is given. Times as those of sides."""

    src: str
    sport: int
    dst: str
    dport: int
    proto: int = TCP
    reply: tuple[str, int, str, int] | None = None
    first: int = 0
    last: int = 10 * SECOND
    serial: int = 0
    seen: int = -1  # its first, if not given
    touched: int = -1  # its last, if not given
    state: str = "ESTABLISHED"

    @property
    def replied(self) -> tuple[str, int, str, int]:
        """The reply tuple."""
        return self.reply or (self.dst, self.dport, self.src, self.sport)


def words(text: str) -> tuple[int, int]:
    """An address as sides and flows have it."""
    address = ipaddress.ip_address(text)
    return mapped(int(address), address.version)


def rows_of(sides: Sequence[Side]) -> tuple[NDArray[Any], NDArray[np.uint32]]:
    """SIDES rows and the numbers of their owners. A process has the number of its owner, if it has no other."""
    rows = np.zeros(len(sides), SIDES)
    for i, side in enumerate(sides):
        row = rows[i]
        row["local_hi"], row["local_lo"] = words(side.local)
        row["remote_hi"], row["remote_lo"] = words(side.remote) if side.remote else (0, 0)
        for name in ("lport", "rport", "proto", "netns", "wild"):
            row[name] = getattr(side, name)
        row["cookie"], row["pid"] = side.cookie or side.number + 1000, side.number if side.pid < 0 else side.pid
        row["time"], row["first"] = T + side.time, T + side.first
        row["last"] = -1 if side.last < 0 else T + side.last
    return rows, np.array([side.number for side in sides], np.uint32)


def ends_of(flows: Sequence[Flow]) -> Ends:
    """The ends of flows, all of one IP version."""

    def pair(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        both = np.array([words(text) for text in texts], np.uint64).reshape(-1, 2)
        return both[:, 0].copy(), both[:, 1].copy()

    def ports(values: Sequence[int]) -> NDArray[np.uint64]:
        return np.array(values, np.uint64)

    def times(values: Sequence[int]) -> NDArray[np.int64]:
        return np.array(values, np.int64) + T

    zeros, replies = np.zeros(len(flows), np.uint32), [flow.replied for flow in flows]
    return Ends(
        version=ipaddress.ip_address(flows[0].src).version, proto=np.array([flow.proto for flow in flows], np.uint8),
        source=pair([flow.src for flow in flows]), destination=pair([flow.dst for flow in flows]),
        reply_source=pair([reply[0] for reply in replies]), reply_destination=pair([reply[2] for reply in replies]),
        sport=ports([flow.sport for flow in flows]), dport=ports([flow.dport for flow in flows]),
        reply_sport=ports([reply[1] for reply in replies]), reply_dport=ports([reply[3] for reply in replies]),
        first=times([flow.first for flow in flows]), last=times([flow.last for flow in flows]),
        seen=times([flow.first if flow.seen < 0 else flow.seen for flow in flows]),
        touched=times([flow.last if flow.touched < 0 else flow.touched for flow in flows]),
        serial=ports([flow.serial for flow in flows]),
        translated=np.array([replace(flow, reply=None).replied != flow.replied for flow in flows]), status=zeros,
        tcp_state=np.array([TCP_STATES.index(flow.state) for flow in flows], np.uint8), rows=np.arange(len(flows)),
        owner=zeros, peer_owner=zeros,
    )  # fmt: skip


def variant(number: int, netns: int | None) -> int:
    """The number of the same owner elsewhere, and as one of several."""
    return number + 1000 if netns is None and number != NOBODY else number * 100 + (netns or 0)


def known(*parts: Sequence[Side]) -> Sides:
    """Sides that were told one part after the other."""
    sides = Sides(HERE, variant)
    for part in parts:
        if part:
            sides.add(*rows_of(part))
    return sides


LOCAL = {A, B, "fd00::1", "fd00::2", "127.0.0.1"}


def found(sides: Sides, flows: Sequence[Flow], lag: int = 0) -> list[tuple[int, int]]:
    """The numbers of each flow's source and destination. A, B, fd00::1, fd00::2 are addresses of the namespace."""
    ends = ends_of(flows)
    source = np.array([flow.src in LOCAL for flow in flows])
    destination = np.array([flow.replied[0] in LOCAL for flow in flows])
    return list(zip(*(numbers.tolist() for numbers in sides.owners(ends, source, destination, lag)), strict=True))


FLOW = Flow(A, 4000, B, 443)
DATAGRAMS = replace(FLOW, proto=UDP)
SNAT = Flow(A, 4000, OUTSIDE, 53, UDP, (OUTSIDE, 53, "198.51.100.1", 61000))
DNAT = Flow(OUTSIDE, 4000, "198.51.100.1", 53, UDP, (A, 5353, OUTSIDE, 4000))
CLIENT, SERVER = Side(A, 4000, B, 443, 7), Side(B, 443, A, 4000, 8)

# what; sides; the flow; numbers of its source and its destination
CASES: list[tuple[str, list[Side], Flow, tuple[int, int]]] = [
    ("both ends", [CLIENT, SERVER], FLOW, (7, 8)),
    ("one end", [SERVER], FLOW, (NOBODY, 8)),
    ("nobody", [], FLOW, (NOBODY, NOBODY)),
    ("another protocol", [replace(CLIENT, proto=UDP)], FLOW, (NOBODY, NOBODY)),
    ("another port", [replace(CLIENT, lport=4001), replace(SERVER, rport=4001)], FLOW, (NOBODY, NOBODY)),
    ("another address", [replace(CLIENT, local=OTHER), replace(SERVER, remote=OTHER)], FLOW, (NOBODY, NOBODY)),
    ("IPv6", [Side("fd00::1", 1, "fd00::2", 2, 7)], Flow("fd00::1", 1, "fd00::2", 2), (7, NOBODY)),
    ("a namespace that is not known counts as ours", [replace(CLIENT, netns=0)], FLOW, (7, NOBODY)),
    # NAT: a TCP socket has what it was connected to; headers of datagrams on their way out are those behind NAT.
    ("a TCP client behind DNAT", [Side(A, 4000, OTHER, 80, 7), SERVER],
     Flow(A, 4000, OTHER, 80, TCP, (B, 443, A, 4000)), (7, 8)),
    ("a datagram before SNAT", [Side(A, 4000, OUTSIDE, 53, 7, UDP)], SNAT, (7, NOBODY)),
    ("a datagram seen behind SNAT", [Side("198.51.100.1", 61000, OUTSIDE, 53, 7, UDP)], SNAT, (7, NOBODY)),
    ("TCP is never seen behind SNAT", [Side("198.51.100.1", 61000, OUTSIDE, 53, 7)], replace(SNAT, proto=TCP),
     (NOBODY, NOBODY)),
    ("a server behind DNAT", [Side(A, 5353, OUTSIDE, 4000, 8, UDP)], DNAT, (NOBODY, 8)),
    ("its answers seen behind DNAT", [Side("198.51.100.1", 53, OUTSIDE, 4000, 8, UDP)], DNAT, (NOBODY, 8)),
    # Other namespaces, for addresses that are not of this one.
    ("the socket of a container", [Side(OTHER, 1, OUTSIDE, 2, 7, netns=THERE)], Flow(OTHER, 1, OUTSIDE, 2),
     (7, NOBODY)),
    ("of one of our addresses elsewhere", [replace(CLIENT, netns=THERE)], FLOW, (NOBODY, NOBODY)),
    ("ours before another's", [Side(OTHER, 1, B, 2, 7, netns=THERE), Side(OTHER, 1, B, 2, 6)], Flow(OTHER, 1, B, 2),
     (6, NOBODY)),
    ("two containers with the same ends", [Side(OTHER, 1, OUTSIDE, 2, 7, netns=THERE),
     Side(OTHER, 1, OUTSIDE, 2, 6, netns=ELSEWHERE)], Flow(OTHER, 1, OUTSIDE, 2), (NOBODY, NOBODY)),
    # Sockets that take packets from anywhere.
    ("bound to its address", [Side(B, 443, "", 0, 8, UDP, wild=ANY_REMOTE)], DATAGRAMS, (NOBODY, 8)),
    ("bound to all", [Side(ANY4, 443, "", 0, 8, UDP, wild=ANY_REMOTE | ANY_LOCAL)], DATAGRAMS, (NOBODY, 8)),
    ("the nearer of both", [Side(B, 443, "", 0, 8, UDP), Side(ANY4, 443, "", 0, 9, UDP)], DATAGRAMS, (NOBODY, 8)),
    ("its side with this peer before all", [Side(B, 443, "", 0, 8, UDP), Side(B, 443, A, 4000, 9, UDP)], DATAGRAMS,
     (NOBODY, 9)),
    ("two that share a port", [Side(ANY4, 443, "", 0, 8, UDP), Side(ANY4, 443, "", 0, 9, UDP)], DATAGRAMS,
     (NOBODY, NOBODY)),
    ("two sockets of one process", [Side(ANY4, 443, "", 0, 8, UDP, 50), Side(ANY4, 443, "", 0, 8, UDP, 51)],
     DATAGRAMS, (NOBODY, 8)),
    ("not for addresses of others", [Side(ANY4, 53, "", 0, 8, UDP)], Flow(A, 4000, OUTSIDE, 53, UDP),
     (NOBODY, NOBODY)),
    ("not TCP: it has a socket each", [Side(ANY4, 443, "", 0, 8)], FLOW, (NOBODY, NOBODY)),
    ("all addresses, IPv6", [Side("::", 2, "", 0, 8, UDP)], Flow("fd00::1", 1, "fd00::2", 2, UDP), (NOBODY, 8)),
    ("told by its call, of a socket that is bound to no address", [Side(A, 4000, B, 443, 7, UDP, cookie=5),
     Side(ANY4, 4000, B, 443, 9, UDP, cookie=5, wild=ANY_LOCAL | FIXED)], DATAGRAMS, (9, NOBODY)),
    ("told by its call, of another socket than the one with that address", [Side(A, 4000, B, 443, 7, UDP, cookie=6),
     Side(ANY4, 4000, B, 443, 9, UDP, cookie=5, wild=ANY_LOCAL | FIXED)], DATAGRAMS, (7, NOBODY)),
    # Echo requests.
    ("who asks for an echo", [Side(A, 77, OUTSIDE, 0, 7, ICMP)],
     Flow(A, 77, OUTSIDE, 8 << 8, ICMP, (OUTSIDE, 77, A, 0)), (7, NOBODY)),
    ("nor of a protocol without ports", [Side(A, 0, A, 0, 7, 89)], Flow(A, 0, A, 0, 89), (7, NOBODY)),
    ("never who answers", [Side(A, 77, A, 0, 7, ICMP)], Flow(A, 77, A, 8 << 8, ICMP, (A, 77, A, 0)), (7, NOBODY)),
    # Times.
    ("closed before the flow began", [replace(CLIENT, last=5)], replace(FLOW, first=LATE + 6), (NOBODY, NOBODY)),
    ("closed a moment before", [replace(CLIENT, last=5)], replace(FLOW, first=LATE + 5), (7, NOBODY)),
    ("connected after the flow was seen", [replace(CLIENT, first=11 + LATE)], replace(FLOW, seen=10),
     (NOBODY, NOBODY)),
    ("connected a moment after", [replace(CLIENT, first=10 + LATE)], replace(FLOW, seen=10), (7, NOBODY)),
    ("bound after the flow was seen", [Side(B, 443, "", 0, 8, UDP, wild=ANY_REMOTE, first=11 + LATE)],
     replace(DATAGRAMS, seen=10), (NOBODY, NOBODY)),
    ("accepted while the flow is there", [replace(SERVER, first=5 * SECOND)], FLOW, (NOBODY, 8)),
    ("accepted when all is over", [replace(SERVER, first=5 * SECOND)], replace(FLOW, touched=10, state="TIME_WAIT"),
     (NOBODY, NOBODY)),
    ("accepted before it is over", [replace(SERVER, first=10)], replace(FLOW, touched=10, state="CLOSE"),
     (NOBODY, 8)),
    ("a datagram after the flow ended", [replace(CLIENT, proto=UDP, first=11 + LATE)], replace(DATAGRAMS, last=10),
     (NOBODY, NOBODY)),
    ("a datagram at any time before", [replace(CLIENT, proto=UDP, first=9 * SECOND)], DATAGRAMS, (7, NOBODY)),
    ("datagrams go on with the socket that took over, one of several", [replace(CLIENT, proto=UDP, last=5),
     replace(CLIENT, proto=UDP, number=9, first=6)], DATAGRAMS, (1009, NOBODY)),
]  # fmt: skip


@pytest.mark.parametrize(("sides", "flow", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_cases(sides: list[Side], flow: Flow, expected: tuple[int, int]) -> None:
    """Each end of a flow has the owner of the side that it is, and nobody where that is not certain."""
    assert found(known(sides), [flow]) == [expected]
    assert found(known(*([side] for side in reversed(sides))), [flow, FLOW])[0] == expected


REUSED = [replace(CLIENT, first=0, last=5000), replace(CLIENT, number=9, first=6000, last=9000)]

# what; times of two flows with the same ends; the owners of their sources
AGAIN = [
    ("far from each other", [(0, 5000), (6000, 9000)], 0, [7, 9]),
    ("within the delay of reading", [(0, 5000), (6000, 9000)], 150_000, [7, 9]),
    ("their ends not read yet", [(0, 10**12), (6000, 10**12)], 150_000, [7, 9]),
]


@pytest.mark.parametrize(("times", "lag", "expected"), [case[1:] for case in AGAIN], ids=[case[0] for case in AGAIN])
@pytest.mark.parametrize("turned", [False, True])
def test_ports_used_again(times: list[tuple[int, int]], lag: int, expected: list[int], turned: bool) -> None:
    """Connections of the same ends that follow each other get the owners of the sockets that followed each other."""
    flows = [replace(FLOW, first=first, last=last, serial=i) for i, (first, last) in enumerate(times)]
    if turned:
        flows, expected = flows[::-1], expected[::-1]
    assert [source for source, _ in found(known(REUSED), flows, lag)] == expected


def test_ports_used_again_unseen() -> None:
    """Where there are more sockets than flows whose times tell them apart, nobody is named."""
    assert found(known(REUSED), [replace(FLOW, first=5500, last=5600)]) == [(NOBODY, NOBODY)]


def test_told_anew() -> None:
    """What is told later of a side counts, but it begins when it was told of first."""
    sides = known([replace(CLIENT, first=100)], [replace(CLIENT, number=9, cookie=1007, first=50 * SECOND)])
    assert len(sides) == 2
    assert found(sides, [FLOW]) == [(9, NOBODY)]
    assert len(sides) == 1


def test_told_of_nobody() -> None:
    """Where the latest word on a side names nobody, the last one that did counts, but for when it ended."""
    sides = known([CLIENT], [replace(CLIENT, number=NOBODY, cookie=1007, last=10)])
    assert found(sides, [FLOW, replace(FLOW, first=LATE + 11)]) == [(7, NOBODY), (NOBODY, NOBODY)]


def test_news() -> None:
    """Flows are asked for again when there is news at one of their ends, and while they are young."""
    sides = known([CLIENT], [Side("198.51.100.1", 61000, OUTSIDE, 53, 6, UDP)])
    old, young = T + 10, T - 10
    flows = [FLOW, Flow(B, 1, OTHER, 2), SNAT, replace(FLOW, sport=4001)]
    news = sides.news()
    assert sides.asked(ends_of(flows), news, old).rows.tolist() == [0, 2]
    assert sides.asked(ends_of(flows), sides.news(), old).rows.tolist() == []
    assert sides.asked(ends_of(flows), news, young).rows.tolist() == [0, 1, 2, 3]
    assert sides.asked(ends_of([replace(FLOW, seen=20), FLOW]), sides.news(), old).rows.tolist() == [0]


def used(*users: tuple[int, int]) -> tuple[NDArray[Any], NDArray[np.uint32]]:
    """USERS rows of (cookie, number)."""
    rows = np.zeros(len(users), USERS)
    rows["cookie"], rows["pid"] = [user[0] for user in users], [user[1] for user in users]
    return rows, np.array([user[1] for user in users], np.uint32)


def test_use() -> None:
    """Who was seen using a socket is at all its sides, but at those that were fixed; and that is news."""
    sides = known([CLIENT, replace(SERVER, cookie=5), Side(B, 443, OTHER, 1, 6, cookie=5, wild=FIXED)])
    sides.news()
    sides.use(*used((5, 20), (6, 21), (4, 22)))
    flows = [FLOW, Flow(B, 443, OTHER, 1)]
    assert found(sides, flows) == [(7, 20), (6, NOBODY)]
    assert sides.asked(ends_of(flows), sides.news(), T + SECOND).rows.tolist() == [0]
    sides.use(*used((5, 20)))
    assert len(sides.news()) == 0
    assert sides.numbers().tolist() == [6, 7, 20]


def test_use_elsewhere() -> None:
    """A user in another network namespace has a number of its own there."""
    sides = known([Side(OTHER, 1, OUTSIDE, 2, 7, cookie=5, netns=THERE)])
    sides.use(*used((5, 20)))
    assert found(sides, [Flow(OTHER, 1, OUTSIDE, 2)]) == [(2002, NOBODY)]


def test_use_of_nothing() -> None:
    """Users of sockets without sides, and no users at all, change nothing."""
    sides = Sides(HERE, variant)
    sides.use(*used((5, 20)))
    sides.add(*rows_of([CLIENT]))
    sides.use(*used())
    assert sides.numbers().tolist() == [7]


def test_closed_with_any_peer() -> None:
    """A socket without connections that was closed is at none of its peers any more."""
    one, other = Side(A, 1, B, 2, 7, UDP, 5), Side(A, 1, OTHER, 2, 7, UDP, 5, time=3)
    sides = known([one, other], [replace(one, last=10)])
    flows = [replace(flow, first=SECOND) for flow in (Flow(A, 1, B, 2, UDP), Flow(A, 1, OTHER, 2, UDP))]
    assert found(sides, flows) == [(NOBODY, NOBODY)] * 2


def test_forget() -> None:
    """Sides are kept while they are open, and for a while after their end."""
    sides = known([CLIENT, replace(SERVER, last=10)])
    sides.forget(T + 10 * SECOND)
    assert sides.numbers().tolist() == [7, 8]
    sides.forget(T + 21 * SECOND)
    assert sides.numbers().tolist() == [7]
    sides.forget(T + 10**6 * SECOND)
    assert len(sides) == 1


def test_forget_old_peers() -> None:
    """Of a socket with many peers the last is kept, and those that it was with lately."""
    sides = known([Side(A, 1, B, port, port, UDP, 5, time=port * 100 * SECOND) for port in range(1, 6)])
    sides.forget(T + 650 * SECOND)
    assert sides.numbers().tolist() == [4, 5]
    sides.forget(T + 10**6 * SECOND)
    assert sides.numbers().tolist() == [5]


def test_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are never more sides than the bound: those that ended go first, and then the oldest."""
    monkeypatch.setattr(owners, "_MOST", 10)
    ended = [Side(A, port, B, 1, 100 + port, first=port, last=port) for port in range(1, 9)]
    still = [Side(A, port, B, 2, 200 + port, time=port) for port in range(1, 9)]
    sides = known(ended, still)
    sides.forget(T)
    assert len(sides) <= 10
    assert set(sides.numbers().tolist()) >= {200 + port for port in range(1, 9)}
    sides.add(*rows_of([Side(A, port, B, 3, 300 + port, time=100 + port) for port in range(1, 9)]))
    sides.forget(T)
    assert len(sides) <= 10
    assert set(sides.numbers().tolist()) >= {300 + port for port in range(1, 9)}


# ------------------------------------------------------------------ a dumb reference

ADDRESSES = (A, B, OTHER)
End = tuple[str, int, str, int]


class Reference:
    """The same in plain words: one side after the other, one flow after the other."""

    def __init__(self, told: Sequence[Side]) -> None:
        self.sides: list[Side] = []
        for side in told:
            same = [one for one in self.sides if identity(one) == identity(side)]
            first = min([side.first, *(one.first for one in same)])
            named = next((one for one in (side, *same) if one.number != NOBODY), side)
            self.sides = [one for one in self.sides if one not in same]
            netns = max([side.netns, *(one.netns for one in same)])
            self.sides.append(replace(side, first=first, number=named.number, pid=named.pid, netns=netns))
        closed = [one for one in self.sides if one.proto == UDP and one.last >= 0]
        self.ends = {one.cookie: one for one in closed}
        self.clear = len(self.ends) == len(closed)  # which of several ends of one socket counts is left open
        self.sides = [self._ended(one) for one in self.sides]

    def _ended(self, side: Side) -> Side:
        """A side of a datagram socket of which another one told that it was closed, and by whom it was used."""
        by = self.ends.get(side.cookie)
        if by is None or side.proto != UDP or side.last >= 0:
            return side
        used = by if by.number != NOBODY else side
        return replace(side, last=by.last, number=used.number, pid=used.pid)

    def look(self, end: End, flow: Flow, own: bool, until: int, alone: bool = False) -> tuple[int, bool]:
        """The number of the latest side of these ends whose time meets the flow's, and whether it may be another."""
        fits = [
            side
            for side in sorted(self.sides, key=lambda side: -side.first)
            if (side.local, side.lport, side.remote, side.rport) == end and side.proto == flow.proto
            if (side.netns == HERE) == own and side.first <= until + LATE
            if side.last < 0 or side.last >= flow.first - LATE
        ]
        if not fits:
            return NOBODY, False
        several = any(side.number != fits[0].number for side in fits)
        doubt = several and (flow.proto == TCP or not own or alone)
        return variant(fits[0].number, None) if several and not doubt else fits[0].number, doubt

    def exact(self, end: End, flows: Sequence[Flow], which: int, ends: Sequence[End], until: Sequence[int]) -> int:
        """The owner of an end; of TCP connections that cannot be told apart, by their order."""
        flow = flows[which]
        number, doubt = self.look(end, flow, True, until[which])
        if flow.proto == TCP:
            group = [i for i, its in enumerate(ends) if its == end and flows[i].proto == TCP]
            if any(self.look(end, flows[i], True, until[i])[1] for i in group):
                begin = min(flows[i].first for i in group) - LATE
                sides = [
                    side
                    for side in sorted(self.sides, key=lambda side: side.first)
                    if (side.local, side.lport, side.remote, side.rport, side.proto, side.netns) == (*end, TCP, HERE)
                    if side.last < 0 or side.last >= begin
                ]
                if len(sides) == len(group):
                    number = sides[group.index(which)].number
                elif doubt:
                    number = NOBODY
        if number == NOBODY and end[0] not in LOCAL:
            other, doubt = self.look(end, flow, False, until[which])
            number = NOBODY if doubt else other
        return number

    def owner(self, flows: Sequence[Flow], which: int, at_source: bool) -> int:
        """The owner of one end of one of the flows."""
        originals = [(flow.src, flow.sport, flow.dst, flow.dport) for flow in flows]
        replies = [flow.replied for flow in flows]
        ends, others = (originals, replies) if at_source else (replies, originals)
        until = [
            flow.last if flow.proto == UDP else flow.seen if at_source else
            flow.touched if flow.state == "CLOSE" else flow.last
            for flow in flows
        ]  # fmt: skip
        flow, end = flows[which], ends[which]
        number = self.exact(end, flows, which, ends, until)
        if flow.proto == UDP:
            if any(side.local == ANY4 and side.remote for side in self.sides):
                number = self.look((ANY4, *end[1:]), flow, True, flow.last)[0] or number
            if number == NOBODY and flow.reply is not None:
                turned = (*others[which][2:], *others[which][:2])
                number = self.look(turned, flow, True, flow.last)[0]
                if number == NOBODY and end[0] not in LOCAL:
                    other, doubt = self.look(turned, flow, False, flow.last)
                    number = NOBODY if doubt else other
            for wild in ((end[0], end[1], "", 0), (ANY4, end[1], "", 0)):
                if number == NOBODY and end[0] in LOCAL:
                    number, doubt = self.look(wild, flow, True, flow.seen, alone=True)
                    number = NOBODY if doubt else number
        return number


def identity(side: Side) -> tuple[object, ...]:
    """What makes a side one side: its socket, which has a cookie that no other has, and its ends."""
    return side.cookie, 0 if side.cookie else side.netns, side.local, side.lport, side.remote, side.rport, side.proto


# So few that they meet: the second port is rare.
address, port, proto = st.sampled_from(ADDRESSES), st.sampled_from([1] * 9 + [2]), st.sampled_from([TCP, UDP])
moment = st.integers(0, 8).map(lambda value: value * LATE // 2)
remotes = st.one_of(st.tuples(address, port), st.tuples(address, port), st.just(("", 0)))
told_sides = st.lists(
    st.builds(
        lambda local, lport, remote, number, proto, cookie, netns, last, time: Side(
            local, lport, remote[0], remote[1], number, proto, cookie, netns, number,
            wild=ANY_LOCAL * (local == ANY4) | ANY_REMOTE * (not remote[0]), time=time, last=last,
        ),
        st.sampled_from([A, B, OTHER, ANY4]), port, remotes, st.integers(0, 6), proto, st.integers(1, 6),
        st.sampled_from([HERE, HERE, THERE, ELSEWHERE]), st.one_of(st.just(-1), moment), moment,
    ),
    min_size=1, max_size=12,
)  # fmt: skip
some_flows = st.lists(
    st.builds(
        lambda src, sport, dst, dport, proto, reply, first, seen, touched, over: Flow(
            src, sport, dst, dport, proto, reply, first, first + seen + touched, 0, first + seen,
            first + seen + touched // 2, "CLOSE" if over else "ESTABLISHED",
        ),
        address, port, address, port, proto, st.one_of(st.none(), st.tuples(address, port, address, port)), moment,
        moment, moment, st.booleans(),
    ),
    min_size=1, max_size=6,
)  # fmt: skip


@given(told_sides, some_flows, st.permutations(range(12)), st.lists(st.integers(0, 12), max_size=3))
def test_as_the_reference(told: list[Side], flows: list[Flow], order: list[int], cuts: list[int]) -> None:
    """Whatever sides are told in whatever portions, flows have the owners that a plain search finds."""
    told = [replace(side, first=order[i] * LATE // 3) for i, side in enumerate(told)]
    flows = [
        replace(flow, serial=i, reply=None if flow.reply == replace(flow, reply=None).replied else flow.reply)
        for i, flow in enumerate(flows)
    ]
    bounds = [0, *sorted(min(cut, len(told)) for cut in cuts), len(told)]
    sides = known(*(told[low:high] for low, high in itertools.pairwise(bounds)))
    reference = Reference(told)
    assume(reference.clear)
    expected = [(reference.owner(flows, i, True), reference.owner(flows, i, False)) for i in range(len(flows))]
    assert found(sides, flows) == expected
