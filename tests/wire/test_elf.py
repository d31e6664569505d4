"""BPF object files: the one that we ship, and whatever else may come."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.model import DecodeError
from conntracker.sources.bpf.calls import TYPES
from conntracker.sources.bpf.ownership import OBJECT
from conntracker.wire.elf import SHT_SYMTAB, BpfObject, MapShape, read_object
from conntracker.wire.ownership import KEY, MEMORY, SIDE, USER

CONTENT = OBJECT.read_bytes()
SHIPPED = read_object(CONTENT)

LOAD_MAP, CALL, EXIT = 0x18, 0x85, 0x95  # opcodes, linux/bpf.h


def read(content: bytes) -> BpfObject | None:
    """What is in an object, None if it is refused as it should be."""
    with contextlib.suppress(DecodeError):
        return read_object(content)
    return None


# name; type (enum bpf_map_type), sizes of keys and values
MAPS = [
    ("ct_memory", 24, 4, MEMORY.itemsize), ("ct_sides", 1, KEY.itemsize, SIDE.itemsize),
    ("ct_users", 9, 8, USER.itemsize), ("ct_numbers", 2, 4, 8), ("ct_recent", 6, 4, 8),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "key", "value"), MAPS)
def test_sizes(name: str, kind: int, key: int, value: int) -> None:
    """The maps of the programs have keys and values of the sizes that rows are decoded with."""
    assert SHIPPED.maps[name][:3] == (kind, key, value)


def test_maps() -> None:
    """No map is there that nobody knows, and there is room for 65,536 rows."""
    assert set(SHIPPED.maps) == {name for name, *_ in MAPS}
    assert SHIPPED.maps["ct_sides"] == MapShape(1, KEY.itemsize, SIDE.itemsize, 65536, 0)


def test_programs() -> None:
    """Each program is of a type that can be attached, ends with an exit, and loads maps where it says so."""
    assert {program.section for program in SHIPPED.programs.values()} - TYPES.keys() == {
        "raw_tp/sock_send_length", "raw_tp/sock_recv_length",
    }  # fmt: skip
    for program in SHIPPED.programs.values():
        codes = program.code[::8]
        assert EXIT in codes
        assert {name for _, name in program.maps} <= SHIPPED.maps.keys()
        loads = [number for number, code in enumerate(codes) if code == LOAD_MAP]
        assert {number for number, _ in program.maps} <= set(loads)
        for number, _ in program.maps:
            assert program.code[number * 8 + 4 : number * 8 + 8] == bytes(4)


def test_license() -> None:
    """The helpers that the programs call are for GPL programs."""
    assert SHIPPED.license == "GPL"


def test_no_calls_between_programs() -> None:
    """Every call is one of a helper: programs are single functions."""
    for program in SHIPPED.programs.values():
        for at in range(0, len(program.code), 8):
            code, registers, _, helper = struct.unpack_from("<BBhi", program.code, at)
            if code == CALL:
                assert registers >> 4 == 0
                assert helper > 0


def test_nothing_of_the_machine() -> None:
    """The object names no file and no directory: it is the same wherever it was made."""
    assert b"/home" not in CONTENT
    assert b".debug" not in CONTENT
    assert b"owners.bpf" not in CONTENT


REFUSED = [
    (b"", "not a little-endian ELF"),
    (b"\x7fELF\x02\x02\x01" + CONTENT[7:], "not a little-endian ELF"),
    (b"\x7fELF\x01\x01\x01" + CONTENT[7:], "not a little-endian ELF"),
    (CONTENT[:18] + b"\x3e\x00" + CONTENT[20:], "not for the BPF machine"),
    (CONTENT[:63], "damaged"),
    (CONTENT[: len(CONTENT) // 2], "damaged"),
]


@pytest.mark.parametrize(("content", "said"), REFUSED)
def test_refused(content: bytes, said: str) -> None:
    """What is no BPF object is refused with the reason."""
    with pytest.raises(DecodeError, match=said):
        read_object(content)


@given(st.binary(max_size=400), st.booleans())
def test_any_bytes(data: bytes, headed: bool) -> None:
    """Any bytes are refused, or make an object, also behind a good header."""
    read(CONTENT[:64] + data if headed else data)


@given(st.lists(st.tuples(st.integers(0, len(CONTENT) - 1), st.integers(1, 255)), min_size=1, max_size=8))
def test_flipped(flips: list[tuple[int, int]]) -> None:
    """A damaged object is refused, or read with programs of whole instructions that load maps which are there."""
    content = bytearray(CONTENT)
    for at, mask in flips:
        content[at] ^= mask
    found = read(bytes(content))
    if found is not None:
        for program in found.programs.values():
            assert len(program.code) % 8 == 0
            for number, name in program.maps:
                assert 0 <= number * 8 <= len(program.code) - 16
                assert name in found.maps


# Of the ELF header, where the headers of sections are and how many; of each of those, its type and where it is.
HEADERS_AT, COUNT = struct.unpack_from("<40xQ12xH", CONTENT)
SECTIONS = [struct.unpack_from("<4xI16xQ", CONTENT, HEADERS_AT + 64 * i) for i in range(COUNT)]
SYMBOLS_AT = next(at for kind, at in SECTIONS if kind == SHT_SYMTAB)


@given(st.sampled_from([40, 58, HEADERS_AT, SYMBOLS_AT]), st.integers(0, 300), st.binary(min_size=1, max_size=8))
def test_overwritten(base: int, distance: int, data: bytes) -> None:
    """Any numbers in the headers of sections and in the table of symbols are refused, or make an object."""
    at = min(base + distance, len(CONTENT) - len(data))
    read(CONTENT[:at] + data + CONTENT[at + len(data) :])


@given(st.integers(0, len(CONTENT)))
def test_cut_short(size: int) -> None:
    """Of an object that is cut short, nothing is left that is not whole."""
    found = read(CONTENT[:size])
    assert found is None or found.programs.keys() <= SHIPPED.programs.keys()
