"""The load generator's list, against the table and the events of the kernel."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from conntracker.lab import firewall
from conntracker.lab.bulk import send
from conntracker.lab.packets import Tuples
from conntracker.lab.plan import Flows, plan
from conntracker.lab.topology import Lab
from conntracker.model import ICMP, ICMPV6

Row = tuple[object, ...]
Table = Callable[[Lab], list[Row]]
Events = Callable[[Lab, Callable[[], None]], list[tuple[str, Row]]]

pytestmark = pytest.mark.needs("conntrack")


def addresses(tuples: Tuples, halves: NDArray[np.uint64]) -> list[str]:
    """Addresses as text, each different one made once."""
    different, which = np.unique(np.column_stack([tuples.family, halves]), axis=0, return_inverse=True)
    made = [
        str(ipaddress.IPv4Address(int(low)) if family == 4 else ipaddress.IPv6Address(int(high) << 64 | int(low)))
        for family, high, low in different
    ]
    return [made[number] for number in which.reshape(-1)]


def or_none(column: NDArray[np.uint8], there: NDArray[np.bool_]) -> list[int | None]:
    """The values where they are there, None elsewhere."""
    return [value if here else None for value, here in zip(column.tolist(), there.tolist(), strict=True)]


def rows_of(flows: Flows) -> list[Row]:
    """The list in the oracle's form."""
    first, reply = flows.original, flows.reply
    icmp = (first.proto == ICMP) | (first.proto == ICMPV6)
    columns = (
        first.proto.tolist(), addresses(first, first.src), first.sport.tolist(), addresses(first, first.dst),
        first.dport.tolist(), addresses(reply, reply.src), reply.sport.tolist(), addresses(reply, reply.dst),
        reply.dport.tolist(), flows.replied.tolist(), or_none(first.icmp_type, icmp), or_none(first.icmp_code, icmp),
    )  # fmt: skip
    return list(zip(*columns, strict=True))


def check_table(count: int, ruleset: str, read: Table) -> None:
    """Send `count` flows; the table must have those of the list that last, and no other."""
    limit = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
    if limit < 1.1 * count:
        pytest.skip(f"net.netfilter.nf_conntrack_max is {limit}")
    flows = plan(count, nat=ruleset == firewall.RULESET)
    with Lab(ruleset) as lab:
        lab.keep_flows()
        sent = send(lab, flows)
        assert (sent.sent, sent.dropped) == (count, 0)
        found = read(lab)
    expected = [row for row, refused in zip(rows_of(flows), flows.refused, strict=True) if not refused]
    assert len(found) == len(expected) == len(set(expected))
    assert set(found) ^ set(expected) == set()


@pytest.mark.parametrize("ruleset", [firewall.RULESET, firewall.CONNTRACK_ONLY], ids=["firewall", "conntrack-only"])
def test_the_table_is_the_list(ruleset: str, table: Table) -> None:
    """The router tracks the flows of the list with the tuples and the answers that it says, and no other."""
    check_table(10_000, ruleset, table)


def test_the_table_is_the_list_at_size(table: Table) -> None:
    """The same holds for 220,000 flows as fast as they can be sent."""
    check_table(220_000, firewall.RULESET, table)


def test_events_are_the_list(lab: Lab, events: Events) -> None:
    """Every flow of the list sends a NEW event, and those that are refused a DESTROY."""
    flows = plan(1000)
    # Slowly: conntrack(8) 1.4.7 sets the buffer size of another socket than that of the events, and loses them.
    seen = events(lab, lambda: (send(lab, flows, rate=1000), None)[1])
    expected = [row[:9] for row in rows_of(flows)]
    refused = [row[:9] for row, ended in zip(rows_of(flows), flows.refused, strict=True) if ended]
    assert sorted(row[:9] for kind, row in seen if kind == "NEW") == sorted(expected)
    assert sorted(row[:9] for kind, row in seen if kind == "DESTROY") == sorted(refused)
    assert refused


def test_rate_is_kept(lab: Lab) -> None:
    """A rate given is not exceeded."""
    sent = send(lab, plan(2000), rate=10_000)
    assert sent.sent == 2000
    assert sent.seconds > 0.17
