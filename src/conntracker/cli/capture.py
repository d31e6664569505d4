"""`conntracker`: capture until told to stop, then write the log."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import time
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from conntracker.cli.common import add_filter_arguments, filter_of, say
from conntracker.output import Output

if TYPE_CHECKING:
    from conntracker.keeper import Keeper
    from conntracker.model import Loss
    from conntracker.owning import Owning
    from conntracker.recording.writer import RecordingWriter
    from conntracker.tracetable import TraceOptions
    from conntracker.tracing import Tracing
    from conntracker.tracker import Capture

DEFAULT_LOG = "/tmp/conntracker.log"  # noqa: S108  the original's place; see output.Output for why it is safe
DEFAULT_PIDFILE = "/run/conntracker.pid"
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "": 1}
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def add_arguments(parser: ArgumentParser) -> None:
    """The original's flags, and ours."""
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("-d", "--daemon", action="store_true", help="in the background: messages to syslog, a pid file")
    mode.add_argument("-f", "--foreground", action="store_true", help="in the foreground, until Ctrl-C (default)")
    parser.add_argument("-t", "--traces", dest="trace", action="store_true", help="the rules that each flow met")
    parser.add_argument(
        "-e", "--everything", action="store_true", help="with -t: also what was dropped or rejected, and never a flow"
    )
    parser.add_argument("-b", "--owners", action="store_true", help="the process behind each end of a flow")
    parser.add_argument(
        "-o", "--output", metavar="FILE", default=DEFAULT_LOG, help="the log, - for standard output (%(default)s)"
    )
    parser.add_argument("-w", "--write", metavar="DIR", help="keep a recording in the new directory DIR")
    parser.add_argument("--duration", metavar="TIME", type=duration, help="end after this time: 30s, 5m, 1h")
    parser.add_argument("--netns", metavar="NAME|PID", help="look into another network namespace")
    parser.add_argument("--no-enable", action="store_true", help="fail where connection tracking is off")
    parser.add_argument(
        "--accounting", action="store_true", help="let the kernel count packets and note times meanwhile"
    )
    parser.add_argument("--pidfile", metavar="FILE", default=DEFAULT_PIDFILE, help="with -d (%(default)s)")
    parser.add_argument(
        "--flush", metavar="TIME", type=duration, default=5.0, help="with -w: write a segment this often (5s)"
    )
    parser.add_argument(
        "--max-flows", metavar="N", type=_count, default=1_000_000, help="flows in memory; more go to disk (1000000)"
    )
    parser.add_argument("--receive-buffer", metavar="SIZE", type=size, default=64 << 20, help=SUPPRESS)
    add_trace_arguments(parser)
    parser.add_argument(
        "--no-cmdline", action="store_true", help="with -b: without the arguments of processes, which may be secret"
    )
    parser.add_argument(
        "--cgroup", metavar="DIR", help="with -b: only sockets of this directory of cgroup2 and below (all)"
    )
    add_filter_arguments(parser)


def add_trace_arguments(parser: ArgumentParser) -> None:
    """What -t traces."""
    parser.add_argument(
        "--trace", dest="trace_only", metavar="MATCH", help="with -t: only this, in nft's words: 'tcp dport 443'"
    )
    parser.add_argument(
        "--trace-packets", metavar="N", type=_count, default=4, help="of each flow and direction in a window (4)"
    )
    parser.add_argument(
        "--trace-window", metavar="TIME", type=duration, default=30.0, help="after it, a flow is traced anew (30s)"
    )
    parser.add_argument(
        "--trace-rate", metavar="N", type=_count, default=500, help="new flows and directions a second, at most (500)"
    )


def run(args: Namespace) -> int:
    """Checks what can be checked at once, then captures here or in the background."""
    if args.everything and not args.trace:
        raise ValueError("-e needs -t: it traces the packets that are no flow, too")
    if args.trace_only is not None and not args.trace:
        raise ValueError("--trace needs -t: it says what to trace")
    for option, given in (("--no-cmdline", args.no_cmdline), ("--cgroup", args.cgroup is not None)):
        if given and not args.owners:
            raise ValueError(f"{option} needs -b: it says what -b does")
    if args.trace:
        trace_options(args)
    if args.cgroup is not None and not os.path.exists(os.path.join(args.cgroup, "cgroup.controllers")):
        raise ValueError(f"--cgroup: {args.cgroup!r} is not a directory of cgroup2")
    filter_of(args)
    output = Output(args.output)
    _check_write(args, output)
    if not args.daemon:
        return _capture(args, output, say, lambda: None)
    if output.standard:
        raise ValueError("-d has no standard output: -o FILE")
    return _background(args, output)


def trace_options(args: Namespace) -> TraceOptions:
    """Raises ValueError for what cannot be traced."""
    from conntracker.tracetable import TraceOptions, tables

    options = TraceOptions(args.trace_packets, args.trace_window, args.trace_rate, args.trace_only)
    tables(options)
    return options


def _check_write(args: Namespace, output: Output) -> None:
    """-w names a directory that is not there yet, or an empty one. Raises ValueError, OSError."""
    if args.write is None:
        return
    if args.write in ("", "-"):
        raise ValueError(f"-w: {args.write!r} is not a directory")
    args.write = os.path.abspath(args.write)
    if args.write == output.path:
        raise ValueError(f"-w and -o: {args.write} cannot be both")
    if os.path.lexists(args.write):
        if os.listdir(args.write):
            raise FileExistsError(errno.EEXIST, "the directory is not empty, and nothing is overwritten", args.write)
    elif not os.path.isdir(os.path.dirname(args.write)):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.path.dirname(args.write))
    if find_spec("duckdb") is None:  # found out now, not at the first segment; imported later, after the fork of -d
        raise ImportError("a recording needs duckdb")


def _background(args: Namespace, output: Output) -> int:
    from conntracker.cli.main import explain
    from conntracker.daemon import AlreadyRunning, Background, PidFile, detach

    def work(background: Background) -> int:
        try:
            pidfile = PidFile(args.pidfile)
        except AlreadyRunning as error:
            background.say(str(error))
            return 1
        try:
            return _capture(args, output, background.say, background.ready)
        finally:
            pidfile.remove()

    def guarded(background: Background) -> int:
        try:
            return work(background)
        except Exception as error:
            code, line = explain(error)
            background.say(line if code is not None else f"{type(error).__name__}: {line}")
            return 3 if code is None else code

    args.pidfile = os.path.abspath(args.pidfile)
    return detach(guarded)


def _capture(args: Namespace, output: Output, notice: Callable[[str], None], ready: Callable[[], None]) -> int:
    from conntracker.keeper import Keeper
    from conntracker.restore import repair
    from conntracker.tracker import capture

    for line in repair():
        notice(line)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        flows = stack.enter_context(
            capture(
                netns=args.netns, filter=filter_of(args), enable=not args.no_enable, accounting=args.accounting,
                receive_buffer=args.receive_buffer, notice=notice,
            )
        )  # fmt: skip
        signals.tell(flows)
        recording = _recording(args, flows)
        if recording is not None:
            stack.callback(_close, recording, notice)
            _keep_rules(flows, recording, notice, stack)
        keeper = stack.enter_context(
            Keeper(recording, int(args.flush * 1e6), args.max_flows, notice, flows.entries(), args.everything)
        )  # fmt: skip
        if args.owners:
            keeper.owning = _owning(args, flows, notice, stack)
        if keeper.owning is not None:
            keeper.note_owners(keeper.owning.facts())
        traced = _tracing(args, flows, keeper, notice, stack) if args.trace else None
        notice("capturing; Ctrl-C ends it" if not args.daemon else "capturing; SIGTERM ends it")
        ready()
        code = 0
        try:
            _loop(args, flows, keeper, traced, signals.requests, lambda: _write_log(output, keeper, notice))
            if traced is not None:
                traced.finish()
            keeper.take(flows.finish())
            keeper.conclude(flows.dumped)
            if keeper.owning is not None:
                keeper.owning.finish(keeper.table)
                keeper.note_owners(keeper.owning.facts())
        except OSError as error:  # what was seen until then is worth a log
            notice(f"the capture ended early: {error.strerror or error}")
            code = 3
        return max(code, _end(flows, keeper, traced, output, notice))


def _tracing(
    args: Namespace, flows: Capture, keeper: Keeper, notice: Callable[[str], None], stack: contextlib.ExitStack
) -> Tracing | None:
    """Switches tracing on; where that cannot be done, flows are logged without."""
    from conntracker.tracer import Tracer
    from conntracker.tracing import Tracing

    options = trace_options(args)
    try:
        tracer = stack.enter_context(Tracer(flows.namespace, options, notice))
    except (OSError, ImportError) as error:
        notice(f"no traces: {getattr(error, 'strerror', None) or error}")
        return None
    return Tracing(tracer, keeper, options, filter_of(args), args.everything, notice, flows.tracking.own)


def _owning(
    args: Namespace, flows: Capture, notice: Callable[[str], None], stack: contextlib.ExitStack
) -> Owning | None:
    """Looks for owners from now on; where that cannot be done, flows are logged without."""
    from conntracker.ownerwatch import OwnerOptions
    from conntracker.owning import Owning

    options = OwnerOptions(args.cgroup, not args.no_cmdline)
    try:
        return stack.enter_context(Owning(flows.namespace, options, lambda: flows.lag, notice))
    except OSError as error:
        notice(f"no owners: {error.strerror or error}")
        return None


def _close(recording: RecordingWriter, notice: Callable[[str], None]) -> None:
    try:
        recording.close()
    except OSError as error:
        notice(f"the recording is not closed: {error.strerror or error}")


def _recording(args: Namespace, flows: Capture) -> RecordingWriter | None:
    if args.write is None:
        return None
    from conntracker.recording.writer import RecordingWriter

    accounting, timestamps = flows.sysctls()
    return RecordingWriter(args.write, netns=args.netns, accounting=accounting, timestamps=timestamps)


def _keep_rules(
    flows: Capture, recording: RecordingWriter, notice: Callable[[str], None], stack: contextlib.ExitStack
) -> None:
    """Puts the rules in force into the recording, as soon as they are read."""
    from conntracker.sources.situation import Reading

    try:
        stack.callback(Reading(flows.namespace, recording.keep_rules, notice).close)
    except OSError as error:
        notice(f"the recording is without the rules in force: {error.strerror or error}")


def _loop(
    args: Namespace,
    flows: Capture,
    keeper: Keeper,
    traced: Tracing | None,
    requests: list[int],
    write_log: Callable[[], object],
) -> None:
    end = time.monotonic() + args.duration if args.duration is not None else float("inf")
    while not flows.stopped and (left := end - time.monotonic()) > 0:
        if traced is None:
            keeper.take(flows.poll(min(1.0, left)))
        else:
            keeper.take(flows.poll(min(traced.patience, left), traced.filenos()))
            traced.take()
        keeper.tick()
        if requests:
            requests.clear()
            keeper.take(flows.refresh())
            write_log()


class Signals:
    """SIGINT, SIGTERM and a closed terminal end the capture; SIGUSR1 asks for the log.

    In force from before the first change to the host until after everything is put back.
    """

    def __init__(self) -> None:
        self.requests: list[int] = []
        self._flows: Capture | None = None
        self.ending = False

    def tell(self, flows: Capture) -> None:
        """The capture to end; at once, if that was asked for already."""
        self._flows = flows
        if self.ending:
            flows.stop()

    def _end(self, number: int, frame: object) -> None:
        if self.ending:
            os.write(2, b"conntracker: already ending: the log is being written\n")
        self.ending = True
        if self._flows is not None:
            self._flows.stop()

    def _ask(self, number: int, frame: object) -> None:
        self.requests.append(number)
        if self._flows is not None:
            self._flows.wake()

    def __enter__(self) -> Signals:
        handlers = {signal.SIGINT: self._end, signal.SIGTERM: self._end, signal.SIGHUP: self._end}
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup(1)
            del handlers[signal.SIGHUP]
        handlers[signal.SIGUSR1] = self._ask
        self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _end(flows: Capture, keeper: Keeper, traced: Tracing | None, output: Output, notice: Callable[[str], None]) -> int:
    """The last segment, the log and the summary. What fails is said, and does not keep the rest from being done."""
    code = 0
    try:
        keeper.finish({"events": flows.events, "lost": flows.lost, "undecodable": flows.decoder.undecodable})
    except OSError as error:
        notice(f"the end of the recording is not written: {error.strerror or error}")
        code = 3
    code = max(code, _write_log(output, keeper, notice))
    more = [] if traced is None else traced.summary()
    more += [] if keeper.owning is None else keeper.owning.summary()
    for line in summary(flows, keeper) + more:
        notice(line)
    return code


def _write_log(output: Output, keeper: Keeper, notice: Callable[[str], None]) -> int:
    try:
        with output.open() as stream:
            lines = keeper.write_log(stream)
    except BrokenPipeError:
        from conntracker.cli.main import closed

        return closed()
    except OSError as error:
        notice(f"{output.path}: {error.strerror or error}: the log is not written")
        return 3
    notice(f"{'standard output' if output.standard else output.path}: {lines:,} lines")
    return 0


def summary(flows: Capture, keeper: Keeper) -> list[str]:
    """What a person should know at the end, in lines."""
    lines = [f"{keeper.count()}, {flows.events:,} events, {flows.lost:,} lost"]
    lines += [_loss_line(loss) for loss in keeper.losses]
    if flows.decoder.unknown:
        lines.append(f"{flows.decoder.unknown:,} attributes of a newer kernel were passed over")
    off = [name for name, on in zip(("counters", "times"), flows.sysctls(), strict=True) if not on]
    if off:
        lines.append(f"the kernel keeps no {' and no '.join(off)} here: --accounting switches them on meanwhile")
    return lines


def _loss_line(loss: Loss) -> str:
    clocks = [time.strftime("%H:%M:%S", time.localtime(t // 1_000_000)) for t in (loss.since, loss.until)]
    window = f"{clocks[0]}.{loss.since // 1000 % 1000:03} to {clocks[1]}.{loss.until // 1000 % 1000:03}"
    what = {
        "events": "events lost: flows that began and ended then may be missing",
        "undecodable": "messages could not be decoded",
        "untracked": "connection tracking was off: flows then are missing",
        "unwritten": "flows are not in the recording",
        "traces": "or more trace messages lost: steps may be missing",
    }[loss.kind]
    return f"{window}: {what}" if loss.events is None else f"{window}: {loss.events:,} {what}"


def duration(text: str) -> float:
    """A time span in seconds: 30s, 5m, 1.5h, 200ms, or a plain number of seconds. For argparse."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)", text)
    if match is None:
        raise ArgumentTypeError(f"{text!r} is not a time like 30s, 5m or 1h")
    return float(match[1]) * _UNITS[match[2]]


def size(text: str) -> int:
    """A number of bytes: 64M, 512K. For argparse."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    if match is None or int(match[1]) * _SIZES[match[2]] >= 1 << 30:
        raise ArgumentTypeError(f"{text!r} is not a size like 512K or 64M, below 1G")
    return int(match[1]) * _SIZES[match[2]]


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)
