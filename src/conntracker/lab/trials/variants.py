"""A packet moved over the borders of one term: just inside, just outside, far."""

from __future__ import annotations

from collections.abc import Iterator

from conntracker.lab.trials.aim import Aim
from conntracker.rules.fields import ROUTE_TYPES
from conntracker.rules.intervals import complement
from conntracker.rules.packets import Packet
from conntracker.rules.terms import AnyOf, Branches, In, Named, Part, Test

__all__ = ["variants"]

_ENDS = 4  # intervals of a set of which the ends are tried
_BOXES = 5
_FAR = 2


def variants(aim: Aim, packet: Packet, part: Part) -> Iterator[Packet]:
    """Packets that differ in what the term looks at: some hold it, some do not."""
    if isinstance(part, In | Named):
        yield from _of_test(aim, packet, part)
    elif isinstance(part, AnyOf):
        yield from _of_boxes(aim, packet, part)
    elif isinstance(part, Branches):
        cases = [case for case, _ in part.cases if isinstance(case, AnyOf)]
        for case in aim.draw.sample(cases, min(_BOXES, len(cases))):
            yield from _of_boxes(aim, packet, case)


def _of_boxes(aim: Aim, packet: Packet, part: AnyOf) -> Iterator[Packet]:
    for box in aim.draw.sample(part.boxes, min(_BOXES, len(part.boxes))):
        inside = dict(packet)
        if all(aim.test(inside, test) for test in box):
            yield inside
            for test in box:
                yield from _of_test(aim, inside, test)


def _of_test(aim: Aim, packet: Packet, test: Test) -> Iterator[Packet]:
    if isinstance(test, Named):
        if packet.get(test.field):
            yield from (packet | {test.field: name} for name in aim.space.interfaces)
        return
    for value in _numbers(aim, packet, test):
        made = dict(packet)
        if aim.put(made, test.field, value):
            yield made


def _numbers(aim: Aim, packet: Packet, test: In) -> Iterator[int]:
    if test.field == "ct_state":
        yield from range(5)
        return
    old = packet.get(test.field)
    if test.mask is not None:
        bits = [1 << bit for bit in range(aim.top(test.field).bit_length())]
        if isinstance(old, int):
            yield from (old ^ bit for bit in bits if bit & test.mask)
            yield old ^ aim.draw.choice(bits)
        return
    values = aim.draw.sample(test.values, min(_ENDS, len(test.values)))
    top = aim.top(test.field)
    for low, high in values:
        size = high - low + 1
        # just outside and just inside of both ends, and what one bit less of a prefix would take in
        yield from (one for one in (low - 1, low, high, high + 1, (low ^ size) + size // 2) if 0 <= one <= top)
    if test.field in {"saddr", "daddr"}:  # of each type: rules may have sorted packets by that before
        found = (aim.space.typed(aim.version, kind, aim.draw) for kind in range(len(ROUTE_TYPES)))
        yield from (one for one in found if one is not None)
    if outside := complement(test.values, 0, top):
        for _ in range(_FAR):
            low, high = aim.draw.choice(outside)
            yield aim.draw.randint(low, high)
