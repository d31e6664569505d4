"""meta.json: what a recording says of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from conntracker.model import Loss
from conntracker.recording.schema import FORMAT_VERSION

__all__ = ["RULES", "Meta", "MetaError", "Rulesets", "from_text", "parse_time", "time_text", "to_text"]

RULES = "rules.json"  # the rules in force at the start, and their host: see rules.stored

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class MetaError(ValueError):
    """A meta.json that cannot be understood."""


@dataclass(frozen=True, slots=True)
class Rulesets:
    """The rulesets in force from `time` on (microseconds since the epoch, UTC), as files of the recording."""

    time: int
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Meta:
    """Who recorded, when, and what was lost.

    host, kernel, conntracker   name of the host, its kernel's release, our own version
    start, end                  microseconds since the epoch, UTC; end is None while recording and after a crash
    netns                       the network namespace that was looked into, None for conntracker's own
    accounting, timestamps      whether the kernel counted and timed flows; None if unknown
    losses                      windows in which flows may have been missed
    counters                    numbers of the run: events, lost, ...
    rulesets                    what was in force when, oldest first
    trace                       None without tracing; else its options (packets, window, rate, only, everything), when
                                it began (start), and what it missed (refused, lost)
    owners                      None without owners; else how they are known (method), whether every socket of the host
                                was seen (whole), since when (start), and how many sides of sockets were lost
    """

    host: str
    kernel: str
    conntracker: str
    start: int
    end: int | None = None
    netns: str | None = None
    accounting: bool | None = None
    timestamps: bool | None = None
    losses: tuple[Loss, ...] = ()
    counters: dict[str, int] = field(default_factory=dict)
    rulesets: tuple[Rulesets, ...] = ()
    trace: dict[str, int | float | str | bool | None] | None = None
    owners: dict[str, int | float | str | bool | None] | None = None
    version: int = FORMAT_VERSION


def time_text(time: int) -> str:
    """Microseconds since the epoch as ISO 8601, UTC."""
    return (EPOCH + timedelta(microseconds=time)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_time(text: str) -> int:
    """The reverse of time_text. Raises ValueError."""
    time = datetime.fromisoformat(text)
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - EPOCH) // timedelta(microseconds=1)


def to_text(meta: Meta) -> str:
    """The text of meta.json."""
    values: dict[str, Any] = {"version": meta.version}
    values |= {f.name: getattr(meta, f.name) for f in fields(meta)}
    values["start"] = time_text(meta.start)
    values["end"] = None if meta.end is None else time_text(meta.end)
    values["losses"] = [
        {"since": time_text(loss.since), "until": time_text(loss.until), "kind": loss.kind, "events": loss.events}
        for loss in meta.losses
    ]
    for name, facts in (("trace", meta.trace), ("owners", meta.owners)):
        if facts is not None and isinstance(start := facts.get("start"), int):
            values[name] = facts | {"start": time_text(start)}
    values["rulesets"] = [{"time": time_text(one.time), "files": list(one.files)} for one in meta.rulesets]
    return json.dumps(values, indent=1) + "\n"


def from_text(text: str) -> Meta:
    """Meta from the text of meta.json. Raises MetaError; keys that are not known are ignored."""
    try:
        values = json.loads(text)
        version = values["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise MetaError("meta.json is damaged") from None
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise MetaError(f"format version {version} is newer than this conntracker reads ({FORMAT_VERSION})")
    try:
        return _from_values(values)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise MetaError("meta.json is damaged") from None


def _from_values(values: dict[str, Any]) -> Meta:
    known = {f.name: values[f.name] for f in fields(Meta) if f.name in values}
    known["start"] = parse_time(values["start"])
    known["end"] = None if values.get("end") is None else parse_time(values["end"])
    known["losses"] = tuple(
        Loss(parse_time(loss["since"]), parse_time(loss["until"]), str(loss["kind"]), loss["events"])
        for loss in values.get("losses", ())
    )
    known["counters"] = {str(name): int(value) for name, value in values.get("counters", {}).items()}
    known["rulesets"] = tuple(
        Rulesets(parse_time(one["time"]), tuple(str(file) for file in one["files"]))
        for one in values.get("rulesets", ())
    )
    for name in ("trace", "owners"):
        if known.get(name) is not None:
            known[name] = dict(known[name])
            if isinstance(start := known[name].get("start"), str):  # earlier versions wrote the number
                known[name]["start"] = parse_time(start)
    return Meta(**known)
