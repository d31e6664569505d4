"""What several commands share: the filter options, and messages. Imports little: every command waits for it."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from conntracker.filters import Filter

__all__ = ["add_filter_arguments", "filter_of", "say"]


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
