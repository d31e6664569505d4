"""Sides: the ends of flows as the sockets of this host have them, each with the process at it, as rows of one dtype.

Whoever finds owners gives them out as such rows, and `owners` joins them with flows.
"""

from __future__ import annotations

import numpy as np

__all__ = ["ANY_LOCAL", "ANY_REMOTE", "CLOSER", "FIXED", "SIDES", "mapped"]

ANY_REMOTE, ANY_LOCAL, FIXED, CLOSER = 1, 2, 4, 8  # bits of `wild`

# netns        the cookie of the socket's network namespace (SO_NETNS_COOKIE); 0 if not known
# cookie       the socket's (SO_COOKIE); 0 if not known
# local, remote   addresses as two words in host byte order; IPv4 as ::ffff:a.b.c.d
# lport, rport    in host byte order; for ICMP the echo id and 0
# wild         ANY_REMOTE: the socket takes packets from anywhere (not connected); ANY_LOCAL: to any of our addresses;
#              FIXED: the process was told for this peer, and what else is done with the socket does not change it;
#              CLOSER: the process is who closed the socket last, which a thread of the kernel may do for others
# method, certainty   positions in owner.METHODS and owner.CERTAINTIES
# pid, uid, comm, cgroup   of the process as far as its finder saw them: uid NO_ID, comm empty, cgroup (the id of a
#              cgroup2 directory, its inode number) 0 if not known; pid 0: no process had it
# time         when the process was seen at the socket: microseconds since the epoch, UTC
# first, last  from when to when the side was there, as `time`; last is -1 while it is open or if that is not known
SIDES = np.dtype([
    ("netns", "u8"), ("cookie", "u8"), ("local_hi", "u8"), ("local_lo", "u8"), ("remote_hi", "u8"),
    ("remote_lo", "u8"), ("lport", "u2"), ("rport", "u2"), ("proto", "u1"), ("wild", "u1"), ("method", "u1"),
    ("certainty", "u1"), ("pid", "u4"), ("uid", "u4"), ("cgroup", "u8"), ("time", "i8"), ("first", "i8"),
    ("last", "i8"), ("comm", "S16"),
])  # fmt: skip


def mapped(address: int, family: int) -> tuple[int, int]:
    """An address as the two words of a side."""
    return (0, 0xFFFF << 32 | address) if family == 4 else (address >> 64, address & 0xFFFFFFFFFFFFFFFF)
