"""The values that random rules are made of: few, so that rules overlap, shadow and contradict each other."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["INTERFACES", "MARKS", "PORTS", "Pool"]

T = TypeVar("T")

INTERFACES = ("eth0", "eth1", "wan0", "lan0")
PORTS = (22, 25, 53, 80, 81, 443, 1024, 3306, 8080, 65535)
MARKS = (1, 2, 3, 16, 255)

_PREFIXES = {
    4: (
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.2.0/24",
        "10.1.2.128/25",
        "192.168.1.0/24",
        "198.18.0.0/15",
        "203.0.113.8/29",
    ),
    6: ("fd00::/8", "fd00:1::/32", "fd00:1:2::/48", "fd00:1:2:8000::/49", "2001:db8:1::/48", "2001:db8::8/125"),
}
_ADDRESSES = {
    4: ("10.1.2.3", "10.1.2.130", "10.200.0.1", "192.168.1.9", "203.0.113.9", "198.51.100.7"),
    6: ("fd00:1:2::3", "fd00:1:2:8000::3", "fd00:9::1", "2001:db8:1::9", "2001:db8::9", "2001:db8:f::7"),
}


class Pool:
    """Draws values. `random` is its own generator, so that a seed always gives the same ruleset."""

    def __init__(self, seed: object, version: int) -> None:
        self.random = random.Random(repr(seed))  # noqa: S311 - nothing secret hangs on it
        self.version = version

    def chance(self, of_one: float) -> bool:
        """Yes, with this probability."""
        return self.random.random() < of_one

    def one(self, values: Sequence[T]) -> T:
        """One of them, all equally likely."""
        return self.random.choice(values)

    def some(self, values: Sequence[T], most: int = 3) -> list[T]:
        """One to `most` different ones, in no order."""
        return self.random.sample(values, min(len(values), self.random.randint(1, most)))

    def weighed(self, choices: dict[T, int]) -> T:
        """One of the keys; the values say how likely each is."""
        return self.random.choices(list(choices), list(choices.values()))[0]

    def negated(self, text: str = "! ", of_one: float = 0.2) -> str:
        """The text that negates, now and then; else nothing."""
        return text if self.chance(of_one) else ""

    def interface(self) -> str:
        """A name."""
        return self.one(INTERFACES)

    def address(self, version: int | None = None) -> str:
        """A host's."""
        return self.one(_ADDRESSES[version or self.version])

    def prefix(self, version: int | None = None) -> str:
        """A network, or a host without a length."""
        version = version or self.version
        return self.one(_PREFIXES[version] if self.chance(0.7) else _ADDRESSES[version])

    def prefixes(self, version: int | None = None) -> list[str]:
        """Some that do not overlap, for sets of intervals."""
        chosen = ("10.1.2.0/24", "192.168.1.9", "203.0.113.8/29", "172.16.0.0/12")
        if (version or self.version) == 6:
            chosen = ("fd00:1:2::/48", "2001:db8:1::9", "2001:db8::8/125", "2001:db8:f::/48")
        return self.some(chosen)

    def span(self, version: int | None = None) -> str:
        """A range of addresses that is no prefix."""
        last = self.random.randint(4, 250)
        return f"10.1.2.3-10.1.2.{last}" if (version or self.version) == 4 else f"fd00:1:2::3-fd00:1:2::{last:x}"

    def port(self) -> int:
        """A port."""
        return self.one(PORTS)

    def ports(self, join: str) -> str:
        """A port or a range of ports with `join` between its ends."""
        if self.chance(0.7):
            return str(self.port())
        low, high = sorted(self.random.sample(PORTS, 2))
        return f"{low}{join}{high}"

    def port_list(self, join: str, most: int = 4) -> list[str]:
        """Ports and ranges that do not touch."""
        ends = sorted(self.random.sample(PORTS, self.random.randint(2, 2 * most)))
        found = []
        while ends:
            low = ends.pop(0)
            if ends and self.chance(0.3):
                found.append(f"{low}{join}{ends.pop(0)}")
            else:
                found.append(str(low))
        return found[:most]

    def mark(self) -> str:
        """A mark, or a mark and a mask."""
        mark = self.one(MARKS)
        return f"0x{mark:x}/0x{self.one((mark, 255, mark | 15)):x}" if self.chance(0.4) else f"0x{mark:x}"

    def call(self, makers: dict[Callable[[], str], int]) -> str:
        """What one of the makers makes."""
        return self.weighed(makers)()
