"""Random rulesets and packets: whether what the solver proves is what the plain walk does.

`python bench/solve_fuzz.py [--first SEED] [--seconds 60] [--kind iptables|ip6tables|nft]`. Rulesets of nft are read by
nft itself, in a network namespace. Exit code 1 if a proof is wrong: a rule called dead that a packet matches, rulesets
called equal that a packet tells apart, or evidence that is none.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

from conntracker.lab.trials.generate import KINDS, random_ruleset
from conntracker.rules.nft import parse_json
from conntracker.rules.ruleset import Ruleset

ROOT = Path(__file__).resolve().parents[1]
PACKETS = 120


def nft_ruleset(seed: int) -> Ruleset | None:
    """What nft makes of a random ruleset; None where it refuses it, as for interfaces that are not there."""
    script = "nft -f - && nft -j -a list ruleset"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script], input=random_ruleset(seed, "nft"), capture_output=True, text=True,
        check=False, timeout=30,
    )  # fmt: skip
    return parse_json(done.stdout) if done.returncode == 0 else None


def wrong_of(ruleset: Ruleset, seed: int) -> list[str]:
    """Everything that is wrong with proofs about a ruleset and one mutant of it."""
    from support.solve_fuzz import mutants, packets, unsound_dead, unsound_equal, unsound_witnesses

    tries = list(packets(ruleset, PACKETS, seed))
    wrong = unsound_dead(ruleset, tries) + unsound_witnesses(ruleset)
    for mutant in mutants(ruleset, 1, seed):
        wrong += unsound_equal(ruleset, mutant, tries)
    return wrong


def main() -> int:
    """Goes on until the time is over."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.solve_fuzz import iptables_ruleset

    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--first", type=int, default=0)
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--kind", choices=KINDS, default="iptables")
    arguments = options.parse_args()
    end, done, refused, wrong = time.monotonic() + arguments.seconds, 0, 0, 0
    for seed in count(arguments.first):
        if time.monotonic() > end:
            break
        version = 6 if arguments.kind == "ip6tables" else 4
        ruleset = nft_ruleset(seed) if arguments.kind == "nft" else iptables_ruleset(seed, version)
        if ruleset is None:
            refused += 1
            continue
        for text in wrong_of(ruleset, seed):
            wrong += 1
            print(f"seed {seed}: {text}")
        done += 1
    print(f"{done} rulesets and as many mutants, {refused} refused, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
