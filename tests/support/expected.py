"""The log that a list of flows must give, made a line at a time."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from conntracker.lab.plan import Flows
from conntracker.lab.traffic import ExpectedFlow

Line = tuple[str, str, int, str, int]  # group, source, source port or type, destination, destination port or code

_PORTS = re.compile(r" *(\S+) \[ *(\d+)\] src = (\S+) \(port=(\d+)\) to dst = (\S+) \(port=(\d+)\) \(-\)\n")
_ICMP = re.compile(r" *(\S+) \[ *(\d+)\] src = (\S+) to dst = (\S+) \(type=(\d+) \| code=(\d+)\)\n")
_GROUPS = {(6, 4): "TCPv4", (17, 4): "UDPv4", (1, 4): "ICMPv4", (6, 6): "TCPv6", (17, 6): "UDPv6", (58, 6): "ICMPv6"}


def parse(log: Iterable[str]) -> list[Line]:
    """The lines of a log. AssertionError for a line that is none, or that is out of order or not numbered."""
    lines: list[Line] = []
    before: tuple[int, ...] = ()
    group, index = "", -1
    for text in log:
        match = _PORTS.fullmatch(text) or _ICMP.fullmatch(text)
        assert match, text
        if match.re is _PORTS:
            name, number, src, sport, dst, dport = match.groups()
        else:
            name, number, src, dst, sport, dport = match.groups()
        key = (int(ipaddress.ip_address(src)), int(ipaddress.ip_address(dst)), int(sport), int(dport))
        index = 0 if name != group else index + 1
        assert name != group or key > before, text
        assert int(number) == index, text
        group, before = name, key
        lines.append((name, src, int(sport), dst, int(dport)))
    return lines


def lines_of_flow(flow: ExpectedFlow) -> list[Line]:
    """Both directions of a flow, the reply only if there was one, none for protocols that the log does not show."""
    family = 6 if ":" in flow.src else 4
    group = _GROUPS.get((flow.proto, family))
    if group is None:
        return []
    if flow.icmp_type is not None:
        return [(group, flow.src, flow.icmp_type, flow.dst, flow.icmp_code or 0)]
    there = (group, flow.src, flow.sport, flow.dst, flow.dport)
    back = (group, flow.reply_src, flow.reply_sport, flow.reply_dst, flow.reply_dport)
    return [there, back] if flow.replied else [there]


def lines_of_plan(flows: Flows) -> set[Line]:
    """The same for a whole load."""
    lines: set[Line] = set()
    there, back = flows.original, flows.reply
    text: dict[tuple[int, int, int], str] = {}

    def address(family: int, halves: list[int]) -> str:
        key = (family, halves[0], halves[1])
        if key not in text:
            made = (
                ipaddress.IPv4Address(halves[1]) if family == 4 else ipaddress.IPv6Address(halves[0] << 64 | halves[1])
            )
            text[key] = str(made)
        return text[key]

    columns = (
        there.family.tolist(), there.proto.tolist(), there.src.tolist(), there.sport.tolist(), there.dst.tolist(),
        there.dport.tolist(), there.icmp_type.tolist(), there.icmp_code.tolist(), back.src.tolist(),
        back.sport.tolist(), back.dst.tolist(), back.dport.tolist(), flows.replied.tolist(),
    )  # fmt: skip
    for family, proto, src, sport, dst, dport, kind, code, rsrc, rsport, rdst, rdport, replied in zip(
        *columns, strict=True
    ):
        group = _GROUPS[proto, family]
        if proto in (1, 58):
            lines.add((group, address(family, src), kind, address(family, dst), code))
            continue
        lines.add((group, address(family, src), sport, address(family, dst), dport))
        if replied:
            lines.add((group, address(family, rsrc), rsport, address(family, rdst), rdport))
    return lines
