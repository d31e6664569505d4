"""Steps as lines that can be compared: the engine's and the kernel's are equal where they say the same."""

from __future__ import annotations

from collections.abc import Iterable

from conntracker.steps import Step

__all__ = ["Line", "line_of", "lines_of", "text_of"]

# hook, kind, family, table, chain, type, position, verdict, target, priority
Line = tuple[str | None, str, str, str, str, str, int | None, str | None, str | None, int | None]

_OF_IPTABLES = frozenset(("raw", "mangle", "nat", "filter", "security"))


def lines_of(steps: Iterable[Step]) -> tuple[Line, ...]:
    """What is compared of the steps of a packet."""
    return tuple(line_of(step) for step in steps)


def line_of(step: Step) -> Line:
    """What is compared of a step: not the handle and the text, which one of the two may not have.

    A table with a name of iptables' may be either's: what nft made there in the same shape is iptables' to both.
    """
    position = None if step.rule is None else step.rule.position
    shared = step.kind == "nft" and step.family in {"ip", "ip6"} and step.table in _OF_IPTABLES
    return (
        step.hook, "iptables-nft" if shared else step.kind, step.family, step.table, step.chain, step.type, position,
        step.verdict, step.target, step.priority,
    )  # fmt: skip


def text_of(line: Line) -> str:
    """For people."""
    hook, kind, family, table, chain, what, position, verdict, target, priority = line
    where = f"{chain}:{position}" if position is not None else chain
    return f"{hook} {priority} {kind} {family} {table} {where} {what} {verdict}{f' {target}' if target else ''}"
