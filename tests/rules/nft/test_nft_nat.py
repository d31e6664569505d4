"""NAT that a map chooses."""

from __future__ import annotations

from typing import Any

import pytest

from conntracker.rules.nft import parse_json
from conntracker.rules.terms import Nat

KEY = {"payload": {"protocol": "tcp", "field": "dport"}}
ONE, NINE = 0x0A000001, 0x0A000009
EVERY, PORTS = (0, 0xFFFFFFFF), (0, 0xFFFF)


def mapped(data: Any) -> dict[str, Any]:
    """What a map gives for the port."""
    return {"map": {"key": KEY, "data": data}}


def among(*elements: Any) -> dict[str, Any]:
    """The same of a map without a name: of the ports from 22 on."""
    return mapped({"set": [[22 + number, value] for number, value in enumerate(elements)]})


def a_map(name: str, data: str, flags: list[str], *elements: Any) -> dict[str, Any]:
    """A named map."""
    place = {"family": "ip", "table": "t", "name": name, "type": "inet_service", "map": data, "flags": flags}
    return {"map": place | {"elem": [[22 + number, value] for number, value in enumerate(elements)]}}


PAIR = {"concat": ["10.0.0.1", 8080]}
MAPS = [
    a_map("both", "ipv4_addr . inet_service", [], PAIR),
    a_map("plain", "ipv4_addr", [], "10.0.0.1"),
    a_map("dynamic", "ipv4_addr . inet_service", ["dynamic"]),
    a_map("changing", "ipv4_addr", ["dynamic"]),
]


@pytest.mark.parametrize(
    ("statement", "kind", "addresses", "ports"),
    [
        ({"dnat": {"addr": among("10.0.0.1")}}, "dnat", (ONE, ONE), None),
        ({"dnat": {"addr": among("10.0.0.9", "10.0.0.1")}}, "dnat", (ONE, NINE), None),
        ({"dnat": {"addr": among("10.0.0.1"), "port": 80}}, "dnat", (ONE, ONE), (80, 80)),
        ({"dnat": {"addr": "10.0.0.1", "port": among(80, 81)}}, "dnat", (ONE, ONE), (80, 81)),
        ({"dnat": {"addr": among(PAIR)}}, "dnat", (ONE, ONE), (8080, 8080)),
        ({"dnat": {"addr": mapped("@both")}}, "dnat", (ONE, ONE), (8080, 8080)),
        ({"dnat": {"addr": mapped("@plain")}}, "dnat", (ONE, ONE), None),
        ({"dnat": {"addr": mapped("@dynamic")}}, "dnat", EVERY, PORTS),
        ({"dnat": {"addr": mapped("@changing")}}, "dnat", EVERY, None),
        ({"dnat": {"addr": mapped("@missing")}}, "dnat", EVERY, PORTS),
        ({"redirect": {"port": among(80)}}, "redirect", None, (80, 80)),
        (
            {"dnat": {"addr": among({"prefix": {"addr": "10.0.0.0", "len": 24}}), "type_flags": "prefix"}},
            "dnat",
            (0x0A000000, 0x0A0000FF),
            None,
        ),
        (
            {"dnat": {"addr": {"prefix": {"addr": "10.0.0.0", "len": 24}}, "type_flags": "prefix"}},
            "netmap",
            (0x0A000000, 0x0A0000FF),
            None,
        ),
    ],
)
def test_what_a_map_chooses_is_between_its_least_and_its_greatest(
    statement: dict[str, Any], kind: str, addresses: tuple[int, int] | None, ports: tuple[int, int] | None
) -> None:
    """NAT by a map gives one of the map's addresses and ports, and any where packets change the map."""
    rule = {"rule": {"family": "ip", "table": "t", "chain": "c", "expr": [statement]}}
    (known,) = parse_json({"nftables": [*MAPS, rule]}).chains
    (found,) = (part for part in known.meanings[0].parts if isinstance(part, Nat))
    assert (found.kind, found.addresses, found.ports) == (kind, addresses, ports)
