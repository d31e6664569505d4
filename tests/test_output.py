"""Where the log goes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from conntracker.output import Output

FULL = """
import resource, signal, sys
from conntracker.output import Output
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with Output(sys.argv[1]).open() as stream:
        stream.write(b"x" * 100_000)
except OSError as error:
    print(error.errno)
"""


def write(path: Path, data: bytes = b"new\n") -> None:
    """A log written to a path."""
    with Output(str(path)).open() as stream:
        stream.write(data)


def test_a_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    """The new log has the place of the old one, mode 0600, and no temporary file is left."""
    path = tmp_path / "log"
    path.write_text("old\n")
    write(path)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new\n", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_log_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    """An error while writing leaves the old log and nothing else."""
    path = tmp_path / "log"
    path.write_text("old\n")

    def half() -> None:
        with Output(str(path)).open() as stream:
            stream.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old\n", [path])


def test_a_full_disk_leaves_the_old_log(tmp_path: Path) -> None:
    """Where there is no room, OSError comes, the old log stays, and no temporary file is left."""
    path = tmp_path / "log"
    path.write_text("old\n")
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old\n", [path])


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    """A symbolic link in the log's place is replaced; what it led to is untouched."""
    victim, path = tmp_path / "victim", tmp_path / "log"
    victim.write_text("precious\n")
    path.symlink_to(victim)
    write(path)
    assert (victim.read_text(), path.read_text(), path.is_symlink()) == ("precious\n", "new\n", False)


def test_devices_and_pipes_are_written_to(tmp_path: Path) -> None:
    """/dev/null stays what it is, and a FIFO gets the log."""
    write(Path("/dev/null"))
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write(fifo)
    assert os.read(reader, 100) == b"new\n"
    os.close(reader)


def test_nothing_in_dev_is_replaced(tmp_path: Path) -> None:
    """Links and devices there stay what they are, whatever they lead to."""
    before = {name: os.lstat(f"/dev/{name}") for name in ("null", "full", "stderr", "stdout")}
    with open(tmp_path / "target", "wb") as target:
        write(Path(f"/dev/fd/{target.fileno()}"))
    write(Path("/dev/stderr"), b"")
    with pytest.raises(OSError, match="No space left"):
        write(Path("/dev/full"))
    assert {name: os.lstat(f"/dev/{name}").st_ino for name in before} == {n: s.st_ino for n, s in before.items()}
    assert (tmp_path / "target").read_bytes() == b"new\n"


def test_a_fifo_without_a_reader_does_not_hang(tmp_path: Path) -> None:
    """OSError comes at once where nobody reads."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device"):
        write(tmp_path / "fifo")


@pytest.mark.parametrize("name", [".", "missing/log", "/proc/nothing/log"])
def test_a_place_that_cannot_be_written_is_refused_at_once(name: str, tmp_path: Path) -> None:
    """A directory, or a file in a directory that is not there, raises OSError before anything is captured."""
    with pytest.raises(OSError, match=r".+"):
        Output(str(tmp_path / name))


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1"])
def test_names_of_standard_output(name: str) -> None:
    """Whatever it is called, standard output is not replaced by a file."""
    assert Output(name).standard
