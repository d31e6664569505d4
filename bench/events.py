"""Live: CPU per event of conntracker, of `conntrack -E` and of a minimal C reader, on the same load.

The load comes from one CPU and the reader has the other. In each round every reader gets the same number of new flows,
after it is ready and until nothing waits in its socket: what it costs to start and to write the log is not counted
here. All three have receive buffers of the same size, so that they see the same events.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import common

SIDES = ("conntracker", "conntrack -E", "C reader")
SEEDS = 60


@dataclass(frozen=True, slots=True)
class Load:
    """What the generator does in one round."""

    name: str
    mode: str
    count: int
    rate: int = 0


LOADS = (
    Load("UDP", "udp", 400_000),
    Load("UDP over IPv6", "udp6", 400_000),
    Load("UDP, TCP SYN, ICMP", "mix", 400_000),
    Load("TCP connections", "tcp", 40_000),
    Load("mix, 20,000 a second", "mix", 100_000, 20_000),
)


@dataclass(frozen=True, slots=True)
class Result:
    """What one reader did in one round."""

    events: int
    drops: int
    cpu: float  # µs an event
    generator: float  # µs of CPU a flow: the kernel makes the events in the sender's time


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        common.give_up(f"a reader did not say how many events it saw: {text!r}")
    return int(found[1].replace(",", ""))


def command(side: str, log: Path) -> tuple[list[str], str | None]:
    """The command line of a side, and the word on stderr that says it is ready."""
    if side == "conntracker":
        return common.python("-m", "conntracker", "-o", str(log)), "capturing"
    if side == "conntrack -E":
        return ["conntrack", "-E", "-o", "extended", "-b", str(common.RECEIVE_BUFFER)], None
    return [common.build("reader"), "-b", str(common.RECEIVE_BUFFER >> 20)], "ready"


def events_seen(side: str, out: str, messages: str) -> int:
    """How many events a side says it saw."""
    if side == "conntracker":
        return _number(r"([\d,]+) events", messages)
    if side == "conntrack -E":
        return _number(r"(\d+) flow events", messages)
    return int(json.loads(out)["n"])


def measure(namespace: common.Namespace, side: str, load: Load, seed: int, log: Path) -> Result:
    """One reader, one load."""
    namespace.flush()
    argv, ready = command(side, log)
    with common.Reader(namespace, argv, ready, out=side == SIDES[2]) as reader:
        namespace.settle()
        before = common.cpu_seconds(reader.pid)
        generated = namespace.generate(load.mode, load.count, load.rate, seed)
        sockets = namespace.settle()
        cpu = common.cpu_seconds(reader.pid) - before
        drops = sum(socket.drops for socket in sockets)
        out, messages = reader.finish()
    events = events_seen(side, out, messages)
    generator = (generated["user"] + generated["sys"]) / generated["n"]
    return Result(events, drops, cpu / max(events, 1) * 1e6, generator * 1e6)


def _row(side: str, results: list[Result]) -> tuple[object, ...]:
    cpu = [result.cpu for result in results]
    events, drops = (int(common.median(values)) for values in zip(*((r.events, r.drops) for r in results), strict=True))
    generator = common.median(result.generator for result in results)
    return side, common.median(cpu), min(cpu), max(cpu), events, drops, generator


def run(namespace: common.Namespace, load: Load, rounds: int, log: Path) -> list[common.Claim]:
    """All sides on one load. Prints the table; returns the claims."""
    seeds = iter(range(SEEDS))
    results = common.interleaved(SIDES, rounds, lambda side, _: measure(namespace, side, load, next(seeds), log))
    cpu = {side: common.median(result.cpu for result in results[side]) for side in SIDES}
    print(f"\n{load.name}: {load.count:,} flows, {rounds} rounds")
    common.table(
        ("", "µs an event", "least", "most", "events", "drops", "sender, µs a flow"),
        [_row(side, results[side]) for side in SIDES],
    )
    return [
        common.Claim(f"{load.name}: CPU an event beside conntrack -E", cpu[SIDES[0]] / cpu[SIDES[1]], 0.5),
        common.Claim(f"{load.name}: CPU an event beside the C reader", cpu[SIDES[0]] / cpu[SIDES[2]], 2.0),
        common.Claim(f"{load.name}: events dropped", sum(result.drops for result in results[SIDES[0]]), 0),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, choices=range(1, SEEDS // len(SIDES) + 1), metavar="N")
    parser.add_argument("--load", action="append", choices=[load.mode for load in LOADS], help="only these")
    arguments = parser.parse_args()
    common.need_root()
    common.end_on_sigterm()
    loads = [load for load in LOADS if not arguments.load or load.mode in arguments.load]
    claims: list[common.Claim] = []
    room = common.room_for(max(load.count for load in loads) * 2)
    with room, common.Namespace() as namespace, tempfile.TemporaryDirectory() as directory:
        for load in loads:
            claims += run(namespace, load, arguments.rounds, Path(directory) / "log")
    print()
    return common.judge(claims)


if __name__ == "__main__":
    sys.exit(main())
