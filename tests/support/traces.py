"""Traces made by hand: packets, steps, paths, rows of a recording, and recordings of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path as File
from typing import Any

from conntracker.recording.traces import TraceRow
from conntracker.recording.writer import RecordingWriter
from conntracker.steps import UNDECIDED, Packet, Path, Rule, Step
from support.columns import NOON, flows

HOUR = 3600 * 10**6
TRACE: dict[str, int | float | str | bool | None] = {
    "packets": 4, "window": 30, "rate": 500, "only": None, "everything": True, "start": NOON, "refused": 0, "lost": 0,
}  # fmt: skip


def tcp(src: str, sport: int | None, dst: str, dport: int | None, proto: int = 6, **more: Any) -> Packet:
    """A packet with ports."""
    family = ip_address(src).version
    return Packet(family, proto, int(ip_address(src)), int(ip_address(dst)), sport, dport, **more)


def icmp(src: str, dst: str, kind: int, code: int = 0, id: int | None = None, about: Packet | None = None) -> Packet:
    """An ICMP or ICMPv6 packet."""
    family = ip_address(src).version
    proto = 1 if family == 4 else 58
    return Packet(
        family, proto, int(ip_address(src)), int(ip_address(dst)), None, None, kind, code, id, about=about
    )  # fmt: skip


def step(
    hook: str | None,
    place: str,
    verdict: str | None,
    text: str | None = None,
    position: int | None = None,
    kind: str = "iptables-nft",
    handle: int | None = None,
    priority: int = 0,
    **more: Any,
) -> Step:
    """A step at 'ip filter FORWARD'; that of a rule if it has a position or a handle, else of a policy."""
    family, table, chain = place.split()
    rule = None
    if position is not None or handle is not None:
        rule = Rule(kind, family, table, chain, position, handle, text)
    name = more.pop("type", "policy" if rule is None else "rule")
    return Step(hook, priority, kind, family, table, chain, name, rule, verdict, **more)


ACCEPTED = Path((step("forward", "ip filter FORWARD", "accept"),), "accept", 0, "postrouting")
DROPPED = Path(
    (
        step("prerouting", "ip raw PREROUTING", "accept", kind="iptables-legacy", priority=-300),
        step("forward", "ip filter FORWARD", "jump", "-A FORWARD -p tcp -j LOGS", 2, target="LOGS"),
        step("forward", "ip filter LOGS", "continue", "-A LOGS -j LOG", 1),
        step("forward", "ip filter LOGS", "drop", "-A LOGS -p tcp -m tcp --dport 443 -j DROP", 2),
    ),
    "drop",
    3,
    "forward",
)
LOST = Path(
    (step("prerouting", "inet fw pre", "accept", kind="nft"),), UNDECIDED, None, "prerouting", ("input", "forward")
)
PATHS = {1: ACCEPTED, 2: DROPPED, 3: LOST}


def row(
    packet: Packet,
    left: Packet | None = None,
    path: int = 1,
    at: int = NOON,
    packets: int = 1,
    ct_id: int | None = None,
    interfaces: tuple[str | None, str | None] = ("eth0", "eth1"),
    until: int | None = None,
) -> TraceRow:
    """Equal packets of an interval."""
    return TraceRow(packet, left or packet, *interfaces, ct_id, path, packets, at, at if until is None else until)


def record(
    path: File,
    known: Sequence[dict[str, Any]] = (),
    traces: Sequence[TraceRow] = (),
    paths: Mapping[int, Path] = PATHS,
    trace: dict[str, int | float | str | bool | None] | None = TRACE,
    host: str = "gate",
    **meta: Any,
) -> File:
    """A recording of flows, given as in support.columns.flows, and of traces; it ends after an hour."""
    with RecordingWriter(path, host=host, start=NOON) as writer:
        writer.update_meta(trace=trace, **meta)
        if known:
            writer.append(flows(*known))
        writer.append_paths(list(paths.items()))
        writer.append_traces(traces)
        writer.close(NOON + HOUR)
    return path
