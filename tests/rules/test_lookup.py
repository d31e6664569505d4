"""rules.lookup: the first rule that holds, against looking at one after the other."""

from __future__ import annotations

import random

import numpy as np
import pytest

from conntracker.rules.intervals import contains, normal
from conntracker.rules.lookup import Index, Space
from conntracker.rules.terms import In, Named, Test

WIDTHS = {"daddr": 128, "saddr": 32, "dport": 16, "mark": 32, "iif": 32}
NAMES = ("", "eth0", "eth01", "e", "wlan0", "lo")


def _test(pick: random.Random) -> Test:
    name = pick.choice(sorted(WIDTHS))
    if name == "iif":
        patterns = tuple(pick.sample(["eth0", "eth*", "e*", "lo", "", "wlan0"], pick.randint(1, 2)))
        return Named(name, patterns, pick.random() < 0.5)
    top = (1 << WIDTHS[name]) - 1
    ends = [pick.choice([0, top, pick.randint(0, top), pick.randint(0, min(top, 300))]) for _ in range(4)]
    if name == "mark":
        return In(name, normal([(pick.randint(0, 3),) * 2]), 3)
    return In(name, normal([(min(ends[:2]), max(ends[:2])), (min(ends[2:]), max(ends[2:]))]))


def _holds(test: Test, packet: dict[str, int]) -> bool:
    value = packet[test.field]
    if isinstance(test, In):
        return contains(test.values, value if test.mask is None else value & test.mask)
    name = NAMES[value]
    return test.negated != any(name.startswith(p[:-1]) if p.endswith("*") else name == p for p in test.patterns)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 700, 1500])
def test_the_first_rule_is_that_of_looking_at_one_after_the_other(count: int) -> None:
    """From any start on, in lists of less than a word and of more than a block."""
    pick = random.Random(count)  # noqa: S311
    rules = [tuple(_test(pick) for _ in range(pick.randint(1, 5))) for _ in range(count)]
    space = Space()
    for test in (test for rule in rules for test in rule):
        space.add(test, WIDTHS[test.field])
    space.freeze()
    borders = {name: [0] for name in WIDTHS}
    for test in (test for rule in rules for test in rule if isinstance(test, In)):
        borders[test.field] += [end for pair in test.values for end in pair]
    packets = [{name: pick.choice(borders[name]) for name in WIDTHS} | {"iif": pick.randrange(6)} for _ in range(60)]
    classes = {}
    for axis in space.axes.values():
        values = [packet[axis.name] for packet in packets]
        if axis.name == "iif":
            classes[axis] = np.array([axis.class_of(NAMES[value]) for value in values], np.int32)
        else:
            pairs = np.array([divmod(value, 1 << 64) for value in values], np.uint64)
            classes[axis] = axis.classes(pairs if axis.width > 64 else pairs[:, 1])
    start = np.array([pick.randint(0, count) for _ in packets], np.int32)
    found = Index(space, rules).first(classes, start)
    for packet, begin, number in zip(packets, start.tolist(), found.tolist(), strict=True):
        fitting = (at for at in range(begin, count) if all(_holds(test, packet) for test in rules[at]))
        assert number == next(fitting, count)


def test_what_is_not_known_may_hold_and_what_is_absent_does_not() -> None:
    """An unknown value stops at the first rule that asks for it, and says that it is in doubt."""
    rules: list[tuple[Test, ...]] = [(In("dport", ((22, 22),)),), (In("mark", ((1, 1),)),)]
    space = Space()
    for (test,) in rules:
        space.add(test, WIDTHS[test.field])
    space.freeze()
    port, mark = space.axes["dport", None], space.axes["mark", None]
    ones = mark.classes(np.ones(3, np.uint64))
    ports = np.array([port.size, port.size + 1, port.classes(np.array([22], np.uint64))[0]], np.int32)
    index = Index(space, rules)
    found = index.first({port: ports, mark: ones}, np.zeros(3, np.int32))
    assert found.tolist() == [0, 1, 0]
    assert index.doubtful({port: ports, mark: ones}, found).tolist() == [True, False, False]
