"""The shape of a conntrack message: where its fields stand, learnt from one and used for all that are like it."""

from __future__ import annotations

import sys
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from conntracker.model import COUNTERS, NO_STATE, U32, U64, DecodeError
from conntracker.wire import conntrack, netlink

Columns: TypeAlias = dict[str, NDArray[Any]]

WIDE = (*COUNTERS, "start", "stop")  # the fields of 64 bits
_HEADER_WORDS = netlink.HEADER.size // 4


class Shape:
    """Where the fields of one kind of message stand.

    positions, expected   words that must be equal: type and flags, nfgenmsg, every attribute header
    word                  field to the index of the 32-bit word its payload begins at
    """

    __slots__ = ("event", "expected", "family", "has_ports", "icmp", "positions", "unknown", "word")

    def __init__(self, message: bytes) -> None:
        """Learns from one message. Raises DecodeError as `conntrack.decode_message` does."""
        record = conntrack.decode_message(message)
        if len(message) % 4:
            raise DecodeError("length is no multiple of four", len(message))
        positions, self.word = [1, _HEADER_WORDS], {}
        for path, header, payload, _ in conntrack.walk(message, netlink.BODY, len(message)):
            positions.append(header // 4)
            if path in conntrack.FIELDS:
                self.word[conntrack.FIELDS[path][0]] = payload // 4
        self.event, self.family, self.unknown = record.kind, record.family, record.unknown
        self.positions = np.array(positions, np.intp)
        self.expected = np.frombuffer(message, np.uint32)[self.positions][:, None].copy()
        self.icmp = {prefix: prefix + "icmp_type" in self.word for prefix in ("", "reply_")}
        self.has_ports = {prefix: prefix + "sport" in self.word for prefix in ("", "reply_")}

    def fits(self, words: U32, scratch: Scratch) -> NDArray[np.bool_]:
        """Which messages (columns of the word-major matrix) have this shape."""
        difference = scratch.matrix(len(self.positions), words.shape[1])
        np.take(words, self.positions, axis=0, out=difference, mode="clip")
        difference ^= self.expected
        fits: NDArray[np.bool_] = np.bitwise_or.reduce(difference, axis=0) == 0
        return fits

    def columns(self, words: U32) -> Columns:
        """The columns of a Batch, by name, from the word-major matrix of messages that fit."""
        n = words.shape[1]
        big = {name: _host(words[at]) for name, at in self.word.items() if not name.endswith(("6", "4"))}
        out: Columns = {"event": np.full(n, self.event, np.uint8)}
        for prefix in ("", "reply_"):
            self._addresses(out, prefix, words)
            out[prefix + "ports"] = self._ports(prefix, big, n)
        for name in ("id", "status", "mark"):
            out[name] = big[name] if name in big else np.zeros(n, np.uint32)
        state = big.get("tcp_state")
        out["tcp_state"] = np.full(n, NO_STATE, np.uint8) if state is None else (state >> 24).astype(np.uint8)
        for name in WIDE:
            if name in self.word:
                out[name] = _wide(words, self.word[name])
        return out

    def _addresses(self, out: Columns, prefix: str, words: U32) -> None:
        src, dst = (self.word.get(f"{prefix}{end}{self.family}") for end in ("src", "dst"))
        for i in range(1 if self.family == 4 else 4):
            at = (src, dst)[i // 2] if self.family == 6 else src
            name = f"{prefix}addresses{i}"
            if src is None or dst is None or at is None:
                out[name] = np.zeros(words.shape[1], np.uint64)
            elif self.family == 6:
                out[name] = _wide(words, at + 2 * (i % 2))
            else:
                out[name] = _join(_host(words[src]), _host(words[dst]))

    def _ports(self, prefix: str, big: dict[str, U32], n: int) -> U64:
        """Payloads start at a word, so a 16-bit field is its upper half and an 8-bit field its uppermost byte."""
        if self.has_ports[prefix]:
            high = big[prefix + "sport"] & np.uint32(0xFFFF0000)
            if prefix + "dport" in big:
                high |= big[prefix + "dport"] >> np.uint32(16)
        elif self.icmp[prefix]:
            high = (big[prefix + "icmp_type"] >> np.uint32(24)) << np.uint32(8)
            if prefix + "icmp_code" in big:
                high |= big[prefix + "icmp_code"] >> np.uint32(24)
            if prefix + "icmp_id" in big:
                high |= big[prefix + "icmp_id"] & np.uint32(0xFFFF0000)
        else:
            high = np.zeros(n, np.uint32)
        low = np.zeros(n, np.uint32)
        if prefix + "proto" in big:
            low |= (big[prefix + "proto"] >> np.uint32(24)) << np.uint32(8)
        if "zone" in big:
            low |= big["zone"] & np.uint32(0xFFFF0000)
        return _join(high, low)


if sys.byteorder == "little":

    def _host(word: U32) -> U32:
        """A big-endian 32-bit payload as numbers."""
        return word.byteswap()
else:

    def _host(word: U32) -> U32:
        return word.copy()


def _join(high: U32, low: U32) -> U64:
    joined = high.astype(np.uint64)
    joined <<= np.uint64(32)
    joined |= low
    return joined


def _wide(words: U32, at: int) -> U64:
    """A big-endian 64-bit payload as numbers."""
    return _join(_host(words[at]), _host(words[at + 1]))


class Scratch:
    """Memory for one matrix, used again: asking the kernel for new pages each time costs as much as decoding."""

    def __init__(self) -> None:
        self._words = np.empty(0, np.uint32)

    def matrix(self, rows: int, columns: int) -> U32:
        """uint32[rows, columns], valid until the next call."""
        if len(self._words) < rows * columns:
            self._words = np.empty(rows * columns * 5 // 4, np.uint32)
        return self._words[: rows * columns].reshape(rows, columns)
