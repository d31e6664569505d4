"""The values of iptables' options: numbers, ports, addresses, marks (libxtables/xtables.c, xtoptions.c)."""

from __future__ import annotations

import re
import socket

from conntracker.rules.fields import width_of
from conntracker.rules.intervals import Intervals, complement, normal, single
from conntracker.rules.iptables.names import PROTOCOLS, SERVICES
from conntracker.rules.terms import In

__all__ = [
    "FAMILY",
    "Bad",
    "address",
    "address_range",
    "any_bit",
    "inside",
    "is_number",
    "masked",
    "netmask",
    "number",
    "port",
    "port_list",
    "ports",
    "protocol",
    "span",
    "value_and_mask",
]

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+")

# Of the table: what tests of addresses come behind.
FAMILY = {4: In("family", single(4)), 6: In("family", single(6))}

_PORTS_OF_MULTIPORT = 15  # linux/netfilter/xt_multiport.h (XT_MULTI_PORTS): a range takes two places


class Bad(Exception):
    """What is wrong with a word of a rule; its number, from 0, in the rule's words is filled in on the way up."""

    def __init__(self, what: str, word: int | None = None) -> None:
        super().__init__(what)
        self.what, self.word = what, word


def is_number(text: str) -> bool:
    """Whether it is a number, if it is in bounds."""
    return _NUMBER.fullmatch(text) is not None


def number(text: str, top: int, what: str = "number") -> int:
    """As strtoul with base 0 reads it: 10, 0x10, 010."""
    if _NUMBER.fullmatch(text) is None:
        raise Bad(f"no {what}: {text!r}")
    if len(text) > 40:
        raise Bad(f"{what} too large")
    octal = len(text) > 1 and text[0] == "0" and text[1] not in "xX"
    try:
        value = int(text, 8 if octal else 0)
    except ValueError:
        raise Bad(f"no octal {what}: {text!r}") from None
    if value > top:
        raise Bad(f"{what} {text} is larger than {top}")
    return value


def span(text: str, top: int, separator: str = ":", what: str = "number") -> Intervals:
    """`low:high`, where either may be left out, or one number."""
    low, found, high = text.partition(separator)
    first = number(low, top, what) if low or not found else 0
    last = first if not found else number(high, top, what) if high else top
    if first > last:
        raise Bad(f"the range {text} is upside down")
    return ((first, last),)


def port(text: str) -> int:
    """A number, or the name of a service."""
    if text in SERVICES:
        return SERVICES[text]
    if text[:1].isalpha():
        raise Bad(f"a service that is not known here: {text!r} (its number would do)")
    return number(text, 0xFFFF, "port")


def ports(text: str) -> Intervals:
    """`--sport`: one port, `low:high`, `low:` or `:high`."""
    low, found, high = text.partition(":")
    first = port(low) if low or not found else 0
    last = first if not found else port(high) if high else 0xFFFF
    if first > last:
        raise Bad(f"the range {text} is upside down")
    return ((first, last),)


def port_list(text: str) -> Intervals:
    """`--dports`: ports and ranges with both ends, at most fifteen."""
    pairs, places = [], 0
    for word in text.split(","):
        low, found, high = word.partition(":")
        first = port(low)
        last = port(high) if found else first
        if first > last:
            raise Bad(f"the range {word} is upside down")
        pairs.append((first, last))
        places += 2 if found else 1
    if places > _PORTS_OF_MULTIPORT:
        raise Bad(f"more than {_PORTS_OF_MULTIPORT} ports")
    return normal(pairs)


def protocol(text: str) -> int:
    """A number or a name, 0 for all."""
    lower = text.lower()
    if lower in PROTOCOLS:
        return PROTOCOLS[lower]
    if not is_number(text):
        raise Bad(f"a protocol that is not known: {text!r}")
    return number(text, 0xFF, "protocol")


def _plain_address(text: str, version: int) -> int:
    if version == 6:
        try:
            return int.from_bytes(socket.inet_pton(socket.AF_INET6, text))
        except (OSError, ValueError):
            raise Bad(f"no IPv6 address: {text!r}") from None
    parts = text.split(".")
    if len(parts) > 4 or not all(part.isascii() and part.isdigit() and len(part) < 4 for part in parts):
        raise Bad(f"no IPv4 address: {text!r}")
    value = 0
    for part in parts:
        if int(part) > 255:
            raise Bad(f"no IPv4 address: {text!r}")
        value = value << 8 | int(part)
    return value << 8 * (4 - len(parts))


def netmask(text: str, version: int) -> int:
    """A length of prefix, or a mask in the form of an address."""
    width = 32 if version == 4 else 128
    if text.isascii() and text.isdigit():
        length = number(text if len(text) < 2 else text.lstrip("0") or "0", width, "length of prefix")
        return (1 << width) - (1 << width - length)
    return _plain_address(text, version)


def address(text: str, version: int) -> tuple[int, int]:
    """`address[/mask]`: (value, mask), no bits of the value outside of the mask. `10.1` is 10.1.0.0."""
    value, found, mask_text = text.partition("/")
    mask = netmask(mask_text, version) if found else (1 << (32 if version == 4 else 128)) - 1
    return _plain_address(value, version) & mask, mask


def address_range(text: str, version: int) -> tuple[int, int]:
    """`low-high` or one address."""
    low, found, high = text.partition("-")
    first = _plain_address(low, version)
    return first, _plain_address(high, version) if found else first


def value_and_mask(text: str, top: int = 0xFFFFFFFF) -> tuple[int, int]:
    """`value[/mask]`; without a mask all bits."""
    value, found, mask = text.partition("/")
    return number(value, top), number(mask, top, "mask") if found else top


def inside(field: str, values: Intervals, negated: bool = False, version: int = 4) -> In:
    """The field is one of the values, or none."""
    return In(field, complement(values, 0, (1 << width_of(field, version)) - 1) if negated else values)


def masked(field: str, value: int, mask: int, negated: bool = False, version: int = 4) -> In:
    """(field & mask) == value, or not: one interval where the mask is that of a prefix."""
    width = width_of(field, version)
    full = (1 << width) - 1
    mask &= full
    if value & ~mask:
        return inside(field, (), negated, version)
    free = full ^ mask
    if free & (free + 1) == 0:
        return inside(field, ((value, value | free),), negated, version)
    return In(field, complement(single(value), 0, mask) if negated else single(value), mask)


def any_bit(field: str, bits: int, negated: bool = False) -> In:
    """At least one of the bits is set, or none."""
    if negated:
        return masked(field, 0, bits)
    return In(field, ((1, bits),), bits) if bits else In(field, ())
