"""The decider for columns against the plain walk: `python bench/decide.py agree N [FILE ...]`.

Files are of iptables-save, or .json of nft; without any, smaller ones of bench/rulesets_scale.py. For each ruleset and
way, packets sit on the borders of what its rules ask. Verdicts must be the same, and so must be what decided where
only one thing can have.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common import Claim, judge, table
from conntracker.rules.decide import VERDICTS, Column, Decider, Decisions
from conntracker.rules.errors import RuleSyntaxError
from conntracker.rules.fields import FIELDS, NAMES, width_of
from conntracker.rules.passage import PASSAGE_TESTS
from conntracker.rules.programs import Programs
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.walk import Answer, Course, walk
from rules import parse
from rulesets_scale import SHAPES, flat_list, iptables_dump

WAYS = ("input", "forward", "output")
_PROTOCOLS = (6, 6, 6, 17, 17, 1, 58, 132, 47)
_BATCH = 2000


def main() -> int:
    """Returns the exit code."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    options.add_argument("mode", choices=("agree",))
    options.add_argument("packets", type=int, help="in all")
    options.add_argument("files", type=Path, nargs="*")
    options.add_argument("--seed", type=int, default=1)
    arguments = options.parse_args()
    rulesets = dict(read(arguments.files) if arguments.files else made())
    pick = random.Random(arguments.seed)  # noqa: S311
    rows, differing = [], 0
    each = -(-arguments.packets // max(len(rulesets), 1))
    for name, ruleset in rulesets.items():
        start = time.perf_counter()
        packets, undecided, different = compare(name, ruleset, each, pick)
        differing += different
        rows.append((name, f"{packets:,}", f"{undecided:,}", f"{different:,}", f"{time.perf_counter() - start:.1f}"))
    table(("ruleset", "packets", "undecided", "differ", "seconds"), rows)
    return judge([Claim("packets that the two decide differently", differing, 0)])


def read(files: list[Path]) -> Iterator[tuple[str, Ruleset]]:
    """Rulesets by name, of those files that can be read."""
    for file in files:
        try:
            yield str(file), parse(file.name, file.read_text(errors="surrogateescape"))
        except RuleSyntaxError as error:
            print(f"{file}: {error}", file=sys.stderr)


def made() -> Iterator[tuple[str, Ruleset]]:
    """Rulesets of the generators, small enough for the walk."""
    yield "dump", parse("dump", iptables_dump(600, chains=20))
    for shape in SHAPES:
        yield shape, parse(shape, flat_list(300, shape)[0])


def compare(name: str, ruleset: Ruleset, count: int, pick: random.Random) -> tuple[int, int, int]:
    """(packets, those that are undecided, those that are decided differently)."""
    packets = undecided = different = 0
    turns = [(version, way) for version in ruleset.families() for way in WAYS]
    deciders = {way: Decider(ruleset, way) for way in WAYS}
    while packets < count:
        for version, way in turns:
            batch = choose(ruleset, version, min(_BATCH, -(-count // len(turns))), pick)
            decisions = deciders[way].decide(as_columns(batch))
            course = Course(ruleset, version)
            for row, packet in enumerate(batch):
                answer = walk(course, packet, way)
                undecided += answer.verdict == VERDICTS[-1]
                if answer.whole and not same(decisions, row, answer):
                    different += 1
                    if different <= 3:
                        print(f"{name} {way}: {packet}\n  {answer.verdict}, not {told(decisions, row)}")
            packets += len(batch)
    return packets, undecided, different


def told(decisions: Decisions, row: int) -> tuple[str, object]:
    """(verdict, what decided) of a row."""
    rule, policy = int(decisions.rule[row]), int(decisions.policy[row])
    by = decisions.rules[rule] if rule >= 0 else decisions.chains[policy].chain.name if policy >= 0 else None
    return VERDICTS[decisions.verdict[row]], by


def same(decisions: Decisions, row: int, answer: Answer) -> bool:
    """Whether the walk says the same."""
    verdict, by = told(decisions, row)
    if verdict != answer.verdict or len(answer.outcomes) > 1:
        return verdict == answer.verdict
    step = answer.outcomes[0].path.deciding
    return by == (None if step is None else step.chain if step.rule is None else step.rule)


def choose(ruleset: Ruleset, version: int, count: int, pick: random.Random) -> list[dict[str, int | str | None]]:
    """Packets on the borders of tests."""
    borders: dict[str, list[int]] = {}
    names = ["lo", "eth0", "nowhere"]
    for axis in Programs(ruleset, version, PASSAGE_TESTS).space.axes.values():
        if axis.name in NAMES:
            names += [pattern.replace("*", "7") for pattern in axis.patterns]
        elif axis.name in FIELDS:
            top = (1 << width_of(axis.name, version)) - 1
            near = (value for low in axis.lows for value in (low - 1, low, low + 1))
            borders.setdefault(axis.name, []).extend(value for value in near if 0 <= value <= top)
    return [_packet(version, borders, names, pick) for _ in range(count)]


def _packet(
    version: int, borders: dict[str, list[int]], names: list[str], pick: random.Random
) -> dict[str, int | str | None]:
    packet: dict[str, int | str | None] = {"family": version, "fragment": int(pick.random() < 0.02)}
    for name, field in FIELDS.items():
        if name in {"family", "fragment", "saddr_type", "daddr_type"}:
            continue
        packet[name] = pick.choice(borders.get(name) or [pick.getrandbits(min(field.width, 30))])
        if name in {"mac", "skuid", "skgid"} and pick.random() < 0.3:
            packet[name] = None
    packet |= {"saddr_type": pick.choice((1, 1, 2, 3, 5)), "daddr_type": pick.choice((1, 1, 2, 3, 5))}
    packet |= {"protocol": pick.choice(_PROTOCOLS), "ct_state": pick.choice((0, 1, 2, 3, 3, 3))}
    packet |= {"iif": pick.choice(names), "oif": pick.choice(names)}
    return packet


def as_columns(packets: list[dict[str, int | str | None]]) -> dict[str, Column]:
    """Packets that all have a value, or None, of the same fields."""
    return {name: Column(_array(name, packets), None, _present(name, packets)) for name in packets[0]}


def _present(name: str, packets: list[dict[str, int | str | None]]) -> NDArray[np.bool_]:
    return np.array([packet[name] is not None for packet in packets])


def _array(name: str, packets: list[dict[str, int | str | None]]) -> NDArray[np.generic]:
    if name in NAMES:
        return np.array([str(packet[name]) for packet in packets])
    numbers = [int(packet[name] or 0) for packet in packets]
    if name in {"saddr", "daddr"}:
        return np.array([divmod(number, 1 << 64) for number in numbers], np.uint64)
    return np.array(numbers, np.uint64)


if __name__ == "__main__":
    sys.exit(main())
