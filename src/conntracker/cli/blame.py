"""conntracker blame: which rule let a flow through, dropped or rejected it, and the way of its packets."""

from __future__ import annotations

import contextlib
from itertools import islice
from typing import TYPE_CHECKING

from conntracker.cli.capture import duration
from conntracker.cli.common import add_filter_arguments, filter_of, lines_width, say
from conntracker.cli.doubts import say_of_owners, there_are
from conntracker.cli.times import parse_time
from conntracker.output import Output

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator

    from conntracker.cli.live import Watched
    from conntracker.recording.reader import Recording

__all__ = ["add_arguments", "run"]

NONE_FOUND = 1
VERDICTS = ("accept", "drop", "reject", "queue", "stolen", "undecided")


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `conntracker blame`."""
    parser.add_argument(
        "-r", "--read", metavar="DIR", action="append", help="a recording made with -t; more than one are read as one"
    )
    parser.add_argument(
        "--for", dest="duration", metavar="TIME", type=duration, help="without -r: how long to wait for packets (10s)"
    )
    parser.add_argument("--netns", metavar="NAME", help="without -r: a network namespace, by name, path or pid")
    parser.add_argument(
        "--trace", dest="trace_only", metavar="MATCH", help="without -r: trace only this, where there is much traffic"
    )
    parser.add_argument("--json", action="store_true", help="an object a line")
    parser.add_argument("--path", action="store_true", help="a diagram of netfilter with the way marked in it")
    parser.add_argument("--group-by", choices=("rule",), help="each rule with what it decided, most flows first")
    parser.add_argument(
        "--verdict", metavar="LIST", help=f"only what came to this: {', '.join(VERDICTS)}; a list with commas"
    )
    parser.add_argument("--since", metavar="TIME", help="flows alive at or after TIME: 2026-01-31T09:30, 09:30, 10m")
    parser.add_argument("--until", metavar="TIME", help="flows alive at or before TIME")
    parser.add_argument("--limit", metavar="N", type=int, help="at most N flows, the newest; or N rules, the first")
    add_filter_arguments(parser, owners=True)


def run(args: Namespace) -> int:
    """Prints the answer; 1 if no flow and no packet is what was asked for, 2 if something was damaged."""
    _check(args)
    filter_of(args, owners=args.read is not None)
    watched: Watched | None = None
    with contextlib.ExitStack() as stack:
        if args.read is None:
            from conntracker.cli.live import record_for_blame

            watched = stack.enter_context(record_for_blame(args))
        from conntracker.recording.reader import open_recording

        recording = stack.enter_context(open_recording([watched.directory] if watched else args.read))
        found = False
        with Output("-").open() as out:
            for text in _answer(recording, args):
                found = True
                out.write(text.encode("utf-8", "replace"))
        _say_doubts(recording)
        say_of_owners(recording, filter_of(args, owners=args.read is not None).owned)
        if not found:
            say(_nothing(args, recording, watched))
        return 2 if recording.damaged else 0 if found else NONE_FOUND


def _nothing(args: Namespace, recording: Recording, watched: Watched | None) -> str:
    """Why there is no answer."""
    wanted = filter_of(args, owners=args.read is not None)
    such = " of such a flow" if wanted else ""
    if watched is None:
        instead = there_are(recording, wanted) if recording.owned else ""
        return f"nothing in the recording is what was asked for: no flow, and no packet that was traced{instead}"
    if watched.traced:
        return f"packets traced{such}: {watched.traced:,}; none came to: {args.verdict}"
    from conntracker.cli.live import span

    return f"no packet{such} within {span(watched.seconds)}"


def _check(args: Namespace) -> None:
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit: {args.limit} is less than 1")
    if args.json and args.path:
        raise ValueError("--path does not go with --json, which has every step")
    if args.group_by and args.path:
        raise ValueError("--path does not go with --group-by: a path is that of a flow")
    if args.duration == 0:
        raise ValueError("--for: in no time no packet can come")
    for option, value in (("--for", args.duration), ("--netns", args.netns), ("--trace", args.trace_only)):
        if args.read is not None and value is not None:
            raise ValueError(f"{option} does not go with -r: nothing is captured")
    for option, value in (("--since", args.since), ("--until", args.until)):
        if args.read is None and value is not None:
            raise ValueError(f"{option} goes with -r only: without it, what comes now is traced")
    _times(args)
    _verdicts(args)
    if args.trace_only is not None:
        from conntracker.traceonly import check_restriction

        check_restriction(args.trace_only)


def _verdicts(args: Namespace) -> set[str] | None:
    if args.verdict is None:
        return None
    wanted = {word.strip() for word in args.verdict.split(",")}
    if unknown := sorted(wanted - set(VERDICTS)):
        raise ValueError(f"--verdict: no verdict {unknown[0]!r}; there are: {', '.join(VERDICTS)}")
    return wanted


def _times(args: Namespace) -> tuple[int | None, int | None]:
    since, until = (
        None if text is None else parse_time(option, text)
        for option, text in (("--since", args.since), ("--until", args.until))
    )
    if since is not None and until is not None and since > until:
        raise ValueError("--since is after --until")
    return since, until


def _answer(recording: Recording, args: Namespace) -> Iterator[str]:
    where = filter_of(args, owners=args.read is not None), *_times(args)
    verdicts = _verdicts(args)
    width = lines_width()
    if args.group_by:
        from conntracker.answers.rules import by_rule
        from conntracker.formats.blame import rules_lines
        from conntracker.formats.blame_json import rule_json

        rules = [one for one in by_rule(recording, *where) if verdicts is None or one.path.verdict in verdicts]
        rules = rules[: args.limit]
        yield from map(rule_json, rules) if args.json else rules_lines(rules, width)
        if rules and not args.json and (limit := _traced_at_most(recording)):
            yield limit
        return
    from conntracker.answers.blame import blame
    from conntracker.formats.blame import blame_lines
    from conntracker.formats.blame_json import blame_json
    from conntracker.formats.path import diagram

    limit = args.limit if verdicts is None else None  # the newest of those with that verdict, not of all
    answers = blame(recording, *where, limit=limit, untraced=None if args.read else _say_untraced)
    wanted = (one for one in answers if verdicts is None or one.verdict in verdicts)
    for number, one in enumerate(islice(wanted, args.limit)):
        if args.json:
            yield blame_json(one)
            continue
        yield "\n" if number else ""
        yield from blame_lines(one, width)
        if args.path and one.way is not None:
            yield "\n" + diagram(one.way.path)


def _say_untraced(flows: int) -> None:
    """That a flow had no packet is all that is known of it: it is no answer."""
    if flows:
        say(f"{flows:,} other flow{'' if flows == 1 else 's'} had no packet that was traced meanwhile")


def _traced_at_most(recording: Recording) -> str | None:
    """What the column `traced` counts, if all parts say the same."""
    facts = {
        (trace.get("packets"), trace.get("window"))
        for part in recording.parts
        if part.meta is not None and (trace := part.meta.trace) is not None
    }
    if len(facts) != 1:
        return None
    packets, window = facts.pop()
    return f"traced: packets, at most the first {packets} of each direction of a flow in {window}\n"


def _say_doubts(recording: Recording) -> None:
    """What may be missing from the answer."""
    from conntracker.answers.untraced import refusals

    for part in recording.parts:
        if part.meta is None:
            continue
        if part.meta.trace is None and not part.traces:
            say(f"{part.path}: made without -t, so nothing is known of rules")
        elif part.meta.trace and (refused := refusals(part.meta.trace.get("refused"), part.meta.trace.get("rate"))):
            say(refused if len(recording.parts) == 1 else f"{part.path}: {refused}")
    lost = [loss for loss in recording.losses if loss.kind == "traces"]
    if lost:
        say(f"steps may be missing: {sum(loss.events or 0 for loss in lost):,} trace messages were lost")
    for file, why in recording.damaged:
        say(f"left out {file}: {why}")
