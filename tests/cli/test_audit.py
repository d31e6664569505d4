from __future__ import annotations

import json
from pathlib import Path

import pytest

from conntracker.answers.audit_findings import KINDS
from conntracker.cli import audit as command
from conntracker.cli.main import main
from conntracker.steps import Path as StepPath
from support.traces import record, row, step, tcp

WIDE = "-A FORWARD -p tcp -m tcp --dport 1024:65535 -j ACCEPT"
TEXT = f"""*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
-A INPUT -p tcp -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j DROP
{WIDE}
COMMIT
"""


@pytest.fixture
def rules(tmp_path: Path) -> str:
    """A file with a dead rule."""
    path = tmp_path / "a.rules"
    path.write_text(TEXT)
    return str(path)


def test_kinds_are_those_of_the_answer() -> None:
    """The command knows each kind without importing the solver for it."""
    assert tuple(KINDS) == command.KINDS


@pytest.mark.parametrize(
    ("options", "code"),
    [([], 0), (["--fail-on", "dead"], 1), (["--fail-on", "unused-set,dead"], 1), (["--fail-on", "unused-set"], 0)],
)
def test_exit_codes(rules: str, options: list[str], code: int, capfd: pytest.CaptureFixture[str]) -> None:
    """1 if anything of the kinds of --fail-on is found, 0 else."""
    assert main(["audit", "--rules", rules, *options]) == code
    assert "DEAD  1" in capfd.readouterr().out


def test_json(rules: str, capfd: pytest.CaptureFixture[str]) -> None:
    """--only and --json: the summary, and the findings of that kind."""
    assert main(["audit", "--rules", rules, "--only", "dead", "--json"]) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [one["kind"] for one in lines] == ["summary", "dead"]
    assert lines[1]["rule"]["source"] == f"{rules}:5"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--only", "dad"], "--only: no kind 'dad'; there are: dead, "),
        (["--only", "dead", "--fail-on", "order"], "--fail-on: order is not looked for"),
        (["--only", "wide"], "wide needs a recording"),
        (["--netns", "x"], "--netns does not go with --rules"),
    ],
)
def test_bad_options(rules: str, options: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Options that make no sense are told in one line, with exit code 2."""
    assert main(["audit", "--rules", rules, *options]) == 2
    assert said in capfd.readouterr().err


def test_bad_input(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A file that is no ruleset is told with its line, with exit code 2."""
    path = tmp_path / "bad.rules"
    path.write_text("*filter\n-A INPUT -j\n")
    assert main(["audit", "--rules", str(path)]) == 2
    assert f"{path}:2" in capfd.readouterr().err


def test_a_jump_to_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A ruleset that cannot be followed is told in one line, with exit code 2."""
    path = tmp_path / "loop.rules"
    path.write_text("*filter\n:INPUT DROP [0:0]\n:A - [0:0]\n-A INPUT -j A\n-A A -j A\nCOMMIT\n")
    assert main(["audit", "--rules", str(path)]) == 2
    assert "chain A leads back to itself" in capfd.readouterr().err


def test_with_a_recording(rules: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With a recording, ACCEPTs far wider than what was seen are found, too."""
    path = StepPath((step("forward", "ip filter FORWARD", "accept", WIDE, 1),), "accept", 0, "forward")
    recording = record(tmp_path / "rec", traces=[row(tcp("10.0.0.1", 40000, "192.0.2.1", 8080))], paths={1: path})
    assert main(["audit", "--rules", rules, "-r", str(recording), "--fail-on", "wide"]) == 1
    assert "8080 (1) did" in capfd.readouterr().out


def test_a_recording_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A recording does not have the whole ruleset: it must be given."""
    assert main(["audit", "-r", str(record(tmp_path / "rec", [{}]))]) == 2
    assert "--rules FILE" in capfd.readouterr().err
