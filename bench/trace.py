"""Traces: what the tables that switch tracing on cost the packets that cross a router, and what a flood does to them.

A load crosses the lab's router on one CPU, with its firewall and NAT, without tracing and with it, in turn; a reader
takes the traces on the other. Given are bytes, connections and packets a CPU second of the load's processes, in whose
time the kernel forwards, tracks and traces, and of the CPU's ksoftirqd.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
from conntracker.lab.topology import Lab
from conntracker.sources.netns import Namespace
from conntracker.tracetable import TraceOptions

SIDES = ("untraced", "traced")
FLOOD_SOURCES = 400_000  # of bench/c/through.c
TUPLE = "trace.packet.src, trace.packet.sport, trace.packet.dst, trace.packet.dport"

READER = f"""
import json, signal, sys
from conntracker.sources.netns import Namespace
from conntracker.tracer import Tracer
from conntracker.tracetable import TraceOptions

ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
keep, directions = sys.argv[4] == "keep", set()
options = TraceOptions(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
with Tracer(Namespace.current(), options, lambda line: print(line, file=sys.stderr)) as tracer:
    print(*tracer.names, sep=",", flush=True)
    while True:
        over = bool(ended)
        for trace in tracer.finish() if over else tracer.poll(0.1):
            if keep and trace.packet.proto == 6:  # and not what interfaces say by themselves
                directions.add(({TUPLE}))
        if over:
            break
    print(json.dumps({{
        "packets": tracer.packets, "messages": tracer.messages, "lost": tracer.lost, "refused": tracer.refused.total(),
        "directions": len(directions),
    }}))
"""


@dataclass(frozen=True, slots=True)
class AtLeast(common.Claim):
    """Something that must hold: `value` is at least `limit`."""

    @property
    def holds(self) -> bool:
        return self.value >= self.limit

    def __str__(self) -> str:
        # Not super(): a dataclass with slots is made anew.
        return common.Claim.__str__(self).replace("at most", "at least")


@dataclass(frozen=True, slots=True)
class Load:
    """A load of bench/c/through.c; `ratio` is what must be left of it with tracing on."""

    name: str
    mode: str
    amount: float
    unit: str
    ratio: float


LOADS = (
    Load("bulk TCP", "bulk", 2, "MB", 0.93),
    Load("new connections", "connect", 40_000, "connections", 0.80),
    Load("UDP", "udp", 400_000, "packets", 0.80),
)


# ------------------------------------------------------------------ the reader


class Reader:
    """A process on the reader's CPU that has tracing on in the router and takes the traces."""

    def __init__(self, lab: Lab, options: TraceOptions, keep: bool = False) -> None:
        arguments = [str(options.packets), str(options.window), str(options.rate), "keep" if keep else "count"]
        argv = ["taskset", "-c", str(common.READER_CPU), *common.python("-c", READER, *arguments)]
        with lab.router:
            self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=common.environment())
        assert self._process.stdout is not None
        names = self._process.stdout.readline().strip()
        if not names:
            common.give_up("the reader of traces does not start")
        self.table = names.split(",")[0]

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def cpu(self) -> float:
        """CPU seconds that it has used."""
        return common.cpu_seconds(self._process.pid)

    @property
    def memory(self) -> float:
        """MB that it has now."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        return int(found[1]) / 1024 if found else 0.0

    def finish(self) -> dict[str, int]:
        """Ends it. Returns what it counted."""
        self._process.send_signal(signal.SIGTERM)
        counts: dict[str, int] = json.loads(self._process.communicate(timeout=120)[0])
        return counts


# ------------------------------------------------------------------ loads


@dataclass(frozen=True, slots=True)
class Result:
    """How much crossed the router in one round, and what it took."""

    amount: float
    seconds: float
    cpu: float

    @property
    def per_cpu(self) -> float:
        return self.amount / self.cpu


def send(lab: Lab, mode: str, amount: float, rate: float = 0) -> Result:
    """One load on the generator's CPU."""
    program = [common.build("through"), mode, lab.client.path, lab.server.path, f"{amount:.0f}", f"{rate:.0f}"]
    before = _ksoftirqd()
    done = subprocess.run(
        ["taskset", "-c", str(common.GENERATOR_CPU), *program], stdout=subprocess.PIPE, check=True, timeout=180
    )
    result: dict[str, Any] = json.loads(done.stdout)
    scale = 1e6 if mode == "bulk" else 1
    return Result(result["n"] / scale, result["seconds"], result["cpu"] + _ksoftirqd() - before)


def _ksoftirqd() -> float:
    """CPU seconds of the thread that does what the load's processes leave over."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):
            if path.read_text().strip() == f"ksoftirqd/{common.GENERATOR_CPU}":
                return common.cpu_seconds(int(path.parent.name))
    return 0.0


@contextmanager
def tracing(lab: Lab, side: str, options: TraceOptions | None = None) -> Iterator[Reader | None]:
    """Tracing on, or not."""
    if side == SIDES[0]:
        yield None
        return
    with Reader(lab, options or TraceOptions()) as reader:
        yield reader


def compare(lab: Lab, load: Load, rounds: int) -> list[common.Claim]:
    """One load without and with tracing. Prints the table; returns the claim."""

    def measure(side: str, _: int) -> Result:
        with tracing(lab, side):
            return send(lab, load.mode, load.amount)

    results = common.interleaved(SIDES, rounds, measure)
    medians = {side: common.median(result.per_cpu for result in results[side]) for side in SIDES}
    print(f"\n{load.name}, {rounds} rounds")
    header = ("", f"{load.unit} a CPU second", "least", "most", f"{load.unit} a second")
    common.table(header, [_row(side, results[side]) for side in SIDES])
    return [AtLeast(f"{load.name} a CPU second, beside untraced", medians["traced"] / medians["untraced"], load.ratio)]


def _row(side: str, results: Sequence[Result]) -> tuple[object, ...]:
    values = sorted(result.per_cpu for result in results)
    wall = common.median(result.amount / result.seconds for result in results)
    return side, round(common.median(values)), round(values[0]), round(values[-1]), round(wall)


# ------------------------------------------------------------------ a traced packet, and all flows


def cost(lab: Lab, rounds: int) -> None:
    """Prints what one traced packet costs, in the kernel and in the reader."""
    every = TraceOptions(packets=64, rate=100_000)
    packets = 512 * 64  # all flows of the load, and all packets of them

    def measure(side: str, _: int) -> tuple[float, float, int, int]:
        with tracing(lab, side, every) as reader:
            before = reader.cpu if reader else 0.0
            cpu = send(lab, "udp", packets).cpu
            if reader is None:
                return cpu, 0.0, 0, 0
            time.sleep(3)  # until everything is read
            used = reader.cpu - before
            counts = reader.finish()
            return cpu, used, counts["packets"], counts["messages"]

    results = common.interleaved(SIDES, rounds, measure)
    kernel = [common.median(row[0] for row in results[side]) / packets * 1e6 for side in SIDES]
    reading = common.median(row[1] / max(row[2], 1) for row in results["traced"]) * 1e6
    messages = common.median(row[3] / max(row[2], 1) for row in results["traced"])
    print(f"\nCPU of a traced packet ({messages:.1f} messages)")
    rows = [("kernel, untraced", kernel[0]), ("kernel, for tracing it", kernel[1] - kernel[0]), ("reader", reading)]
    common.table(("", "µs"), rows)


def every_flow(lab: Lab, seconds: float, rate: float) -> list[common.Claim]:
    """Connections below the ceiling: each direction of each must have its trace."""
    with Reader(lab, TraceOptions(), keep=True) as reader:
        sent = send(lab, "connect", seconds * rate, rate)
        time.sleep(1)
        counts = reader.finish()
    print(f"\n{sent.amount:.0f} connections, {rate:.0f} a second, below the ceiling")
    common.table(("", "count"), [(name, counts[name]) for name in ("directions", "packets", "messages", "lost")])
    return [
        AtLeast("directions traced, of each connection", counts["directions"] / sent.amount, 2.0),
        common.Claim("directions traced that were not sent", counts["directions"] - 2 * sent.amount, 0),
        common.Claim("packets refused below the ceiling", counts["refused"], 0),
    ]


# ------------------------------------------------------------------ a flood


@dataclass(slots=True)
class Flood:
    """What one flood did."""

    forwarded: int
    cpu: float
    elements: int = 0
    memory: tuple[float, float] = (0.0, 0.0)
    counts: dict[str, int] | None = None


def flood(lab: Lab, side: str, seconds: float) -> Flood:
    """TCP SYN at the generator's maximum."""
    with tracing(lab, side) as reader:
        before = _forwarded(lab.router)
        program = [common.build("through"), "syn", lab.client.path, lab.server.path, f"{seconds:.0f}"]
        softirq = _ksoftirqd()
        process = subprocess.Popen(
            ["taskset", "-c", str(common.GENERATOR_CPU), *program], stdout=subprocess.PIPE, text=True
        )
        elements, memory = 0, []
        while process.poll() is None:
            time.sleep(min(1.0, seconds / 8))
            if reader is not None:
                memory.append(reader.memory)
                elements = max(elements, _elements(lab.router, reader.table))
        assert process.stdout is not None
        cpu = json.loads(process.stdout.read())["cpu"] + _ksoftirqd() - softirq
        made = Flood(_forwarded(lab.router) - before, cpu, elements)
        if reader is not None:
            made.memory = memory[len(memory) // 3], max(memory)
            made.counts = reader.finish()
        return made


def _forwarded(router: Namespace) -> int:
    """Packets that the router has sent to the server."""
    with router:
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    return next(int(line.split(":")[1].split()[9]) for line in lines if line.strip().startswith("server:"))


def _elements(router: Namespace, table: str) -> int:
    """How many elements the fullest of the flow sets has."""
    argv = ["taskset", "-c", str(common.READER_CPU), "nft", "list", "set", *table.split()]
    counts = []
    for name in ("seen_flow4", "done_flow4"):
        with router:
            listing = subprocess.run([*argv, name], capture_output=True, text=True, check=False).stdout
        counts.append(listing.count("expires"))
    return max(counts)


def compare_floods(lab: Lab, rounds: int, seconds: float) -> list[common.Claim]:
    """Floods without and with tracing. Prints the table; returns the claims."""
    options = TraceOptions()
    most = int(options.rate * options.window) + options.rate
    results = common.interleaved(SIDES, rounds, lambda side, _: flood(lab, side, seconds))
    print(f"\nSYN flood, {seconds:.0f} s, {rounds} rounds")
    common.table(
        ("", "forwarded", "a CPU second", "refused", "traced", "messages lost", "elements", "reader, MB", "most"),
        [
            (
                side, flood.forwarded, round(flood.forwarded / flood.cpu), counts.get("refused", 0),
                counts.get("packets", 0), counts.get("lost", 0), flood.elements, *flood.memory,
            )
            for side in SIDES for flood in results[side] for counts in [flood.counts or {}]
        ],
    )  # fmt: skip
    per_cpu = [common.median(one.forwarded / one.cpu for one in results[side]) for side in SIDES]
    traced = results["traced"]
    return [
        AtLeast("flood: packets forwarded a CPU second, beside untraced", per_cpu[1] / per_cpu[0], 0.75),
        common.Claim("flood: elements of a set", max(one.elements for one in traced), most),
        # The rest are more packets of directions that were traced before.
        AtLeast("flood: share of packets traced or counted as refused", min(_counted(one) for one in traced), 0.95),
        common.Claim("flood: growth of the reader", max(b - a for a, b in (one.memory for one in traced)), 16, "MB"),
    ]


def _counted(one: Flood) -> float:
    counts = one.counts or {"packets": 0, "refused": 0}
    return (counts["packets"] + counts["refused"]) / max(1, one.forwarded)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, metavar="N")
    parser.add_argument("--flood", type=float, default=20, metavar="SECONDS", help="length of a flood")
    parser.add_argument("--floods", type=int, default=3, metavar="N", help="floods on each side")
    parser.add_argument("--load", action="append", choices=[*(load.mode for load in LOADS), "cost", "every", "syn"])
    arguments = parser.parse_args()
    wanted = arguments.load or [*(load.mode for load in LOADS), "cost", "every", "syn"]
    common.need_root()
    common.end_on_sigterm()
    claims: list[common.Claim] = []
    with common.room_for(2 * FLOOD_SOURCES), Lab() as lab:
        with lab.router:  # or the connections of earlier rounds fill the table
            Path("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait").write_text("5")
        for load in LOADS:
            if load.mode in wanted:
                claims += compare(lab, load, arguments.rounds)
        if "cost" in wanted:
            cost(lab, arguments.rounds)
        if "every" in wanted:
            claims += every_flow(lab, seconds=10, rate=200)
        if "syn" in wanted:
            claims += compare_floods(lab, arguments.floods, arguments.flood)
    print()
    return common.judge(claims)


if __name__ == "__main__":
    sys.exit(main())
