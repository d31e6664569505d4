"""conntracker show: the flows of a recording, as a table, as JSON, as the text log, or summed up."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any, BinaryIO

from conntracker.cli.common import add_filter_arguments, filter_of, say
from conntracker.cli.doubts import say_losses, say_of_owners, say_overlaps, there_are
from conntracker.cli.times import parse_time
from conntracker.output import Output

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from conntracker.filters import Filter
    from conntracker.recording.arrow import Columns
    from conntracker.recording.reader import Recording

__all__ = ["add_arguments", "run"]

TABLE_COLUMNS = (
    "proto", "src", "sport", "dst", "dport", "first_seen", "state", "packets", "bytes", "reply_packets", "reply_bytes",
    "last_seen",
)  # fmt: skip

OWNERS = ("process", "peer_process")  # of the source and of the destination, behind the ends
TABLE_WITH_OWNERS = (*TABLE_COLUMNS[:5], *OWNERS, *TABLE_COLUMNS[5:])

# What a narrow terminal goes without, in this order.
TABLE_OPTIONAL = ("last_seen", "reply_packets", "packets", "reply_bytes", "state", "bytes")
OWNERS_OPTIONAL = (*TABLE_OPTIONAL, "first_seen", "peer_process", "process")
GROUPS_OPTIONAL = ("first_seen", "reply_packets", "packets", "last_seen", "reply_bytes")
SIDES_OPTIONAL = ("received_packets", "sent_packets", "first_seen", "last_seen", "received_bytes", "sent_bytes")

PEERS_AT_MOST = 50  # of a row of a table


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `conntracker show`."""
    parser.add_argument(
        "-r",
        "--read",
        metavar="DIR",
        action="append",
        required=True,
        help="a recording; more than one are shown as one",
    )
    parser.add_argument("--format", choices=("table", "json", "log"), default=None, help="default: table")
    parser.add_argument("--json", action="store_const", dest="format", const="json", help="the same as --format json")
    parser.add_argument("--since", metavar="TIME", help="flows alive at or after TIME: 2026-01-31T09:30, 09:30, 10m")
    parser.add_argument("--until", metavar="TIME", help="flows alive at or before TIME")
    parser.add_argument("--sort", metavar="COLUMN", help="order by a column; -COLUMN: largest first")
    parser.add_argument(
        "--group-by",
        metavar="COLUMNS",
        help="sums by columns: dst,dport,proto; by process, user, unit or container: who talks to whom (beside columns"
        " of flows `role` says whether the owner is at the flow's source, client, or at its destination, server)",
    )
    parser.add_argument("--limit", metavar="N", type=int, help="at most N rows")
    parser.add_argument("-o", "--output", metavar="FILE", default="-", help="default: - (standard output)")
    add_filter_arguments(parser, owners=True)


def run(args: Namespace) -> int:
    """Prints what the options ask for; 2 when something was damaged and only the rest could be printed."""
    _check(args)
    wanted = filter_of(args, owners=True)
    since, until = (
        None if text is None else parse_time(option, text)
        for option, text in (("--since", args.since), ("--until", args.until))
    )
    if since is not None and until is not None and since > until:
        raise ValueError("--since is after --until")
    from conntracker.recording.reader import open_recording

    with open_recording(args.read) as recording:
        with Output(args.output).open() as out:
            if args.format == "log":
                found = _write_log(out, recording, (wanted, since, until))
            else:
                found = _write_rows(out, recording, args, (wanted, since, until))
        owned = say_of_owners(recording, _asks_for_owners(args, wanted))
        narrow = bool(wanted) or since is not None or until is not None
        if not found and narrow and args.limit != 0 and (owned or not wanted.owned):
            say(f"nothing in the recording is what was asked for{there_are(recording, wanted)}")
        say_overlaps(recording)
        say_losses(recording)
        for file, why in recording.damaged:
            say(f"left out {file}: {why}")
        return 2 if recording.damaged else 0


def _check(args: Namespace) -> None:
    if args.limit is not None and args.limit < 0:
        raise ValueError(f"--limit: {args.limit} is less than 0")
    if args.format == "log":
        for option, value in (("--sort", args.sort), ("--group-by", args.group_by), ("--limit", args.limit)):
            if value is not None:
                raise ValueError(f"{option} does not go with --format log, which has an order of its own")


def _asks_for_owners(args: Namespace, wanted: Filter) -> bool:
    from conntracker.recording.choices import OWN_NAMES
    from conntracker.recording.sides import by_owner

    sorted_by = (args.sort or "").removeprefix("-")
    grouped = args.group_by is not None and by_owner(args.group_by)
    return wanted.owned or grouped or sorted_by in (*OWN_NAMES, "peer_process")


def _write_log(out: BinaryIO, recording: Recording, where: tuple[Filter, int | None, int | None]) -> bool:
    """The text log, with the steps of traced packets, and with all of those that a capture with -e traced.

    As all that write: whether there was anything.
    """
    from conntracker.formats.log import write_groups
    from conntracker.formats.steps import step_lines
    from conntracker.recording.stepped import log_with_steps

    traced = [part.meta.trace for part in recording.parts if part.meta is not None and part.meta.trace is not None]
    everything = any(trace.get("everything") for trace in traced)
    filter, since, until = where
    groups, steps = log_with_steps(
        recording, step_lines, filter=filter, since=since, until=until, everything=everything
    )  # fmt: skip
    return write_groups(out, groups, steps) > 0


def _write_rows(
    out: BinaryIO, recording: Recording, args: Namespace, where: tuple[Filter, int | None, int | None]
) -> bool:
    from conntracker.recording.sides import by_owner

    if args.group_by is not None and by_owner(args.group_by):
        return _write_sides(out, recording, args, where)
    if args.group_by is not None:
        from conntracker.recording.query import groups_query

        query = groups_query(args.group_by, *where, sort=args.sort, limit=args.limit)
        return _write_chunks(out, recording.chunks(query), args, GROUPS_OPTIONAL)
    return _write_flows(out, recording, args, where)


def _write_flows(
    out: BinaryIO, recording: Recording, args: Namespace, where: tuple[Filter, int | None, int | None]
) -> bool:
    from conntracker.formats.jsonl import FLOW_KEYS
    from conntracker.recording.owned import ENDS
    from conntracker.recording.ownertexts import owner_texts
    from conntracker.recording.query import flows_query
    from conntracker.recording.views import condition

    if args.format == "json":
        query = flows_query(FLOW_KEYS, *where, sort=args.sort, limit=args.limit)
        with owner_texts(recording, condition(*where)) as with_texts:
            return _write_chunks(out, map(with_texts, recording.chunks(query)), args, (), dict.fromkeys(ENDS, str))
    columns, optional = (
        (TABLE_WITH_OWNERS, OWNERS_OPTIONAL) if _has_owners(recording) else (TABLE_COLUMNS, TABLE_OPTIONAL)
    )
    query = flows_query(columns, *where, sort=args.sort, limit=args.limit)
    return _write_chunks(out, recording.chunks(query), args, optional)


def _has_owners(recording: Recording) -> bool:
    """Whether any flow has an owner who is known."""
    query = "SELECT 1 AS one FROM flow_rows WHERE owner_kind IS NOT NULL OR peer_owner_kind IS NOT NULL LIMIT 1"
    return recording.owned and any(True for _ in recording.chunks(query))


def _write_sides(
    out: BinaryIO, recording: Recording, args: Namespace, where: tuple[Filter, int | None, int | None]
) -> bool:
    """The sums by owners, with the peers of each."""
    from conntracker.formats.peers import peers_json, peers_text
    from conntracker.recording.sides import sides

    json = args.format == "json"
    most = None if json else PEERS_AT_MOST
    chunks = sides(recording, args.group_by, *where, args.sort, args.limit, most, terse=not json)
    names = [name.strip() for name in args.group_by.split(",")]
    optional = (*(("kind",) if "process" in names else ()), *SIDES_OPTIONAL)
    return _write_chunks(out, chunks, args, optional, {"peers": peers_json}, {"peers": peers_text})


def _write_chunks(
    out: BinaryIO,
    chunks: Iterable[Columns],
    args: Namespace,
    optional: Sequence[str],
    as_json: Mapping[str, Callable[[Any], str]] | None = None,
    as_text: Mapping[str, Callable[[Any, int], str]] | None = None,
) -> bool:
    """Chunks as JSON, or as a table; `as_json` and `as_text` write columns that are neither numbers nor text."""
    from conntracker.formats.jsonl import json_lines
    from conntracker.formats.table import table_lines

    texts = (
        ("".join(json_lines(chunk, as_json)) for chunk in chunks)
        if args.format == "json"
        else table_lines(chunks, _width(), optional, as_text)
    )
    found = False
    for text in texts:
        found = True
        out.write(text.encode())
    return found


def _width() -> int:
    # A file or a pipe has no width; columns must not come and go there.
    return shutil.get_terminal_size().columns if os.isatty(1) or "COLUMNS" in os.environ else 10_000
