from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path as File
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.answers.blame import Blame, blame
from conntracker.answers.rules import by_rule
from conntracker.answers.ways import Way
from conntracker.formats.blame import blame_lines, rules_lines
from conntracker.recording.reader import open_recording
from conntracker.steps import Path
from support.columns import MINUTE, NOON
from support.owners import ROWS, owned
from support.traces import ACCEPTED, DROPPED, LOST, PATHS, icmp, record, row, step, tcp

PLAIN = tcp("10.0.0.1", 40000, "10.0.0.2", 80)


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times in UTC."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    yield
    os.environ.pop("TZ")
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


def text(path: File, width: int = 80) -> str:
    """What a person reads."""
    with open_recording(path) as recording:
        return "\n".join("".join(blame_lines(one, width)) for one in blame(recording))


def test_a_dropped_flow(tmp_path: File) -> None:
    """The verdict, the rule, NAT, the sums, and the path with jumps further in."""
    known = {"src": "10.0.0.5", "sport": 40312, "dst": "192.168.1.9", "dport": 443, "reply_src": "10.9.0.2"}
    packet, left = tcp("10.0.0.5", 40312, "192.168.1.9", 443), tcp("10.0.0.5", 40312, "10.9.0.2", 8443)
    counts = {"packets": 12, "bytes": 1024, "reply_packets": 0, "reply_bytes": 0}
    path = record(
        tmp_path / "rec",
        [known | {"reply_sport": 8443} | counts],
        [row(packet, left, 2, packets=3, until=NOON + 6 * 10**6)],
    )
    assert text(path) == (
        "TCP 10.0.0.5:40312 -> 192.168.1.9:443   DROPPED\n"
        "  by   ip filter LOGS, rule 2 (iptables-nft)\n"
        "       -A LOGS -p tcp -m tcp --dport 443 -j DROP\n"
        "  NAT  dst 192.168.1.9:443 -> 10.9.0.2:8443\n"
        "  3 packets traced, 2026-01-01 12:00:00 - 12:00:06 UTC\n"
        "  flow: 12 packets, 1.0 KiB\n"
        "  original: dropped, 3 packets traced, eth0 -> eth1\n"
        "    prerouting   ip raw PREROUTING (legacy) policy accept\n"
        "    forward      ip filter FORWARD (iptables-nft) rule 2 jump LOGS\n"
        "                   -A FORWARD -p tcp -j LOGS\n"
        "                   ip filter LOGS (iptables-nft) rule 1 continue  -A LOGS -j LOG\n"
        "                   ip filter LOGS (iptables-nft) rule 2 drop  <== decided\n"
        "                     -A LOGS -p tcp -m tcp --dport 443 -j DROP\n"
    )


def test_a_packet_that_no_rule_ended(tmp_path: File) -> None:
    """The last hook and the next one, and possible causes, none of them a rule."""
    shown = text(record(tmp_path / "rec", traces=[row(PLAIN, path=3, interfaces=("eth0", None))]))
    assert shown.startswith(
        "TCP 10.0.0.1:40000 -> 10.0.0.2:80   NOT SEEN TO LEAVE\n"
        "  last seen at prerouting; next should have been input or forward\n"
        "  no rule and no policy ended it; possible causes:\n"
        "    reverse path filter (rp_filter) or martian address\n"
    )
    assert (
        "  1 packet traced, 2026-01-01 12:00:00 UTC; no flow\n  original: not seen to leave, 1 packet traced, in eth0\n"
        in shown
    )
    assert "rule " not in shown.replace("no rule", "")


def test_without_a_trace(tmp_path: File) -> None:
    """A flow without a trace says so and why, in lines that fit."""
    shown = text(
        record(tmp_path / "rec", [{"zone": 7, "packets": None or 2**64 - 1}], trace={"only": "x" * 30, "refused": 5})
    )
    assert shown.startswith(
        "TCP 10.0.0.1:40000 -> 10.0.0.2:80   NOT TRACED\n  in zone 7\n  no packet of it was traced;"
    )
    assert shown.endswith("  flow: packets not counted\n")
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("place", "title"),
    [
        (0, "TCP 127.0.0.1:1 (curl[5057], alice) -> 127.0.0.1:80 (nginx[77], 33, holder)"),
        (1, "TCP 10.0.0.1:40000 (curl[5057], alice) -> 93.184.216.34:443"),
        (5, "ICMP 9.9.9.9 -> 10.0.0.2 type 8 code 0 (echo request) id 1 (kernel)"),
        (6, "TCP 10.7.0.5:40000 -> 10.0.0.2:80 (forwarded)"),
        (7, "TCP 10.7.0.6:40000 -> 10.0.0.2:80"),
    ],
)
def test_owners(tmp_path: File, place: int, title: str) -> None:
    """Behind each end stands its process with its user, and what is not sure of that."""
    shown = text(owned(tmp_path / "rec", (ROWS[place],)))
    assert shown.startswith(f"{title}   NOT TRACED\n")


def test_icmp_and_ipv6(tmp_path: File) -> None:
    """ICMP has type and code, an error what it is about, and ports of IPv6 stand behind brackets."""
    about = tcp("fd00::1", 7, "fd00::2", 443)
    shown = text(record(tmp_path / "rec", traces=[row(icmp("fd00::9", "fd00::1", 1, 3, about=about), path=2)]))
    assert shown.startswith(
        "ICMPV6 fd00::9 -> fd00::1 type 1 code 3 (address unreachable)"
        " about TCP [fd00::1]:7 -> [fd00::2]:443   DROPPED\n"
    )
    known = {"proto": 1, "sport": 7, "dport": 8 << 8, "tcp_state": 255}
    assert text(record(tmp_path / "b", [known])).startswith(
        "ICMP 10.0.0.1 -> 10.0.0.2 type 8 code 0 (echo request) id 7   NOT TRACED"
    )


def test_doubts_are_told(tmp_path: File) -> None:
    """Another rule that may have stood there, another flow that it may be, messages that were lost: all are said."""
    doubtful = Path((replace(DROPPED.steps[3], certain=False),), "drop", 0, "forward", complete=False)
    zones: list[dict[str, Any]] = [{"zone": 1}, {"zone": 2}]
    shown = text(record(tmp_path / "rec", zones, [row(PLAIN)], paths=PATHS | {1: doubtful}))
    assert shown.count("       the rules changed in that moment: it may have been another\n") == 2
    assert shown.count("    may be another flow's: same tuple at the same time, in another zone\n") == 2
    assert shown.count("rule 2 drop (maybe another)  <== decided\n") == 2
    assert shown.count("    steps may be missing: trace messages were lost\n") == 2


def test_differing_verdicts_are_all_there(tmp_path: File) -> None:
    """A flow that was let through first and dropped later shows both ways, the later one above."""
    shown = text(record(tmp_path / "rec", [{}], [row(PLAIN), row(PLAIN, path=2, at=NOON + MINUTE)]))
    lines = shown.splitlines()
    assert lines[0].endswith("   DROPPED since 12:01:00, accepted before")
    assert [line for line in lines if line.startswith("  original")] == [
        "  original, first packet: accepted, 1 packet traced, eth0 -> eth1",
        "  original, later packets: dropped, 1 packet traced, eth0 -> eth1",
    ]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (Path((), "accept", None, "input"), "  by   no rule and no policy: no chain was in its way"),
        (ACCEPTED, "  by   ip filter FORWARD, policy (iptables-nft)"),
        (
            Path((step("input", "inet fw in", "drop", "drop", 3, "nft", handle=9),), "drop", 0, "input"),
            "  by   inet fw in, rule 3 handle 9 (nft)",
        ),
        (
            Path((step("input", "ip x INPUT", None, None, None, "iptables-nft", handle=9),), "drop", 0, "input"),
            "  by   ip x INPUT, rule handle 9 (iptables-nft)",
        ),
        (
            Path((step("input", "ip x INPUT", "return", kind="iptables-legacy", type="return"),), "drop", 0, "input"),
            "  by   ip x INPUT, end of chain (iptables-legacy)",
        ),
    ],
)  # fmt: skip
def test_what_decided(tmp_path: File, path: Path, line: str) -> None:
    """A rule is told by position or handle, a policy and the end of a chain by their names."""
    shown = text(record(tmp_path / "rec", traces=[row(PLAIN)], paths={1: path}))
    assert shown.splitlines()[1] == line


def test_chains_go_in_and_out(tmp_path: File) -> None:
    """A chain that was jumped to stands further in, until it is left; the next base chain begins at the left."""
    names = (("A", "jump"), ("B", "jump"), ("C", "return"), ("B", "return"), ("A", "accept"))
    steps = [step("input", f"ip filter {name}", verdict, "x", 1) for name, verdict in names]
    steps.append(step("input", "ip security B", "accept"))
    shown = text(record(tmp_path / "rec", traces=[row(PLAIN)], paths={1: Path(tuple(steps), "accept", 5, "input")}))
    places = [line.index("ip ") for line in shown.splitlines() if "ip filter" in line or "ip security" in line][1:]
    assert places == [17, 19, 21, 19, 17, 17]


def test_control_characters_do_not_reach_the_terminal(tmp_path: File) -> None:
    """A rule's text cannot move the cursor."""
    one = Path((step("input", "ip filter INPUT", "drop", "a\x1b[2Jb", 1),), "drop", 0, "input")
    path = record(tmp_path / "rec", traces=[row(PLAIN)], paths={1: one})
    assert "a?[2Jb" in text(path)
    with open_recording(path) as recording:
        assert "a?[2Jb" in "".join(rules_lines(by_rule(recording)))


def test_rules(tmp_path: File) -> None:
    """The table of rules: how many flows and packets, when, and the rule below."""
    traces = [*(row(tcp("10.0.0.1", n, "10.0.0.2", 80), path=2) for n in range(1200)), row(PLAIN, path=3), row(PLAIN)]
    with open_recording(record(tmp_path / "rec", traces=traces)) as recording:
        assert "".join(rules_lines(by_rule(recording))) == (
            "    flows    traced  verdict    first seen           last seen (UTC)\n"
            "    1,200     1,200  drop       2026-01-01 12:00:00  2026-01-01 12:00:00\n"
            "           ip filter LOGS, rule 2 (iptables-nft)\n"
            "           -A LOGS -p tcp -m tcp --dport 443 -j DROP\n"
            "        1         1  accept     2026-01-01 12:00:00  2026-01-01 12:00:00\n"
            "           ip filter FORWARD, policy (iptables-nft)\n"
            "        1         1  undecided  2026-01-01 12:00:00  2026-01-01 12:00:00\n"
            "           last seen at prerouting; next should have been input or forward\n"
        )
    assert list(rules_lines([])) == []


def test_verdicts_that_take_turns(tmp_path: File) -> None:
    """Where packets are dropped and let through by turns, nothing is said to be so since a time."""
    shown = text(record(tmp_path / "rec", [{}], [row(PLAIN, until=NOON + MINUTE), row(PLAIN, path=2, at=NOON + 1)]))
    assert shown.splitlines()[0].endswith("   ACCEPTED at last, 12:01:00; at other times dropped")
    assert "later packets" not in shown


def test_rules_that_were_not_traced(tmp_path: File) -> None:
    """Where legacy rules were not traced, that is the first cause, and stands beside what was accepted."""
    paths = {1: replace(ACCEPTED, blind=True), 3: replace(LOST, blind=True), 4: Path((), "accept", None, blind=True)}
    shown = text(record(tmp_path / "a", traces=[row(PLAIN, path=3)], paths=paths))
    assert (
        "  what ended it is not known; possible causes:\n"
        "    a rule of iptables-legacy: those were not traced, and one of them may have decided\n"
    ) in shown
    assert "no rule and no policy" not in shown
    shown = text(record(tmp_path / "b", traces=[row(PLAIN)], paths=paths))
    assert shown.splitlines()[0].endswith("   ACCEPTED; rules of iptables-legacy were not traced")
    assert shown.endswith("    steps may be missing: rules of iptables-legacy were not traced\n")
    path = record(tmp_path / "c", traces=[row(PLAIN, path=4)], paths=paths)
    assert "  by   no rule and no policy that was traced\n" in text(path)
    with open_recording(path) as recording:
        assert "no rule and no policy that was traced; rules of ipt" in "".join(rules_lines(by_rule(recording), 200))


@pytest.mark.parametrize(
    ("path", "source", "interfaces", "line"),
    [
        (LOST, "10.0.0.254", (None, "eth0"), "  this host answered: host unreachable (type 3 code 1)"),
        (ACCEPTED, "10.0.0.254", (None, "eth0"), "  but this host answered: host unreachable (type 3 code 1)"),
        (ACCEPTED, "10.0.0.9", ("eth1", "eth0"), "  but 10.0.0.9 answered: host unreachable (type 3 code 1)"),
        (LOST, "10.0.0.9", ("eth1", "eth0"), "  no rule and no policy ended it; possible causes:"),
        (replace(LOST, blind=True), "10.0.0.254", (None, "eth0"), "  a rule may have made it do so:"),
    ],
)
def test_who_answered(
    tmp_path: File, path: Path, source: str, interfaces: tuple[str | None, str | None], line: str
) -> None:
    """An ICMP error of this host tells why a packet went no further; another's only says so of one that left."""
    error = row(icmp(source, "10.0.0.1", 3, 1, about=PLAIN), path=5, interfaces=interfaces)
    nothing = Path((), "accept", None, "postrouting")
    shown = text(record(tmp_path / "rec", [{}], [row(PLAIN), error], paths={1: path, 5: nothing}))
    assert line in shown.splitlines()
    assert ("possible causes" in shown) == ("possible causes" in line)


def test_copies_come_last(tmp_path: File) -> None:
    """A copy is titled as what it is."""
    sent = Path((step("output", "ip filter OUTPUT", "accept"),), "accept", 0, "postrouting")
    traces = [row(PLAIN, path=1, interfaces=(None, "eth1")), row(PLAIN, path=2, interfaces=("eth0", None))]
    shown = text(record(tmp_path / "rec", traces=traces, paths=PATHS | {1: sent}))
    assert shown.splitlines()[0].endswith("   DROPPED")
    assert shown.index("  original: dropped") < shown.index("  copy made on this host (TEE or dup): accepted")


def test_how_many_packets_are_traced(tmp_path: File) -> None:
    """Where a direction has as many traced packets as are traced of it, there may have been more: that is said."""
    shown = text(record(tmp_path / "rec", [{}], [row(PLAIN, packets=4)]))
    assert (
        "  4 packets traced, 2026-01-01 12:00:00 UTC\n  traced are the first 4 packets of each direction in 30\n  flow:"
    ) in shown


def test_made_without_traces(tmp_path: File) -> None:
    """That a recording has no traces is not said again for each flow."""
    shown = text(record(tmp_path / "rec", [{}], trace=None))
    assert shown == "TCP 10.0.0.1:40000 -> 10.0.0.2:80   NOT TRACED\n  flow: packets not counted\n"


WAYS = st.builds(
    Way, st.sampled_from(("original", "reply", "error", "copy")), st.booleans(), st.integers(1, 9), st.just(NOON),
    st.just(NOON + 1), st.just(0), st.just(PLAIN), st.just(PLAIN), st.none() | st.just("eth0"),
    st.none() | st.just("lo"), st.sampled_from((ACCEPTED, DROPPED, LOST, Path((), "stolen", None))),
)  # fmt: skip


@given(st.lists(WAYS, min_size=1, max_size=5), st.integers(40, 200))
def test_any_answer_is_lines(ways: list[Way], width: int) -> None:
    """Every answer is whole lines without trailing blanks."""
    lines = list(blame_lines(Blame("gate", None, PLAIN, ways[0], tuple(ways)), width))
    assert all(line.endswith("\n") and line[:-1] == line.rstrip() and line.count("\n") == 1 for line in lines)
