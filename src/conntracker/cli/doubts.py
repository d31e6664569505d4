"""What a person should know beside an answer from recordings: what may be missing, or is there twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conntracker.cli.common import OWNER_OPTIONS, say

if TYPE_CHECKING:
    from conntracker.filters import Filter
    from conntracker.recording.reader import Recording
    from conntracker.recording.views import Part

__all__ = ["say_losses", "say_of_owners", "say_overlaps", "there_are"]

CHOICES = 5  # so many values are named where none was met
PLURALS = dict(zip(OWNER_OPTIONS, ("processes", "users", "units", "containers"), strict=True))


def say_losses(recording: Recording) -> None:
    """What may be missing, and recordings that have no end."""
    losses = recording.losses
    lost = sum(loss.events or 0 for loss in losses if loss.kind in ("events", "undecodable"))
    if lost:
        say(f"flows may be missing: {lost:,} events were lost (see losses in meta.json)")
    if any(loss.kind == "untracked" for loss in losses):
        say("flows are missing: connection tracking was off for a while (see losses in meta.json)")
    unwritten = sum(loss.events or 0 for loss in losses if loss.kind == "unwritten")
    if unwritten:
        say(f"flows are missing: {unwritten:,} could not be written (see losses in meta.json)")
    lost = sum(loss.events or 0 for loss in losses if loss.kind == "traces")
    if lost:
        say(f"steps may be missing: {lost:,} trace messages were lost (see losses in meta.json)")
    for part in recording.parts:
        if part.meta is not None and part.meta.end is None:
            say(f"{part.path}: still being written, or its capture was killed; this is what it has")


def say_of_owners(recording: Recording, asked: bool) -> bool:
    """Which recordings have no owners, if they were asked for, and which may lack some; whether any has owners."""
    some = False
    for part in recording.parts:
        facts = {} if part.meta is None else part.meta.owners
        if facts is None:
            if asked:
                say(f"{part.path} has no owners: it was recorded without -b")
            continue
        some = True
        doubts = []
        if facts.get("method") == "sock_diag":
            doubts.append("sockets were listed four times a second: what lived shorter than that may have no owner")
        elif asked and facts.get("whole") is False:
            doubts.append("not every socket of the host was watched: who has no owner here may have one")
        if lost := facts.get("lost"):
            doubts.append(f"{lost:,} sides of sockets were lost: their flows have no owner")
        if doubts:
            say(("" if len(recording.parts) == 1 else f"{part.path}: ") + "; ".join(doubts))
    return some


def there_are(recording: Recording, wanted: Filter) -> str:
    """What could have been asked for instead, of each kind of owners that was: '; units there are: web.service, …'."""
    from conntracker.formats.table import printable, short
    from conntracker.recording.sides import sides

    text = ""
    for name, plural in PLURALS.items():
        if not getattr(wanted, name):
            continue
        # Rows of nobody in particular, of which there is at most one of each kind of owners, name no choice.
        chunks = sides(recording, name, limit=CHOICES + 5, most=1)
        values = [value for chunk in chunks for value in chunk[name].tolist() if value is not None]
        shown = [printable(short(name, value)).replace(",", "\\,") for value in values[:CHOICES]]
        shown += ["…"] if len(values) > CHOICES else []
        text += f"; {plural} there are: {', '.join(shown)}" if shown else f"; no {plural} are known"
    return text


def say_overlaps(recording: Recording) -> None:
    """Which recordings have the same flows, for they are of the same host and time."""
    spans = sorted(
        (part.meta.start, _end(recording, index, part), part.path, (part.meta.host, part.meta.netns))
        for index, part in enumerate(recording.parts)
        if part.meta is not None and len(recording.parts) > 1
    )  # fmt: skip
    last: dict[tuple[str, str | None], tuple[int, str]] = {}
    for start, end, path, place in spans:
        before = last.get(place)
        if before is not None and start < before[0]:
            say(f"{before[1]} and {path} are of the same host and time: flows that both have are counted twice")
        if before is None or end > before[0]:
            last[place] = end, path


def _end(recording: Recording, index: int, part: Part) -> int:
    """When a recording ended, or what it has ends: microseconds since the epoch."""
    if part.meta is not None and part.meta.end is not None:
        return part.meta.end
    query = f"SELECT epoch_us(max(last_seen)) AS last FROM flow_rows WHERE part = {index}"  # noqa: S608
    (chunk,) = recording.chunks(query)
    return chunk["last"].tolist()[0] or 0
