"""Where the log goes: standard output, or a file that is replaced in one step and never followed through a link."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

STANDARD = frozenset({"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"})
_SYSTEM = ("/dev/", "/proc/", "/sys/")


class Output:
    """A place for the log. Raises OSError at once if it cannot be written there, not after a day of capture.

    A regular file is written under a temporary name beside it (mode 0600), fsynced and renamed, so that the old one
    stays whole until the new one is. A symbolic link is replaced, not followed: in /tmp anybody may have planted it.
    Terminals, pipes and other character devices are written to as they are, and so is all that stands in /dev and
    /proc, where nothing is ever replaced.
    """

    def __init__(self, path: str) -> None:
        if not path:
            raise ValueError("a file name is missing")
        self.standard = path in STANDARD
        self.path = path if self.standard else os.path.abspath(path)
        self._direct = False
        if self.standard:
            return
        mode = self._mode()
        if stat.S_ISDIR(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
            raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, "not a file to write a log to", path)
        if not self._direct:
            fd, temporary = self._temporary()
            os.close(fd)
            os.unlink(temporary)

    def _mode(self) -> int:
        """Type of what is at the path, 0 if nothing or a link is there; decides whether it is written to as it is."""
        system = self.path.startswith(_SYSTEM) and not self.path.startswith("/dev/shm/")  # noqa: S108
        try:
            mode = os.stat(self.path).st_mode if system else os.lstat(self.path).st_mode
        except FileNotFoundError:
            if system:
                raise
            return 0
        self._direct = system or stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)
        return 0 if stat.S_ISLNK(mode) else mode

    def _temporary(self) -> tuple[int, str]:
        directory, name = os.path.split(self.path)
        try:
            return tempfile.mkstemp(prefix=f".{name}.", dir=directory)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.path) from None

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """A stream for one whole log; the file appears when the block ends well. Raises OSError."""
        if self.standard:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        elif self._direct:
            with self._open_directly() as stream:
                yield stream
        else:
            fd, temporary = self._temporary()
            try:
                with open(fd, "wb") as stream:
                    yield stream
                    stream.flush()
                    os.fsync(fd)
                os.replace(temporary, self.path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise

    def _open_directly(self) -> BinaryIO:
        """Without waiting for ever where nobody reads a FIFO (ENXIO)."""
        fd = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(fd, True)
        return open(fd, "wb")
