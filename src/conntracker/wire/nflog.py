"""NFLOG messages, and what iptables' TRACE says in them (linux/netfilter/nfnetlink_log.h).

The kernel logs `TRACE: table:chain:type:number ` for each rule of a legacy table that a marked packet matched
(trace_packet in ip_tables.c), to group 0.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from conntracker.model import DecodeError
from conntracker.wire.netlink import attribute, attributes

NFNL_SUBSYS_ULOG = 4
MESSAGE_PACKET = NFNL_SUBSYS_ULOG << 8 | 0  # NFULNL_MSG_PACKET
MESSAGE_CONFIG = NFNL_SUBSYS_ULOG << 8 | 1  # NFULNL_MSG_CONFIG

# enum nfulnl_attr_type
PACKET_HDR, IFINDEX_INDEV, IFINDEX_OUTDEV, PAYLOAD, PREFIX = 1, 4, 5, 9, 10
# enum nfulnl_attr_config, enum nfulnl_msg_config_cmds
_CFG_CMD, _CFG_MODE, _CFG_BUFFER, _CFG_TIMEOUT, _CFG_THRESHOLD = 1, 2, 3, 4, 5
_CMD_BIND = 1
_COPY_PACKET = 2

LONGEST_WAIT = 0.02  # seconds: the timeout below, a hundredth, and a tick or two

_TRACE = re.compile(rb"TRACE: ([^:]{1,32}):(.{1,32}):(rule|return|policy):(\d{1,9}) ?\0*", re.DOTALL)


class LogMessage(NamedTuple):
    """One step of a packet through legacy tables.

    hook      number of linux/netfilter.h (enum nf_inet_hooks)
    family    ip or ip6
    type      rule, return or policy, as the kernel says it; see traces.py for what it means
    number    of the rule in its chain, from 1
    payload   the packet from its IP header on, cut
    iif, oif  interface numbers, 0 if there is none
    """

    hook: int
    family: str
    table: str
    chain: str
    type: str
    number: int
    payload: bytes
    iif: int
    oif: int


def bind_requests(copied: int = 128) -> list[bytes]:
    """Bodies of the configuration messages that bind group 0 and ask for `copied` bytes of each packet.

    Up to a hundred messages wait for each other, for less than LONGEST_WAIT.
    """
    return [
        attribute(_CFG_CMD, bytes([_CMD_BIND])),
        attribute(_CFG_MODE, struct.pack("!IBB", copied, _COPY_PACKET, 0)),
        attribute(_CFG_BUFFER, struct.pack("!I", 1 << 17)),
        attribute(_CFG_THRESHOLD, struct.pack("!I", 100)),
        attribute(_CFG_TIMEOUT, struct.pack("!I", 1)),
    ]


def decode(body: bytes) -> LogMessage | None:
    """The step in the payload of a NFULNL_MSG_PACKET, None for a log of something else than a trace.

    Raises DecodeError for what is no whole message.
    """
    if len(body) < 4:
        raise DecodeError("log message cut short", 0)
    prefix = payload = b""
    hook = iif = oif = 0
    for kind, start, length in attributes(body, 4, len(body)):
        if kind == PREFIX:
            prefix = body[start : start + length]
        elif kind == PAYLOAD:
            payload = body[start : start + length]
        elif kind in (PACKET_HDR, IFINDEX_INDEV, IFINDEX_OUTDEV):
            if length != 4:
                raise DecodeError("log attribute of a wrong size", start)
            number = int.from_bytes(body[start : start + 4], "big")
            if kind == PACKET_HDR:
                hook = number >> 8 & 0xFF
            elif kind == IFINDEX_INDEV:
                iif = number
            else:
                oif = number
    match = _TRACE.fullmatch(prefix)
    if match is None:
        return None
    table, chain, step, at = match.groups()
    return LogMessage(
        hook, "ip6" if body[0] == 10 else "ip", table.decode("utf-8", "surrogateescape"),
        chain.decode("utf-8", "surrogateescape"), step.decode(), int(at), payload, iif, oif,
    )  # fmt: skip
