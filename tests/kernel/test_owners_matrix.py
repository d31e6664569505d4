"""Owners against known truth: the table of cases of `owners`, the command line, the kernel, and ss(8) beside it."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from kernel.owners.cgroup import why_not
from kernel.owners.judge import NONE, VERDICTS, WRONG
from kernel.owners.matrix import Played, play
from kernel.owners.plan import CASES
from kernel.owners.programs import ABSENT

pytestmark = pytest.mark.needs("gcc", "nft", "ss", "setpriv")

SHOWN = 40  # verdicts in the message of a test that fails


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """All cases, once, beside all variants."""
    reason = why_not()
    if reason is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return play(tmp_path_factory.mktemp("matrix"))


def other(played: Played, name: str, *values: str) -> str:
    """The verdicts that are so, to be read by a person."""
    found = [one for one in played.verdicts[name] if one.value in values]
    lines = [f"{one.value}: {one.end} -> {one.answer}" for one in found[:SHOWN]]
    return "\n".join([f"{name}: {played.counts(name)}", *lines])


def test_size(played: Played) -> None:
    """At least 35 cases and 900 ends were played, and every end's flow was recorded by every variant."""
    cases = Counter(end.case for end in played.ends)
    print(f"{len(cases)} cases, {len(played.ends)} ends, {played.seconds:.0f} s; {played.stage}")
    assert len(cases) >= 35
    assert len(played.ends) >= 900
    missing = [name for case in CASES if not case.twin and (name := case.name) not in cases]
    assert set(missing) <= {line.split(":")[0] for line in played.stage.splitlines() if ABSENT in line}
    for name in played.said:
        assert not [one for one in played.verdicts[name] if one.answer is None], other(played, name, NONE)


@pytest.mark.parametrize("name", ["all", "hooks", "fallback"])
def test_never_wrong(played: Played, name: str) -> None:
    """No end names a process that never held the socket, and only what is exact is claimed to be."""
    assert not played.counts(name)[WRONG], other(played, name, WRONG)
    complaints = [(one.complaints, one.end, one.answer) for one in played.verdicts[name] if one.complaints]
    assert not complaints, "\n".join(map(str, complaints[:SHOWN]))


@pytest.mark.parametrize(("name", "least"), [("all", 0.99), ("hooks", 0.95)])
def test_exact(played: Played, name: str, least: float) -> None:
    """With all rights nearly all ends name exactly the process that did the I/O, without tracepoints fewer."""
    assert played.share(name) >= least, other(played, name, *VERDICTS[1:])


def test_fallback_is_no_worse_than_ss(played: Played) -> None:
    """Without BPF as many ends of the captured namespace are right as in `ss -tunpa`, polled twice a second."""
    assert played.share("fallback", "host") >= played.share("ss", "host"), other(played, "fallback", *VERDICTS[1:])
