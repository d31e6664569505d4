"""`conntracker why`: which rule decides about a packet, and why."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

from conntracker.cli.common import lines_width, say
from conntracker.cli.rulefiles import add_rules_arguments, live_host, load
from conntracker.rules.intervals import contains

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator

    from conntracker.rules.host import Host
    from conntracker.rules.packets import Packet
    from conntracker.rules.walk import Answer

__all__ = ["add_arguments", "run"]

UNDECIDED_CODE = NONE_FOUND = 1
STATES = ("new", "established", "related", "invalid", "untracked")
FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")
_ECHO = {4: 8, 6: 128}


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `conntracker why`."""
    group = parser.add_argument_group("the packet", "what is not said is tried both ways")
    group.add_argument("--in", dest="iif", metavar="NAME", help="interface it comes in by; else it is this host's own")
    group.add_argument("--out", dest="oif", metavar="NAME", help="interface that it goes out by")
    group.add_argument("--src", metavar="ADDRESS", help="source address")
    group.add_argument("--dst", metavar="ADDRESS", help="destination address")
    group.add_argument("--proto", metavar="PROTO", help="protocol, by name or number")
    group.add_argument("--sport", metavar="PORT", help="source port")
    group.add_argument("--dport", metavar="PORT", help="destination port, by number or name")
    group.add_argument("--icmp-type", metavar="TYPE[/CODE]", help="of ICMP and ICMPv6: numbers (echo request)")
    group.add_argument("--tcp-flags", metavar="LIST", help="fin,syn,rst,psh,ack,urg,ece,cwr or none")
    group.add_argument("--state", choices=STATES, help="of connection tracking (new)")
    group.add_argument("--direction", choices=("original", "reply"), help="of the packet in its flow (original)")
    group.add_argument("--mark", metavar="N", help="packet mark (0)")
    group.add_argument("--ct-mark", metavar="N", help="mark of its flow (0 if it is new)")
    group.add_argument("--mac", metavar="ADDRESS", help="source MAC address")
    group.add_argument("--length", metavar="BYTES", type=int, help="of the IP packet")
    group.add_argument("--ttl", metavar="N", type=int, help="time to live, hop limit")
    group.add_argument("--uid", metavar="N", type=int, help="user whose socket sends it")
    parser.add_argument(
        "--way", choices=("input", "forward", "output"),
        help="to this host, through it, from it; without: as its addresses and interfaces say",
    )  # fmt: skip
    add_rules_arguments(parser)
    parser.add_argument(
        "-r", "--read", metavar="DIR", action="append",
        help="recorded flows instead, the first packet of each; --src, --dst, --proto, --sport, --dport choose them,"
        " and without --rules the rules are those in force when the recording began",
    )  # fmt: skip
    parser.add_argument("--limit", metavar="N", type=int, help="with -r: at most N flows, the newest")
    parser.add_argument("--passed", action="store_true", help="also each rule passed over, and the match that failed")
    parser.add_argument("--json", action="store_true", help="an object a line")


def run(args: Namespace) -> int:
    """Prints the answer; 1 if it is undecided, or no recorded flow is what was asked for."""
    from conntracker.output import Output

    with Output("-").open() as out:
        code, lines = NONE_FOUND, _of_recording(args) if args.read else _of_packet(args)
        for verdict, line in lines:
            if verdict is not None:
                code = UNDECIDED_CODE if verdict == "undecided" and not args.read else 0
            out.write(line.encode("utf-8", "replace"))
    if code == NONE_FOUND and args.read:
        say("nothing in the recording is what was asked for: no flow, and no packet that was traced")
    return code


def _of_packet(args: Namespace) -> Iterator[tuple[str | None, str]]:
    """(verdict, line) of the answer for the packet that the options describe."""
    from conntracker.rules.order import unsettled
    from conntracker.rules.walk import walk

    if args.limit is not None:
        raise ValueError("--limit goes with -r only")
    packet, supposed = packet_of(args)
    if args.rules and args.iif is None and args.way is None:
        raise ValueError("say --in NAME for a packet that comes in, or --way output for one that this host sends")
    ruleset = load(args.rules, args.netns)
    for note in ruleset.notes:
        say(note)
    host = None if args.rules else live_host(args.netns)
    way = args.way
    if host is not None:
        way, more = _live_way(args, packet, host)
        supposed += more
    version = 4 if packet["family"] == 4 else 6
    supposed += [
        f"chains of nft and of legacy tables at {hook} priority {priority}: nft's are taken to come first"
        for hook, priority in unsettled(ruleset, version)
    ]
    answer = walk(ruleset, packet, way, host=host, passed=args.passed)
    yield from _lines(args, packet, answer, supposed)


def _live_way(args: Namespace, packet: Packet, host: Host) -> tuple[str | None, list[str]]:
    """(the way of a packet on this host, lines on what is taken so): by its source, where no interface was said."""
    for option, name in (("in", args.iif), ("out", args.oif)):
        if name is not None and name not in host.interfaces:
            say(f"--{option}: there is no interface {name} here")
    if args.way is not None or args.iif is not None:
        return args.way, []
    source, version = packet.get("saddr"), 4 if packet["family"] == 4 else 6
    if not isinstance(source, int):
        raise ValueError("say --src, or --in NAME for a packet that comes in, or --way output for one that we send")
    if contains(host.local.get(version, ()), source):
        return "output", ["its source is an address of this host: it is sent from here"]
    interface = host.out_interface(version, source)
    if interface is None:
        raise ValueError("say --in NAME: by which interface such a packet comes in, this host's routes do not say")
    packet["iif"] = interface
    return None, [f"it comes in by {interface}, where the route back to its source leads: --in says otherwise"]


def _of_recording(args: Namespace) -> Iterator[tuple[str | None, str]]:
    """The same for each flow of a recording."""
    from conntracker.answers.blame import blame
    from conntracker.answers.why import packet_of as first_packet
    from conntracker.answers.why import way_of
    from conntracker.filters import Filter
    from conntracker.recording.meta import RULES
    from conntracker.recording.reader import open_recording
    from conntracker.rules.walk import Course, walk

    _check_with_recording(args)
    wanted = Filter.parse(proto=args.proto, src=args.src, dst=args.dst, sport=args.sport, dport=args.dport)
    with open_recording(args.read) as recording:
        situation = recording.situation()
        if args.rules:
            ruleset = load(args.rules, args.netns)
        elif situation is not None:
            ruleset = situation.ruleset
        else:
            why = "; ".join(f"{file}: {why}" for file, why in recording.damaged if file.endswith(RULES))
            raise ValueError(f"{why or 'the recording does not have the rules in force'}: say --rules FILE")
        for note in ruleset.notes:
            say(note)
        host = None if situation is None else situation.host
        courses = {version: Course(ruleset, version) for version in (4, 6)}
        for number, one in enumerate(blame(recording, wanted, limit=args.limit)):
            packet = first_packet(one)
            way = args.way or way_of(one, packet, host)
            answer = walk(courses[4 if packet["family"] == 4 else 6], packet, way, host=host, passed=args.passed)
            if number and not args.json:
                yield None, "\n"
            yield from _lines(args, packet, answer, [])
        for file, why in recording.damaged:
            say(f"left out {file}: {why}")


_OF_A_PACKET = (
    "iif",
    "oif",
    "icmp_type",
    "tcp_flags",
    "state",
    "direction",
    "mark",
    "ct_mark",
    "mac",
    "length",
    "ttl",
    "uid",
)


def _check_with_recording(args: Namespace) -> None:
    for option in _OF_A_PACKET:
        if getattr(args, option) is not None:
            name = {"iif": "in", "oif": "out"}.get(option, option.replace("_", "-"))
            raise ValueError(f"--{name} does not go with -r: packets are those of recorded flows")
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit: {args.limit} is less than 1")
    if args.netns is not None:
        raise ValueError("--netns does not go with -r")


def _lines(args: Namespace, packet: Packet, answer: Answer, supposed: list[str]) -> Iterator[tuple[str | None, str]]:
    from conntracker.formats.why import why_json, why_lines

    width = lines_width()
    lines = [why_json(packet, answer, supposed)] if args.json else why_lines(packet, answer, width, supposed)
    for line in lines:
        yield answer.verdict, line


def packet_of(args: Namespace) -> tuple[Packet, list[str]]:
    """(the packet that the options describe, lines on what was not said and is taken so). Raises ValueError."""
    version = _version(args)
    packet: Packet = {"family": version}
    supposed: list[str] = []
    for option, field in (("src", "saddr"), ("dst", "daddr")):
        if (text := getattr(args, option)) is not None:
            packet[field] = int(_address(option, text))
    _protocol(args, packet, version)
    _interfaces(args, packet)
    _conntrack(args, packet, supposed)
    for option, field in (("mark", "mark"), ("ct_mark", "ct_mark")):
        if (text := getattr(args, option)) is not None:
            packet[field] = _number(option.replace("_", "-"), text, 32)
    if args.mac is not None:
        packet["mac"] = _mac(args.mac)
    for option, field, bits in (("length", "length", 16), ("ttl", "ttl", 8), ("uid", "skuid", 32)):
        if (value := getattr(args, option)) is not None:
            packet[field] = _number(option, str(value), bits)
    for field, value, words in (("mark", 0, "mark 0"), ("fragment", 0, "no fragment")):
        if field not in packet:
            packet[field] = value
            supposed.append(words)
    said = [f"not said, and so taken: {', '.join(supposed)}"] if supposed else []
    return packet, said


def _version(args: Namespace) -> int:
    addresses = [_address(option, text) for option in ("src", "dst") if (text := getattr(args, option)) is not None]
    versions = {address.version for address in addresses}
    if len(versions) > 1:
        raise ValueError("--src and --dst are of different IP versions")
    if versions:
        return versions.pop()
    if args.proto in {"icmpv6", "ipv6-icmp", "58"}:
        return 6
    raise ValueError("say at least --src or --dst: without an address it is not known whether IPv4 or IPv6 is meant")


def _address(option: str, text: str) -> IPv4Address | IPv6Address:
    try:
        return ip_address(text)
    except ValueError:
        one = " (a packet has one address: which of them?)" if "/" in text or "," in text or "-" in text else ""
        raise ValueError(f"--{option}: {text!r} is no IP address{one}") from None


def _protocol(args: Namespace, packet: Packet, version: int) -> None:
    from conntracker.model import protocol_name, protocol_number

    text = args.proto
    if text is None and args.icmp_type is not None:
        text = "icmp"
    if text is None:
        if args.sport is not None or args.dport is not None or args.tcp_flags is not None:
            raise ValueError("ports and flags need --proto")
        return
    number = protocol_number({"ipv6-icmp": "icmpv6"}.get(text.lower(), text))
    packet["protocol"] = number = 58 if number == 1 and version == 6 else number
    for option in ("sport", "dport", "tcp_flags", "icmp_type"):
        if getattr(args, option) is not None and not _has(number, option):
            raise ValueError(f"--{option.replace('_', '-')} does not go with --proto {protocol_name(number)}")
    for option in ("sport", "dport"):
        if (value := getattr(args, option)) is not None:
            packet[option] = _port(option, value, protocol_name(number))
    if args.icmp_type is not None:
        kind, _, code = args.icmp_type.partition("/")
        packet["icmp_type"] = _number("icmp-type", kind, 8)
        packet["icmp_code"] = _number("icmp-type", code or "0", 8)
    elif number in {1, 58}:
        packet["icmp_type"], packet["icmp_code"] = _ECHO[version], 0


def _has(protocol: int, field: str) -> bool:
    """Whether packets of a protocol have the field."""
    from conntracker.rules.fields import FIELDS
    from conntracker.rules.intervals import contains

    return all(contains(values, protocol) for other, values in FIELDS[field].requires if other == "protocol")


def _interfaces(args: Namespace, packet: Packet) -> None:
    if args.iif is not None and args.way == "output":
        raise ValueError("--in does not go with --way output: what this host sends came in nowhere")
    if args.oif is not None and args.way == "input":
        raise ValueError("--out does not go with --way input: what is for this host goes out nowhere")
    if args.iif is not None:
        packet["iif"] = args.iif
    if args.oif is not None:
        packet["oif"] = args.oif


def _conntrack(args: Namespace, packet: Packet, supposed: list[str]) -> None:
    """State, direction and what follows for a new flow; the flags of TCP that go with the state."""
    from conntracker.rules.fields import CT_STATES

    state = args.state or "new"
    if args.state is None:
        supposed.append("state new")
    packet["ct_state"] = CT_STATES.index(state)
    if args.direction is not None or state in {"new", "established", "related"}:
        packet["ct_direction"] = ("original", "reply").index(args.direction or "original")
    if state in {"established", "related"}:
        supposed.append("not translated by NAT")
    if state == "new":
        packet["ct_status"] = 0
        packet["ct_mark"] = 0
    if packet.get("protocol") != 6:
        return
    if args.tcp_flags is not None:
        packet["tcp_flags"] = _flags(args.tcp_flags)
    elif state in {"new", "established"}:
        name = "syn" if state == "new" else "ack"
        packet["tcp_flags"] = _flags(name)
        supposed.append(f"TCP flags {name}")


def _flags(text: str) -> int:
    names = [] if text == "none" else text.lower().split(",")
    if unknown := [name for name in names if name not in FLAGS]:
        raise ValueError(f"--tcp-flags: no flag {unknown[0]!r}; there are: {', '.join(FLAGS)}, none")
    return sum(1 << FLAGS.index(name) for name in set(names))


def _port(option: str, text: str, protocol: str) -> int:
    if text.isascii() and text.isdigit():
        return _number(option, text, 16)
    try:
        return socket.getservbyname(text, protocol)
    except OSError:
        one = " (a packet has one port: which of them?)" if "," in text or "-" in text else ""
        raise ValueError(f"--{option}: no service {text!r}{one}") from None


def _number(option: str, text: str, bits: int) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << bits:
        raise ValueError(f"--{option}: {text!r} is no number below {1 << bits}")
    return value


def _mac(text: str) -> int:
    digits = text.replace(":", "").replace("-", "")
    if len(digits) != 12 or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
        raise ValueError(f"--mac: {text!r} is no MAC address")
    return int(digits, 16)
