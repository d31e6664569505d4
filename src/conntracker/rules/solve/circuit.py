"""Circuits of AND gates over the bits of a packet: what all rules ask, shared wherever two ask the same.

A literal is a whole number: a variable, or minus a variable for its opposite. Gates come after what they read, so that
a circuit can be worked out for many packets at once, one packet a bit (`simulate`), as well as given to a solver.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from conntracker.rules.intervals import Intervals, prefixes

__all__ = ["FALSE", "TRUE", "Circuit", "Vector"]

TRUE, FALSE = 1, -1
_FEW = 6  # an interval of no more prefixes than this is an OR of them, a wider one is compared at both ends
_BYTE = 8


class Vector:
    """The bits of a number, most significant first; equal ones of a circuit are one object."""

    __slots__ = ("at_least", "bits", "ranges", "starts")

    def __init__(self, bits: tuple[int, ...]) -> None:
        self.bits = bits
        self.starts: dict[tuple[int, int], int] = {}
        self.at_least: dict[int, int] = {}
        self.ranges: dict[tuple[int, int], int] = {}


class Circuit:
    """Gates, each made once."""

    def __init__(self) -> None:
        self.inputs: dict[int, int] = {}  # gates that are none, by variable, with the order in which they came
        self.gates: list[tuple[int, ...] | None] = [None, ()]  # by variable: what it is the AND of; None for an input
        self._known: dict[tuple[int, ...], int] = {}
        self._vectors: dict[tuple[int, ...], Vector] = {}

    # --- gates ---

    def new(self) -> int:
        """A variable that may be either."""
        self.gates.append(None)
        self.inputs[len(self.gates) - 1] = len(self.inputs)
        return len(self.gates) - 1

    def both(self, one: int, other: int) -> int:
        """AND of two."""
        if FALSE in {one, other} or one == -other:
            return FALSE
        if one in {TRUE, other}:
            return other
        if other == TRUE:
            return one
        return self._gate((one, other) if one < other else (other, one))

    def every(self, literals: Iterable[int]) -> int:
        """AND of any number; TRUE of none."""
        found = set(literals)
        found.discard(TRUE)
        if FALSE in found:
            return FALSE
        if len(found) < 2:
            return found.pop() if found else TRUE
        if any(-literal in found for literal in found):
            return FALSE
        return self._gate(tuple(sorted(found)))

    def either(self, one: int, other: int) -> int:
        """OR of two."""
        return -self.both(-one, -other)

    def some(self, literals: Iterable[int]) -> int:
        """OR of any number; FALSE of none."""
        return -self.every([-literal for literal in literals])

    def choose(self, which: int, yes: int, no: int) -> int:
        """`yes` where `which` holds, `no` elsewhere."""
        if yes == no or which == TRUE:
            return yes
        if which == FALSE:
            return no
        return self.either(self.both(which, yes), self.both(-which, no))

    def differ(self, one: int, other: int) -> int:
        """Whether exactly one of two holds."""
        return self.choose(one, -other, other)

    def _gate(self, literals: tuple[int, ...]) -> int:
        found = self._known.get(literals)
        if found is None:
            self.gates.append(literals)
            found = self._known[literals] = len(self.gates) - 1
        return found

    # --- numbers ---

    def vector(self, bits: Iterable[int]) -> Vector:
        """The number of these bits, most significant first."""
        key = tuple(bits)
        found = self._vectors.get(key)
        if found is None:
            found = self._vectors[key] = Vector(key)
        return found

    def number(self, width: int) -> Vector:
        """A number that may be any."""
        return self.vector(self.new() for _ in range(width))

    def constant(self, value: int, width: int) -> Vector:
        """A number that is known."""
        return self.vector(TRUE if value >> i & 1 else FALSE for i in range(width - 1, -1, -1))

    def mux(self, which: int, yes: Vector, no: Vector) -> Vector:
        """`yes` where `which` holds, `no` elsewhere."""
        if yes is no or which == TRUE:
            return yes
        if which == FALSE:
            return no
        return self.vector(self.choose(which, one, other) for one, other in zip(yes.bits, no.bits, strict=True))

    def unequal(self, one: Vector, other: Vector) -> int:
        """Whether two numbers differ."""
        if one is other:
            return FALSE
        return self.some(self.differ(a, b) for a, b in zip(one.bits, other.bits, strict=True))

    def within(self, number: Vector, values: Intervals) -> int:
        """Whether the number is one of a set."""
        return self.some([self._between(number, low, high) for low, high in values])

    def _between(self, number: Vector, low: int, high: int) -> int:
        width = len(number.bits)
        low, high = max(low, 0), min(high, (1 << width) - 1)
        if low > high:
            return FALSE
        found = number.ranges.get((low, high))
        if found is None:
            parts = []
            for part in prefixes(low, high, width):
                parts.append(part)
                if len(parts) > _FEW:
                    above = FALSE if high == (1 << width) - 1 else self._from(number, high + 1, 0)
                    found = self.both(self._from(number, low, 0), -above)
                    break
            else:
                found = self.some([self._starts(number, value, length) for value, length in parts])
            number.ranges[low, high] = found
        return found

    def _starts(self, number: Vector, value: int, length: int) -> int:
        """Whether the first bits are those of the value: byte after byte, so that neighbours share."""
        if length == 0:
            return TRUE
        width = len(number.bits)
        key = value >> (width - length), length
        found = number.starts.get(key)
        if found is None:
            shared = (length - 1) // _BYTE * _BYTE
            literals = [self._starts(number, value, shared)]
            for i in range(shared, length):
                bit = number.bits[i]
                literals.append(bit if value >> (width - 1 - i) & 1 else -bit)
            found = number.starts[key] = self.every(literals)
        return found

    def _from(self, number: Vector, low: int, index: int) -> int:
        """Whether the bits from index on are at least those of `low`."""
        width = len(number.bits)
        rest = low & ((1 << (width - index)) - 1)
        if rest == 0:
            return TRUE
        key = (index << width) | rest
        found = number.at_least.get(key)
        if found is None:
            bit, below = number.bits[index], self._from(number, low, index + 1)
            taken = rest >> (width - index - 1) & 1
            found = number.at_least[key] = self.both(bit, below) if taken else self.either(bit, below)
        return found

    # --- many packets at once ---

    def simulate(self, words: Mapping[int, int], mask: int) -> list[int]:
        """The value of each variable for many packets: bit n of a word is that of packet n, mask has a bit for each.

        Inputs without a word are 0.
        """
        values: list[int] = [0, mask]
        append = values.append
        for variable in range(2, len(self.gates)):
            gate = self.gates[variable]
            if gate is None:
                append(words.get(variable, 0))
                continue
            word = mask
            for literal in gate:
                word &= values[literal] if literal > 0 else ~values[-literal]
                if not word:
                    break
            append(word)
        return values

    def value(self, values: Sequence[int], mask: int, literal: int) -> int:
        """The word of a literal, of what simulate gave."""
        return values[literal] if literal > 0 else mask & ~values[-literal]
