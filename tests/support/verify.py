"""Whether the traces of a case are right: what is wrong with them, in words."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterator
from dataclasses import replace

from conntracker.steps import UNDECIDED, Packet, Step, Trace
from support import rulesets
from support.paths import Expected, written
from support.walk import Case, Outcome, run

__all__ = ["complaints", "examine"]

_COUNTER = re.compile(r"counter packets \d+ bytes \d+")


def examine(case: Case) -> list[str]:
    """Run a case and say what differs from the expected, with what the tracer had to say."""
    outcome = run(case)
    found = complaints(case, outcome)
    return [*found, *(f"notice: {line}" for line in outcome.notices)] if found else []


def complaints(case: Case, outcome: Outcome) -> list[str]:
    """What differs from the expected; nothing if all is right."""
    found = []
    for name, path in case.paths.items():
        trace = outcome.of(name)
        if trace is None:
            shown = "\n".join(f"    {_shown(trace.packet)}: {trace.path.verdict}" for trace in outcome.traces)
            found.append(f"no trace of the {name}, {_shown(outcome.sent.get(name))}; there are\n{shown}")
            continue
        found += [f"{name}: {text}" for text in _of_trace(path, trace, outcome)]
        found += [f"{name}: {text}" for step in trace.path.steps for text in _of_step(step, outcome)]
        found += [f"{name}: {text}" for text in _of_priorities(trace, outcome)]
    for send in case.sends:
        name = send.called("request")
        trace = outcome.of(name)
        expected = {None, "lo"} if send.source == "router" else {send.source}
        if trace is not None and trace.in_interface not in expected:
            found.append(f"{name}: came in by {trace.in_interface}, not {expected}")
    for name, count in outcome.counts.items():
        if len(outcome.all(name)) != count:
            found.append(f"{len(outcome.all(name))} traces of the {name}, {count} were sent")
    return found


def _of_trace(expected: Expected, trace: Trace, outcome: Outcome) -> Iterator[str]:
    path = trace.path
    if written(path) != expected.lines:
        yield "steps differ\n" + "\n".join(difflib.ndiff(expected.lines, written(path)))
    if (path.verdict == UNDECIDED, path.verdict) != (expected.reached is not None, expected.verdict):
        yield f"verdict {path.verdict}, not {expected.verdict}"
    if expected.reached is not None and path.reached != expected.reached:
        yield f"lost after {path.reached}, not {expected.reached}"
    if path.verdict == UNDECIDED and not path.expected:
        yield "which hook was expected next is not said"
    if not path.complete:
        yield "not complete"
    # The other namespaces know better whether it went on, and how it looked then.
    arrived = _arrivals(trace.left, outcome)
    if _went(trace):
        if not arrived:
            there = [f"{name}: {_shown(packet)}" for name, packets in outcome.arrived.items() for packet in packets]
            yield f"{_shown(trace.left)} did not arrive anywhere; these did: {there}"
        elif trace.out_interface not in arrived:
            yield f"went out by {trace.out_interface}, and arrived from {set(arrived)}"
    elif path.verdict != "stolen":
        known = sum(other.left == trace.packet for other in outcome.traces if _went(other))
        if len(_arrivals(trace.packet, outcome)) > known:
            yield f"it arrived, and is said to have got to {path.reached} only ({path.verdict})"


def _of_step(step: Step, outcome: Outcome) -> Iterator[str]:
    if not step.certain:
        yield f"not certain: {step}"
    chain = outcome.before.get((step.kind, step.family, step.table, step.chain))
    if chain is None:
        yield f"no such chain: {step}"
    elif step.rule is not None:
        rule = step.rule
        place = (rule.kind, rule.family, rule.table, rule.chain)
        if place != (step.kind, step.family, step.table, step.chain):
            yield f"the rule is in {place}, the step is not"
        number = (rule.position or 0) - 1
        if not 0 <= number < len(chain.texts):
            yield f"no such position: {step}"
            return
        if rule.handle != chain.handles[number]:
            yield f"handle {rule.handle}, not {chain.handles[number]}: {step}"
        if _plain(rule.text) != _plain(chain.texts[number]):
            yield f"text {rule.text!r}, not {chain.texts[number]!r}"
        before, after = chain.packets[number], outcome.after[place].packets[number]
        if before is not None and after == before:
            yield f"the kernel's counter says that no packet matched: {step}"


def _of_priorities(trace: Trace, outcome: Outcome) -> Iterator[str]:
    """A step in a user chain has the priority of the base chain from which the packet came."""
    base: rulesets.Chain | None = None
    for step in trace.path.steps:
        chain = outcome.before.get((step.kind, step.family, step.table, step.chain))
        if chain is not None and chain.priority is not None:
            base = chain
        if base is not None and step.priority != base.priority:
            yield f"priority {step.priority}, not {base.priority}: {step}"


def _went(trace: Trace) -> bool:
    return trace.path.verdict == "accept" and trace.path.reached == "postrouting"


def _arrivals(packet: Packet, outcome: Outcome) -> list[str]:
    """Where such packets arrived; what an error is about may be unknown (see Outcome.all)."""
    return [
        name
        for name, packets in outcome.arrived.items()
        for one in packets
        if packet in {one, replace(one, about=None)}
    ]


def _shown(packet: Packet | None) -> str:
    if packet is None:
        return "(not known)"
    kind = ipaddress.IPv4Address if packet.family == 4 else ipaddress.IPv6Address
    names = ("sport", "dport", "icmp_type", "icmp_code", "icmp_id", "fragment")
    more = " ".join(f"{name}={value}" for name in names if (value := getattr(packet, name)) not in {None, False})
    about = "" if packet.about is None else f" about ({_shown(packet.about)})"
    return f"{packet.proto} {kind(packet.src)} > {kind(packet.dst)} {more}{about}"


def _plain(text: str | None) -> str:
    return " ".join(_COUNTER.sub("counter", text or "").split())
