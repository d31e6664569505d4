"""Why a packet goes where it goes: the rule that decides, the way there, and what passed it over."""

from __future__ import annotations

import json
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from conntracker.formats.packets import condition, packet_json, packet_text, reason
from conntracker.formats.table import printable
from conntracker.formats.values import value_text
from conntracker.formats.way import place, way_lines, which
from conntracker.rules.fields import FIELD_NAMES
from conntracker.steps import UNDECIDED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from conntracker.rules.walk import Answer, Outcome

__all__ = ["why_json", "why_lines"]

VERDICTS = {
    "accept": "ACCEPTED", "drop": "DROPPED", "reject": "REJECTED", "queue": "QUEUED", "stolen": "TAKEN OVER",
    UNDECIDED: "UNDECIDED",
}  # fmt: skip
_MOST = 8  # outcomes that are shown
_TRANSLATED = ("saddr", "sport", "daddr", "dport")


def why_lines(
    packet: Mapping[str, int | str | None], answer: Answer, width: int = 80, supposed: Sequence[str] = ()
) -> Iterator[str]:
    """The lines about one packet, each with its newline; `supposed` are lines on what was not said and taken so."""
    for line in _lines(packet, answer, width, supposed):
        yield printable(line.rstrip()) + "\n"


def _lines(
    packet: Mapping[str, int | str | None], answer: Answer, width: int, supposed: Sequence[str]
) -> Iterator[str]:
    head = packet_text(packet)
    if len(head) + len(VERDICTS[answer.verdict]) + 3 <= width:
        yield f"{head}   {VERDICTS[answer.verdict]}"
    else:
        ends, _, details = head.partition(", ")
        yield f"{ends}   {VERDICTS[answer.verdict]}"
        yield f"  {details}"
    yield from (f"  {line}" for line in supposed)
    outcomes, version = _distinct(answer), 6 if packet.get("family") == 6 else 4
    if answer.verdict == UNDECIDED:
        yield "  it hangs on: " + "; ".join(answer.undecided_by)
    for number, outcome in enumerate(outcomes[:_MOST]):
        indent = "  "
        if len(outcomes) > 1:
            asked = "; ".join(condition(one, version) for one in outcome.assumed)
            yield f"  {number + 1}. {VERDICTS[outcome.path.verdict]} if {asked}"
            indent = "     "
        elif outcome.assumed:
            asked = "; ".join(condition(one, version) for one in outcome.assumed)
            yield from textwrap.wrap(f"shown is its way if {asked}; others come to the same", width - 2,
                                     initial_indent="  ", subsequent_indent="  ")  # fmt: skip
        yield from (indent + line for line in _decision(outcome))
        yield from (f"{indent}NAT  {change}" for change in _changes(packet, outcome))
        between: dict[int, list[str]] = {}
        for one in outcome.passed:
            text = f"{one.rule.chain} rule {one.rule.position} passed over: {reason(one)}"
            between.setdefault(one.after, []).extend(_wrapped(text, width - len(indent)))
        yield from (indent + line for line in way_lines(outcome.path, width - len(indent), between))
    if len(outcomes) > _MOST or not answer.whole:
        yield f"  and {'more' if not answer.whole else len(outcomes) - _MOST} outcomes besides"


def _wrapped(text: str, width: int) -> list[str]:
    """Lines between those of steps."""
    return textwrap.wrap(
        text, width, initial_indent=" " * 14, subsequent_indent=" " * 18, break_long_words=False, break_on_hyphens=False
    )


def _distinct(answer: Answer) -> list[Outcome]:
    """An outcome for each verdict where they differ, with the fewest conditions; else one for all."""
    found: dict[tuple[str, object], Outcome] = {}
    for one in answer.outcomes:
        deciding = one.path.deciding
        key = one.path.verdict, None if deciding is None else deciding.rule
        if key not in found or len(one.assumed) < len(found[key].assumed):
            found[key] = one
    return list(found.values())


def _decision(outcome: Outcome) -> Iterator[str]:
    step = outcome.path.deciding
    if step is None:
        yield "by   no rule and no policy: no chain is in its way"
        return
    yield f"by   {place(step)}, {which(step)} ({step.kind})"
    if step.rule is not None:
        source = f"   {step.rule.source}" if step.rule.source else ""
        yield f"     {step.rule.text}{source}"


def _changes(packet: Mapping[str, int | str | None], outcome: Outcome) -> Iterator[str]:
    version = 6 if packet.get("family") == 6 else 4
    for field in _TRANSLATED:
        old, new = packet.get(field), outcome.packet.get(field, "*")
        if field in packet and old != new:
            text = new if isinstance(new, str) else value_text(field, new, version)
            yield f"{FIELD_NAMES[field]} {value_text(field, old, version)} -> {text}"


def why_json(packet: Mapping[str, int | str | None], answer: Answer, supposed: Sequence[str] = ()) -> str:
    """One packet as a line: packet, verdict, rule, path (of the first outcome), undecided_by, outcomes, supposed."""
    outcomes = _distinct(answer)
    first = outcomes[0].path
    deciding = first.deciding if answer.verdict != UNDECIDED and len(outcomes) == 1 else None
    values: dict[str, Any] = {
        "packet": packet_json(packet),
        "verdict": answer.verdict,
        "rule": None if deciding is None or deciding.rule is None else deciding.rule.json(),
        "path": [step.json() for step in first.steps] if len(outcomes) == 1 else None,
        "undecided_by": list(answer.undecided_by),
        "outcomes": [_outcome_json(one) for one in outcomes],
        "supposed": list(supposed),
    }
    return json.dumps(values) + "\n"


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    path = outcome.path
    deciding = path.deciding
    version = 6 if outcome.packet.get("family") == 6 else 4
    return {
        "verdict": path.verdict,
        "rule": None if deciding is None or deciding.rule is None else deciding.rule.json(),
        "decided": path.decided,
        "if": [{"name": one.name, "text": condition(replace(one, value=True), version), "value": one.value}
               for one in outcome.assumed],
        "path": [step.json() for step in path.steps],
        "passed": [
            {"after": one.after, "rule": one.rule.json(), "reason": reason(one)} for one in outcome.passed
        ],
        "left_as": packet_json(outcome.packet),
    }  # fmt: skip
