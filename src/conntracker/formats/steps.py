"""The lines under a flow in the text log: the tables, chains and rules that its packets met."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from conntracker.formats.table import printable
from conntracker.steps import UNDECIDED, Path, Step

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Key", "all_step_lines", "interleave", "reply_of", "step_lines"]

# A direction: family, protocol, source, destination, and ports or ICMP's type and code, as the log's columns.
Key = tuple[int, int, int, int, int, int]

_INDENT = "\t\t\t\t"
# Answers that ICMP's text log has no line for, and what they answer (RFC 792, RFC 950, RFC 4443).
_REQUESTS = {1: {0: 8, 14: 13, 16: 15, 18: 17}, 58: {129: 128}}


def reply_of(key: Key) -> Key | None:
    """For an ICMP answer, the direction of its request; None for all others."""
    family, proto, src, dst, kind, code = key
    request = _REQUESTS.get(proto, {}).get(kind)
    return None if request is None else (family, proto, dst, src, request, code)


def step_lines(paths: Iterable[Path]) -> list[str]:
    """The distinct steps of a direction's packets, in packet order, and what became of them.

    Rules of iptables as the original tool wrote them; those of nft with their family, handle and text. Each line begins
    with four tabs and ends without a newline.
    """
    merged: list[tuple[tuple[int, int], str]] = []
    ends: list[str] = []
    for path in paths:
        steps = list(dict.fromkeys(_placed(path)))
        at = 0
        for number, step in enumerate(steps):
            if step in merged:
                at = merged.index(step) + 1
                continue
            later = [merged.index(one) for one in steps[number + 1 :] if one in merged]
            while at < min(later, default=len(merged)) and merged[at][0] <= step[0]:
                at += 1
            merged.insert(at, step)
            at += 1
        if (end := _end(path)) is not None and end not in ends:
            ends.append(end)
    return [_INDENT + printable(line) for line in [*dict.fromkeys(line for _, line in merged), *ends]]


_STAGES = {"ingress": -1, "output": 0, "prerouting": 2, "input": 3, "forward": 3, "egress": 5}


def _placed(path: Path) -> Iterator[tuple[tuple[int, int], str]]:
    """Each step's line, with how far on its way the packet was: on loopback, postrouting comes before prerouting."""
    hooks = [step.hook for step in path.steps]
    local = "output" in hooks or ("postrouting" in hooks and "input" in hooks)
    for step in path.steps:
        stage = (1 if local else 4) if step.hook == "postrouting" else _STAGES.get(step.hook or "", 0)
        yield (stage, step.priority or 0), _step(step)


def all_step_lines(paths: Mapping[Key, list[Path]]) -> dict[Key, list[str]]:
    """`step_lines` for many directions, of which most have the same few paths."""
    made: dict[tuple[int, ...], list[str]] = {}
    lines: dict[Key, list[str]] = {}
    for key, chosen in paths.items():
        same = tuple(map(id, chosen))
        if same not in made:
            made[same] = step_lines(chosen)
        lines[key] = made[same]
    return lines


def _step(step: Step) -> str:
    family = f"family: {step.family}, " if step.kind == "nft" else ""
    text = f"{family}table: {step.table}, chain: {step.chain}, type: {step.type}"
    rule = step.rule
    if rule is None:
        return text
    if rule.kind == "nft":
        text += f", handle: {rule.handle}"
        return f"{text}, rule: {rule.text}" if rule.text is not None else text
    return f"{text}, position: {rule.position}" if rule.position is not None else f"{text}, handle: {rule.handle}"


def _end(path: Path) -> str | None:
    """None for what passed: the flow is there to show it."""
    if path.verdict == "accept":
        return None
    if path.verdict == UNDECIDED:
        where = f"last seen at {path.reached}" if path.reached else "not seen at any hook"
        why = "rules of iptables-legacy were not traced" if path.blind else "and no rule ended it"
        return f"verdict: not known, {where}, {why}"
    step = path.deciding
    if step is None:
        return f"verdict: {path.verdict}"
    rule = step.rule
    text = f", rule: {rule.text}" if rule is not None and rule.kind != "nft" and rule.text is not None else ""
    certain = "" if step.certain else " (the rules changed in that moment: maybe another)"
    kind = "" if step.kind == "nft" else f" ({step.kind})"
    return f"verdict: {path.verdict}, by {_step(step)}{kind}{text}{certain}"


def interleave(
    lines: bytes, place: Sequence[int], columns: Mapping[str, NDArray[Any]], steps: Mapping[Key, list[str]]
) -> Iterator[bytes]:
    """The lines of a group, as formats.log writes them, each followed by the steps of its direction.

    place   the group's family and protocol
    """
    family, proto = place
    names = ("src_hi", "src_lo", "dst_hi", "dst_lo", "sport", "dport")
    rows = zip(*(columns[name].tolist() for name in names), strict=True)
    for line, (src_hi, src_lo, dst_hi, dst_lo, sport, dport) in zip(lines.splitlines(True), rows, strict=True):
        yield line
        found = steps.get((family, proto, src_hi << 64 | src_lo, dst_hi << 64 | dst_lo, sport, dport))
        if found:
            yield ("\n".join(found) + "\n").encode("utf-8", "surrogateescape")
