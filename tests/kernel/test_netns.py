"""Network namespaces, against the kernel."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from conntracker.sources.netns import Namespace, enter_user_namespace

HOLD = """
import time
from conntracker.sources.netns import Namespace
space = Namespace.create()
print(space.path, flush=True)
time.sleep(60)
"""


def here() -> int:
    """The namespace of this thread."""
    return os.stat("/proc/thread-self/ns/net").st_ino


def interfaces() -> set[str]:
    """Names of the interfaces where this thread is."""
    return {name for _, name in socket.if_nameindex()}


def test_create_stays_where_it_was() -> None:
    """Making a namespace leaves the thread in its own, and the new one is another with nothing but lo."""
    before = here()
    made = Namespace.create()
    assert here() == before != made.inode
    with made:
        assert interfaces() == {"lo"}
    made.close()
    made.close()


def test_entering_nests() -> None:
    """Namespaces nest, the same one too, and leaving by an exception returns to the one before."""
    before = here()
    first, second = Namespace.create(), Namespace.create()
    with first:
        with first, second:
            assert here() == second.inode
        assert here() == first.inode
        with pytest.raises(KeyError), second:
            raise KeyError
        assert here() == first.inode
    assert here() == before
    first.close()
    second.close()


def test_other_threads_stay(space: Namespace) -> None:
    """Entering moves the calling thread only."""
    seen: list[int] = []
    inside = here()

    def look() -> None:
        with Namespace.create():
            seen.append(here())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert inside == here() == space.inode != seen[0]


def test_find_by_process_and_path(space: Namespace) -> None:
    """A namespace is found by the number of a process in it and by a path to it."""
    for where in (str(os.getpid()), "/proc/thread-self/ns/net", space.path):
        found = Namespace.find(where)
        expected = os.stat(f"/proc/{where}/ns/net" if where.isdigit() else where).st_ino
        assert found.inode == expected
        found.close()


@pytest.mark.parametrize("where", ["", "..", "no-such-name", "4194305", "/dev/null", "/proc/self/ns/uts", "a\0b"])
def test_find_says_what_is_wrong(where: str) -> None:
    """What is no namespace gives one error that is an OSError or ValueError and names it."""
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises((OSError, ValueError), match="namespace"):
        Namespace.find(where)
    assert set(os.listdir("/proc/self/fd")) == before


def test_nothing_left_after_kill(space: Namespace) -> None:
    """After kill -9 of the process that holds it, the namespace and what is in it are gone."""
    names = os.listdir("/run/netns") if Path("/run/netns").exists() else []
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    path = holder.stdout.readline().strip()
    # The kernel removes a veth when the namespace of its peer ends: the one that is left behind tells us.
    subprocess.run(["ip", "link", "add", "witness", "type", "veth", "peer", "name", "x", "netns", path], check=True)
    assert "witness" in interfaces()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    for _ in range(500):
        if "witness" not in interfaces():
            break
        time.sleep(0.01)
    assert "witness" not in interfaces()
    assert (os.listdir("/run/netns") if Path("/run/netns").exists() else []) == names
    holder.stdout.close()


def test_user_namespace_gives_the_rights() -> None:
    """An unprivileged process with one thread can make namespaces after entering a user namespace."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            # A process that changed its ids is not dumpable, and its /proc files are root's: exec would undo that.
            import ctypes

            ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE
            enter_user_namespace()
            with Namespace.create():
                code = 0 if os.getuid() == 0 and interfaces() == {"lo"} else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == 1 and Path("/proc/sys/user/max_user_namespaces").read_text().strip() == "0":
        pytest.skip("user namespaces are not allowed here")
    assert os.waitstatus_to_exitcode(status) == 0


def test_user_namespace_needs_one_thread() -> None:
    """With a second thread the kernel refuses, and the error says why."""
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with pytest.raises(OSError, match="several threads"):
            enter_user_namespace()
    finally:
        stop.set()
        thread.join()
