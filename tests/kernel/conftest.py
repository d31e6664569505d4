"""What every test of this directory needs: rights over network namespaces, and conntrack(8) as the oracle.

Where something is missing, a test is skipped with the reason; where the environment says CI, it fails instead, so that
no run passes without having tested anything.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from conntracker.lab.topology import Lab
from conntracker.sources.netns import Namespace

if TYPE_CHECKING:
    from conntracker.lab.traffic import ExpectedFlow

Row = tuple[int, str, int, str, int, str, int, str, int, bool, int | None, int | None]

FIELD = re.compile(r"(\w+)=(\S+)")


def pytest_configure(config: pytest.Config) -> None:
    """The marker of tests that run other programs."""
    config.addinivalue_line("markers", "needs(*programs): programs that must be installed")


def _missing(programs: list[str]) -> str | None:
    for program in programs:
        if shutil.which(program) is None:
            return f"{program} is not installed"
    try:
        Namespace.create().close()
    except OSError as error:
        return f"{error.strerror}: run as root"
    return None


@pytest.fixture(autouse=True)
def _kernel(request: pytest.FixtureRequest) -> None:
    programs = [program for mark in request.node.iter_markers("needs") for program in mark.args]
    reason = _missing(["ip", *programs])
    if reason is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture
def space() -> Iterator[Namespace]:
    """A network namespace with the test inside it."""
    made = Namespace.create()
    with made:
        yield made
    made.close()


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The lab with its own firewall; flows stay in the router's table."""
    with Lab() as made:
        made.keep_flows()
        yield made


def row_of(line: str) -> Row:
    """One line of `conntrack -o extended`, without the event in front, as numbers and text."""
    words = line.split()
    fields = FIELD.findall(line)

    def both(name: str) -> list[str]:
        return [value for key, value in fields if key == name]

    sources, destinations = both("src"), both("dst")
    source_ports = [int(port) for port in both("sport") or both("id")] or [0, 0]
    destination_ports = [int(port) for port in both("dport")] or [0, 0]
    kind, code = both("type"), both("code")
    return (
        int(words[3]), sources[0], source_ports[0], destinations[0], destination_ports[0],
        sources[1], source_ports[1], destinations[1], destination_ports[1],
        "[UNREPLIED]" not in line, int(kind[0]) if kind else None, int(code[0]) if code else None,
    )  # fmt: skip


@pytest.fixture
def table() -> Callable[[Lab], list[Row]]:
    """The router's connection tracking table, as conntrack(8) lists it."""

    def read(lab: Lab) -> list[Row]:
        rows = []
        for family in ("ipv4", "ipv6"):
            command = ["conntrack", "-L", "-f", family, "-o", "extended"]
            with lab.router:
                text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            rows += [row_of(line) for line in text.splitlines()]
        return rows

    return read


@pytest.fixture
def events() -> Callable[[Lab, Callable[[], None]], list[tuple[str, Row]]]:
    """The conntrack events of the router while a function runs, as conntrack(8) shows them: (kind, row)."""

    def watch(lab: Lab, traffic: Callable[[], None]) -> list[tuple[str, Row]]:
        command = ["conntrack", "-E", "-e", "NEW,DESTROY", "-o", "extended"]
        # To a file: conntrack(8) would wait for a reader of a pipe, and the kernel drop events meanwhile.
        with tempfile.TemporaryFile("w+") as output:
            with lab.router:
                process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
            try:
                _wait_for_listener(process.pid)
                traffic()
                _wait_until_written(output.fileno())
            finally:
                process.terminate()
                process.wait()
            output.seek(0)
            found = [line.strip().partition("] ") for line in output]
        return [(kind.strip("[ "), row_of(rest)) for kind, _, rest in found]

    return watch


def _wait_for_listener(pid: int) -> None:
    """Until a socket of NETLINK_NETFILTER (12) with multicast groups is there in the namespace of the process."""
    for _ in range(500):
        with open(f"/proc/{pid}/net/netlink") as file:
            rows = [line.split() for line in file.read().splitlines()[1:]]
        if any(row[1] == "12" and int(row[3], 16) for row in rows):
            return
        time.sleep(0.01)
    pytest.fail("conntrack -E does not listen")


def _wait_until_written(fd: int) -> None:
    """Until a file has not grown for a third of a second."""
    size = -1
    while size != os.fstat(fd).st_size:
        size = os.fstat(fd).st_size
        time.sleep(0.3)


@pytest.fixture
def as_row() -> Callable[[ExpectedFlow], Row]:
    """An expected flow in the oracle's form."""

    def convert(flow: ExpectedFlow) -> Row:
        return (
            flow.proto, flow.src, flow.sport, flow.dst, flow.dport, flow.reply_src, flow.reply_sport, flow.reply_dst,
            flow.reply_dport, flow.replied, flow.icmp_type, flow.icmp_code,
        )  # fmt: skip

    return convert
