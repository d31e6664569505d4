"""What of BPF a process has, and what of it is still in the kernel: bpf(2) by hand, so that it checks the loader."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["SYSCALL", "Objects", "alive", "gone", "held", "names"]

# linux/bpf.h: commands that open an object of a kind by its id, and that tell of an open one
FD_BY_ID = {"prog": 13, "map": 14, "link": 30}  # BPF_PROG_, BPF_MAP_, BPF_LINK_GET_FD_BY_ID
NEXT_ID = {"prog": 11, "map": 12, "link": 31}  # BPF_PROG_, BPF_MAP_, BPF_LINK_GET_NEXT_ID
OBJ_GET_INFO_BY_FD = 15
NAME_AT = {"prog": 64, "map": 24}  # struct bpf_prog_info, bpf_map_info: name
NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
SYSCALL = NUMBERS[platform.machine()]
IN_FDINFO = re.compile(r"^(prog|map|link)_id:\s*(\d+)$", re.MULTILINE)

Objects = set[tuple[str, int]]

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: ctypes.Array[ctypes.c_uint32]) -> int:
    result: int = _libc.syscall(SYSCALL, command, attributes, ctypes.sizeof(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def held(pid: int) -> Objects:
    """(kind, id) of all programs, maps and links that a process has open, or that its links stand for."""
    found: Objects = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found |= {(kind, int(number)) for kind, number in IN_FDINFO.findall(path.read_text())}
    return found


def alive(kind: str) -> set[int]:
    """The ids of all objects of a kind that the kernel has."""
    found: set[int] = set()
    words = (ctypes.c_uint32 * 3)()  # the last id, the next one, flags
    while True:
        try:
            _bpf(NEXT_ID[kind], words)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return found
            raise
        found.add(words[1])
        words[0] = words[1]


def names(objects: Objects) -> set[str]:
    """The names of programs and maps."""
    found = set()
    for kind, number in objects:
        if kind not in NAME_AT:
            continue
        fd = _bpf(FD_BY_ID[kind], (ctypes.c_uint32 * 3)(number))
        info = ctypes.create_string_buffer(256)
        where = ctypes.addressof(info)
        try:
            _bpf(OBJ_GET_INFO_BY_FD, (ctypes.c_uint32 * 4)(fd, len(info), where & 0xFFFFFFFF, where >> 32))
        finally:
            os.close(fd)
        found.add(info.raw[NAME_AT[kind] : NAME_AT[kind] + 16].split(b"\0")[0].decode())
    return found


def gone(objects: Objects, seconds: float = 5.0) -> Objects:
    """Waits until the kernel has none of these; it takes maps down a moment late. Returns those that stay."""
    ends = time.monotonic() + seconds
    while True:
        left = {(kind, number) for kind, number in objects if number in alive(kind)}
        if not left or time.monotonic() > ends:
            return left
        time.sleep(0.05)
