"""What the tracer is told, made by hand: packets' bytes, messages of both streams, rulesets as text, passages."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import ip_address
from textwrap import dedent
from typing import Any

from conntracker.assembly import LegacyStep, NftStep, Passage
from conntracker.rules.snapshot import Snapshot, Texts
from conntracker.steps import HOOKS
from conntracker.wire.nflog import LogMessage
from conntracker.wire.nftrace import Place, TraceMessage
from conntracker.wire.packet import parse

__all__ = [
    "error", "forwarded", "icmp", "ip", "legacy", "logged", "nft", "own", "passage", "snapshot", "tcp", "traced", "udp",
]  # fmt: skip

TCP, UDP = 6, 17


# --- bytes of packets ----------------------------------------------------------------------------------------------


def tcp(sport: int, dport: int, sequence: int = 1) -> bytes:
    """A header."""
    return struct.pack("!HHIIBBHHH", sport, dport, sequence, 0, 5 << 4, 2, 8192, 0, 0)


def udp(sport: int, dport: int, size: int = 8) -> bytes:
    """A header with a payload of `size` bytes."""
    return struct.pack("!HHHH", sport, dport, 8 + size, 0) + bytes(size)


def icmp(kind: int, code: int = 0, number: int = 0, sequence: int = 0) -> bytes:
    """A query or an answer."""
    return struct.pack("!BBHHH", kind, code, 0, number, sequence)


def error(kind: int, code: int, about: bytes) -> bytes:
    """An ICMP error about a packet."""
    return struct.pack("!BBHI", kind, code, 0, 0) + about


def ip(src: str, dst: str, payload: bytes, proto: int = TCP, number: int = 7, hop_by_hop: bool = False) -> bytes:
    """An IPv4 or IPv6 packet; `number` is the id of IPv4, and `hop_by_hop` puts an extension header into IPv6."""
    ends = ip_address(src).packed + ip_address(dst).packed
    if ip_address(src).version == 4:
        return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), number, 0, 64, proto, 0) + ends + payload
    if hop_by_hop:
        payload, proto = bytes([proto, 0, 1, 4, 0, 0, 0, 0]) + payload, 0
    return struct.pack("!IHBB", 6 << 28, len(payload), proto, 64) + ends + payload


# --- messages of nf_tables -----------------------------------------------------------------------------------------


def traced(
    id: int, place: str, verdict: str | None = "accept", handle: int | None = None, data: bytes = b"", **more: Any
) -> TraceMessage:
    """A message at 'inet fw forward': that of a rule if it has a handle, else of a policy.

    data    the packet of which the kernel sends the headers, 40 bytes and 20, with the first message of a base chain
    more    type, target, iif, oif, ct_id
    """
    family, table, chain = place.split()
    kind = more.pop("type", "policy" if handle is None else "rule")
    version = data[0] >> 4 if data else 0
    pf = {4: 2, 6: 10}.get(version, 2)
    where = Place(family, pf, table, chain, kind, handle, verdict, more.pop("target", None))
    size = 40 if version == 6 else 20
    behind = 48 if version == 6 and data[6] == 0 else size
    return TraceMessage(id, where, data[:size], data[behind : behind + 20], **more)


def own(id: int, chain: str, data: bytes, instance: int = 1, family: str = "inet", **more: Any) -> TraceMessage:
    """A message of our own table: one of the chains where packets begin, or input, forward or post at a hook's end."""
    return traced(id, f"{family} conntracker_{instance} {chain}", "accept", 1, data, **more)


def forwarded(id: int, data: bytes, steps: Sequence[TraceMessage], left: bytes | None = None) -> list[TraceMessage]:
    """All messages of a packet that is forwarded from interface 2 to 3; `left` is it after NAT."""
    return [
        own(id, "new_flow4", data, iif=2), *steps, own(id, "forward", left or data, iif=2, oif=3),
        own(id, "post", left or data, iif=2, oif=3),
    ]  # fmt: skip


# --- messages of legacy tables -------------------------------------------------------------------------------------


def logged(hook: str, place: str, type: str, number: int, data: bytes = b"", iif: int = 2, oif: int = 0) -> LogMessage:
    """A log at 'ip filter FORWARD'."""
    family, table, chain = place.split()
    return LogMessage(HOOKS.index(hook), family, table, chain, type, number, data, iif, oif)


def legacy(
    hook: str, place: str, type: str, number: int, data: bytes = b"", epochs: tuple[int, int] = (0, 0), **more: Any
) -> LegacyStep:
    """The same as a step."""
    return LegacyStep(logged(hook, place, type, number, data, **more), *epochs)


# --- rulesets and passages -----------------------------------------------------------------------------------------


def snapshot(nft: str = "", **saves: str) -> Snapshot:
    """The rulesets of a moment: a listing with four spaces for each tab, and saves as legacy_ip or nft_ip6."""
    named = {(f"iptables-{kind}", family): dedent(text) for kind, family, text in _split(saves)}
    return Snapshot.parse(Texts(dedent(nft).replace("    ", "\t"), named, 1))


def _split(saves: dict[str, str]) -> list[tuple[str, str, str]]:
    return [(*name.split("_", 1), text) for name, text in saves.items()]  # type: ignore[misc]


def nft(place: str, verdict: str | None = "accept", handle: int | None = None, epoch: int = 0, **more: Any) -> NftStep:
    """A step as nf_tables told it; `more`: near, first, type, target."""
    near, first = more.pop("near", False), more.pop("first", False)
    return NftStep(traced(0, place, verdict, handle, **more).place, epoch, near, first)


def passage(
    steps: Sequence[NftStep | str], logs: Sequence[LegacyStep] = (), seen: Sequence[str] = (), **more: Any
) -> Passage:
    """The passage of a TCP packet that came in from interface 2, unless `more` says otherwise."""
    data: bytes = more.pop("data", ip("10.0.0.1", "10.0.0.2", tcp(1000, 80)))
    made = Passage(5, 5, parse(data), parse(data).packet, 2, nft=list(steps), legacy=list(logs), seen=list(seen))
    for name, value in more.items():
        setattr(made, name, value)
    return made
