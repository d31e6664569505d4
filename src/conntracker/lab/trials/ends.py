"""Where a packet came to in the end, and with which headers: what the kernel says, beside an outcome of the engine."""

from __future__ import annotations

from dataclasses import dataclass

from conntracker.lab.oracle import Seen
from conntracker.lab.trials.space import TRANSLATED
from conntracker.rules.packets import Packet
from conntracker.rules.walk import Outcome

__all__ = ["End", "end_of", "wrong_end"]

_COMPARED = ("saddr", "daddr", "sport", "dport", "tos", "ttl", "length")


@dataclass(frozen=True, slots=True)
class End:
    """fate and out as in oracle.Seen; the fields that NAT and rules may change, with None where it has none."""

    fate: str
    out: str
    fields: tuple[int | None, ...]


def end_of(seen: Seen) -> End:
    """Of a packet that was sent."""
    after = seen.after()
    return End(seen.fate, seen.out, tuple(after[name] for name in _COMPARED) if after else ())


def wrong_end(packet: Packet, outcome: Outcome, stopped: bool, end: End) -> str | None:
    """What is not as the engine says; None if all is. Fields that the engine does not know are not compared.

    stopped  whether routing drops the packet
    """
    fate = _fate(outcome, stopped)
    if fate != end.fate:
        return f"it has {end.fate}, and should have {fate}"
    later = outcome.packet
    if fate == "left" and later.get("oif", end.out) != end.out:
        return f"it left by {end.out}, and not by {later['oif']}"
    status = packet.get("ct_status")
    translated = isinstance(status, int) and status & TRANSLATED  # by what its flow was given before
    for name, value in zip(_COMPARED, end.fields, strict=False):
        said = later.get(name, value)
        if said != value and value is not None and said is not None and not translated:
            return f"its {name} is {value}, and not {said}"
    return None


def _fate(outcome: Outcome, stopped: bool) -> str:
    if stopped or outcome.path.verdict != "accept":
        return "gone"
    return "arrived" if outcome.path.reached == "input" else "left"
