"""What files of /proc/PID say of a process (proc_pid_stat(5), proc_pid_cmdline(5), cgroups(7)), as values.

Names of processes, programs and cgroups are bytes that anybody may choose: here they become text in which nothing can
move a terminal's cursor.
"""

from __future__ import annotations

import re
import shlex
from functools import lru_cache
from typing import NamedTuple

from conntracker.model import DecodeError

__all__ = ["CMDLINE_LIMIT", "Place", "Stat", "cgroup", "cmdline", "loginuid", "place", "stat", "text"]

CMDLINE_LIMIT = 4096  # bytes and characters of a command line that are kept
_PF_KTHREAD = 0x00200000  # linux/sched.h
_NO_ID = 2**32 - 1

_DELETED = b" (deleted)"  # behind the path of a cgroup that was removed while a zombie was in it
_CUT = "..."
_NAMED_CONTROLS = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


class Stat(NamedTuple):
    """Of /proc/PID/stat.

    start           clock ticks after boot (CLOCK_BOOTTIME)
    kernel_thread   whether it is a part of the kernel
    """

    comm: str
    ppid: int
    start: int
    kernel_thread: bool


class Place(NamedTuple):
    """What a cgroup's path tells; None for what it does not."""

    unit: str | None = None
    container: str | None = None
    engine: str | None = None


def text(raw: bytes) -> str:
    """Bytes as text in one line: what is not printable, or not UTF-8, as backslash escapes."""
    return _printable(raw.decode("utf-8", "surrogateescape"))


def stat(data: bytes) -> Stat:
    """Raises DecodeError for what is no such file."""
    # The name may hold blanks, parentheses and newlines; nothing behind it has parentheses.
    begin, end = data.find(b"("), data.rfind(b")")
    if begin < 0 or end < begin:
        raise DecodeError("no name of a process", 0)
    fields = data[end + 1 :].split()
    if len(fields) < 20 or not all(fields[i].isdigit() for i in (1, 6, 19)):
        raise DecodeError("fields of a process are missing", end + 1)
    try:
        ppid, flags, start = int(fields[1]), int(fields[6]), int(fields[19])
    except ValueError:  # more digits than Python converts
        raise DecodeError("number of a process too long", end + 1) from None
    return Stat(text(data[begin + 1 : end]), ppid, start, bool(flags & _PF_KTHREAD))


def loginuid(data: bytes) -> int | None:
    """Of /proc/PID/loginuid; None if nobody logged in to start the process. Raises DecodeError for no number."""
    digits = data.strip()
    if not digits.isdigit() or len(digits) > 10:
        raise DecodeError("no login user id", 0)
    number = int(digits)
    return None if number >= _NO_ID else number


def cgroup(data: bytes) -> str | None:
    """The path in /proc/PID/cgroup that says most: in cgroup2 (`0::`), or in systemd's own hierarchy of version 1.

    Hosts with both ('hybrid') may have their processes in either. None if there is neither. Raises DecodeError where
    a line is none of that file.
    """
    unified = systemd = None
    offset = 0
    for line in data.split(b"\n"):
        number, colon, rest = line.partition(b":")
        controllers, second, path = rest.partition(b":")
        if line and not (number.isdigit() and colon and second and path.startswith(b"/")):
            raise DecodeError("no line of a cgroup", offset)
        if number == b"0" and not controllers:
            unified = text(path.removesuffix(_DELETED))
        elif controllers == b"name=systemd":
            systemd = text(path.removesuffix(_DELETED))
        offset += len(line) + 1
    if unified is None or systemd is None:
        return systemd if unified is None else unified
    return max(unified, systemd, key=_says)


def _says(path: str) -> tuple[int, bool]:
    return sum(part is not None for part in place(path)), path != "/"


def cmdline(data: bytes) -> str:
    """/proc/PID/cmdline in one line, quoted as for a shell, of at most CMDLINE_LIMIT characters.

    A process that wrote a title over its arguments has that, as it is. '' for kernel threads and zombies.
    """
    title = data[:CMDLINE_LIMIT].rstrip(b"\0").decode("utf-8", "surrogateescape")
    cut = len(data) > CMDLINE_LIMIT
    if cut:
        title = title.rstrip("".join(map(chr, range(0xDC80, 0xDD00))))  # a character that was cut in two
    arguments = title.split("\0")
    is_title = not title or (len(arguments) == 1 and " " in title)
    line = _printable(title) if is_title else " ".join(map(_quoted, arguments))
    if cut or len(line) > CMDLINE_LIMIT:
        line = line[: CMDLINE_LIMIT - len(_CUT)] + _CUT
    return line


def _quoted(argument: str) -> str:
    if argument.isprintable():
        return shlex.quote(argument)
    return "$'" + _printable(argument.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def _printable(word: str) -> str:
    return word if word.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in word)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    return _NAMED_CONTROLS.get(character) or (f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}")


# How engines name the cgroups of containers: with the systemd driver docker-ID.scope, with cgroupfs docker/ID (runc
# puts engine and id between colons where it was given a systemd path for cgroupfs). conmon's own are not the
# container's: libpod-conmon-ID.scope, crio-conmon-ID.scope.
_ENGINES = {
    "docker": "docker", "libpod": "podman", "libpod-payload": "podman", "libpod_parent": "podman", "crio": "cri-o",
    "cri-containerd": "containerd", "nerdctl": "containerd", "buildkit": "buildkit", "docker-buildkit": "buildkit",
    "garden": "garden", "lxc": "lxc", "lxc.payload": "lxc",
}  # fmt: skip
_NAMES = {"garden", "buildkit", "lxc", "lxc.payload"}  # directories in which each entry is a container
_ENGINE_AND_ID = re.compile(
    r"(?:.*\.slice:)?(docker-buildkit|docker|libpod-payload|libpod|crio|cri-containerd|nerdctl|buildkit)"
    r"[-:]([0-9a-f]{12,64}|[0-9a-z]{25})(?:\.scope)?"
)
_ID = re.compile(r"[0-9a-f]{64}|[0-9a-f]{32}-\d{6,12}")  # the second form is that of Fargate
_POD = re.compile(r"(?:.*-)?pod([0-9a-f]{8}(?:[-_]?[0-9a-f]{4}){3}[-_]?[0-9a-f]{12})(?:\.slice)?")
_MACHINE = re.compile(r"machine-(lxc\\x2d\d+\\x2d|qemu\\x2d\d+\\x2d)?(.+)\.scope|systemd-nspawn@(.+)\.service")
_UNIT = re.compile(r".+\.(?:service|scope|socket|mount|swap)")
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")


@lru_cache(4096)
def place(path: str) -> Place:
    """Which unit of systemd and which container a cgroup belongs to, the innermost of each.

    What kubernetes runs has the engine kubernetes, whatever works below. A pod's process that is in no container of it
    has the pod's id for one.
    """
    parts = [part for part in path.split("/") if part]
    unit = next((part.removeprefix("_") for part in reversed(parts) if _UNIT.fullmatch(part)), None)
    for at in range(len(parts) - 1, -1, -1):
        container, engine = _container(parts, at)
        if container is not None:
            return Place(unit, container, engine)
    return Place(unit)


def _container(parts: list[str], at: int) -> tuple[str | None, str | None]:
    part, above = parts[at], parts[at - 1] if at else ""
    kubernetes = any("kubepods" in one for one in parts[: at + 1])
    found: tuple[str | None, str | None]
    if named := _ENGINE_AND_ID.fullmatch(part):
        found = named[2], "kubernetes" if kubernetes else _ENGINES[named[1]]
    elif _ID.fullmatch(part):
        found = part, "kubernetes" if kubernetes else _engine_above(parts[:at])
    elif kubernetes and (pod := _POD.fullmatch(part)):
        found = pod[1].replace("_", "-"), "kubernetes"
    elif above in _NAMES:
        found = part, _ENGINES[above]
    elif part.startswith("lxc.payload."):
        found = part.removeprefix("lxc.payload.") or None, "lxc"
    else:
        found = _machine(part, parts[at + 1 : at + 2] == ["supervisor"])
    return found


def _engine_above(parents: list[str]) -> str | None:
    above = parents[-1] if parents else ""
    if parents[:1] == ["ecs"]:
        return "ecs"
    # containerd without kubernetes: a directory for each of its namespaces, at the top
    return _ENGINES.get(above) or ("containerd" if parents in (["default"], ["k8s.io"], ["moby"]) else None)


def _machine(part: str, supervisor: bool) -> tuple[str | None, str | None]:
    """systemd-machined's: containers of systemd-nspawn and libvirt. Virtual machines are none, nor is nspawn itself."""
    found = _MACHINE.fullmatch(part)
    if found is None or supervisor or (found[1] or "").startswith("qemu"):
        return None, None
    name = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), found[2] or found[3])
    return (name if name.isprintable() else text(name.encode()), "libvirt" if found[1] else "nspawn")
