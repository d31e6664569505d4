"""What an audit found, for people and as JSON."""

from __future__ import annotations

import json
import textwrap
from itertools import groupby
from typing import TYPE_CHECKING, Any

from conntracker.answers.audit_findings import KINDS, NOWHERE
from conntracker.answers.audit_wide import size
from conntracker.formats.packets import packet_json, packet_text
from conntracker.formats.table import printable
from conntracker.formats.values import values_text
from conntracker.rules.intervals import normal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from conntracker.answers.audit_findings import Audit, Finding
    from conntracker.answers.audit_summary import Summary
    from conntracker.answers.audit_wide import Wide
    from conntracker.rules.solve.domain import Witness
    from conntracker.steps import Rule

__all__ = ["audit_json", "audit_lines", "line_of", "which_rule", "witness_lines"]

_ALWAYS = frozenset((
    "family", "protocol", "saddr", "daddr", "sport", "dport", "icmp_type", "icmp_code", "iif", "oif", "ct_state",
))  # fmt: skip
WIDE_FIELDS = {"saddr": "sources", "daddr": "destinations", "dport": "ports"}
_MOST = 6  # rules to blame that are written out
_ALIKE = 3  # findings that say the same of a table, from which on they are told together


def audit_lines(audit: Audit, width: int = 80) -> Iterator[str]:
    """Lines, each with its newline: the summary, then the findings by kind."""
    for line in _lines(audit, width):
        yield printable(line.rstrip()) + "\n"


def _lines(audit: Audit, width: int) -> Iterator[str]:
    yield from _summary_lines(audit.summary, width)
    for note in (*audit.summary.notes, *audit.notes):
        yield from _wrapped(note, width, "  ", "    ")
    if not audit.findings:
        yield "nothing found"
    for kind, group in groupby(audit.findings, key=lambda one: one.kind):
        findings = list(group)
        yield ""
        yield f"{kind.upper()}  {len(findings):,}: {KINDS[kind]}"
        if "counted" in findings[0].numbers:
            yield from _wrapped(f"counted {findings[0].numbers['counted']}", width, "  ", "  ")
        for alike in _alike(findings):
            if len(alike) > 1:
                yield from _alike_lines(alike, width)
            else:
                yield from _finding_lines(alike[0], width, audit.summary.fields)


def _alike(findings: Sequence[Finding]) -> Iterator[list[Finding]]:
    """Jumps of one table that lead to nothing are told as one: tools make them by the hundred."""
    groups: dict[object, list[Finding]] = {}
    for one in findings:
        groups.setdefault(one.place[:2] if one.reason == NOWHERE else id(one), []).append(one)
    for group in groups.values():
        yield from [group] if len(group) >= _ALIKE else ([one] for one in group)


def _alike_lines(alike: Sequence[Finding], width: int) -> Iterator[str]:
    """Rules by chain and number."""
    chains: dict[str, list[int]] = {}
    for one in alike:
        chains.setdefault(one.place[2], []).append((one.rule.position if one.rule is not None else None) or 0)
    yield f"  {' '.join(alike[0].place[:2])}: {len(alike):,} jumps"
    yield from _wrapped(f"of each of them: {alike[0].reason}", width, "    ", "    ")
    texts = []
    for chain, numbers in chains.items():
        ranges = [str(low) if low == high else f"{low}-{high}" for low, high in normal((one, one) for one in numbers)]
        texts.append(f"{chain} rule{'s' if len(numbers) > 1 else ''} {', '.join(ranges)}")
    yield from _wrapped("; ".join(texts), width, "      ", "      ")


def _summary_lines(summary: Summary, width: int) -> Iterator[str]:
    counts = [_count(summary.rules, "rule"), _count(summary.chains, "chain")]
    counts += [_count(summary.sets, "set")] if summary.sets else []
    understood = "all" if summary.exact == summary.rules else f"{summary.exact:,}"
    text = f"{', '.join(counts)}; {understood} understood exactly"
    if summary.opaque:
        text += "; opaque: " + ", ".join(f"{name} {count:,}" for name, count in summary.opaque)
    yield from _wrapped(text, width, "", "  ")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _finding_lines(one: Finding, width: int, fields: frozenset[str]) -> Iterator[str]:
    if one.rule is not None:
        yield from _beside(f"  {which_rule(one.rule)}", line_of(one.rule.source), width)
        yield f"      {one.rule.text or 'its text is not known'}"
    else:
        yield from _beside(f"  {' '.join(one.place)}", line_of(one.source), width)
    certainty = "" if one.certainty == "always" else f" ({one.certainty})"
    yield from _wrapped(one.reason + certainty, width, "    ", "    ")
    for rule in one.because[:_MOST]:
        yield from _beside(f"    - {which_rule(rule)}", line_of(rule.source), width)
        yield f"      {rule.text or 'its text is not known'}"
    if len(one.because) > _MOST:
        yield f"    - and {len(one.because) - _MOST:,} more"
    if one.wide is not None:
        yield from _wide_lines(one.wide, width)
    if one.witness is not None:
        yield from witness_lines(one.witness, width, fields, one.asked)


def _wide_lines(one: Wide, width: int) -> Iterator[str]:
    """What a rule admits and what was seen, field by field."""
    for side in one.sides:
        words = WIDE_FIELDS[side.field]
        some = values_text(side.field, side.admitted, one.version)
        seen = values_text(side.field, side.seen, one.version)
        text = f"{words}: {some} ({_number(size(side.admitted))}) may pass, {seen} ({_number(side.values)}) did:"
        text += f" {_number(side.factor)} times as wide"
        yield from _wrapped(text, width, "    - ", "      ")


def _number(value: float) -> str:
    """A number that may be very large: 4,294,967,296 as it is, a share of all of IPv6 as 3.4e+38."""
    return f"{value:,.0f}" if value < 10**12 else f"{value:.1e}"


def witness_lines(
    one: Witness, width: int, fields: Collection[str] | None = None, asked: Sequence[tuple[str, bool]] = ()
) -> Iterator[str]:
    """A packet as evidence, and the answers that its way hangs on.

    fields   what of the packet is worth telling besides where it comes from and goes to; None for all
    """
    packet = one.packet
    if fields is not None:
        packet = {name: value for name, value in packet.items() if name in fields or name in _ALWAYS}
    yield from _wrapped(f"packet, {one.way}: {packet_text(packet)}", width, "    ", "      ")
    if asked:
        words = " and ".join(f"{'' if outcome else 'not '}{text}" for text, outcome in asked)
        yield from _wrapped(f"if {words}", width, "      ", "      ")


def which_rule(rule: Rule) -> str:
    """Family, table, chain and number of a rule; its handle for nft's own."""
    handle = f" handle {rule.handle}" if rule.handle is not None and rule.kind == "nft" else ""
    return f"{rule.family} {rule.table} {rule.chain} rule {rule.position}{handle}"


def line_of(source: str | None) -> str:
    """Where a rule was read, if the line is known: the name of the file alone is known to whoever gave it."""
    return source if source is not None and source.rpartition(":")[2].isdigit() else ""


def _beside(text: str, source: str, width: int) -> Iterator[str]:
    """Two texts on one line, or on two if that is too long."""
    if not source:
        yield text
    elif len(text) + 3 + len(source) <= width:
        yield f"{text}   {source}"
    else:
        yield text
        yield f"      {source}"


def _wrapped(text: str, width: int, first: str, next_: str) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=next_, break_long_words=False, break_on_hyphens=False
    )  # fmt: skip


def audit_json(audit: Audit) -> Iterator[str]:
    """An object a line: the summary first, with the number of findings of each kind; then the findings."""
    summary = audit.summary
    counts = {kind: sum(1 for one in audit.findings if one.kind == kind) for kind in KINDS}
    first: dict[str, Any] = {
        "kind": "summary", "rules": summary.rules, "chains": summary.chains, "sets": summary.sets,
        "exact": summary.exact, "opaque": dict(summary.opaque), "notes": [*summary.notes, *audit.notes],
        "found": {kind: count for kind, count in counts.items() if count},
    }  # fmt: skip
    yield json.dumps(first) + "\n"
    for one in audit.findings:
        yield json.dumps(_finding_json(one)) + "\n"


def _finding_json(one: Finding) -> dict[str, Any]:
    family, table, name = one.place
    shown = one.witness
    what = "set" if one.kind == "unused-set" else "chain"
    return {
        "kind": one.kind,
        "rule": None if one.rule is None else one.rule.json(),
        "family": family, "table": table, what: name, "source": one.rule.source if one.rule else one.source,
        "certainty": one.certainty,
        "reason": one.reason,
        "because": [rule.json() for rule in one.because],
        "witness": None if shown is None else packet_json(shown.packet),
        "way": None if shown is None else shown.way,
        "if": [{"text": text, "value": value} for text, value in one.asked],
        **one.numbers,
        **_wide_json(one.wide),
    }  # fmt: skip


def _wide_json(one: Wide | None) -> dict[str, Any]:
    if one is None:
        return {}
    return {
        f"{name}_text": {side.field: values_text(side.field, getattr(side, name), one.version) for side in one.sides}
        for name in ("admitted", "seen")
    }
