"""What inet_diag says of sockets: dumps of them, to columns (sock_diag(7); linux/sock_diag.h, linux/inet_diag.h)."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conntracker.model import U32, DecodeError
from conntracker.wire import netlink
from conntracker.wire.dumps import Index
from conntracker.wire.sides import ANY_LOCAL, ANY_REMOTE, mapped

__all__ = ["PORTED", "RAW", "SOCKETS", "decode", "dump_request", "error_of"]

TCP, UDP, RAW = 6, 17, 255  # RAW asks for the raw sockets of all protocols

# Protocols whose flows have ports or ids. A raw socket sees all packets of its protocol: it is an end of flows only
# where the protocol has neither.
PORTED = (1, TCP, UDP, 33, 58, 132, 136, RAW)

_SOCK_DIAG_BY_FAMILY = 20
_INET_DIAG_SKV6ONLY = 11
_REQUEST = struct.Struct("=BBBxI48s")  # struct inet_diag_req_v2: family, protocol, extensions, states, socket
_WORDS = 18  # struct inet_diag_msg
_HEADER_WORDS = netlink.HEADER.size // 4
_AF_INET, _AF_INET6 = 2, 10

# States as of TCP (net/tcp_states.h); sockets of other protocols are ESTABLISHED if connected, else CLOSE.
_ESTABLISHED, _CLOSE = 1, 7
# All but SYN_RECV, TIME_WAIT and LISTEN: the former two belong to no process, the last is no end of a flow.
_TCP_STATES = sum(1 << state for state in (_ESTABLISHED, 2, 4, 5, 8, 9, 11))
_STATES = 1 << _ESTABLISHED | 1 << _CLOSE

# cookie   SO_COOKIE
# inode    by which /proc/PID/fd names the socket; 0 once no process has it, and before accept(2)
# netns    is not told here: 0
# others   as in sides.SIDES; `both`: the socket takes packets of IPv4, too, at the wildcard address
SOCKETS = np.dtype([
    ("netns", "u8"), ("cookie", "u8"), ("inode", "u4"), ("local_hi", "u8"), ("local_lo", "u8"), ("remote_hi", "u8"),
    ("remote_lo", "u8"), ("lport", "u2"), ("rport", "u2"), ("proto", "u1"), ("wild", "u1"), ("both", "?"),
])  # fmt: skip


def dump_request(family: int, protocol: int, sequence: int) -> bytes:
    """What asks for all sockets of AF_INET or AF_INET6 of TCP, UDP or RAW that may be ends of flows."""
    body = _REQUEST.pack(family, protocol, 0, _TCP_STATES if protocol == TCP else _STATES, bytes(48))
    flags = netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP
    return netlink.HEADER.pack(netlink.HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, flags, sequence, 0) + body


def decode(words: U32, offsets: Index, protocol: int) -> NDArray[Any]:
    """Rows of SOCKETS from a dump.

    words      uint32[m]: whole messages
    offsets    where in `words` each begins, see dumps.message_offsets
    protocol   which was asked for

    Other messages, other families, and raw sockets that are no ends of flows are left out. Raises DecodeError where a
    message is cut short.
    """
    if not len(offsets):  # most dumps of a quiet host
        return np.zeros(0, SOCKETS)
    offsets = offsets[words[offsets + 1] & np.uint32(0xFFFF) == _SOCK_DIAG_BY_FAMILY]
    short = words[offsets] < netlink.HEADER.size + _WORDS * 4
    if short.any():
        raise DecodeError("socket cut short", int(offsets[short][0]) * 4)
    fixed = words[offsets[:, None] + np.arange(_HEADER_WORDS, _HEADER_WORDS + _WORDS)]
    head = np.ascontiguousarray(fixed[:, 0]).view(np.uint8).reshape(-1, 4)  # family, state, timer, retransmissions
    known = (head[:, 0] == _AF_INET) | (head[:, 0] == _AF_INET6)
    offsets, fixed, head = offsets[known], fixed[known], head[known]
    rows = np.zeros(len(fixed), SOCKETS)
    ports = np.ascontiguousarray(fixed[:, 1]).view(">u2").reshape(-1, 2)
    rows["lport"], rows["rport"] = ports[:, 0], ports[:, 1]
    four = head[:, 0] == _AF_INET
    rows["local_hi"], rows["local_lo"] = _address(fixed[:, 2:6], four)
    rows["remote_hi"], rows["remote_lo"] = _address(fixed[:, 6:10], four)
    rows["cookie"] = fixed[:, 11].astype(np.uint64) | fixed[:, 12].astype(np.uint64) << np.uint64(32)
    rows["inode"] = fixed[:, 17]
    rows["proto"] = protocol
    if protocol != TCP:
        _judge(rows, four, head[:, 1] == _ESTABLISHED)
        for i in np.flatnonzero((rows["wild"] == ANY_REMOTE | ANY_LOCAL) & ~four).tolist() if protocol == UDP else ():
            rows["both"][i] = not _v6only(words, int(offsets[i]))
    return _raw(rows) if protocol == RAW else rows


def error_of(done: U32) -> int:
    """The error number that a dump ended with, from its NLMSG_DONE; 0 for none."""
    return -int(done[_HEADER_WORDS].astype(np.int32)) if len(done) > _HEADER_WORDS else 0


def _address(words: U32, four: NDArray[np.bool_]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Addresses in network byte order, as the words of sides; of IPv4 the first of four words."""
    w = np.ascontiguousarray(words).view(">u4").astype(np.uint64)
    hi = np.where(four, np.uint64(0), w[:, 0] << np.uint64(32) | w[:, 1])
    lo = np.where(four, np.uint64(0xFFFF << 32) | w[:, 0], w[:, 2] << np.uint64(32) | w[:, 3])
    return hi, lo


def _judge(rows: NDArray[Any], four: NDArray[np.bool_], connected: NDArray[np.bool_]) -> None:
    """What takes packets from anywhere, and at any address."""
    rows["wild"][~connected] = ANY_REMOTE
    for name in ("remote_hi", "remote_lo", "rport"):
        rows[name][~connected] = 0
    wildcard = np.where(four, np.uint64(mapped(0, 4)[1]), np.uint64(0))
    rows["wild"][(rows["local_hi"] == 0) & (rows["local_lo"] == wildcard)] |= ANY_LOCAL


def _raw(rows: NDArray[Any]) -> NDArray[Any]:
    """A raw socket has its protocol in the place of the port."""
    rows = rows[(rows["lport"] < 256) & ~np.isin(rows["lport"], PORTED)]
    rows["proto"] = rows["lport"]
    rows["lport"] = rows["rport"] = 0
    return rows


def _v6only(words: U32, offset: int) -> bool:
    start = (offset + _HEADER_WORDS + _WORDS) * 4
    end = offset * 4 + int(words[offset])
    data = words[offset : (end + 3) // 4].tobytes()
    for kind, at, length in netlink.attributes(data, start - offset * 4, end - offset * 4):
        if kind == _INET_DIAG_SKV6ONLY and length:
            return data[at] != 0
    return False
