from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conntracker.model import Loss
from conntracker.recording.reader import open_recording
from conntracker.recording.writer import RecordingWriter

Make = Callable[..., Any]


def mode(path: Path) -> int:
    """The permission bits of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def test_modes(tmp_path: Path, flows: Make) -> None:
    """The directory is for its owner only, and so is every file, whatever the umask."""
    old = os.umask(0)
    try:
        with RecordingWriter(tmp_path / "rec") as writer:
            writer.append(flows({}))
    finally:
        os.umask(old)
    assert mode(tmp_path / "rec") == 0o700
    assert {file.name: mode(file) for file in (tmp_path / "rec").iterdir()} == {
        "flows-000001.parquet": 0o600,
        "meta.json": 0o600,
    }


def test_not_empty(tmp_path: Path) -> None:
    """A directory with anything in it is refused, and nothing in it changes."""
    (tmp_path / "precious").write_text("data")
    with pytest.raises(FileExistsError, match="not empty"):
        RecordingWriter(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["precious"]


def test_meta_while_running(tmp_path: Path) -> None:
    """While it runs, and after a crash, meta.json says who and since when, and no end."""
    RecordingWriter(tmp_path / "rec", host="gate", kernel="6.1", start=1_767_268_800_000_001, netns="blue")
    meta = json.loads((tmp_path / "rec/meta.json").read_text())
    assert meta["start"] == "2026-01-01T12:00:00.000001Z"
    assert (meta["version"], meta["host"], meta["kernel"], meta["netns"], meta["end"]) == (
        1,
        "gate",
        "6.1",
        "blue",
        None,
    )


def test_losses_and_counters_come_back(tmp_path: Path) -> None:
    """Loss windows and counters are read as they were written."""
    loss = Loss(1_767_268_800_000_000, 1_767_268_801_000_000, "events", 17)
    with RecordingWriter(tmp_path / "rec", accounting=False) as writer:
        writer.update_meta(losses=(loss,))
        writer.update_meta(losses=(loss, Loss(5, 6, "untracked", None)))
        writer.update_meta(counters={"events": 3})
    with open_recording(tmp_path / "rec") as recording:
        assert recording.losses == (loss, Loss(5, 6, "untracked", None))
        assert recording.meta == writer.meta
        assert recording.meta
        assert recording.meta.end


def test_no_rows_no_segment(tmp_path: Path, flows: Make) -> None:
    """Nothing to append writes nothing."""
    with RecordingWriter(tmp_path / "rec") as writer:
        writer.append({name: column[:0] for name, column in flows({}).items()})
    assert not list((tmp_path / "rec").glob("*.parquet"))


def test_bad_columns(tmp_path: Path, flows: Make) -> None:
    """Columns that are missing or of other lengths are named."""
    with RecordingWriter(tmp_path / "rec") as writer:
        columns = flows({})
        with pytest.raises(ValueError, match="missing: mark"):
            writer.append({name: column for name, column in columns.items() if name != "mark"})
        with pytest.raises(ValueError, match="different lengths"):
            writer.append({**columns, "mark": columns["mark"][:0]})


def test_odd_path(tmp_path: Path, flows: Make) -> None:
    """A path with the characters of patterns and quotes is a path like any other."""
    path = tmp_path / "it's [a-z]*? rec"
    (tmp_path / "it's axx rec").mkdir()
    with RecordingWriter(path) as writer:
        writer.append(flows({}))
        writer.append(flows({}, first=1))
    with open_recording(path) as recording:
        assert len(recording.flows()) == 2


FULL_DISK = """
import resource, signal, sys
from support.columns import many
from conntracker.recording.writer import RecordingWriter

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = RecordingWriter(sys.argv[1])
writer.append(many(1000))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    writer.append(many(1000, first=1000))
except OSError as error:
    print(error.strerror)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.append(many(1000, first=1000))
writer.close()
"""


def test_disk_full(tmp_path: Path) -> None:
    """A segment that cannot be written leaves nothing behind, and can be written again when there is room."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "rec")]
    paths = os.pathsep.join(sys.path)
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == f"writing {tmp_path}/rec/flows-000002.parquet: File too large\n"
    assert sorted(os.listdir(tmp_path / "rec")) == ["flows-000001.parquet", "flows-000002.parquet", "meta.json"]
    with open_recording(tmp_path / "rec") as recording:
        assert (len(recording.flows()), recording.damaged) == (2000, [])
