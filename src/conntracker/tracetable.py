"""The private nft tables that switch tracing on for the first packets of each flow and direction. Pure: text only.

A packet meets `pre` or `out` at the start of its way (`ingress` in a netdev table), and a marker at the end of each
hook: `input`, `forward` or `post`. Of a traced packet the kernel sends one message there, or a few at the start.

A direction of a flow goes through two sets with the same key, whose elements live for one window:

    seen_*   it had a first packet; its element counts the packets that are still to be traced
    done_*   they were traced; looked up first, so that the many packets of old flows cost one lookup, but for SYNs

Kernel facts (net/netfilter): looking up an element runs its own `limit`, an inverted lookup (`!=`) does not
(nft_lookup.c). Loads of 1, 2 or 4 bytes take what is in the place of ports in later fragments, too
(nft_payload_fast_eval in nf_tables_core.c). The bit that `meta nftrace` sets stays with a packet through the loopback
device, and no rule can read it. A base chain that ends without a verdict gives two messages. `ct` does not occur here:
it would switch connection tracking on where nobody else did.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from conntracker.traceonly import conditions

__all__ = ["COUNTERS", "MARKERS", "STARTS", "TraceOptions", "TraceTable", "rate_of", "tables"]

STARTS = ("pre", "out", "ingress")  # chains in which a packet's trace begins
MARKERS = ("input", "forward", "post")  # chains that a packet meets when it has passed the hook

# What the ceilings refused, in packets: named counters of each table.
COUNTERS = ("refused", "refused_echo", "refused_errors", "refused_other")

FIRST, LAST = -(2**31), 2**31 - 2  # priorities; at 2**31 - 1 connection tracking confirms (linux/netfilter_ipv4.h)
HIGHEST_START = -310  # before raw at -300, after fragments are put together at -400 (linux/netfilter_ipv4.h)
MOST_ELEMENTS = 1_000_000

WITH_PORTS = {4: "ip protocol { tcp, udp, udplite, sctp, dccp }", 6: "meta l4proto { tcp, udp, udplite, sctp, dccp }"}
SYN = {4: "ip protocol tcp tcp flags & (syn | ack) == syn", 6: "meta l4proto tcp tcp flags & (syn | ack) == syn"}
# Types of ICMP messages that ask or answer with an identifier, by which connection tracking tells them apart too, and
# of those that are about another packet (linux/icmp.h, linux/icmpv6.h).
ICMP = {4: "icmp", 6: "icmpv6"}
QUERIES = {4: "0, 8, 13, 14, 15, 16, 17, 18", 6: "128, 129"}
ERRORS = {4: "3, 4, 5, 11, 12", 6: "1, 2, 3, 4"}
# Of IPv6 the chain's name ends with the protocol: trace messages do not show what is behind extension headers.
MARK = {4: "meta nftrace set 1 accept", 6: "goto mark6"}
TOLD = ("tcp", "udp", "icmpv6")
LOOPED = "iif 1 accept"  # what comes in from the loopback device, always number 1, was looked at when it went out
LATER_FRAGMENT = {4: "ip frag-off & 0x1fff != 0", 6: "frag frag-off != 0"}
NO_FRAGMENT = {4: "ip frag-off & 0x1fff == 0", 6: "exthdr frag missing"}


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


# The first four bytes are the ports of every protocol of WITH_PORTS, in one load; an ICMP query has its type and
# identifier.
_KEYS = {4: "ip saddr . ip daddr . ip protocol . @th,0,32", 6: "ip6 saddr . ip6 daddr . meta l4proto . @th,0,32"}
_KINDS = (
    _Kind("flow4", 4, _KEYS[4], ""),
    _Kind("flow6", 6, _KEYS[6], ""),
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

    Raises ValueError for options out of range, for a restriction that check_restriction refuses, and for names that no
    device can have.
    """
    _check(options)
    only = [] if options.only is None else conditions(options.only)
    common = [*_ceilings(options), *_sets(options), *_chains(options.packets)]
    if only:
        common.append(_chain("begin", *_begin()))
    before_all = max(FIRST, min(HIGHEST_START, lowest - 10))
    both = {"pre": "prerouting", "out": "output"}
    made = [TraceTable("inet", "\n".join([*common, *_starts(both, before_all, only), *_markers()]))]
    if ingress:
        devices = ", ".join(f'"{_device(name)}"' for name in ingress)
        hook = {"ingress": f"ingress devices = {{ {devices} }}"}
        made.append(TraceTable("netdev", "\n".join([*common, *_starts(hook, FIRST, only)])))
    if bridge:
        made.append(TraceTable("bridge", "\n".join([*common, *_starts(both, FIRST, only), *_markers()])))
    return made


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


def rate_of(options: TraceOptions, counter: str) -> int:
    """How much a second the ceiling lets through whose refusals a counter of COUNTERS counts."""
    return options.rate if counter == COUNTERS[0] else max(1, options.rate // 10)


def _ceilings(options: TraceOptions) -> list[str]:
    made = []
    for ceiling in _CEILINGS:
        rate = rate_of(options, f"refused{ceiling}")
        made.append(f"counter refused{ceiling} {{ }}")
        made.append(f"limit new{ceiling} {{ rate over {rate}/second burst {rate} packets; }}")
    return made


def _sets(options: TraceOptions) -> list[str]:
    made = []
    for kind in _KINDS:
        rate = rate_of(options, f"refused{kind.ceiling}")
        size = min(MOST_ELEMENTS, int(rate * options.window) + rate)
        rest = f"flags dynamic,timeout; timeout {round(options.window * 1000)}ms; size {size};"
        made += [f"set {use}_{kind.name} {{ typeof {kind.key}; {rest} }}" for use in ("seen", "done")]
    return made


def _chains(packets: int) -> list[str]:
    """The chains for packets of flows that are not done."""
    made = [_chain(f"mark6_{protocol}", MARK[4]) for protocol in TOLD]
    made.append(_chain("mark6", *(f"meta l4proto {protocol} goto mark6_{protocol}" for protocol in TOLD), MARK[4]))
    made += [line for kind in _KINDS for line in _chains_of_kind(kind, packets)]
    for version, errors in ERRORS.items():
        kinds = [f"@th,0,8 {{ {QUERIES[version]} }} goto echo{version}", f"@th,0,8 {{ {errors} }} goto errors{version}"]
        made.append(_chain(f"icmp{version}", *kinds, f"goto other{version}"))
        made.append(_chain(f"errors{version}", _refuse("_errors"), MARK[version]))
        made.append(
            _chain(
                f"rest{version}",
                f"{LATER_FRAGMENT[version]} goto other{version}",
                f"meta l4proto {ICMP[version]} goto icmp{version}",
                f"goto other{version}",
            )
        )
    return made


def _chains_of_kind(kind: _Kind, packets: int) -> list[str]:
    name, key, mark = kind.name, kind.key, MARK[kind.version]
    new = _chain(
        f"new_{name}",
        _refuse(kind.ceiling),
        *([] if kind.ceiling else [f"delete @done_{name} {{ {key} }}"]),  # that one may live longer than the first
        # A week: not even the longest window gives a packet back.
        f"add @seen_{name} {{ {key} limit rate 1/week burst {packets} packets }} {mark}",
        f'counter name "refused{kind.ceiling}" accept',  # the set is full
    )
    old = _chain(
        name,
        # What has ports was looked up before, but later fragments do not have them.
        f"{key} @done_{name} accept" if kind.ceiling else f"{LATER_FRAGMENT[kind.version]} goto other{kind.version}",
        f"{key} != @seen_{name} goto new_{name}",
        f"{key} @seen_{name} {mark}",
        f"add @done_{name} {{ {key} }} accept",
        "accept",
    )
    return [new, old]


def _refuse(ceiling: str) -> str:
    return f'limit name "new{ceiling}" counter name "refused{ceiling}" accept'


def _starts(hooks: dict[str, str], priority: int, only: list[str]) -> list[str]:
    """The base chains in which packets start, by name of the chain."""
    made = []
    for name, hook in hooks.items():
        rules = _begin(name != "out")
        if only:
            rules = [*([LOOPED] if name != "out" else []), *(f"{match} goto begin" for match in only), "accept"]
        made.append(_chain(name, f"type filter hook {hook} priority {priority}; policy accept;", *rules))
    return made


def _begin(may_be_looped: bool = False) -> list[str]:
    """The rules with which every packet begins."""
    rules = []
    for version, key in _KEYS.items():
        condition = f"{NO_FRAGMENT[version]}{' iif != 1' if may_be_looped else ''}"
        new = f"{condition} {key} != @seen_flow{version} goto new_flow{version}"
        # For the many, one lookup: packets of a flood of SYNs, which the ceiling refuses, and those of old flows.
        rules.append(f"{SYN[version]} {new}")
        rules.append(f"{key} @done_flow{version} accept")
        rules.append(f"{WITH_PORTS[version]} {new}")
    return [
        *rules,
        *([LOOPED] if may_be_looped else []),
        f"{WITH_PORTS[4]} goto flow4",
        "meta protocol ip goto rest4",
        f"{WITH_PORTS[6]} goto flow6",
        "meta protocol ip6 goto rest6",
        "accept",
    ]


def _markers() -> list[str]:
    hooks = {"input": "input", "forward": "forward", "post": "postrouting"}
    return [
        _chain(name, f"type filter hook {hooks[name]} priority {LAST}; policy accept;", "accept") for name in MARKERS
    ]


def _chain(name: str, *lines: str) -> str:
    return "\n".join([f"chain {name} {{", *(f"    {line}" for line in lines), "}"])
