"""Connection tracking: found out, switched on, and off again before the table is full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conntracker.model import Loss
from conntracker.sources.conntrack import is_tracked
from conntracker.sources.fullness import Fullness, Gauge
from conntracker.sources.netns import Namespace
from conntracker.sources.nftables import Nftables
from conntracker.tracking import Tracking, TrackingOff


class FixedGauge(Gauge):
    """Says what the test wants it to say: filling a real table would need the host's own limit."""

    def __init__(self) -> None:
        self.reading = Fullness(0, 100, 0, 0)

    def read(self) -> Fullness:
        """The reading that was set."""
        return self.reading

    def sends_events(self) -> bool:
        """As most namespaces do."""
        return True

    def share(self) -> float:
        """Its share."""
        return self.reading.share


@pytest.fixture
def space() -> Iterator[Namespace]:
    """A namespace with loopback up, and the test in it."""
    made = Namespace.create()
    with made:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield made
    made.close()


def count() -> int:
    """Entries in the connection table of the namespace."""
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


def test_tracking_is_found_out_without_a_trace(space: Namespace) -> None:
    """Off, on for IPv4, on for both: each is told, and the datagram's own entry is gone afterwards."""
    assert (is_tracked(4), is_tracked(6)) == (False, False)
    with Nftables() as nft:
        nft.run("table ip one { chain c { ct state new; }; }")
        assert (is_tracked(4), is_tracked(6)) == (True, False)
        nft.run("table ip6 two { chain c { ct state new; }; }")
        assert (is_tracked(4), is_tracked(6)) == (True, True)
    assert count() == 0


def test_a_firewall_that_forbids_the_datagram_leaves_it_open(space: Namespace) -> None:
    """Where loopback is forbidden nothing can be said, and nothing is guessed."""
    with Nftables() as nft:
        nft.run("table inet no { chain c { type filter hook output priority 0; policy drop; }; }")
    assert is_tracked(4) is None


def test_our_table_leaves_a_full_connection_table(space: Namespace) -> None:
    """Over 95 % our table goes, below 50 % it is back, and the gap between is a loss; a warning comes at 80 %."""
    said: list[str] = []
    gauge = FixedGauge()
    tracking = Tracking(space, gauge, True, said.append)
    tracking.probe()
    tracking.begin()
    assert (is_tracked(4), is_tracked(6)) == (True, True)
    gauge.reading = Fullness(85, 100, 0, 0)
    assert tracking.check(2_000_000, 2_000_000) == []
    assert "85% full" in said[-1]
    gauge.reading = Fullness(96, 100, 3, 0)
    assert tracking.check(4_000_000, 4_000_000) == []
    assert (is_tracked(4), is_tracked(6)) == (False, False)
    assert any("3 entries dropped early" in line for line in said)
    gauge.reading = Fullness(40, 100, 3, 0)
    assert tracking.check(9_000_000, 9_000_000) == [Loss(4_000_000, 9_000_000, "untracked", None)]
    assert is_tracked(4)
    tracking.close()
    assert is_tracked(4) is False


def test_a_gap_that_is_open_at_the_end_is_a_loss(space: Namespace) -> None:
    """When the capture ends while tracking is off, the gap reaches to the end."""
    gauge = FixedGauge()
    tracking = Tracking(space, gauge, True, lambda line: None)
    tracking.probe()
    tracking.begin()
    gauge.reading = Fullness(99, 100, 0, 0)
    tracking.check(5_000_000, 5_000_000)
    assert tracking.end(7_000_000) == [Loss(5_000_000, 7_000_000, "untracked", None)]
    tracking.close()


def test_the_owner_of_rules_keeps_tracking_on(space: Namespace) -> None:
    """Where other rules ask for tracking, no table of ours is made, and a full one is only warned of."""
    with Nftables() as nft:
        nft.run("table inet theirs { chain c { ct state new; }; }")
        gauge, said = FixedGauge(), list[str]()
        tracking = Tracking(space, gauge, False, said.append)
        tracking.probe()
        tracking.begin()
        gauge.reading = Fullness(99, 100, 0, 0)
        tracking.check(5_000_000, 5_000_000)
        assert nft.run("list tables") == "table inet theirs\n"
        tracking.close()
    assert is_tracked(4)


def test_no_enable_raises(space: Namespace) -> None:
    """With enable=False and tracking off, begin raises and makes nothing."""
    tracking = Tracking(space, FixedGauge(), False, lambda line: None)
    tracking.probe()
    with pytest.raises(TrackingOff, match="IPv4 and IPv6"):
        tracking.begin()


def test_the_gauge_reads_the_table(space: Namespace) -> None:
    """Entries and maximum are the kernel's own."""
    gauge = Gauge()
    with Nftables() as nft:
        nft.run("table inet on { chain c { ct state new; }; }")
        subprocess.run(["ping", "-c1", "127.0.0.1"], check=True, capture_output=True)
    reading = gauge.read()
    assert (reading.count, reading.evicted, reading.dropped) == (1, 0, 0)
    assert reading.maximum == int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
    gauge.close()


@pytest.mark.parametrize(
    "rules",
    [
        "chain o { type filter hook output priority raw; oif lo ct zone set 7; }; "
        "chain p { type filter hook prerouting priority raw; iif lo ct zone set 7; };",
    ],
)
def test_a_zone_does_not_hide_tracking(space: Namespace, rules: str) -> None:
    """Where loopback is in a zone of its own, tracking is found on, and the probe's entry is taken out of the zone."""
    with Nftables() as nft:
        nft.run("table inet z { " + rules + " }")
    assert is_tracked(4)
    assert count() == 0


def test_loopback_without_tracking_leaves_doubt(space: Namespace) -> None:
    """Rules that exempt loopback, beside connections that are tracked, are not taken for tracking off."""
    with Nftables() as nft:
        nft.run("table inet n { chain c { ct state new; }; }")
        subprocess.run(["ping", "-c1", "127.0.0.1"], check=True, capture_output=True)
        nft.run("table inet n { chain o { type filter hook output priority raw; oif lo notrack; }; }")
    assert is_tracked(4) is None
