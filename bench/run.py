"""Runs every benchmark and prints a summary: which hold, which fail, which could not run."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import common

_DATA = str(Path(__file__).parent.parent / "tests" / "rules" / "data")

# With the arguments of each.
BENCHMARKS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("exact", "startup", "logwrite", "dump", "events", "idle", "fuzz", "resolve", "trace", "owners"), ()
    ),
    "rules": ("scale",),
    "decide": ("agree", "50000", _DATA, "--random", "60"),
    "dead_agree": (),
    "kernel_agrees": (_DATA, "--random", "60", "--packets", "100000", "--faults", "100"),
}
VERDICTS = {0: "holds", 1: "FAILS", 3: "could not run"}


def run(name: str) -> tuple[str, str]:
    """Runs one benchmark. Returns its verdict and how long it took."""
    print(f"== {name}", flush=True)
    start = time.monotonic()
    script = Path(__file__).with_name(f"{name}.py")
    command = common.python(str(script), *BENCHMARKS[name])
    code = subprocess.run(command, env=common.environment(), check=False).returncode
    print(flush=True)
    return VERDICTS.get(code, f"ended with exit code {code}"), f"{time.monotonic() - start:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these of: {', '.join(BENCHMARKS)}")
    names = parser.parse_args().names or list(BENCHMARKS)
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark called {', '.join(unknown)}")
    verdicts = {name: run(name) for name in names}
    common.table(("benchmark", "verdict", "took"), [(name, *verdict) for name, verdict in verdicts.items()])
    return 0 if all(verdict == VERDICTS[0] for verdict, _ in verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
