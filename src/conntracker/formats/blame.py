"""Blame for people: what became of a flow, which rule did it, and the way of its packets through the rules."""

from __future__ import annotations

from datetime import datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from conntracker.answers.causes import last_seen, possible_causes
from conntracker.formats.table import human_bytes, printable
from conntracker.model import protocol_name
from conntracker.steps import UNDECIDED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from conntracker.answers.blame import Blame, Way
    from conntracker.answers.rules import Decided
    from conntracker.steps import Packet, Path, Step

__all__ = ["blame_lines", "rules_lines"]

OUTCOMES = {
    "accept": "ACCEPTED", "drop": "DROPPED", "reject": "REJECTED", "queue": "QUEUED", "stolen": "STOLEN",
    UNDECIDED: "NOT SEEN TO LEAVE", None: "NOT TRACED",
}  # fmt: skip
DOUBT = "the rules changed in that moment: it may have been another"
SHARED = "may be another flow's: same tuple at the same time, in another zone"


def blame_lines(blame: Blame, width: int = 80) -> Iterator[str]:
    """The lines about one flow, each with its newline. Nothing is cut: a long rule may be wider than `width`."""
    for line in _lines(blame, width):
        yield printable(line.rstrip()) + "\n"


def _lines(blame: Blame, width: int) -> Iterator[str]:
    title = _title(blame)
    yield f"{title}   {OUTCOMES.get(blame.verdict, str(blame.verdict).upper())}"
    if blame.flow and blame.flow["zone"]:
        yield f"  in zone {blame.flow['zone']}"
    way = blame.way
    if way is not None:
        yield from _indented("  ", _decision(way.path))
    if blame.why_not is not None:
        yield from _folded(f"  {blame.why_not}", width)
    changes = _flow_changes(blame.flow) if blame.flow else _changes(way) if way else []
    yield from (f"  NAT  {change}" for change in changes)
    yield from _folded(f"  {_sums(blame)}", width)
    for one in blame.ways:
        ends = _ends(one.packet)
        of_way = f"{_outcome(one.path)}, {_number(one.packets, 'packet')}{_doors(one)}"
        yield from _folded(f"  {one.direction}{'' if ends == title else f' {ends}'}: {of_way}", width)
        if not one.certain:
            yield f"    {SHARED}"
        yield from _indented("    ", _steps(one.path, width - 4))
        if one is not way and one.path.verdict == UNDECIDED:
            yield from _indented("    ", _decision(one.path))


def _title(blame: Blame) -> str:
    flow = blame.flow
    if flow is None:
        assert blame.packet is not None  # noqa: S101  one of the two is there
        return _ends(blame.packet)
    text = f"{flow['proto'].upper()} {_end(flow['src'], flow['sport'])} -> {_end(flow['dst'], flow['dport'])}"
    return text if flow["icmp_type"] is None else text + _icmp(flow["icmp_type"], flow["icmp_code"], flow["icmp_id"])


def _ends(packet: Packet) -> str:
    """A packet's protocol and its two ends."""
    src, dst = _address(packet, packet.src), _address(packet, packet.dst)
    text = f"{protocol_name(packet.proto).upper()} {_end(src, packet.sport)} -> {_end(dst, packet.dport)}"
    if packet.icmp_type is not None:
        text += _icmp(packet.icmp_type, packet.icmp_code, packet.icmp_id)
    if packet.fragment:
        text += " later fragment"
    return text if packet.about is None else f"{text} about {_ends(packet.about)}"


def _address(packet: Packet, number: int) -> str:
    return str(ip_address(number.to_bytes(4 if packet.family == 4 else 16, "big")))


def _end(address: str, port: int | None) -> str:
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _icmp(kind: int, code: int | None, id: int | None) -> str:
    return f" type {kind} code {code}" + ("" if id is None else f" id {id}")


# --- what decided ----------------------------------------------------------------------------------------------------


def _decision(path: Path) -> Iterator[str]:
    """Lines on what decided; for a packet that nothing decided about, what may have become of it."""
    step = path.deciding
    if step is not None:
        yield f"by   {_place(step)}, {_which(step)} ({step.kind})"
        if step.rule is not None:
            yield f"     {step.rule.text if step.rule.text is not None else 'its text is not known'}"
        if not step.certain:
            yield f"     {DOUBT}"
    elif path.verdict == UNDECIDED:
        yield f"{last_seen(path)}"
        yield "no rule and no policy ended it" + ("; possible causes:" if possible_causes(path) else "")
        yield from (f"  {cause}" for cause in possible_causes(path))
    else:
        yield "by   no rule and no policy: no chain was in its way"


def _outcome(path: Path) -> str:
    return OUTCOMES.get(path.verdict, path.verdict).lower()


def _place(step: Step) -> str:
    return f"{step.family} {step.table} {step.chain}"


def _which(step: Step) -> str:
    """'rule 4', 'rule 2 handle 9', 'policy', 'end of chain'."""
    if step.rule is None:
        return {"policy": "policy", "return": "end of chain"}.get(step.type, "a rule that is not known")
    position, handle = step.rule.position, step.rule.handle
    words = [f"rule {position}"] if position is not None else ["rule"]
    if handle is not None and (step.kind == "nft" or position is None):
        words.append(f"handle {handle}")
    return " ".join(words)


# --- the way ---------------------------------------------------------------------------------------------------------


def _steps(path: Path, width: int) -> Iterator[str]:
    """A line for each step, chains that were jumped to further in; a rule's text on a line of its own if it is long."""
    chains: list[str] = []
    base: tuple[object, ...] = ()
    hook: str | None = ""
    for number, step in enumerate(path.steps):
        here = (step.hook, step.priority, step.kind, step.family, step.table)
        if here != base:
            base, chains = here, []
        if step.chain in chains:
            del chains[chains.index(step.chain) + 1 :]
        else:
            chains.append(step.chain)
        head = f"{'' if step.hook == hook else step.hook or '?':<12}{'  ' * (len(chains) - 1)} {_place(step):<24}"
        hook = step.hook
        text = f"{head} {_which(step)} {step.verdict or '?'}{f' {step.target}' if step.target else ''}"
        text += "" if step.certain else " (maybe another)"
        text += "  <== decided" if number == path.decided else ""
        rule = None if step.rule is None else step.rule.text
        if rule is None or len(text) + 2 + len(rule) <= width:
            yield text if rule is None else f"{text}  {rule}"
        else:
            yield text
            yield " " * (13 + 2 * len(chains)) + rule
    if not path.complete:
        yield "steps may be missing: trace messages were lost"


def _doors(way: Way) -> str:
    """The interfaces, as far as there are."""
    if way.in_interface is not None and way.out_interface is not None:
        return f", {way.in_interface} -> {way.out_interface}"
    if way.in_interface is not None:
        return f", in {way.in_interface}"
    return f", out {way.out_interface}" if way.out_interface is not None else ""


def _changes(way: Way) -> list[str]:
    """What NAT made of the packets of a way."""
    came, left = way.packet, way.left
    ends = (
        ("src", (came.src, came.sport), (left.src, left.sport)),
        ("dst", (came.dst, came.dport), (left.dst, left.dport)),
    )
    changed = [
        f"{name} {_end(_address(came, old[0]), old[1])} -> {_end(_address(left, new[0]), new[1])}"
        for name, old, new in ends
        if old != new
    ]
    return changed if came.icmp_id == left.icmp_id else [*changed, f"id {came.icmp_id} -> {left.icmp_id}"]


def _flow_changes(flow: dict[str, Any]) -> list[str]:
    """What NAT makes of a flow's packets in the original direction."""
    ends = (("src", "sport", "reply_dst", "reply_dport"), ("dst", "dport", "reply_src", "reply_sport"))
    return [
        f"{address} {_end(flow[address], flow[port])} -> {_end(flow[other], flow[other_port])}"
        for address, port, other, other_port in ends
        if (flow[address], flow[port]) != (flow[other], flow[other_port])
    ]


# --- sums ------------------------------------------------------------------------------------------------------------


def _sums(blame: Blame) -> str:
    parts = []
    if blame.ways:
        packets = sum(way.packets for way in blame.ways)
        first, last = min(way.first for way in blame.ways), max(way.last for way in blame.ways)
        parts.append(f"{_number(packets, 'packet')} traced, {_span(first, last)}")
    flow = blame.flow
    if flow is None:
        parts.append("no flow")
    elif flow["packets"] is None:
        parts.append("flow: packets not counted")
    else:
        packets = flow["packets"] + (flow["reply_packets"] or 0)
        size = (flow["bytes"] or 0) + (flow["reply_bytes"] or 0)
        parts.append(f"flow: {_number(packets, 'packet')}, {human_bytes(size)}")
    return "; ".join(parts)


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _time(time: int) -> str:
    return datetime.fromtimestamp(time // 10**6).isoformat(" ")


def _span(first: int, last: int) -> str:
    begin, end = _time(first), _time(last)
    if begin == end:
        return begin
    return f"{begin} - {end[11:] if begin[:10] == end[:10] else end}"


def _indented(indent: str, lines: Iterable[str]) -> Iterator[str]:
    return (indent + line for line in lines)


def _folded(text: str, width: int) -> Iterator[str]:
    """A long line on several, those after the first further in."""
    import textwrap

    yield from textwrap.wrap(text, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def rules_lines(rules: Iterable[Decided], width: int = 80) -> Iterator[str]:
    """A table of rules, each with the place and the text of the rule below it; nothing if there are none."""
    for number, one in enumerate(rules):
        if not number:
            yield f"{'flows':>9} {'packets':>9}  {'verdict':<10} {'first seen':<19}  last seen\n"
        yield f"{one.flows:>9,} {one.packets:>9,}  {one.path.verdict:<10} {_time(one.first)}  {_time(one.last)}\n"
        for line in _decided_by(one.path, width):
            yield printable(line) + "\n"


def _decided_by(path: Path, width: int) -> Iterator[str]:
    step, indent = path.deciding, " " * 11
    if step is None:
        yield f"{indent}{last_seen(path) if path.verdict == UNDECIDED else 'no chain in the way'}"
        return
    text = f"{indent}{_place(step)}, {_which(step)} ({step.kind})"
    rule = None if step.rule is None else step.rule.text
    if rule is not None and len(text) + 2 + len(rule) <= width:
        yield f"{text}: {rule}"
    else:
        yield text
        if rule is not None:
            yield f"{indent}{rule}"
