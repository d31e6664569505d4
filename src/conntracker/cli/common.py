"""What several commands share: the filter options, times, messages, and where output goes."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator

    from conntracker.filters import Filter

__all__ = [
    "BAD_INPUT",
    "MISSING",
    "add_filter_arguments",
    "error_text",
    "fail",
    "filter_of",
    "output",
    "parse_time",
    "say",
]

# Exit codes: bad usage or input; a privilege, library or kernel feature that is missing.
BAD_INPUT, MISSING = 2, 3

AGO = re.compile(r"(\d{1,9}) ?([smhdw])(?: ago)?", re.ASCII)
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
CLOCK = re.compile(r"(?:(today|yesterday) )?(\d{1,2}:\d\d(?::\d\d)?)", re.ASCII)


def say(message: str) -> None:
    """One line on standard error."""
    print(f"conntracker: {message}", file=sys.stderr)


def fail(message: str, code: int = BAD_INPUT) -> int:
    """Says why on standard error and gives the exit code back."""
    say(message)
    return code


def error_text(error: BaseException) -> str:
    """An error in one line, without Python's own words."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


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


@contextmanager
def output(path: str) -> Iterator[BinaryIO]:
    """Where a command writes: standard output for '-', else a file, mode 0600, that takes its name when it is whole.

    It is made under a temporary name beside it, so that an earlier file stays until then and a symbolic link in its
    place is replaced, not followed. Raises OSError with what was being done.
    """
    if path == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".conntracker-", dir=os.path.dirname(path) or ".")
    except OSError as error:
        raise OSError(error.errno, f"writing {path}: {error.strerror}") from error
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError) and error.filename is None:
            raise OSError(error.errno, f"writing {path}: {error.strerror}") from error
        raise
