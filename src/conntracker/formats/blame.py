"""Blame for people: what became of a flow, which rule did it, and the way of its packets through the rules."""

from __future__ import annotations

from datetime import datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from conntracker.answers.causes import last_seen, possible_causes, unseen_rules
from conntracker.answers.untraced import NOT_ASKED
from conntracker.formats.icmp import icmp_name
from conntracker.formats.table import human_bytes, printable
from conntracker.formats.way import BLIND, place, way_lines, which
from conntracker.model import protocol_name, protocol_number
from conntracker.owner import EXACT, FORWARDED, KERNEL, PROCESS
from conntracker.steps import UNDECIDED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from conntracker.answers.blame import Blame
    from conntracker.answers.rules import Decided
    from conntracker.answers.ways import Way
    from conntracker.steps import Packet, Path

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
    yield f"{_headline(blame) if blame.flow else title}   {_verdict(blame)}"
    if blame.flow and blame.flow["zone"]:
        yield f"  in zone {blame.flow['zone']}"
    way = blame.way
    if way is not None:
        yield from _indented("  ", _decision(way.path, blame.answer))
    if blame.why_not is not None and blame.why_not != NOT_ASKED:
        yield from _folded(f"  {blame.why_not}", width)
    changes = _flow_changes(blame.flow) if blame.flow else _changes(way) if way else []
    yield from (f"  NAT  {change}" for change in changes)
    sums = _sums(blame)
    together = "; ".join(sums)
    for line in [together] if len(together) <= width - 2 else sums:
        yield from _folded(f"  {line}", width)
    for one in blame.ways:
        ends = _ends(one.packet)
        of_way = f"{_outcome(one.path)}, {_number(one.traced, 'packet')} traced{_doors(one)}"
        yield from _folded(f"  {_which_way(one, blame.ways)}{'' if ends == title else f' {ends}'}: {of_way}", width)
        if not one.certain:
            yield f"    {SHARED}"
        yield from _indented("    ", way_lines(one.path, width - 4))
        if one is not way and one.path.verdict == UNDECIDED:
            yield from _indented("    ", _decision(one.path))


def _verdict(blame: Blame) -> str:
    """What became of it, and what of its earlier packets if that was something else."""
    text = OUTCOMES.get(blame.verdict, str(blame.verdict).upper())
    if blame.change is not None:
        others = " and ".join(OUTCOMES.get(verdict, verdict).lower() for verdict in blame.change.verdicts)
        if blame.change.since is not None:
            text += f" since {_time(blame.change.since)[11:]}, {others} before"
        else:
            text += f" at last, {_time(blame.change.last)[11:]}; at other times {others}"
    return text + (f"; {BLIND}" if blame.way is not None and blame.way.path.blind and blame.verdict == "accept" else "")


def _which_way(way: Way, ways: Iterable[Way]) -> str:
    """'original', 'copy'; 'reply, first packet' and 'reply, later packets' where these took other ways."""
    if way.direction == "copy":
        return "copy made on this host (TEE or dup)"
    same = [one for one in ways if (one.direction, one.packet) == (way.direction, way.packet)]
    first, *others = sorted(same, key=lambda one: (one.first, one.place))
    if way.direction == "error" or not others or first.last > min(one.first for one in others):
        return way.direction
    if way is not first:
        return f"{way.direction}, later packets"
    return f"{way.direction}, first {'packet' if way.traced == 1 else f'{way.traced} packets'}"


def _title(blame: Blame) -> str:
    flow = blame.flow
    if flow is None:
        assert blame.packet is not None  # noqa: S101  one of the two is there
        return _ends(blame.packet)
    text = f"{flow['proto'].upper()} {_end(flow['src'], flow['sport'])} -> {_end(flow['dst'], flow['dport'])}"
    return text if flow["icmp_type"] is None else text + _icmp(
        protocol_number(flow["proto"]), flow["icmp_type"], flow["icmp_code"], flow["icmp_id"]
    )  # fmt: skip


def _headline(blame: Blame) -> str:
    """The title with the owners of a flow's ends behind them."""
    flow, title = blame.flow, _title(blame)
    if flow is None or not (flow.get("process") or flow.get("peer_process")):
        return title
    if flow["owner_kind"] == flow["peer_owner_kind"] == FORWARDED:
        return f"{title} ({FORWARDED})"
    source, arrow, destination = title.partition(" -> ")
    return f"{source}{_owner(flow, 'owner')}{arrow}{destination}{_owner(flow, 'peer_owner')}"


def _owner(flow: dict[str, Any], end: str) -> str:
    """' (curl[5057], alice)', with what is not sure behind it; ' (kernel)'."""
    kind, certainty = flow[f"{end}_kind"], flow[f"{end}_certainty"]
    if kind != PROCESS:
        return f" ({kind})" if kind == KERNEL else ""
    user = flow[f"{end}_user"] or flow[f"{end}_uid"]
    words = [f"{flow[f'{end}_comm']}[{flow[f'{end}_pid']}]", str(user) if user is not None else ""]
    words += [certainty] if certainty != EXACT else []
    return f" ({', '.join(filter(None, words))})"


def _ends(packet: Packet) -> str:
    """A packet's protocol and its two ends."""
    src, dst = _address(packet, packet.src), _address(packet, packet.dst)
    text = f"{protocol_name(packet.proto).upper()} {_end(src, packet.sport)} -> {_end(dst, packet.dport)}"
    if packet.icmp_type is not None:
        text += _icmp(packet.proto, packet.icmp_type, packet.icmp_code, packet.icmp_id)
    if packet.fragment:
        text += " later fragment"
    return text if packet.about is None else f"{text} about {_ends(packet.about)}"


def _address(packet: Packet, number: int) -> str:
    return str(ip_address(number.to_bytes(4 if packet.family == 4 else 16, "big")))


def _end(address: str, port: int | None) -> str:
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _icmp(proto: int, kind: int, code: int | None, id: int | None) -> str:
    name = icmp_name(proto, kind, code)
    return f" type {kind} code {code}" + (f" ({name})" if name else "") + ("" if id is None else f" id {id}")


# --- what decided ----------------------------------------------------------------------------------------------------


def _decision(path: Path, answer: Way | None = None) -> Iterator[str]:
    """Lines on what decided; for a packet that nothing decided about, what may have become of it."""
    step = path.deciding
    if step is not None:
        yield f"by   {place(step)}, {which(step)} ({step.kind})"
        if step.rule is not None:
            yield f"     {step.rule.text if step.rule.text is not None else 'its text is not known'}"
        if not step.certain:
            yield f"     {DOUBT}"
    elif path.verdict == UNDECIDED:
        yield f"{last_seen(path)}"
        yield from _undecided(path, answer)
        return
    else:
        yield f"by   no rule and no policy{' that was traced' if path.blind else ': no chain was in its way'}"
    if answer is not None:
        yield f"but {_answered(answer)}"


def _undecided(path: Path, answer: Way | None) -> Iterator[str]:
    if answer is not None:
        yield _answered(answer)
        causes, said = unseen_rules(path), "a rule may have made it do so:"
    else:
        causes, unseen = possible_causes(path), unseen_rules(path)
        said = "what ended it is not known" if unseen else "no rule and no policy ended it"
        said += "; possible causes:" if causes else ""
    if causes or answer is None:
        yield said
    yield from (f"  {cause}" for cause in causes)


def _answered(error: Way) -> str:
    """Who said that a packet did not arrive, and why."""
    packet = error.packet
    who = "this host" if error.local or error.loops else _address(packet, packet.src)
    kind, code = packet.icmp_type or 0, packet.icmp_code
    return f"{who} answered: {icmp_name(packet.proto, kind, code) or 'ICMP'} (type {kind} code {code})"


def _outcome(path: Path) -> str:
    return OUTCOMES.get(path.verdict, path.verdict).lower()


# --- the way ---------------------------------------------------------------------------------------------------------


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


def _sums(blame: Blame) -> list[str]:
    parts = []
    if blame.ways:
        packets = sum(way.traced for way in blame.ways)
        first, last = min(way.first for way in blame.ways), max(way.last for way in blame.ways)
        parts.append(f"{_number(packets, 'packet')} traced, {_span(first, last)}")
        if blame.limit is not None:
            parts.append("traced are the first {} packets of each direction in {}".format(*blame.limit))
    flow = blame.flow
    if flow is None:
        parts.append("no flow")
    elif flow["packets"] is None:
        parts.append("flow: packets not counted")
    else:
        packets = flow["packets"] + (flow["reply_packets"] or 0)
        size = (flow["bytes"] or 0) + (flow["reply_bytes"] or 0)
        parts.append(f"flow: {_number(packets, 'packet')}, {human_bytes(size)}")
    return parts


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _time(time: int) -> str:
    return datetime.fromtimestamp(time // 10**6).isoformat(" ")


def _zone(time: int) -> str:
    """The name of the local time zone at that time."""
    return datetime.fromtimestamp(time // 10**6).astimezone().tzname() or ""


def _span(first: int, last: int) -> str:
    begin, end = _time(first), _time(last)
    if begin != end:
        begin += f" - {end[11:] if begin[:10] == end[:10] else end}"
    return f"{begin} {_zone(last)}"


def _indented(indent: str, lines: Iterable[str]) -> Iterator[str]:
    return (indent + line for line in lines)


def _folded(text: str, width: int) -> Iterator[str]:
    """A long line on several, those after the first further in."""
    import textwrap

    yield from textwrap.wrap(text, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def rules_lines(rules: Iterable[Decided], width: int = 80) -> Iterator[str]:
    """A table of rules, each with the place and the text of the rule below it; nothing if there are none."""
    rules = list(rules)
    zone = "/".join(sorted({_zone(time) for one in rules for time in (one.first, one.last)}))
    for number, one in enumerate(rules):
        if not number:
            yield f"{'flows':>9} {'traced':>9}  {'verdict':<10} {'first seen':<19}  last seen ({zone})\n"
        yield f"{one.flows:>9,} {one.traced:>9,}  {one.path.verdict:<10} {_time(one.first)}  {_time(one.last)}\n"
        for line in _decided_by(one.path, width):
            yield printable(line) + "\n"


def _decided_by(path: Path, width: int) -> Iterator[str]:
    step, indent = path.deciding, " " * 11
    blind = f"; {BLIND}" if path.blind and path.verdict in ("accept", UNDECIDED) else ""
    if step is None:
        nothing = "no rule and no policy that was traced" if path.blind else "no chain in the way"
        yield from _folded(f"{indent}{last_seen(path) if path.verdict == UNDECIDED else nothing}{blind}", width)
        return
    text = f"{indent}{place(step)}, {which(step)} ({step.kind}){blind}"
    rule = None if step.rule is None else step.rule.text
    if rule is not None and len(text) + 2 + len(rule) <= width:
        yield f"{text}: {rule}"
    else:
        yield text
        if rule is not None:
            yield f"{indent}{rule}"
