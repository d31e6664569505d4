"""Clients of ICMP and of protocols that have no ports; the kernel answers."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import time

from kernel.owners.post import HOLD, Post, family
from kernel.owners.programs import MISSING
from kernel.owners.truth import ICMP, ICMPV6, UDP

__all__ = ["echo", "ping", "raw", "raw_udp"]

ECHO_REQUEST = {ICMP: 8, ICMPV6: 128}
EXPERIMENT = 253  # a protocol that nobody has: RFC 3692


def ping(post: Post) -> None:
    """ping(8), which takes a ping socket where it may, else a raw one."""
    path = shutil.which("ping")
    if path is None:
        os._exit(MISSING)
    proto = ICMPV6 if ":" in post.to else ICMP
    post.client(proto, (None, None), comms=("ping",))
    post.other(proto)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.execv(path, ["ping", "-n", "-q", "-c", "4", "-i", "0.3", post.to])  # noqa: S606


def echo(post: Post, how: str) -> None:
    """Echo requests of our own making: by a ping socket, see icmp(7), or a raw one."""
    proto = ICMPV6 if ":" in post.to else ICMP
    sock = socket.socket(family(post.to), socket.SOCK_DGRAM if how == "dgram" else socket.SOCK_RAW, proto)
    request = _request(ECHO_REQUEST[proto], os.getpid() & 0xFFFF)
    post.client(proto, (None, None))
    post.other(proto)
    for _ in range(3):
        sock.sendto(request, (post.to, 0))
        sock.recv(100)
        time.sleep(HOLD / 3)


def _request(kind: int, number: int) -> bytes:
    """An echo request (RFC 792); the kernel makes the checksum of ICMPv6 itself."""
    total = (kind << 8) + number + 1
    check = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return struct.pack("!BBHHH", kind, 0, check, number, 1)


def raw(post: Post) -> None:
    """Packets of a protocol that nobody knows; the kernel answers with protocol unreachable."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, EXPERIMENT) as sock:
        post.client(EXPERIMENT, (None, None))
        post.other(EXPERIMENT)
        sock.sendto(b"x", (post.to, 0))
        time.sleep(HOLD)


def raw_udp(post: Post) -> None:
    """A datagram of UDP (RFC 768) from a raw socket, as DHCP clients and traceroute(8) make them."""
    port = post.case.port + 1 + post.number
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as sock:
        hello = post.hello(("127.0.0.1", port))
        post.client(UDP, ("127.0.0.1", port), post.case.port)
        sock.sendto(struct.pack("!HHHH", port, post.case.port, 8 + len(hello), 0) + hello, (post.to, 0))
        time.sleep(HOLD)
