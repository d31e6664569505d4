"""`conntracker diff`: whether two rulesets do the same, and what changes if they do not."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from conntracker.cli.common import lines_width, say
from conntracker.cli.rulefiles import live_host, load
from conntracker.output import Output

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from conntracker.rules.intervals import Intervals
    from conntracker.rules.ruleset import Ruleset

__all__ = ["add_arguments", "run"]

DIFFERENT = 1
LIMIT = 25
_LONG = 500  # rules, from which on comparing takes more than a moment
_LIVE = "live"


def add_arguments(parser: ArgumentParser) -> None:
    """The arguments of `conntracker diff`."""
    about = (
        "a ruleset in a file: iptables-save, ip6tables-save, `nft list ruleset` with or without -j; several with commas"
        " are one; `-` is standard input; `live` is what is in force here, `live:NAME` in a network namespace"
    )
    parser.add_argument("old", metavar="OLD", help=about)
    parser.add_argument("new", metavar="NEW", help="the same")
    parser.add_argument("--limit", metavar="N", type=int, default=LIMIT, help=f"at most N changes ({LIMIT})")
    parser.add_argument(
        "--json", action="store_true", help="an object a line, the first of them whether they are equal"
    )


def run(args: Namespace) -> int:
    """Prints what changes; 1 if anything does."""
    if args.limit < 1:
        raise ValueError(f"--limit: {args.limit} is less than 1")
    from conntracker.answers.diff import diff
    from conntracker.formats.difference import diff_json, diff_lines

    old, new = _ruleset(args.old), _ruleset(args.new)
    for word, ruleset in (("OLD", old), ("NEW", new)):
        for note in ruleset.notes:
            say(f"{word}: {note}")
    count = sum(len(known.meanings) for known in (*old.chains, *new.chains))
    if count > _LONG and sys.stderr.isatty():
        say(f"comparing {count:,} rules: this may take minutes where much is different")
    found = diff(old, new, _local(args.old, args.new), args.limit)
    width = lines_width()
    with Output("-").open() as out:
        for line in diff_json(found) if args.json else diff_lines(found, width):
            out.write(line.encode("utf-8", "replace"))
    return 0 if found.equal else DIFFERENT


def _ruleset(text: str) -> Ruleset:
    """The ruleset that an argument names. Raises RuleSyntaxError, OSError."""
    live, netns = _live(text)
    if live:
        return load(None, netns)
    names = [text] if os.path.exists(text) else text.split(",")
    if not all(names):
        raise ValueError(f"{text!r}: the name of a file is missing")
    return load(names, None)


def _live(text: str) -> tuple[bool, str | None]:
    """(whether what is in force is meant, of which network namespace). A file of that name is ./live."""
    word, _, netns = text.partition(":")
    return word == _LIVE, netns or None


def _local(*texts: str) -> dict[int, Intervals] | None:
    """The addresses of the one host whose ruleset is compared; None if it is none, or more than one."""
    spaces = {netns for live, netns in map(_live, texts) if live}
    if len(spaces) != 1:
        return None
    host = live_host(spaces.pop())
    return None if host is None else dict(host.local)
