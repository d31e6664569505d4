"""Traces against the kernel: a table of rulesets and packets, and the whole way that each packet takes."""

from __future__ import annotations

import pytest

from kernel.scenarios import SCENARIOS
from support.rulesets import Refused
from support.verify import complaints
from support.walk import Case, cases, run

CASES = [case for scenario in SCENARIOS for case in cases(scenario)]


@pytest.mark.needs("nft", "iptables-nft", "iptables-legacy")
@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_path(case: Case) -> None:
    """Each packet's verdict, deciding rule and whole path are those that netfilter's rules give."""
    try:
        outcome = run(case)
    except Refused as error:
        if case.scenario.optional:
            pytest.skip(str(error).splitlines()[0])
        raise
    found = complaints(case, outcome)
    if found:
        pytest.fail("\n".join([*found, *(f"notice: {line}" for line in outcome.notices)]), pytrace=False)


def test_table_is_as_long_as_promised() -> None:
    """There are at least sixty scenarios, and no two have one name."""
    names = [scenario.name for scenario in SCENARIOS]
    assert len(set(names)) == len(names) >= 60
