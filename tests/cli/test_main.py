"""The command line: one clear line and the right exit code, whatever goes wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conntracker.cli.capture import duration, size
from conntracker.cli.main import COMMANDS, main

BAD = [
    (["--nonsense"], "unrecognized arguments: --nonsense"),
    (["bogus"], "no command 'bogus'"),
    (["-e"], "-e needs -t"),
    (["--trace", "tcp dport 22"], "--trace needs -t"),
    (["-t", "--trace-packets", "0"], "is not a number above 0"),
    (["-d", "-f"], "not allowed with argument"),
    (["-d", "-o", "-"], "-d has no standard output"),
    (["-o", "/nonexistent/log"], "/nonexistent/log: No such file or directory"),
    (["--duration", "soon"], "'soon' is not a time like 30s"),
    (["--max-flows", "0"], "'0' is not a number above 0"),
    (["--src", "10.0.0.0/33"], "--src: '10.0.0.0/33'"),
    (["--port", "99999"], "--port: '99999'"),
    (["--proto", "nonsense"], "--proto: 'nonsense'"),
    (["events", "--dport", "x"], "--dport: 'x'"),
    (["show", "-r", "/nonexistent"], "/nonexistent: No such file or directory"),
    (["--netns", "no-such-name"], "no-such-name"),
]


@pytest.mark.parametrize(("arguments", "text"), BAD)
def test_bad_usage_is_one_line_and_exit_code_2(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wrong with the call stands in one line on standard error."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err.startswith("conntracker: ")) == ("", 1, True)
    assert text in err


def test_a_directory_that_is_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """-w never writes into a directory that has something in it."""
    (tmp_path / "precious").write_text("x")
    assert main(["-w", str(tmp_path), "-o", "-"]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_help_fits_the_terminal(name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command explains itself within 80 columns, with exit code 0."""
    monkeypatch.setenv("COLUMNS", "80")
    arguments = [name, "--help"] if name else ["--help"]
    done = subprocess.run([sys.executable, "-m", "conntracker", *arguments], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_help_imports_nothing_heavy() -> None:
    """`conntracker --help` starts neither numpy nor duckdb."""
    code = "import sys; from conntracker.cli.main import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "duckdb", "ctypes"} & set(done.stderr.split())


def test_a_closed_pipe_is_no_error() -> None:
    """When the reader of standard output has gone, one line says so, and the exit code is 0."""
    code = "import os, sys; from conntracker.cli.main import closed; sys.exit(closed())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)


@pytest.mark.parametrize("fd", [1, 2])
def test_closed_standard_streams_do_no_harm(fd: int, tmp_path: Path) -> None:
    """Where a standard stream is closed, no file of ours gets its number, and there is no traceback."""
    script = f"exec {sys.executable} -m conntracker show -r {tmp_path}/nothing {fd}>&-"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [["-o", ""], ["-w", ""], ["-w", "-"], ["-w", "/nonexistent/rec"]])
def test_places_that_cannot_be_are_refused_at_once(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is captured, and nothing changed on the host, for a log or recording that cannot be written."""
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("5m", 300), ("1.5h", 5400), ("200ms", 0.2), ("7", 7)])
def test_durations(text: str, seconds: float) -> None:
    """Time spans are read with their unit, seconds without one."""
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "number"), [("64M", 64 << 20), ("512K", 512 << 10), ("4096", 4096)])
def test_sizes(text: str, number: int) -> None:
    """Sizes are read with their unit, bytes without one."""
    assert size(text) == number
