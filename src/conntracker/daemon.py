"""In the background: detach, tell the one who started us how it went, and hold a pid file.

Must run before numpy is imported: a fork takes one thread along only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
import syslog
from collections.abc import Callable


class AlreadyRunning(Exception):
    """Another instance holds the pid file."""


class PidFile:
    """A file with our process id, locked for as long as we live. Raises AlreadyRunning, OSError."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        while True:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
                os.close(self._fd)
                raise AlreadyRunning(f"conntracker is running already (process {pid}, {self.path})") from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._fd), os.stat(self.path)):
                    break
            os.close(self._fd)  # its last holder removed it between our open and our lock
        if os.pread(self._fd, 64, 0).strip(b"0123456789\n"):
            os.close(self._fd)
            raise FileExistsError(errno.EEXIST, "this is no pid file, and it is left as it is", self.path)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def remove(self) -> None:
        """Takes the file away, and the lock with it."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        os.close(self._fd)


class Background:
    """The detached process's side of `detach`: messages go to syslog, until `ready` to standard error as well."""

    def __init__(self, report: int) -> None:
        self._report: int | None = report
        syslog.openlog("conntracker", syslog.LOG_PID, syslog.LOG_DAEMON)

    def say(self, line: str) -> None:
        """One message."""
        syslog.syslog(line)
        if self._report is not None:
            with contextlib.suppress(OSError):
                print(f"conntracker: {line}", file=sys.stderr, flush=True)

    def ready(self) -> None:
        """Lets the starter go, with exit code 0, and lets go of its terminal."""
        self._tell(0)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)

    def failed(self, code: int) -> None:
        """Lets the starter go with an exit code, if it still waits."""
        self._tell(code)

    def _tell(self, code: int) -> None:
        if self._report is not None:
            with contextlib.suppress(OSError):
                os.write(self._report, bytes([code]))
            os.close(self._report)
            self._report = None


def detach(work: Callable[[Background], int]) -> int:
    """Runs `work` in a process of its own session without a terminal (daemon(7)).

    Returns in the starter: 0 once `work` called `ready`, else its exit code.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child:
        os.close(write)
        os.waitpid(child, 0)
        with os.fdopen(read, "rb") as report:
            answer = report.read(1)
        return answer[0] if answer else 3
    os.close(read)
    os.setsid()
    if os.fork():
        os._exit(0)
    code = 3
    try:
        _close_inherited(but=write)
        os.umask(0o077)
        os.chdir("/")
        background = Background(write)
        code = work(background)
        background.failed(code)
    finally:
        os._exit(code)


def _close_inherited(but: int) -> None:
    """What the starter had open, a lock of flock(1) say, must not stay open for as long as we live."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != but:
            with contextlib.suppress(OSError):
                os.close(int(name))
