"""Blame turned round: each rule or policy with the flows that it decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from conntracker.recording.join import joined
from conntracker.recording.paths import UNKNOWN_PATH, load_paths

if TYPE_CHECKING:
    from conntracker.filters import Filter
    from conntracker.recording.reader import Recording
    from conntracker.steps import Path, Step

__all__ = ["Decided", "by_rule"]

RULE = {"position": "position", "rule": "text"}  # what stands in a step's rule, by its name in there


@dataclass(frozen=True, slots=True)
class Decided:
    """What one rule, or the policy of one chain, decided.

    host          where it was recorded
    path          the path of one of the packets
    flows         how many flows, packets that never became one counted by their tuples
    traced        how many of their packets were traced: the first few of each direction and window
    first, last   when the first and the last of these was seen: microseconds since the epoch, UTC
    """

    host: str
    path: Path
    flows: int
    traced: int
    first: int
    last: int

    @property
    def step(self) -> Step | None:
        """The step that decided; None where no step did."""
        return self.path.deciding


def by_rule(
    recording: Recording, filter: Filter | None = None, since: int | None = None, until: int | None = None
) -> list[Decided]:
    """What each rule decided of the wanted flows and packets, as far as traced since..until; most flows first."""
    paths = load_paths(recording)
    decided = []
    with joined(recording, filter, since, until, only_inside=True) as (_, ways):
        for chunk in recording.chunks(_query(ways)):
            for host, flows, traced, first, last, part, path in zip(
                *(column.tolist() for column in chunk.values()), strict=True
            ):
                decided.append(Decided(host, paths.get((part, path), UNKNOWN_PATH), flows, traced, first, last))
    return decided


def _query(ways: str) -> str:
    # A rule is its text and place: a ruleset that is loaded again has new handles, and the same rules.
    names = ("kind", "family", "table", "chain", "type", "position", "rule")
    key = ", ".join(f'p.deciding."{name}"' if name not in RULE else f"p.deciding.rule.{RULE[name]}" for name in names)
    query = (
        "SELECT w.host, count(DISTINCT hash(w.part, w.flow, w.unit)) AS flows,"  # noqa: S608
        " sum(w.packets)::UBIGINT AS traced, epoch_us(min(w.first_seen)) AS first,"
        " epoch_us(max(w.last_seen)) AS last, min({'part': w.part, 'path': w.path}) AS one"
        f" FROM {ways} w LEFT JOIN paths p ON w.part = p.part AND w.path = p.path"
        f" GROUP BY w.host, {key}, CASE WHEN p.deciding.rule.text IS NULL THEN p.deciding.rule.handle END, p.verdict,"
        " CASE WHEN p.deciding IS NULL THEN p.reached END,"
        " coalesce(p.blind, false) AND p.verdict IN ('accept', 'undecided')"
    )
    return (
        "SELECT host, flows, traced, first, last, one.part AS part, one.path AS path"  # noqa: S608
        f" FROM ({query}) ORDER BY flows DESC, traced DESC, first, part, path"
    )
