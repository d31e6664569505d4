"""The sorted log, in the original tool's format, byte for byte.

     TCPv4 [           0] src = 10.250.97.1 (port=2049) to dst = 10.250.97.151 (port=677) (-)
    ICMPv4 [           0] src = 10.250.97.151 to dst = 8.8.4.4 (type=8 | code=0)

One line a direction, numbered within its group; groups in the order of `LOG_GROUPS`; inside a group sorted by source
and destination address, then source and destination port, as numbers. Lines are put together as rows of 64-bit words of
NUL-padded text, and the NULs are taken out at the end: a million lines take a third of a second.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from conntracker.model import LOG_GROUPS, U32, U64

_ROWS = 1 << 14  # lines put together at once: about 3 MB of words
_NO_OWNER = b"-"
ADDRESS_COLUMNS = ("src_hi", "src_lo", "dst_hi", "dst_lo")


def write_log(out: BinaryIO, directions: Callable[[int, int], tuple[tuple[U64, ...], U32]]) -> int:
    """Writes the whole log of a flow table.

    directions   as FlowTable.directions: (family, protocol) to (address words, ports uint32)

    Returns the number of lines. Errors of `out` pass through.
    """
    lines = 0
    for label, family, proto in LOG_GROUPS:
        addresses, ports = sort_distinct(*directions(family, proto))
        if len(ports):
            columns: dict[str, NDArray[Any]] = dict(zip(ADDRESS_COLUMNS, unpack_addresses(addresses), strict=True))
            bits = 8 if label.startswith("ICMP") else 16
            columns |= {"sport": ports >> np.uint32(bits), "dport": ports & np.uint32((1 << bits) - 1)}
            write_directions(out, label, columns, 0)
            lines += len(ports)
    return lines


def unpack_addresses(words: tuple[U64, ...]) -> tuple[U64, U64, U64, U64]:
    """(source high, low, destination high, low) from the address words of model."""
    if len(words) == 4:
        return words
    zero = np.zeros(len(words[0]), np.uint64)
    return zero, words[0] >> np.uint64(32), zero, words[0] & np.uint64(0xFFFFFFFF)


def sort_distinct(addresses: tuple[U64, ...], ports: U32) -> tuple[tuple[U64, ...], U32]:
    """Sorts by address words, then ports, and leaves one of each."""
    if not len(ports):
        return addresses, ports
    order = _order(addresses, ports)
    addresses, ports = tuple(word[order] for word in addresses), ports[order]
    fresh = np.ones(len(ports), np.bool_)
    fresh[1:] = ports[1:] != ports[:-1]
    for word in addresses:
        fresh[1:] |= word[1:] != word[:-1]
    if fresh.all():
        return addresses, ports
    return tuple(word[fresh] for word in addresses), ports[fresh]


def _order(addresses: tuple[U64, ...], ports: U32) -> NDArray[np.intp]:
    """One sort by the first word; only where that leaves runs of equal words, one more by run and the next word."""
    order = np.argsort(addresses[0])
    rank = _runs(addresses[0][order])
    words: list[NDArray[Any]] = [*addresses[1:], ports]
    for word in words:
        if int(rank[-1]) == len(order) - 1:
            break
        if word.dtype == np.uint64:
            again = np.lexsort((word[order], rank))
            order, rank = order[again], rank[again]
            rank = _runs(word[order], rank)
        else:
            key = (rank << np.uint64(32)) | word[order]
            again = np.argsort(key)
            order, rank = order[again], _runs(key[again])
    return order


def _runs(words: U64, outer: U64 | None = None) -> U64:
    """The number of the run of equal words that each row is in; runs end where `outer` changes, too."""
    change = np.zeros(len(words), np.bool_)
    change[1:] = words[1:] != words[:-1]
    if outer is not None:
        change[1:] |= outer[1:] != outer[:-1]
    return np.cumsum(change, dtype=np.uint64)


def write_directions(out: BinaryIO, kind: str, columns: Mapping[str, NDArray[Any]], first_index: int) -> None:
    """Writes the lines of one group, or the next part of it.

    kind          a label of LOG_GROUPS
    columns       src_hi, src_lo, dst_hi, dst_lo (uint64; IPv4 in the low word), sport, dport (ports, or type and code
                  of ICMP), sorted and distinct
    first_index   the number of the first line
    """
    address = _ipv4 if kind.endswith("4") else _ipv6
    total = len(columns["sport"])
    for start in range(0, total, _ROWS):
        part = {name: column[start : start + _ROWS] for name, column in columns.items()}
        index = np.arange(first_index + start, first_index + min(start + _ROWS, total))
        src, dst = address(part["src_hi"], part["src_lo"]), address(part["dst_hi"], part["dst_lo"])
        first, second = _numbers()[part["sport"]], _numbers()[part["dport"]]
        pieces: list[bytes | U64] = [f"{kind:>6} [".encode(), *_index(index), b"] src = ", *src]
        if kind.startswith("ICMP"):
            pieces += [b" to dst = ", *dst, b" (type=", first, b" | code=", second, b")\n"]
        else:
            pieces += [b" (port=", first, b") to dst = ", *dst, b" (port=", second, b") (" + _NO_OWNER + b")\n"]
        out.write(_assemble(pieces, len(index)))


def _assemble(pieces: list[bytes | U64], rows: int) -> bytes:
    """Constant text and columns of text words, side by side, without their NULs."""
    columns: list[U64] = []
    for piece in pieces:
        if isinstance(piece, bytes):
            columns.extend(np.frombuffer(piece.ljust(-(-len(piece) // 8) * 8, b"\0"), np.uint64))
        else:
            columns.append(piece)
    words = np.empty((rows, len(columns)), np.uint64)
    for i, column in enumerate(columns):
        words[:, i] = column
    return words.tobytes().translate(None, b"\0")


def _texts(texts: list[str]) -> U64:
    """Texts of at most eight bytes as words."""
    return np.array([text.encode() for text in texts], "S8").view(np.uint64)


@cache
def _numbers() -> U64:
    return _texts([str(i) for i in range(65536)])


@cache
def _octets() -> tuple[U64, U64]:
    """Two octets at once: 'a.b.' and 'a.b'."""
    pairs = [f"{i >> 8}.{i & 255}" for i in range(65536)]
    return _texts([pair + "." for pair in pairs]), _texts(pairs)


@cache
def _padded() -> tuple[U64, U64]:
    """Numbers below 10,000, right-aligned in four: padded with blanks, and with zeros."""
    return _texts([f"{i:4}" for i in range(10000)]), _texts([f"{i:04}" for i in range(10000)])


def _index(index: NDArray[np.intp]) -> list[bytes | U64]:
    """Right-aligned in twelve characters."""
    blanks, zeros = _padded()
    high, low = np.divmod(index, 10000)
    top, middle = np.divmod(high, 10000)
    last = np.where(high > 0, zeros[low], blanks[low])
    if not high.any():
        return [b" " * 8, last]
    blank = _texts([" " * 4])[0]
    second = np.where(top > 0, zeros[middle], np.where(high > 0, blanks[middle], blank))
    return [np.where(top > 0, blanks[top % 10000], blank), second, last]


def _ipv4(high: U64, low: U64) -> list[bytes | U64]:
    del high
    first, second = _octets()
    address = low.astype(np.uint32)
    return [first[address >> np.uint32(16)], second[address & np.uint32(0xFFFF)]]


def _ipv6(high: U64, low: U64) -> list[bytes | U64]:
    """inet_ntop(3) of each distinct address, 39 characters in five words."""
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
