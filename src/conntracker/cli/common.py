"""What several commands share: the filter options, times, and messages."""

from __future__ import annotations

import contextlib
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from conntracker.filters import Filter

__all__ = ["add_filter_arguments", "filter_of", "parse_time", "say"]

AGO = re.compile(r"(\d{1,9}) ?([smhdw])(?: ago)?", re.ASCII)
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
CLOCK = re.compile(r"(?:(today|yesterday) )?(\d{1,2}:\d\d(?::\d\d)?)", re.ASCII)


def say(message: str) -> None:
    """One line on standard error, if there still is one."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(f"conntracker: {message}", file=sys.stderr, flush=True)


def add_filter_arguments(parser: ArgumentParser) -> None:
    """The options that select flows; read them with filter_of."""
    group = parser.add_argument_group("filters", "comma-separated lists; NAT is looked through on either side")
    group.add_argument("--proto", metavar="LIST", help="protocols, by name or number: tcp,udp,47")
    group.add_argument(
        "--src", metavar="LIST", help="source addresses, prefixes (10.0.0.0/8), ranges (10.0.0.1-10.0.0.9)"
    )
    group.add_argument("--dst", metavar="LIST", help="destination addresses, as --src")
    group.add_argument("--port", metavar="LIST", help="source or destination ports, ranges (8000-8100)")
    group.add_argument("--sport", metavar="LIST", help="source ports")
    group.add_argument("--dport", metavar="LIST", help="destination ports")


def filter_of(args: Namespace) -> Filter:
    """The filter that the options say. Raises ValueError naming the option and the bad part."""
    from conntracker.filters import Filter

    return Filter.parse(args.proto, args.src, args.dst, args.port, args.sport, args.dport)


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
