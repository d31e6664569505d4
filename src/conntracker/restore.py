"""What was changed on the host, and how it is put back: sysctls, after kill -9 too.

Every change is written to a small state file before it is made, one file a network namespace. Instances share it: the
first one to need a change records the old value, the last one to end puts it back. An instance that was killed is told
by its process id and start time; the next start of any instance puts back what it left, and so does `doctor --fix`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from conntracker.sources.netns import Namespace

SYSCTL_ROOT = Path("/proc/sys")


def state_directory() -> Path:
    """Where the state files are: /run/conntracker, or a private directory of this user where that cannot be written.

    It exists only while there is something to remember. Raises OSError if somebody else controls it.
    """
    run = Path("/run/conntracker")
    if os.access(run if run.exists() else run.parent, os.W_OK | os.X_OK):
        return run
    base = os.environ.get("XDG_RUNTIME_DIR")
    own = Path(base) / "conntracker" if base else Path(tempfile.gettempdir()) / f"conntracker-{os.getuid()}"
    with contextlib.suppress(FileNotFoundError):
        status = own.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise PermissionError(f"{own} is not a private directory of this user")
    return own


def read_sysctl(name: str) -> str | None:
    """A sysctl of the calling thread's namespace, by path below /proc/sys; None where the kernel has none."""
    try:
        return (SYSCTL_ROOT / name).read_text().strip()
    except FileNotFoundError:
        return None


def _write_sysctl(name: str, value: str) -> None:
    try:
        (SYSCTL_ROOT / name).write_text(value)
    except OSError as error:
        raise OSError(error.errno, f"setting {name.replace('/', '.')}: {error.strerror}") from None


@dataclass(slots=True)
class _State:
    """One state file: the changes in one namespace and who needs them."""

    boot: str
    namespace: int  # inode, to find it by
    cookie: int  # and what tells it from a later one with the same inode; 0 where the kernel has none
    changes: dict[str, dict[str, str]] = field(default_factory=dict)
    holders: list[list[int]] = field(default_factory=list)


class Changes:
    """The sysctls that this process changed in one namespace. `release` puts them back unless others need them."""

    def __init__(self, namespace: Namespace, directory: Path | None = None) -> None:
        self._namespace = namespace
        self._directory = directory or state_directory()
        self._path = self._directory / f"sysctl-{namespace.inode}.json"
        self._me = [os.getpid(), _start_time(os.getpid()), _pid_namespace()]
        self._held = False

    _here: ClassVar[Counter[Path]] = Counter()  # how many of this process hold each state file

    def set(self, name: str, value: str) -> bool:
        """Sets a sysctl for as long as this process needs it. False if it had that value already, for others."""
        with _locked(self._directory, make=True):
            here = _State(_boot(), self._namespace.inode, self._namespace.cookie)
            state = _read(self._path)
            if state is None or (state.boot, state.cookie) != (here.boot, here.cookie):
                state = here
            with self._namespace:
                old = read_sysctl(name)
                if old is None:
                    raise OSError(f"this kernel has no {name.replace('/', '.')}")
                if old == value and name not in state.changes:
                    return False
                state.changes.setdefault(name, {"old": old, "new": value})
                if self._me not in state.holders:
                    state.holders.append(self._me)
                _write(self._path, state)
                self._here[self._path] += not self._held
                self._held = True
                _write_sysctl(name, value)
        return old != value

    def release(self) -> list[str]:
        """Puts everything back if this was the last process to need it. Returns what was said about it."""
        if not self._held:
            return []
        self._held = False
        self._here[self._path] -= 1
        if self._here[self._path]:
            return []
        with _locked(self._directory):
            state = _read(self._path)
            if state is None:
                return []
            state.holders = [holder for holder in state.holders if holder != self._me and _alive(holder)]
            if state.holders:
                _write(self._path, state)
                return []
            with self._namespace:
                said = _put_back(state)
            self._path.unlink()
            return said


def repair(directory: Path | None = None) -> list[str]:
    """Puts back what killed instances left, in every namespace that still exists. Returns what was done, in lines."""
    directory = directory or state_directory()
    said: list[str] = []
    with _locked(directory):
        for path in sorted(directory.glob("sysctl-*.json")):
            state = _read(path)
            if state is not None and any(_alive(holder) for holder in state.holders):
                continue
            if state is not None and state.boot == _boot():
                with contextlib.suppress(FileNotFoundError), _namespace(state):
                    said += [f"{line} (left by a killed instance)" for line in _put_back(state)]
            path.unlink()
    return said


def leftovers(directory: Path | None = None) -> list[str]:
    """What `repair` would put back, a line each."""
    directory = directory or state_directory()
    states = [state for path in sorted(directory.glob("sysctl-*.json")) if (state := _read(path)) is not None]
    return [
        f"{name.replace('/', '.')} was {change['old']}{_where(state)}"
        for state in states
        if state.boot == _boot() and not any(_alive(holder) for holder in state.holders)
        for name, change in state.changes.items()
    ]


def _where(state: _State) -> str:
    """Where a state file's namespace is another one than ours: its name, if it has one."""
    if os.stat("/proc/self/ns/net").st_ino == state.namespace:
        return ""
    for path in Path("/run/netns").glob("*"):
        with contextlib.suppress(OSError):
            if path.stat().st_ino == state.namespace:
                return f" in the network namespace {path.name}"
    return " in another network namespace"


def _put_back(state: _State) -> list[str]:
    """Must be called inside the namespace. A value that somebody set meanwhile is theirs and stays."""
    said = []
    for name, change in state.changes.items():
        dotted, now = name.replace("/", "."), read_sysctl(name)
        if now != change["new"]:
            said.append(f"{dotted} was changed to {now} by somebody else: left so")
        elif now != change["old"]:
            _write_sysctl(name, change["old"])
            said.append(f"{dotted} put back to {change['old']}")
    return said


def _namespace(state: _State) -> Namespace:
    """The network namespace of a state file, by way of a process in it or a name. FileNotFoundError if it is gone."""
    candidates = [Path("/proc/self/ns/net"), *Path("/run/netns").glob("*"), *Path("/proc").glob("[0-9]*/ns/net")]
    for path in candidates:
        with contextlib.suppress(OSError, ValueError):
            if path.stat().st_ino == state.namespace:
                found = Namespace.find(str(path))
                if found.cookie == state.cookie:
                    return found
                found.close()
                break  # the inode's next owner
    raise FileNotFoundError(f"network namespace {state.namespace}")


@contextlib.contextmanager
def _locked(directory: Path, make: bool = False) -> Iterator[bool]:
    """Holds the lock on the directory itself, so that no lock file stays behind. False where there is none."""
    while True:
        if make:
            directory.mkdir(mode=0o700, exist_ok=True)
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            if make:
                continue
            yield False
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not _is_at(fd, directory):  # removed by its last user while we waited
                continue
            yield True
            with contextlib.suppress(OSError):
                directory.rmdir()  # only succeeds when it is empty
            return
        finally:
            os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _read(path: Path) -> _State | None:
    """None for a file that is not there or that a crash cut short (then no sysctl was changed yet: see `set`)."""
    try:
        state = _State(**json.loads(path.read_text()))
        return state if all(len(holder) == 3 for holder in state.holders) else None
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _write(path: Path, state: _State) -> None:
    text = json.dumps({name: getattr(state, name) for name in ("boot", "namespace", "cookie", "changes", "holders")})
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.chmod(0o600)
    temporary.replace(path)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat (proc(5)): clock ticks after boot; tells a process from a later one with its id.

    Raises ProcessLookupError for one that has ended and is only waited for.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return int(fields[19])


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _alive(holder: list[int]) -> bool:
    """A process of another pid namespace cannot be looked at from here: it is taken to be alive."""
    pid, start, namespace = holder
    if namespace != _pid_namespace():
        return True
    try:
        return _start_time(pid) == start
    except (FileNotFoundError, ProcessLookupError):
        return False
