"""Blame as JSON: one object a line, the keys of a flow, a rule and a step as everywhere."""

from __future__ import annotations

import json
from datetime import datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from conntracker.answers.causes import possible_causes, unseen_rules
from conntracker.formats.icmp import icmp_name
from conntracker.formats.jsonl import FLOW_KEYS
from conntracker.model import protocol_name
from conntracker.recording.meta import time_text
from conntracker.recording.owned import ENDS, OWNER_KEYS
from conntracker.steps import UNDECIDED

if TYPE_CHECKING:
    from conntracker.answers.blame import Blame
    from conntracker.answers.rules import Decided
    from conntracker.answers.ways import Change, Way
    from conntracker.steps import Packet, Path

__all__ = ["blame_json", "rule_json"]


def blame_json(blame: Blame) -> str:
    """One flow, or packets without one, as a line.

    `flow` or `packet`; host, verdict (null if not known); rule, decided (the step that decided) and path (all steps) of
    the packets that answer for it; answered, the ICMP error that says why they did not arrive; changed, if others came
    to a different end; ways, all that was traced, with how many packets were; why_not.
    """
    values: dict[str, Any] = {}
    if blame.flow is not None:
        values["flow"] = {name: _owner(blame.flow, name) if name in ENDS else blame.flow[name] for name in FLOW_KEYS}
    elif blame.packet is not None:
        values["packet"] = _packet(blame.packet)
    values |= {"host": blame.host, **(_outcome(blame.way.path) if blame.way else _NO_OUTCOME)}
    if blame.answer is not None and blame.verdict == UNDECIDED:
        values["possible_causes"] = list(unseen_rules(blame.way.path)) if blame.way else []
    values |= {"answered": blame.answer and _answered(blame.answer), "changed": blame.change and _changed(blame.change)}
    values |= {"ways": [_way(way) for way in blame.ways], "why_not": blame.why_not}
    return json.dumps(values, default=_time) + "\n"


def rule_json(decided: Decided) -> str:
    """What one rule or policy decided, as a line: its verdict, rule and step, and how much."""
    outcome = _outcome(decided.path)
    del outcome["path"]
    values = {
        "host": decided.host, **outcome, "flows": decided.flows, "traced": decided.traced,
        "first_seen": time_text(decided.first), "last_seen": time_text(decided.last),
    }  # fmt: skip
    return json.dumps(values) + "\n"


def _outcome(path: Path) -> dict[str, Any]:
    step = path.deciding
    return {
        "verdict": path.verdict,
        "rule": step.rule.json() if step is not None and step.rule is not None else None,
        "decided": None if step is None else step.json(),
        "reached": path.reached,
        "expected": list(path.expected),
        "possible_causes": list(possible_causes(path)),
        "complete": path.complete,
        "blind": path.blind,
        "path": [one.json() for one in path.steps],
    }


_NO_OUTCOME = dict.fromkeys(
    ("verdict", "rule", "decided", "reached", "expected", "possible_causes", "complete", "blind", "path")
)


def _answered(error: Way) -> dict[str, Any]:
    """The error, its name, and whether this host sent it."""
    packet = error.packet
    name = icmp_name(packet.proto, packet.icmp_type or 0, packet.icmp_code)
    values = _packet(packet)
    return {key: values[key] for key in ("proto", "src", "icmp_type", "icmp_code")} | {
        "name": name, "own": error.local or error.loops,
    }  # fmt: skip


def _changed(change: Change) -> dict[str, Any]:
    """What other packets came to; since when none did, null if they take turns."""
    since = None if change.since is None else time_text(change.since)
    return {"verdicts": list(change.verdicts), "since": since}


def _way(way: Way) -> dict[str, Any]:
    return {
        "direction": way.direction, "certain": way.certain, "traced": way.traced,
        "first_seen": time_text(way.first), "last_seen": time_text(way.last), "in_interface": way.in_interface,
        "out_interface": way.out_interface, "packet": _packet(way.packet), "left": _packet(way.left),
        **_outcome(way.path),
    }  # fmt: skip


def _packet(packet: Packet) -> dict[str, Any]:
    size = 4 if packet.family == 4 else 16
    src, dst = (str(ip_address(address.to_bytes(size, "big"))) for address in (packet.src, packet.dst))
    return {
        "family": packet.family, "proto": protocol_name(packet.proto), "src": src, "sport": packet.sport, "dst": dst,
        "dport": packet.dport, "icmp_type": packet.icmp_type, "icmp_code": packet.icmp_code,
        "icmp_id": packet.icmp_id, "fragment": packet.fragment,
        "about": None if packet.about is None else _packet(packet.about),
    }  # fmt: skip


def _owner(flow: dict[str, Any], end: str) -> dict[str, Any] | None:
    """The owner of one end of a flow as Owner.json has it."""
    if flow.get(f"{end}_kind") is None:
        return None
    return {key: flow[f"{end}_{key}"] for key in OWNER_KEYS}


def _time(value: object) -> str:
    """The times of a flow and of its owners, which are UTC without saying so."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="microseconds") + "Z"
    raise TypeError(f"{type(value).__name__} is not for JSON")
