"""What several commands share: the filter options, and messages. Imports little: every command waits for it."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from conntracker.filters import Filter

__all__ = ["add_filter_arguments", "filter_of", "lines_width", "say"]


def say(message: str) -> None:
    """One line on standard error, if there still is one."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(f"conntracker: {message}", file=sys.stderr, flush=True)


OWNER_OPTIONS = ("process", "user", "unit", "container")


def add_filter_arguments(parser: ArgumentParser, owners: bool = False) -> None:
    """The options that select flows; read them with filter_of. Those on owners are told where they may be used."""
    about = "comma-separated lists; NAT is looked through on either side"
    group = parser.add_argument_group("filters", about + ("; a comma in a name is \\," if owners else ""))
    group.add_argument("--proto", metavar="LIST", help="protocols, by name or number: tcp,udp,47")
    group.add_argument(
        "--src", metavar="LIST", help="source addresses, prefixes (10.0.0.0/8), ranges (10.0.0.1-10.0.0.9)"
    )
    group.add_argument("--dst", metavar="LIST", help="destination addresses, as --src")
    group.add_argument("--port", metavar="LIST", help="source or destination ports, ranges (8000-8100)")
    group.add_argument("--sport", metavar="LIST", help="source ports")
    group.add_argument("--dport", metavar="LIST", help="destination ports")
    told = {
        "process": "processes at either end, in recordings made with -b: names, pids, paths",
        "user": "their users, by name or number",
        "unit": "their systemd units, .service may be left out",
        "container": "their containers, by name or the begin of an id",
    }
    for option in OWNER_OPTIONS:
        group.add_argument(f"--{option}", metavar="LIST", help=told[option] if owners else argparse.SUPPRESS)


def filter_of(args: Namespace, owners: bool = False) -> Filter:
    """The filter that the options say.

    owners   whether conditions on owners can be met: flows have them in recordings only

    Raises ValueError naming the option and the bad part.
    """
    from conntracker.filters import Filter

    of_owners = {option: getattr(args, option) for option in OWNER_OPTIONS}
    for option, value in of_owners.items():
        if value is not None and not owners:
            raise ValueError(f"only recordings know owners: --{option} goes with show -r and blame -r")
    return Filter.parse(args.proto, args.src, args.dst, args.port, args.sport, args.dport, **of_owners)


def lines_width() -> int:
    """How wide lines for people may be. A pipe is read by people too: as wide as the narrowest terminal."""
    import os
    import shutil

    return max(40, shutil.get_terminal_size().columns) if os.isatty(1) or "COLUMNS" in os.environ else 80
