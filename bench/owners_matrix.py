"""Owners: what conntracker says of processes with known ends of flows, a line a case, with ss(8) beside it.

All cases of the table in tests/kernel/owners/plan.py, or those named, are played once, captured at the same time with
all rights, by cgroup hooks alone (no CAP_PERFMON), and by sock_diag (no CAP_BPF), while ss(8) is polled each half a
second. Counted are ends of flows that name exactly the process that did the I/O; `held` names another one that had the
socket, `wrong` one that never had it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import common

sys.path.insert(0, str(common.ROOT / "tests"))

from kernel.owners.capture import VARIANTS
from kernel.owners.cgroup import why_not
from kernel.owners.judge import EXACT, HELD, WRONG
from kernel.owners.matrix import Played, play
from kernel.owners.plan import CASES

LEAST = {"all": 0.99, "hooks": 0.95}


def main() -> int:
    """Plays, prints the table, and judges."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("case", nargs="*", metavar="CASE", help="only these: " + " ".join(case.name for case in CASES))
    parser.add_argument("--verdicts", action="store_true", help="show every end that is not exact")
    args = parser.parse_args()
    common.need_root()
    reason = why_not()
    if reason is not None:
        common.give_up(reason)
    with tempfile.TemporaryDirectory() as directory:
        played = play(Path(directory), cases=args.case)
    show(played)
    if args.verdicts:
        verdicts(played)
    return judge(played)


def show(played: Played) -> None:
    """The table."""
    names = [*VARIANTS, "ss"]
    rows: list[list[object]] = []
    for case in [*dict.fromkeys(end.case for end in played.ends), None]:
        counts = {name: played.counts(name, case) for name in names}
        total = counts["ss"].total()
        rows.append([case or "all of them", total, *(counts[name][EXACT] for name in names)])
        rows[-1] += [sum(counts[name][value] for name in VARIANTS) for value in (HELD, WRONG)]
    common.table(["case", "ends", *names, "held", "wrong"], rows)
    polls = played.polls
    print(f"{played.seconds:.1f} s; ss(8) polled {len(polls)} times, {1000 * common.median(polls):.0f} ms each")
    print(played.stage, end="")


def verdicts(played: Played) -> None:
    """What is not exact, an end a line."""
    for name in VARIANTS:
        for one in played.verdicts[name]:
            if one.value != EXACT or one.complaints:
                end = one.end
                place = f"{end.proto} {end.local}:{end.lport} {end.remote}:{end.rport}"
                print(f"{name} {one.value} {end.case} {end.end} {place} pid {end.pid} of {end.holders}: {one.answer}")
                print("   ", *one.complaints)


def judge(played: Played) -> int:
    """The claims."""
    share = {name: played.share(name) for name in played.verdicts}
    claims = [
        common.Claim(f"{name}: ends without their process, percent", 100 * (1 - share[name]), 100 * (1 - least))
        for name, least in LEAST.items()
    ]
    claims += [common.Claim(f"{name}: ends with a wrong process", played.counts(name)[WRONG], 0) for name in VARIANTS]
    fewer = 100 * (played.share("ss", "host") - played.share("fallback", "host"))
    claims.append(common.Claim("fallback: exact ends of the captured namespace fewer than ss, percent", fewer, 0))
    return common.judge(claims)


if __name__ == "__main__":
    raise SystemExit(main())
