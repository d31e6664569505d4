"""The cgroup2 hierarchy (cgroups(7)): its root as a descriptor, and the path of a cgroup from its id.

A cgroup's id is the inode number of its directory, and the bytes of a file handle that opens it (FILEID_KERNFS).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import struct
from collections.abc import Iterator

__all__ = ["id_of", "is_whole", "open_root", "path_of"]

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # asm-generic/unistd.h; the same on all architectures, from Linux 5.2
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC, _FSCONFIG_CMD_CREATE = 1, 1, 6  # linux/mount.h
_HANDLE = struct.Struct("=IiQ")  # struct file_handle: bytes of the handle, its type, the handle
_FILEID_KERNFS = 0xFE  # linux/exportfs.h
_ROOT_ID = 1  # kernfs_create_root: the first number of each kernfs is its root's
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OCTAL = re.compile(rb"\\([0-7]{3})")  # how mountinfo writes blanks and the like

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def open_root() -> int:
    """A descriptor of the root directory of cgroup2: where it is mounted, or of a private mount that nobody else sees.

    In a container that may be only the container's part of it: see is_whole. Raises PermissionError where it is not
    mounted and CAP_SYS_ADMIN is missing, OSError where the kernel has no cgroup2.
    """
    partial: int | None = None
    for path in _mounts():
        with contextlib.suppress(OSError):
            fd = os.open(path, _DIRECTORY)
            if is_whole(fd):
                if partial is not None:
                    os.close(partial)
                return fd
            partial = _better(partial, fd)
    try:
        mounted = _mount()
    except OSError:
        if partial is None:
            raise
        return partial
    if partial is not None:
        os.close(partial)
    return mounted


def is_whole(fd: int) -> bool:
    """Whether a directory of cgroup2 is the root of the hierarchy, not that of a cgroup namespace or a part of it."""
    return os.fstat(fd).st_ino == _ROOT_ID


def id_of(fd: int) -> int:
    """The id of the cgroup whose directory is open, as bpf_get_current_cgroup_id() gives it."""
    return os.fstat(fd).st_ino


def path_of(root: int, number: int) -> str | None:
    """The path of the cgroup with an id, from the root that is open on `root`, as /proc/PID/cgroup has it.

    None if it was removed, is outside of that root, or CAP_DAC_READ_SEARCH is missing (open_by_handle_at(2)).
    """
    handle = _HANDLE.pack(8, _FILEID_KERNFS, number)
    fd = int(_libc.open_by_handle_at(root, handle, os.O_PATH | os.O_CLOEXEC))
    if fd < 0:
        return None
    try:
        base, path = os.readlink(f"/proc/self/fd/{root}"), os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return None
    finally:
        os.close(fd)
    path = path.removesuffix(" (deleted)")
    if path == base:
        return "/" if number == id_of(root) else None
    base = base.rstrip("/") + "/"
    return "/" + path[len(base) :] if path.startswith(base) else None


def _mounts() -> Iterator[bytes]:
    """Where cgroup2 is mounted (proc_pid_mountinfo(5))."""
    with open("/proc/thread-self/mountinfo", "rb") as file:
        for line in file:
            fields, _, source = line.partition(b" - ")
            if source.startswith(b"cgroup2 "):
                yield _OCTAL.sub(lambda digits: bytes([int(digits[1], 8) & 0xFF]), fields.split(b" ")[4])


def _better(one: int | None, other: int) -> int:
    """Of two parts of the hierarchy, the first that was found."""
    if one is None:
        return other
    os.close(other)
    return one


def _mount() -> int:
    context = _call("fsopen", _FSOPEN, b"cgroup2", _FSOPEN_CLOEXEC)
    try:
        _call("fsconfig", _FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        mount = _call("fsmount", _FSMOUNT, context, _FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)
    try:
        return os.open(".", _DIRECTORY, dir_fd=mount)  # the mount's own is O_PATH, which no handle can be opened with
    finally:
        os.close(mount)


def _call(name: str, *arguments: int | bytes | None) -> int:
    result = int(_libc.syscall(*(ctypes.c_long(one) if isinstance(one, int) else one for one in arguments)))
    if result < 0:
        number = ctypes.get_errno()
        needs = {errno.EPERM: " (needs CAP_SYS_ADMIN: run as root)", errno.ENODEV: " (this kernel has none)"}
        raise OSError(
            number, f"cgroup2 is not mounted, and cannot be: {name}: {os.strerror(number)}{needs.get(number, '')}"
        )
    return result
