"""The sockets of this host as they are now, and who has them: listed by the kernel (sock_diag(7)) in each network
namespace, and found by inode in /proc/PID/fd.

Nothing is asked of the sockets themselves, and no descriptor of one is duplicated (pidfd_getfd(2)): while a duplicate
lives, its socket is not closed by who closes it, its port stays taken, and it stays in epoll sets.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conntracker import clock, owner
from conntracker.model import DecodeError
from conntracker.sources.holders import Holder, Holders, find_holders, holder
from conntracker.sources.netns import Namespace
from conntracker.sources.socket_dumps import Elsewhere, SocketDumps, as_sides, joined, with_both_versions
from conntracker.wire.sockdiag import SOCKETS

__all__ = ["Inventory", "take_inventory"]

_METHOD = owner.METHODS.index(owner.OPEN)
_HOLDER, _INHERITED = owner.CERTAINTIES.index(owner.HOLDER), owner.CERTAINTIES.index(owner.INHERITED)


@dataclass(frozen=True, slots=True)
class Inventory:
    """What there was.

    sides     rows of SIDES of the sockets that processes have: connected ones, and datagram sockets that are bound;
              their time, first and last are that moment
    cookies   of all sockets that were listed, uint64; those of ping sockets are not
    netns     of each of them, the cookie of its namespace
    kernels   cookies of sockets that no process has, though they are complete: the kernel's; none if it is not
              known for sure
    listed    whether these are all
    why       why some sockets, or processes, may be missing; None if none are
    """

    sides: NDArray[Any]
    cookies: NDArray[np.uint64]
    netns: NDArray[np.uint64]
    kernels: NDArray[np.uint64]
    listed: bool
    why: str | None


def take_inventory(namespace: Namespace) -> Inventory:
    """Lists the sockets of a network namespace, and of all others that processes are in, if it may enter them.

    Takes some 0.1 s for 10,000 sockets and 1,000 processes. Raises OSError where the kernel refuses to list any.
    """
    found = find_holders(skip=os.getpid())
    try:
        with contextlib.closing(SocketDumps(namespace)) as own, contextlib.closing(Elsewhere(own)) as elsewhere:
            sockets = joined([own.read(), *elsewhere.read()], SOCKETS)
            listed, why = elsewhere.why is None, found.why or elsewhere.why
    except DecodeError as error:
        raise OSError(0, f"listing sockets: {error}") from error
    cookies, netns = sockets["cookie"], sockets["netns"]
    # Without an inode: one that its process closed, or nobody has accepted yet.
    sockets = sockets[sockets["inode"] != 0]
    held = np.array([inode in found for inode in sockets["inode"].tolist()], np.bool_)
    again = find_holders(skip=os.getpid()) if why is None and not held.all() else found
    others_of = zip(*(sockets[name][~held].tolist() for name in ("cookie", "inode")), strict=True)
    nobodys = [cookie for cookie, inode in others_of if inode not in again]
    kernels = np.array(nobodys if why is None and again.why is None else [], np.uint64)
    return Inventory(_sides(sockets[held], found), cookies, netns, kernels, listed, why or again.why)


def _sides(sockets: NDArray[Any], found: Holders) -> NDArray[Any]:
    known: dict[int, Holder | None] = {}
    sides = as_sides(sockets)
    sides["method"] = _METHOD
    sides["time"] = sides["first"] = sides["last"] = clock.now()
    for i, inode in enumerate(sockets["inode"].tolist()):
        pids = [pid for pid, _ in found.of(inode)]
        for pid in pids:
            if pid not in known:
                known[pid] = holder(pid)
        having = [one for pid in pids if (one := known[pid]) is not None]
        if having:
            oldest = min(having)
            sides["pid"][i], sides["uid"][i], sides["comm"][i] = oldest.pid, oldest.uid, oldest.comm
        sides["certainty"][i] = _HOLDER if len(having) == 1 else _INHERITED
    return with_both_versions(sides, sockets["both"])
