"""Tracing as a part of a capture: from the tracer to what the capture keeps, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet

from conntracker.clock import now
from conntracker.filters import Filter
from conntracker.keeper import Keeper
from conntracker.steps import Packet, Trace
from conntracker.traceonly import mirrored
from conntracker.tracer import Tracer
from conntracker.tracetable import TraceOptions, rate_of

# What each ceiling of tracetable is for; the rate of all but the first is a tenth of it.
_REFUSED = {
    "refused": "new flows and directions", "refused_echo": "new pings", "refused_errors": "ICMP errors",
    "refused_other": "new pairs of other protocols",
}  # fmt: skip
_MOST_IDS = 10_000
_NOTE = 5_000_000  # µs between two times that a recording is told what was missed


class Tracing:
    """A tracer that is running, and the keeper that its traces go to.

    wanted      which flows the capture is about; only their packets are kept
    everything  whether packets that never became a flow are shown
    own         ports of our own probes (tracking.Tracking.own), as they are at any time: nobody's traffic
    kept        how many traces were of such flows
    """

    def __init__(
        self,
        tracer: Tracer,
        keeper: Keeper,
        options: TraceOptions,
        wanted: Filter,
        everything: bool,
        notice: Callable[[str], None],
        own: AbstractSet[int] = frozenset(),
    ) -> None:
        self._tracer, self._keeper, self._wanted, self._own = tracer, keeper, wanted, own
        self._options, self._everything, self._start = options, everything, now()
        self._notice, self._ended = notice, False
        self.kept = 0
        self._ids: dict[int, None] = {}  # of wanted flows, the last ones
        notice(
            f"tracing the first {options.packets} packets of each direction of a flow in {options.window:g}s, by "
            f"{' and '.join(f'the private table {name}' for name in tracer.names)}, gone with this process"
        )
        notice("a ruleset saved meanwhile has it; without it: " + SAVE)
        if options.only is not None:
            answers = mirrored(options.only)
            if answers is None:
                notice("--trace: answers are not traced: this match cannot be turned round")
            else:
                notice(
                    f"--trace: answers are traced by '{answers}'; where NAT changes what that asks for, they are not"
                )
        self._note()

    def filenos(self) -> list[int]:
        """What to wait for."""
        return [] if self._ended else self._tracer.filenos()

    @property
    def patience(self) -> float:
        """For how many seconds `take` need not be called while nothing is there to be read."""
        return 1.0 if self._ended else self._tracer.patience

    def take(self) -> None:
        """Keeps what is over by now. What goes wrong ends the tracing, and not the capture."""
        if self._ended:
            return
        try:
            self._keep(self._tracer.poll(0))
        except (OSError, ImportError) as error:
            self._ended = True
            self._tracer.close()
            self._notice(f"tracing ended early: {getattr(error, 'strerror', None) or error}")

    def finish(self) -> None:
        """Keeps all that is left."""
        if not self._ended:
            self._keep(self._tracer.finish())
        self._note()

    def _keep(self, traces: list[Trace]) -> None:
        if self._own:
            traces = [trace for trace in traces if not self._is_probe(trace.packet)]
        if self._wanted:
            traces = [trace for trace in traces if self._is_wanted(trace)]
        self.kept += len(traces)
        losses, self._tracer.losses = self._tracer.losses, []
        self._keeper.take_traces(traces, losses, self._tracer.rulesets)
        if (self._tracer.refused.total(), self._tracer.lost) != self._noted and now() - self._noted_at > _NOTE:
            self._note()

    def _is_wanted(self, trace: Trace) -> bool:
        """Whether a packet is of a flow that is wanted; an ICMP error is of the flow whose id it carries."""
        error = trace.packet.icmp_type is not None and trace.packet.icmp_id is None
        if _meets(self._wanted, trace):
            if trace.ct_id is not None:
                self._ids[trace.ct_id] = None
                if len(self._ids) > _MOST_IDS:
                    del self._ids[next(iter(self._ids))]
            return True
        return error and trace.ct_id in self._ids

    def _is_probe(self, packet: Packet) -> bool:
        return packet.src == packet.dst and (packet.sport or 0) << 16 | (packet.dport or 0) in self._own

    def _note(self) -> None:
        options, tracer = self._options, self._tracer
        self._noted, self._noted_at = (tracer.refused.total(), tracer.lost), now()
        self._keeper.note_tracing({
            "packets": options.packets, "window": f"{options.window:g}s", "rate": options.rate, "only": options.only,
            "everything": self._everything, "start": self._start, "lost": tracer.lost,
            "refused": tracer.refused.total(),
        })  # fmt: skip

    def summary(self) -> list[str]:
        """What a person should know at the end, in lines."""
        tracer = self._tracer
        lines = [f"{tracer.packets:,} packets traced, {tracer.messages:,} messages, {tracer.lost:,} lost"]
        for name, packets in sorted(tracer.refused.items()):
            what = f"more than {rate_of(self._options, name):,} {_REFUSED[name]} a second (--trace-rate)"
            lines.append(f"{packets:,} packets were not traced: {what}")
        if tracer.headless:
            lines.append(f"{tracer.headless:,} trace messages did not say of which packet they are")
        if tracer.undecodable:
            lines.append(f"{tracer.undecodable:,} trace messages could not be decoded")
        return lines


SAVE = "nft list tables | grep -v conntracker_ | while read -r t; do nft list $t; done"


def _meets(wanted: Filter, trace: Trace) -> bool:
    packets = [trace.packet, trace.left] + ([] if trace.packet.about is None else [trace.packet.about])
    return any(wanted.meets(*ends) for packet in packets for ends in _both_ways(packet))


def _both_ways(packet: Packet) -> list[tuple[int, int, int, int, int | None, int | None]]:
    """(family, protocol, source, destination, source port, destination port) as it went, and as its answer goes."""
    one = packet.family, packet.proto
    return [
        (*one, packet.src, packet.dst, packet.sport, packet.dport),
        (*one, packet.dst, packet.src, packet.dport, packet.sport),
    ]
