"""What is said beside an answer: that nothing was found, what there is instead, and what may be missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conntracker.cli.main import main
from conntracker.owner import BPF, EXACT, PROCESS, Owner, Process
from conntracker.recording.writer import RecordingWriter
from support.columns import MINUTE, NOON, flows
from support.owners import OWNERS, owned, owned_columns

NOTHING = "conntracker: nothing in the recording is what was asked for"


def recorded(path: Path, host: str = "gate", start: int = NOON, end: int | None = None, **meta: Any) -> Path:
    """A recording of one flow without owners, from one minute to the next if not told."""
    with RecordingWriter(path, host=host, start=start) as writer:
        writer.update_meta(**meta)
        writer.append(flows({"first_seen": start, "last_seen": start + MINUTE}))
        writer.close(start + MINUTE if end is None else end)
    return path


def said(capfd: pytest.CaptureFixture[str], *words: str | Path, command: str = "show", code: int = 0) -> list[str]:
    """The lines on standard error."""
    assert main([command, *map(str, words)]) == code
    return capfd.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("words", "more"),
    [
        (["--dport", "9999"], ""),
        (["--since", "2027-01-01T00:00Z"], ""),
        (["--unit", "nosuch"], "; units there are: nginx.service, session-3.scope"),
        (["--process", "Curl"], "; processes there are: nginx, curl, (forwarded), (kernel)"),
        (["--user", "nosuch", "--container", "77"], "; users there are: 33, alice; containers there are: 0123456789ab"),
        (["--user", "alice", "--dport", "9999"], "; users there are: 33, alice"),
    ],
)
@pytest.mark.parametrize("format", [[], ["--json"], ["--format", "log"], ["--group-by", "dst"], ["--group-by", "user"]])
def test_nothing_found(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], more: str, format: list[str]
) -> None:
    """Where filters leave nothing one line says so, with what else owners could be, in every format."""
    assert said(capfd, "-r", owned(tmp_path / "rec"), *words, *format) == [NOTHING + more]


def test_few_are_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Five values are named, those with most flows, as one may write them in a list; more are hinted at."""
    path = tmp_path / "rec"
    owners = {number: Owner(PROCESS, Process(number, f"x, {number - 1}", 0), BPF, EXACT) for number in range(1, 8)}
    rows = [({"sport": 100 * number + i}, number, 0) for number in owners for i in range(number)]
    owned(path, tuple(rows), owners)
    (line,) = said(capfd, "-r", path, "--process", "y")
    assert line == f"{NOTHING}; processes there are: x\\, 6, x\\, 5, x\\, 4, x\\, 3, x\\, 2, …"
    assert said(capfd, "-r", path, "--process", "x\\, 6") == []
    (line,) = said(capfd, "-r", path, "--unit", "y")
    assert line == f"{NOTHING}; no units are known"


@pytest.mark.parametrize("words", [[], ["--process", "curl"], ["--limit", "0", "--process", "curl"]])
def test_something_found(tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str]) -> None:
    """Where something is there, or would be, nothing is said."""
    assert said(capfd, "-r", owned(tmp_path / "rec"), *words) == []


@pytest.mark.parametrize(
    "words", [["--process", "curl"], ["--user", "x", "--json"], ["--sort", "-process"], ["--sort", "user"],
              ["--group-by", "unit"]],
)  # fmt: skip
def test_without_owners(tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str]) -> None:
    """Who asks for owners is told of each recording that has none, and no more."""
    path = recorded(tmp_path / "rec")
    none = f"conntracker: {path} has no owners: it was recorded without -b"
    assert said(capfd, "-r", path, *words) == [none]
    later = recorded(tmp_path / "later", start=NOON + 9 * MINUTE, owners={"method": "bpf"})
    assert said(capfd, "-r", path, "-r", later, *words)[:1] == [none]
    assert said(capfd, "-r", path, "--sort", "dst") == []


def test_blame_without_owners(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """blame says the same, and that nothing was found."""
    path = recorded(tmp_path / "rec", trace={})
    lines = said(capfd, "-r", path, "--process", "curl", command="blame", code=1)
    assert lines[0] == f"conntracker: {path} has no owners: it was recorded without -b"
    assert lines[1].startswith(NOTHING)
    assert len(lines) == 2
    assert not any("owners" in line for line in said(capfd, "-r", path, command="blame"))


def test_blame_names_what_there_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """blame names who could have been asked for."""
    path = owned(tmp_path / "rec")
    line = said(capfd, "-r", path, "--unit", "nosuch", command="blame", code=1)[-1]
    assert line.endswith("; units there are: nginx.service, session-3.scope")


SOCK_DIAG = "sockets were listed four times a second: what lived shorter than that may have no owner"
LOST = "1,200 sides of sockets were lost: their flows have no owner"
PARTLY = "not every socket of the host was watched: who has no owner here may have one"


@pytest.mark.parametrize(
    ("facts", "plain", "asked"),
    [
        ({"method": "bpf", "whole": True, "lost": 0}, [], []),
        ({"method": "bpf", "whole": False, "lost": 0}, [], [PARTLY]),
        ({"method": "bpf", "whole": False, "lost": 1200}, [LOST], [f"{PARTLY}; {LOST}"]),
        ({"method": "sock_diag", "whole": False, "lost": 0}, [SOCK_DIAG], [SOCK_DIAG]),
        ({"method": "sock_diag", "whole": False, "lost": 1200}, [f"{SOCK_DIAG}; {LOST}"], [f"{SOCK_DIAG}; {LOST}"]),
        ({}, [], []),
    ],
)
def test_doubts_of_owners(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], facts: dict[str, Any], plain: list[str], asked: list[str]
) -> None:
    """How owners were known, and what was lost, is one line, which names its recording where there are several."""
    path = recorded(tmp_path / "rec", owners=facts)
    assert said(capfd, "-r", path) == [f"conntracker: {text}" for text in plain]
    assert said(capfd, "-r", path, "--sort", "user") == [f"conntracker: {text}" for text in asked]
    other = recorded(tmp_path / "other", start=NOON + 9 * MINUTE)
    assert said(capfd, "-r", path, "-r", other) == [f"conntracker: {path}: {text}" for text in plain]


@pytest.mark.parametrize(
    ("other", "twice"),
    [
        ({}, True),
        ({"start": NOON + MINUTE - 1}, True),
        ({"start": NOON - MINUTE + 1}, True),
        ({"start": NOON + MINUTE}, False),
        ({"start": NOON - MINUTE}, False),
        ({"host": "other"}, False),
        ({"netns": "web"}, False),
    ],
)
def test_twice(tmp_path: Path, capfd: pytest.CaptureFixture[str], other: dict[str, Any], twice: bool) -> None:
    """Recordings of one host, network namespace and time have the same flows: one line says that they count twice."""
    paths = [recorded(tmp_path / "a"), recorded(tmp_path / "b", **other)]
    if other.get("start", NOON) < NOON:
        paths.reverse()
    expected = f"conntracker: {paths[0]} and {paths[1]} are of the same host and time: flows that both have are counted"
    assert said(capfd, "-r", paths[0], "-r", paths[1]) == ([f"{expected} twice"] if twice else [])
    assert said(capfd, "-r", paths[1], "-r", paths[0]) == ([f"{expected} twice"] if twice else [])
    assert said(capfd, "-r", paths[0], "-r", paths[0]) == []


def test_inside_a_longer_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each recording inside the time of a longer one is named with that."""
    words: list[str | Path] = ["-r", recorded(tmp_path / "day", end=NOON + 60 * MINUTE)]
    for number in (1, 5):
        words += ["-r", recorded(tmp_path / str(number), start=NOON + number * MINUTE)]
    lines = said(capfd, *words)
    assert [line.split(" are of ")[0] for line in lines] == [
        f"conntracker: {tmp_path}/day and {tmp_path}/{number}" for number in (1, 5)
    ]


def test_one_without_an_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A recording whose capture was killed lasts until its last flow was seen."""
    killed = recorded(tmp_path / "killed")
    meta = json.loads((killed / "meta.json").read_text())
    (killed / "meta.json").write_text(json.dumps(meta | {"end": None}))
    for start, twice in ((NOON + MINUTE - 1, True), (NOON + MINUTE, False)):
        other = recorded(tmp_path / str(start), start=start)
        lines = said(capfd, "-r", killed, "-r", other)
        assert any("twice" in line for line in lines) == twice
        assert "killed" in lines[-1]


def test_an_empty_one_without_an_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A recording without flows has none twice."""
    for name in ("a", "b"):
        RecordingWriter(tmp_path / name, host="gate", start=NOON).update_meta(accounting=False)
    assert not any("twice" in line for line in said(capfd, "-r", tmp_path / "a", "-r", tmp_path / "b"))


def test_a_recording_without_meta(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a recording that lost its meta.json nothing is said but that, and its owners are shown."""
    path = tmp_path / "rec"
    with RecordingWriter(path, start=NOON) as writer:
        writer.append(owned_columns(({}, 1, 2)), OWNERS)
    (path / "meta.json").unlink()
    lines = said(capfd, "-r", path, "-r", recorded(tmp_path / "other"), "--process", "curl", code=2)
    assert lines == [
        f"conntracker: {tmp_path}/other has no owners: it was recorded without -b",
        f"conntracker: left out {path}/meta.json: missing",
    ]
