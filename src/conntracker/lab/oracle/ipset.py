"""Sets of ip_set(4) for rules that ask for them: made as ipset(8) does (linux/netfilter/ipset/ip_set.h), without it."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import struct

from conntracker.sources.netlink import open_socket
from conntracker.wire.netlink import NLM_F_ACK, NLM_F_CREATE, NLMSG_ERROR, attribute, messages, nested, request

__all__ = ["SETS", "create", "wanted_by"]

_CREATE, _ADD = 6 << 8 | 2, 6 << 8 | 9  # NFNL_SUBSYS_IPSET; IPSET_CMD_CREATE, IPSET_CMD_ADD
_PROTOCOL, _NAME, _TYPE, _REVISION, _FAMILY, _DATA = 1, 2, 3, 4, 5, 7  # IPSET_ATTR_*
_IP, _CIDR = 1, 3  # inside of data
_NET_BYTEORDER = 0x4000
_ASKED = re.compile(r"--match-set (\S{1,31}) ")

# What is in them, by family.
SETS = {
    "ip": ("10.1.2.0/24", "192.168.1.9/32", "203.0.113.8/29"),
    "ip6": ("fd00:1:2::/48", "2001:db8:1::9/128", "fd00:1::/48"),
}


def wanted_by(save: str) -> list[str]:
    """The names of the sets that rules of a save ask for."""
    return list(dict.fromkeys(_ASKED.findall(save)))


def create(name: str, family: str) -> None:
    """A set of networks (hash:net) of ip or ip6, in the namespace of the calling thread. Raises OSError."""
    head = attribute(_PROTOCOL, b"\6") + attribute(_NAME, name.encode() + b"\0")
    number = {"ip": 2, "ip6": 10}[family]
    kind = attribute(_TYPE, b"hash:net\0") + attribute(_REVISION, b"\0") + attribute(_FAMILY, bytes([number]))
    asked = [request(_CREATE, NLM_F_ACK | NLM_F_CREATE, 1, number, head + kind + nested(_DATA))]
    for text in SETS[family]:
        network = ipaddress.ip_network(text)
        address = attribute((1 if family == "ip" else 2) | _NET_BYTEORDER, network.network_address.packed)
        data = nested(_IP, address) + attribute(_CIDR, bytes([network.prefixlen]))
        asked.append(request(_ADD, NLM_F_ACK, 1, number, head + nested(_DATA, data)))
    with open_socket(1 << 16) as sock:
        sock.bind((0, 0))
        for message in asked:
            sock.send(message)
            for answer in messages(sock.recv(1 << 14)):
                failed = -int(struct.unpack_from("=i", answer.payload)[0]) if answer.type == NLMSG_ERROR else 0
                if failed not in (0, errno.EEXIST):
                    raise OSError(failed, f"ip_set {name}: {os.strerror(failed)}")
