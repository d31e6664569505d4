"""How long `conntracker --help` takes, beside an interpreter that does nothing."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import common

SIDES = ("conntracker --help", "python3 -c pass")


def command(side: str) -> list[str]:
    if side == SIDES[1]:
        return common.python("-c", "pass")
    installed = shutil.which("conntracker", path=str(Path(sys.executable).parent))
    return [installed, "--help"] if installed else common.python("-m", "conntracker", "--help")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=21, metavar="N")
    arguments = parser.parse_args()
    results = common.interleaved(
        SIDES, arguments.rounds, lambda side, _: common.measured(command(side), stdout=subprocess.DEVNULL)
    )
    wall = {side: common.median(usage.wall * 1000 for usage in results[side]) for side in SIDES}
    common.table(
        ("", "ms", "peak MB"),
        [(side, wall[side], max(usage.peak_mb for usage in results[side])) for side in SIDES],
    )
    more = wall[SIDES[0]] - wall[SIDES[1]]
    return common.judge([common.Claim("--help more than python3 -c pass", more, 60, "ms")])


if __name__ == "__main__":
    sys.exit(main())
