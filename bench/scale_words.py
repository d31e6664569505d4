"""Addresses and ports of the generators of large rulesets."""

from __future__ import annotations

from ipaddress import IPv4Address

PORTS = (
    22,
    25,
    53,
    80,
    110,
    123,
    143,
    161,
    389,
    443,
    445,
    587,
    631,
    993,
    1433,
    3128,
    3306,
    3389,
    5060,
    5432,
    8080,
    8443,
)


def address_text(value: int) -> str:
    """With dots."""
    return str(IPv4Address(value))


def prefix(value: int, length: int) -> tuple[int, int]:
    """(low, high) of the network that the address is in."""
    size = 1 << (32 - length)
    return value // size * size, value // size * size + size - 1


def net_text(low: int, high: int) -> str:
    """As address/length."""
    return f"{address_text(low)}/{33 - (high - low + 1).bit_length()}"
