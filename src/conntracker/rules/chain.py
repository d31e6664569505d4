"""One chain of a ruleset, with its rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conntracker.steps import Rule

__all__ = ["Chain"]


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain and where the kernel calls it.

    kind, family, table   as in Rule
    hook        one of HOOKS; None for a user chain, as are priority, policy and type
    priority    in that hook, lower ones first; None also where its name is not known
    policy      accept or drop
    type        filter, nat or route
    device      of ingress and egress: device names, comma separated
    rules       in order: position N is rules[N - 1]
    """

    kind: str
    family: str
    table: str
    name: str
    hook: str | None
    priority: int | None
    policy: str | None
    type: str | None
    device: str | None
    rules: tuple[Rule, ...]
