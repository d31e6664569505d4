"""Conntrack messages, thousands at a time: equal shapes are decoded together, column by column.

Messages of one length and type nearly always have the same attributes in the same places. A `Shape` is learnt from one
message by the plain walk of `wire.conntrack`; every other message is held against it header word by header word, so
that a shape never reads a message that it does not describe exactly. What fits no shape is walked alone; what cannot
be decoded is counted, never fatal.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from conntracker.model import DUMP, NO_STATE, U32, UNKNOWN, Batch, DecodeError
from conntracker.wire import conntrack, netlink
from conntracker.wire.shapes import WIDE, Columns, Scratch, Shape

Index: TypeAlias = NDArray[np.intp]

MAX_SHAPES = 64  # for one length and type; beyond it, messages of new shapes are walked one by one


class _Rows:
    """Datagrams in rows of equal stride."""

    def __init__(self, rows: U32, received: U32) -> None:
        self.rows, self.received = rows, received
        self.lengths, self.kinds = rows[:, 0], rows[:, 1] & np.uint32(0xFFFF)
        self.whole = (received == self.lengths) & (received <= rows.shape[1] * 4) & (received >= netlink.BODY)

    def gather(self, index: Index, words: int, scratch: Scratch) -> U32:
        """Word-major matrix of the first `words` words of these messages."""
        rows = self.rows[:, :words]
        out = scratch.matrix(words, len(index))
        out[:] = (rows if len(index) == len(rows) else rows[index]).T
        return out

    def message(self, i: int) -> bytes:
        return bytes(self.rows[i])[: int(self.received[i])]


class _Buffer:
    """Messages back to back."""

    def __init__(self, words: U32, offsets: Index) -> None:
        self.words, self.offsets = words, offsets
        self.lengths, self.kinds = words[offsets], words[offsets + 1] & np.uint32(0xFFFF)
        self.whole = self.lengths >= netlink.BODY

    def gather(self, index: Index, words: int, scratch: Scratch) -> U32:
        """Word-major matrix of these messages, which all have this many words."""
        out = scratch.matrix(words, len(index))
        if len(index) == len(self.offsets) and len(index) * words == len(self.words):
            out[:] = self.words.reshape(-1, words).T
        else:  # every place of the buffer as the start of a message: a view, of which only these rows are copied
            out[:] = np.lib.stride_tricks.sliding_window_view(self.words, words)[self.offsets[index]].T
        return out

    def message(self, i: int) -> bytes:
        start, length = int(self.offsets[i]), int(self.lengths[i])
        return bytes(self.words[start : start + netlink.align(length) // 4])[:length]


@dataclass(slots=True)
class Decoder:
    """Decodes rows of messages; keeps the shapes it learnt, and counts.

    walked        messages that were walked alone
    undecodable   messages that could not be decoded (each is lost)
    unknown       attributes passed over because this version does not know them
    """

    walked: int = 0
    undecodable: int = 0
    unknown: int = 0
    _shapes: dict[int, list[Shape]] = field(default_factory=dict)
    _matrix: Scratch = field(default_factory=Scratch)
    _headers: Scratch = field(default_factory=Scratch)

    def decode_rows(self, rows: U32, lengths: U32, time: int) -> list[Batch]:
        """Events, one whole datagram a row.

        rows      uint32[n, stride / 4], host byte order as received
        lengths   uint32[n]: bytes received in each row
        time      µs since the epoch, kept in the batches

        Returns at most one batch for each IP version, each in order of arrival.
        """
        return self._decode(_Rows(rows, lengths), time)

    def decode_buffer(self, words: U32, offsets: Index, time: int, since: int = 0) -> list[Batch]:
        """Messages of a dump, which stand back to back.

        words     uint32[m]: the buffer
        offsets   word index at which each message begins; each lies whole inside the buffer
        since     when the dump was asked for, kept in the batches

        The order of messages in a dump means nothing, and is not kept.
        """
        batches = self._decode(_Buffer(words, offsets), time, ordered=False)
        return [replace(b, event=np.full(len(b), DUMP, np.uint8), dump_since=since) for b in batches]

    def _decode(self, source: _Rows | _Buffer, time: int, ordered: bool = True) -> list[Batch]:
        """Groups messages by length and type, decodes each group by its shapes; restores their order if it matters."""
        parts: dict[int, list[tuple[Index, Columns]]] = {4: [], 6: []}
        lengths = source.lengths
        key = lengths | (source.kinds << np.uint32(16))
        regular = source.whole & (lengths % 4 == 0) & (lengths < 0x10000)
        odd = np.flatnonzero(~regular)
        if not len(odd) and len(key) and (key == key[0]).all():
            groups = [(int(key[0]), np.arange(len(key)))]
        else:
            groups = [(int(k), np.flatnonzero(regular & (key == k))) for k in np.unique(key[regular])]
        for k, index in groups:
            left = self._by_shapes(k, index, source.gather(index, (k & 0xFFFF) // 4, self._matrix), parts)
            odd = np.concatenate([odd, left])
        for i in odd.tolist():
            self._alone(i, source.message(i), parts)
        return [_batch(family, rows, time, ordered) for family, rows in parts.items() if rows]

    def _by_shapes(self, key: int, index: Index, words: U32, parts: dict[int, list[tuple[Index, Columns]]]) -> Index:
        """Decodes what fits a shape, learning as it goes. Returns the rows that have to be walked alone."""
        shapes = self._shapes.setdefault(key, [])
        left: list[Index] = []
        tried = 0
        while len(index):
            if tried == len(shapes):
                if len(shapes) == MAX_SHAPES:
                    return np.concatenate([*left, index])
                try:
                    shapes.append(Shape(words[:, 0].tobytes()))
                except DecodeError:
                    left.append(index[:1])
                    index, words = index[1:], words[:, 1:]
                    continue
            shape = shapes[tried]
            tried += 1
            fits = shape.fits(words, self._headers)
            if fits.all():
                good, index, rows = words, index[:0], index
            elif fits.any():
                good, rows = words[:, fits], index[fits]
                words, index = words[:, ~fits], index[~fits]
            else:
                continue
            parts[shape.family].append((rows, shape.columns(good)))
            self.unknown += shape.unknown * len(rows)
        return np.concatenate(left) if left else index

    def _alone(self, row: int, data: bytes, parts: dict[int, list[tuple[Index, Columns]]]) -> None:
        """One row that fits no shape: it may hold several messages, or none that makes sense."""
        offset = 0
        while offset < len(data):
            length = int.from_bytes(data[offset : offset + 4], sys.byteorder)
            message = data[offset : offset + length]
            offset += max(netlink.align(length), netlink.HEADER.size)
            try:
                record = conntrack.decode_message(message)
            except DecodeError:
                self.undecodable += 1
                continue
            self.walked += 1
            self.unknown += record.unknown
            parts[record.family].append((np.array([row], np.intp), _record_columns(record)))


def _record_columns(record: conntrack.Record) -> Columns:
    """The columns of a Batch with one row."""
    get = record.fields.get
    out: Columns = {"event": np.array([record.kind], np.uint8)}
    for prefix in ("", "reply_"):
        src, dst = get(prefix + "src", 0), get(prefix + "dst", 0)
        if prefix + "src" not in record.fields or prefix + "dst" not in record.fields:
            src = dst = 0
        low = 2**64 - 1
        words = (src << 32 | dst,) if record.family == 4 else (src >> 64, src & low, dst >> 64, dst & low)
        out |= {f"{prefix}addresses{i}": np.array([word], np.uint64) for i, word in enumerate(words)}
        first, second = get(prefix + "sport", 0), get(prefix + "dport", 0)
        if prefix + "sport" not in record.fields:
            first = second = 0
            if prefix + "icmp_type" in record.fields:
                first = get(prefix + "icmp_id", 0)
                second = get(prefix + "icmp_type", 0) << 8 | get(prefix + "icmp_code", 0)
        ports = first << 48 | second << 32 | get("zone", 0) << 16 | get(prefix + "proto", 0) << 8
        out[prefix + "ports"] = np.array([ports], np.uint64)
    for name in ("id", "status", "mark"):
        out[name] = np.array([get(name, 0)], np.uint32)
    out["tcp_state"] = np.array([get("tcp_state", NO_STATE)], np.uint8)
    return out | {name: np.array([get(name)], np.uint64) for name in WIDE if name in record.fields}


def _batch(family: int, parts: list[tuple[Index, Columns]], time: int, ordered: bool) -> Batch:
    """Joins the groups of one IP version, in the order of their rows."""
    order = None
    if len(parts) == 1:
        index, columns = parts[0]
        order = None if not ordered or (index[1:] > index[:-1]).all() else np.argsort(index, kind="stable")
    else:
        columns = _joined(parts)
        if ordered:
            order = np.argsort(np.concatenate([rows for rows, _ in parts]), kind="stable")
    if order is not None:
        columns = {name: column[order] for name, column in columns.items()}
    count = 1 if family == 4 else 4
    addresses = [tuple(columns.pop(f"{prefix}addresses{i}") for i in range(count)) for prefix in ("", "reply_")]
    fields: dict[str, Any] = {**columns, "addresses": addresses[0], "reply_addresses": addresses[1]}
    return Batch(family=family, time=time, **fields)


def _joined(parts: list[tuple[Index, Columns]]) -> Columns:
    names = {name: column.dtype for _, columns in parts for name, column in columns.items()}
    return {
        name: np.concatenate(
            [columns[name] if name in columns else np.full(len(rows), UNKNOWN, dtype) for rows, columns in parts]
        )
        for name, dtype in names.items()
    }
