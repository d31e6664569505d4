"""Interfaces as numbers: of all names that rules can tell apart, one each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from conntracker.rules.intervals import Intervals, normal
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.terms import AnyOf, Branches, Named, Part

__all__ = ["Interfaces", "named_parts"]

_LONGEST = 15  # IFNAMSIZ less the end (linux/if.h)
_MORE = "0123456789abcdefghijklmnopqrstuvwxyz-_."


def named_parts(parts: Iterable[Part]) -> Iterator[Named]:
    """The tests of interfaces among parts."""
    for part in parts:
        if isinstance(part, Named):
            yield part
        elif isinstance(part, AnyOf):
            for box in part.boxes:
                yield from named_parts(box)
        elif isinstance(part, Branches):
            yield from named_parts(case for case, _ in part.cases)


class Interfaces:
    """Names by number: 0 is none, 1 is lo; one name for each set of names that all patterns treat alike.

    labels   for people: `eth*` and `any other`, where a name stands for more than itself
    """

    def __init__(self, rulesets: Iterable[Ruleset]) -> None:
        patterns = {
            pattern
            for ruleset in rulesets
            for chain in ruleset.chains
            for meaning in chain.meanings
            for part in named_parts(meaning.parts)
            for pattern in part.patterns
        }
        exact = sorted({one for one in patterns if not one.endswith("*")} - {"", "lo"})
        prefixes = sorted({one[:-1] for one in patterns if one.endswith("*")})
        names = ["", "lo", *exact]
        labels = ["none", "lo", *exact]
        for prefix in dict.fromkeys(("", *prefixes)):
            name = _fresh(prefix, prefixes, set(names))
            if name is not None:
                behind = any(one != prefix and one.startswith(prefix) for one in (*exact, *prefixes))
                labels.append("any other" if not prefix else f"{'other ' if behind else ''}{prefix}*")
                names.append(name)
        self.names, self.labels = tuple(names), tuple(labels)
        self.width = max(1, (len(names) - 1).bit_length())
        self._found: dict[tuple[str, ...], Intervals] = {}

    def matching(self, patterns: tuple[str, ...]) -> Intervals:
        """The numbers of the names that a pattern fits."""
        if patterns not in self._found:
            self._found[patterns] = normal(
                (i, i) for i, name in enumerate(self.names) if any(_fits(name, pattern) for pattern in patterns)
            )
        return self._found[patterns]


def _fits(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _fresh(prefix: str, prefixes: list[str], taken: set[str]) -> str | None:
    """A name behind the prefix, and behind no longer one of the prefixes; the most usual of its kind."""
    longer = [one for one in prefixes if len(one) > len(prefix) and one.startswith(prefix)]
    starts = [prefix] if prefix else ["eth", "net", "wlan", *_MORE]  # patterns may take all that is usual
    for start in starts:
        candidates = [start + more for more in _MORE] + [start] + [start + a + b for a in _MORE for b in _MORE]
        for name in candidates:
            if name and name not in taken and len(name) <= _LONGEST and not any(name.startswith(one) for one in longer):
                return name
    return None
