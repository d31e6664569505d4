"""What `conntracker -b` leaves of its BPF programs: nothing, however it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conntracker.sources.netns import Namespace
from kernel.owners.bpf_objects import Objects, alive, gone, held, names
from kernel.owners.capture import Run
from kernel.owners.cgroup import needed_cgroup

ENDINGS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV]


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A directory of cgroup2 for the test alone."""
    with needed_cgroup("conntracker-detach") as path:
        yield path


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A network namespace with loopback and connection tracking."""
    space = Namespace.create()
    rules = "table inet t { chain c { type filter hook output priority 0; ct state new counter; }; }"
    with space:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=10)
        subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True, timeout=10)
    yield space
    space.close()


def traffic(space: Namespace) -> None:
    """Some connections that are refused, and datagrams that nobody takes."""
    with space:
        for port in range(1, 6):
            with socket.socket() as sock:
                assert sock.connect_ex(("127.0.0.1", port))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"x", ("127.0.0.1", port))


def objects_of(run: Run) -> Objects:
    """What the process has, which must be something, and ours by name."""
    objects = held(run.process.pid)
    assert {kind for kind, _ in objects} == {"prog", "map", "link"}, run.said
    assert all(name.startswith("ct_") for name in names(objects))
    assert not gone_already(objects)
    return objects


def gone_already(objects: Objects) -> Objects:
    """Those that the kernel does not have."""
    return {(kind, number) for kind, number in objects if number not in alive(kind)}


def by_bpftool(objects: Objects) -> Objects:
    """Those that bpftool(8) shows; none where it is not installed."""
    if shutil.which("bpftool") is None:
        return set()
    found = set()
    for kind in ("prog", "map", "link"):
        done = subprocess.run(["bpftool", "-j", kind, "show"], capture_output=True, text=True, check=True, timeout=20)
        found |= {(kind, one["id"]) for one in json.loads(done.stdout or "[]")}
    return objects & found


def mounts() -> list[str]:
    """The lines of this process's mounts of cgroup2 and bpf."""
    with open("/proc/self/mounts") as file:
        return [line for line in file if line.split()[2] in ("cgroup2", "bpf")]


@pytest.mark.needs("nft")
@pytest.mark.parametrize("number", ENDINGS, ids=[number.name for number in ENDINGS])
def test_nothing_is_left(host: Namespace, cgroup: str, tmp_path: Path, number: signal.Signals) -> None:
    """However it ends, no program, map or link of it is left, no mount and no cgroup."""
    before = mounts()
    run = Run(host, tmp_path / "recording", cgroup)
    try:
        objects = objects_of(run)
        traffic(host)
        assert mounts() == before
        run.process.send_signal(number)
        run.process.wait(20)
    finally:
        run.kill()
    assert gone(objects) == set()
    assert by_bpftool(objects) == set()
    assert mounts() == before
    assert [path for path in Path(cgroup).iterdir() if path.is_dir()] == []


@pytest.mark.needs("nft")
def test_programs_go_where_the_cgroup_went(host: Namespace, tmp_path: Path) -> None:
    """A cgroup that is removed while its sockets are watched does not disturb: the capture goes on and ends well."""
    with needed_cgroup("conntracker-removed") as path:
        run = Run(host, tmp_path / "recording", path)
        objects = objects_of(run)
    try:
        traffic(host)
        time.sleep(0.5)
        assert run.end() == 0, run.said
    finally:
        run.kill()
    assert gone(objects) == set()


@pytest.mark.needs("nft")
def test_on_the_whole_host(host: Namespace, tmp_path: Path) -> None:
    """On the root of cgroup2 the same; of a connection that is refused, nobody is named as the one who refused it."""
    run = Run(host, tmp_path / "recording", None)
    try:
        objects = objects_of(run)
        traffic(host)
        time.sleep(0.5)
        assert run.end() == 0, run.said
    finally:
        run.kill()
    assert gone(objects) == set()
    answers = [(flow.answers["client"], flow.answers["server"]) for flow in run.flows() if flow.proto in (6, 17)]
    assert len(answers) == 10, run.said
    assert {client.pids for client, _ in answers} == {(os.getpid(),)}
    assert {server.kind for _, server in answers} == {None}, run.said
