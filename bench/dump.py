"""A dump of 500,000 connections: conntracker into its flow table, beside `conntrack -L` into /dev/null.

Both are whole processes, from their start to their end.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import common

ENTRIES = 500_000
SIDES = ("conntracker", "conntrack -L")

# What `conntracker` does first of all, and nothing else.
DUMP = """
import os
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as conntracker.cli.main does
from conntracker.flows import FlowTable
from conntracker.sources.conntrack import Dump
from conntracker.sources.fullness import Gauge
from conntracker.wire.columns import Decoder
table, decoder = FlowTable(Gauge().read().count), Decoder()
for words, offsets in Dump():
    for batch in decoder.decode_buffer(words, offsets, 0):
        table.apply(batch)
print(len(table))
"""


def command(side: str) -> list[str]:
    if side == "conntracker":
        return common.python("-c", DUMP)
    return ["conntrack", "-L", "-o", "extended"]


def measure(namespace: common.Namespace, side: str) -> common.Usage:
    """One dump."""
    argv = namespace.command(command(side))
    return common.measured(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def check(namespace: common.Namespace, entries: int) -> None:
    """What is compared is complete."""
    out = namespace.run(*command(SIDES[0]), stdout=subprocess.PIPE, text=True).stdout
    if int(out) != entries:
        common.give_up(f"conntracker dumped {int(out):,} of {entries:,} entries", 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    parser.add_argument("--entries", type=int, default=ENTRIES, metavar="N")
    arguments = parser.parse_args()
    common.need_root()
    common.end_on_sigterm()
    with common.room_for(arguments.entries * 2), common.Namespace() as namespace:
        namespace.generate("mix", arguments.entries)
        check(namespace, namespace.count())
        results = common.interleaved(SIDES, arguments.rounds, lambda side, _: measure(namespace, side))
        entries = namespace.count()
    wall = {side: common.median(usage.wall for usage in results[side]) for side in SIDES}
    cpu = {side: common.median(usage.cpu for usage in results[side]) for side in SIDES}
    print(f"a dump of {entries:,} connections, {arguments.rounds} rounds")
    common.table(
        ("", "seconds", "CPU seconds", "peak MB"),
        [(side, wall[side], cpu[side], max(usage.peak_mb for usage in results[side])) for side in SIDES],
    )
    ours, theirs = SIDES
    return common.judge(
        [
            common.Claim("time of a dump beside conntrack -L", wall[ours] / wall[theirs], 0.7),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
