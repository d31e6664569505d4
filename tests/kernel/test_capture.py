"""The main job: what the kernel's connection tracking saw is what the log says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import conntracker
from conntracker.lab import firewall
from conntracker.lab.bulk import send
from conntracker.lab.plan import plan
from conntracker.lab.topology import Lab
from conntracker.lab.traffic import Traffic
from conntracker.model import Batch, Loss
from conntracker.sources.netns import Namespace
from conntracker.sources.nftables import Nftables
from support.expected import Line, lines_of_flow, lines_of_plan, parse

PROGRAM = [sys.executable, "-m", "conntracker"]


class Running:
    """`conntracker` in a namespace, capturing."""

    def __init__(self, space: Namespace, *arguments: str, ready: str = "capturing") -> None:
        with space:
            self.process = subprocess.Popen(
                [*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        self.said: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if ready in line:
                return
        pytest.fail(f"not ready: {self.said}")

    def end(self, number: int = signal.SIGINT) -> tuple[int, str, str]:
        """(exit code, standard output, standard error) after a signal."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, "".join(self.said) + err


@contextlib.contextmanager
def capturing(space: Namespace, *arguments: str) -> Iterator[Running]:
    """Ends the program whatever happens in the block."""
    running = Running(space, *arguments)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.process.communicate()


def tables(space: Namespace) -> str:
    """Names of the nft tables in a namespace."""
    with space, Nftables() as nft:
        return nft.run("list tables")


def sysctl(space: Namespace, name: str) -> str:
    """A conntrack sysctl in a namespace."""
    with space:
        return Path(f"/proc/sys/net/netfilter/{name}").read_text().strip()


def drive(lab: Lab) -> set[Line]:
    """One round of all traffic; the lines that the log must have for it."""
    with Traffic(lab) as traffic:
        return one_round(traffic)


def one_round(traffic: Traffic) -> set[Line]:
    """The same, with servers that go on listening."""
    return {line for flows in traffic.drive().values() for flow in flows for line in lines_of_flow(flow)}


@pytest.mark.parametrize("ruleset", [firewall.RULESET, None], ids=["firewall", "no-rules"])
def test_the_log_is_the_traffic(ruleset: str | None, tmp_path: Path) -> None:
    """Real traffic of every kind gives exactly its own lines, through NAT or with tracking switched on by us."""
    log = tmp_path / "log"
    with Lab(ruleset) as lab, capturing(lab.router, "-o", str(log)) as running:
        expected = drive(lab)
        code, _, said = running.end()
        assert (code, tables(lab.router).count("conntracker")) == (0, 0)
    assert ("switched on by the private table" in said) == (ruleset is None)
    assert set(parse(log.open())) == expected
    assert log.stat().st_mode & 0o777 == 0o600
    assert " 0 lost" in said


def test_a_fast_mixed_load_is_logged_exactly(tmp_path: Path) -> None:
    """Tens of thousands of flows as fast as they can be made: none missing, none extra, none lost."""
    log, flows = tmp_path / "log", plan(60_000)
    with Lab() as lab, capturing(lab.router, "-o", str(log)) as running:
        sent = send(lab, flows, cpu=0)
        _, _, said = running.end()
    assert (sent.sent, sent.dropped) == (60_000, 0)
    assert " 0 lost" in said, said
    assert set(parse(log.open())) == lines_of_plan(flows)


def test_flows_that_are_older_than_the_capture_are_logged(lab: Lab, tmp_path: Path) -> None:
    """What was open before the start is in the log, and its end is noted though no event says it."""
    expected = drive(lab)
    with capturing(lab.router, "-o", "-") as running:
        _, out, _ = running.end()
    gone = expected - set(parse(out.splitlines(keepends=True)))
    assert {line[4] for line in gone} == {81, 8081}  # refused connections, which the kernel destroys at once


def test_standard_output_has_only_the_log(lab: Lab) -> None:
    """With -o - every line on standard output is a line of the log, and messages are on standard error."""
    with capturing(lab.router, "-o", "-") as running:
        expected = drive(lab)
        _, out, said = running.end(signal.SIGTERM)
    assert set(parse(out.splitlines(keepends=True))) == expected
    assert all(line.startswith("conntracker: ") for line in said.splitlines())


def test_a_filter_leaves_the_rest_out(lab: Lab) -> None:
    """Only flows that meet the filter are logged."""
    with capturing(lab.router, "-o", "-", "--proto", "udp", "--dport", "50-60", "--src", "192.0.2.0/24") as running:
        expected = drive(lab)
        _, out, _ = running.end()
    wanted = {line for line in expected if line[0] == "UDPv4" and 53 in (line[2], line[4]) and "192.0.2.2" in line}
    assert wanted
    assert set(parse(out.splitlines(keepends=True))) == wanted


def test_another_namespace_by_process(lab: Lab) -> None:
    """--netns PID looks into the namespace of that process."""
    with lab.router:
        sleeper = subprocess.Popen(["sleep", "60"])
    try:
        with Namespace.create() as elsewhere, capturing(elsewhere, "-o", "-", "--netns", str(sleeper.pid)) as running:
            expected = drive(lab)
            _, out, _ = running.end()
    finally:
        sleeper.kill()
        sleeper.wait()
    assert set(parse(out.splitlines(keepends=True))) == expected


def test_sigusr1_writes_the_log_and_goes_on(lab: Lab, tmp_path: Path) -> None:
    """The log is there while the capture runs, and is written again at its end."""
    log = tmp_path / "log"
    with capturing(lab.router, "-o", str(log)) as running, Traffic(lab) as traffic:
        expected = one_round(traffic)
        running.process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + 10
        while not log.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert set(parse(log.open())) == expected
        expected |= one_round(traffic)
        running.end()
    assert set(parse(log.open())) == expected


def test_a_loss_is_counted_and_repaired(tmp_path: Path) -> None:
    """With a buffer too small, the drops are the kernel's own, the window is kept, and what lives is in the log."""
    flows, log = plan(20_000), tmp_path / "log"
    with Lab() as lab:
        lab.keep_flows()
        with capturing(lab.router, "-o", str(log), "-w", str(tmp_path / "rec"), "--receive-buffer", "16K") as running:
            send(lab, flows)
            time.sleep(1.5)
            dropped = _drops(running.process.pid)
            _, _, said = running.end()
    assert dropped > 0
    losses = conntracker.open_recording(tmp_path / "rec").losses
    assert sum(loss.events or 0 for loss in losses) == dropped, said
    assert f" {dropped:,} lost" in said
    refused = {i for i, r in enumerate(flows.refused.tolist()) if r}
    missing = lines_of_plan(flows) - set(parse(log.open()))
    assert all(line[4] == 7002 for line in missing)
    assert refused
    assert set(parse(log.open())) <= lines_of_plan(flows)


def _drops(pid: int) -> int:
    """The drops of the process's socket in the kernel's own table: /proc/net/netlink, columns Pid and Drops."""
    rows = [line.split() for line in Path(f"/proc/{pid}/net/netlink").read_text().splitlines()[1:]]
    return sum(int(row[8]) for row in rows if row[1] == "12" and int(row[3], 16))


def test_accounting_is_switched_on_and_put_back(lab: Lab, tmp_path: Path) -> None:
    """Counters are in the recording with --accounting, null without it, and the sysctls are put back."""
    ports = {}
    traffic = Traffic(lab)
    for arguments, counted in (([], False), (["--accounting"], True)):
        rec = tmp_path / f"rec{counted}"
        with capturing(lab.router, "-o", "/dev/null", "-w", str(rec), *arguments) as running:
            assert sysctl(lab.router, "nf_conntrack_acct") == str(int(counted))
            with traffic:
                (flow,) = traffic.tcp(4)
            ports[counted] = flow.sport
            running.end()
        assert [sysctl(lab.router, f"nf_conntrack_{name}") for name in ("acct", "timestamp")] == ["0", "0"]
        with conntracker.open_recording(rec) as recording:
            query = "SELECT packets, bytes, reply_packets, reply_bytes FROM flows WHERE sport = {} AND dport = 80"
            (row,) = recording.sql(query.format(ports[counted])).fetchall()
        if counted:
            assert all(number >= least for number, least in zip(row, (5, 250, 3, 150), strict=True)), row
        else:
            assert row == (None,) * 4


def test_after_kill_nothing_is_left_but_the_sysctl_which_is_repaired(lab: Lab, tmp_path: Path) -> None:
    """kill -9 leaves no table and the old log whole; the next start puts the accounting sysctls back."""
    log = tmp_path / "log"
    log.write_text("the old log\n")
    with Lab(None) as bare, capturing(bare.router, "-o", str(log), "--accounting") as running:
        assert "conntracker" in tables(bare.router)
        running.process.kill()
        running.process.wait()
        assert tables(bare.router) == ""
        assert sysctl(bare.router, "nf_conntrack_acct") == "1"
        assert (log.read_text(), sorted(p.name for p in tmp_path.iterdir())) == ("the old log\n", ["log"])
        with capturing(bare.router, "-o", "-") as second:
            _, _, said = second.end()
        assert "put back to 0" in said
        assert sysctl(bare.router, "nf_conntrack_acct") == "0"
    assert not Path("/run/conntracker").exists()


def test_two_instances_share_the_accounting(lab: Lab) -> None:
    """The sysctl stays on until the last instance that needs it has ended."""
    with capturing(lab.router, "-o", "/dev/null", "--accounting") as first:
        with capturing(lab.router, "-o", "/dev/null", "--accounting") as second:
            first.end()
            assert sysctl(lab.router, "nf_conntrack_acct") == "1"
            second.end()
        assert sysctl(lab.router, "nf_conntrack_acct") == "0"


def test_events_are_streamed(lab: Lab) -> None:
    """`conntracker events --json` prints a new event for each flow, as it happens, until it is told to stop."""
    with capturing(lab.router, "events", "--json") as running:
        expected = drive(lab)
        time.sleep(0.3)
        _, out, _ = running.end()
    rows = [json.loads(line) for line in out.splitlines()]
    new = [row for row in rows if row["event"] == "new"]
    ports = {(row["src"], row["sport"], row["dst"], row["dport"]) for row in new}
    sides = {line[1:] for line in expected if not line[0].startswith("ICMP")}
    assert len(ports & sides) >= len(sides) // 2
    assert {"tcp", "udp", "icmp", "icmpv6", "sctp", "gre", "esp"} <= {row["proto"] for row in new}
    assert all(row["packets"] is None and row["bytes"] is None for row in rows)


def test_events_end_when_nobody_reads(lab: Lab) -> None:
    """A closed pipe ends the stream with exit code 0, without a traceback, also when no event comes."""
    with lab.router:
        process = subprocess.Popen(
            [*PROGRAM, "events"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=0
        )
    assert process.stdout is not None
    assert process.stderr is not None
    while "capturing" not in process.stderr.readline():
        pass
    process.stdout.close()
    assert process.wait(10) == 0
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_the_library_gives_batches(lab: Lab) -> None:
    """`capture` yields batches whose rows are the traffic, and ends on `stop`."""
    seen = 0
    with lab.router, conntracker.capture() as capture:
        flows = [flow for made in _driven(lab) for flow in made]
        for item in capture:
            assert isinstance(item, Batch | Loss)
            seen += len(item) if isinstance(item, Batch) else 0
            capture.stop()
    assert seen >= len(flows)


def _driven(lab: Lab) -> list[list[object]]:
    with Traffic(lab) as traffic:
        return [list(flows) for flows in traffic.drive().values()]


def test_no_enable_refuses() -> None:
    """With --no-enable and tracking off, one line says so, with exit code 3, and nothing is changed."""
    with Lab(None) as lab:
        with lab.router:
            done = subprocess.run([*PROGRAM, "--no-enable", "-o", "-"], capture_output=True, text=True, check=False)
        assert (done.returncode, tables(lab.router)) == (3, "")
    assert done.stderr.count("\n") == 1
    assert "--no-enable" in done.stderr


def test_finished_flows_go_to_disk_and_the_log_is_whole(tmp_path: Path) -> None:
    """Beyond --max-flows finished flows leave memory, and the log is still complete, sorted and numbered."""
    flows, log = plan(12_000), tmp_path / "log"
    with Lab() as lab, capturing(lab.router, "-o", str(log), "--max-flows", "1000") as running:
        send(lab, flows)
        with lab.router:
            subprocess.run(["conntrack", "-F"], check=True, capture_output=True)
        time.sleep(0.5)
        _, _, said = running.end()
    assert "finished ones go to" in said
    assert set(parse(log.open())) == lines_of_plan(flows)
    assert not [name for name in os.listdir("/tmp") if name.startswith("conntracker-") and name in said]  # noqa: S108


def test_tracking_that_goes_away_is_switched_on_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the ruleset that asked for tracking is flushed, that is found out, mended and recorded as a gap."""
    monkeypatch.setattr("conntracker.tracking._QUIET", 300_000)
    monkeypatch.setattr("conntracker.tracking._PROBE_AGAIN", 600_000)
    said: list[str] = []
    with Lab() as lab, lab.router, conntracker.capture(notice=said.append) as capture, Nftables() as nft:
        nft.run("flush ruleset")
        deadline, losses = time.monotonic() + 8, list[Loss]()
        while not losses and time.monotonic() < deadline:
            losses += [item for item in capture.poll(0.2) if isinstance(item, Loss)]
        assert [loss.kind for loss in losses] == ["untracked"], said
        assert any("went away" in line for line in said)
        drive_plain(lab)
        events = [item for item in capture.poll(1.0) if isinstance(item, Batch)]
        assert sum(map(len, events)) > 0


def drive_plain(lab: Lab) -> None:
    """One datagram through a router without rules."""
    with Traffic(lab) as traffic:
        traffic.udp(4)


def test_the_table_of_another_instance_is_joined(tmp_path: Path) -> None:
    """When the instance that switched tracking on ends, the other one goes on seeing flows, and no probe is a flow."""
    with Lab(None) as lab, capturing(lab.router, "-o", "-") as first, capturing(lab.router, "-o", "-") as second:
        assert "joined" in "".join(second.said)
        first.end()
        expected = drive(lab)
        _, out, said = second.end()
    assert set(parse(out.splitlines(keepends=True))) == expected, said


def test_a_signal_before_the_capture_began_puts_everything_back(lab: Lab) -> None:
    """SIGTERM after the first change to the host ends at once, with the sysctls as before."""
    running = Running(lab.router, "-o", "/dev/null", "--accounting", ready="set to 1")
    code, _, said = running.end(signal.SIGTERM)
    assert (code, sysctl(lab.router, "nf_conntrack_acct")) == (0, "0"), said


def test_a_daemons_log_is_where_the_starter_meant(lab: Lab, tmp_path: Path) -> None:
    """A relative file name counts from the directory in which the daemon was started."""
    with lab.router:
        done = subprocess.run(
            [*PROGRAM, "-d", "-o", "rel.log", "--pidfile", "pid", "--duration", "0.3"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    deadline = time.monotonic() + 10
    while not (tmp_path / "rel.log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "rel.log").exists()
    assert not Path("/rel.log").exists()


def test_another_listener_that_is_stuck_makes_no_flows(lab: Lab, tmp_path: Path) -> None:
    """Events that the kernel sends again for a reliable listener that does not read are the same flows."""
    with lab.router:
        stuck = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.setsockopt(270, 4, 1)  # SOL_NETLINK, NETLINK_BROADCAST_ERROR
        stuck.bind((0, 7))
    with stuck, capturing(lab.router, "-o", "-", "-w", str(tmp_path / "rec")) as running, Traffic(lab) as traffic:
        made = [flow for _ in range(100) for flow in traffic.tcp(4)]
        running.end()
    with conntracker.open_recording(tmp_path / "rec") as recording:
        assert recording.sql("SELECT count(*) FROM flows WHERE dport = 80").fetchone() == (len(made),)
