"""The tracer against the kernel, beyond single paths (those are in test_scenarios.py)."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from conntracker.lab.topology import ROUTER, SERVER, Lab
from conntracker.sources.netns import Namespace
from conntracker.steps import Trace
from conntracker.tracer import Tracer
from conntracker.tracetable import TraceOptions

pytestmark = pytest.mark.needs("nft", "iptables-legacy-restore")

FORWARD = """
table inet fw {
    chain forward { type filter hook forward priority 0; policy accept; udp dport 7000 accept; }
}
"""
LEGACY = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n-A FORWARD -p udp --dport 7001 -j DROP\nCOMMIT\n"


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The lab with a router that forwards everything."""
    with Lab(FORWARD) as lab:
        yield lab


def nft(space: Namespace, text: str) -> None:
    """Loads rules."""
    with space:
        subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True, timeout=20)


def send(space: Namespace, port: int, *, source: int = 0, count: int = 1, to: str = SERVER[4]) -> None:
    """Datagrams from one port."""
    with space, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", source))
        for _ in range(count):
            sock.sendto(b"x", (to, port))


def to_port(traces: list[Trace], port: int) -> list[Trace]:
    """Those of packets to a port."""
    return [trace for trace in traces if trace.packet.dport == port]


def settle(tracer: Tracer, seconds: float) -> list[Trace]:
    """What comes meanwhile."""
    traces: list[Trace] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        traces += tracer.poll(0.05)
    return traces


def test_known_flows_are_traced_anew_when_rules_change(lab: Lab) -> None:
    """A flow whose first packets were traced is traced again by the rules that came later, without a new window."""
    with Tracer(lab.router, TraceOptions(), lambda line: None) as tracer:
        send(lab.client, 7000, source=5000, count=10)
        before = to_port(settle(tracer, 0.5), 7000)
        nft(lab.router, "insert rule inet fw forward udp dport 7000 drop")
        settle(tracer, 2.5)
        send(lab.client, 7000, source=5000, count=3)
        after = to_port(tracer.finish(), 7000)
    assert [trace.path.verdict for trace in before] == ["accept"] * 4
    assert [trace.path.verdict for trace in after] == ["drop"] * 3


def test_what_is_refused_is_counted(lab: Lab) -> None:
    """Above the ceiling, packets are traced or counted as refused, and none is both."""
    with Tracer(lab.router, TraceOptions(rate=20), lambda line: None) as tracer:
        for port in range(20000, 20200):
            send(lab.client, 7000, source=port)
        traces = to_port(tracer.finish(), 7000)
        assert 20 <= len(traces) < 200
        assert len(traces) + tracer.refused["refused"] == 200


def test_where_legacy_rules_cannot_be_traced_paths_say_so(lab: Lab) -> None:
    """Beside another reader of NFLOG group 0, packets that meet legacy tables have paths that are blind."""
    with lab.router:
        subprocess.run(["iptables-legacy-restore"], input=LEGACY, text=True, check=True)
    said: list[str] = []
    with (
        Tracer(lab.router, TraceOptions(), said.append) as seeing,
        Tracer(lab.router, TraceOptions(), said.append) as blind,
    ):
        send(lab.client, 7001)
        (one,) = to_port(seeing.finish(), 7001)
        (other,) = to_port(blind.finish(), 7001)
    assert (one.path.verdict, one.path.blind) == ("drop", False)
    assert (other.path.verdict, other.path.blind) == ("undecided", True)
    assert sum("no traces of iptables-legacy rules" in line for line in said) == 1


def test_a_users_table_of_our_name_is_the_users(lab: Lab) -> None:
    """A table that is named like ours but has no owner is traced like any other."""
    nft(
        lab.router,
        "table inet conntracker_1 {\nchain input { type filter hook input priority 5; udp dport 9 drop; }\n}\n",
    )
    with Tracer(lab.router, TraceOptions(), lambda line: None) as tracer:
        send(lab.client, 9, to=ROUTER[4])
        (trace,) = to_port(tracer.finish(), 9)
    deciding = trace.path.deciding
    assert deciding is not None
    assert (trace.path.verdict, deciding.table, deciding.chain) == ("drop", "conntracker_1", "input")


def test_lost_messages_are_counted_and_nothing_is_made_up(lab: Lab) -> None:
    """When messages are lost, a change of rules maybe among them, no step names a rule that was not there."""
    rules = "table inet fw\ndelete table inet fw\n" + FORWARD.replace("{", "{{").replace("}", "}}").replace(
        "policy accept; udp dport 7000 accept;", "policy accept\n{}\n"
    )
    first, second = "udp dport 7001 counter drop", "udp dport 7002 counter drop"
    nft(lab.router, rules.format(f"{first}\n{second}"))
    with Tracer(lab.router, TraceOptions(rate=100_000), lambda line: None, 1 << 16) as tracer:
        for port in range(20000, 20500):  # more than the buffer takes, while nobody reads
            send(lab.client, 7001, source=port)
            send(lab.client, 7002, source=port)
        nft(lab.router, rules.format(f"{second}\n{first}"))  # the same handles, the other way round
        during = settle(tracer, 1.0)
        assert tracer.lost > 0
        assert sum(loss.events or 0 for loss in tracer.losses) == tracer.lost
        for port in (7001, 7002):
            send(lab.client, port, source=30000)
        after = tracer.finish()
    for trace in during + after:
        deciding = trace.path.deciding
        if trace.packet.dport in (7001, 7002) and deciding is not None and deciding.rule is not None:
            assert deciding.rule.text in (None, f"udp dport {trace.packet.dport} counter drop") or not deciding.certain
    told = [trace.path.deciding for port in (7001, 7002) for trace in to_port(after, port)]
    assert [step and step.rule and step.rule.text for step in told] == [first, second]
