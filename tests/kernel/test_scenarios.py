"""Traces against the kernel: a table of rulesets and packets, and the whole way that each packet takes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from kernel.scenarios import SCENARIOS
from support.pool import Pool
from support.verify import examine
from support.walk import Case, Unsupported, cases

CASES = [case for scenario in SCENARIOS for case in cases(scenario)]
KINDS = {None, "nft", "iptables-nft", "iptables-legacy"}


@pytest.fixture(scope="module")
def pool(request: pytest.FixtureRequest) -> Iterator[Pool[Case, list[str]]]:
    """Runs all cases that were chosen, several at a time: they mostly wait."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    chosen = [item.callspec.params["case"] for item in items if item.function is test_path]
    with Pool(examine, [case for case in chosen if isinstance(case, Case)]) as made:
        yield made


@pytest.mark.needs("nft", "iptables-nft-restore", "iptables-legacy-restore")
@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_path(case: Case, pool: Pool[Case, list[str]]) -> None:
    """Each packet's verdict, deciding rule and whole path are those that netfilter's rules give."""
    try:
        found = pool.result(case)
    except Unsupported as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))
    if found:
        pytest.fail("\n".join(found), pytrace=False)


def test_table_is_as_long_as_promised() -> None:
    """There are at least sixty scenarios, in all three kinds of rules and mixed, and no two cases have one name."""
    assert len(SCENARIOS) >= 60
    assert {case.kind for case in CASES} == KINDS
    assert len({case.id for case in CASES}) == len(CASES)
