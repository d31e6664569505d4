"""The two sockets on which the kernel tells of rules: nf_tables' trace and change messages, and legacy TRACE logs."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from conntracker.sources.netlink import (
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_NETFILTER,
    NETLINK_NO_ENOBUFS,
    SOL_NETLINK,
    Ring,
    drops,
    open_socket,
)
from conntracker.wire import netlink, nflog

# enum nfnetlink_groups (linux/netfilter/nfnetlink.h)
_NFNLGRP_NFTABLES, _NFNLGRP_NFTRACE = 7, 9
_MSG_DONTWAIT = 0x40

RECEIVE_BUFFER = 32 << 20
_TRACE_ROWS, _TRACE_STRIDE = 1024, 8192 + 64  # a message has at most NLMSG_GOODSIZE; changes come several in one
_LOG_ROWS, _LOG_STRIDE = 64, 1 << 18  # the kernel puts up to NLBUFSIZ (128 KB) into one datagram


class _Listener:
    """A socket and a ring; `datagrams` gives what waits on it."""

    def __init__(self, receive_buffer: int, rows: int, stride: int) -> None:
        self._socket = open_socket(receive_buffer)
        try:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, 1)
            self._socket.bind((0, 0))
            self._subscribe()
        except BaseException:
            self._socket.close()
            raise
        self._ring = Ring(rows, stride)
        self._stride = stride
        self._bytes = self._ring.rows.view("u1")

    def _subscribe(self) -> None:
        """What makes messages come."""

    def fileno(self) -> int:
        """For poll(2)."""
        return self._socket.fileno()

    def datagrams(self) -> list[bytes]:
        """What waits, at most a ring's size, in the order of arrival; [] if nothing does. Raises OSError."""
        count = self._ring.receive(self._socket.fileno(), 0, _MSG_DONTWAIT)
        lengths = self._ring.lengths[:count].tolist()
        return [self._bytes[i, : min(length, self._stride)].tobytes() for i, length in enumerate(lengths)]

    def drops(self) -> int:
        """How many datagrams the kernel dropped because the buffer was full, since the socket was made."""
        return drops(self._socket)

    def close(self) -> None:
        """Ends the subscription."""
        self._socket.close()


class TraceSocket(_Listener):
    """Trace messages and rule changes of the current network namespace, on one socket: so they come in their order.

    Raises PermissionError without CAP_NET_ADMIN.
    """

    def __init__(self, receive_buffer: int = RECEIVE_BUFFER) -> None:
        super().__init__(receive_buffer, _TRACE_ROWS, _TRACE_STRIDE)

    def _subscribe(self) -> None:
        for group in (_NFNLGRP_NFTABLES, _NFNLGRP_NFTRACE):
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)


class GroupTaken(OSError):
    """Another program reads NFLOG group 0, where legacy traces go."""


class LogSocket(_Listener):
    """NFLOG group 0 of the current network namespace. Raises GroupTaken, saying by whom if that can be found out."""

    def __init__(self, receive_buffer: int = RECEIVE_BUFFER) -> None:
        super().__init__(receive_buffer, _LOG_ROWS, _LOG_STRIDE)

    def _subscribe(self) -> None:
        for body in nflog.bind_requests():
            self._socket.send(netlink.request(nflog.MESSAGE_CONFIG, netlink.NLM_F_ACK, 1, 0, body))
            self._check(self._socket.recv(1 << 16))

    def _check(self, answer: bytes) -> None:
        for message in netlink.messages(answer):
            number = -struct.unpack_from("=i", message.payload)[0] if message.type == netlink.NLMSG_ERROR else 0
            if number in (errno.EPERM, errno.EBUSY) and (holder := log_group_holder()):
                raise GroupTaken(errno.EBUSY, f"NFLOG group 0, where legacy traces go, is read by {holder}")
            if number:
                raise OSError(number, f"NFLOG group 0: {os.strerror(number)}")


def log_group_holder() -> str | None:
    """Who reads NFLOG group 0 of this namespace, for a person; None if nobody does."""
    try:
        lines = Path("/proc/thread-self/net/netfilter/nfnetlink_log").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if len(fields) >= 2 and fields[0] == "0":
            return _process_of(int(fields[1]))
    return None


def _process_of(port: int) -> str:
    """The process that has the netlink socket with a port: by its inode, as ports are not process ids."""
    for pid in _holders(_inode_of(port)):
        with contextlib.suppress(OSError):
            return f"{Path(f'/proc/{pid}/comm').read_text().strip()} (process {pid})"
    return f"a process that cannot be told from here (netlink port {port})"


def _inode_of(port: int) -> str:
    for line in Path("/proc/thread-self/net/netlink").read_text().splitlines()[1:]:
        fields = line.split()  # sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
        if int(fields[1]) == NETLINK_NETFILTER and int(fields[2]) == port:
            return fields[9]
    return ""


def _holders(inode: str) -> Iterator[str]:
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):  # ended meanwhile, or somebody else's
            if any(os.readlink(one) == f"socket:[{inode}]" for one in descriptors.iterdir()):
                yield descriptors.parent.name


def interface_name(index: int) -> str | None:
    """The name of an interface of the current namespace; its number as text if it is gone, None for 0."""
    if not index:
        return None
    try:
        return socket.if_indextoname(index)
    except OSError:
        return str(index)
