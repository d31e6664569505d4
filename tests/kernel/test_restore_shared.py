"""Sysctls that several parts of one process need are put back with the last of them."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

from conntracker.restore import Changes, leftovers, read_sysctl
from conntracker.sources.netns import Namespace

ACCT, TIMESTAMP = "net/netfilter/nf_conntrack_acct", "net/netfilter/nf_conntrack_timestamp"


def test_one_part_leaves_the_others_change(space: Namespace, tmp_path: Path) -> None:
    """Releasing one of two leaves what both and what only the other changed, and the file that knows of it."""
    directory = tmp_path / "state"
    flows, traces = Changes(space, directory), Changes(space, directory)
    assert flows.set(ACCT, "1")
    assert not traces.set(ACCT, "1")
    assert traces.set(TIMESTAMP, "1")
    assert flows.release() == []
    assert (read_sysctl(ACCT), read_sysctl(TIMESTAMP)) == ("1", "1")
    assert (len(list(directory.glob("*.json"))), leftovers(directory)) == (1, [])
    assert sorted(traces.release()) == [
        f"net.netfilter.nf_conntrack_{name} put back to 0" for name in ("acct", "timestamp")
    ]
    assert (read_sysctl(ACCT), read_sysctl(TIMESTAMP), directory.exists()) == ("0", "0", False)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_last_one_puts_back(space: Namespace, tmp_path: Path, order: tuple[int, ...]) -> None:
    """In whatever order they end, only the last one puts back, whoever made the change."""
    parts = [Changes(space, tmp_path) for _ in range(3)]
    assert [part.set(ACCT, "1") for part in parts] == [True, False, False]
    said = [parts[number].release() for number in order]
    assert said == [[], [], ["net.netfilter.nf_conntrack_acct put back to 0"]]
    assert read_sysctl(ACCT) == "0"


def test_releasing_twice_counts_once(space: Namespace, tmp_path: Path) -> None:
    """A part that is released again takes nothing from the others."""
    first, second = Changes(space, tmp_path), Changes(space, tmp_path)
    first.set(ACCT, "1")
    second.set(ACCT, "1")
    first.set(ACCT, "1")
    assert (first.release(), first.release()) == ([], [])
    assert read_sysctl(ACCT) == "1"
    assert len(second.release()) == 1


def test_a_part_that_changed_nothing(space: Namespace, tmp_path: Path) -> None:
    """A part whose value was there before neither keeps nor ends the others' change."""
    Path("/proc/sys", TIMESTAMP).write_text("1")
    first, second = Changes(space, tmp_path), Changes(space, tmp_path)
    first.set(ACCT, "1")
    assert not second.set(TIMESTAMP, "1")
    assert second.release() == []
    assert read_sysctl(ACCT) == "1"
    assert len(first.release()) == 1
    assert (read_sysctl(ACCT), read_sysctl(TIMESTAMP)) == ("0", "1")


def test_a_part_can_start_again(space: Namespace, tmp_path: Path) -> None:
    """After the last release, a new change is recorded and put back anew."""
    changes = Changes(space, tmp_path)
    for _ in range(2):
        assert changes.set(ACCT, "1")
        assert len(changes.release()) == 1
        assert read_sysctl(ACCT) == "0"


def test_parts_in_different_namespaces(space: Namespace, tmp_path: Path) -> None:
    """What another part needs in another namespace does not matter here."""
    elsewhere = Namespace.create()
    here, there = Changes(space, tmp_path), Changes(elsewhere, tmp_path)
    here.set(ACCT, "1")
    there.set(ACCT, "1")
    assert len(here.release()) == 1
    assert read_sysctl(ACCT) == "0"
    with elsewhere:
        assert read_sysctl(ACCT) == "1"
    assert len(there.release()) == 1
    elsewhere.close()
