"""The named sets and maps of a table: what stands in them, and whether it stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from conntracker.rules.nft.values import Unreadable

__all__ = ["Changing", "KnownSet", "Sets"]

# What a set's elements can carry without taking part in the match (nft_set_elem_update_expr runs the others as well).
_HARMLESS = {"counter", "last"}


class Changing(Exception):
    """A set of which the elements come and go, or have a state of their own."""


@dataclass(frozen=True, slots=True)
class KnownSet:
    """A set or map, as its JSON has it.

    elements   None where they are not known
    changing   whether packets change it
    """

    elements: list[Any] | None
    changing: bool
    data: str | None = None


@dataclass(slots=True)
class Sets:
    """The sets and maps of one table, by name. `made` keeps what was made of them: they can be large."""

    known: Mapping[str, KnownSet]
    made: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def elements(self, value: Any) -> list[Any]:
        """Of a set without a name ({"set": [...]}), or a named one ("@name"). Raises Unreadable, Changing."""
        if isinstance(value, dict) and value.keys() == {"set"}:
            value = value["set"]
            return value if isinstance(value, list) else [value]
        if isinstance(value, str) and value.startswith("@"):
            found = self.known.get(value[1:])
            if found is None or found.elements is None:
                raise Unreadable(f"no such set: {value}")
            if found.changing:
                raise Changing(value)
            return found.elements
        raise Unreadable(f"no set: {value}")


def known_set(inner: Mapping[str, Any], updated: bool, flags: tuple[str, ...]) -> KnownSet:
    """A set or map as libnftables lists it; `updated`: whether a rule changes it."""
    statements = inner.get("stmt")
    stateful = isinstance(statements, list) and any(
        not isinstance(one, dict) or one.keys() - _HARMLESS for one in statements
    )
    changing = updated or stateful or bool({"dynamic", "timeout"} & set(flags)) or "timeout" in inner
    listed = inner.get("elem", [])
    data = inner.get("map")
    return KnownSet(listed if isinstance(listed, list) else None, changing, data if isinstance(data, str) else None)
