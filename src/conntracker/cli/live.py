"""What `blame` asks of the kernel now: a recording that lasts until the packet in question has come."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conntracker.cli.capture import Signals
from conntracker.cli.common import filter_of, say

if TYPE_CHECKING:
    from conntracker.keeper import Keeper
    from conntracker.tracing import Tracing
    from conntracker.tracker import Capture

_WAIT = 10.0  # seconds, unless --for says otherwise
_AFTER = 1.0  # seconds that are waited after the first packet, for its answers


# What Tracer says of itself, and a person who waits for one packet need not read.
_ASIDE = ("iptables-legacy rules: ",)
_PUT_BACK = " put back to "
_NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS))


@dataclass(slots=True)
class Watched:
    """What came while `blame` waited.

    directory   of the recording
    seconds     how long it waited
    traced      how many packets of such flows were traced
    """

    directory: str
    seconds: float = 0.0
    traced: int = 0


@contextlib.contextmanager
def record_for_blame(args: Namespace) -> Iterator[Watched]:
    """A recording of what args ask for (filters, --for, --netns), gone at the end of the block.

    It ends a second after the first packet of such a flow, after --for, or with Ctrl-C. Raises as Tracer does, and
    OSError naming the place where there is no room for it.
    """
    watched = Watched(_directory())
    try:
        try:
            _record(args, watched)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            said = f"{error.strerror} (TMPDIR names another place)"
            place = None if watched.directory in said else error.filename or watched.directory
            raise OSError(error.errno, said, place) from error
        yield watched
    finally:
        shutil.rmtree(watched.directory, ignore_errors=True)


def _directory() -> str:
    try:
        return tempfile.mkdtemp(prefix="conntracker-")
    except OSError as error:
        place = error.filename or os.environ.get("TMPDIR") or "/tmp, /var/tmp"  # noqa: S108
        what = "no room for what is traced: not writable, or full (TMPDIR names another place)"
        raise OSError(errno.ENOSPC, what, place) from error


def span(seconds: float) -> str:
    """A time span in few words: 10s, 90s, 5m."""
    return f"{seconds / 60:g}m" if seconds >= 120 and not seconds % 60 else f"{seconds:.3g}s"


def _unless_aside(line: str) -> None:
    if not line.startswith(_ASIDE) and _PUT_BACK not in line:
        say(line)


def _record(args: Namespace, watched: Watched) -> None:
    from conntracker.keeper import Keeper
    from conntracker.recording.writer import RecordingWriter
    from conntracker.restore import repair
    from conntracker.sources.netns import Namespace as NetworkNamespace
    from conntracker.tracer import Tracer
    from conntracker.tracetable import TraceOptions
    from conntracker.tracing import Tracing
    from conntracker.tracker import capture
    from conntracker.tracking import TrackingOff

    for line in repair():
        say(line)
    wanted, options = filter_of(args), TraceOptions(only=args.trace_only)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        flows: Capture | None = None
        try:
            flows = stack.enter_context(capture(netns=args.netns, filter=wanted, enable=False, notice=say))
            signals.tell(flows)
            namespace = flows.namespace
        except TrackingOff:
            say("connection tracking is off here: packets are traced, flows are not known")
            namespace = NetworkNamespace.current() if args.netns is None else NetworkNamespace.find(args.netns)
            stack.callback(namespace.close)
        recording = stack.enter_context(RecordingWriter(watched.directory, netns=args.netns))
        keeper = stack.enter_context(Keeper(recording, 1 << 62, 1_000_000, say))
        tracer = stack.enter_context(Tracer(namespace, options, _unless_aside))
        begun = False

        def later(line: str) -> None:
            if begun:
                say(line)

        tracing = Tracing(tracer, keeper, options, wanted, True, later)
        begun = True
        wait = _WAIT if args.duration is None else args.duration
        such = "a packet of such a flow" if wanted else "a packet"
        say(
            f"waiting up to {span(wait)} for {such}; Ctrl-C ends it"
            f" (traced by the private table {' and '.join(tracer.names)}, gone with this process)"
        )
        begin = time.monotonic()
        _wait(flows, keeper, tracing, signals, begin + wait)
        watched.seconds = min(time.monotonic() - begin, wait)
        tracing.finish()
        watched.traced = tracing.kept
        if flows is not None:
            keeper.take(flows.finish())
            keeper.conclude(flows.dumped)
        keeper.finish({})


def _wait(flows: Capture | None, keeper: Keeper, tracing: Tracing, signals: Signals, end: float) -> None:
    from conntracker.sources.netlink import wait

    while not signals.ending and time.monotonic() < end:
        if flows is None:
            wait(tracing.filenos(), 0.05)
        else:
            keeper.take(flows.poll(0.05, tracing.filenos()))
        before = tracing.kept
        tracing.take()
        if tracing.kept and not before:
            end = min(end, time.monotonic() + _AFTER)
