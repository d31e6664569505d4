"""ctnetlink sockets: the event stream, the table dump, and questions about one entry (linux/netfilter/nfnetlink.h)."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from conntracker.model import Batch, DecodeError
from conntracker.sources.netlink import NETLINK_NO_ENOBUFS, SOL_NETLINK, Ring, drops, granted_buffer, open_socket, wait
from conntracker.wire import conntrack, dumps, netlink
from conntracker.wire.columns import Decoder

_MSG_DONTWAIT, _MSG_WAITFORONE = 0x40, 0x10000
_GROUPS = 0b111  # NF_NETLINK_CONNTRACK_NEW | _UPDATE | _DESTROY (linux/netfilter/nfnetlink_compat.h)
_GROUP_NEW = 0b001
_PROBE_WAIT = 0.1  # seconds; loopback takes microseconds

DEFAULT_RECEIVE_BUFFER = 64 << 20
# A ctnetlink event is 100 to 600 bytes; one longer than this is seen as cut short and counted. No power of two: the
# same word of many rows would share a few lines of the processor's cache, and decoding take twice as long.
_STRIDE = 1024 + 64

_DUMP_STRIDE = 1 << 15  # the kernel's largest datagram of a dump (netlink_dump, af_netlink.c)
_DUMP_DATAGRAMS = 128


class EventSocket:
    """New, update and destroy events of the current network namespace, received into a ring of fixed rows.

    The socket never asks for reliable delivery (NETLINK_BROADCAST_ERROR): with it, the kernel keeps every dead entry
    whose DESTROY we have not read in the connection table, so that a stopped reader would fill the table and make the
    host drop packets. What did not fit the buffer is counted by the kernel instead, exactly: `drops`.
    """

    def __init__(
        self, receive_buffer: int = DEFAULT_RECEIVE_BUFFER, rows: int = 8192, groups: int | None = None
    ) -> None:
        self._socket = open_socket(receive_buffer)
        try:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, 1)
            self._socket.bind((0, _GROUPS if groups is None else groups))
        except BaseException:
            self._socket.close()
            raise
        self.filled = 0
        self._ring = Ring(rows, _STRIDE)

    def fileno(self) -> int:
        """For poll(2)."""
        return self._socket.fileno()

    @property
    def room(self) -> int:
        """Free rows of the ring."""
        return len(self._ring.rows) - self.filled

    def receive(self) -> int:
        """Fills free rows with what is waiting, without blocking. Returns how many datagrams came."""
        count = self._ring.receive(self._socket.fileno(), self.filled, _MSG_DONTWAIT) if self.room else 0
        self.filled += count
        return count

    def take(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """(rows, lengths) received since the last call; valid until the next `receive`."""
        n, self.filled = self.filled, 0
        return self._ring.rows[:n], self._ring.lengths[:n]

    def drops(self) -> int:
        """How many datagrams the kernel dropped because the buffer was full, since the socket was made."""
        return drops(self._socket)

    @property
    def receive_buffer(self) -> int:
        """Bytes the kernel granted (it doubles what was asked, for its own bookkeeping)."""
        return granted_buffer(self._socket)

    def close(self) -> None:
        """Ends the subscription."""
        self._socket.close()


class Dump:
    """The whole connection table of the current network namespace, a piece at a time.

    `step` never blocks for long (the kernel answers from memory), so that events can be drained between two steps.
    While one piece is decoded, the next one is received in a thread: most of a dump's time is the kernel's.
    """

    def __init__(self) -> None:
        self._socket = open_socket(4 << 20)
        self._socket.bind((0, 0))
        self._rings = [Ring(_DUMP_DATAGRAMS, _DUMP_STRIDE) for _ in range(2)]
        self._piece = np.zeros(_DUMP_DATAGRAMS * _DUMP_STRIDE // 4, np.uint32)
        self._received = 0
        self._error: OSError | None = None
        self.done = False
        try:
            self._socket.send(conntrack.dump_request(int.from_bytes(os.urandom(3)) | 0x5E000000))
        except BaseException:
            self._socket.close()
            raise
        self._begin_to_fill()

    def _begin_to_fill(self) -> None:
        self._rings.reverse()
        self._thread = threading.Thread(target=self._fill, daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        try:
            self._received = self._rings[0].receive(self._socket.fileno(), 0, _MSG_WAITFORONE)
        except OSError as error:
            self._error = error

    def step(self) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
        """(words, message offsets in words) of the next piece, valid until the next step.

        `done` is set with the last one. Raises OSError if the kernel refuses, DecodeError if the bytes make no sense.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        ring = self._rings[0]
        lengths = ring.lengths[: self._received].tolist()
        if any(length % 4 or length > _DUMP_STRIDE for length in lengths):
            raise DecodeError(f"datagrams of {max(lengths)} bytes in a dump", 0)
        self.done = bool(lengths) and _ends_dump(ring.rows[len(lengths) - 1, : lengths[-1] // 4])
        if self.done:
            self.close()
        else:
            self._begin_to_fill()
        words, at = self._piece, 0
        for i, length in enumerate(lengths):
            words[at : at + length // 4] = ring.rows[i, : length // 4]
            at += length // 4
        words = words[:at]
        offsets, end, _ = dumps.message_offsets(words)
        return words[:end], offsets

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.intp]]]:
        while not self.done:
            yield self.step()

    def close(self) -> None:
        """Gives the socket back."""
        self._thread.join()
        self._socket.close()


def _ends_dump(datagram: NDArray[np.uint32]) -> bool:
    """Whether NLMSG_DONE (20 bytes) is its last message, or NLMSG_DONE or NLMSG_ERROR its only one (af_netlink.c)."""
    if datagram[1] & 0xFFFF in (netlink.NLMSG_DONE, netlink.NLMSG_ERROR):
        return True
    header = datagram[-5:]
    return bool(header[0] == 20 and header[1] & 0xFFFF == netlink.NLMSG_DONE and (header[2:4] == datagram[2:4]).all())


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
    raise OSError(errno.EOPNOTSUPP, "conntrack events are off here: sysctl -w net.netfilter.nf_conntrack_events=1")


def is_tracked(family: int, own: set[int] | None = None) -> bool | None:
    """Whether connection tracking is on for IPv4 or IPv6 in the current network namespace.

    own   gets the ports that the probe used, source << 16 | destination, so that it can be told from flows

    The kernel only tells where it is built with CONFIG_NETFILTER_NETLINK_HOOK. So one empty datagram is sent over
    loopback while its NEW event is listened for, in any zone, and its entry is taken out again. Any other NEW event
    answers the question as well. False only when the datagram arrived untracked and the table is empty; None where that
    leaves doubt: loopback is down, a firewall forbids the datagram, or rules exempt loopback from tracking.
    Raises PermissionError without CAP_NET_ADMIN.
    """
    address, domain = ("127.0.0.1", socket.AF_INET) if family == 4 else ("::1", socket.AF_INET6)
    with contextlib.ExitStack() as stack:
        events = stack.enter_context(contextlib.closing(EventSocket(1 << 18, rows=256, groups=_GROUP_NEW)))
        try:
            here, there = (stack.enter_context(socket.socket(domain, socket.SOCK_DGRAM)) for _ in range(2))
            here.bind((address, 0))
            there.bind((address, 0))
            there.settimeout(_PROBE_WAIT)
            if own is not None:
                own.add(here.getsockname()[1] << 16 | there.getsockname()[1])
            here.sendto(b"", there.getsockname()[:2])
            there.recv(1)
        except OSError:
            return None
        raw = socket.inet_pton(domain, address)
        ports = here.getsockname()[1], there.getsockname()[1]
        wait([events.fileno()], _PROBE_WAIT)
        events.receive()
        for batch in Decoder().decode_rows(*events.take(), 0):
            if batch.family == family:
                for zone in _zones_of(batch, ports):
                    _delete(family, raw, ports, zone)
                return True
    with open("/proc/sys/net/netfilter/nf_conntrack_count") as count:
        return None if int(count.read()) else False


def _zones_of(batch: Batch, ports: tuple[int, int]) -> list[int]:
    """The zone of the probe's own entry, if its NEW event is in the batch."""
    p = batch.ports
    key = (p >> np.uint64(32) << np.uint64(16)) | (p >> np.uint64(8) & np.uint64(0xFF))
    found = p[key == np.uint64(ports[0] << 32 | ports[1] << 16 | socket.IPPROTO_UDP)]
    return [zone & 0xFFFF for zone in (found[:1] >> np.uint64(16)).tolist()]


def _delete(family: int, address: bytes, ports: tuple[int, int], zone: int) -> None:
    """Takes the probe's entry out of the table; somebody may have done so already."""
    entry = conntrack.tuple_attribute(conntrack.CTA_TUPLE_ORIG, family, address, address, socket.IPPROTO_UDP, *ports)
    entry += netlink.attribute(conntrack.CTA_ZONE, struct.pack("!H", zone))
    domain = socket.AF_INET if family == 4 else socket.AF_INET6
    with open_socket(1 << 16) as sock:
        sock.settimeout(2)
        sock.bind((0, 0))
        sock.send(netlink.request(conntrack.MESSAGE_DELETE, netlink.NLM_F_ACK, 1, domain, entry))
        for message in netlink.messages(sock.recv(1 << 16)):
            number = -struct.unpack_from("=i", message.payload)[0]
            if number not in (0, errno.ENOENT):
                raise OSError(number, f"deleting a conntrack entry: {os.strerror(number)}")
