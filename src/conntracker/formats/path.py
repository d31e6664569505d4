"""The way of packets through netfilter as a diagram, 76 columns of ASCII, and a packet's own way marked in it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from conntracker.steps import Path, Step

__all__ = ["LEGEND", "diagram"]

LEGEND = "* passed   # decided   ? should have come next, and was not seen"

WIDTH, GAP = 24, 2  # of a box, and between two; there are three side by side
MIDDLE = WIDTH // 2 - 1
BAR = " " * MIDDLE + "|"

# What stands at each hook, with its priority: linux/netfilter_ipv4.h, enum nf_ip_hook_priorities.
RAW, CONNTRACK, MANGLE, DNAT = (-300, "raw"), (-200, "(conntrack)"), (-150, "mangle"), (-100, "nat (DNAT)")
FILTER, SECURITY, SNAT, CONFIRM = (0, "filter"), (50, "security"), (100, "nat (SNAT)"), (2**31 - 1, "(conntrack)")
PLACES: dict[str, tuple[tuple[int, str], ...]] = {
    "ingress": (),
    "prerouting": (RAW, CONNTRACK, MANGLE, DNAT),
    "input": (MANGLE, FILTER, SECURITY, SNAT, CONFIRM),
    "forward": (MANGLE, FILTER, SECURITY),
    "output": (RAW, CONNTRACK, MANGLE, DNAT, FILTER, SECURITY),
    "postrouting": (MANGLE, SNAT, CONFIRM),
    "egress": (),
}


@dataclass(frozen=True, slots=True)
class _Visit:
    """A base chain that a packet met; `table` is the table of iptables that the diagram has anyway, or None."""

    priority: int
    name: str
    table: str | None
    verdict: str | None


def diagram(path: Path | None = None) -> str:
    """The diagram, its lines each with a newline; without a path nothing is marked, and there is no legend."""
    boxes = {hook: _box(hook, path) for hook in PLACES}
    second, third = WIDTH + GAP + MIDDLE, 2 * (WIDTH + GAP) + MIDDLE
    lines = [
        *_beside(
            [_text("a packet comes in"), BAR, *boxes["ingress"], BAR, *boxes["prerouting"]],
            [],
            [_text("a local process sends"), BAR, _text("routing decision"), BAR, *boxes["output"]],
        ),
        *_beside([BAR], [], [BAR]),
        f"{_text('routing decision')} -- for us ".ljust(second, "-") + "+".ljust(third - second) + "|",
        *_beside([BAR, _text("for others"), BAR], [BAR] * 3, [BAR]),
        *_beside(boxes["forward"], [*boxes["input"], BAR, _text("a local process")], [BAR]),
        *_beside([BAR, boxes["postrouting"][0]], [], [BAR]),
        f"{boxes['postrouting'][1]} <".ljust(third, "-") + "+",
        *boxes["postrouting"][2:],
        BAR,
        *boxes["egress"],
        BAR,
        "  a packet goes out (through lo it comes in again)",
    ]
    if path is not None:
        lines += ["", LEGEND]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _text(text: str) -> str:
    """Text in the middle of a box's width."""
    return " " * max(0, MIDDLE - len(text) // 2) + text


def _beside(left: Sequence[str], middle: Sequence[str], right: Sequence[str]) -> Iterator[str]:
    """Three columns side by side; the outer ones go on as a bar where they are shorter."""
    height = max(len(left), len(middle), len(right))
    columns = ([*left, *[BAR] * (height - len(left))], middle, [*right, *[BAR] * (height - len(right))])
    for row in zip_longest(*columns, fillvalue=""):
        yield (" " * GAP).join(text.ljust(WIDTH) for text in row)


def _box(hook: str, path: Path | None) -> list[str]:
    """The box of a hook, with what a packet met there marked."""
    visits = [] if path is None else list(_visits(hook, path))
    title = hook.upper()
    if path is not None and hook in path.expected:
        title += " ?"
    elif path is not None and hook in _passed(path):
        title += " *"
    rows = [_row(name, _of_table(name.split()[0], visits)) for _, name in PLACES[hook]]
    places = [priority for priority, _ in PLACES[hook]]
    for visit in visits:
        if visit.table is None:
            at = sum(priority <= visit.priority for priority in places)
            places.insert(at, visit.priority)
            rows.insert(at, _row(visit.name, visit))
    top = f" {title} ".center(WIDTH - 2, "-")
    bottom = BAR.replace(" ", "-").replace("|", "+")[1:].ljust(WIDTH - 2, "-")
    if not rows:
        return [f"+{top}+"]
    return [f"+{top}+", *(f"|{row}|" for row in rows), f"+{bottom}+"]


def _of_table(table: str, visits: list[_Visit]) -> _Visit | None:
    """The visit of a table of iptables; of that of iptables-legacy and that of iptables-nft, the one that decided."""
    same = [visit for visit in visits if visit.table == table]
    return max(same, key=lambda visit: visit.verdict is not None, default=None)


def _passed(path: Path) -> set[str | None]:
    """The hooks that a packet was seen at, and those that lie before them on any way."""
    hooks = {path.reached, *(step.hook for step in path.steps)}
    if "output" in hooks and hooks & {"prerouting", "input"}:
        hooks.add("postrouting")  # out through lo, and in again
    if "postrouting" in hooks and "output" not in hooks and hooks & {"ingress", "prerouting"}:
        hooks.add("forward")
    if hooks & {"input", "forward"}:
        hooks.add("prerouting")
    return hooks


def _row(name: str, visit: _Visit | None) -> str:
    mark = " " if visit is None else "#" if visit.verdict is not None else "*"
    verdict = visit.verdict.upper() if visit is not None and visit.verdict is not None else ""
    room = WIDTH - 5 - (len(verdict) + 1 if verdict else 0)
    short = name if len(name) <= room else name[: room - 1] + "~"
    return f"{mark} {short.ljust(room)}{' ' + verdict if verdict else ''} "


def _visits(hook: str, path: Path) -> Iterator[_Visit]:
    """The base chains that a packet met at a hook, in order. Their first step is never in a user chain."""
    found: dict[tuple[str, str, str, int | None], list[tuple[int, Step]]] = {}
    for index, step in enumerate(path.steps):
        if step.hook == hook:
            found.setdefault((step.kind, step.family, step.table, step.priority), []).append((index, step))
    for (kind, family, table, priority), steps in found.items():
        own = kind == "nft" or all(table != name.split()[0] for _, name in PLACES[hook])
        decided = any(index == path.decided for index, _ in steps)
        name = f"{family} {table} {steps[0][1].chain}"
        yield _Visit(priority or 0, name, None if own else table, path.verdict if decided else None)
