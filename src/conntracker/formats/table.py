"""Rows as a table for people: aligned, as wide as the terminal, '-' for what is not known."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["human_bytes", "printable", "short", "table_lines"]

UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
NULL = "-"
GAP = "  "
_CONTAINER_ID = re.compile("[0-9a-f]{64}")
LEAST, MOST = 24, 100  # room for a column that takes what there is


def table_lines(
    chunks: Iterable[Mapping[str, NDArray[Any]]],
    width: int = 80,
    optional: Sequence[str] = (),
    roomy: Mapping[str, Callable[[Any, int], str]] | None = None,
) -> Iterator[str]:
    """Lines, each with its newline, for chunks of columns (as arrow.read_stream gives them): a header, then the rows.

    Columns are as wide as the rows of the first chunk need; where that is more than `width`, columns named in
    `optional` are left out, the first of them first. Nothing is ever cut off but ids of containers, to the 12 digits by
    which docker(1) knows them, too. Times are local, bytes in units of 1024.

    roomy   what writes a value of a column into the room that the others leave, by its name: such a column, of which
            there may be one, stands behind the others
    """
    names: list[str] = []
    widths: list[int] = []
    room = 0
    roomy = roomy or {}
    for chunk in chunks:
        last = [name for name in chunk if name in roomy]
        cells = {
            name: _cells(name, column)
            for name, column in chunk.items()
            if name not in last and (not names or name in names)
        }
        if not names:
            needed = {name: max(len(name), *map(len, column)) for name, column in cells.items()}
            names = _fitting(needed, width - (LEAST + len(GAP) if last else 0), optional)
            widths = [needed[name] if chunk[name].dtype.kind in "iu" else -needed[name] for name in names]
            room = max(LEAST, min(width - sum(abs(one) + len(GAP) for one in widths), MOST))
            widths += [-1 for _ in last]
            yield _line(names + last, widths)
        columns = [cells[name] for name in names]
        columns += [[roomy[name](value, room) for value in chunk[name].tolist()] for name in last]
        for row in zip(*columns, strict=True):
            yield _line(row, widths)


def human_bytes(number: int) -> str:
    """A number of bytes in the largest unit of 1024 in which it is at least 1: '999 B', '1.5 MiB'."""
    if number < 1024:
        return f"{number} B"
    exponent = min((number.bit_length() - 1) // 10, len(UNITS))
    return f"{number / 1024**exponent:.1f} {UNITS[exponent - 1]}"


def _fitting(needed: dict[str, int], width: int, optional: Sequence[str]) -> list[str]:
    names = list(needed)
    for name in optional:
        if sum(needed[name] + len(GAP) for name in names) - len(GAP) <= width:
            break
        if name in names:
            names.remove(name)
    return names


def _line(cells: Iterable[str], widths: list[int]) -> str:
    """Cells in columns, numbers to the right (a positive width), text to the left."""
    padded = (cell.rjust(width) if width > 0 else cell.ljust(-width) for cell, width in zip(cells, widths, strict=True))
    return GAP.join(padded).rstrip() + "\n"


def _cells(name: str, column: NDArray[Any]) -> list[str]:
    if column.dtype.kind == "M":
        return [NULL if value is None else _local(value) for value in column.astype("M8[us]").tolist()]
    values = column.tolist()
    if name.endswith("bytes"):
        return [NULL if value is None else human_bytes(value) for value in values]
    if column.dtype.kind == "b":
        return [NULL if value is None else "yes" if value else "no" for value in values]
    return [NULL if value is None else printable(short(name, str(value))) for value in values]


def _local(time: datetime) -> str:
    seconds = np.datetime64(time, "s").astype(np.int64)
    return datetime.fromtimestamp(int(seconds)).isoformat(" ")


def short(name: str, text: str) -> str:
    """A value of a column as people read it: of a container's id the first 12 digits."""
    return text[:12] if name == "container" and _CONTAINER_ID.fullmatch(text) else text


def printable(text: str) -> str:
    """Without what a terminal would obey."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)
