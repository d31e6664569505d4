"""The binding of libnftables and the table that dies with its owner, against the kernel."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from conntracker.sources.netns import Namespace
from conntracker.sources.nftables import LibraryMissing, Nftables, NftablesError, OwnedTable

TEXT = "chain pre { type filter hook prerouting priority -310; policy accept; ct state new counter; }"

HOLD = """
import subprocess, sys, time
from conntracker.sources.nftables import OwnedTable
table = OwnedTable(sys.argv[1])
child = subprocess.Popen(["sleep", "60"], close_fds=False) if sys.argv[2] == "True" else None
print(table.name, child.pid if child else 0, flush=True)
time.sleep(60)
"""

MANY_FILES = """
import os, resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
files = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
from conntracker.sources.nftables import Nftables
try:
    Nftables()
except OSError as error:
    print(error.strerror)
"""


def tables() -> str:
    """The tables of the namespace of this thread."""
    with Nftables() as nft:
        return nft.run("list tables")


def gone(name: str) -> bool:
    """Whether the table goes away within five seconds."""
    for _ in range(500):
        if name not in tables():
            return True
        time.sleep(0.01)
    return False


def test_run_returns_what_nft_prints(space: Namespace) -> None:
    """Commands change the ruleset, listings come back as text or as JSON, and each run starts with empty buffers."""
    with Nftables() as nft:
        assert nft.run("add table inet x") == ""
        assert nft.run("list tables") == "table inet x\n"
        assert [item for item in nft.run_json("list tables")["nftables"] if "table" in item]
        assert nft.run_json("add table inet y") == {}
        assert nft.run("list tables") == "table inet x\ntable inet y\n"


def test_error_is_the_first_line(space: Namespace) -> None:
    """A refused command raises with nft's first error line, and with the kernel's errno where nft tells it."""
    with Nftables() as nft:
        with pytest.raises(NftablesError, match="No such file or directory") as caught:
            nft.run("add rule inet nowhere x accept")
        assert caught.value.errno == errno.ENOENT
        with pytest.raises(NftablesError, match="syntax error"):
            nft.run("add nonsense\nadd more nonsense")
        assert nft.run("list tables") == ""


def test_context_stays_in_its_namespace(space: Namespace) -> None:
    """A context works on the namespace in which it was made, wherever its thread is."""
    nft = Nftables()
    other = Namespace.create()
    with other:
        nft.run("add table inet x")
        assert tables() == ""
    assert tables() == "table inet x\n"
    other.close()
    nft.close()
    nft.close()
    with pytest.raises(ValueError, match="closed"):
        nft.run("list tables")


def test_no_descriptor_leaks(space: Namespace) -> None:
    """A closed context leaves no descriptor open."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        Nftables().close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_too_many_files_is_an_error() -> None:
    """A descriptor beyond what select(2) can take raises; glibc would abort the process later."""
    done = subprocess.run([sys.executable, "-c", MANY_FILES], capture_output=True, text=True, check=False)
    assert (done.returncode, "too many open files" in done.stdout) == (0, True), done.stderr


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library the error says what to install."""

    def missing(name: str, **_: object) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(LibraryMissing, match="install libnftables1"):
        Nftables()


def test_owned_table_is_protected(space: Namespace) -> None:
    """Others can neither change nor flush the table; its owner can, and removing it leaves nothing."""
    table = OwnedTable(TEXT)
    assert table.name == f"conntracker_{os.getpid()}"
    with Nftables() as other:
        with pytest.raises(NftablesError) as caught:
            other.run(f"delete table inet {table.name}")
        assert caught.value.errno == errno.EPERM
        other.run("flush ruleset")
    table.run(f"add rule inet {table.name} pre counter")
    assert "ct state new counter" in table.run(f"list table inet {table.name}")
    table.remove()
    table.remove()
    assert tables() == ""


def test_taken_name_gets_a_suffix(space: Namespace) -> None:
    """A table of that name is left alone, whoever made it, and ours gets another name."""
    with Nftables() as other:
        other.run(f"add table inet conntracker_{os.getpid()}")
        with OwnedTable(TEXT) as first, OwnedTable(TEXT) as second:
            names = {first.name, second.name, f"conntracker_{os.getpid()}"}
            assert len(names) == 3
            assert all(f"table inet {name}\n" in tables() for name in names)
        assert tables() == f"table inet conntracker_{os.getpid()}\n"


def test_bad_rules_leave_nothing(space: Namespace) -> None:
    """A table with one bad rule is not made at all."""
    with pytest.raises(NftablesError):
        OwnedTable(TEXT + " chain x { tcp dport 22 jump nowhere; }")
    assert tables() == ""


@pytest.mark.parametrize("spawn", [False, True])
def test_table_dies_with_the_process(space: Namespace, *, spawn: bool) -> None:
    """After kill -9 of its owner the table is gone, even while a program that the owner started lives on."""
    command = [sys.executable, "-c", HOLD, TEXT, str(spawn)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    name, child = holder.stdout.readline().split()
    try:
        assert name in tables()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert gone(name)
        assert not spawn or os.path.exists(f"/proc/{child}")
    finally:
        holder.stdout.close()
        if spawn:
            os.kill(int(child), signal.SIGKILL)


def test_forked_child_does_not_keep_it(space: Namespace) -> None:
    """A forked child closes the socket: the table goes when its owner lets go, while the child lives on."""
    table = OwnedTable(TEXT)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        time.sleep(0.1)
        assert table.name in tables()
        table.remove()
        assert gone(table.name)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
