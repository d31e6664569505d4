"""What `--trace` takes: a small part of nft's match syntax, read here and written anew, so that nothing else gets in.

    tcp dport 443
    ip saddr 10.0.0.0/8 tcp dport { 80, 443, 8000-8099 }
    icmp type echo-request
    iifname "eth0"

A match is a field, `==`, `!=`, `<`, `>`, `<=`, `>=` or nothing, and a value, a range, a prefix or a set of them; all of
them must hold. nft gets what is written from the values that were understood, never the text that was given.

The packets of the other direction are found by the mirrored match: source and destination change places, a request
becomes an answer. Where NAT changes what the match is about, answers carry other addresses and are not found.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace

__all__ = ["check_restriction", "conditions", "mirrored"]

LONGEST = 1000

Span = tuple[int, int]  # the least and the greatest number of a value


@dataclass(frozen=True, slots=True)
class _Field:
    """A field that may be matched.

    kind        of its values, a key of _KINDS
    reverse     the field that holds the same in the other direction, None if there is none
    network     the IP version that it implies
    transport   the header that it stands in
    largest     its largest number
    """

    name: str
    kind: str
    reverse: str | None = None
    network: int | None = None
    transport: str | None = None
    largest: int = 0


@dataclass(frozen=True, slots=True)
class _Match:
    field: _Field
    operator: str
    spans: tuple[Span, ...] = ()
    text: str = ""  # in place of numbers, for names of devices
    is_set: bool = False

    def __str__(self) -> str:
        values = [self.text] if self.text else [_written(self.field, span) for span in self.spans]
        value = f"{{ {', '.join(values)} }}" if self.is_set else values[0]
        # Without an operator, flags are those of which one must be set.
        implied = self.operator == "==" and self.field.kind != "flag"
        return " ".join(word for word in (self.field.name, "" if implied else self.operator, value) if word)


def _fields() -> dict[str, _Field]:
    made = [
        _Field("ip protocol", "protocol", "ip protocol", 4, largest=255),
        _Field("ip ttl", "number", None, 4, largest=255),
        _Field("ip dscp", "number", None, 4, largest=63),
        _Field("ip length", "number", None, 4, largest=65535),
        _Field("ip6 nexthdr", "protocol", "ip6 nexthdr", 6, largest=255),
        _Field("ip6 hoplimit", "number", None, 6, largest=255),
        _Field("ip6 dscp", "number", None, 6, largest=63),
        _Field("tcp flags", "flag", None, None, "tcp", largest=255),
        _Field("ether saddr", "mac", largest=2**48 - 1),
        _Field("ether daddr", "mac", largest=2**48 - 1),
        _Field("meta l4proto", "protocol", "meta l4proto", largest=255),
        _Field("meta protocol", "version", "meta protocol"),
        _Field("meta iifname", "device"),
        _Field("meta oifname", "device"),
        _Field("meta length", "number", largest=2**32 - 1),
        _Field("meta mark", "number", largest=2**32 - 1),
        _Field("meta skuid", "number", largest=2**32 - 1),
        _Field("meta skgid", "number", largest=2**32 - 1),
    ]
    for there, back in (("saddr", "daddr"), ("daddr", "saddr")):
        made.append(_Field(f"ip {there}", "address", f"ip {back}", 4, largest=2**32 - 1))
        made.append(_Field(f"ip6 {there}", "address", f"ip6 {back}", 6, largest=2**128 - 1))
    for header in ("tcp", "udp", "udplite", "sctp", "dccp", "th"):
        for there, back in (("sport", "dport"), ("dport", "sport")):
            transport = None if header == "th" else header
            made.append(_Field(f"{header} {there}", "port", f"{header} {back}", None, transport, 65535))
    for version, header in ((4, "icmp"), (6, "icmpv6")):
        for name, kind, largest in (
            ("type", header, 255), ("code", "number", 255), ("id", "number", 65535), ("sequence", "number", 65535),
        ):  # fmt: skip
            made.append(_Field(f"{header} {name}", kind, f"{header} {name}", version, header, largest))
    return {field.name: field for field in made}


_FIELDS = _fields()
_SHORT = {name: f"meta {name}" for name in ("iifname", "oifname", "mark", "skuid", "skgid")}  # nft takes both
_SAME = {"meta nfproto": "meta protocol"}  # nfproto is that of the hook, in netdev and bridge tables never IP
_REASONS = {
    "ct": "connection tracking comes after the place where tracing begins",
    "iif": "use iifname",
    "oif": "use oifname",
}
_OPERATORS = {name: name for name in ("==", "!=", "<", ">", "<=", ">=")}
_OPERATORS |= {"eq": "==", "ne": "!=", "lt": "<", "gt": ">", "le": "<=", "ge": ">="}
_ORDERED = frozenset(("number", "port"))  # kinds whose values may be less and more
_SINGLE = frozenset(("flag", "mac", "version", "device"))  # kinds without ranges

_PROTOCOLS = {
    "icmp": 1, "igmp": 2, "tcp": 6, "dccp": 33, "udp": 17, "gre": 47, "esp": 50, "ah": 51, "icmpv6": 58,
    "ipv6-icmp": 58, "comp": 108, "sctp": 132, "udplite": 136,
}  # fmt: skip
_FLAGS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ecn": 64, "cwr": 128}
_ICMP_TYPES = {
    "echo-reply": 0, "destination-unreachable": 3, "source-quench": 4, "redirect": 5, "echo-request": 8,
    "router-advertisement": 9, "router-solicitation": 10, "time-exceeded": 11, "parameter-problem": 12,
    "timestamp-request": 13, "timestamp-reply": 14, "info-request": 15, "info-reply": 16, "address-mask-request": 17,
    "address-mask-reply": 18,
}  # fmt: skip
_ICMPV6_TYPES = {
    "destination-unreachable": 1, "packet-too-big": 2, "time-exceeded": 3, "parameter-problem": 4,
    "echo-request": 128, "echo-reply": 129, "mld-listener-query": 130, "mld-listener-report": 131,
    "mld-listener-done": 132, "nd-router-solicit": 133, "nd-router-advert": 134, "nd-neighbor-solicit": 135,
    "nd-neighbor-advert": 136, "nd-redirect": 137, "mld2-listener-report": 143,
}  # fmt: skip
_NAMES = {
    "protocol": _PROTOCOLS, "flag": _FLAGS, "icmp": _ICMP_TYPES, "icmpv6": _ICMPV6_TYPES,
    "version": {"ipv4": 4, "ip": 4, "ipv6": 6, "ip6": 6},
}  # fmt: skip
# Requests and their answers, both ways (nf_conntrack_proto_icmp.c, nf_conntrack_proto_icmpv6.c).
_ANSWERS = {
    "icmp": {8: 0, 0: 8, 13: 14, 14: 13, 15: 16, 16: 15, 17: 18, 18: 17},
    "icmpv6": {128: 129, 129: 128},
}  # fmt: skip

_TOKEN = re.compile(r'(==|!=|<=|>=|<|>)|([{},])|("[A-Za-z0-9_.-]{1,15}\*?")|([A-Za-z0-9_.:/*-]+)')


def check_restriction(text: str) -> None:
    """Raises ValueError, one line that begins with `--trace: `, for anything but such matches."""
    _parse(text)


def mirrored(text: str) -> str | None:
    """The match of the other direction; None if it cannot be told there, as with the device that a packet came from.

    Raises ValueError as check_restriction does.
    """
    matches = [_reverse(match) for match in _parse(text)]
    found = [match for match in matches if match is not None]
    return _written_all(found) if len(found) == len(matches) else None


def conditions(text: str) -> list[str]:
    """The match and, where there is one, its mirrored match, as nft is to get them. Raises ValueError."""
    there, back = _written_all(_parse(text)), mirrored(text)
    return [there] if back is None or back == there else [there, back]


# --- reading ---------------------------------------------------------------------------------------------------


def _error(reason: str) -> ValueError:
    return ValueError(f"--trace: {reason}")


def _tokens(text: str) -> list[str]:
    if len(text) > LONGEST:
        raise _error(f"longer than {LONGEST} characters")
    found, at = [], 0
    while at < len(text):
        if text[at] in " \t":
            at += 1
            continue
        token = _TOKEN.match(text, at)
        if token is None:
            raise _error(_why_not(text, at))
        found.append(token[0])
        at = token.end()
    return found


def _why_not(text: str, at: int) -> str:
    if text[at] == "@":
        return "sets of other tables cannot be used"
    if text[at] == '"':
        return "between quotes stands the name of a device"
    return f"unexpected {text[at]!a} at character {at + 1}"


def _parse(text: str) -> list[_Match]:
    tokens = _tokens(text)
    matches, position = [], 0
    while position < len(tokens):
        field, position = _field(tokens, position)
        operator = _OPERATORS.get(tokens[position]) if position < len(tokens) else ""
        position += operator is not None
        values, is_set, position = _values(tokens, position, field)
        matches.append(_match(field, operator or "", values, is_set))
    if not matches:
        raise _error("no match given, such as 'tcp dport 443'")
    _check_together(matches)
    return matches


def _field(tokens: list[str], at: int) -> tuple[_Field, int]:
    first, name = tokens[at], " ".join(tokens[at : at + 2])
    if _SAME.get(name, name) in _FIELDS:
        return _FIELDS[_SAME.get(name, name)], at + 2
    if first in _SHORT:
        return _FIELDS[_SHORT[first]], at + 1
    reason = _REASONS.get(first) or _REASONS.get(name.removeprefix("meta "))
    raise _error(f"{_shown(name)}: {reason}" if reason else f"{_shown(name)} is no field that can be matched")


def _values(tokens: list[str], at: int, field: _Field) -> tuple[list[str], bool, int]:
    rest = tokens[at:]
    if not rest:
        raise _error(f"{field.name}: a value is missing")
    if rest[0] != "{":
        return [rest[0]], False, at + 1
    if "}" not in rest:
        raise _error(f"{field.name}: the set has no end")
    end = rest.index("}")
    values, commas = rest[1:end:2], rest[2:end:2]
    if not values or set(commas) - {","} or len(values) not in {len(commas), len(commas) + 1}:
        raise _error(f"{field.name}: a set is {{ value, value }}")
    return values, True, at + end + 1


def _match(field: _Field, operator: str, values: list[str], is_set: bool) -> _Match:
    if operator in {"<", ">", "<=", ">="} and (is_set or field.kind not in _ORDERED):
        raise _error(f"{field.name}: {operator} goes with a single number")
    if field.kind == "device":
        names = ", ".join(_device(field, value, is_set) for value in values)
        return _Match(field, operator, text=names, is_set=is_set)
    spans = tuple(_span(field, value) for value in values)
    if operator in {"<", ">", "<=", ">="} and spans[0][0] != spans[0][1]:
        raise _error(f"{field.name}: {operator} goes with a single number")
    ordered = sorted(spans)
    for (_, end), (start, _) in itertools.pairwise(ordered):
        if start <= end:
            raise _error(f"{field.name}: values of the set overlap")
    return _Match(field, operator, spans, is_set=is_set)


def _device(field: _Field, value: str, is_set: bool) -> str:
    name = value.strip('"')
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}\*?", name) or len(name) > 15 or (is_set and name.endswith("*")):
        raise _error(f"{field.name}: {_shown(value)} is no name of a device")
    return f'"{name}"'


def _span(field: _Field, value: str) -> Span:
    """A value, a range or a prefix."""
    if field.kind == "address" and "/" in value:
        return _prefix(field, value)
    number = _number(field, value)
    if number is not None:
        return number, number
    for dash in (found.start() for found in re.finditer("-", value)) if field.kind not in _SINGLE else ():
        low, high = _number(field, value[:dash]), _number(field, value[dash + 1 :])
        if low is not None and high is not None:
            if low >= high:
                raise _error(f"{field.name}: {_shown(value)} is no range")
            return low, high
    raise _error(f"{field.name}: {_shown(value)} is no value of it")


def _number(field: _Field, value: str) -> int | None:
    """A single value as a number, None if it is none."""
    number = _READERS.get(field.kind, _plain)(field, value)
    return number if number is not None and number <= (field.largest or number) else None


def _plain(field: _Field, value: str) -> int | None:
    named = _NAMES.get(field.kind, {}).get(value)
    if named is not None or field.kind in _SINGLE:
        return named
    if re.fullmatch(r"0[xX][0-9a-fA-F]{1,8}|[1-9][0-9]{0,9}|0", value):
        return int(value, 0)
    return None


def _port(field: _Field, value: str) -> int | None:
    if re.fullmatch(r"[a-z][a-z0-9-]{1,20}", value):  # a service, as in /etc/services
        for protocol in (field.transport or "tcp", "tcp", "udp"):
            try:
                return socket.getservbyname(value, protocol)
            except OSError:
                continue
    return _plain(field, value)


def _address(field: _Field, value: str) -> int | None:
    try:
        return int(ipaddress.IPv4Address(value) if field.network == 4 else ipaddress.IPv6Address(value))
    except ValueError:
        return None


def _prefix(field: _Field, value: str) -> Span:
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        network = None
    if network is None or network.version != field.network or not re.fullmatch(r"[^/]+/[0-9]{1,3}", value):
        raise _error(f"{field.name}: {_shown(value)} is no value of it")
    return int(network[0]), int(network[-1])


def _mac(field: _Field, value: str) -> int | None:
    return int(value.replace(":", ""), 16) if re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", value) else None


_READERS: dict[str, Callable[[_Field, str], int | None]] = {"port": _port, "address": _address, "mac": _mac}


def _check_together(matches: list[_Match]) -> None:
    """Headers that no packet has together, which nft would refuse in words of its own."""
    versions = {match.field.network for match in matches} - {None}
    if len(versions) > 1:
        raise _error("IPv4 and IPv6 in one match")
    headers = sorted({match.field.transport for match in matches if match.field.transport})
    if len(headers) > 1:
        raise _error(f"{' and '.join(headers)} in one match")


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:40] + "...")


# --- the other direction ---------------------------------------------------------------------------------------


def _reverse(match: _Match) -> _Match | None:
    field = match.field
    if field.reverse is None:
        return None
    reverse = replace(match, field=_FIELDS[field.reverse])
    if field.kind not in _ANSWERS:
        return reverse
    answers = [_ANSWERS[field.kind].get(low) if low == high else None for low, high in match.spans]
    spans = tuple((answer, answer) for answer in answers if answer is not None)
    return replace(reverse, spans=spans) if len(spans) == len(answers) else None


# --- writing ---------------------------------------------------------------------------------------------------


def _written_all(matches: list[_Match]) -> str:
    # Headers before what only names a protocol: nft 1.0.6 takes `ip protocol { tcp, udp } tcp dport 80` for a conflict,
    # and so `icmp type` before `icmp id`.
    def rank(match: _Match) -> int:
        kind = match.field.kind
        return 3 if kind == "version" else 2 if kind == "protocol" else 1 if kind in _ANSWERS else 0

    return " ".join(str(match) for match in sorted(matches, key=rank))


def _written(field: _Field, span: Span) -> str:
    low, high = span
    if field.kind == "address" and low != high:
        return "-".join(_single(field, number) for number in span)
    return _single(field, low) if low == high else f"{low}-{high}"


def _single(field: _Field, number: int) -> str:
    if field.kind == "address":
        return str(ipaddress.IPv4Address(number) if field.network == 4 else ipaddress.IPv6Address(number))
    if field.kind == "mac":
        return ":".join(f"{byte:02x}" for byte in number.to_bytes(6, "big"))
    if field.kind == "flag":
        return next(name for name, bit in _FLAGS.items() if bit == number)
    if field.kind == "version":
        return "ip" if number == 4 else "ip6"
    return str(number)
