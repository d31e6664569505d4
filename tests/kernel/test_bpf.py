"""bpf(2): maps of each kind that is used, and what the kernel refuses."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from conntracker.sources.bpf.calls import (
    EXIST,
    NOEXIST,
    SK_STORAGE,
    BpfError,
    Map,
    attach_cgroup,
    attach_tracepoint,
    load_program,
)
from conntracker.wire.elf import BpfObject, MapShape, ProgramCode

HASH, ARRAY, LRU_HASH = 1, 2, 9  # enum bpf_map_type
NO_PREALLOC = 1
KEY, VALUE = np.dtype("u8"), np.dtype([("one", "u8"), ("two", "u8")])

SOURCE = BpfObject({}, {}, "GPL")
RETURN_ONE, EXIT = struct.pack("<BBhi", 0xB7, 0, 0, 1), struct.pack("<BBhi", 0x95, 0, 0, 0)
GET_CURRENT_COMM = struct.pack("<BBhi", 0x85, 0, 0, 16)
FALLS_OFF = RETURN_ONE
GOOD = RETURN_ONE + EXIT


@contextlib.contextmanager
def made(kind: int, entries: int, value: int = VALUE.itemsize, key: int = 8, flags: int = 0) -> Iterator[Map]:
    """A map that is closed at the end."""
    held = Map("ct_test", MapShape(kind, key, value, entries, flags))
    try:
        yield held
    finally:
        held.close()


@pytest.fixture(autouse=True)
def _bpf() -> None:
    """Skips where there is no bpf(2) for us at all."""
    try:
        with made(HASH, 1):
            pass
    except OSError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no bpf(2) here: {error.strerror}")


def value(one: int) -> bytes:
    """A value that says of itself whether it is whole."""
    return struct.pack("=QQ", one, ~one & 0xFFFFFFFFFFFFFFFF)


def key(one: int) -> bytes:
    """A key of eight bytes."""
    return struct.pack("=Q", one)


@pytest.mark.parametrize("kind", [HASH, LRU_HASH])
def test_one_entry(kind: int) -> None:
    """An entry is set, found, set anew, and forgotten; the flags say whether it may or must be there."""
    with made(kind, 8) as held:
        assert held.lookup(key(5)) is None
        with pytest.raises(FileNotFoundError):
            held.update(key(5), value(1), EXIST)
        held.update(key(5), value(1), NOEXIST)
        assert held.lookup(key(5)) == value(1)
        with pytest.raises(FileExistsError):
            held.update(key(5), value(2), NOEXIST)
        held.update(key(5), value(3), EXIST)
        held.update(key(5), value(4))
        assert held.lookup(key(5)) == value(4)
        held.delete(key(5))
        assert held.lookup(key(5)) is None
        held.delete(key(5))


def test_array() -> None:
    """An array has all its elements from the start."""
    with made(ARRAY, 2, key=4) as held:
        assert held.lookup(struct.pack("=I", 1)) == bytes(16)
        held.update(struct.pack("=I", 1), value(7))
        assert held.lookup(struct.pack("=I", 1)) == value(7)
        with pytest.raises(OSError, match="Argument list too long"):
            held.update(struct.pack("=I", 2), value(7))


def test_storage_of_sockets() -> None:
    """The storage of a socket is reached by its descriptor, and is not another socket's."""
    with (
        made(SK_STORAGE, 0, key=4, flags=NO_PREALLOC) as held,
        socket.socket(socket.AF_INET) as one,
        socket.socket(socket.AF_INET) as other,
    ):
        held.update(struct.pack("=i", one.fileno()), value(7), NOEXIST)
        assert held.lookup(struct.pack("=i", one.fileno())) == value(7)
        assert held.lookup(struct.pack("=i", other.fileno())) is None
        held.delete(struct.pack("=i", one.fileno()))
        assert held.lookup(struct.pack("=i", one.fileno())) is None


def fill(held: Map, count: int) -> None:
    """Sets the keys from 0 on."""
    for one in range(count):
        held.update(key(one), value(one))


@pytest.mark.parametrize("kind", [HASH, LRU_HASH])
@pytest.mark.parametrize("count", [0, 1, 4095, 4096, 4097, 20000])
def test_batches(kind: int, count: int) -> None:
    """Reading gives every entry once and whole, and again; taking gives every entry once and never again."""
    with made(kind, 1 << 16) as held:
        fill(held, count)
        for take in (Map.read, Map.read, Map.take):
            keys, values = take(held, KEY, VALUE)
            assert (keys.dtype, values.dtype) == (KEY, VALUE)
            assert np.sort(keys).tolist() == list(range(count))
            assert (values["one"] == keys).all()
            assert (values["two"] == ~keys).all()
        assert len(held.take(KEY, VALUE)[0]) == 0
        fill(held, 1)
        assert held.read(KEY, VALUE)[0].tolist() == [0]


def test_batches_of_what() -> None:
    """A map that cannot be read in batches says so."""
    with made(SK_STORAGE, 0, key=4, flags=NO_PREALLOC) as held, pytest.raises(BpfError):
        held.read(np.dtype("u4"), VALUE)


def test_full() -> None:
    """A hash that is full takes no more."""
    with made(HASH, 4) as held:
        fill(held, 4)
        with pytest.raises(OSError, match="Argument list too long") as refused:
            held.update(key(4), value(4))
        assert refused.value.errno == errno.E2BIG


def test_closed() -> None:
    """A map that is closed has no descriptor any more."""
    with made(HASH, 1) as held:
        fd = held.fd
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize(("kind", "entries", "size"), [(9999, 1, 8), (HASH, 0, 8), (HASH, 1, 0), (SK_STORAGE, 1, 8)])
def test_refused_map(kind: int, entries: int, size: int) -> None:
    """A map that the kernel refuses is named."""
    with pytest.raises(BpfError, match=r"map ct_test: Invalid argument"), made(kind, entries, size):
        pass


def load(code: bytes, comm: bool = True, section: str = "cgroup/sock_create", license: str = "GPL") -> None:
    """Loads a program without maps, and lets go of it."""
    source = BpfObject({}, {}, license)
    os.close(load_program("ct_test", ProgramCode(section, code, ()), source, {}, comm))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (EXIT, "R0 !read_ok"),
        (FALLS_OFF, "last insn is not an exit or jmp"),
        (struct.pack("<BBhi", 0xB7, 0, 0, 77) + EXIT, "At program exit the register R0 has"),
        (struct.pack("<BBhi", 0x61, 0x10, 4000, 0) + GOOD, "invalid bpf_context access off=4000"),
        (struct.pack("<BBhi", 0xFF, 0, 0, 0) + GOOD, "unknown opcode ff"),
    ],
)
def test_refused_program(code: bytes, words: str) -> None:
    """A program that the verifier refuses is named, with the verifier's last words."""
    with pytest.raises(BpfError, match=rf"program ct_test: (Permission denied|Invalid argument) \(.*({words})"):
        load(code)


def test_refused_map_of_program() -> None:
    """The descriptor of a map is put where the program loads it, and one that is no map is refused."""
    code = struct.pack("<BBhi", 0x18, 1, 0, 0) + bytes(8) + GOOD
    program = ProgramCode("cgroup/sock_create", code, ((0, "ct_map"),))
    with made(HASH, 1) as held:
        os.close(load_program("ct_test", program, SOURCE, {"ct_map": held}))
        fd, held.fd = held.fd, os.open("/dev/null", os.O_RDONLY)
        try:
            with pytest.raises(BpfError, match="program ct_test"):
                load_program("ct_test", program, SOURCE, {"ct_map": held})
        finally:
            os.close(held.fd)
            held.fd = fd


def test_without_names() -> None:
    """Without CAP_PERFMON the call for a thread's name is left out, and nothing else."""
    with pytest.raises(BpfError, match="R1"):
        load(GET_CURRENT_COMM + GOOD)
    load(GET_CURRENT_COMM + GOOD, comm=False)


def test_attaching() -> None:
    """What is no cgroup, and a tracepoint that is not there, are refused."""
    program = load_program("ct_test", ProgramCode("cgroup/sock_create", GOOD, ()), SOURCE, {})
    traced = load_program("ct_test", ProgramCode("raw_tp/nothing", GOOD, ()), SOURCE, {})
    other = os.open("/", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            attach_cgroup(program, "cgroup/sock_create", other)
        with pytest.raises(FileNotFoundError):
            attach_tracepoint(traced, "raw_tp/nothing")
    finally:
        for fd in (program, traced, other):
            os.close(fd)
