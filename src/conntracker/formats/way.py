"""The way of a packet through the rules, a line for each step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from conntracker.steps import Path, Step

__all__ = ["BLIND", "place", "way_lines", "which"]

BLIND = "rules of iptables-legacy were not traced"
KIND = {"iptables-legacy": "legacy"}


def place(step: Step) -> str:
    """Family, table and chain."""
    return f"{step.family} {step.table} {step.chain}"


def which(step: Step) -> str:
    """'rule 4', 'rule 2 handle 9', 'policy', 'end of chain'."""
    if step.rule is None:
        return {"policy": "policy", "return": "end of chain"}.get(step.type, "a rule that is not known")
    position, handle = step.rule.position, step.rule.handle
    words = [f"rule {position}"] if position is not None else ["rule"]
    if handle is not None and (step.kind == "nft" or position is None):
        words.append(f"handle {handle}")
    return " ".join(words)


def way_lines(path: Path, width: int, between: Mapping[int, Sequence[str]] | None = None) -> Iterator[str]:
    """A line for each step, chains that were jumped to further in; a rule's text on a line of its own if it is long.

    between   lines to stand in front of the step of that number, or behind the last one
    """
    between = between or {}
    chains: list[str] = []
    base: tuple[object, ...] = ()
    hook: str | None = ""
    mixed = len({step.kind for step in path.steps}) > 1
    for number, step in enumerate(path.steps):
        yield from between.get(number, ())
        here = (step.hook, step.priority, step.kind, step.family, step.table)
        if here != base:
            base, chains = here, []
        if step.chain in chains:
            del chains[chains.index(step.chain) + 1 :]
        else:
            chains.append(step.chain)
        where = place(step) + (f" ({KIND.get(step.kind, step.kind)})" if mixed else "")
        head = f"{'' if step.hook == hook else step.hook or '?':<12}{'  ' * (len(chains) - 1)} {where:<24}"
        hook = step.hook
        text = f"{head} {which(step)} {step.verdict or '?'}{f' {step.target}' if step.target else ''}"
        text += "" if step.certain else " (maybe another)"
        text += "  <== decided" if number == path.decided else ""
        rule = None if step.rule is None else step.rule.text
        if rule is None or len(text) + 2 + len(rule) <= width:
            yield text if rule is None else f"{text}  {rule}"
        else:
            yield text
            yield " " * (13 + 2 * len(chains)) + rule
    yield from between.get(len(path.steps), ())
    if not path.complete:
        yield "steps may be missing: trace messages were lost"
    if path.blind:
        yield f"steps may be missing: {BLIND}"
