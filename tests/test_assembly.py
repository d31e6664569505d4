"""Single steps to packets."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.assembly import Assembler, LegacyStep, NftStep, Passage
from conntracker.steps import Packet
from conntracker.wire.nftrace import TraceMessage
from support.tracing import error, forwarded, icmp, ip, legacy, own, tcp, traced, udp

CLIENT, SERVER, ROUTER = "10.0.0.1", "10.0.0.2", "192.0.2.1"
DATA = ip(CLIENT, SERVER, tcp(1000, 80))
SIX = "2001:db8::1", "2001:db8::2"
MS = 1000


def fed(messages: list[TraceMessage], now: int = 1000) -> Assembler:
    """An assembler that was fed messages, a microsecond apart."""
    assembler = Assembler()
    for at, message in enumerate(messages, now):
        assembler.feed(message, at)
    return assembler


def rule(id: int, handle: int, verdict: str = "continue", data: bytes = b"") -> TraceMessage:
    """The message of a rule in a chain that is not ours."""
    return traced(id, "inet fw forward", verdict, handle, data)


def handles(passage: Passage) -> list[int | None]:
    """The handles of a passage's nft steps."""
    return [step.place.handle for step in passage.nft if isinstance(step, NftStep)]


def numbers(passage: Passage) -> list[tuple[str, int]]:
    """Chain and number of a passage's legacy steps."""
    return [(step.message.chain, step.message.number) for step in passage.legacy]


# --- nf_tables -----------------------------------------------------------------------------------------------------


def test_from_beginning_to_end() -> None:
    """A packet has its steps and the hooks that it was seen at, in order, and is over when it left."""
    left = ip(ROUTER, SERVER, tcp(2000, 80))
    steps = [rule(7, 4, data=DATA), rule(7, 5, "accept")]
    begin, *middle, forward, post = forwarded(7, DATA, steps, left)
    assembler = fed([begin, *middle, forward, post._replace(ct_id=99)])
    (passage,) = assembler.take(1010)
    assert passage.nft == [
        "prerouting", NftStep(steps[0].place, 0, False, True), NftStep(steps[1].place, 0, False, False),
    ]  # fmt: skip
    assert passage.seen == ["prerouting", "forward", "postrouting"]
    assert (passage.born, passage.touched, passage.ended) == (1000, 1004, 1004)
    assert (passage.iif, passage.oif, passage.ct_id, passage.complete) == (2, 3, 99, True)
    assert passage.headers is not None
    assert passage.headers.packet == Packet(4, 6, int(ip_address(CLIENT)), int(ip_address(SERVER)), 1000, 80)
    assert passage.left == Packet(4, 6, int(ip_address(ROUTER)), int(ip_address(SERVER)), 2000, 80)
    assert len(assembler) == 0


WAYS = [
    ([own(1, "pre", DATA, iif=2), own(1, "input", DATA, iif=2)], ["prerouting", "input"], True),
    ([own(1, "out", DATA), own(1, "post", DATA, oif=3)], ["output", "postrouting"], True),
    ([own(1, "out", DATA), own(1, "post", DATA, oif=1)], ["output", "postrouting"], False),
    ([own(1, "pre", DATA, iif=2), own(1, "forward", DATA, iif=2, oif=3)], ["prerouting", "forward"], False),
    ([own(1, "pre", DATA, iif=2), rule(1, 3, "drop", DATA)], ["prerouting"], True),
    ([own(1, "pre", DATA, iif=2), rule(1, 3, "accept", DATA)], ["prerouting"], False),
    ([own(1, "ingress", DATA, family="netdev", iif=2), rule(1, 3, "drop", DATA)], ["ingress"], True),
    ([own(1, "pre", DATA, family="bridge", iif=2), own(1, "input", DATA, family="bridge", iif=2)],
     ["prerouting"], False),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "seen", "over"), WAYS)
def test_when_a_packet_is_over(messages: list[TraceMessage], seen: list[str], over: bool) -> None:
    """What arrived, left or was dropped is over at once; what is on its way, through loopback too, is not."""
    assembler = fed(messages)
    (passage,) = assembler
    assert passage.seen == seen
    assert assembler.take(1000 + MS) == [passage] * over


def test_ids_are_used_again() -> None:
    """720 packets with 49 ids are 720 passages, each with its own steps."""
    assembler = Assembler()
    for i in range(720):
        data = ip(CLIENT, SERVER, tcp(1000, 80, i), number=i)
        for message in forwarded(i % 49, data, [rule(i % 49, 2 * i, data=data), rule(i % 49, 2 * i + 1, "accept")]):
            assembler.feed(message, 1000 + i)
    assert [handles(passage) for passage in assembler.take(10_000)] == [[2 * i, 2 * i + 1] for i in range(720)]
    assert (len(assembler), assembler.headless) == (0, 0)


def test_an_id_is_used_again_before_its_packet_is_over() -> None:
    """A packet that begins with the id of one that is under way is another one."""
    assembler = fed([
        own(1, "pre", DATA, iif=2), rule(1, 3, data=DATA), own(1, "pre", DATA, iif=2), rule(1, 4, data=DATA),
    ])  # fmt: skip
    assert [handles(passage) for passage in assembler.take(2000, final=True)] == [[3], [4]]


def test_loopback() -> None:
    """A packet that comes in through loopback under another id is the one that went out."""
    assembler = fed([
        own(1, "out", DATA), rule(1, 3, data=DATA), own(1, "post", DATA, oif=1),
        own(2, "pre", DATA, iif=1), rule(2, 4, data=DATA), own(2, "input", DATA, iif=1),
    ])  # fmt: skip
    (passage,) = assembler.take(2000)
    assert passage.seen == ["output", "postrouting", "prerouting", "input"]
    assert [one if isinstance(one, str) else one.place.handle for one in passage.nft] == ["output", 3, "prerouting", 4]
    assert (passage.iif, passage.oif) == (1, 1)


def test_alike_packets_through_loopback() -> None:
    """Of two packets that look alike, each comes in once."""
    data = ip(*SIX, udp(1000, 53), 17)
    assembler = fed([
        own(1, "out", data), own(1, "post", data, oif=1), own(2, "out", data), own(2, "post", data, oif=1),
        own(3, "pre", data, iif=1), own(3, "input", data, iif=1), own(4, "pre", data, iif=1), rule(4, 9, "drop", data),
    ])  # fmt: skip
    assert [handles(passage) for passage in assembler.take(2000)] == [[], [9]]


def test_another_packet_through_loopback() -> None:
    """What comes in through loopback and never went out is a packet of its own."""
    other = ip(CLIENT, SERVER, tcp(1000, 80), number=8)
    assembler = fed([own(1, "out", DATA), own(1, "post", DATA, oif=1), own(2, "pre", other, iif=1)])
    assert len(assembler) == 2


@pytest.mark.parametrize("first", [1, 2])
def test_another_instance(first: int) -> None:
    """Two instances that mark the same packet make one passage of it, without steps of their own."""
    second = 3 - first
    assembler = fed([
        own(7, "new_flow4", DATA, first, iif=2), own(7, "pre", DATA, second, iif=2), rule(7, 3, "accept", DATA),
        own(7, "forward", DATA, first, iif=2, oif=3), own(7, "forward", DATA, second, iif=2, oif=3),
        own(7, "post", DATA, first, iif=2, oif=3), own(7, "post", DATA, second, iif=2, oif=3),
    ])  # fmt: skip
    (passage,) = assembler.take(2000)
    assert (handles(passage), passage.seen) == ([3], ["prerouting", "forward", "postrouting"])


def test_another_instance_at_output() -> None:
    """The same holds for packets that are made here."""
    assembler = fed([own(7, "new_flow4", DATA), own(7, "out", DATA, 2), own(7, "post", DATA, oif=3)])
    (passage,) = assembler.take(2000)
    assert passage.seen == ["output", "postrouting"]


def test_a_table_that_is_only_named_like_ours() -> None:
    """A table of somebody else whose name begins like ours has steps."""
    assembler = fed([own(7, "pre", DATA, iif=2), traced(7, "inet conntracker_x input", "drop", 5, DATA)])
    (passage,) = assembler.take(2000)
    assert handles(passage) == [5]


def test_ingress_then_prerouting() -> None:
    """A packet that began at ingress goes on at prerouting."""
    assembler = fed([
        own(7, "ingress", DATA, family="netdev", iif=2), traced(7, "netdev in in", "accept", 3, DATA),
        own(7, "pre", DATA, iif=2), rule(7, 4, "drop", DATA),
    ])  # fmt: skip
    (passage,) = assembler.take(2000)
    assert (handles(passage), passage.seen) == ([3, 4], ["ingress", "prerouting"])


def test_through_a_bridge_to_the_host() -> None:
    """A packet that a bridge hands to the host goes on at prerouting of IP."""
    assembler = fed([
        own(7, "pre", DATA, family="bridge", iif=2), traced(7, "bridge br input", "accept", 3, DATA),
        own(7, "input", DATA, family="bridge", iif=2), own(7, "pre", DATA, iif=4), rule(7, 4, "accept", DATA),
        own(7, "input", DATA, iif=4),
    ])  # fmt: skip
    (passage,) = assembler.take(2000)
    assert (handles(passage), passage.seen) == ([3, 4], ["prerouting", "input"])


def test_from_a_bridge_that_calls_iptables() -> None:
    """With bridge-nf-call-iptables a bridge meets prerouting of IP, and the host goes on with another number."""
    assembler = fed([
        own(7, "new_flow4", DATA, iif=5), rule(8, 3, "accept", DATA), own(8, "forward", DATA, iif=5, oif=3),
        own(8, "post", DATA, oif=3),
    ])  # fmt: skip
    (passage,) = assembler.take(2000, final=True)
    assert (handles(passage), passage.seen) == ([3], ["prerouting", "forward", "postrouting"])


def test_routed_into_a_bridge() -> None:
    """A packet that leaves IP through a bridge goes on in the bridge's hooks."""
    assembler = fed([
        *forwarded(7, DATA, []), own(7, "out", DATA, family="bridge", oif=5),
        traced(7, "bridge br out", "drop", 4, DATA),
    ])  # fmt: skip
    (passage,) = assembler.take(2000)
    assert handles(passage) == [4]


def test_the_answer_of_a_reject_is_another_packet() -> None:
    """The answer begins before the rule's verdict arrives, and neither gets the other's steps."""
    answer = ip(SERVER, CLIENT, tcp(80, 1000), number=0)
    assembler = fed([
        own(1, "pre", DATA, iif=2), rule(1, 3, "continue", DATA), own(2, "out", answer),
        traced(2, "inet fw output", "accept", 9, answer), own(2, "post", answer, oif=2), rule(1, 4, "drop"),
    ])  # fmt: skip
    rejected, answered = assembler.take(2000)
    assert (handles(rejected), handles(answered)) == ([3, 4], [9])


def test_somebody_elses_trace() -> None:
    """A packet that only another rule traces begins with its first step; hooks whose end it reaches are seen."""
    assembler = fed([
        rule(5, 3, data=DATA), rule(5, 4, "accept"), own(5, "forward", DATA, oif=3), own(5, "post", DATA, oif=3),
    ])  # fmt: skip
    (passage,) = assembler.take(2000)
    assert (handles(passage), passage.seen, assembler.headless) == ([3, 4], ["forward", "postrouting"], 0)


@pytest.mark.parametrize("settling", [False, True])
def test_somebody_elses_trace_with_the_id_of_a_packet_that_is_gone(settling: bool) -> None:
    """A first step with the headers of another packet is that packet's, though the last owner of the id is kept."""
    other = ip(CLIENT, SERVER, tcp(1000, 80, 500), number=8)
    assembler = fed(forwarded(5, DATA, [rule(5, 3, "accept", DATA)]))
    assembler.legacy = settling
    if settling:
        assert assembler.take(2000) == []
    assembler.feed(rule(5, 4, "accept", other), 2000)
    assert [handles(passage) for passage in assembler.take(3000, final=True)] == [[3], [4]]


HEADLESS = [
    (rule(5, 3), 1),
    (traced(5, "inet fw forward", "drop"), 1),
    (rule(5, 3, data=b"\x45\0"), 1),
    (own(5, "post", DATA, oif=3), 0),
    (own(5, "pre", b"", iif=2), 0),
    (own(5, "pre", b"\x50" + bytes(60), iif=2), 0),
]


@pytest.mark.parametrize(("message", "count"), HEADLESS)
def test_steps_of_an_unknown_packet(message: TraceMessage, count: int) -> None:
    """A step of which nothing says whose it is makes no packet and is counted; our own messages are no steps."""
    assembler = fed([message])
    assert (len(assembler), assembler.headless) == (0, count)


def test_idle() -> None:
    """A packet of which nothing more is heard is given out after half a second."""
    assembler = fed([own(1, "pre", DATA, iif=2), rule(1, 3, "accept", DATA)], now=0)
    assert assembler.take(500 * MS) == []
    assert len(assembler.take(501 * MS)) == 1


def test_a_queue_is_waited_for() -> None:
    """A packet that waits for a program is given three seconds, and what comes then is its."""
    assembler = fed([own(1, "pre", DATA, iif=2), rule(1, 3, "queue", DATA)], now=0)
    assert assembler.take(2900 * MS) == []
    for message in (rule(1, 4, "accept"), own(1, "forward", DATA, oif=3), own(1, "post", DATA, oif=3)):
        assembler.feed(message, 2900 * MS)
    assert [handles(passage) for passage in assembler.take(2900 * MS)] == [[3, 4]]
    never = fed([own(1, "pre", DATA, iif=2), rule(1, 3, "queue", DATA)], now=0)
    assert len(never.take(3001 * MS)) == 1


def test_left_of_a_packet_with_extension_headers() -> None:
    """Behind extension headers, what a packet came as and what it left as are the same if nothing changed."""
    data = ip(*SIX, tcp(1000, 80), hop_by_hop=True)
    assembler = fed([own(1, "mark6_tcp", data, iif=2), own(1, "input", data, iif=2)])
    (passage,) = assembler.take(2000)
    assert passage.headers is not None
    assert (passage.headers.packet.proto, passage.headers.packet.dport) == (6, 80)
    assert passage.left == passage.headers.packet


def test_messages_were_lost() -> None:
    """What is under way when messages are lost, or fed until nothing more waits, may lack steps; later ones not."""
    assembler = fed([own(1, "pre", DATA, iif=2)])
    assembler.lost()
    assembler.feed(own(2, "pre", DATA, iif=2), 2000)
    assembler.drained(2500)
    assembler.feed(own(3, "pre", DATA, iif=2), 3000)
    assert [passage.complete for passage in assembler.take(4000, final=True)] == [False, False, True]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=30))
def test_births_are_in_order(times: list[int]) -> None:
    """No two packets are born at once, whatever the clock says."""
    assembler = Assembler()
    for id, now in enumerate(times):
        assembler.feed(own(id, "pre", DATA, iif=2), now)
    births = [passage.born for passage in assembler.take(100, final=True)]
    assert births == sorted(set(births))
    assert len(births) == len(times)


# --- changes of the rules ------------------------------------------------------------------------------------------


def near(assembler: Assembler) -> list[tuple[int | None, int, bool]]:
    """(handle, epoch, near) of all steps."""
    steps = [step for passage in assembler.take(10**9, final=True) for step in passage.nft if isinstance(step, NftStep)]
    return [(step.place.handle, step.epoch, step.near) for step in steps]


def test_what_came_just_before_a_change() -> None:
    """Steps of the 20 ms before the last moment when nothing waited may be of the new rules; older ones are not."""
    assembler = Assembler()
    assembler.feed(own(1, "pre", DATA, iif=2), 0)
    for handle, now in ((1, 10 * MS), (2, 30 * MS), (3, 31 * MS), (4, 50 * MS)):
        assembler.feed(rule(1, handle, data=DATA), now)
    assembler.drained(50 * MS)
    assembler.feed(rule(1, 5), 90 * MS)
    assembler.rules_changed()
    assembler.feed(rule(1, 6), 91 * MS)
    assert near(assembler) == [
        (1, 0, False), (2, 0, False), (3, 0, True), (4, 0, True), (5, 0, True), (6, 1, False),
    ]  # fmt: skip


def test_two_changes() -> None:
    """A step is near the change that came next, and not a later one."""
    assembler = Assembler()
    assembler.feed(own(1, "pre", DATA, iif=2), 0)
    assembler.feed(rule(1, 1, data=DATA), 1)
    assembler.drained(50 * MS)
    assembler.rules_changed()
    assembler.feed(rule(1, 2), 50 * MS)
    assembler.rules_changed()
    assembler.feed(rule(1, 3), 50 * MS)
    assert near(assembler) == [(1, 0, False), (2, 1, True), (3, 2, False)]


def test_the_newest_thousand_messages() -> None:
    """Of a burst, the last 1024 messages before a change are near."""
    assembler = Assembler()
    assembler.feed(own(1, "pre", DATA, iif=2), 0)
    for handle in range(1030):
        assembler.feed(rule(1, handle, data=DATA), 1)
    assembler.rules_changed()
    assert [handle for handle, _, is_near in near(assembler) if not is_near] == list(range(6))


# --- legacy --------------------------------------------------------------------------------------------------------


def with_legacy(messages: list[TraceMessage], now: int = 1000) -> Assembler:
    """As `fed`, where legacy logs are waited for."""
    assembler = fed(messages, now)
    assembler.legacy = True
    return assembler


def test_logs_are_waited_for() -> None:
    """Where there are legacy rules, a packet that is gone stays for 150 ms after what was last heard of it."""
    assembler = with_legacy(forwarded(1, DATA, []), now=0)
    assert assembler.take(100 * MS) == []
    assembler.feed_legacy([legacy("forward", "ip filter FORWARD", "policy", 1, DATA)], 100 * MS)
    assert assembler.take(250 * MS) == []
    (passage,) = assembler.take(251 * MS)
    assert (numbers(passage), passage.touched) == ([("FORWARD", 1)], 100 * MS)


ACROSS = [
    ("as it came", ip(CLIENT, SERVER, tcp(1000, 80)), True),
    ("behind DNAT", ip(CLIENT, ROUTER, tcp(1000, 8080)), True),
    ("from another address", ip(ROUTER, SERVER, tcp(1000, 80)), False),
    ("from another port", ip(CLIENT, SERVER, tcp(1001, 80)), False),
    ("with another id", ip(CLIENT, SERVER, tcp(1000, 80), number=8), False),
    ("with another sequence number", ip(CLIENT, SERVER, tcp(1000, 80, 2)), False),
]


@pytest.mark.parametrize(("data", "same"), [case[1:] for case in ACROSS], ids=[case[0] for case in ACROSS])
def test_whose_log_it_is(data: bytes, same: bool) -> None:
    """A log is that of the packet with its identity and its source, wherever NAT sends it."""
    assembler = with_legacy(forwarded(1, DATA, []))
    assembler.feed_legacy([legacy("forward", "ip filter FORWARD", "rule", 1, data)], 2000)
    first, *others = assembler.take(10**6, final=True)
    assert (len(first.legacy), len(others)) == ((1, 0) if same else (0, 1))


def test_logs_behind_snat_and_loopback() -> None:
    """A packet whose source was changed on its way out is found by its new one, too, where it comes in again."""
    changed = ip(ROUTER, SERVER, tcp(2000, 80))
    assembler = with_legacy([
        own(1, "out", DATA), own(1, "post", changed, oif=1), own(2, "pre", changed, iif=1),
        own(2, "input", changed, iif=1),
    ])  # fmt: skip
    assembler.feed_legacy(
        [
            legacy("output", "ip filter OUTPUT", "policy", 1, DATA, iif=0, oif=1),
            legacy("postrouting", "ip nat POSTROUTING", "rule", 1, DATA, iif=0, oif=1),
            legacy("input", "ip filter INPUT", "policy", 1, changed, iif=1),
        ],
        2000,
    )
    (passage,) = assembler.take(10**6)
    assert numbers(passage) == [("OUTPUT", 1), ("POSTROUTING", 1), ("INPUT", 1)]


ALIKE = ip(*SIX, udp(1000, 53), 17)


def walked(*steps: tuple[str, str, str, int]) -> list[LegacyStep]:
    """The logs of a packet that looks like others."""
    return [legacy(hook, f"ip6 {table} {chain}", "rule", number, ALIKE) for hook, table, chain, number in steps]


TWICE = [
    walked(("prerouting", "raw", "PREROUTING", 1), ("input", "filter", "INPUT", 1)),
    walked(("input", "filter", "INPUT", 1), ("input", "filter", "INPUT", 3)),
    walked(("prerouting", "mangle", "PREROUTING", 1), ("forward", "filter", "FORWARD", 1),
           ("postrouting", "mangle", "POSTROUTING", 1)),
    walked(("input", "filter", "INPUT", 1), ("input", "filter", "sub", 1), ("input", "filter", "INPUT", 2)),
    walked(("input", "filter", "INPUT", 1), ("input", "filter", "sub", 1)),
]  # fmt: skip


@pytest.mark.parametrize("steps", TWICE)
def test_alike_packets_one_after_the_other(steps: list[LegacyStep]) -> None:
    """Two datagrams that nothing tells apart get a walk each."""
    assembler = with_legacy([own(id, "mark6_udp", ALIKE, iif=2) for id in (1, 2)])
    assembler.feed_legacy(steps * 2, 2000)
    assert [passage.legacy for passage in assembler.take(10**6)] == [steps, steps]


@pytest.mark.parametrize(
    ("verdict", "apart"),
    [
        ("accept", [[("INPUT", 1)], [("INPUT", 2)]]),
        ("drop", [[("INPUT", 1)], [("INPUT", 2)]]),
        ("continue", [[("INPUT", 1), ("INPUT", 2)], []]),
        (None, [[("INPUT", 1), ("INPUT", 2)], []]),
    ],
)
def test_what_a_rule_did_tells_alike_packets_apart(verdict: str | None, apart: list[list[tuple[str, int]]]) -> None:
    """A packet that a rule accepted or dropped meets no other rule of that chain: the next log is another packet's."""
    assembler = with_legacy([own(id, "mark6_udp", ALIKE, iif=2) for id in (1, 2)])
    assembler.verdict = lambda message: verdict
    steps = walked(("input", "filter", "INPUT", 1), ("input", "filter", "INPUT", 2))
    assembler.feed_legacy(steps, 2000)
    assert [numbers(passage) for passage in assembler.take(10**6)] == apart


def test_a_copy_of_a_packet() -> None:
    """A copy that is sent from here (TEE) looks like the packet: each gets the logs of its own hooks."""
    assembler = with_legacy([own(1, "new_flow4", DATA, iif=2), own(2, "new_flow4", DATA)])
    logs = [
        legacy("output", "ip filter OUTPUT", "rule", 1, DATA, iif=0, oif=4),
        legacy("prerouting", "ip raw PREROUTING", "policy", 1, DATA),
        legacy("forward", "ip filter FORWARD", "rule", 1, DATA, oif=3),
    ]
    assembler.feed_legacy(logs, 2000)
    assert [passage.legacy for passage in assembler.take(10**6)] == [logs[1:], logs[:1]]


def test_alike_packets_at_once() -> None:
    """Two datagrams that nothing tells apart, hook by hook side by side, get a walk each."""
    raw, mangle, last = walked(
        ("prerouting", "raw", "PREROUTING", 1), ("input", "mangle", "INPUT", 1), ("input", "filter", "INPUT", 1)
    )
    assembler = with_legacy([own(id, "mark6_udp", ALIKE, iif=2) for id in (1, 2)])
    assembler.feed_legacy([raw, raw, mangle, mangle, last, last], 2000)
    assert [passage.legacy for passage in assembler.take(10**6)] == [[raw, mangle, last]] * 2


def test_logs_that_come_first() -> None:
    """Logs that are read before their packet's beginning wait for it."""
    assembler = with_legacy([])
    assembler.feed_legacy([legacy("prerouting", "ip raw PREROUTING", "policy", 1, DATA)], 0)
    assert assembler.take(100 * MS) == []
    for message in forwarded(1, DATA, []):
        assembler.feed(message, 100 * MS)
    (passage,) = assembler.take(600 * MS)
    assert numbers(passage) == [("PREROUTING", 1)]


def test_logs_that_came_first_do_not_make_a_packet_older() -> None:
    """A packet's last message stays the last one, though an earlier log is found to be its; later logs are its, too."""
    assembler = with_legacy([])
    assembler.feed_legacy([legacy("prerouting", "ip raw PREROUTING", "policy", 1, DATA)], 0)
    for message in forwarded(1, DATA, []):
        assembler.feed(message, 100 * MS)
    assert assembler.take(160 * MS) == []
    assembler.feed_legacy([legacy("forward", "ip filter FORWARD", "policy", 1, DATA)], 170 * MS)
    (passage,) = assembler.take(10**6)
    assert numbers(passage) == [("PREROUTING", 1), ("FORWARD", 1)]


def test_logs_without_a_beginning() -> None:
    """Logs of a packet that never begins (somebody else's TRACE) make a packet after 150 ms, with their interfaces."""
    assembler = with_legacy([])
    steps = [
        legacy("prerouting", "ip raw PREROUTING", "policy", 1, DATA),
        legacy("forward", "ip filter FORWARD", "rule", 2, DATA, oif=3),
    ]
    assembler.feed_legacy(steps, 0)
    assert assembler.take(149 * MS) == []
    assert assembler.take(150 * MS) == []
    (passage,) = assembler
    assert (passage.legacy, passage.seen, passage.iif) == (steps, [], 2)
    assert assembler.take(501 * MS) == [passage]


def test_logs_without_a_beginning_at_the_end() -> None:
    """At the end nothing is waited for."""
    assembler = with_legacy([])
    assembler.feed_legacy([legacy("forward", "ip filter FORWARD", "rule", 2, DATA)], 0)
    (passage,) = assembler.take(1, final=True)
    assert numbers(passage) == [("FORWARD", 2)]


def test_a_log_of_no_packet() -> None:
    """A log without an IP header is counted."""
    assembler = with_legacy([])
    assembler.feed_legacy([legacy("forward", "ip filter FORWARD", "rule", 2, b"\x45")], 0)
    assert (assembler.headless, assembler.take(10**6, final=True)) == (1, [])


def test_what_an_icmp_error_is_about() -> None:
    """Trace messages are too short for the packet that an ICMP error is about: a log has it."""
    about = ip(CLIENT, SERVER, udp(1000, 53), 17)
    data = ip(ROUTER, CLIENT, error(3, 3, about), 1)
    assembler = with_legacy(forwarded(1, data[:40], []))
    assembler.feed_legacy([legacy("forward", "ip filter FORWARD", "rule", 1, data)], 2000)
    (passage,) = assembler.take(10**6)
    assert passage.headers is not None
    assert passage.headers.packet == Packet(
        4, 1, int(ip_address(ROUTER)), int(ip_address(CLIENT)), icmp_type=3, icmp_code=3,
        about=Packet(4, 17, int(ip_address(CLIENT)), int(ip_address(SERVER)), 1000, 53),
    )  # fmt: skip


# --- all together --------------------------------------------------------------------------------------------------


def looped(id: int, data: bytes, steps: list[TraceMessage]) -> list[TraceMessage]:
    """Through loopback: another id when it comes in."""
    again = [step._replace(id=id + 1000) for step in steps]
    return [
        own(id, "out", data), *steps, own(id, "post", data, oif=1), own(id + 1000, "pre", data, iif=1), *again,
        own(id + 1000, "input", data, iif=1),
    ]  # fmt: skip


@st.composite
def packets(draw: st.DrawFn) -> list[tuple[bytes, list[TraceMessage]]]:
    """Packets with ids of their own, and their messages."""
    made = []
    for id in range(draw(st.integers(1, 6))):
        payload, proto = draw(st.sampled_from([(tcp(1000, 80), 6), (udp(1000, 80), 17), (icmp(8, 0, 5, 1), 1)]))
        data = ip(CLIENT, SERVER, payload, proto, number=id)
        count = draw(st.integers(0, 4))
        steps = [rule(id, 100 * id + i, data=data if i == 0 else b"") for i in range(count)]
        ends = [rule(id, 100 * id + 99, "drop")] if draw(st.booleans()) and steps else []
        way = draw(st.sampled_from([forwarded, looped])) if not ends else None
        made.append((data, way(id, data, steps) if way else [own(id, "pre", data, iif=2), *steps, *ends]))
    return made


@given(packets(), st.data())
def test_any_interleaving(sent: list[tuple[bytes, list[TraceMessage]]], data: st.DataObject) -> None:
    """However the messages of packets are mixed, each packet is a passage with its own steps; nothing is kept."""
    waiting = [list(messages) for _, messages in sent]
    assembler = Assembler()
    for now in range(sum(map(len, waiting))):
        chosen = data.draw(st.sampled_from([queue for queue in waiting if queue]))
        assembler.feed(chosen.pop(0), now)
    found = {passage.headers: handles(passage) for passage in assembler.take(10**9, final=True)}
    expected = [
        [message.place.handle for message in messages if message.place.table == "fw"] for _, messages in sent
    ]  # fmt: skip
    assert sorted(found.values()) == sorted(expected)
    assert len(found) == len(sent)
    assert (len(assembler), list(assembler), assembler.headless) == (0, [], 0)
    for id in range(2000):
        assembler.feed(rule(id, 1), 0)
    assert (len(assembler), assembler.headless) == (0, 2000)
