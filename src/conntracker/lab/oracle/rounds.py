"""Which packets can be sent between two changes of routes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

__all__ = ["Round", "Target", "rounds"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    """What a packet asks of the routes.

    iif      interface that it comes in by; "" if the host sends it
    goes     where that interface's routes lead: an interface, or devices.LOCAL
    default  where the main table's default route must lead; None if that does not matter
    avoid    where it must not lead; None if that does not matter
    """

    iif: str
    goes: str
    default: str | None
    avoid: str | None = None


@dataclass(slots=True)
class Round:
    """Routes: by interface that packets come in by, and the default of the main table."""

    targets: dict[str, str] = field(default_factory=dict)
    default: str | None = None
    avoid: set[str] = field(default_factory=set)

    def takes(self, target: Target) -> bool:
        """Whether a packet that asks for that can be sent in this round, too."""
        if target.iif and self.targets.get(target.iif, target.goes) != target.goes:
            return False
        default = target.default if target.default is not None else self.default
        if self.default not in (None, default):
            return False
        return default is None or (default != target.avoid and default not in self.avoid)

    def add(self, target: Target) -> None:
        """From now on it is a round for such packets."""
        if target.iif:
            self.targets[target.iif] = target.goes
        if target.default is not None:
            self.default = target.default
        if target.avoid is not None:
            self.avoid.add(target.avoid)


def rounds(members: Iterable[tuple[Target, T]]) -> list[tuple[Round, list[T]]]:
    """Few rounds, each with its members in their order."""
    made: list[tuple[Round, list[T]]] = []
    place: dict[Target, list[T]] = {}
    for target, member in members:
        if target not in place:
            found = next((one for one in made if one[0].takes(target)), None)
            if found is None:
                found = Round(), []
                made.append(found)
            found[0].add(target)
            place[target] = found[1]
        place[target].append(member)
    return made
