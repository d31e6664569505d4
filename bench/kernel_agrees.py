"""The kernel agrees: rulesets are loaded, packets sent, and the steps of each compared with what the engine says.

    python bench/kernel_agrees.py FOLDER... --random 300 --packets 1000000 --faults 500

FOLDER: rulesets in files, of iptables-save (loaded as legacy and as nft tables) or nft. Random ones are added, of all
kinds. Every mismatch, lost message and untried match fails. Root; each ruleset is in a namespace of its own.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import common
from conntracker.lab.oracle import LoadRefused
from conntracker.lab.trials.compare import Comparison
from conntracker.lab.trials.generate import KINDS, random_ruleset, with_sets
from conntracker.lab.trials.sharpness import Sharpness, sharpness
from conntracker.lab.trials.tally import IPTABLES_MATCHES, IPTABLES_TARGETS, NFT_FORMS, Tally
from conntracker.lab.trials.trial import Source, judged, recorded
from conntracker.rules.errors import RuleSyntaxError
from conntracker.rules.iptables import detect

_SHOWN = 3  # mismatches of a ruleset


@dataclass(slots=True)
class Result:
    """What one ruleset came to."""

    name: str
    error: str = ""
    rules: int = 0
    without: int = 0
    lost: int = 0
    stray: int = 0
    comparison: Comparison = field(default_factory=Comparison)
    tally: Tally = field(default_factory=Tally)
    sharpness: Sharpness = field(default_factory=Sharpness)
    seconds: float = 0.0


def random_sources(count: int) -> Iterator[Source]:
    """All kinds in turn; saves as legacy tables and as nft's by turns, too."""
    for number in range(count):
        kind, seed = KINDS[number % 3], number // 3
        if kind == "nft":
            yield Source(f"random {kind} {seed}", random_ruleset(seed, kind), "nft")
            continue
        loader = ("iptables-legacy", "iptables-nft")[seed % 2]
        family = "ip6" if kind == "ip6tables" else "ip"
        text = random_ruleset(seed, kind)
        if seed % 20 in (4, 5):
            text = with_sets(text, seed)
        yield Source(f"random {kind} {seed} ({loader})", text, loader, family)


def file_sources(folders: Iterable[str]) -> Iterator[Source]:
    """Every file; saves twice."""
    for folder in folders:
        for path in sorted(Path(folder).rglob("*")) if Path(folder).is_dir() else [Path(folder)]:
            if not path.is_file() or path.suffix in {".md", ".txt", ".json"}:
                continue
            text = path.read_text(errors="surrogateescape")
            if not any(line.startswith("*") for line in text.splitlines()):
                yield Source(str(path), text, "nft")
                continue
            family = detect(text, path.name)[1]
            for loader in ("iptables-legacy", "iptables-nft"):
                yield Source(f"{path} ({loader})", text, loader, family)


def try_one(source: Source, packets: int, faults: int, seed: int) -> Result:
    """Everything for one ruleset, in a process of its own."""
    began, result = time.monotonic(), Result(source.name)
    try:
        record = recorded(source, packets, seed)
    except (LoadRefused, RuleSyntaxError, OSError) as error:
        result.error = f"{type(error).__name__}: {error}"
        return result
    result.rules = sum(len(known.meanings) for known in record.ruleset.chains)
    result.without, result.lost, result.stray = record.without, record.lost, record.stray
    result.comparison, judge = judged(record, result.tally, _SHOWN)
    result.sharpness = sharpness(record, faults, seed, judge)
    result.tally.forget()
    result.seconds = time.monotonic() - began
    return result


def report(results: list[Result], wanted_packets: int, seconds: float) -> int:
    """Prints what was found. Returns the exit code."""
    total, tally, faults = Comparison(), Tally(), Counter[tuple[str, str]]()
    for one in results:
        total.add(one.comparison)
        tally.matched += one.tally.matched
        tally.passed += one.tally.passed
        faults += one.sharpness.counts
    print(f"\n{'':16} {'matched':>10} {'not':>10}\n{tally}\n")
    refused = [one for one in results if one.error]
    for one in refused:
        print(f"not tried: {one.name}: {one.error.splitlines()[0][:150]}")
    for line in (line for one in results for line in one.sharpness.missed):
        print(f"missed: {line}")
    for kind in sorted({kind for kind, _ in faults}):
        print(
            f"{kind:20}", *(f"{what} {faults[kind, what]:5}" for what in ("found", "missed", "unshown", "equivalent"))
        )
    found = sum(count for (_, what), count in faults.items() if what == "found")
    missed = sum(count for (_, what), count in faults.items() if what == "missed")
    print(
        f"\n{len(results) - len(refused)} rulesets, {sum(one.rules for one in results):,} rules,"
        f" {total.packets:,} packets in {seconds:.0f} s; {total.undecided:,} where a stateful match decided,"
        f" {sum(total.routed.values()):,} dropped by routing, {total.dropped:,} by a match;"
        f" fields not known: {total.unknown or 'none'}"
    )
    names = (*IPTABLES_MATCHES, *IPTABLES_TARGETS, *NFT_FORMS)
    zeros = tally.zeros(names)
    print("never tried both ways:", ", ".join(zeros) or "none")
    return common.judge(
        (
            common.Claim("packets of which the steps differ", total.packets - total.same, 0),
            common.Claim("trace messages lost", sum(one.lost for one in results), 0),
            common.Claim("faults missed", 100 * missed / max(1, found + missed), 2, "%"),
            common.Claim("packets too few", max(0, wanted_packets - total.packets), 0),
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", metavar="FOLDER", nargs="*")
    parser.add_argument("--random", type=int, default=300, metavar="N")
    parser.add_argument("--packets", type=int, default=1_000_000, metavar="N", help="of all rulesets together")
    parser.add_argument("--faults", type=int, default=500, metavar="N", help="of all rulesets together")
    parser.add_argument("--seconds", type=int, metavar="N", help="no new ruleset after that")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    common.need_root()
    sources = [*file_sources(arguments.folders), *random_sources(arguments.random)]
    random.Random(arguments.seed).shuffle(sources)  # noqa: S311 - so that a part is like the whole
    packets, faults = -(-arguments.packets * 11 // (10 * len(sources))), -(-arguments.faults // len(sources))
    began, results = time.monotonic(), []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        tasks = [pool.submit(try_one, source, packets, faults, arguments.seed + n) for n, source in enumerate(sources)]
        for task in as_completed(tasks):
            results.append(result := task.result())
            if not len(results) % 10:
                sent = sum(one.comparison.packets for one in results)
                print(
                    f"{len(results)} of {len(tasks)} rulesets, {sent:,} packets, {time.monotonic() - began:.0f} s",
                    flush=True,
                )
            if result.comparison.mismatches or result.lost:
                differing = result.comparison.packets - result.comparison.same
                print(f"\n{result.name}: {differing} of {result.comparison.packets} differ, {result.lost} lost")
                print(*result.comparison.mismatches, sep="\n", flush=True)
            if arguments.seconds and time.monotonic() - began > arguments.seconds:
                pool.shutdown(cancel_futures=True)
                break
    return report(results, arguments.packets if not arguments.seconds else 0, time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
