"""The ways that the packets of a flow took, and which of them answers for the flow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from conntracker.steps import UNDECIDED, Packet, Path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["DIRECTIONS", "Change", "Way", "answer_of", "headline", "sorted_ways"]

DIRECTIONS = ("original", "reply", "unknown", "error", "copy")

# ICMP and ICMPv6: what says that a packet did not arrive (RFC 792, RFC 4443); a redirect says nothing of the kind.
_FAILURES = {1: (3, 11, 12), 58: (1, 2, 3, 4)}
_LOOPBACK = "lo"
_MULTICAST = {4: (32, 0xE0, 0xFF), 6: (128, 0xFF, 0xFF)}  # bits of an address, lowest and highest first byte


@dataclass(frozen=True, slots=True)
class Way:
    """Packets of a flow that had the same headers and took the same path.

    direction       original, reply, error (an ICMP error about the flow), unknown (its flow by its id alone), or copy
                    (made by this host of a packet that came in: TEE of iptables, dup of nft)
    certain         False if they may be another flow's: with the same tuple at the same time, in another zone
    traced          how many were traced: the first few of a direction and window
    first, last     when the first and the last of them was seen: microseconds since the epoch, UTC
    place           tells the order of what was seen at the same time
    packet, left, in_interface, out_interface, path   as in Trace
    """

    direction: str
    certain: bool
    traced: int
    first: int
    last: int
    place: int
    packet: Packet
    left: Packet
    in_interface: str | None
    out_interface: str | None
    path: Path

    @property
    def local(self) -> bool:
        """Whether these packets began on this host."""
        hook = next((step.hook for step in self.path.steps if step.hook is not None), None)
        if hook in (None, "postrouting", "egress"):
            return self.in_interface is None and self.out_interface is not None
        return hook == "output"

    @property
    def loops(self) -> bool:
        """Whether they went through the loopback interface."""
        return _LOOPBACK in (self.in_interface, self.out_interface)


@dataclass(frozen=True, slots=True)
class Change:
    """Packets of one direction came to different ends.

    verdicts    what became of other ones than the newest, in order
    since       when the first came to what the newest came to, and no other verdict after it; None if they take turns
    last        when the newest was seen
    """

    verdicts: tuple[str, ...]
    since: int | None
    last: int


def sorted_ways(ways: Iterable[Way]) -> tuple[Way, ...]:
    """By direction, copies told from the packets that they are of."""
    ways = tuple(ways)
    came: dict[tuple[str, Packet], int] = {}
    for way in ways:
        if not way.local:
            for packet in (way.packet, way.left):
                key = way.direction, packet
                came[key] = min(came.get(key, way.first), way.first)
    # A multicast packet of our own comes in again as a copy: then it is the other way round.
    marked = (
        replace(way, direction="copy")
        if way.direction in ("original", "reply")
        and way.local
        and not way.loops
        and not _is_multicast(way.packet)
        and came.get((way.direction, way.packet), way.first + 1) <= way.first
        else way
        for way in ways
    )
    return tuple(sorted(marked, key=lambda way: DIRECTIONS.index(way.direction)))


def _is_multicast(packet: Packet) -> bool:
    bits, low, high = _MULTICAST[packet.family]
    return low <= packet.dst >> (bits - 8) <= high


def headline(ways: Sequence[Way]) -> tuple[Way | None, Change | None]:
    """The way that answers for a flow: the oldest in the original direction, or in the next one that there is.

    The first packet is the one that rules let through or not; later ones are let through for its sake. But if packets
    of that direction came to different ends, the newest of them tells which counts, and the Change says so.
    """
    for direction in DIRECTIONS[:3]:
        same = [way for way in ways if way.direction == direction]
        if same:
            return _of_direction(same)
    return None, None


def _of_direction(ways: list[Way]) -> tuple[Way, Change | None]:
    newest = max(ways, key=lambda way: (way.last, way.first, way.place))
    alike = [way for way in ways if way.path.verdict == newest.path.verdict]
    others = sorted((way for way in ways if way not in alike), key=_begin)
    if not others:
        return min(alike, key=_begin), None
    verdicts = tuple(dict.fromkeys(way.path.verdict for way in others))
    ended = max(way.last for way in others)
    later = [way for way in alike if way.first >= ended]
    if not later:
        return newest, Change(verdicts, None, newest.last)
    first = min(later, key=_begin)
    return first, Change(verdicts, first.first, newest.last)


def _begin(way: Way) -> tuple[int, int]:
    return way.first, way.place


def answer_of(way: Way, ways: Iterable[Way]) -> Way | None:
    """The ICMP error that says why packets did not arrive that no rule held back: the newest, rather one of this host.

    Where it is not known what became of them, only this host's own will do: another one's answer shows that they left.
    """
    if way.path.verdict not in ("accept", UNDECIDED):
        return None
    errors = [one for one in ways if _is_about(one, way)]
    own = [one for one in errors if one.local or one.loops]
    found = own if own or way.path.verdict == UNDECIDED else errors
    return max(found, key=lambda one: (one.last, one.place), default=None)


def _is_about(error: Way, way: Way) -> bool:
    about, kinds = error.packet.about, _FAILURES.get(error.packet.proto, ())
    if error.direction != "error" or error.packet.icmp_type not in kinds or error.last < way.first:
        return False
    if about is None:  # nf_tables does not tell; but an error goes to where the packet came from
        return error.packet.dst in (way.packet.src, way.left.src)
    return (about.src, about.sport) in ((one.src, one.sport) for one in (way.packet, way.left))
