"""The rows that the BPF programs write (sources/bpf/owners.bpf.c), and what they say as SIDES rows.

All structs are in host byte order but for addresses, and have no padding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from conntracker.owner import BPF, CERTAINTIES, EXACT, HOLDER, INHERITED, METHODS, SHARED
from conntracker.wire.sides import ANY_LOCAL, CLOSER, FIXED, SIDES

__all__ = ["KEY", "MEMORY", "SIDE", "USER", "USERS", "sides_of", "users_of"]

Rows = NDArray[np.void]

ACTOR = np.dtype([
    ("pid", "u4"), ("tid", "u4"), ("uid", "u4"), ("gid", "u4"), ("cgroup", "u8"), ("time", "u8"), ("comm", "S16"),
])  # fmt: skip
KEY = np.dtype([
    ("cookie", "u8"), ("netns", "u8"), ("local", ">u8", 2), ("remote", ">u8", 2), ("lport", "u2"), ("rport", "u2"),
    ("proto", "u1"), ("unused", "V3"),
])  # fmt: skip
SIDE = np.dtype([
    ("owner", ACTOR), ("user", ACTOR), ("first", "u8"), ("closed", "u8"), ("how", "u4"), ("flags", "u4"),
    ("users", "u4"), ("unused", "u4"),
])  # fmt: skip
USER = np.dtype([("actor", ACTOR), ("cookie", "u8"), ("changes", "u4"), ("unused", "u4")])
MEMORY = np.dtype([
    ("owner", ACTOR), ("cookie", "u8"), ("first", "u8"), ("how", "u4"), ("flags", "u4"), ("settled", "u4"),
    ("changes", "u4"), ("key", KEY),
])  # fmt: skip

# enum how
CONNECTED, ACCEPTED, SENT, RECEIVED = 3, 4, 5, 6
INHERITED_FLAG, RELEASED_FLAG = 4, 8

# Who was seen sending or receiving on a socket: its cookie, the process as in SIDES, and whether others were before.
USERS = np.dtype([
    ("cookie", "u8"), ("pid", "u4"), ("uid", "u4"), ("cgroup", "u8"), ("time", "i8"), ("comm", "S16"), ("shared", "?"),
])  # fmt: skip

_METHOD = {name: number for number, name in enumerate(METHODS)}
_CERTAINTY = {name: number for number, name in enumerate(CERTAINTIES)}


def sides_of(keys: Rows, values: Rows, offset: int, uses: bool = True) -> Rows:
    """SIDES rows from rows of the map ct_sides.

    keys, values   KEY[n] and SIDE[n]
    offset         nanoseconds from CLOCK_BOOTTIME to the epoch
    uses           whether who sends and receives is seen; else who connected or accepted a socket may have handed it on
    """
    rows = np.zeros(len(keys), SIDES)
    for name in ("cookie", "netns", "lport", "rport", "proto"):
        rows[name] = keys[name]
    for end in ("local", "remote"):
        rows[f"{end}_hi"], rows[f"{end}_lo"] = keys[end][:, 0], keys[end][:, 1]
    how, used = values["how"], values["user"]["pid"] != 0
    # Who names an address with each datagram is known for each; else who used the socket is surer than who made it.
    by_datagram = np.isin(how, (SENT, RECEIVED))
    # Who closed a socket last had it; but one that was connected may have leaked to a child, which outlived its parent.
    ended = values["flags"] & RELEASED_FLAG != 0
    released = used & ended & ~by_datagram & (how != CONNECTED)
    by_user = used & ~ended & ~by_datagram
    unbound = (rows["local_hi"] == 0) & ((rows["local_lo"] == 0) | (rows["local_lo"] == 0xFFFF << 32))
    rows["wild"] = np.where(by_datagram, FIXED, np.where(released, CLOSER, 0)) | np.where(unbound, ANY_LOCAL, 0)
    actor = np.where(by_user | released, values["user"], values["owner"])
    for name in ("pid", "uid", "cgroup", "comm"):
        rows[name] = actor[name]
    rows["time"] = _epoch(actor["time"], offset)
    rows["first"] = _epoch(values["first"], offset)
    rows["last"] = np.where(values["closed"] == 0, -1, _epoch(values["closed"], offset))
    rows["method"] = _METHOD[BPF]
    inherited = values["flags"] & INHERITED_FLAG != 0
    certainty = np.full(len(rows), _CERTAINTY[INHERITED], np.uint8)
    certainty[by_datagram] = _CERTAINTY[EXACT]
    # Anybody who has a socket that was accepted may ask as accept(2) does.
    certainty[np.isin(how, (CONNECTED, ACCEPTED)) & ~inherited] = _CERTAINTY[HOLDER]
    if uses:
        certainty[(how == CONNECTED) & ~inherited] = _CERTAINTY[EXACT]
    certainty[released] = np.where((how == ACCEPTED)[released], _CERTAINTY[SHARED], _CERTAINTY[HOLDER])
    certainty[by_user] = np.where(values["users"][by_user] > 0, _CERTAINTY[SHARED], _CERTAINTY[EXACT])
    rows["certainty"] = certainty
    return rows


def users_of(values: Rows, offset: int) -> Rows:
    """USERS rows from values of the map ct_users, USER[n]; offset as in `sides_of`."""
    rows = np.zeros(len(values), USERS)
    rows["cookie"], rows["shared"] = values["cookie"], values["changes"] > 0
    for name in ("pid", "uid", "cgroup", "comm"):
        rows[name] = values["actor"][name]
    rows["time"] = _epoch(values["actor"]["time"], offset)
    return rows


def _epoch(boot: NDArray[np.uint64], offset: int) -> NDArray[np.int64]:
    """Nanoseconds of CLOCK_BOOTTIME as microseconds since the epoch."""
    return (boot.astype(np.int64) + offset) // 1000
