"""BPF object files, as clang writes them: the code of each program, and the maps that it refers to.

An object is a relocatable ELF file of machine EM_BPF (elf(5)). Each program is a function in a section of its own,
whose name says of what type it is. Maps are structs of five 32-bit words in the section `maps`. An instruction that
loads a map has a relocation with the map's symbol.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from conntracker.model import DecodeError

__all__ = ["BpfObject", "MapShape", "ProgramCode", "read_object"]

EM_BPF = 247
SHT_SYMTAB, SHT_REL = 2, 9
STT_OBJECT, STT_FUNC = 1, 2
LITTLE = b"\x7fELF\x02\x01\x01"  # 64 bits, little endian, version 1

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")  # Elf64_Ehdr
_SECTION = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr
_SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym
_RELOCATION = struct.Struct("<QQ")  # Elf64_Rel
_MAP = struct.Struct("<5I")


class MapShape(NamedTuple):
    """What bpf(2) is asked for: type (enum bpf_map_type), sizes in bytes, most entries, flags (BPF_F_*)."""

    type: int
    key_size: int
    value_size: int
    entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class ProgramCode:
    """A program: the name of its section, its instructions of eight bytes, and which of them load which map."""

    section: str
    code: bytes
    maps: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class BpfObject:
    """Programs and maps by name, and the license that the programs ask for helpers with."""

    programs: dict[str, ProgramCode]
    maps: dict[str, MapShape]
    license: str


class _Section(NamedTuple):
    name: str
    type: int
    link: int
    info: int
    content: bytes


class _Symbol(NamedTuple):
    name: str
    type: int
    section: int
    value: int
    size: int


def read_object(content: bytes) -> BpfObject:
    """The programs and maps of an object file. Raises DecodeError for what is not one."""
    try:
        return _read(content)
    except (struct.error, IndexError, KeyError, OverflowError, UnicodeDecodeError):
        raise DecodeError("the BPF object is damaged", 0) from None


def _read(content: bytes) -> BpfObject:
    if not content.startswith(LITTLE):
        raise DecodeError("not a little-endian ELF file of 64 bits", 0)
    _, _, machine, _, _, _, sections_at, _, _, _, _, _, count, names_in = _HEADER.unpack_from(content)
    if machine != EM_BPF:
        raise DecodeError("not for the BPF machine", 18)
    sections = _sections(content, sections_at, count, names_in)
    symbols = _symbols(sections)
    shapes = {
        symbol.name: MapShape(*_MAP.unpack_from(sections[symbol.section].content, symbol.value))
        for symbol in symbols
        if symbol.type == STT_OBJECT and _named(sections, symbol) == "maps"
    }
    programs = {}
    for symbol in symbols:
        if symbol.type == STT_FUNC and 0 < symbol.section < len(sections):
            code = sections[symbol.section].content[symbol.value : symbol.value + symbol.size]
            if len(code) != symbol.size or len(code) % 8:
                raise DecodeError(f"program {symbol.name} is cut short", 0)
            used = _maps_of(symbol, sections, symbols, shapes)
            programs[symbol.name] = ProgramCode(sections[symbol.section].name, code, used)
    license = next((section.content for section in sections if section.name == "license"), b"")
    return BpfObject(programs, shapes, license.rstrip(b"\0").decode("ascii"))


def _sections(content: bytes, at: int, count: int, names_in: int) -> list[_Section]:
    rows = [_SECTION.unpack_from(content, at + i * _SECTION.size) for i in range(count)]
    names = rows[names_in]
    texts = content[names[4] : names[4] + names[5]]
    return [
        _Section(_text(texts, name), kind, link, info, content[start : start + size])
        for name, kind, _, _, start, size, link, info, _, _ in rows
    ]


def _symbols(sections: list[_Section]) -> list[_Symbol]:
    table = next((section for section in sections if section.type == SHT_SYMTAB), None)
    if table is None:
        raise DecodeError("no symbols", 0)
    texts = sections[table.link].content
    rows = (_SYMBOL.unpack_from(table.content, at) for at in range(0, len(table.content), _SYMBOL.size))
    return [_Symbol(_text(texts, name), info & 15, where, value, size) for name, info, _, where, value, size in rows]


def _maps_of(
    program: _Symbol, sections: list[_Section], symbols: list[_Symbol], shapes: dict[str, MapShape]
) -> tuple[tuple[int, str], ...]:
    """(number of the instruction, name of the map) for each that a program loads."""
    used = []
    for section in sections:
        if section.type != SHT_REL or section.info != program.section:
            continue
        for at in range(0, len(section.content), _RELOCATION.size):
            offset, info = _RELOCATION.unpack_from(section.content, at)
            if program.value <= offset < program.value + program.size:
                name = symbols[info >> 32].name
                if name not in shapes:
                    raise DecodeError(
                        f"program {program.name} refers to {name or 'something'}, which is no map", offset
                    )
                if (offset - program.value) % 8 or offset - program.value + 16 > program.size:
                    raise DecodeError(f"program {program.name}: a relocation is not at an instruction", offset)
                used.append(((offset - program.value) // 8, name))
    return tuple(used)


def _named(sections: list[_Section], symbol: _Symbol) -> str | None:
    return sections[symbol.section].name if 0 < symbol.section < len(sections) else None


def _text(texts: bytes, at: int) -> str:
    end = texts.find(b"\0", at)
    if end < 0 or at > len(texts):
        raise DecodeError("a name has no end", at)
    return texts[at:end].decode("ascii")
