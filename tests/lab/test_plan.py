"""The load generator's list by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntracker.lab.packets import Tuples
from conntracker.lab.plan import plan


def different(tuples: Tuples) -> int:
    """How many different tuples there are."""
    columns = np.column_stack([tuples.proto, tuples.src, tuples.dst, tuples.sport, tuples.dport, tuples.icmp_type])
    return len(np.unique(columns, axis=0))


@settings(deadline=None)
@given(st.integers(0, 3000), st.booleans(), st.integers(0, 9))
def test_no_tuple_twice(count: int, nat: bool, seed: int) -> None:
    """A plan has as many flows as asked for, all different before NAT and after it."""
    flows = plan(count, nat=nat, seed=seed)
    assert len(flows) == count == different(flows.original) == different(flows.reply)
    assert not (flows.replied & flows.refused).any()


def test_no_tuple_twice_at_size() -> None:
    """The same holds for 300,000 flows."""
    flows = plan(300_000)
    assert different(flows.original) == different(flows.reply) == 300_000


def test_a_plan_is_mixed() -> None:
    """Any thousand flows in a row have all protocols, both IP versions, NAT of both kinds, all outcomes."""
    flows = plan(100_000)
    part = slice(50_000, 51_000)
    kinds = set(zip(flows.original.family[part].tolist(), flows.original.proto[part].tolist(), strict=True))
    assert kinds == {(4, 1), (4, 6), (4, 17), (6, 6), (6, 17), (6, 58)}
    for column in (
        flows.replied,
        flows.refused,
        (flows.original.src != flows.reply.dst).any(axis=1),
        (flows.original.dst != flows.reply.src).any(axis=1),
    ):
        assert 0 < column[part].sum() < 500


def test_too_many_flows() -> None:
    """More flows than a plan can hold is an error."""
    with pytest.raises(ValueError, match="2,000,000"):
        plan(2_000_001)
