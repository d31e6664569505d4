"""Arrow C streams to numpy columns, without pyarrow.

Any object with `__arrow_c_stream__` will do; DuckDB's relations have it. The structures are those of
https://arrow.apache.org/docs/format/CDataInterface.html and CStreamInterface.html.
"""

from __future__ import annotations

import ctypes
import errno
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    from numpy.typing import NDArray

    Columns = dict[str, NDArray[Any]]

    class Stream(Protocol):
        """What exports an Arrow C stream."""

        def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...


__all__ = ["concatenate", "read_stream"]

ROWS = 65536

# Arrow's format strings for numbers. Timestamps ('tsu:' and a time zone) and text are apart.
NUMBERS = {
    "c": "i1", "C": "u1", "s": "i2", "S": "u2", "i": "i4", "I": "u4", "l": "i8", "L": "u8", "f": "f4", "g": "f8",
}  # fmt: skip


class Schema(ctypes.Structure):
    """struct ArrowSchema"""


class Array(ctypes.Structure):
    """struct ArrowArray"""


class ArrayStream(ctypes.Structure):
    """struct ArrowArrayStream"""


Schema._fields_ = [
    ("format", ctypes.c_char_p),
    ("name", ctypes.c_char_p),
    ("metadata", ctypes.c_void_p),
    ("flags", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("children", ctypes.POINTER(ctypes.POINTER(Schema))),
    ("dictionary", ctypes.POINTER(Schema)),
    ("release", ctypes.CFUNCTYPE(None, ctypes.POINTER(Schema))),
    ("private_data", ctypes.c_void_p),
]
Array._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(Array))),
    ("dictionary", ctypes.POINTER(Array)),
    ("release", ctypes.CFUNCTYPE(None, ctypes.POINTER(Array))),
    ("private_data", ctypes.c_void_p),
]
ArrayStream._fields_ = [
    ("get_schema", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ArrayStream), ctypes.POINTER(Schema))),
    ("get_next", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ArrayStream), ctypes.POINTER(Array))),
    ("get_last_error", ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.POINTER(ArrayStream))),
    ("release", ctypes.CFUNCTYPE(None, ctypes.POINTER(ArrayStream))),
    ("private_data", ctypes.c_void_p),
]

get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
get_pointer.restype = ctypes.c_void_p
get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def read_stream(source: Stream, rows: int = ROWS) -> Iterator[Columns]:
    """The rows of a stream as dicts of numpy columns, at most `rows` at a time, in memory of their own.

    Numbers and booleans are arrays of their dtype, masked where the chunk has nulls; timestamps datetime64[us] with
    NaT for null; text object arrays of str or None. A chunk without rows is never given. Raises OSError when the
    stream fails, with its own message, and TypeError for a type not named here.
    """
    # The capsule owns the stream and releases it when it goes away: keep it as long as the pointer is in use.
    capsule = source.__arrow_c_stream__()
    stream = ArrayStream.from_address(get_pointer(capsule, b"arrow_array_stream"))
    schema = Schema()
    _check(stream, stream.get_schema(stream, schema))
    try:
        fields = [schema.children[i].contents for i in range(schema.n_children)]
        names = [field.name.decode() for field in fields]
        formats = [field.format.decode() for field in fields]
        while True:
            batch = Array()
            _check(stream, stream.get_next(stream, batch))
            if not batch.release:
                return
            try:
                for first in range(0, batch.length, rows):
                    count = min(rows, batch.length - first)
                    yield {
                        name: _column(form, batch.children[i].contents, batch.offset + first, count)
                        for i, (name, form) in enumerate(zip(names, formats, strict=True))
                    }
            finally:
                batch.release(batch)
    finally:
        schema.release(schema)


def concatenate(chunks: Iterator[Columns] | list[Columns]) -> Columns:
    """All rows of all chunks in one dict; empty if there is no chunk."""
    chunks = list(chunks)
    if not chunks:
        return {}

    def whole(name: str) -> NDArray[Any]:
        columns = [chunk[name] for chunk in chunks]
        masked = any(isinstance(column, np.ma.MaskedArray) for column in columns)
        return np.ma.concatenate(columns) if masked else np.concatenate(columns)  # type: ignore[no-untyped-call]

    return {name: whole(name) for name in chunks[0]}


def _check(stream: ArrayStream, code: int) -> None:
    if code:
        message = stream.get_last_error(stream) or b"the Arrow stream failed"
        raise OSError(code if code > 0 else errno.EIO, message.decode(errors="replace").partition("\n")[0])


def _column(form: str, array: Array, first: int, count: int) -> NDArray[Any]:
    first += array.offset
    null = None
    if array.null_count and array.buffers[0]:
        null = ~_bits(array.buffers[0], first, count)
        null = null if null.any() else None
    if form in ("u", "U"):
        return _text(array, "i8" if form == "U" else "i4", first, count, null)
    if form == "b":
        values = _bits(array.buffers[1], first, count)
    elif form.startswith("tsu:"):
        values = _numbers(array.buffers[1], "i8", first, count).view("M8[us]")
        if null is not None:
            values[null] = np.datetime64("NaT")
        return values
    elif form in NUMBERS:
        values = _numbers(array.buffers[1], NUMBERS[form], first, count)
    else:
        raise TypeError(f"Arrow type {form!r} is not supported here")
    return values if null is None else np.ma.MaskedArray(values, null)


def _memory(address: int | None, first: int, count: int) -> NDArray[np.uint8]:
    """Bytes of a buffer that the stream owns, not copied."""
    if not address or not count:
        return np.zeros(0, np.uint8)
    return np.frombuffer(memoryview((ctypes.c_ubyte * count).from_address(address + first)), np.uint8)


def _numbers(address: int | None, dtype: str, first: int, count: int) -> NDArray[Any]:
    size = np.dtype(dtype).itemsize
    return _memory(address, first * size, count * size).view(dtype).copy()


def _bits(address: int | None, first: int, count: int) -> NDArray[np.bool_]:
    """Bits of a bitmap as bool[count]."""
    start = first // 8
    packed = _memory(address, start, (first + count + 7) // 8 - start)
    skip = first - start * 8
    return np.unpackbits(packed, bitorder="little")[skip : skip + count].astype(np.bool_)


def _text(array: Array, offsets: str, first: int, count: int, null: NDArray[np.bool_] | None) -> NDArray[Any]:
    ends = _numbers(array.buffers[1], offsets, first, count + 1)
    base = int(ends[0])
    raw = _memory(array.buffers[2], base, int(ends[-1]) - base).tobytes()
    bounds = (ends - base).tolist()
    if raw.isascii():
        text = raw.decode("ascii")
        values = [text[i:j] for i, j in pairwise(bounds)]
    else:
        values = [raw[i:j].decode(errors="replace") for i, j in pairwise(bounds)]
    column = np.empty(count, object)
    column[:] = list(map(sys.intern, values)) if len(raw) < 4 * count else values
    if null is not None:
        column[null] = None
    return column
