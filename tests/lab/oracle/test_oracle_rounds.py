"""Which packets the oracle sends between two changes of routes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from conntracker.lab.oracle.rounds import Target, rounds

NAMES = st.sampled_from(("a", "b", "c"))
TARGETS = st.builds(
    Target, NAMES, st.one_of(NAMES, st.just("")), st.one_of(st.none(), NAMES), st.one_of(st.none(), NAMES)
)


@given(st.lists(TARGETS.filter(lambda one: one.avoid is None or one.default != one.avoid)))
def test_every_packet_has_its_routes(targets: list[Target]) -> None:
    """Each packet is sent once, under the routes that it asked for, in order within its round."""
    made = rounds((target, number) for number, target in enumerate(targets))
    assert sorted(number for _, members in made for number in members) == list(range(len(targets)))
    for one, members in made:
        for target in (targets[number] for number in members):
            assert one.targets[target.iif] == target.goes
            assert target.default in (None, one.default)
            assert target.avoid is None or one.default != target.avoid


def test_few_rounds() -> None:
    """Every pair of n interfaces takes n rounds."""
    names = [f"eth{number}" for number in range(12)]
    pairs = [(Target(one, other, None), 0) for one in names for other in names]
    assert len(rounds(pairs)) == 12
