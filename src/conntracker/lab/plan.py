"""The load: many flows, one packet each, and the exact list of what the router must track of them. Pure, no I/O.

Every tuple is different, before NAT and after it, so the router never has to move a port, and each flow's answer is
certain: a listening TCP port accepts (and the client, which knows of no such connection, resets), a closed one resets,
an echo is answered, a silent address is silent.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from conntracker.lab.packets import Tuples
from conntracker.lab.topology import ROUTER, ROUTER_OUTSIDE, SERVER, SERVER_MANY, SERVER_SILENT
from conntracker.model import ICMP, ICMPV6, TCP, UDP

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LISTENING", "Flows", "plan"]

MANY = 4096  # client addresses a kind of flow
PORTS = 60000
MOST = 2_000_000  # flows of a plan: the addresses would do for more, memory would not
LISTENING = 7001  # port of the server; firewall.REDIRECTED leads port 8082 of the router there


@dataclass(frozen=True, slots=True)
class Flows:
    """What the router's connection tracking must have: n flows in the order in which they are sent.

    original    the tuples of the packets sent
    reply       the tuples of the answers as the router gets them, after NAT; sport is the echo id for ICMP
    replied     bool[n]: whether the kernel marks the flow as answered (IPS_SEEN_REPLY)
    refused     bool[n]: whether the answer is a TCP reset, for which the kernel destroys the flow at once and does not
                mark it as answered (net/netfilter/nf_conntrack_proto_tcp.c): seen in events, never in a dump
    """

    original: Tuples
    reply: Tuples
    replied: NDArray[np.bool_]
    refused: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.original)


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of flow: its share of all, protocol, destination port, outcome (answered, refused, silent) and NAT."""

    share: int
    proto: int
    port: int
    outcome: str
    nat: str = ""


# Client addresses of a kind stand in a /16 (IPv4) or /32 (IPv6) of its own; that of 'snat' is firewall.MASQUERADED, so
# there is only one 'snat' kind a protocol: two would meet on the router's address.
_KINDS = (
    _Kind(4, TCP, LISTENING, "answered"),
    _Kind(2, TCP, 7002, "refused"),
    _Kind(4, TCP, 7003, "silent"),
    _Kind(7, UDP, 7004, "silent"),
    _Kind(4, ICMP, 0, "answered"),
    _Kind(2, ICMP, 0, "silent"),
    _Kind(2, TCP, LISTENING, "answered", "snat"),
    _Kind(2, UDP, 7005, "silent", "snat"),
    _Kind(1, ICMP, 0, "answered", "snat"),
    _Kind(2, TCP, 8082, "answered", "dnat"),
)


def plan(count: int, *, nat: bool = True, seed: int = 1) -> Flows:
    """`count` different flows of all kinds, IPv4 and IPv6 mixed, in an order that `seed` decides.

    With `nat`, almost one in four crosses the NAT of the lab's firewall; without, the router is taken to have none.
    Raises ValueError for a count beyond two million.
    """
    if not 0 <= count <= MOST:
        raise ValueError(f"a load has 0 to {MOST:,} flows, not {count:,}")
    kinds = [kind for kind in _KINDS if nat or not kind.nat]
    shares = np.repeat(np.arange(2 * len(kinds)), [kind.share for kind in kinds for _ in (4, 6)])
    which = np.sort(np.resize(shares, count))
    parts = []
    for number in range(2 * len(kinds)):
        size = int(np.count_nonzero(which == number))
        parts.append(_flows_of(kinds[number // 2], number // 2, 4 if number % 2 == 0 else 6, size))
    order = np.random.default_rng(seed).permutation(count)
    return Flows(
        _concatenate([part.original for part in parts]).take(order),
        _concatenate([part.reply for part in parts]).take(order),
        np.concatenate([part.replied for part in parts])[order],
        np.concatenate([part.refused for part in parts])[order],
    )


def _flows_of(kind: _Kind, number: int, family: int, size: int) -> Flows:
    """`size` flows of one kind: client address first, then source port, then server address count up."""
    index = np.arange(size, dtype=np.uint64)
    if kind.nat == "snat":  # behind one address, the port and the server must tell them apart
        client, port, server = index % MANY, index % PORTS, index // PORTS
    else:
        client, port, server = index % MANY, index // MANY % PORTS, index // MANY // PORTS
    icmp = kind.proto == ICMP
    proto = ICMPV6 if icmp and family == 6 else kind.proto
    servers = SERVER_SILENT if kind.outcome == "silent" else SERVER_MANY
    request, answer = ((8, 0) if family == 4 else (128, 129)) if icmp else (0, 0)
    original = Tuples(
        family=np.full(size, family, np.uint8),
        proto=np.full(size, proto, np.uint8),
        src=_addresses(_client_prefix(kind, number, family), client + np.uint64(1)),
        dst=_addresses(servers[family], server + np.uint64(1)),
        sport=(port + np.uint64(1024)).astype(np.uint16),
        dport=np.full(size, kind.port, np.uint16),
        icmp_type=np.full(size, request, np.uint8),
        icmp_code=np.zeros(size, np.uint8),
    )
    if kind.nat == "dnat":
        original = replace(original, dst=_addresses(ROUTER[family], np.zeros(size, np.uint64)))
    reply = _reply(kind, family, original, answer)
    return Flows(original, reply, np.full(size, kind.outcome == "answered"), np.full(size, kind.outcome == "refused"))


def _reply(kind: _Kind, family: int, original: Tuples, icmp_type: int) -> Tuples:
    size = len(original)
    here = np.zeros(size, np.uint64)
    icmp = kind.proto == ICMP
    port = LISTENING if kind.nat == "dnat" else kind.port
    return Tuples(
        family=original.family,
        proto=original.proto,
        src=_addresses(SERVER[family], here) if kind.nat == "dnat" else original.dst,
        dst=_addresses(ROUTER_OUTSIDE[family], here) if kind.nat == "snat" else original.src,
        sport=original.sport if icmp else np.full(size, port, np.uint16),
        dport=original.dport if icmp else original.sport,
        icmp_type=np.full(size, icmp_type, np.uint8),
        icmp_code=original.icmp_code,
    )


def _client_prefix(kind: _Kind, number: int, family: int) -> str:
    net = 1 if kind.nat == "snat" else 16 + number
    return f"10.{net}.0.0" if family == 4 else f"fd00:{net:x}::"


def _addresses(base: str, offset: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = int(ipaddress.ip_address(base))
    halves = np.empty((len(offset), 2), np.uint64)
    halves[:, 0] = value >> 64
    halves[:, 1] = np.uint64(value & 2**64 - 1) + offset
    return halves


def _concatenate(parts: list[Tuples]) -> Tuples:
    return Tuples(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Tuples)))
