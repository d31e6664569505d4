"""Columns that a person may name, and what becomes of a name in SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conntracker.model import COUNTERS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "FLOW_NAMES", "OWN_NAMES", "SIDE_NAMES", "group_names", "keys", "known", "limited", "order", "shown",
]  # fmt: skip

ADDRESSES = ("src", "dst", "reply_src", "reply_dst")
# What is known of an owner, as in JSON, but when it began: with its pid that is compared anyway.
OWN_NAMES = (
    "process", "user", "unit", "container", "exe", "comm", "cmdline", "pid", "uid", "login", "loginuid", "ppid",
    "parent", "cgroup", "engine", "kind", "method", "certainty", "netns",
)  # fmt: skip
# What flows can be summed up by; and the sides of flows, which have an owner each.
GROUP_NAMES = (
    "proto", *ADDRESSES, "sport", "dport", "reply_sport", "reply_dport", "icmp_type", "icmp_code", "icmp_id", "state",
    "replied", "offloaded", "snat", "dnat", "family", "zone", "mark", "host",
)  # fmt: skip
SIDE_NAMES = (*OWN_NAMES, "role")
# What flows can be sorted by.
FLOW_NAMES = (
    "proto", *ADDRESSES, "sport", "dport", "reply_sport", "reply_dport", "icmp_type", "icmp_code", "state", "replied",
    *COUNTERS, "start", "end", "first_seen", "last_seen", "zone", "mark", "host", "flow", *OWN_NAMES, "peer_process",
)  # fmt: skip


def known(option: str, name: str, names: Sequence[str]) -> str:
    """The name, if it is one of these. Raises ValueError naming the option and all that there are."""
    if name not in names:
        raise ValueError(f"{option}: no column {name!r}; there are: {', '.join(dict.fromkeys(names))}")
    return name


def group_names(by: str) -> list[str]:
    """The columns of --group-by, each once. Raises ValueError as known() does."""
    return list(dict.fromkeys(known("--group-by", name.strip(), SIDE_NAMES + GROUP_NAMES) for name in by.split(",")))


def keys(name: str) -> tuple[str, ...]:
    """What a column is compared by: an address by its numbers."""
    return ("family", f"{name}_hi", f"{name}_lo") if name in ADDRESSES else (f'"{name}"',)


def shown(name: str) -> str:
    """The expression for a column as people read it, where only its keys are there."""
    return f"address(family, {name}_hi, {name}_lo) AS {name}" if name in ADDRESSES else f'"{name}"'


def order(sort: str | None, names: Sequence[str], keys: Callable[[str], tuple[str, ...]] = keys) -> str:
    """What stands behind ORDER BY for --sort, nothing if that was not given. Raises ValueError as known() does.

    keys   what a column is sorted by
    """
    if sort is None:
        return ""
    name = known("--sort", sort.removeprefix("-"), names)
    direction = "DESC" if sort.startswith("-") else "ASC"
    return ", ".join(f"{key} {direction} NULLS LAST" for key in keys(name))


def limited(limit: int | None) -> str:
    """LIMIT, if there is one."""
    return "" if limit is None else f" LIMIT {int(limit)}"
