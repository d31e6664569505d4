"""What changes from one ruleset to another, for people and as JSON."""

from __future__ import annotations

import json
import textwrap
from itertools import groupby
from typing import TYPE_CHECKING, Any

from conntracker.answers.diff import LOOPED
from conntracker.formats.audit import line_of, which_rule, witness_lines
from conntracker.formats.packets import packet_json
from conntracker.formats.table import printable
from conntracker.formats.values import value_text, values_text
from conntracker.formats.way import place
from conntracker.rules.fields import CT_STATES, FIELD_NAMES, PACKET_TYPES, ROUTE_TYPES
from conntracker.rules.intervals import intersect, single
from conntracker.rules.solve.regions import Masked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from conntracker.answers.diff import Changed, Diff
    from conntracker.rules.solve.regions import Values
    from conntracker.steps import Step

__all__ = ["box_text", "diff_json", "diff_lines"]

_ENDS = ("family", "protocol", "dport", "sport", "icmp_type", "icmp_code", "saddr", "daddr", "iif", "oif", "ct_state")
# The last value that there is, where a field has room for more.
_LAST = {
    "ct_state": len(CT_STATES) - 1, "packet_type": len(PACKET_TYPES) - 1,
    "saddr_type": len(ROUTE_TYPES) - 1, "daddr_type": len(ROUTE_TYPES) - 1,
}  # fmt: skip
_MOST = 10  # matches that are written out


def diff_lines(found: Diff, width: int = 80) -> Iterator[str]:
    """Lines, each with its newline."""
    for line in _lines(found, width):
        yield printable(line.rstrip()) + "\n"


def _lines(found: Diff, width: int) -> Iterator[str]:
    versions = " and ".join(f"IPv{version}" for version in found.versions)
    if found.equal:
        yield f"equal: every packet ({versions}) has the same fate under both"
    elif not found.changes:
        yield f"no difference found in what was compared ({versions})"
    for number, (kind, group) in enumerate(groupby(found.changes, key=lambda one: one.change.kind)):
        changes = list(group)
        if number:
            yield ""
        yield f"{kind.upper()}  {len(changes):,}"
        for one in changes:
            yield from _change_lines(one, width, found.fields)
    if found.changes:
        yield ""
    if found.more:
        yield "there are more changes than these: --limit N shows up to N"
    if found.shared:
        more = len(found.shared) - _MOST
        texts = [*found.shared[:_MOST], *([f"and {more:,} more"] if more > 0 else [])]
        yield from _wrapped("taken to be answered alike by both: " + "; ".join(texts), width, "", "  ")
    if found.apart:
        text = f"not compared, and not the same: chains of devices, bridges or ARP of {', '.join(found.apart)}"
        yield from _wrapped(text, width, "", "  ")
    yield "not compared: what rules log, count and remember"
    if found.doings:
        more = len(found.doings) - _MOST
        texts = [*found.doings[:_MOST], *([f"and {more:,} more"] if more > 0 else [])]
        yield from _wrapped("nor this, which is not alike in both: " + "; ".join(texts), width, "", "  ")


def _change_lines(one: Changed, width: int, fields: frozenset[str]) -> Iterator[str]:
    change = one.change
    ways = [way for way in one.ways if way != LOOPED or "input" not in one.ways]  # input has what comes in by lo, too
    yield from _wrapped(f"{', '.join(ways)}: {box_text(change.box, change.version)}", width, "  ", "    ")
    if change.atoms:
        yield from _wrapped(f"if {_atoms(change.atoms)}", width, "    ", "    ")
    for word, verdict, step in (("before", change.before, one.step_before), ("after", change.after, one.step_after)):
        yield from _decided(word, verdict, step, width)
    if one.left:
        texts = [f"{FIELD_NAMES[field]} {_left(field, new, change.version)}, not {_left(field, old, change.version)}"
                 for field, old, new in one.left]  # fmt: skip
        yield from _wrapped(f"it leaves with {'; '.join(texts)}", width, "    ", "      ")
    yield from witness_lines(one.witness, width, fields, one.asked if one.asked != change.atoms else ())


def _decided(word: str, verdict: str, step: Step | None, width: int) -> Iterator[str]:
    if step is None:
        yield f"    {word + ':':<7} {verdict}: no chain is in its way"
        return
    if step.rule is None:
        yield f"    {word + ':':<7} {verdict} by the policy of {place(step)}"
        return
    where = line_of(step.rule.source)
    source = f"   {where}" if where else ""
    line = f"    {word + ':':<7} {verdict} by {which_rule(step.rule)}"
    if len(line) + len(source) <= width:
        yield line + source
    else:
        yield line
        yield f"              {where}"
    yield f"              {step.rule.text}"


def _left(field: str, value: int | None, version: int) -> str:
    return "another" if value is None else value_text(field, value, version)


def _atoms(atoms: tuple[tuple[str, bool], ...]) -> str:
    return " and ".join(f"{'' if outcome else 'not '}{text}" for text, outcome in atoms)


def box_text(box: Mapping[str, Values], version: int) -> str:
    """A set of packets in a line: `tcp 22 from 10.0.0.0/8 to any, in eth0, state new`."""
    words = [_service(box, version)]
    words.append(f"from {_of(box, 'saddr', version) or 'any'}")
    if sport := _of(box, "sport", version):
        words.append(f"port {sport}")
    words.append(f"to {_of(box, 'daddr', version) or 'any'}")
    details = [f"{word} {_of(box, field, version)}" for field, word in (("iif", "in"), ("oif", "out")) if field in box]
    details += [f"state {_of(box, 'ct_state', version)}"] if "ct_state" in box else []
    details += [_detail(box, field, version) for field in box if field not in _ENDS]
    return ", ".join([" ".join(words), *details])


def _detail(box: Mapping[str, Values], field: str, version: int) -> str:
    if field == "fragment":
        return "no later fragments" if box[field] == ((0, 0),) else "later fragments"
    if box[field] is None:
        return f"no {FIELD_NAMES[field]}"
    if field.endswith(" given"):
        name = field.removesuffix(" given")
        return f"by the flow's NAT {FIELD_NAMES[name]} {_of(box, field, version)}"
    return f"{FIELD_NAMES[field]} {_of(box, field, version)}"


def _service(box: Mapping[str, Values], version: int) -> str:
    protocol = _of(box, "protocol", version)
    text = protocol or (("icmp" if version == 4 else "icmpv6") if box.get("icmp_type") else "all")
    if version == 6 or ("saddr" not in box and "daddr" not in box):
        text = f"IPv{version} {text}"
    if "dport" in box:
        text += f" {_of(box, 'dport', version)}" if box["dport"] is not None else " without ports"
    for field, word in (("icmp_type", "type"), ("icmp_code", "code")):
        if field in box and box[field] is not None:
            text += f" {word} {_of(box, field, version)}"
    return text


def _of(box: Mapping[str, Values], field: str, version: int) -> str:
    values = box.get(field)
    if values is None:
        return ""
    if isinstance(values, Masked):
        return values_text(field, single(values.value), version, values.mask)
    names = [one for one in values if isinstance(one, str)]
    if names:
        return ", ".join(name or "none" for name in names)
    numbers = tuple(one for one in values if isinstance(one, tuple))
    if field in _LAST:
        numbers = intersect(numbers, ((0, _LAST[field]),))
    return values_text(field.removesuffix(" given"), numbers, version)


def _wrapped(text: str, width: int, first: str, next_: str) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=next_, break_long_words=False, break_on_hyphens=False
    )  # fmt: skip


def diff_json(found: Diff) -> Iterator[str]:
    """An object a line: whether they are equal (null if all that was compared is) and what that rests on, then a change
    each.

    end_before and end_after are verdicts with the answer of a reject.
    """
    first: dict[str, Any] = {
        "equal": found.equal, "versions": list(found.versions), "taken_alike": list(found.shared),
        "more": found.more, "not_compared": [*found.apart, *found.doings],
    }  # fmt: skip
    yield json.dumps(first) + "\n"
    for one in found.changes:
        yield json.dumps(_change_json(one)) + "\n"


def _change_json(one: Changed) -> dict[str, Any]:
    change = one.change
    return {
        "change": change.kind,
        "version": change.version,
        "ways": list(one.ways),
        "verdict_before": change.before.split()[0],
        "verdict_after": change.after.split()[0],
        "end_before": change.before,
        "end_after": change.after,
        "packets": {
            field: None if values is None else _of(change.box, field, change.version)
            for field, values in change.box.items()
        },
        "text": box_text(change.box, change.version),
        "if": [{"text": text, "value": value} for text, value in dict.fromkeys((*change.atoms, *one.asked))],
        "witness": packet_json(one.witness.packet),
        "way": one.witness.way,
        "left": {field: [old, new] for field, old, new in one.left},
        "rule_before": _rule_json(one.step_before),
        "rule_after": _rule_json(one.step_after),
        "by_before": _by(one.step_before),
        "by_after": _by(one.step_after),
    }  # fmt: skip


def _rule_json(step: Step | None) -> dict[str, Any] | None:
    return None if step is None or step.rule is None else step.rule.json()


def _by(step: Step | None) -> str | None:
    if step is None:
        return None
    return which_rule(step.rule) if step.rule is not None else f"{place(step)} policy"
