"""The decider for columns against the plain walk: `python bench/decide.py agree N [FILE ...] [--random R]`.

Files (or folders of them) are rulesets in any syntax; R are made at random in each of the three. For each ruleset, way
and IP version, packets sit at the borders of what rules ask; some fields are not known, some packets are not the first
of their flow, hosts have routes or not. Verdicts and what decided must be the same.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from common import ROOT, Claim, judge, table
from conntracker.cli.rulefiles import load_file
from conntracker.lab.trials.generate import KINDS, random_ruleset
from conntracker.rules.decide import VERDICTS, Decider
from conntracker.rules.errors import RuleSyntaxError
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.walk import Course, walk
from conntracker.sources.translate import translate
from rules import parse
from rulesets_scale import SHAPES, flat_list, iptables_dump

sys.path.insert(0, str(ROOT / "tests"))
from support.near import Judge, Near, as_columns, reasons, told

WAYS = ("input", "forward", "output")
_BATCH = 400
_SHOWN = 3
_UNREADABLE = {".md", ".py"}


@dataclass(slots=True)
class Result:
    """Counts of packets: all, undecided, those the walk gave up on, decided differently, of other reasons."""

    name: str
    packets: int = 0
    undecided: int = 0
    left: int = 0
    different: int = 0
    reasons: int = 0
    seconds: float = 0.0

    def add(self, other: Result) -> None:
        """Both together."""
        for field in ("packets", "undecided", "left", "different", "reasons", "seconds"):
            setattr(self, field, getattr(self, field) + getattr(other, field))


def main() -> int:
    """Returns the exit code."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    options.add_argument("mode", choices=("agree",))
    options.add_argument("packets", type=int, help="in all")
    options.add_argument("files", type=Path, nargs="*")
    options.add_argument("--random", type=int, default=0, help="rulesets of each syntax")
    options.add_argument("--processes", type=int, default=1)
    options.add_argument("--seed", type=int, default=1)
    arguments = options.parse_args()
    names = [str(file) for file in files_of(arguments.files)]
    names += [f"random {kind} {number}" for number in range(arguments.random) for kind in KINDS]
    names = names or [f"made {name}" for name in made()]
    each = -(-arguments.packets // len(names))
    results = []
    with ProcessPoolExecutor(arguments.processes) as pool:
        waiting = [pool.submit(compare, name, each, arguments.seed) for name in names]
        for done in as_completed(waiting):
            results.append(done.result())
            if len(results) % 20 == 0:
                packets, wrong = sum(one.packets for one in results), sum(one.different for one in results)
                print(f"{len(results)} of {len(names)} rulesets, {packets:,} packets, {wrong} differ", flush=True)
    show(results)
    differing, reasoned = sum(one.different for one in results), sum(one.reasons for one in results)
    print(f"{reasoned:,} of {sum(one.undecided for one in results):,} undecided packets hang on other questions")
    return judge([Claim("packets that the two decide differently", differing, 0)])


def show(results: list[Result]) -> None:
    """A line for each file, one for all random rulesets of a syntax, and one for all."""
    groups: dict[str, Result] = {}
    for one in sorted(results, key=lambda one: one.name):
        name = one.name.rpartition(" ")[0] if one.name.startswith("random ") else one.name[-60:]
        for group in (name, "all"):
            groups.setdefault(group, Result(group)).add(one)
    groups["all"] = groups.pop("all")
    rows = [
        (name, f"{one.packets:,}", f"{one.undecided:,}", f"{one.left:,}", f"{one.different:,}", f"{one.seconds:.0f}")
        for name, one in groups.items()
    ]
    table(("ruleset", "packets", "undecided", "left out", "differ", "seconds"), rows)


def files_of(paths: list[Path]) -> Iterator[Path]:
    """Files, and all that are in folders."""
    for path in paths:
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (one for one in found if one.is_file() and one.suffix not in _UNREADABLE)


def made() -> dict[str, Ruleset]:
    """Rulesets of the generators, small enough for the walk."""
    shapes = {shape: parse(shape, flat_list(300, shape)[0]) for shape in SHAPES}
    return {"dump": parse("dump", iptables_dump(600, chains=20)), **shapes}


def load(name: str) -> Ruleset | None:
    """The ruleset of a name; None if it cannot be read."""
    source, _, rest = name.partition(" ")
    try:
        if source == "made":
            return made()[rest]
        if source == "random":
            kind, number = rest.split()
            return _random(kind, int(number))
        return load_file(name)
    except (RuleSyntaxError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return None


def _random(kind: str, seed: int) -> Ruleset:
    from conntracker.rules.iptables import parse_save
    from conntracker.rules.nft import parse_json

    text = random_ruleset(seed, kind)
    if kind == "nft":
        document, listing = translate(text, kind)
        return parse_json(document, listing=listing)
    return Ruleset(parse_save(text, family={"iptables": "ip", "ip6tables": "ip6"}[kind]))


def compare(name: str, count: int, seed: int) -> Result:
    """Of `count` packets."""
    result, start = Result(name), time.perf_counter()
    ruleset = load(name)
    if ruleset is None:
        return result
    draw = random.Random(f"{seed} {name}")  # noqa: S311 - nothing secret hangs on it
    versions = ruleset.families()
    near = {version: Near(ruleset, version, draw) for version in versions}
    turns = [(version, way) for version in versions for way in WAYS]
    while result.packets < count:
        version, way = turns[draw.randrange(len(turns))]
        _batch(result, ruleset, near[version], way, min(_BATCH, count - result.packets))
    result.seconds = time.perf_counter() - start
    return result


def _batch(result: Result, ruleset: Ruleset, near: Near, way: str, count: int) -> None:
    host = near.host()
    typed = near.draw.random() < 0.4
    packets = [near.packet(typed) for _ in range(count)]
    decisions = Decider(ruleset, way, host=host).decide(as_columns(packets))
    course, judged = Course(ruleset, near.version), Judge(ruleset)
    result.packets += count
    for row, packet in enumerate(packets):
        answer = walk(course, packet, way, host=host)
        result.undecided += answer.verdict == VERDICTS[-1]
        result.left += not answer.whole
        if not judged.same(decisions, row, answer):
            result.different += 1
            if result.different <= _SHOWN:
                print(f"{result.name} {way}: {packet} {host}\n  {judged.wanted(answer)}, not {told(decisions, row)}")
        elif answer.whole:
            result.reasons += tuple(sorted(answer.undecided_by)) != reasons(decisions, row)


if __name__ == "__main__":
    sys.exit(main())
