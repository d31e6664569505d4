"""The lab and `conntracker lab`, with conntrack(8) as the oracle."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conntracker.cli.main import main
from conntracker.lab import firewall
from conntracker.lab.topology import Lab
from conntracker.lab.traffic import ExpectedFlow, Traffic
from conntracker.sources.netns import Namespace, enter_user_namespace
from conntracker.sources.nftables import NftablesError

Table = Callable[[Lab], list[object]]
AsRow = Callable[[ExpectedFlow], object]
Events = Callable[[Lab, Callable[[], None]], list[tuple[str, object]]]

RUN = "import sys; from conntracker.cli.main import main; sys.exit(main(['lab', *sys.argv[1:]]))"

HOLD = """
import time
from conntracker.lab.topology import Lab
lab = Lab().__enter__()
print(lab.router.path, flush=True)
time.sleep(60)
"""


def everything(lab: Lab, rounds: int = 1) -> list[ExpectedFlow]:
    """All flows of some rounds of all traffic."""
    with Traffic(lab) as traffic:
        return [flow for _ in range(rounds) for flows in traffic.drive().values() for flow in flows]


def host() -> tuple[object, ...]:
    """What a lab might leave behind where this process is: interfaces, names, rules, forwarding."""
    names = sorted(os.listdir("/run/netns")) if Path("/run/netns").exists() else []
    forwarding = [Path(f"/proc/sys/net/{name}").read_text() for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding")]
    return sorted(socket.if_nameindex()), names, forwarding


def start(*arguments: str) -> subprocess.Popen[str]:
    """`conntracker lab` with these arguments."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`conntracker lab` with these arguments, until it ends."""
    return subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.needs("conntrack")
@pytest.mark.parametrize("ruleset", [firewall.RULESET, firewall.CONNTRACK_ONLY], ids=["firewall", "conntrack-only"])
def test_traffic_is_what_the_kernel_tracks(ruleset: str, table: Table, as_row: AsRow) -> None:
    """The router's table has the expected flows and no other, but those that the kernel destroys at once."""
    with Lab(ruleset) as lab:
        lab.keep_flows()
        expected = everything(lab, rounds=3)
        assert lab.dropped() == 0
        assert sorted(map(str, table(lab))) == sorted({str(as_row(flow)) for flow in expected if not flow.refused})


@pytest.mark.needs("conntrack")
def test_events_show_every_flow(lab: Lab, events: Events, as_row: AsRow) -> None:
    """Every expected flow sends one NEW event, and the refused ones a DESTROY at once."""
    expected: list[ExpectedFlow] = []
    seen = events(lab, lambda: expected.extend(everything(lab)))
    identity = [as_row(flow)[:9] for flow in expected]  # type: ignore[index]
    refused = [as_row(flow)[:9] for flow in expected if flow.refused]  # type: ignore[index]
    assert sorted(row[:9] for kind, row in seen if kind == "NEW") == sorted(identity)  # type: ignore[index]
    assert sorted(row[:9] for kind, row in seen if kind == "DESTROY") == sorted(refused)  # type: ignore[index]


def test_every_kind_is_there(lab: Lab) -> None:
    """The traffic has the four protocols of the log in both IP versions, NAT of both kinds, answered and unanswered."""
    flows = everything(lab)
    protocols = {(flow.proto, ":" in flow.src) for flow in flows}
    assert protocols >= {
        (6, False),
        (17, False),
        (1, False),
        (6, True),
        (17, True),
        (58, True),
        (47, False),
        (132, True),
    }
    assert {flow.replied for flow in flows} == {True, False}
    assert any(flow.reply_dst != flow.src for flow in flows)
    assert any(flow.reply_src != flow.dst for flow in flows)


@pytest.mark.needs("conntrack")
def test_no_rules_no_tracking(table: Table) -> None:
    """Without a ruleset the traffic flows and the router tracks none of it."""
    with Lab(None) as lab:
        assert len(everything(lab)) > 20
        assert table(lab) == []


def test_bad_ruleset_leaves_nothing() -> None:
    """A ruleset that nft refuses raises, and the half-built lab is let go of."""
    before = host(), len(os.listdir("/proc/self/fd"))
    with pytest.raises(NftablesError), Lab("table inet x { nonsense }"):
        pass
    assert (host(), len(os.listdir("/proc/self/fd"))) == before


def test_lab_leaves_nothing(lab: Lab) -> None:
    """A lab changes nothing where it was started, while it is there and after an exception in it."""
    before = host(), len(os.listdir("/proc/self/fd"))
    with contextlib.suppress(KeyError), Lab() as other:
        everything(other)
        assert host() == before[0]
        raise KeyError
    assert (host(), len(os.listdir("/proc/self/fd"))) == before


def test_killed_lab_leaves_nothing(space: Namespace) -> None:
    """After kill -9 of the process that built it, the kernel takes the lab down."""
    before = host()
    with start_holder() as holder:
        assert holder.stdout is not None
        path = holder.stdout.readline().strip()
        # The kernel removes a veth when the namespace of its peer ends: the one that is left behind tells us.
        subprocess.run(["ip", "link", "add", "witness", "type", "veth", "peer", "name", "x", "netns", path], check=True)
        holder.kill()
    deadline = time.monotonic() + 5
    while host() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert host() == before


def start_holder() -> subprocess.Popen[str]:
    """A process that holds a lab until it is killed."""
    return subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)


def test_works_without_root() -> None:
    """An unprivileged process builds the lab and drives all traffic inside a user namespace."""
    if Path("/proc/sys/user/max_user_namespaces").read_text().strip() == "0":
        pytest.skip("user namespaces are not allowed here")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            import ctypes

            ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE, lost with the change of ids: /proc/self is root's without
            enter_user_namespace()
            with Lab() as lab:
                code = 0 if len(everything(lab)) > 30 else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_command_prints_the_traffic() -> None:
    """Without a command, `conntracker lab` prints one line a flow."""
    done = run("--flows", "500")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 30
    assert "sent 500 flows" in done.stderr


def test_command_runs_on_the_router() -> None:
    """The command starts on the router before the traffic, gets SIGINT after it, and its exit code is the lab's."""
    script = (
        "import signal, socket, sys, time; print('capturing', file=sys.stderr, flush=True)\n"
        "try: time.sleep(30)\n"
        "except KeyboardInterrupt: print([n for _, n in socket.if_nameindex()]); sys.exit(7)"
    )
    done = run("--", sys.executable, "-c", script)
    assert (done.returncode, done.stdout) == (7, "['lo', 'client', 'server']\n"), done.stderr
    assert "capturing" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--rounds", "-1"], 2, "from 0 on"),
        (["--", "no-such-program"], 2, "no-such-program: No such file or directory"),
        (["--flows", "99999999"], 2, "a load has 0 to 2,000,000 flows"),
        (["--", "sh", "-c", "exit 3"], 3, ""),
    ],
)
def test_command_fails_in_one_line(arguments: list[str], code: int, message: str) -> None:
    """What goes wrong is one line and an exit code, and a command that fails at once ends the lab with its own."""
    done = run(*arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert message in done.stderr


def test_missing_ip_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without ip(8) the command says what to install, with exit code 3."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["lab"]) == 3
    assert capsys.readouterr().err == "conntracker: ip is missing: install iproute2\n"


def test_hold_until_interrupted() -> None:
    """--hold says how to look into each namespace, and Ctrl-C ends it with 0."""
    with start("--hold") as process:
        assert process.stdout is not None
        line = process.stdout.readline().split()
        looked = subprocess.run([*line[1:3], "ip", "-br", "addr"], capture_output=True, text=True, check=False)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    if Path("/usr/bin/nsenter").exists():
        assert "192.0.2.2" in looked.stdout, looked.stderr


def test_killed_command_line_takes_its_command_along() -> None:
    """After kill -9 of `conntracker lab`, the command that it started ends too."""
    script = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"
    with start("--", sys.executable, "-c", script) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]
