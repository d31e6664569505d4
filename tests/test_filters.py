from __future__ import annotations

import contextlib
import ipaddress
import re
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.filters import Filter
from conntracker.model import Batch

OPTIONS = ("proto", "src", "dst", "port", "sport", "dport")


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("port", "99999", "--port: '99999' is not a port (0-65535)"),
        ("port", "80,x", "--port: 'x' is not a port (0-65535)"),
        ("sport", "-1", "--sport: '' is not a port (0-65535)"),
        ("dport", "90-80", "--dport: '90-80' is a range that ends before it begins"),
        ("dport", "80,", "--dport: a part of '80,' is empty"),
        ("proto", "tpc", "--proto: 'tpc' is not a protocol (a name such as tcp, or 0-255)"),
        (
            "src",
            "10.0.0.256",
            "--src: '10.0.0.256' is not an address, prefix (10.0.0.0/8) or range (10.0.0.1-10.0.0.9)",
        ),
        ("dst", "10.0.0.0/33", "--dst: '10.0.0.0/33' is not an address"),
        ("dst", "10.0.0.9-10.0.0.1", "--dst: '10.0.0.9-10.0.0.1' is not an address"),
        ("dst", "10.0.0.9-fd00::1", "--dst: '10.0.0.9-fd00::1' is not an address"),
        ("src", "fe80::1%eth0", "--src: 'fe80::1%eth0' is not an address"),
        ("src", "", "--src: a part of '' is empty"),
    ],
)
def test_bad_values(option: str, text: str, message: str) -> None:
    """A bad value is told with its option and the bad part."""
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Filter.parse(**{option: text})


@given(st.sampled_from(OPTIONS), st.one_of(st.text(), st.text("0123456789.:/-, abcdef")))
def test_any_text(option: str, text: str) -> None:
    """Any text is a filter or a ValueError that names the option."""
    problem = ""
    try:
        chosen = Filter.parse(**{option: text})
    except ValueError as error:
        problem = str(error)
    assert problem.startswith(f"--{option}: ") or chosen


def test_spaces_and_order_do_not_matter() -> None:
    """Two ways to write the same filter are equal."""
    assert Filter.parse(proto="udp, TCP,6", port="80, 22") == Filter.parse(proto="tcp,17", port="22,80,80-80")


Flow = dict[str, Any]


def batch(family: int, flows: list[Flow]) -> Batch:
    """A batch of flows that are given by the columns of a recording."""
    size = len(flows)

    def words(source: str, destination: str) -> tuple[Any, ...]:
        pairs = [(int(flow[source]), int(flow[destination])) for flow in flows]
        if family == 4:
            return (np.array([src << 32 | dst for src, dst in pairs], np.uint64),)
        low = 2**64 - 1
        split = [(src >> 64, src & low, dst >> 64, dst & low) for src, dst in pairs]
        return tuple(np.array([row[i] for row in split], np.uint64) for i in range(4))

    def ports(source: str, destination: str) -> Any:
        packed = [flow[source] << 48 | flow[destination] << 32 | 3 << 16 | flow["proto"] << 8 for flow in flows]
        return np.array(packed, np.uint64)

    zero = np.zeros(size, np.uint32)
    return Batch(
        family, 0, np.zeros(size, np.uint8), words("src", "dst"), ports("sport", "dport"),
        words("reply_src", "reply_dst"), ports("reply_sport", "reply_dport"), zero, zero, zero,
        np.zeros(size, np.uint8),
    )  # fmt: skip


def flow(**changes: Any) -> Flow:
    """A flow that differs from a plain one as told."""
    row = {
        "proto": 6, "src": "10.0.0.1", "dst": "10.0.0.2", "sport": 40000, "dport": 80, "reply_src": "10.0.0.2",
        "reply_dst": "10.0.0.1", "reply_sport": 80, "reply_dport": 40000, **changes,
    }  # fmt: skip
    return {name: ipaddress.ip_address(value) if isinstance(value, str) else value for name, value in row.items()}


NATTED = flow(reply_src="192.168.0.5", reply_sport=8080, reply_dst="1.2.3.4", reply_dport=50000)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"src": "10.0.0.1"}, True),
        ({"src": "1.2.3.0/24"}, True),
        ({"src": "10.0.0.2"}, False),
        ({"dst": "10.0.0.2"}, True),
        ({"dst": "192.168.0.1-192.168.0.5"}, True),
        ({"dst": "1.2.3.4"}, False),
        ({"dst": "::/0"}, False),
        ({"sport": "40000"}, True),
        ({"sport": "50000"}, True),
        ({"sport": "80"}, False),
        ({"dport": "8000-8100"}, True),
        ({"dport": "80"}, True),
        ({"dport": "40000"}, False),
        ({"port": "50000"}, True),
        ({"port": "1-79"}, False),
        ({"proto": "tcp"}, True),
        ({"proto": "udp,icmp"}, False),
        ({"proto": "tcp", "src": "10.0.0.1", "dport": "22"}, False),
    ],
)
def test_either_side_of_nat(options: dict[str, str], wanted: bool) -> None:
    """A source is one on either side of NAT, and so is a destination; all conditions must be met."""
    mask = Filter.parse(**options).mask(batch(4, [NATTED]))
    assert mask is not None
    assert mask.tolist() == [wanted]


@pytest.mark.parametrize("proto", [1, 58, 50, 2])
def test_no_ports(proto: int) -> None:
    """ICMP and other protocols without ports never match a port."""
    mask = Filter.parse(port="0-65535").mask(batch(4, [flow(proto=proto), flow()]))
    assert mask is not None
    assert mask.tolist() == [False, True]


def test_empty_filter() -> None:
    """A filter without conditions costs nothing: None is all."""
    assert Filter.parse().mask(batch(4, [flow()])) is None
    assert not Filter.parse()
    assert Filter.parse().sql() == "true"


CONNECTION = duckdb.connect()
PORT_COLUMNS = ("sport", "dport", "reply_sport", "reply_dport")
PORTLESS = {1, 2, 50, 51, 58, 200}
PROTOCOL_NAMES = {6: "tcp", 17: "udp", 1: "icmp", 58: "icmpv6", 132: "sctp", 50: "esp", 47: "gre", 200: "200"}


def by_sql(chosen: Filter, family: int, flows: list[Flow]) -> list[bool]:
    """What the condition says of the same flows as rows of a recording."""
    columns: dict[str, Any] = {"family": np.full(len(flows), family, np.uint8)}
    for name in ("src", "dst", "reply_src", "reply_dst"):
        numbers = [int(flow[name]) for flow in flows]
        columns[f"{name}_hi"] = np.array([number >> 64 for number in numbers], np.uint64)
        columns[f"{name}_lo"] = np.array([number & 2**64 - 1 for number in numbers], np.uint64)
    for name in PORT_COLUMNS:
        columns[name] = np.array([flow[name] for flow in flows], np.uint16)
    columns["portless"] = np.array([flow["proto"] in PORTLESS for flow in flows])
    columns["proto"] = np.array([PROTOCOL_NAMES[flow["proto"]] for flow in flows], object)
    CONNECTION.register("flows", columns)
    ports = ", ".join(f"CASE WHEN NOT portless THEN {name} END AS {name}" for name in PORT_COLUMNS)
    table = f"(SELECT * REPLACE ({ports}) FROM flows)"  # noqa: S608
    rows = CONNECTION.execute(f"SELECT coalesce({chosen.sql()}, false) FROM {table}").fetchall()  # noqa: S608
    return [wanted for (wanted,) in rows]


# Few values, close to each other and to the ends of words, so that filters and flows meet.
NUMBERS = {
    4: st.sampled_from([0, 1, 2, 0x0A000001, 0x0A0000FF, 0x0A000100, 2**32 - 1]),
    6: st.sampled_from([0, 1, 2**64 - 1, 2**64, 2**64 + 1, 5 << 64 | 7, 5 << 64 | 9, 6 << 64, 2**128 - 1]),
}
PORT_NUMBERS = st.sampled_from([0, 1, 22, 80, 81, 1024, 65535])


def address(family: int, number: int) -> str:
    """An address as text."""
    return str(ipaddress.IPv4Address(number) if family == 4 else ipaddress.IPv6Address(number))


@st.composite
def address_lists(draw: st.DrawFn) -> str:
    """Values of --src and --dst."""
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        family = draw(st.sampled_from([4, 6]))
        first, last = sorted([draw(NUMBERS[family]), draw(NUMBERS[family])])
        prefix = draw(st.integers(0, 32 if family == 4 else 128))
        one = address(family, first)
        parts.append(draw(st.sampled_from([one, f"{one}/{prefix}", f"{one}-{address(family, last)}"])))
    return ",".join(parts)


@st.composite
def port_lists(draw: st.DrawFn) -> str:
    """Values of the port options."""
    pairs = draw(st.lists(st.tuples(PORT_NUMBERS, PORT_NUMBERS).map(sorted), min_size=1, max_size=3))
    return ",".join(f"{first}-{last}" if draw(st.booleans()) else f"{first}" for first, last in pairs)


@st.composite
def flow_lists(draw: st.DrawFn) -> tuple[int, list[Flow]]:
    """An IP version and flows of it."""
    family = draw(st.sampled_from([4, 6]))
    kind = ipaddress.IPv4Address if family == 4 else ipaddress.IPv6Address
    one = st.fixed_dictionaries(
        {"proto": st.sampled_from(list(PROTOCOL_NAMES))}
        | {name: NUMBERS[family].map(kind) for name in ("src", "dst", "reply_src", "reply_dst")}
        | {name: PORT_NUMBERS for name in ("sport", "dport", "reply_sport", "reply_dport")}
    )
    return family, draw(st.lists(one, min_size=1, max_size=20))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "proto": st.sampled_from(["tcp", "udp,17", "icmp,58", "200,gre"]),
            "src": address_lists(),
            "dst": address_lists(),
            "port": port_lists(),
            "sport": port_lists(),
            "dport": port_lists(),
        },
    ),
    flow_lists(),
)
def test_mask_and_sql_agree(options: dict[str, str], flows: tuple[int, list[Flow]]) -> None:
    """The mask over a batch and the SQL condition select the same flows."""
    chosen = Filter.parse(**options)
    mask = chosen.mask(batch(*flows))
    expected = [True] * len(flows[1]) if mask is None else mask.tolist()
    assert by_sql(chosen, *flows) == expected


def test_text_never_reaches_sql() -> None:
    """Nothing of the text that was given is in the SQL."""
    for option in OPTIONS:
        with contextlib.suppress(ValueError):
            assert "DROP" not in Filter.parse(**{option: "80'; DROP TABLE flows --"}).sql()
