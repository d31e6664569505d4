"""What must be known of a packet for a value to be read from it."""

from __future__ import annotations

from typing import Any

import pytest

from conntracker.rules.intervals import single
from conntracker.rules.nft import parse_json
from conntracker.rules.terms import Assign, In

TRACKED = In("ct_state", ((1, 3),))
CT_MARK, MARK = {"ct": {"key": "mark"}}, {"meta": {"key": "mark"}}
SOURCE = {"payload": {"protocol": "ip", "field": "saddr"}}
PORT = {"payload": {"protocol": "tcp", "field": "sport"}}


@pytest.mark.parametrize(
    ("value", "needs"),
    [
        (5, []),
        (MARK, []),
        ({"|": [MARK, 1]}, []),
        ({"numgen": {"mode": "inc", "mod": 2}}, []),
        (CT_MARK, [TRACKED]),
        ({"|": [CT_MARK, 1]}, [TRACKED]),
        ({"<<": [CT_MARK, 8]}, [TRACKED]),
        ({"jhash": {"mod": 16, "expr": SOURCE}}, [In("family", single(4))]),
        ({"jhash": {"mod": 16, "expr": {"concat": [PORT, CT_MARK]}}}, [In("protocol", single(6)), TRACKED]),
    ],
)
@pytest.mark.parametrize("key", [MARK, CT_MARK])
def test_a_rule_ends_where_the_value_to_be_set_cannot_be_read(key: Any, value: Any, needs: list[In]) -> None:
    """`ct mark set ct mark or 1` ends its rule for a packet without a flow, whichever mark is set."""
    expr = [{"mangle": {"key": key, "value": value}}, {"accept": None}]
    rule = {"rule": {"family": "inet", "table": "t", "chain": "c", "expr": expr}}
    (known,) = parse_json({"nftables": [rule]}).chains
    parts = known.meanings[0].parts
    assert list(parts[: len(needs)]) == needs
    assert isinstance(parts[len(needs)], Assign)


def test_an_option_is_taken_out_of_tcp_alone() -> None:
    """`reset tcp option` ends its rule for a packet of another protocol."""
    expr = [{"reset": {"tcp option": {"name": "sack-perm"}}}, {"drop": None}]
    rule = {"rule": {"family": "inet", "table": "t", "chain": "c", "expr": expr}}
    (known,) = parse_json({"nftables": [rule]}).chains
    assert known.meanings[0].parts[0] == In("protocol", single(6))
