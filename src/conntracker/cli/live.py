"""What `blame` asks of the kernel now: a recording that lasts until the packet in question has come."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from conntracker.cli.capture import Signals
from conntracker.cli.common import filter_of, say

if TYPE_CHECKING:
    from conntracker.keeper import Keeper
    from conntracker.tracing import Tracing
    from conntracker.tracker import Capture

_WAIT = 10.0  # seconds, unless --for says otherwise
_AFTER = 1.0  # seconds that are waited after the first packet, for its answers


@contextlib.contextmanager
def record_for_blame(args: Namespace) -> Iterator[str]:
    """The directory of a recording of what args ask for (filters, --for, --netns), gone at the end of the block.

    It ends a second after the first packet of such a flow, after --for, or with Ctrl-C. Raises as Tracer does.
    """
    directory = tempfile.mkdtemp(prefix="conntracker-")
    try:
        _record(args, directory)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _record(args: Namespace, directory: str) -> None:
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
    wanted, options = filter_of(args), TraceOptions()
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
        recording = stack.enter_context(RecordingWriter(directory, netns=args.netns))
        keeper = stack.enter_context(Keeper(recording, 1 << 62, 1_000_000, say))
        tracing = Tracing(stack.enter_context(Tracer(namespace, options, say)), keeper, options, wanted, True, say)
        wait = _WAIT if args.duration is None else args.duration
        say(f"waiting up to {wait:g}s for a packet; Ctrl-C ends it")
        _wait(flows, keeper, tracing, signals, time.monotonic() + wait)
        tracing.finish()
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
