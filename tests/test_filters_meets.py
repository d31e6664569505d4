"""One tuple against a filter: the same answer as for a flow without NAT."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.filters import PORT_PROTOCOLS, Filter
from conntracker.model import Batch

# Few values, close to each other and to the ends of words, so that filters and tuples meet.
NUMBERS = {
    4: [0, 1, 2, 0x0A000001, 0x0A0000FF, 0x0A000100, 2**32 - 1],
    6: [0, 1, 2**64 - 1, 2**64, 2**64 + 1, 5 << 64 | 7, 5 << 64 | 9, 6 << 64, 2**128 - 1],
}
PORTS = [0, 1, 22, 80, 81, 1024, 65535]
PROTOCOLS = [1, 2, 6, 17, 47, 50, 58, 132, 200]

Ends = tuple[int, int, int, int, int | None, int | None]


def by_mask(chosen: Filter, ends: Ends) -> bool:
    """What the mask over a batch says of a flow without NAT; of ICMP, words that are no ports stand in their place."""
    family, proto, src, dst, *ports = ends
    sport, dport = (7 if port is None else port for port in ports)
    low = 2**64 - 1

    def words(first: int, second: int) -> tuple[np.ndarray[tuple[int], np.dtype[np.uint64]], ...]:
        split = [first << 32 | second] if family == 4 else [first >> 64, first & low, second >> 64, second & low]
        return tuple(np.array([word], np.uint64) for word in split)

    def packed(first: int, second: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        return np.array([first << 48 | second << 32 | proto << 8], np.uint64)

    none = np.zeros(1, np.uint32)
    batch = Batch(
        family, 0, np.zeros(1, np.uint8), words(src, dst), packed(sport, dport), words(dst, src), packed(dport, sport),
        none, none, none, np.zeros(1, np.uint8),
    )  # fmt: skip
    mask = chosen.mask(batch)
    return True if mask is None else bool(mask[0])


@st.composite
def tuples(draw: st.DrawFn) -> Ends:
    """Tuples with ports where their protocol has any."""
    family, proto = draw(st.sampled_from([4, 6])), draw(st.sampled_from(PROTOCOLS))
    src, dst = draw(st.sampled_from(NUMBERS[family])), draw(st.sampled_from(NUMBERS[family]))
    sport, dport = draw(st.sampled_from(PORTS)), draw(st.sampled_from(PORTS))
    return (family, proto, src, dst, sport, dport) if proto in PORT_PROTOCOLS else (family, proto, src, dst, None, None)


@st.composite
def addresses(draw: st.DrawFn) -> str:
    """Values of --src and --dst."""
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        family = draw(st.sampled_from([4, 6]))
        make = ipaddress.IPv4Address if family == 4 else ipaddress.IPv6Address
        first, last = sorted(draw(st.sampled_from(NUMBERS[family])) for _ in range(2))
        prefix = draw(st.integers(0, 32 if family == 4 else 128))
        forms = [f"{make(first)}", f"{make(first)}/{prefix}", f"{make(first)}-{make(last)}"]
        parts.append(draw(st.sampled_from(forms)))
    return ",".join(parts)


@st.composite
def ports(draw: st.DrawFn) -> str:
    """Values of the port options."""
    pairs = draw(
        st.lists(st.tuples(st.sampled_from(PORTS), st.sampled_from(PORTS)).map(sorted), min_size=1, max_size=3)
    )
    return ",".join(f"{first}-{last}" for first, last in pairs)


FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "proto": st.sampled_from(["tcp", "udp,17", "icmp,58", "200,gre"]), "src": addresses(), "dst": addresses(),
        "port": ports(), "sport": ports(), "dport": ports(),
    },
)  # fmt: skip


@given(FILTERS, tuples())
def test_a_tuple_is_wanted_as_its_flow_is(options: dict[str, str], ends: Ends) -> None:
    """Whether a tuple is wanted is what the mask says of a flow with that tuple and no NAT."""
    chosen = Filter.parse(**options)
    assert chosen.meets(*ends) == by_mask(chosen, ends)


TCP: Ends = (4, 6, 0x0A000001, 0x0A000002, 40000, 80)
SIX: Ends = (6, 17, 1, 2, 40000, 53)
PING: Ends = (4, 1, 0x0A000001, 0x0A000002, None, None)
CASES: list[tuple[dict[str, str], Ends, bool]] = [
    ({}, PING, True),
    ({"proto": "tcp"}, TCP, True),
    ({"proto": "udp"}, TCP, False),
    ({"src": "10.0.0.1"}, TCP, True),
    ({"src": "10.0.0.2"}, TCP, False),
    ({"dst": "10.0.0.0/30"}, TCP, True),
    ({"src": "::/0"}, TCP, False),
    ({"src": "0.0.0.0/0"}, SIX, False),
    ({"src": "::1", "dst": "::2"}, SIX, True),
    ({"port": "80"}, TCP, True),
    ({"port": "40000"}, TCP, True),
    ({"sport": "80"}, TCP, False),
    ({"dport": "80"}, TCP, True),
    ({"port": "0-65535"}, PING, False),
    ({"dport": "80", "sport": "1"}, TCP, False),
    ({"proto": "icmp", "dst": "10.0.0.2"}, PING, True),
]


@pytest.mark.parametrize(("options", "ends", "wanted"), CASES)
def test_cases(options: dict[str, str], ends: Ends, wanted: bool) -> None:
    """All conditions must be met, each end by its own; what has no ports meets no condition on them."""
    assert Filter.parse(**options).meets(*ends) == wanted
