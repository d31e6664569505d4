"""bpf(2): maps, programs and links, and nothing but the kernel for them: no libbpf, no compiler, no BTF.

Everything made here is held by descriptors, and the kernel takes it down when the last of them closes, however the
process ends. Sources: linux/bpf.h, bpf(2), Documentation/bpf/ of the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from conntracker.wire.elf import BpfObject, MapShape, ProgramCode

__all__ = ["BpfError", "Map", "attach_cgroup", "attach_tracepoint", "load_program"]

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "ppc64le": 361}

# enum bpf_cmd
MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, PROG_LOAD = 0, 1, 2, 3, 5
RAW_TRACEPOINT_OPEN, BTF_LOAD, MAP_LOOKUP_BATCH, MAP_LOOKUP_AND_DELETE_BATCH, LINK_CREATE = 17, 18, 24, 25, 28

SK_STORAGE = 24  # enum bpf_map_type
NOEXIST, EXIST = 1, 2  # of an update

# Section: (enum bpf_prog_type, enum bpf_attach_type)
TYPES = {
    "cgroup_skb/ingress": (8, 0), "cgroup_skb/egress": (8, 1),
    "cgroup/sock_create": (9, 2), "cgroup/post_bind4": (9, 12), "cgroup/post_bind6": (9, 13),
    "cgroup/sock_release": (9, 34),
    "cgroup/connect4": (18, 10), "cgroup/connect6": (18, 11), "cgroup/sendmsg4": (18, 14),
    "cgroup/sendmsg6": (18, 15), "cgroup/recvmsg4": (18, 19), "cgroup/recvmsg6": (18, 20),
    "cgroup/getpeername4": (18, 29), "cgroup/getpeername6": (18, 30),
}  # fmt: skip
RAW_TRACEPOINT = 17

# Instructions (linux/bpf.h): a load of a map's descriptor, a call, and "r0 = 0".
_PSEUDO_MAP_FD, _CALL, _RETURN_ZERO = 1, 0x85, b"\xb7" + bytes(7)
_GET_CURRENT_COMM = struct.pack("<BBhi", _CALL, 0, 0, 16)

_LOG_SIZE = 1 << 16
_libc = ctypes.CDLL(None, use_errno=True)


class BpfError(OSError):
    """What bpf(2) refused, with the name of the program and the last line of the verifier where there is one."""


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """The result, and the attributes as the kernel left them. Raises OSError."""
    number = _NUMBERS.get(platform.machine())
    if number is None or sys.maxsize < 1 << 32 or sys.byteorder != "little":
        raise BpfError(errno.ENOSYS, f"the BPF programs are not made for {platform.machine()}")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = _libc.syscall(ctypes.c_long(number), ctypes.c_int(command), buffer, ctypes.c_uint(len(attributes)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result, buffer.raw


def _address(buffer: ctypes.Array[ctypes.c_char] | None) -> int:
    return 0 if buffer is None else ctypes.addressof(buffer)


class Map:
    """A map, made as an object file describes it. Keys and values are bytes of the sizes in `shape`."""

    def __init__(self, name: str, shape: MapShape) -> None:
        self.shape = shape
        btf = _words_btf(shape.value_size // 4) if shape.type == SK_STORAGE else -1
        types = (btf, 1, 2) if btf >= 0 else (0, 0, 0)
        try:
            # type, sizes, entries, flags, inner map, NUMA node, name, interface, BTF: descriptor, key type, value type
            attributes = struct.pack("<7I16s4I", *shape, 0, 0, name.encode()[:15], 0, *types)
            self.fd = _bpf(MAP_CREATE, attributes)[0]
        except OSError as error:
            raise BpfError(error.errno, f"map {name}: {error.strerror}") from error
        finally:
            if btf >= 0:
                os.close(btf)

    def close(self) -> None:
        """The map is gone once no program refers to it either."""
        os.close(self.fd)

    def lookup(self, key: bytes) -> bytes | None:
        """The value of a key, None if it has none."""
        value = ctypes.create_string_buffer(self.shape.value_size)
        try:
            self._call(MAP_LOOKUP, key, value, 0)
        except FileNotFoundError:
            return None
        return value.raw

    def update(self, key: bytes, value: bytes, flags: int = 0) -> None:
        """Sets the value of a key. Raises OSError: EEXIST with NOEXIST, ENOENT with EXIST."""
        self._call(MAP_UPDATE, key, ctypes.create_string_buffer(value, len(value)), flags)

    def delete(self, key: bytes) -> None:
        """Forgets a key; nothing happens if it is not there."""
        with contextlib.suppress(FileNotFoundError):
            self._call(MAP_DELETE, key, None, 0)

    def _call(self, command: int, key: bytes, value: ctypes.Array[ctypes.c_char] | None, flags: int) -> None:
        held = ctypes.create_string_buffer(key, len(key))
        _bpf(command, struct.pack("<IIQQQ", self.fd, 0, _address(held), _address(value), flags))

    def read(self, keys: np.dtype[Any], values: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """All entries of a hash map, as arrays of these dtypes."""
        return self._batches(MAP_LOOKUP_BATCH, keys, values)

    def take(self, keys: np.dtype[Any], values: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """As `read`; and takes them out of the map."""
        return self._batches(MAP_LOOKUP_AND_DELETE_BATCH, keys, values)

    def _batches(self, command: int, keys: np.dtype[Any], values: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        found: list[tuple[NDArray[Any], NDArray[Any]]] = []
        place = ctypes.create_string_buffer(8)  # the bucket to go on with
        begun, more, size = False, True, self.shape.entries
        while more:
            part = np.empty(size, keys), np.empty(size, values)
            attributes = struct.pack(
                "<QQQQIIQQ", _address(place) if begun else 0, _address(place), part[0].ctypes.data,
                part[1].ctypes.data, size, self.fd, 0, 0,
            )  # fmt: skip
            buffer = ctypes.create_string_buffer(attributes, len(attributes))
            result = _libc.syscall(
                ctypes.c_long(_NUMBERS[platform.machine()]), ctypes.c_int(command), buffer, ctypes.c_uint(len(buffer))
            )
            code = ctypes.get_errno() if result < 0 else 0
            if code not in (0, errno.ENOENT):
                raise BpfError(code, os.strerror(code))
            count = struct.unpack_from("<I", buffer, 32)[0]
            found.append((part[0][:count], part[1][:count]))
            begun, more = True, not code
        if len(found) == 1:
            return found[0]
        return np.concatenate([part for part, _ in found]), np.concatenate([part for _, part in found])


def _words_btf(words: int) -> int:
    """A descriptor of BTF that has just what the storage of a socket asks for: [1] int and [2] an array of ints."""
    names = b"\0int\0"
    types = struct.pack("<IIII", 1, 1 << 24, 4, 32) + struct.pack("<III", 0, 3 << 24, 0)
    types += struct.pack("<III", 1, 1, words)
    text = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names)) + types + names
    buffer = ctypes.create_string_buffer(text, len(text))
    try:
        return _bpf(BTF_LOAD, struct.pack("<QQIII", _address(buffer), 0, len(text), 0, 0))[0]
    except OSError as error:
        raise BpfError(error.errno, f"types of maps: {error.strerror}") from error


def load_program(name: str, program: ProgramCode, source: BpfObject, maps: dict[str, Map], comm: bool = True) -> int:
    """The descriptor of a loaded program.

    comm   whether it may ask for the name of a thread, which takes CAP_PERFMON; else it finds an empty one

    Raises BpfError with the verifier's last words.
    """
    code = bytearray(program.code)
    for number, used in program.maps:
        code[number * 8 + 1] = code[number * 8 + 1] & 15 | _PSEUDO_MAP_FD << 4
        struct.pack_into("<i", code, number * 8 + 4, maps[used].fd)
    if not comm:
        for at in range(0, len(code), 8):
            if code[at : at + 8] == _GET_CURRENT_COMM:
                code[at : at + 8] = _RETURN_ZERO
    kind, attach = TYPES.get(program.section, (RAW_TRACEPOINT, 0))
    code_buffer = ctypes.create_string_buffer(bytes(code), len(code))
    license_buffer = ctypes.create_string_buffer(source.license.encode())
    log: ctypes.Array[ctypes.c_char] | None = None
    while True:
        # type, instructions, code, license, log level, size and place, version, flags, name, interface, attach type
        attributes = struct.pack(
            "<IIQQIIQII16sII", kind, len(code) // 8, _address(code_buffer), _address(license_buffer),
            int(log is not None), 0 if log is None else len(log), _address(log), 0, 0, name.encode()[:15], 0, attach,
        )  # fmt: skip
        try:
            return _bpf(PROG_LOAD, attributes)[0]
        except OSError as error:
            if log is None and error.errno in (errno.EACCES, errno.EINVAL):  # refused by the verifier: ask why
                log = ctypes.create_string_buffer(_LOG_SIZE)
                continue
            words = "" if log is None else _last_words(log.value)
            raise BpfError(error.errno, f"program {name}: {error.strerror}{words}") from error


def _last_words(log: bytes) -> str:
    """What the verifier said last, without its statistics."""
    lines = [line for line in log.decode("utf-8", "replace").splitlines() if line and not line.startswith("processed ")]
    return f" ({lines[-1]})" if lines else ""


def attach_cgroup(program: int, section: str, cgroup: int) -> int:
    """A link of a program with a cgroup, for as long as its descriptor is open. Raises OSError."""
    return _bpf(LINK_CREATE, struct.pack("<IIII16x", program, cgroup, TYPES[section][1], 0))[0]


def attach_tracepoint(program: int, section: str) -> int:
    """A link of a program with a raw tracepoint. Raises OSError: ENOENT where the kernel has none of that name."""
    name = ctypes.create_string_buffer(section.partition("/")[2].encode())
    return _bpf(RAW_TRACEPOINT_OPEN, struct.pack("<QII", _address(name), program, 0))[0]
