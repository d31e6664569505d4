"""A log of 1,000,000 lines: sorted and written by conntracker, beside qsort() and fprintf() in C.

All are whole processes, from their start to their end; they read the same flows, and the first two write the same file,
byte by byte. The third writes the owners of flows, too.
"""

from __future__ import annotations

import argparse
import filecmp
import multiprocessing
import subprocess
import sys
import tempfile
from pathlib import Path

import common

LINES = 1_000_000
SIDES = ("conntracker", "C", "with owners")
OWNERS = 1000

WRITE = """
import os, sys
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as conntracker.cli.main does
import numpy as np
from conntracker.formats.log import write_log
from conntracker.owner import EXACT, INHERITED, PROCESS, Owner, Process

flows = np.fromfile(sys.argv[1], [("src", "u4"), ("dst", "u4"), ("sport", "u2"), ("dport", "u2")])

owners = {
    number: Owner(PROCESS, Process(1000 + number, f"program-{number}", 33, user="www-data"), None, certainty)
    for number, certainty in enumerate([EXACT, INHERITED] * (int(sys.argv[3]) // 2), 1)
}

def directions(family, proto):
    rows = flows if (family, proto) == (4, 6) else flows[:0]
    addresses = rows["src"].astype(np.uint64) << np.uint64(32) | rows["dst"]
    ports = rows["sport"].astype(np.uint32) << np.uint32(16) | rows["dport"]
    if not owners:
        return (addresses,), ports
    return (addresses,), ports, rows["sport"].astype(np.uint32) % np.uint32(len(owners) + 1)

with open(sys.argv[2], "wb") as out:
    write_log(out, directions, None, owners or None)
"""


def make_flows(path: Path, lines: int, seed: int) -> None:
    """Distinct flows: a network of clients talks to servers everywhere, a tenth of them to one."""
    import numpy as np

    random = np.random.default_rng(seed)
    flows = np.zeros(lines, [("src", "u4"), ("dst", "u4"), ("sport", "u2"), ("dport", "u2")])
    flows["src"] = 0x0A000000 + random.integers(0, 1 << 16, lines)
    flows["dst"] = random.integers(0x0B000000, 0xDF000000, lines)
    flows["dst"][: lines // 10] = 0xC0A80001
    flows["sport"] = random.integers(1024, 65536, lines)
    flows["dport"] = random.choice([22, 53, 80, 123, 443, 3306, 5432, 8080], lines)
    flows = np.unique(flows)
    while len(flows) < lines:  # what was drawn twice, once more
        more = flows[: lines - len(flows)].copy()
        more["dst"] = random.integers(0x0B000000, 0xDF000000, len(more))
        flows = np.unique(np.concatenate([flows, more]))
    random.shuffle(flows)
    flows.tofile(path)


def measure(side: str, directory: Path, lines: int) -> common.Usage:
    """One log, into a file of its own."""
    flows, out = directory / "flows", directory / side
    out.unlink(missing_ok=True)  # freeing the last round's pages is no part of this one
    if side != "C":
        owners = OWNERS if side == "with owners" else 0
        return common.measured(common.python("-c", WRITE, str(flows), str(out), str(owners)))
    with out.open("wb") as file:
        argv = [common.build("logwriter"), str(flows), str(lines)]
        return common.measured(argv, stdout=file, stderr=subprocess.DEVNULL)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    parser.add_argument("--lines", type=int, default=LINES, metavar="N")
    arguments = parser.parse_args()
    common.end_on_sigterm()
    common.build("logwriter")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        maker = multiprocessing.Process(target=make_flows, args=(directory / "flows", arguments.lines, 1))
        maker.start()  # apart: see common.Usage
        maker.join()
        results = common.interleaved(SIDES, arguments.rounds, lambda side, _: measure(side, directory, arguments.lines))
        same = filecmp.cmp(directory / SIDES[0], directory / SIDES[1], shallow=False)
    wall = {side: common.median(usage.wall for usage in results[side]) for side in SIDES}
    peak = {side: max(usage.peak_mb for usage in results[side]) for side in SIDES}
    print(f"a log of {arguments.lines:,} lines, {arguments.rounds} rounds")
    common.table(
        ("", "seconds", "CPU seconds", "peak MB"),
        [(side, wall[side], common.median(usage.cpu for usage in results[side]), peak[side]) for side in SIDES],
    )
    ours, theirs, owned = SIDES
    return common.judge(
        [
            common.Claim("logs that differ", int(not same), 0),
            common.Claim("time of a log beside qsort and fprintf", wall[ours] / wall[theirs], 0.7),
            common.Claim(f"time with {OWNERS:,} owners beside without", wall[owned] / wall[ours], 2),
            common.Claim("peak memory", max(peak[ours], peak[owned]), 250, "MB"),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
