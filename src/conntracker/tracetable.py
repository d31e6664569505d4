"""The private nft tables that switch tracing on for the first packets of each flow and direction. Pure: text only.

A packet meets `pre` or `out` at the start of its way (`ingress` in a netdev table), and a marker at the end of each
hook: `input`, `forward` or `post`. Of a traced packet the kernel sends one message there, or a few at the start.

A direction of a flow goes through two sets with the same key, whose elements live for one window:

    seen_*   it had a first packet; its element counts the packets that are still to be traced
    done_*   they were traced; looked up first, so that the many packets of old flows cost one lookup

Kernel facts (net/netfilter): looking up an element runs its own `limit`, an inverted lookup (`!=`) does not
(nft_lookup.c). Ports of later fragments do not load, so a rule with ports never matches them (nft_payload.c). The bit
that `meta nftrace` sets stays with a packet through the loopback device, and no rule can read it. A base chain that
ends without a verdict gives two messages (nf_tables_core.c). `ct` does not occur here: it would switch connection
tracking on where nobody else did.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["COUNTERS", "MARKERS", "STARTS", "TraceOptions", "TraceTable", "read_counters", "tables"]

STARTS = ("pre", "out", "ingress")  # chains in which a packet's trace begins
MARKERS = ("input", "forward", "post")  # chains that a packet meets when it has passed the hook

# What the ceilings refused, in packets: `list counters table FAMILY NAME`, or `reset counters table FAMILY NAME`.
COUNTERS = ("refused", "refused_echo", "refused_errors", "refused_other")

FIRST, LAST = -(2**31), 2**31 - 2  # priorities; at 2**31 - 1 connection tracking confirms (linux/netfilter_ipv4.h)
HIGHEST_START = -310  # before raw at -300, after fragments are put together at -400 (linux/netfilter_ipv4.h)
MOST_ELEMENTS = 1_000_000

WITH_PORTS = {4: "ip protocol { tcp, udp, udplite, sctp, dccp }", 6: "meta l4proto { tcp, udp, udplite, sctp, dccp }"}
# Types of ICMP messages that ask or answer with an identifier, by which connection tracking tells them apart too, and
# of those that are about another packet (linux/icmp.h, linux/icmpv6.h).
ICMP = {4: "icmp", 6: "icmpv6"}
QUERIES = {4: "0, 8, 13, 14, 15, 16, 17, 18", 6: "128, 129"}
ERRORS = {4: "3, 4, 5, 11, 12", 6: "1, 2, 3, 4"}
ETHERTYPE = {4: "ip", 6: "ip6"}
MARK = "meta nftrace set 1 accept"
LATER_FRAGMENT = {4: "ip frag-off & 0x1fff != 0", 6: "frag frag-off != 0"}


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """What is traced.

    packets   of each direction of a flow in a window
    window    seconds, after which a direction is traced anew
    rate      new directions a second at most, of TCP, UDP and their like; a tenth of it of echoes, of ICMP errors and
              of everything else
    only      nft match syntax, None for everything
    """

    packets: int = 4
    window: float = 30.0
    rate: int = 500
    only: str | None = None


@dataclass(frozen=True, slots=True)
class TraceTable:
    """A table: its family (inet, netdev or bridge) and the text between its braces."""

    family: str
    text: str


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of traffic: the key that tells directions of flows apart, and the ceiling that it shares with others."""

    name: str
    version: int
    key: str
    ceiling: str


# The first four bytes are the ports of every protocol of WITH_PORTS, in one load; an ICMP query has its type and identifier.
_KINDS = (
    _Kind("flow4", 4, "ip saddr . ip daddr . ip protocol . @th,0,32", ""),
    _Kind("flow6", 6, "ip6 saddr . ip6 daddr . meta l4proto . @th,0,32", ""),
    _Kind("echo4", 4, "ip saddr . ip daddr . @th,0,8 . @th,32,16", "_echo"),
    _Kind("echo6", 6, "ip6 saddr . ip6 daddr . @th,0,8 . @th,32,16", "_echo"),
    _Kind("other4", 4, "ip saddr . ip daddr . ip protocol", "_other"),
    _Kind("other6", 6, "ip6 saddr . ip6 daddr . meta l4proto", "_other"),
)
_CEILINGS = ("", "_echo", "_errors", "_other")


def tables(
    options: TraceOptions, lowest: int = -300, ingress: Sequence[str] = (), bridge: bool = False
) -> list[TraceTable]:
    """The tables to make, that of family inet first.

    lowest    the lowest priority of any base chain of ip, ip6 and inet at prerouting and output
    ingress   devices that have ingress chains
    bridge    whether there are bridge chains

    Raises ValueError for options out of range, and for names that no device can have.
    """
    _check(options)
    common = [*_ceilings(options), *_sets(options), *_chains(options.packets)]
    before_all = max(FIRST, min(HIGHEST_START, lowest - 10))
    made = [TraceTable("inet", "\n".join([*common, *_starts(before_all), *_markers()]))]
    if ingress:
        devices = ", ".join(f'"{_device(name)}"' for name in ingress)
        made.append(TraceTable("netdev", "\n".join([*common, _start("ingress", f"ingress devices = {{ {devices} }}")])))
    if bridge:
        made.append(TraceTable("bridge", "\n".join([*common, *_starts(FIRST), *_markers()])))
    return made


def read_counters(listing: str) -> dict[str, int]:
    """Packets by name of COUNTERS, from what `list counters table FAMILY NAME` or `reset ...` prints."""
    found = re.findall(r"counter (\w+) \{\s*packets (\d+)", listing)
    return {name: int(packets) for name, packets in found if name in COUNTERS}


def _check(options: TraceOptions) -> None:
    for flag, value, least, most in (
        ("--trace-packets", options.packets, 1, 1000),
        ("--trace-window", options.window, 0.1, 86400),
        ("--trace-rate", options.rate, 1, 100_000),
    ):
        if not least <= value <= most:
            raise ValueError(f"{flag}: {value:g} is not between {least:g} and {most:g}")


def _device(name: str) -> str:
    """A name that may stand between quotes (dev_valid_name in net/core/dev.c allows more, nft does not)."""
    if not re.fullmatch(r"[^\s\"\\/:*\0]{1,15}", name):
        raise ValueError(f"no name of a device: {name!r}")
    return name


def _rate(options: TraceOptions, ceiling: str) -> int:
    return max(1, options.rate // 10) if ceiling else options.rate


def _ceilings(options: TraceOptions) -> list[str]:
    made = []
    for ceiling in _CEILINGS:
        rate = _rate(options, ceiling)
        made.append(f"counter refused{ceiling} {{ }}")
        made.append(f"limit new{ceiling} {{ rate over {rate}/second burst {rate} packets; }}")
    return made


def _sets(options: TraceOptions) -> list[str]:
    made = []
    for kind in _KINDS:
        rate = _rate(options, kind.ceiling)
        size = min(MOST_ELEMENTS, int(rate * options.window) + rate)
        rest = f"flags dynamic,timeout; timeout {round(options.window * 1000)}ms; size {size};"
        made += [f"set {use}_{kind.name} {{ typeof {kind.key}; {rest} }}" for use in ("seen", "done")]
    return made


def _chains(packets: int) -> list[str]:
    """The chains for packets of flows that are not done."""
    made = [line for kind in _KINDS for line in _chains_of_kind(kind, packets)]
    for version, errors in ERRORS.items():
        kinds = [f"@th,0,8 {{ {QUERIES[version]} }} goto echo{version}", f"@th,0,8 {{ {errors} }} goto errors{version}"]
        made.append(_chain(f"icmp{version}", *kinds, f"goto other{version}"))
        made.append(_chain(f"errors{version}", _refuse("_errors"), MARK))
        made.append(
            _chain(f"rest{version}", f"meta l4proto {ICMP[version]} goto icmp{version}", f"goto other{version}")
        )
    return made


def _chains_of_kind(kind: _Kind, packets: int) -> list[str]:
    name, key = kind.name, kind.key
    looked_up = name.startswith("flow")  # by the chains in which packets start
    new = _chain(
        f"new_{name}",
        _refuse(kind.ceiling),
        # A week: not even the longest window gives a packet back.
        f"add @seen_{name} {{ {key} limit rate 1/week burst {packets} packets }} {MARK}",
        f'counter name "refused{kind.ceiling}" accept',  # the set is full
    )
    old = _chain(
        name,
        *([] if looked_up else [f"{key} @done_{name} accept"]),
        f"{key} != @seen_{name} goto new_{name}",
        f"{key} @seen_{name} {MARK}",
        f"add @done_{name} {{ {key} }} accept",
        *([f"{LATER_FRAGMENT[kind.version]} goto other{kind.version}"] if looked_up else []),
        "accept",
    )
    return [new, old]


def _refuse(ceiling: str) -> str:
    return f'limit name "new{ceiling}" counter name "refused{ceiling}" accept'


def _starts(priority: int) -> list[str]:
    return [_start("pre", "prerouting", priority), _start("out", "output", priority)]


def _start(name: str, hook: str, priority: int = FIRST) -> str:
    return _chain(
        name,
        f"type filter hook {hook} priority {priority}; policy accept;",
        *(f"{kind.key} @done_{kind.name} accept" for kind in _KINDS if kind.name.startswith("flow")),
        # What comes in through the loopback device (always number 1) was looked at when it went out.
        *([] if name == "out" else ["iif 1 accept"]),
        *(f"meta protocol {ETHERTYPE[version]} {WITH_PORTS[version]} goto flow{version}" for version in (4, 6)),
        *(f"meta protocol {ETHERTYPE[version]} goto rest{version}" for version in (4, 6)),
        "accept",
    )


def _markers() -> list[str]:
    hooks = {"input": "input", "forward": "forward", "post": "postrouting"}
    return [
        _chain(name, f"type filter hook {hooks[name]} priority {LAST}; policy accept;", "accept") for name in MARKERS
    ]


def _chain(name: str, *lines: str) -> str:
    return "\n".join([f"chain {name} {{", *(f"    {line}" for line in lines), "}"])
