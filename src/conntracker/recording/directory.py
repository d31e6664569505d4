"""The directory of a recording, for the one who writes it: files in it appear whole and on disk, or not at all."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Directory"]


class Directory:
    """A directory of our own, made with mode 0700, or an empty one that is there; its files get mode 0600.

    Raises FileExistsError if the directory has anything in it, and OSError.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(path)
        with suppress(FileExistsError):
            os.mkdir(self.path, 0o700)
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if os.listdir(self._descriptor):
            self.close()
            raise FileExistsError(
                errno.EEXIST, "the directory is not empty, and nothing in it is overwritten", self.path
            )

    @contextmanager
    def new_file(self, name: str) -> Iterator[int]:
        """The descriptor of a file that appears under its name, in place of an older one, when the block ends."""
        temporary = f"{name}.tmp"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(temporary, flags, 0o600, dir_fd=self._descriptor)
            try:
                yield descriptor
                os.fsync(descriptor)
                os.rename(temporary, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
                os.fsync(self._descriptor)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=self._descriptor)
                raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise OSError(error.errno, f"writing {self.path}/{name}: {error.strerror}") from error

    def write_text(self, name: str, text: str) -> None:
        """A file with this text, as UTF-8; what is no text (surrogates) goes back to the bytes that it came from."""
        with (
            self.new_file(name) as descriptor,
            open(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="", closefd=False) as file,
        ):
            file.write(text)

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._descriptor < 0

    def close(self) -> None:
        """Once is enough."""
        if not self.closed:
            os.close(self._descriptor)
            self._descriptor = -1
