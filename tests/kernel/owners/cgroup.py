"""Directories of cgroup2 of one's own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

__all__ = ["needed_cgroup", "own_cgroup", "why_not"]

PROC_PID_INIT_INO = 0xEFFFFFFC  # linux/proc_ns.h


def _mount() -> str | None:
    with open("/proc/self/mounts") as mounts:
        return next((line.split()[1] for line in mounts if line.split()[2] == "cgroup2"), None)


def why_not() -> str | None:
    """Why owners cannot be tested here; None if they can."""
    if os.stat("/proc/self/ns/pid").st_ino != PROC_PID_INIT_INO:
        return "in a namespace of process ids: BPF programs see other ids"
    mount = _mount()
    if mount is None:
        return "cgroup2 is not mounted"
    return None if os.access(mount, os.W_OK) else f"{mount}: no directory can be made there"


@contextmanager
def own_cgroup(name: str) -> Iterator[str]:
    """A new directory right below the root of cgroup2; at the end all processes in it are killed. Raises OSError."""
    mount = _mount()
    if mount is None:
        raise OSError("cgroup2 is not mounted")
    path = Path(mount, f"{name}-{os.getpid()}")
    path.mkdir()
    try:
        yield str(path)
    finally:
        _remove(path)


@contextmanager
def needed_cgroup(name: str) -> Iterator[str]:
    """The same for a test, which is skipped where there can be none; where the environment says CI, it fails."""
    import pytest

    reason = why_not()
    with ExitStack() as stack:
        try:
            path = None if reason else stack.enter_context(own_cgroup(name))
        except OSError as error:
            path, reason = None, str(error)
        if path is None:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(str(reason))
        yield path


def _remove(path: Path) -> None:
    for _ in range(100):
        with suppress(ProcessLookupError):
            for word in (path / "cgroup.procs").read_text().split():
                os.kill(int(word), 9)
        try:
            path.rmdir()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise OSError(f"{path} cannot be removed")
