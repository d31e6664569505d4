"""`conntracker events`: what the kernel says of its connections, as it says it."""

from __future__ import annotations

import signal
import sys
import time
from argparse import ArgumentParser, Namespace

from conntracker.cli.capture import duration, size
from conntracker.cli.common import add_filter_arguments, filter_of, say


def add_arguments(parser: ArgumentParser) -> None:
    """What to listen to, and how to print it."""
    parser.add_argument("--json", action="store_true", help="an object a line")
    parser.add_argument("--duration", metavar="TIME", type=duration, help="end after this time: 30s, 5m, 1h")
    parser.add_argument("--netns", metavar="NAME|PID", help="look into another network namespace")
    parser.add_argument("--no-enable", action="store_true", help="fail where connection tracking is off")
    parser.add_argument("--receive-buffer", metavar="SIZE", type=size, default=64 << 20, help="(64M)")
    add_filter_arguments(parser)


def run(args: Namespace) -> int:
    """Streams until told to stop or until nobody reads any more."""
    wanted = filter_of(args)
    from conntracker.formats import events
    from conntracker.model import Batch
    from conntracker.restore import repair
    from conntracker.sources.netlink import closed_pipe
    from conntracker.tracker import capture

    for line in repair():
        say(line)
    lines = events.json_lines if args.json else events.text_lines
    end = time.monotonic() + args.duration if args.duration is not None else float("inf")
    with capture(
        netns=args.netns, filter=wanted, enable=not args.no_enable, receive_buffer=args.receive_buffer, dump=False,
        notice=say,
    ) as stream:  # fmt: skip
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: stream.stop())
        say("capturing; Ctrl-C ends it")
        while not stream.stopped and (left := end - time.monotonic()) > 0:
            for item in stream.poll(min(1.0, left)):
                if isinstance(item, Batch):
                    sys.stdout.write("".join(f"{line}\n" for line in lines(item)))
                else:
                    say(f"{item.events if item.events is not None else 'unknown'} {item.kind} lost")
            sys.stdout.flush()
            if closed_pipe(sys.stdout.fileno()):
                break
    say(f"{stream.events:,} events, {stream.lost:,} lost")
    return 0
