"""The load generator: sends a plan's packets from the client's interface as fast as one thread can.

veth hands a packet to the receiver's queue on the same processor, and the kernel works that queue off before sendmmsg
goes on: the router, its connection tracking and the server run inside the sender's system call, nothing queues up, and
the rate is the rate at which the kernel forwards and tracks.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from conntracker.lab import packets
from conntracker.lab.plan import LISTENING, Flows
from conntracker.lab.topology import MAC, Lab

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Sent", "send"]

BATCH = 64  # packets a system call
SETTLE = 0.05  # seconds until the last answers are in

# struct mmsghdr and struct iovec of 64-bit Linux (bits/socket.h, bits/types/struct_iovec.h)
MMSGHDR = np.dtype(
    [
        ("name", "u8"), ("namelen", "u8"), ("iov", "u8"), ("iovlen", "u8"), ("control", "u8"), ("controllen", "u8"),
        ("flags", "u8"), ("sent", "u8"),
    ]
)  # fmt: skip
IOVEC = np.dtype([("base", "u8"), ("len", "u8")])

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a load.

    sent       packets taken by the kernel
    retried    times that the kernel refused for lack of room and was asked again
    dropped    packets lost between the namespaces, answers included: with 0, the plan holds exactly
    seconds    time of the sending alone
    """

    sent: int
    retried: int
    dropped: int
    seconds: float


def send(lab: Lab, flows: Flows, *, cpu: int | None = None, rate: int | None = None) -> Sent:
    """Send the first packet of every flow from the client's interface and wait until the answers are in.

    cpu    the processor to run on while sending; the kernel forwards on the same one
    rate   packets a second, at most; None for as many as possible

    Raises OSError when the kernel refuses to send.
    """
    built = packets.build(flows.original)
    frames, lengths = packets.ethernet(*built, MAC["router", "client"], MAC["client", "eth0"])
    before = lab.dropped()
    allowed = os.sched_getaffinity(0)
    with _listen(lab), _packet_socket(lab) as raw:
        try:
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})
            sent, retried, seconds = _send_frames(raw, frames, lengths, rate)
        finally:
            os.sched_setaffinity(0, allowed)
        time.sleep(SETTLE)
    return Sent(sent, retried, lab.dropped() - before, seconds)


def _listen(lab: Lab) -> socket.socket:
    with lab.server:
        return socket.create_server(("::", LISTENING), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)


def _packet_socket(lab: Lab) -> socket.socket:
    with lab.client:
        # Protocol 0: it only sends; otherwise the kernel would hand it a copy of every packet.
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        raw.bind(("eth0", 0))
    return raw


def _send_frames(
    raw: socket.socket, frames: NDArray[np.uint8], lengths: NDArray[np.uint16], rate: int | None
) -> tuple[int, int, float]:
    count = len(frames)
    vectors = np.zeros(count, IOVEC)
    vectors["base"] = frames.ctypes.data + np.arange(count, dtype=np.uint64) * np.uint64(frames.strides[0])
    vectors["len"] = lengths
    messages = np.zeros(count, MMSGHDR)
    messages["iov"] = vectors.ctypes.data + np.arange(count, dtype=np.uint64) * np.uint64(IOVEC.itemsize)
    messages["iovlen"] = 1
    base, number = messages.ctypes.data, raw.fileno()
    batch = BATCH if rate is None else max(1, min(BATCH, rate // 1000))  # even, not in bursts
    position = retried = 0
    start = time.monotonic()
    while position < count:
        done = _libc.sendmmsg(
            number, ctypes.c_void_p(base + position * MMSGHDR.itemsize), min(batch, count - position), 0
        )
        if done > 0:
            position += done
        elif ctypes.get_errno() in {errno.ENOBUFS, errno.EAGAIN, errno.EINTR}:
            retried += 1
            time.sleep(0.0005)
        else:
            raise OSError(ctypes.get_errno(), f"sending packets: {os.strerror(ctypes.get_errno())}")
        if rate is not None:
            time.sleep(max(0.0, start + position / rate - time.monotonic()))
    return position, retried, time.monotonic() - start
