"""Idle: the share of a CPU that a capture takes while nothing happens."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time

import common


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30, metavar="N")
    arguments = parser.parse_args()
    common.need_root()
    common.end_on_sigterm()
    with common.Namespace() as namespace, tempfile.TemporaryDirectory() as directory:
        argv = common.python("-m", "conntracker", "-o", f"{directory}/log")
        with common.Reader(namespace, argv, "capturing") as reader:
            time.sleep(2)
            start, before = time.perf_counter(), common.cpu_seconds(reader.pid)
            time.sleep(arguments.seconds)
            share = (common.cpu_seconds(reader.pid) - before) / (time.perf_counter() - start)
            reader.finish()
    return common.judge([common.Claim(f"CPU while idle for {arguments.seconds:g} s", share * 100, 0.2, "%")])


if __name__ == "__main__":
    sys.exit(main())
