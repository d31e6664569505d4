"""Sending from the host itself: raw sockets that take whole packets (raw(7), IP_HDRINCL), one for each owner."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections import OrderedDict

from conntracker.lab.oracle.wanted import Wanted

__all__ = ["LocalSender"]

_MOST = 64  # sockets
_IPV6_MULTICAST_LOOP = 19
_libc = ctypes.CDLL(None, use_errno=True)


class LocalSender:
    """Sockets of the namespace in which it is first used."""

    def __init__(self) -> None:
        self._sockets: OrderedDict[tuple[int, int, int], socket.socket] = OrderedDict()
        self._marks: dict[tuple[int, int, int], int] = {}

    def send(self, packet: Wanted, content: bytes) -> None:
        """Sends a packet, IP header and all. Raises OSError: EPERM where a rule dropped it."""
        key = packet.family, packet.skuid, packet.skgid
        sock = self._sockets.get(key)
        if sock is None:
            sock = self._open(key)
        if self._marks[key] != packet.mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", packet.mark))
            self._marks[key] = packet.mark
        if packet.family == 4:
            sock.sendto(content, (socket.inet_ntop(socket.AF_INET, content[16:20]), 0))
        else:
            sock.sendto(content, (socket.inet_ntop(socket.AF_INET6, content[24:40]), 0))

    def _open(self, key: tuple[int, int, int]) -> socket.socket:
        while len(self._sockets) >= _MOST:
            oldest, sock = self._sockets.popitem(last=False)
            del self._marks[oldest]
            sock.close()
        family, uid, gid = key
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        # A socket's owner is the one whose file system ids its maker had (sock_alloc_file, net/socket.c).
        _libc.setfsgid(gid)
        _libc.setfsuid(uid)
        try:
            sock = socket.socket(kind, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW)
        finally:
            _libc.setfsuid(0)
            _libc.setfsgid(0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if family == 4:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_LOOP, 0)
        self._sockets[key], self._marks[key] = sock, 0
        return sock

    def close(self) -> None:
        """Closes the sockets."""
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()
        self._marks.clear()
