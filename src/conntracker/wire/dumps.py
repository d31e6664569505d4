"""Where the messages of a table dump begin: NLM_F_MULTI messages back to back, NLMSG_DONE at the end (netlink(7))."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from conntracker.model import U32, DecodeError
from conntracker.wire import netlink

Index: TypeAlias = NDArray[np.intp]

_HEADER_WORDS = netlink.HEADER.size // 4


def message_offsets(words: U32) -> tuple[Index, int, bool]:
    """Where the messages of a dump's buffer begin.

    words   uint32[m]: whole datagrams back to back, of a dump

    Returns (word index of each message, how many words they cover, whether NLMSG_DONE stands behind them). Found by a
    scan for the first message's type and sequence, then proven: each message must end where the next begins. If that
    fails, by walking from header to header. Raises DecodeError where a length is impossible, and OSError with the
    kernel's number on NLMSG_ERROR.
    """
    found = _scan(words)
    if found is not None:
        return found
    return _step(words)


def _scan(words: U32) -> tuple[Index, int, bool] | None:
    if len(words) < _HEADER_WORDS:
        return None
    candidates = np.flatnonzero((words[2:-1] == words[2]) & (words[3:] == words[3]))
    candidates = candidates[words[candidates + 1] == words[1]]
    if not len(candidates) or candidates[0] != 0:
        return None
    lengths = words[candidates]
    ends = candidates + ((lengths + np.uint32(3)) >> np.uint32(2)).astype(np.intp)
    chained = (candidates[1:] == ends[:-1]).all()
    if not chained or words[1] & 0xFFFF in (netlink.NLMSG_ERROR, netlink.NLMSG_DONE):
        return None
    end = int(ends[-1])
    if end == len(words):
        return candidates, end, False
    done = end + 1 < len(words) and words[end + 1] & 0xFFFF == netlink.NLMSG_DONE
    return (candidates, end, True) if done else None


def _step(words: U32) -> tuple[Index, int, bool]:
    at = 0
    offsets: list[int] = []
    while at < len(words):
        length = int(words[at])
        if length < netlink.HEADER.size or at + netlink.align(length) // 4 > len(words):
            raise DecodeError(f"netlink message of {length} bytes", at * 4)
        kind = int(words[at + 1]) & 0xFFFF
        if kind == netlink.NLMSG_DONE:
            return np.array(offsets, np.intp), at, True
        if kind == netlink.NLMSG_ERROR:
            raise OSError(-int(words[at + 4].astype(np.int32)), "the kernel refused to list connections")
        offsets.append(at)
        at += netlink.align(length) // 4
    return np.array(offsets, np.intp), at, False
