"""The cgroup2 hierarchy, against the kernel, in a cgroup of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from conntracker.sources import cgroups

ELSEWHERE = """
import os, sys
from conntracker.sources import cgroups
{before}
try:
    root = cgroups.open_root()
    print(cgroups.is_whole(root), cgroups.path_of(root, {number}))
except OSError as error:
    print(type(error).__name__, error.strerror)
"""
UNMOUNT = """
import subprocess
for line in open("/proc/self/mountinfo").read().splitlines():
    if " - cgroup2 " in line:
        subprocess.run(["umount", line.split()[4]], check=True)
"""
# PR_CAPBSET_DROP keeps root's rights from coming back; only a program that is executed then has none.
POWERLESS = "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)"


def elsewhere(unshare: list[str], before: str, number: int) -> str:
    """What open_root and path_of answer in other namespaces."""
    code = ELSEWHERE.format(before=before, number=number)
    command = ["unshare", *unshare, sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


@pytest.fixture
def root() -> Iterator[int]:
    """The root of cgroup2."""
    fd = cgroups.open_root()
    yield fd
    os.close(fd)


@pytest.fixture
def own(root: int) -> Iterator[tuple[str, int]]:
    """A cgroup of this test: its path and id."""
    name = f"conntracker test {uuid.uuid4().hex}"
    os.mkdir(name, dir_fd=root)
    try:
        yield f"/{name}", os.stat(name, dir_fd=root).st_ino
    finally:
        os.rmdir(name, dir_fd=root)


def test_root(root: int) -> None:
    """The root is found, is the whole of the hierarchy, and can be opened again by its id."""
    assert cgroups.is_whole(root)
    assert cgroups.id_of(root) == 1
    assert cgroups.path_of(root, 1) == "/"
    assert "cgroup.controllers" in os.listdir(root)


def test_path(root: int, own: tuple[str, int]) -> None:
    """A cgroup's path is found by its id, and is the one that /proc shows."""
    path, number = own
    assert cgroups.path_of(root, number) == path
    below = os.open(path[1:], os.O_RDONLY | os.O_DIRECTORY, dir_fd=root)
    try:
        assert not cgroups.is_whole(below)
        assert cgroups.id_of(below) == number
        assert cgroups.path_of(below, number) == "/"
        assert cgroups.path_of(below, 1) is None
    finally:
        os.close(below)
    procs = os.open(f"{path[1:]}/cgroup.procs", os.O_WRONLY, dir_fd=root)
    child = subprocess.Popen(["sleep", "60"])
    try:
        os.write(procs, str(child.pid).encode())
        assert f"0::{path}" in Path(f"/proc/{child.pid}/cgroup").read_text().splitlines()
    finally:
        child.kill()
        child.wait()
        os.close(procs)


def test_gone(root: int) -> None:
    """A cgroup that was removed has no path, nor has one that never was; no descriptor stays open."""
    name = f"conntracker-{uuid.uuid4().hex}"
    os.mkdir(name, dir_fd=root)
    number = os.stat(name, dir_fd=root).st_ino
    os.rmdir(name, dir_fd=root)
    before = os.listdir("/proc/self/fd")
    assert cgroups.path_of(root, number) is None
    assert cgroups.path_of(root, 2**50) is None
    assert cgroups.path_of(root, 0) is None
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.needs("unshare", "umount")
def test_private_mount(own: tuple[str, int]) -> None:
    """Where cgroup2 is mounted nowhere, a private mount does as well."""
    assert elsewhere(["--mount"], UNMOUNT, own[1]) == f"True {own[0]}"


@pytest.mark.needs("unshare")
def test_cgroup_namespace(own: tuple[str, int], root: int) -> None:
    """In a cgroup namespace, what can be reached through the host's mount is the whole; a mount made there is not."""
    procs = str(Path(os.readlink(f"/proc/self/fd/{root}")) / own[0][1:] / "cgroup.procs")
    enter = f"import ctypes; open({procs!r}, 'w').write(str(os.getpid())); ctypes.CDLL(None).unshare(0x02000000)"
    assert elsewhere(["--mount"], enter, own[1]) == f"True {own[0]}"
    assert elsewhere(["--mount"], enter + UNMOUNT, own[1]) == "False /"


@pytest.mark.needs("unshare", "umount")
def test_without_rights(own: tuple[str, int]) -> None:
    """Without CAP_SYS_ADMIN the error names it where cgroup2 is not mounted; where it is, paths are not known."""
    said = elsewhere(["--mount"], UNMOUNT + POWERLESS, own[1])
    assert said.startswith("PermissionError")
    assert "CAP_SYS_ADMIN" in said
    assert elsewhere(["--mount"], POWERLESS, own[1]) == "True None"
