"""Columns that a person may name, and what becomes of a name in SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SIDE_NAMES", "group_names", "keys", "known", "limited", "order", "shown"]

ADDRESSES = ("src", "dst", "reply_src", "reply_dst")
# What flows can be summed up by; and the sides of flows, which have an owner each.
GROUP_NAMES = (
    "host", "family", "proto", *ADDRESSES, "sport", "dport", "reply_sport", "reply_dport", "icmp_type", "icmp_code",
    "icmp_id", "zone", "mark", "state", "replied", "offloaded", "snat", "dnat",
)  # fmt: skip
SIDE_NAMES = (
    "process", "user", "unit", "container", "pid", "exe", "cmdline", "uid", "login", "engine", "kind",
)  # fmt: skip


def known(option: str, name: str, names: Sequence[str]) -> str:
    """The name, if it is one of these. Raises ValueError naming the option and all that there are."""
    if name not in names:
        raise ValueError(f"{option}: no column {name!r}; there are: {', '.join(dict.fromkeys(names))}")
    return name


def group_names(by: str) -> list[str]:
    """The columns of --group-by, each once. Raises ValueError as known() does."""
    return list(dict.fromkeys(known("--group-by", name.strip(), GROUP_NAMES + SIDE_NAMES) for name in by.split(",")))


def keys(name: str) -> tuple[str, ...]:
    """What a column is compared by: an address by its numbers."""
    return ("family", f"{name}_hi", f"{name}_lo") if name in ADDRESSES else (f'"{name}"',)


def shown(name: str) -> str:
    """The expression for a column as people read it, where only its keys are there."""
    return f"address(family, {name}_hi, {name}_lo) AS {name}" if name in ADDRESSES else f'"{name}"'


def order(sort: str | None, names: Sequence[str]) -> str:
    """What stands behind ORDER BY for --sort, nothing if that was not given. Raises ValueError as known() does."""
    if sort is None:
        return ""
    name = known("--sort", sort.removeprefix("-"), names)
    direction = "DESC" if sort.startswith("-") else "ASC"
    return ", ".join(f"{key} {direction} NULLS LAST" for key in keys(name))


def limited(limit: int | None) -> str:
    """LIMIT, if there is one."""
    return "" if limit is None else f" LIMIT {int(limit)}"
