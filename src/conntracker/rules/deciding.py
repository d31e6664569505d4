"""Which of a packet's steps is called the deciding one."""

from __future__ import annotations

from conntracker.steps import Step

__all__ = ["deciding_accept", "weight"]

_DECIDING_HOOKS = frozenset(("input", "forward", "output"))


def weight(step: Step, is_nat: bool) -> int:
    """How fit a step that accepts is to be called the deciding one.

    2 in a filter chain (any of nft's, iptables' filter table) at input, forward or output; 1 there in raw, mangle and
    security; 0 elsewhere, where rules decide where a packet goes and how it looks rather than whether it may pass.
    """
    if step.hook not in _DECIDING_HOOKS or is_nat or (step.kind != "nft" and step.table == "nat"):
        return 0
    return 2 if step.kind == "nft" or step.table == "filter" else 1


def deciding_accept(steps: tuple[Step, ...], weights: list[int]) -> int | None:
    """The index of the accepting step of most weight, a rule rather than a policy, the last; None without any."""
    accepting = [(w, step.type == "rule", i) for i, (step, w) in enumerate(zip(steps, weights, strict=True))
                 if step.verdict == "accept"]  # fmt: skip
    return max(accepting)[2] if accepting else None
