"""The text of the private tables."""

from __future__ import annotations

import re

import pytest

from conntracker.tracetable import MARKERS, TraceOptions, tables


def priorities(text: str) -> dict[str, int]:
    """Of the base chains, by name."""
    return {name: int(number) for name, number in re.findall(r"chain (\w+) \{\s+type.*priority (-?\d+);", text)}


def test_tables_by_what_the_ruleset_has() -> None:
    """There is a table for IP, one for ingress where devices have chains there, and one for bridges."""
    assert [table.family for table in tables(TraceOptions())] == ["inet"]
    made = tables(TraceOptions(), ingress=["eth0", "wg0.5"], bridge=True)
    assert [table.family for table in made] == ["inet", "netdev", "bridge"]
    assert 'devices = { "eth0", "wg0.5" }' in made[1].text


@pytest.mark.parametrize(
    ("lowest", "expected"), [(-300, -310), (0, -310), (-305, -315), (-450, -460), (-(2**31) + 3, -(2**31))]
)
def test_begins_below_all(lowest: int, expected: int) -> None:
    """Tracing begins below the lowest chain, and ends behind every chain but before connections are confirmed."""
    found = priorities(tables(TraceOptions(), lowest)[0].text)
    assert found == {"pre": expected, "out": expected} | dict.fromkeys(MARKERS, 2**31 - 2)


def test_bridge_and_ingress_begin_first() -> None:
    """At ingress and in bridges nothing can be below the tracing."""
    _, netdev, bridge = tables(TraceOptions(), ingress=["eth0"], bridge=True)
    assert priorities(netdev.text) == {"ingress": -(2**31)}
    assert priorities(bridge.text)["pre"] == priorities(bridge.text)["out"] == -(2**31)


def test_sizes_are_bounded() -> None:
    """A set takes what the ceiling lets through in a window and the burst, and never more than a million."""
    sizes = dict(re.findall(r"set (\w+) \{.*size (\d+);", tables(TraceOptions(rate=500, window=30))[0].text))
    assert (sizes["seen_flow4"], sizes["done_flow6"], sizes["seen_echo4"]) == ("15500", "15500", "1550")
    big = tables(TraceOptions(rate=100_000, window=86400))[0].text
    assert max(int(size) for size in re.findall(r"size (\d+);", big)) == 1_000_000


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (TraceOptions(packets=0), "--trace-packets"),
        (TraceOptions(packets=1001), "--trace-packets"),
        (TraceOptions(window=0), "--trace-window"),
        (TraceOptions(window=float("nan")), "--trace-window"),
        (TraceOptions(window=float("inf")), "--trace-window"),
        (TraceOptions(rate=0), "--trace-rate"),
        (TraceOptions(rate=100_001), "--trace-rate"),
        (TraceOptions(only="tcp dport 80 drop"), "--trace"),
        (TraceOptions(only=""), "--trace"),
    ],
)
def test_options_out_of_range(options: TraceOptions, flag: str) -> None:
    """An option that makes no sense raises ValueError that names it."""
    with pytest.raises(ValueError, match=f"^{flag}: "):
        tables(options)


@pytest.mark.parametrize("name", ["", "a b", 'a"', "a/b", "x" * 16, "a\\", "a\nb", "a*", "a:1", "\0"])
def test_strange_devices(name: str) -> None:
    """A name that no device can have, or that nft could misread, is refused."""
    with pytest.raises(ValueError, match="device"):
        tables(TraceOptions(), ingress=["eth0", name])


def test_devices_stand_between_quotes() -> None:
    """Names may have letters that mean something to nft: between quotes they mean nothing."""
    assert 'devices = { "a}", "b;c" } priority' in tables(TraceOptions(), ingress=["a}", "b;c"])[1].text


def test_restriction_has_both_directions() -> None:
    """A restriction stands in every chain in which packets begin, with its mirrored match."""
    for table in tables(TraceOptions(only="tcp dport 443"), ingress=["eth0"], bridge=True):
        starts = 1 if table.family == "netdev" else 2
        assert table.text.count("tcp dport 443 goto begin") == table.text.count("tcp sport 443 goto begin") == starts
