"""A disk that fills up while capturing."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import conntracker
from conntracker.lab.bulk import send
from conntracker.lab.plan import plan
from conntracker.lab.topology import Lab

# A small file system of its own; what is on it at the end is copied out.
SCRIPT = """
mount -t tmpfs -o size={size} tmpfs {disk} && echo 'the old log' > {disk}/log
{python} -m conntracker -o {disk}/log -w {disk}/rec --flush 0.2 --duration 3
code=$?
cp -r {disk}/rec {out}/rec && cp {disk}/log {out}/log && ls -A {disk} {disk}/rec > {out}/list
exit $code
"""


def run(lab: Lab, tmp_path: Path, size: str, flows: int) -> tuple[int, str, Path]:
    """(exit code, standard error, what was copied out) of a capture on a disk of this size."""
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    script = SCRIPT.format(size=size, disk=shlex.quote(str(disk)), out=shlex.quote(str(out)), python=sys.executable)
    with lab.router:
        process = subprocess.Popen(["unshare", "-m", "sh", "-c", script], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    while "capturing" not in said:
        said += process.stderr.readline()
    send(lab, plan(flows), rate=20_000)
    said += process.communicate(timeout=60)[1]
    return process.returncode, said, out


def test_a_full_disk_loses_nothing_that_was_on_it(lab: Lab, tmp_path: Path) -> None:
    """It is said once, the exit code is 3, earlier segments and the old log are whole, nothing half is left."""
    code, said, out = run(lab, tmp_path, "256k", 30_000)
    assert (code, "Traceback" in said) == (3, False), said
    for once in ("kept in memory and tried again", "the end of the recording is not written", "the log is not written"):
        assert said.count(once) == 1, said
    assert (out / "log").read_text() == "the old log\n"
    assert ".tmp" not in (out / "list").read_text()
    with conntracker.open_recording(out / "rec") as recording:
        assert recording.damaged == []
        (kept,) = recording.sql("SELECT count(*) FROM flows").fetchone() or (0,)
    assert 0 < kept < 30_000


def test_enough_room_keeps_everything(lab: Lab, tmp_path: Path) -> None:
    """The same with room: exit code 0, and every flow is in the recording."""
    code, said, out = run(lab, tmp_path, "64m", 5_000)
    assert code == 0, said
    with conntracker.open_recording(out / "rec") as recording:
        assert recording.sql("SELECT count(*) FROM flows").fetchone() == (5_000,)
