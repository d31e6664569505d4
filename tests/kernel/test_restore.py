"""Sysctls are put back, after a kill too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conntracker import restore
from conntracker.restore import Changes, leftovers, read_sysctl, repair
from conntracker.sources.netns import Namespace

NAME = "net/netfilter/nf_conntrack_acct"
KILLED = """
import os, sys, pathlib
from conntracker.restore import Changes
from conntracker.sources.netns import Namespace
Changes(Namespace.current(), pathlib.Path(sys.argv[1])).set("net/netfilter/nf_conntrack_acct", "1")
os.kill(os.getpid(), 9)
"""


def killed(directory: Path) -> None:
    """An instance that changes a sysctl here and is killed."""
    subprocess.run([sys.executable, "-c", KILLED, str(directory)], check=False)


def test_a_change_is_put_back(space: Namespace, tmp_path: Path) -> None:
    """`release` restores the old value and leaves no file and no directory."""
    directory = tmp_path / "state"
    changes = Changes(space, directory)
    assert changes.set(NAME, "1")
    assert (read_sysctl(NAME), leftovers(directory)) == ("1", [])
    assert changes.release() == ["net.netfilter.nf_conntrack_acct put back to 0"]
    assert (read_sysctl(NAME), directory.exists()) == ("0", False)


def test_a_value_that_was_there_before_is_left(space: Namespace, tmp_path: Path) -> None:
    """What somebody else set already is not ours to put back."""
    Path("/proc/sys", NAME).write_text("1")
    changes = Changes(space, tmp_path / "state")
    assert not changes.set(NAME, "1")
    assert changes.release() == []
    assert read_sysctl(NAME) == "1"


def test_a_value_that_somebody_changed_meanwhile_is_left(space: Namespace, tmp_path: Path) -> None:
    """Another's later choice wins over ours."""
    changes = Changes(space, tmp_path / "state")
    changes.set(NAME, "1")
    Path("/proc/sys", NAME).write_text("0")
    assert "by somebody else" in changes.release()[0]


def test_a_killed_instance_is_repaired(space: Namespace, tmp_path: Path) -> None:
    """What it left is told, put back once, and forgotten."""
    killed(tmp_path)
    assert read_sysctl(NAME) == "1"
    assert leftovers(tmp_path) == ["net.netfilter.nf_conntrack_acct was 0"]
    assert repair(tmp_path) == ["net.netfilter.nf_conntrack_acct put back to 0 (left by a killed instance)"]
    assert (read_sysctl(NAME), leftovers(tmp_path), repair(tmp_path)) == ("0", [], [])


def test_a_killed_instance_is_repaired_from_elsewhere(space: Namespace, tmp_path: Path) -> None:
    """The namespace is found by a process in it, wherever the repair is called."""
    killed(tmp_path)
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        elsewhere = Namespace.create()
        with elsewhere:
            assert len(repair(tmp_path)) == 1
            assert read_sysctl(NAME) == "0"
        elsewhere.close()
        sleeper.kill()
    assert read_sysctl(NAME) == "0"


def test_the_next_user_takes_a_killed_ones_change_over(space: Namespace, tmp_path: Path) -> None:
    """A new instance that needs the same value puts the first old value back at its end."""
    killed(tmp_path)
    changes = Changes(space, tmp_path)
    changes.set(NAME, "1")
    changes.release()
    assert read_sysctl(NAME) == "0"


def test_another_boot_is_forgotten(space: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state file of an earlier boot says nothing about this one's values."""
    killed(tmp_path)
    monkeypatch.setattr(restore, "_boot", lambda: "another")
    assert repair(tmp_path) == []
    assert read_sysctl(NAME) == "1"
    assert not list(tmp_path.glob("*.json"))


def test_the_next_owner_of_an_inode_is_left_alone(tmp_path: Path) -> None:
    """The kernel uses the number of a namespace that is gone again: the new one's sysctls are nobody's but its own."""
    first = Namespace.create()
    with first:
        killed(tmp_path)
    inode = first.inode
    first.close()
    made = []
    for _ in range(200):
        made.append(Namespace.create())
        if made[-1].inode == inode:
            break
    again = made[-1]
    with again:
        Path("/proc/sys", NAME).write_text("1")
        if again.inode == inode:
            assert again.cookie != 0
        assert repair(tmp_path) == []
        assert read_sysctl(NAME) == "1"
    for namespace in made:
        namespace.close()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"boot": 1}'])
def test_a_broken_state_file_does_no_harm(tmp_path: Path, content: str) -> None:
    """A file cut short by a crash is taken away without a guess."""
    (tmp_path / "sysctl-1.json").write_text(content)
    assert repair(tmp_path) == []
    assert not list(tmp_path.glob("*.json"))
