"""Times as people write them on a command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

__all__ = ["parse_time"]

AGO = re.compile(r"(\d{1,9}) ?([smhdw])(?: ago)?", re.ASCII)
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
CLOCK = re.compile(r"(?:(today|yesterday) )?(\d{1,2}:\d\d(?::\d\d)?)", re.ASCII)


def parse_time(option: str, text: str, now: datetime | None = None) -> int:
    """A time as people write it, as microseconds since the epoch, UTC.

    ISO 8601 (local time unless it names a zone), '9:30' and 'today 9:30', 'yesterday 9:30', '10m' or '10m ago'
    (s, m, h, d, w), 'now'. Raises ValueError naming the option.
    """
    now = now or datetime.now().astimezone()
    try:
        return (_time(text.strip().lower(), now).astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(
            microseconds=1
        )
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"{option}: {text!r} is not a time (2026-01-31T09:30, 09:30, yesterday 09:30, 10m for ten minutes ago)"
        ) from None


def _time(text: str, now: datetime) -> datetime:
    if text == "now":
        return now
    if ago := AGO.fullmatch(text):
        return now - timedelta(seconds=int(ago[1]) * SECONDS[ago[2]])
    if clock := CLOCK.fullmatch(text):
        day = now.date() - timedelta(days=clock[1] == "yesterday")
        return datetime.fromisoformat(f"{day} {clock[2] if clock[2][2] == ':' else '0' + clock[2]}")
    return datetime.fromisoformat(text.upper())
