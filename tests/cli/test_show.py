from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.cli import show
from conntracker.cli.main import main
from conntracker.cli.times import parse_time
from conntracker.model import IPS_SEEN_REPLY, UNKNOWN, Loss
from conntracker.recording.schema import RAW_COLUMNS
from conntracker.recording.writer import RecordingWriter
from support.owners import CURL, NGINX, owned
from support.traces import record, row, tcp

NOON = 1_767_268_800 * 10**6


def raw(number: int, proto: int, src: str, dst: str, sport: int, dport: int, count: int = UNKNOWN) -> dict[str, int]:
    """One flow without NAT that had a reply."""
    row = dict.fromkeys(RAW_COLUMNS, 0) | {"flow": number, "proto": proto, "family": ip_address(src).version}
    for side, source, destination in (("", src, dst), ("reply_", dst, src)):
        for end, address in (("src", int(ip_address(source))), ("dst", int(ip_address(destination)))):
            row[f"{side}{end}_hi"], row[f"{side}{end}_lo"] = address >> 64, address & 2**64 - 1
    row |= {"sport": sport, "dport": dport, "reply_sport": dport, "reply_dport": sport, "status": IPS_SEEN_REPLY}
    row |= dict.fromkeys(("packets", "bytes", "reply_packets", "reply_bytes"), count)
    return row | {"tcp_state": 3 if proto == 6 else 255, "start": -1, "end": -1, "first_seen": NOON, "last_seen": NOON}


ROWS = (
    raw(0, 6, "10.0.0.10", "10.0.0.2", 40000, 80, 3000),
    raw(1, 17, "10.0.0.9", "10.0.0.2", 5000, 53, 70),
    raw(2, 6, "10.0.0.9", "10.0.0.2", 40000, 80),
    raw(3, 1, "10.0.0.9", "8.8.4.4", 7, 8 << 8),
    raw(4, 6, "fd00::1", "fd00::2", 40000, 22, 10),
)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A recording of five flows in two segments."""
    with RecordingWriter(tmp_path / "rec", host="gate", start=NOON) as writer:
        for rows in (ROWS[:3], ROWS[3:]):
            writer.append({name: np.array([row[name] for row in rows], kind) for name, kind in RAW_COLUMNS.items()})
        writer.close(NOON + 10**6)
    return tmp_path / "rec"


def run(*words: str | Path) -> int:
    """The exit code of `conntracker show` with these words."""
    return main(["show", *map(str, words)])


def test_table(recording: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without options the flows are a table, as wide as the terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    assert run("-r", recording) == 0
    out, err = capfdbinary.readouterr()
    assert err == b""
    assert max(map(len, out.splitlines())) <= 80
    head, first = out.splitlines()[:2]
    assert head.split() == [b"proto", b"src", b"sport", b"dst", b"dport", b"first_seen", b"bytes"]
    assert first.split()[:5] == [b"tcp", b"10.0.0.10", b"40000", b"10.0.0.2", b"80"]
    assert first.endswith(b"  2.9 KiB")


def test_a_pipe_has_all_columns(
    recording: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no terminal, no column is left out."""
    monkeypatch.delenv("COLUMNS", raising=False)
    assert run("-r", recording) == 0
    head = capfdbinary.readouterr().out.splitlines()[0]
    assert {b"state", b"packets", b"reply_bytes", b"last_seen"} <= set(head.split())


def test_a_missing_segment_is_told(recording: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A gap in the numbers of the segments is said, with exit code 2."""
    (recording / "flows-000001.parquet").rename(recording / "flows-000002.parquet")
    assert run("-r", recording) == 2
    assert "flows-000001.parquet: missing" in capfd.readouterr().err


def test_json(recording: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """--json gives an object a line, with the keys of a flow."""
    assert run("-r", recording, "--json", "--proto", "icmp") == 0
    (line,) = capfdbinary.readouterr().out.splitlines()
    assert json.loads(line) == {
        "family": 4, "proto": "icmp", "src": "10.0.0.9", "sport": None, "dst": "8.8.4.4", "dport": None,
        "reply_src": "8.8.4.4", "reply_sport": None, "reply_dst": "10.0.0.9", "reply_dport": None, "icmp_type": 8,
        "icmp_code": 0, "zone": 0, "mark": 0, "state": None, "replied": True, "packets": None,
        "bytes": None, "reply_packets": None,
        "reply_bytes": None, "start": None, "end": None, "end_seen": False, "host": "gate", "flow": 3,
        "first_seen": "2026-01-01T12:00:00.000000Z", "last_seen": "2026-01-01T12:00:00.000000Z", "offloaded": False,
        "owner": None, "peer_owner": None,
    }  # fmt: skip


def test_log(recording: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """--format log is the text log: both directions, sorted by number."""
    assert run("-r", recording, "--format", "log", "--dst", "10.0.0.2,8.8.4.4", "--src", "10.0.0.9,10.0.0.10") == 0
    assert capfdbinary.readouterr().out.decode().splitlines() == [
        " TCPv4 [           0] src = 10.0.0.2 (port=80) to dst = 10.0.0.9 (port=40000) (-)",
        " TCPv4 [           1] src = 10.0.0.2 (port=80) to dst = 10.0.0.10 (port=40000) (-)",
        " TCPv4 [           2] src = 10.0.0.9 (port=40000) to dst = 10.0.0.2 (port=80) (-)",
        " TCPv4 [           3] src = 10.0.0.10 (port=40000) to dst = 10.0.0.2 (port=80) (-)",
        " UDPv4 [           0] src = 10.0.0.2 (port=53) to dst = 10.0.0.9 (port=5000) (-)",
        " UDPv4 [           1] src = 10.0.0.9 (port=5000) to dst = 10.0.0.2 (port=53) (-)",
        "ICMPv4 [           0] src = 10.0.0.9 to dst = 8.8.4.4 (type=8 | code=0)",
    ]


def test_log_with_steps(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """The log of a recording with traces has the steps under each direction; with -e also what never was a flow."""
    packet, dropped = tcp("10.0.0.1", 40000, "10.0.0.2", 80), tcp("10.0.0.9", 1, "10.0.0.2", 443)
    known = {"status": 0}
    for name, everything in (("all", True), ("known", False)):
        path = record(
            tmp_path / name, [known], [row(packet), row(dropped, path=2)], trace={"everything": everything}
        )  # fmt: skip
        assert run("-r", path, "--format", "log") == 0
        lines = capfdbinary.readouterr().out.decode().splitlines()
        assert lines[:2] == [
            " TCPv4 [           0] src = 10.0.0.1 (port=40000) to dst = 10.0.0.2 (port=80) (-)",
            "\t\t\t\ttable: filter, chain: FORWARD, type: policy",
        ]
        assert (len(lines) > 2) == everything
    assert run("-r", tmp_path / "all", "--format", "log") == 0
    assert " TCPv4 [           1] src = 10.0.0.9 (port=1)" in capfdbinary.readouterr().out.decode()


def test_groups(recording: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Who talks to whom, in one command."""
    assert run("-r", recording, "--json", "--group-by", "dst,dport,proto", "--limit", "2") == 0
    lines = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [(line["dst"], line["dport"], line["flows"], line["bytes"]) for line in lines] == [
        ("10.0.0.2", 80, 2, 3000),
        ("10.0.0.2", 53, 1, 70),
    ]


@pytest.mark.parametrize("sort", [["--sort=-bytes"], ["--sort", "-bytes"]])
def test_sort_and_limit(recording: Path, capfdbinary: pytest.CaptureFixture[bytes], sort: list[str]) -> None:
    """--sort orders, downwards with '-' before the name, and --limit cuts."""
    assert run("-r", recording, "--json", *sort, "--limit", "2") == 0
    assert [json.loads(line)["flow"] for line in capfdbinary.readouterr().out.splitlines()] == [0, 1]


def test_owners_in_the_table(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With owners the table names the processes at both ends, rather than times and counters where it is narrow."""
    path = owned(tmp_path / "rec")
    monkeypatch.setenv("COLUMNS", "80")
    assert run("-r", path, "--sort=process") == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split() == ["proto", "src", "sport", "dst", "dport", "process", "peer_process"]
    assert lines[-1].split()[-2:] == ["-", "-"]
    assert [line.split()[5] for line in lines[1:4]] == ["(forwarded)", "curl[5057]", "curl[5057]"]
    assert max(map(len, lines)) <= 80
    monkeypatch.setenv("COLUMNS", "60")
    assert run("-r", path) == 0
    assert capfd.readouterr().out.splitlines()[0].split()[-2:] == ["dport", "process"]


def test_no_owner_known(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Where no owner is known the table has no columns for them."""
    assert run("-r", owned(tmp_path / "rec", owners={})) == 0
    assert "process" not in capfd.readouterr().out


def test_owners_in_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In JSON a flow's owners are objects with the keys of an owner."""
    assert run("-r", owned(tmp_path / "rec"), "--json", "--process", "curl", "--sort=flow", "--limit", "1") == 0
    (line,) = map(json.loads, capfd.readouterr().out.splitlines())
    assert list(line["owner"]) == list(CURL.json())
    assert line["owner"] == CURL.json() | {"start": "2026-01-01T12:00:00.000001Z"}
    assert line["peer_owner"] == NGINX.json() | {"start": "2026-01-01T11:59:59.999999Z"}


def test_which_program_talks_to_whom(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By process there are flows and bytes of each program, and whom it talks to, within the width of a terminal."""
    path = owned(tmp_path / "rec")
    monkeypatch.setenv("COLUMNS", "80")
    assert run("-r", path, "--group-by", "process") == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split() == ["process", "flows", "sent_bytes", "received_bytes", "peers"]
    assert lines[2].split() == ["curl", "3", "210", "B", "1014", "B", "93.184.216.34:443", "+1"]
    assert [line.split()[:2] for line in lines[3:]] == [["(forwarded)", "1"], ["(kernel)", "1"], ["-", "1"]]
    assert max(map(len, lines)) <= 80
    monkeypatch.delenv("COLUMNS")
    assert run("-r", path, "--group-by", "process", "--sort=-received_bytes", "--limit", "1") == 0
    head, row = capfd.readouterr().out.splitlines()
    assert head.split()[-1] == "peers"
    assert row.endswith("  93.184.216.34:443, nginx (127.0.0.1:80)")


def test_a_table_says_what_kind_of_owner_only_where_that_differs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where all owners are processes the table does not say so in each row, unless it was asked; JSON always does."""
    path = owned(tmp_path / "rec")
    for words, shown in (
        (["user"], True),
        (["user", "--user", "alice"], False),
        (["user,kind", "--user", "alice"], True),
        (["user", "--user", "alice", "--json"], True),
    ):
        assert run("-r", path, "--group-by", *words) == 0
        assert ("kind" in capfd.readouterr().out.splitlines()[0]) == shown


def test_containers_are_shown_by_twelve_digits(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A container's id is as long in a table as docker(1) prints it, and whole in JSON."""
    path = owned(tmp_path / "rec")
    assert run("-r", path, "--group-by", "container", "--container", "01") == 0
    assert capfd.readouterr().out.splitlines()[1].split()[0] == "0123456789ab"
    assert run("-r", path, "--group-by", "container", "--container", "01", "--json") == 0
    assert json.loads(capfd.readouterr().out)["container"] == "0123456789ab" + "0" * 52


def test_sides_in_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In JSON the list of peers is whole; together with columns of flows there is none."""
    path = owned(tmp_path / "rec")
    assert run("-r", path, "--group-by", "process", "--json", "--limit", "1") == 0
    (line,) = map(json.loads, capfd.readouterr().out.splitlines())
    assert list(line) == [
        "process", "kind", "flows", "sent_bytes", "received_bytes", "sent_packets", "received_packets", "first_seen",
        "last_seen", "peers",
    ]  # fmt: skip
    assert (line["kind"], len(line["peers"])) == ("process", 5)
    assert run("-r", path, "--group-by", "user,dport", "--json") == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(row["user"], row["dport"], row["flows"]) for row in rows][:2] == [("33", 80, 3), ("alice", 443, 2)]
    assert "peers" not in rows[0]


@pytest.mark.parametrize(
    ("words", "flows"),
    [
        (["--process", "curl"], 3),
        (["--process", "77"], 4),
        (["--user", "alice", "--dport", "443"], 2),
        (["--unit", "nginx"], 4),
        (["--container", "0123"], 4),
        (["--process", "(forwarded)"], 1),
        (["--user", "nobody"], 0),
    ],
)
def test_owner_filters(tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], flows: int) -> None:
    """Flows are selected by who has either end, in every format."""
    path = owned(tmp_path / "rec")
    assert run("-r", path, "--json", *words) == 0
    assert len(capfd.readouterr().out.splitlines()) == flows
    assert run("-r", path, "--format", "log", *words) == 0
    assert bool(capfd.readouterr().out) == bool(flows)


@pytest.mark.parametrize("command", [["-f"], ["events"], ["blame"]])
@pytest.mark.parametrize("option", ["--process", "--user", "--unit", "--container"])
def test_only_recordings_know_owners(capfd: pytest.CaptureFixture[str], command: list[str], option: str) -> None:
    """Where flows come from the kernel a condition on owners is refused in one line."""
    assert main([*command, option, "x"]) == 2
    assert capfd.readouterr() == (
        "", f"conntracker: only recordings know owners: {option} goes with show -r and blame -r\n",
    )  # fmt: skip


def test_to_file(recording: Path, tmp_path: Path) -> None:
    """-o writes a file for its owner only, whole; a symbolic link in its place is replaced, not followed."""
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "out").symlink_to(tmp_path / "victim")
    assert run("-r", recording, "--json", "-o", tmp_path / "out") == 0
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "out").is_symlink()
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600
    assert len((tmp_path / "out").read_text().splitlines()) == 5
    assert sorted(os.listdir(tmp_path)) == ["out", "rec", "victim"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "99999"], "--port: '99999' is not a port (0-65535)"),
        (["--since", "tomorrowish"], "--since: 'tomorrowish' is not a time"),
        (["--sort", "nope"], "--sort: no column 'nope'; there are: proto, src"),
        (["--group-by", "dst,nope"], "--group-by: no column 'nope'; there are: process, user"),
        (["--limit", "-1"], "--limit: -1 is less than 0"),
        (["--format", "log", "--sort", "src"], "--sort does not go with --format log"),
        (["--group-by", "process,nope"], "--group-by: no column 'nope'; there are: process, user"),
        (["--format", "log", "--group-by", "process"], "--group-by does not go with --format log"),
        (["--process", "a,,b"], "--process: a part of 'a,,b' is empty"),
        (["--sort", "src_lo"], "--sort: no column 'src_lo'"),
        (["--sort", "-nope"], "--sort: no column 'nope'"),
        (["--sort", "--json"], "argument --sort: expected one argument"),
        (["--group-by", "peer_process"], "--group-by: no column 'peer_process'"),
        (["-o", "/nowhere/file"], "/nowhere/file: No such file or directory"),
    ],
)
def test_bad_options(recording: Path, capfd: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    """A bad option is one line that names it, and exit code 2."""
    assert run("-r", recording, *words) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"conntracker: {message}")
    assert err.count("\n") == 1
    assert len(err) < 430


def test_not_a_recording(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A directory that is no recording, and one that is not there, are one line each."""
    assert run("-r", tmp_path) == 2
    assert run("-r", tmp_path / "missing") == 2
    assert capfd.readouterr().err.splitlines() == [
        f"conntracker: {tmp_path}: not a recording (no meta.json, no segments)",
        f"conntracker: {tmp_path}/missing: No such file or directory",
    ]


def test_cut_short(recording: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a recording cut short the rest is shown, the damage named, and the exit code is 2."""
    segment = recording / "flows-000002.parquet"
    segment.write_bytes(segment.read_bytes()[:-9])
    assert run("-r", recording, "--json") == 2
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 3
    assert err == f"conntracker: left out {segment}: cut short\n"


def test_losses_are_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A recording with losses says so, every time."""
    with RecordingWriter(tmp_path / "rec") as writer:
        losses = tuple(Loss(NOON, NOON + 5, kind, 17) for kind in ("events", "untracked", "traces"))
        writer.update_meta(losses=losses)
    assert run("-r", tmp_path / "rec") == 0
    err = capfd.readouterr().err
    assert "17 events were lost" in err
    assert "connection tracking was off" in err
    assert "17 trace messages were lost" in err


def test_closed_pipe(recording: Path) -> None:
    """When the reader of the output goes away it stops with one line and exit code 0."""
    command = [sys.executable, "-m", "conntracker", "show", "-r", str(recording), "--json"]
    reading, writing = os.pipe()
    os.close(reading)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=env, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "conntracker: the output was closed before everything was written\n")


NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-01T12:00Z", "2026-01-01T12:00:00+00:00"),
        ("2026-01-01 12:00:00.5+01:00", "2026-01-01T11:00:00.500000+00:00"),
        ("now", "2026-03-04T03:06:07+00:00"),
        ("10m", "2026-03-04T02:56:07+00:00"),
        ("90s ago", "2026-03-04T03:04:37+00:00"),
        ("2h", "2026-03-04T01:06:07+00:00"),
        ("1d", "2026-03-03T03:06:07+00:00"),
    ],
)
def test_times(text: str, expected: str) -> None:
    """Times are ISO 8601, or so long ago."""
    assert parse_time("--since", text, NOW) == int(datetime.fromisoformat(expected).timestamp() * 10**6)


@pytest.mark.parametrize(("text", "day"), [("9:30", 4), ("today 09:30:00", 4), ("yesterday 9:30", 3)])
def test_clock(text: str, day: int) -> None:
    """A time of day is today's, or yesterday's, where the reader is."""
    assert parse_time("--since", text, NOW) == int(datetime(2026, 3, day, 9, 30).timestamp() * 10**6)


@given(st.text())
def test_any_text_is_a_time_or_an_error(text: str) -> None:
    """Any text is a time, or a ValueError that names the option."""
    problem = ""
    try:
        time = parse_time("--until", text)
    except ValueError as error:
        problem = str(error)
    assert problem.startswith("--until: ") or datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time)


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    """Without -r there is nothing to show."""
    parser = argparse.ArgumentParser()
    show.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert "-r/--read" in capsys.readouterr().err


def test_import_is_light() -> None:
    """The options are there without numpy and DuckDB."""
    code = "import sys; import conntracker.cli.show; print({'numpy', 'duckdb'} & set(sys.modules))"
    env: dict[str, Any] = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
