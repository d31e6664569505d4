"""ctnetlink sockets: the event stream, the table dump, and questions about one entry (linux/netfilter/nfnetlink.h)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from conntracker.model import DecodeError
from conntracker.wire import columns, conntrack, netlink

NETLINK_NETFILTER = 12
SOL_NETLINK, NETLINK_NO_ENOBUFS = 270, 5
SO_RCVBUFFORCE, SO_MEMINFO = 33, 55
_MEMINFO_RCVBUF, _MEMINFO_DROPS = 1, 8  # linux/sock_diag.h: SK_MEMINFO_RCVBUF, SK_MEMINFO_DROPS
_MSG_DONTWAIT = 0x40
_GROUPS = 0b111  # NF_NETLINK_CONNTRACK_NEW | _UPDATE | _DESTROY (linux/netfilter/nfnetlink_compat.h)

DEFAULT_RECEIVE_BUFFER = 64 << 20
_STRIDE = 1024  # a ctnetlink event is 100 to 600 bytes; a longer one is seen as cut short and counted

# struct iovec and struct mmsghdr (recvmmsg(2)) on 64-bit Linux
_IOVEC = np.dtype([("base", "u8"), ("length", "u8")])
_MMSGHDR = np.dtype({
    "names": ["iov", "iovlen", "length"], "formats": ["u8", "u8", "u4"], "offsets": [16, 24, 56], "itemsize": 64,
})  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)
_libc.recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)


def _socket(receive_buffer: int) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer)
    except PermissionError:  # needs CAP_NET_ADMIN outside of every user namespace
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    return sock


class EventSocket:
    """New, update and destroy events of the current network namespace, received into a ring of fixed rows.

    The socket never asks for reliable delivery (NETLINK_BROADCAST_ERROR): with it, the kernel keeps every dead entry
    whose DESTROY we have not read in the connection table, so that a stopped reader would fill the table and make the
    host drop packets. What did not fit the buffer is counted by the kernel instead, exactly: `drops`.
    """

    def __init__(self, receive_buffer: int = DEFAULT_RECEIVE_BUFFER, rows: int = 8192) -> None:
        self._socket = _socket(receive_buffer)
        try:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, 1)
            self._socket.bind((0, _GROUPS))
        except BaseException:
            self._socket.close()
            raise
        self.filled = 0
        self._rows = np.zeros((rows, _STRIDE // 4), np.uint32)
        self._iovecs = np.zeros(rows, _IOVEC)
        self._headers = np.zeros(rows, _MMSGHDR)
        step = np.arange(rows, dtype=np.uint64)
        self._iovecs["base"] = self._rows.ctypes.data + step * np.uint64(_STRIDE)
        self._iovecs["length"] = _STRIDE
        self._headers["iov"] = self._iovecs.ctypes.data + step * np.uint64(_IOVEC.itemsize)
        self._headers["iovlen"] = 1
        self._address = self._headers.ctypes.data

    def fileno(self) -> int:
        """For poll(2)."""
        return self._socket.fileno()

    @property
    def room(self) -> int:
        """Free rows of the ring."""
        return len(self._rows) - self.filled

    def receive(self) -> int:
        """Fills free rows with what is waiting, without blocking. Returns how many datagrams came."""
        fd, start = self._socket.fileno(), self._address + _MMSGHDR.itemsize * self.filled
        count = int(_libc.recvmmsg(fd, start, self.room, _MSG_DONTWAIT | socket.MSG_TRUNC, None)) if self.room else 0
        if count < 0:
            number = ctypes.get_errno()
            if number in (errno.EAGAIN, errno.EINTR, errno.ENOBUFS):
                return 0
            raise OSError(number, f"receiving conntrack events: {os.strerror(number)}")
        self.filled += count
        return count

    def take(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """(rows, lengths) received since the last call; valid until the next `receive`."""
        n, self.filled = self.filled, 0
        return self._rows[:n], self._headers["length"][:n]

    def drops(self) -> int:
        """How many datagrams the kernel dropped because the buffer was full, since the socket was made."""
        return self._meminfo()[_MEMINFO_DROPS]

    @property
    def receive_buffer(self) -> int:
        """Bytes the kernel granted (it doubles what was asked, for its own bookkeeping)."""
        return self._meminfo()[_MEMINFO_RCVBUF]

    def _meminfo(self) -> tuple[int, ...]:
        return struct.unpack("=9I", self._socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))

    def close(self) -> None:
        """Ends the subscription."""
        self._socket.close()


class Dump:
    """The whole connection table of the current network namespace, a piece at a time.

    `step` never blocks for long (the kernel answers from memory), so that events can be drained between two steps.
    """

    _PIECE = 1 << 20
    _DATAGRAM = 1 << 16

    def __init__(self) -> None:
        self._socket = _socket(4 << 20)
        self._socket.bind((0, 0))
        self._sequence = int.from_bytes(os.urandom(3)) | 0x5E000000
        self._buffer = np.zeros(self._PIECE // 4, np.uint32)
        self.done = False
        try:
            self._socket.send(conntrack.dump_request(self._sequence))
        except BaseException:
            self._socket.close()
            raise

    def step(self) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
        """(words, message offsets in words) of the next piece; `done` is set with the last one.

        Raises OSError if the kernel refuses, DecodeError if the bytes make no sense.
        """
        view = self._buffer.data.cast("B")
        filled = 0
        while filled + self._DATAGRAM <= self._PIECE and not self.done:
            received = self._socket.recv_into(view[filled:])
            if received % 4 or not received:
                raise DecodeError(f"datagram of {received} bytes in a dump", received)
            self.done = self._ends_here(filled, received)
            filled += received
        words = self._buffer[: filled // 4]
        offsets, end, done = columns.message_offsets(words)
        self.done = self.done or done
        if self.done:
            self.close()
        return words[:end], offsets

    def _ends_here(self, start: int, received: int) -> bool:
        """NLMSG_DONE and NLMSG_ERROR come alone or as the last message of a datagram (af_netlink.c)."""
        tail = self._buffer[(start + received) // 4 - 5 : (start + received) // 4]
        alone = self._buffer[start // 4 : start // 4 + 5]
        return any(
            len(header) == 5 and header[1] & 0xFFFF in (netlink.NLMSG_DONE, netlink.NLMSG_ERROR)
            and header[2] == self._sequence and (header is alone or header[0] == 20)
            for header in (alone, tail)
        )  # fmt: skip

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.intp]]]:
        while not self.done:
            yield self.step()

    def close(self) -> None:
        """Gives the socket back."""
        self._socket.close()


def require() -> None:
    """Raises OSError where the current namespace cannot send conntrack events."""
    path = "/proc/sys/net/netfilter/nf_conntrack_events"
    if not os.path.exists(path):
        EventSocket(1 << 16, rows=1).close()  # subscribing makes the kernel load the modules
    try:
        with open(path) as file:
            if file.read().strip() != "0":
                return
    except FileNotFoundError:
        raise OSError(
            errno.EOPNOTSUPP, "no connection tracking in this kernel: modprobe nf_conntrack_netlink"
        ) from None
    raise OSError(errno.EOPNOTSUPP, "conntrack events are off here: sysctl -w net.netfilter.nf_conntrack_events=2")


def is_tracked(family: int) -> bool | None:
    """Whether connection tracking is on for IPv4 or IPv6 in the current network namespace.

    No interface of the kernel tells, so one datagram is sent over loopback and looked for in the table (then taken out
    again). None when that cannot be found out: loopback is down or a firewall forbids the datagram.
    Raises PermissionError without CAP_NET_ADMIN.
    """
    address, domain = ("127.0.0.1", socket.AF_INET) if family == 4 else ("::1", socket.AF_INET6)
    with contextlib.ExitStack() as stack:
        try:
            here, there = (stack.enter_context(socket.socket(domain, socket.SOCK_DGRAM)) for _ in range(2))
            here.bind((address, 0))
            there.bind((address, 0))
            here.sendto(b"", there.getsockname()[:2])
        except OSError:
            return None
        raw = socket.inet_pton(domain, address)
        ports = here.getsockname()[1], there.getsockname()[1]
        entry = conntrack.tuple_attribute(conntrack.CTA_TUPLE_ORIG, family, raw, raw, socket.IPPROTO_UDP, *ports)
        found = _ask(conntrack.MESSAGE_GET, domain, entry)
        if found:
            _ask(conntrack.MESSAGE_DELETE, domain, entry)
        return found


def _ask(kind: int, family: int, body: bytes) -> bool:
    """Sends a request about one entry. False when there is no such entry."""
    with _socket(1 << 16) as sock:
        sock.settimeout(2)
        sock.bind((0, 0))
        sock.send(netlink.request(kind, netlink.NLM_F_ACK, 1, family, body))
        found = False
        for message in netlink.messages(sock.recv(1 << 16)):
            if message.type != netlink.NLMSG_ERROR:
                found = True
                continue
            number = -struct.unpack_from("=i", message.payload)[0]
            if number not in (0, errno.ENOENT):
                raise OSError(number, f"asking conntrack for an entry: {os.strerror(number)}")
            found = found or number == 0
        return found


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
