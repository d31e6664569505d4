"""What all netfilter netlink sockets share: opening, receiving in heaps, counting drops, waiting (netlink(7))."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct

import numpy as np
from numpy.typing import NDArray

NETLINK_NETFILTER = 12
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NETLINK_NO_ENOBUFS = 270, 1, 5
SO_RCVBUFFORCE, SO_MEMINFO = 33, 55
_MEMINFO_RCVBUF, _MEMINFO_DROPS = 1, 8  # linux/sock_diag.h: SK_MEMINFO_RCVBUF, SK_MEMINFO_DROPS

# struct iovec and struct mmsghdr (recvmmsg(2)) on 64-bit Linux
_IOVEC = np.dtype([("base", "u8"), ("length", "u8")])
_MMSGHDR = np.dtype({
    "names": ["iov", "iovlen", "length"], "formats": ["u8", "u8", "u4"], "offsets": [16, 24, 56], "itemsize": 64,
})  # fmt: skip

if struct.calcsize("P") != 8:
    raise ImportError("conntracker needs a 64-bit Python")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)


def open_socket(receive_buffer: int) -> socket.socket:
    """A netfilter netlink socket, with as large a buffer as this process may have. Not bound yet."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer)
    except PermissionError:  # needs CAP_NET_ADMIN outside of every user namespace
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    return sock


class Ring:
    """Rows of equal stride for whole datagrams, and what recvmmsg(2) needs to fill them."""

    def __init__(self, count: int, stride: int) -> None:
        self.rows = np.zeros((count, stride // 4), np.uint32)
        self._iovecs = np.zeros(count, _IOVEC)
        self._headers = np.zeros(count, _MMSGHDR)
        step = np.arange(count, dtype=np.uint64)
        self._iovecs["base"] = self.rows.ctypes.data + step * np.uint64(stride)
        self._iovecs["length"] = stride
        self._headers["iov"] = self._iovecs.ctypes.data + step * np.uint64(_IOVEC.itemsize)
        self._headers["iovlen"] = 1
        self.lengths: NDArray[np.uint32] = self._headers["length"]
        self._address = self._headers.ctypes.data

    def receive(self, fd: int, start: int, flags: int) -> int:
        """Fills rows from `start` on; returns how many. Raises OSError; nothing there is 0."""
        address = self._address + _MMSGHDR.itemsize * start
        count = int(_libc.recvmmsg(fd, address, len(self.rows) - start, flags | socket.MSG_TRUNC, None))
        if count >= 0:
            return count
        number = ctypes.get_errno()
        if number in (errno.EAGAIN, errno.EINTR, errno.ENOBUFS):
            return 0
        raise OSError(number, f"receiving from netfilter: {os.strerror(number)}")


def drops(sock: socket.socket) -> int:
    """How many datagrams the kernel dropped because the socket's buffer was full, since it was made."""
    return _meminfo(sock)[_MEMINFO_DROPS]


def granted_buffer(sock: socket.socket) -> int:
    """Bytes of receive buffer that the kernel granted (it doubles what was asked, for its own bookkeeping)."""
    return _meminfo(sock)[_MEMINFO_RCVBUF]


def _meminfo(sock: socket.socket) -> tuple[int, ...]:
    return struct.unpack("=9I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))


def closed_pipe(fd: int) -> bool:
    """Whether `fd` is a pipe or socket that nobody reads any more (POLLERR of poll(2))."""
    poll = select.poll()
    poll.register(fd, 0)
    return any(happened & (select.POLLERR | select.POLLHUP) for _, happened in poll.poll(0))


def wait(fds: list[int], timeout: float | None) -> list[int]:
    """Waits until one of the descriptors is readable, for at most `timeout` seconds. Returns those that are."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(None if timeout is None else max(0, timeout * 1000))]
