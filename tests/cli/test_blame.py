from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path as File
from typing import Any

import pytest

from conntracker.cli import blame
from conntracker.cli.main import main
from conntracker.model import Loss
from conntracker.recording.writer import RecordingWriter
from support.columns import MINUTE, NOON
from support.owners import OWNERS, owned_columns
from support.traces import PATHS, TRACE, record, row, tcp

PLAIN = tcp("10.0.0.1", 40000, "10.0.0.2", 80)
DENIED = tcp("10.0.0.5", 40000, "10.0.0.2", 443)


@pytest.fixture
def recording(tmp_path: File) -> File:
    """A flow that was let through, and packets that were dropped a minute later."""
    return record(tmp_path / "rec", [{}], [row(PLAIN), row(DENIED, path=2, packets=3, at=NOON + MINUTE)])


def run(*words: str | File) -> int:
    """The exit code of `conntracker blame` with these words."""
    return main(["blame", *map(str, words)])


def test_which_rule_did_this(recording: File, capfd: pytest.CaptureFixture[str]) -> None:
    """The question that people come with has an answer, and exit code 0."""
    assert run("--src", "10.0.0.5", "--dport", "443", "-r", recording) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert out.startswith(
        "TCP 10.0.0.5:40000 -> 10.0.0.2:443   DROPPED\n  by   ip filter LOGS, rule 2 (iptables-nft)\n"
    )
    assert "comes in" not in out


def test_all_flows_stand_apart(recording: File, capfd: pytest.CaptureFixture[str]) -> None:
    """Between two flows there is an empty line."""
    assert run("-r", recording) == 0
    assert [block.splitlines()[0].split()[-1] for block in capfd.readouterr().out.split("\n\n")] == [
        "ACCEPTED", "DROPPED",
    ]  # fmt: skip


def test_json(recording: File, capfd: pytest.CaptureFixture[str]) -> None:
    """--json gives an object a line."""
    assert run("-r", recording, "--json") == 0
    assert [json.loads(line)["verdict"] for line in capfd.readouterr().out.splitlines()] == ["accept", "drop"]


def test_the_diagram(recording: File, capfd: pytest.CaptureFixture[str]) -> None:
    """--path prints the way of the packets through netfilter, marked."""
    assert run("-r", recording, "--path", "--port", "443") == 0
    out = capfd.readouterr().out
    assert "|# filter         DROP |" in out
    assert max(map(len, out.splitlines())) <= 80


def test_by_rule(recording: File, capfd: pytest.CaptureFixture[str]) -> None:
    """The drops by rule are one command."""
    assert run("-r", recording, "--group-by", "rule", "--since", "2026-01-01T12:00:30Z") == 0
    out = capfd.readouterr().out
    assert "        1         3  drop " in out
    assert "ip filter LOGS, rule 2 (iptables-nft)" in out
    assert "accept" not in out
    assert out.endswith("\ntraced: packets, at most the first 4 of each direction of a flow in 30\n")
    assert run("-r", recording, "--group-by", "rule", "--json", "--limit", "1") == 0
    (line,) = capfd.readouterr().out.splitlines()
    assert json.loads(line)["traced"] == 3


def test_owners(tmp_path: File, capfd: pytest.CaptureFixture[str]) -> None:
    """With a condition on owners packets that never became a flow are not shown, for they have none."""
    path = tmp_path / "rec"
    with RecordingWriter(path, start=NOON) as writer:
        writer.update_meta(trace=TRACE)
        writer.append(owned_columns(({}, 1, 2), ({"sport": 7}, 0, 2)), OWNERS)
        writer.append_paths(list(PATHS.items()))
        writer.append_traces([row(PLAIN), row(DENIED, path=2)])
    assert run("-r", path, "--process", "curl") == 0
    out, _ = capfd.readouterr()
    assert out.startswith("TCP 10.0.0.1:40000 (curl[5057], alice) -> 10.0.0.2:80 (nginx[77], 33, holder)   ACCEPTED\n")
    assert "DROPPED" not in out
    assert run("-r", path, "--process", "nginx", "--json") == 0
    assert [json.loads(line)["verdict"] for line in capfd.readouterr().out.splitlines()] == ["accept", None]
    assert run("-r", path, "--user", "alice", "--group-by", "rule", "--json") == 0
    assert [json.loads(line)["verdict"] for line in capfd.readouterr().out.splitlines()] == ["accept"]
    assert run("-r", path, "--process", "dst") == 1


def test_limit(recording: File, capfd: pytest.CaptureFixture[str]) -> None:
    """--limit keeps the newest flows."""
    assert run("-r", recording, "--json", "--limit", "1") == 0
    (line,) = capfd.readouterr().out.splitlines()
    assert json.loads(line)["packet"]["dport"] == 443


def test_no_answer(recording: File, capfd: pytest.CaptureFixture[str]) -> None:
    """Where nothing was asked for that is there, one line says so, and the exit code is 1."""
    for words in ([], ["--json"], ["--group-by", "rule"]):
        assert run("-r", recording, "--src", "1.2.3.4", *words) == 1
        assert capfd.readouterr() == (
            "",
            "conntracker: nothing in the recording is what was asked for: no flow, and no packet that was traced\n",
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "99999"], "--port: '99999' is not a port"),
        (["--since", "tomorrowish"], "--since: 'tomorrowish' is not a time"),
        (["--since", "13:00", "--until", "12:00"], "--since is after --until"),
        (["--limit", "0"], "--limit: 0 is less than 1"),
        (["--json", "--path"], "--path does not go with --json"),
        (["--group-by", "rule", "--path"], "--path does not go with --group-by"),
        (["--for", "3s"], "--for does not go with -r"),
        (["--netns", "x"], "--netns does not go with -r"),
        (["--group-by", "src"], "argument --group-by: invalid choice"),
    ],
)
def test_bad_options(recording: File, capfd: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    """A bad option is one line that names it, and exit code 2."""
    assert run("-r", recording, *words) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"conntracker: {message}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--for", "0s"], "--for: in no time no packet can come"),
        (["--since", "10m"], "--since goes with -r only"),
        (["--until", "10m"], "--until goes with -r only"),
    ],
)
def test_bad_options_without_a_recording(capfd: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    """What makes no sense for packets that are still to come is refused before anything is traced."""
    assert run(*words) == 2
    assert capfd.readouterr().err.startswith(f"conntracker: {message}")


def test_no_room(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Where no temporary directory can be made, the place is named, and how to give another."""

    def refuse(prefix: str) -> str:
        raise PermissionError(13, "Permission denied", f"/nowhere/{prefix}x")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    assert run("--for", "1s") == 3
    assert capfd.readouterr().err == (
        "conntracker: /nowhere/conntracker-x: no room for what is traced: not writable, or full"
        " (TMPDIR names another place)\n"
    )


def test_refusals_are_said(tmp_path: File, capfd: pytest.CaptureFixture[str]) -> None:
    """How many packets of a recording were not traced is said with every answer, and with none."""
    path = record(tmp_path / "rec", [{}], [row(PLAIN)], trace=TRACE | {"refused": 1200})
    for words in ([], ["--group-by", "rule"], ["--src", "1.2.3.4"]):
        run("-r", path, *words)
        assert capfd.readouterr().err.startswith("conntracker: 1,200 packets were not traced: more came than 500 new")


def test_not_a_recording(tmp_path: File, capfd: pytest.CaptureFixture[str]) -> None:
    """A directory that is no recording is one line."""
    assert run("-r", tmp_path) == 2
    assert capfd.readouterr().err == f"conntracker: {tmp_path}: not a recording (no meta.json, no segments)\n"


def test_damage_is_said(recording: File, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a recording cut short the rest is answered, the damage named, and the exit code is 2."""
    segment = recording / "traces-000001.parquet"
    segment.write_bytes(segment.read_bytes()[:-9])
    assert run("-r", recording) == 2
    out, err = capfd.readouterr()
    assert "NOT TRACED" in out
    assert err == f"conntracker: left out {segment}: cut short\n"


def test_damaged_steps_are_said(recording: File, capfd: pytest.CaptureFixture[str], tmp_path: File) -> None:
    """Steps that cannot be read are one line and exit code 2."""
    import duckdb

    with duckdb.connect() as connection:
        query = f"SELECT * REPLACE ('x' AS steps) FROM '{recording}/paths-000001.parquet'"  # noqa: S608
        connection.execute(f"COPY ({query}) TO '{tmp_path}/new' (FORMAT parquet)")
    (tmp_path / "new").replace(recording / "paths-000001.parquet")
    assert run("-r", recording) == 2
    assert capfd.readouterr().err == f"conntracker: {recording}: the steps of path 1 are damaged\n"


def test_what_may_be_missing_is_said(tmp_path: File, capfd: pytest.CaptureFixture[str]) -> None:
    """A recording without traces, and one that lost some, say so."""
    losses = (Loss(NOON, NOON + 1, "traces", 17),)
    assert run("-r", record(tmp_path / "a", [{}], trace=None), "-r", record(tmp_path / "b", losses=losses)) == 0
    assert capfd.readouterr().err.splitlines() == [
        f"conntracker: {tmp_path}/a: made without -t, so nothing is known of rules",
        "conntracker: steps may be missing: 17 trace messages were lost",
    ]


def test_closed_pipe(recording: File) -> None:
    """When the reader of the output goes away it stops with one line and exit code 0."""
    command = [sys.executable, "-m", "conntracker", "blame", "-r", str(recording)]
    reading, writing = os.pipe()
    os.close(reading)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=env, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "conntracker: the output was closed before everything was written\n")


def test_import_is_light() -> None:
    """The options are there without numpy and DuckDB."""
    code = "import sys; import conntracker.cli.blame; print({'numpy', 'duckdb'} & set(sys.modules))"
    env: dict[str, Any] = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_times_are_durations() -> None:
    """--for is read as every time span is."""
    parser = argparse.ArgumentParser()
    blame.add_arguments(parser)
    assert parser.parse_args(["--for", "1.5m"]).duration == 90
