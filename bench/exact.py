"""Exactness: three runs of a mixed load, as fast as it can be made; the log must be the generator's own list.

TCP, UDP and ICMP, IPv4 and IPv6, through SNAT, DNAT and a firewall, answered, refused and unanswered. Nothing may be
missing, nothing extra, and the kernel must not have dropped an event.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

sys.path.insert(0, str(common.ROOT / "tests"))

FLOWS = 220_000


def measure(flows: int, seed: int, log: Path) -> tuple[int, int, int, float]:
    """One run: (missing lines, extra lines, events lost, flows a second)."""
    from conntracker.lab.bulk import send
    from conntracker.lab.plan import plan
    from conntracker.lab.topology import Lab
    from support.expected import lines_of_plan, parse

    made = plan(flows, seed=seed)
    with Lab() as lab:
        lab.keep_flows()
        with lab.router:
            argv = common.python("-m", "conntracker", "-o", str(log))
            process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=common.environment())
        assert process.stderr is not None
        try:
            while "capturing" not in process.stderr.readline():
                pass
            sent = send(lab, made, cpu=common.GENERATOR_CPU)
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=60)[1]
        finally:
            process.kill()
            process.wait()
    lost = re.search(r"([\d,]+) lost", said)
    if lost is None or sent.sent != flows or sent.dropped:
        common.give_up(f"the load was not sent as planned: {sent}, {said!r}")
    with log.open() as file:
        found = set(parse(file))
    expected = lines_of_plan(made)
    return len(expected - found), len(found - expected), int(lost[1].replace(",", "")), flows / sent.seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--flows", type=int, default=FLOWS, metavar="N")
    arguments = parser.parse_args()
    common.need_root()
    common.end_on_sigterm()
    with common.room_for(arguments.flows * 2), tempfile.TemporaryDirectory() as directory:
        rows = [measure(arguments.flows, seed, Path(directory) / "log") for seed in range(1, arguments.rounds + 1)]
    print(f"the log beside the generator's list, {arguments.flows:,} flows a run")
    common.table(
        ("run", "lines missing", "lines extra", "events lost", "flows a second"),
        [(f"{number}", *row) for number, row in enumerate(rows, 1)],
    )
    return common.judge(
        [
            common.Claim("lines missing", sum(row[0] for row in rows), 0),
            common.Claim("lines extra", sum(row[1] for row in rows), 0),
            common.Claim("events lost", sum(row[2] for row in rows), 0),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
