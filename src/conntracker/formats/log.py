"""The sorted log, in the original tool's format, byte for byte.

     TCPv4 [           0] src = 10.250.97.1 (port=2049) to dst = 10.250.97.151 (port=677) (-)
    ICMPv4 [           0] src = 10.250.97.151 to dst = 8.8.4.4 (type=8 | code=0)

One line a direction, numbered within its group; groups in the order of `LOG_GROUPS`; inside a group sorted by source
and destination address, then source and destination port, as numbers. Lines are put together as rows of 64-bit words of
NUL-padded text, and the NULs are taken out at the end: a million lines take a third of a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from conntracker.formats.behind import WriteBehind
from conntracker.formats.owner import NOBODY, Tails, sender
from conntracker.formats.steps import Key, interleave
from conntracker.model import ADDRESS_COLUMNS, LOG_GROUPS, U32, U64, unpack_addresses
from conntracker.owner import Owner
from conntracker.sorting import sort_distinct, sort_gathered

_ROWS = 1 << 12  # lines put together at once: half a megabyte of words, which a processor's cache holds
_CYCLE = 10_000  # the last four digits of a line's number repeat

Directions = tuple[tuple[U64, ...], U32]
OwnedDirections = tuple[tuple[U64, ...], U32, U32]


def write_log(
    out: BinaryIO,
    directions: Callable[[int, int], Directions | OwnedDirections],
    steps: Mapping[Key, list[str]] | None = None,
    owners: Mapping[int, Owner] | None = None,
) -> int:
    """Writes the whole log of a flow table.

    directions   as FlowTable.directions: (family, protocol) to (address words, ports uint32) and, where `owners` are
                 given, the numbers of the owners (uint32, 0 for none), those of older flows first
    steps        as in `write_groups`
    owners       by number

    Returns the number of lines. Errors of `out` pass through.
    """
    known = None if owners is None else _Numbered(owners)

    def groups() -> Iterator[tuple[str, Mapping[str, NDArray[Any]]]]:
        for label, family, proto in LOG_GROUPS:
            found = directions(family, proto)
            if known is None or len(found) == 2:
                yield label, _columns(label, *sort_distinct(found[0], found[1]))
                continue
            addresses, ports, owner, sets = sort_gathered(found[0], found[1], known.places(found[2]), known.values)
            yield label, _columns(label, addresses, ports) | {"owner": owner, "owners": sets}

    return write_groups(out, groups(), steps)


def _columns(label: str, addresses: tuple[U64, ...], ports: U32) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = dict(zip(ADDRESS_COLUMNS, unpack_addresses(addresses), strict=True))
    bits = 8 if label.startswith("ICMP") else 16
    return columns | {"sport": ports >> np.uint32(bits), "dport": ports & np.uint32((1 << bits) - 1)}


class _Numbered:
    """What the log says of owners, the first of them nobody, and which a number is; one that is not known is nobody."""

    def __init__(self, owners: Mapping[int, Owner]) -> None:
        self.values = [None, *map(sender, owners.values())]
        self._places = np.zeros(max(owners, default=0) + 2, np.uint32)
        self._places[list(owners)] = np.arange(1, len(self.values))

    def places(self, numbers: U32) -> U32:
        return self._places.take(numbers, mode="clip")


def write_groups(
    out: BinaryIO,
    groups: Iterable[tuple[str, Mapping[str, NDArray[Any]]]],
    steps: Mapping[Key, list[str]] | None = None,
) -> int:
    """Writes directions that are sorted and distinct already: (label, columns), a group in one part or several.

    Columns as in `write_directions`; `steps` has the lines that stand below a direction, see formats.steps. Returns the
    number of lines, those of steps not counted.
    """
    lines: Counter[str] = Counter()
    places = {label: place for label, *place in LOG_GROUPS}
    with WriteBehind(out) as behind:
        for label, columns in groups:
            if steps:
                text = _Collected()
                write_directions(text, label, columns, lines[label])
                behind.write(b"".join(interleave(bytes(text), places[label], columns, steps)))
            else:
                write_directions(behind, label, columns, lines[label])
            lines[label] += len(columns["sport"])
    return lines.total()


class _Collected(bytearray):
    """Takes what is written."""

    write = bytearray.extend


def write_directions(
    out: BinaryIO | WriteBehind | _Collected, kind: str, columns: Mapping[str, NDArray[Any]], first_index: int
) -> None:
    """Writes the lines of one group, or the next part of it.

    kind          a label of LOG_GROUPS
    columns       src_hi, src_lo, dst_hi, dst_lo (uint64; IPv4 in the low word), sport, dport (ports, or type and code
                  of ICMP), sorted and distinct; where owners are looked for also `owner`, places in `owners`, which
                  are tuples of Sender, the empty one first
    first_index   the number of the first line
    """
    address, wide = (_ipv4, 2) if kind.endswith("4") else (_ipv6, 5)
    icmp = kind.startswith("ICMP")
    tails = Tails(columns["owner"], columns["owners"], icmp) if "owner" in columns else None
    layouts: dict[int, _Lines] = {}
    total, start = len(columns["sport"]), 0
    while start < total:
        index = first_index + start
        stop = min(total, start + _ROWS, start + _CYCLE - index % _CYCLE)
        part = {name: columns[name][start:stop] for name in (*ADDRESS_COLUMNS, "sport", "dport")}
        head = f"{kind:>6} [{index // _CYCLE or '':8}".encode()
        last = _last_digits(index >= _CYCLE)[index % _CYCLE : index % _CYCLE + stop - start]
        src, dst = address(part["src_hi"], part["src_lo"]), address(part["dst_hi"], part["dst_lo"])
        first, second = part["sport"], part["dport"]
        if icmp:
            ends = [src, dst, [_numbers().take(first)], [_numbers().take(second)]]
        else:
            ends = [src, list(_source_ports().take(first, axis=0).T), dst, [_numbers().take(second)]]
        if tails is not None:
            ends.append(tails.words(slice(start, stop)))
        width = 0 if tails is None else len(ends[-1])
        if width not in layouts:
            layouts[width] = _layout(icmp, wide, width)
        out.write(layouts[width].text([np.frombuffer(head, np.uint64), last], ends))
        start = stop


def _layout(icmp: bool, wide: int, tail: int) -> _Lines:
    """Where all stands in a line: addresses of so many words, and as many for its end where that differs by line."""
    # The label and the first eight places of the number are two words; its last four and '] sr' are the third.
    if icmp:
        return _Lines(2, 1, b"c = ", wide, b" to dst = ", wide, b" (type=", 1, b" | code=", 1, tail or b")\n")
    return _Lines(2, 1, b"c = ", wide, 2, b" dst = ", wide, b" (port=", 1, tail or f") ({NOBODY})\n".encode())


class _Lines:
    """Constant text and columns of text words, side by side in one buffer, given out without their NULs."""

    def __init__(self, *pieces: bytes | int) -> None:
        """A piece is text that stands in every line, or the number of words of a column."""
        texts = [piece.ljust(-(-len(piece) // 8) * 8, b"\0") if isinstance(piece, bytes) else b"" for piece in pieces]
        sizes = [len(text) // 8 or piece for text, piece in zip(texts, pieces, strict=True)]
        starts = np.cumsum([0, *sizes])
        self._buffer = bytearray(_ROWS * int(starts[-1]) * 8)
        self._words = np.frombuffer(self._buffer, np.uint64).reshape(_ROWS, -1)
        self._columns = [int(start) for start, piece in zip(starts, pieces, strict=False) if isinstance(piece, int)]
        for start, text in zip(starts, texts, strict=False):
            if text:
                self._words[:, start : start + len(text) // 8] = np.frombuffer(text, np.uint64)

    def text(self, head: list[U64], columns: list[list[U64]]) -> bytearray:
        """The lines. Of `head`, the first piece is the same in all of them; each column is the list of its words."""
        same, last = head
        rows = len(last)
        for start, words in zip(self._columns, [list(same), [last], *columns], strict=True):
            for i, word in enumerate(words):
                self._words[:rows, start + i] = word
        whole = self._buffer if rows == _ROWS else self._buffer[: rows * self._words.shape[1] * 8]
        return whole.translate(None, b"\0")


def _digits(width: int, count: int, pad: int) -> NDArray[np.uint8]:
    """The numbers below `count`, in decimal and right-aligned, as uint8[count, width]; `pad` fills the left."""
    powers = 10 ** np.arange(width - 1, -1, -1)
    numbers = np.arange(count)[:, None]
    digits = (numbers // powers % 10 + ord("0")).astype(np.uint8)
    if pad != ord("0"):
        digits[(numbers < powers) & (powers > 1)] = pad
    return digits


def _words(*parts: NDArray[np.uint8] | bytes) -> U64:
    """Columns of bytes side by side, as words of eight."""
    rows = max(len(part) for part in parts if isinstance(part, np.ndarray))
    text = np.zeros((rows, 8), np.uint8)
    at = 0
    for part in parts:
        width = len(part) if isinstance(part, bytes) else part.shape[1]
        text[:, at : at + width] = np.frombuffer(part, np.uint8) if isinstance(part, bytes) else part
        at += width
    return text.view(np.uint64).ravel()


@cache
def _numbers() -> U64:
    return _words(_digits(5, 65536, 0))


@cache
def _source_ports() -> U64:
    """' (port=12345) to' in two words."""
    numbers = _digits(5, 65536, 0)
    return np.stack([_words(b" (port=", numbers[:, :1]), _words(numbers[:, 1:], b") to")], axis=1)


@cache
def _octets() -> tuple[U64, U64]:
    """Two octets at once: 'a.b.' and 'a.b'."""
    octets = _digits(3, 256, 0)
    first, second = np.repeat(octets, 256, axis=0), np.tile(octets, (256, 1))
    return _words(first, b".", second, b"."), _words(first, b".", second)


@cache
def _last_digits(more: bool) -> U64:
    """The last four places of a line's number, and '] sr'; padded with zeros where there are `more` digits before."""
    return _words(_digits(4, _CYCLE, ord("0" if more else " ")), b"] sr")


def _ipv4(high: U64, low: U64) -> list[U64]:
    del high
    first, second = _octets()
    address = low.astype(np.uint32)
    return [first.take(address >> np.uint32(16)), second.take(address & np.uint32(0xFFFF))]


def _ipv6(high: U64, low: U64) -> list[U64]:
    """inet_ntop(3) of each distinct address, 39 characters in five words."""
    import socket

    both = np.stack([high, low], axis=1)
    if len(both) > 1 and (both[1:] == both[:-1]).all(axis=1).sum() * 2 < len(both):
        distinct, which = np.unique(both, axis=0, return_inverse=True)
    else:  # sorted: equal addresses stand together
        fresh = np.ones(len(both), np.bool_)
        fresh[1:] = (both[1:] != both[:-1]).any(axis=1)
        distinct, which = both[fresh], np.cumsum(fresh) - 1
    raw = distinct.astype(">u8").tobytes()
    texts = [socket.inet_ntop(socket.AF_INET6, raw[i : i + 16]).encode() for i in range(0, len(raw), 16)]
    words = np.array(texts, "S40").view(np.uint64).reshape(-1, 5)[which.ravel()]
    return list(words.T)
