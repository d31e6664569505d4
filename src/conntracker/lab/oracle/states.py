"""How a packet comes to have the state that was asked for: which flow must be there before it, or what must be wrong.

What connection tracking makes of a packet without a flow is told by `alone`; flows are put in by ctnetlink, so that no
rule of the ruleset has to accept anything first (net/netfilter/nf_conntrack_netlink.c).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from conntracker.lab.oracle.frames import ICMP_ENOUGH, VTAG, is_request
from conntracker.lab.oracle.wanted import (
    GRE,
    ICMP,
    ICMPV6,
    SCTP,
    TCP,
    UDP,
    UDPLITE,
    WITH_PORTS,
    WITH_TYPES,
    Unsendable,
    Wanted,
)
from conntracker.wire.netlink import NLM_F_ACK, NLM_F_CREATE, attribute, nested, request

__all__ = ["FLUSH", "Flow", "Preparation", "create", "is_error", "prepare", "remove"]

# linux/netfilter/nfnetlink_conntrack.h
_NEW, _DELETE = 1 << 8 | 0, 1 << 8 | 2  # IPCTNL_MSG_CT_NEW, IPCTNL_MSG_CT_DELETE
_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _PROTOINFO, _NAT_SRC, _TIMEOUT, _MARK, _NAT_DST, _TUPLE_MASTER, _ZONE = (
    1, 2, 3, 4, 6, 7, 8, 13, 14, 18,
)  # fmt: skip
FLUSH = request(_DELETE, NLM_F_ACK, 1)  # without a tuple: of all flows

# linux/netfilter/nf_conntrack_common.h
EXPECTED, SEEN_REPLY, ASSURED, CONFIRMED, SRC_NAT, DST_NAT = 1, 2, 4, 8, 16, 32
_DONE = 128 | 256  # IPS_NAT_DONE_MASK: follows from whether it is the first packet, not looked at
_SETTABLE = EXPECTED | SEEN_REPLY | ASSURED | CONFIRMED | SRC_NAT | DST_NAT | _DONE

# The other end of flows that are translated.
_NOBODY = {4: 0x0AFE0009, 6: 0xFD00FE << 104 | 9}

# nf_conntrack_proto_tcp.c: sets of flags that are possible, without ECE, CWR and PSH; states of enum tcp_conntrack.
_POSSIBLE = frozenset((2, 34, 18, 4, 20, 17, 49, 16, 48))
_SYN_SENT, _ESTABLISHED, _SYN_SENT2 = 1, 3, 9
_LIBERAL = b"\x0a\x0a"  # IP_CT_TCP_FLAG_SACK_PERM and BE_LIBERAL, flags and mask
_SCTP_ESTABLISHED = 4  # enum sctp_conntrack

# nf_conntrack_proto_icmp.c, nf_conntrack_proto_icmpv6.c: what answers what, and which types may begin a flow.
_ANSWERS = {
    ICMP: {8: 0, 0: 8, 13: 14, 14: 13, 15: 16, 16: 15, 17: 18, 18: 17},
    ICMPV6: {128: 129, 129: 128, 139: 140, 140: 139},
}
_BEGINNERS = {ICMP: frozenset((8, 13, 15, 17)), ICMPV6: frozenset((128, 139))}
# Protocols of which a packet makes a flow assured when an answer was seen before (nf_conntrack_tcp_packet and others).
_ASSURED_BY_ANSWERS = frozenset((TCP, UDP, UDPLITE, GRE))
_UNTRACKED = frozenset((130, 131, 132, 133, 134, 135, 136, 143, 151, 152))


@dataclass(frozen=True, slots=True)
class Flow:
    """One direction of a flow: (address, port or ICMP's type, code and id) at both ends, in bytes as ctnetlink asks."""

    family: int
    protocol: int
    saddr: int
    daddr: int
    sport: int = 0
    dport: int = 0
    icmp: tuple[int, int, int] | None = None  # type, code, id

    def reverse(self) -> Flow:
        """The other direction, without NAT."""
        icmp = self.icmp
        if icmp is not None:
            icmp = _ANSWERS[self.protocol][icmp[0]], icmp[1], icmp[2]
        return Flow(self.family, self.protocol, self.daddr, self.saddr, self.dport, self.sport, icmp)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for both directions."""
        ends = sorted(((self.saddr, self.sport), (self.daddr, self.dport)))
        return self.family, self.protocol, *ends, None if self.icmp is None else self.icmp[1:]


@dataclass(frozen=True, slots=True)
class Preparation:
    """What to do for a packet before it is sent, and how to send it.

    flow       that the packet is of, in its direction; None if connection tracking finds none in it
    messages   that put flows in
    spoilt     whether it is to be sent so that it is invalid
    begins     of SCTP, whether it begins an association
    untracked  whether connection tracking must be told to leave it alone
    """

    flow: Flow | None
    messages: tuple[bytes, ...] = ()
    spoilt: bool = False
    begins: bool = True
    untracked: bool = False


def prepare(packet: Wanted) -> Preparation:
    """How to give the packet its state. Raises Unsendable where connection tracking would see another one."""
    flow = _flow_of(packet)
    _check_fields(packet)
    if packet.state is None:
        return Preparation(flow)
    if packet.fragment:
        raise Unsendable("later fragments alone get no state: where it is asked for, they wait for the first one")
    alone = _alone(packet)
    if packet.state == "untracked":
        return Preparation(flow, untracked=alone != "untracked")
    if alone == "untracked":
        raise Unsendable("neighbour and listener discovery is never tracked")
    if packet.state == "new":
        if alone != "new":
            raise Unsendable("such a packet does not begin a flow: it is invalid")
        if packet.first or flow is None:
            return Preparation(flow)
        return Preparation(flow, create(flow, CONFIRMED, packet))
    if packet.state == "invalid":
        return _invalid(packet, flow, alone)
    if alone == "impossible":
        raise Unsendable("such a packet is invalid in every flow")
    return _of_flow(packet, flow)


def _check_fields(packet: Wanted) -> None:
    of_flow = packet.state in ("established", "related")
    if packet.ct_mark and not of_flow:
        raise Unsendable(f"a flow's mark, of a packet in state {packet.state}: new ones have none")
    if packet.direction and not of_flow:
        raise Unsendable(f"reply direction, of a packet in state {packet.state}")
    if packet.status and not of_flow:
        raise Unsendable(f"a flow's status, of a packet in state {packet.state}: new ones have none")


def _alone(packet: Wanted) -> str:
    """The state without a flow: new, invalid, impossible (invalid with one, too), error (of ICMP) or untracked."""
    protocol = packet.protocol
    if protocol == TCP:
        return _tcp_alone(packet.tcp_flags & 0x37)
    if protocol not in WITH_TYPES:
        return "new"
    if (packet.family == 4) != (protocol == ICMP):
        return "impossible"  # ICMP of the other version of IP (nf_conntrack_icmp_packet, nf_conntrack_icmpv6_packet)
    if protocol == ICMPV6 and packet.icmp_type in _UNTRACKED:
        return "untracked"
    if not is_request(packet):
        return "error"
    return "new" if packet.icmp_type in _BEGINNERS[protocol] else "invalid"


def _tcp_alone(flags: int) -> str:
    """SYN alone begins a connection, and ACK alone is taken for one that began before (tcp_new)."""
    if flags not in _POSSIBLE:
        return "impossible"
    return "new" if flags & 7 in (0, 2) and flags & 18 != 18 else "invalid"


def _invalid(packet: Wanted, flow: Flow | None, alone: str) -> Preparation:
    if alone in ("invalid", "impossible", "error"):
        return Preparation(flow)
    if packet.protocol == SCTP:
        return Preparation(flow, begins=False)  # data without an association
    if packet.protocol in (TCP, UDP) or (packet.protocol in (ICMP, ICMPV6, UDPLITE) and packet.way != "output"):
        return Preparation(flow, spoilt=True)
    raise Unsendable(f"protocol {packet.protocol} is never invalid there")


def _of_flow(packet: Wanted, flow: Flow | None) -> Preparation:
    if is_error(packet):
        if packet.state == "established":
            raise Unsendable("errors of ICMP are related, never established")
        flow = Flow(packet.family, UDP, packet.saddr, packet.daddr, 9, packet.icmp_id)
    if flow is None:
        raise Unsendable("such a packet is of no flow")
    if flow.icmp is not None and packet.family == 4 and packet.direction == (flow.icmp[0] in _BEGINNERS[ICMP]):
        raise Unsendable("flows of ICMP begin with a request, and answers go the other way")
    if packet.state == "related" and not is_error(packet):
        if packet.direction:
            raise Unsendable("an answer is established, also that of a related flow")
        if packet.status is not None and packet.status & SEEN_REPLY:
            raise Unsendable("where an answer was seen, a packet is established")
        head = 20 if packet.family == 4 else 40
        if packet.protocol in (ICMP, ICMPV6) and (packet.length or 128) < head + ICMP_ENOUGH[packet.family]:
            raise Unsendable("too short for a related packet of ICMP")
    return Preparation(flow, create(flow, _status(packet), packet), begins=False)


def is_error(packet: Wanted) -> bool:
    """Whether it is an error of ICMP, which belongs to the flow of the packet that it is about."""
    return (packet.family, packet.protocol) in ((4, ICMP), (6, ICMPV6)) and not is_request(packet)


def _status(packet: Wanted) -> int:
    """The bits that its flow gets: those asked for, or what flows of that state have."""
    related = packet.state == "related" and not is_error(packet)
    if packet.status is None:
        return CONFIRMED | (EXPECTED if related else SEEN_REPLY | ASSURED)
    if packet.status & ~_SETTABLE:
        raise Unsendable(f"status bits {packet.status & ~_SETTABLE:#x} cannot be given to a flow")
    if not packet.status & CONFIRMED:
        raise Unsendable("a flow in the table is confirmed")
    if related and not packet.status & EXPECTED:
        raise Unsendable("a related flow is expected")
    if packet.state == "established" and not packet.direction and not packet.status & SEEN_REPLY:
        raise Unsendable("a flow is established when an answer was seen")
    if packet.direction and not packet.status & SEEN_REPLY:
        raise Unsendable("the packet itself is the answer that was seen")
    if packet.protocol in _ASSURED_BY_ANSWERS and packet.status & SEEN_REPLY and not packet.status & ASSURED:
        raise Unsendable("the packet itself makes its flow assured")
    if packet.status & (SRC_NAT if packet.direction else DST_NAT):
        raise Unsendable("NAT of the flow would change where the packet goes")
    return packet.status


def create(flow: Flow, status: int, packet: Wanted) -> tuple[bytes, ...]:
    """Messages that put the flow of a packet in; one that is expected has a master that they put in as well."""
    original = flow.reverse() if packet.direction else flow
    receiver = original.daddr
    # NAT of the end that the packet does not have, so that the packet itself keeps its addresses.
    if status & DST_NAT:
        original = replace(original, daddr=_NOBODY[flow.family])
    body = _tuple(_TUPLE_ORIG, original) + _tuple(_TUPLE_REPLY, original.reverse())
    body += attribute(_STATUS, struct.pack("!I", status & ~(EXPECTED | SRC_NAT | DST_NAT)))
    body += attribute(_TIMEOUT, struct.pack("!I", 600)) + attribute(_MARK, struct.pack("!I", packet.ct_mark))
    if flow.protocol == TCP:
        body += _tcp_info(packet)
    elif flow.protocol == SCTP:
        tag = struct.pack("!I", VTAG)
        info = attribute(1, bytes([_SCTP_ESTABLISHED])) + attribute(2, tag) + attribute(3, tag)
        body += nested(_PROTOINFO, nested(3, info))  # CTA_PROTOINFO_SCTP: state, vtags
    # NAT to the same address: no NAT, but that is settled, and rules of nat chains are not asked any more.
    settled = not packet.first and not is_error(packet)
    if status & SRC_NAT or settled:
        body += _nat(_NAT_SRC, flow.family, _NOBODY[flow.family] if status & SRC_NAT else original.saddr)
    if status & DST_NAT or settled:
        body += _nat(_NAT_DST, flow.family, receiver)
    made = []
    if status & EXPECTED:
        master = Flow(flow.family, UDP, 0x0AFE0001, 0x0AFE0002, 7, 7)
        tuples = _tuple(_TUPLE_ORIG, master) + _tuple(_TUPLE_REPLY, master.reverse())
        made.append(_new(master, tuples + attribute(_TIMEOUT, struct.pack("!I", 600))))
        body += _tuple(_TUPLE_MASTER, master)
    return (*made, _new(flow, body))


def remove(flow: Flow, zone: int = 0) -> bytes:
    """The message that takes a flow out, whichever direction is given."""
    place = attribute(_ZONE, struct.pack("!H", zone)) if zone else b""
    return request(_DELETE, NLM_F_ACK, 1, _pf(flow), _tuple(_TUPLE_ORIG, flow) + place)


def _new(flow: Flow, body: bytes) -> bytes:
    return request(_NEW, NLM_F_ACK | NLM_F_CREATE, 1, _pf(flow), body)


def _pf(flow: Flow) -> int:
    return 2 if flow.family == 4 else 10


def _flow_of(packet: Wanted) -> Flow | None:
    """The flow that connection tracking finds in a packet's headers."""
    family, protocol, ends = packet.family, packet.protocol, (packet.saddr, packet.daddr)
    if protocol in WITH_TYPES:
        if (family == 4) != (protocol == ICMP) or packet.icmp_type not in _ANSWERS[protocol]:
            return None
        return Flow(family, protocol, *ends, icmp=(packet.icmp_type, packet.icmp_code, packet.icmp_id))
    if protocol in WITH_PORTS and protocol != 33:
        return Flow(family, protocol, *ends, packet.sport, packet.dport)
    return Flow(family, protocol, *ends)


def _tuple(kind: int, flow: Flow) -> bytes:
    if flow.family == 4:
        addresses = attribute(1, flow.saddr.to_bytes(4, "big")) + attribute(2, flow.daddr.to_bytes(4, "big"))
    else:
        addresses = attribute(3, flow.saddr.to_bytes(16, "big")) + attribute(4, flow.daddr.to_bytes(16, "big"))
    transport = attribute(1, bytes([flow.protocol]))
    if flow.icmp is not None:
        first = 4 if flow.protocol == ICMP else 7  # CTA_PROTO_ICMP_ID, CTA_PROTO_ICMPV6_ID
        number, code, identity = flow.icmp
        transport += attribute(first, struct.pack("!H", identity)) + attribute(first + 1, bytes([number]))
        transport += attribute(first + 2, bytes([code]))
    elif flow.protocol in WITH_PORTS or flow.protocol == GRE:
        transport += attribute(2, struct.pack("!H", flow.sport)) + attribute(3, struct.pack("!H", flow.dport))
    return nested(kind, nested(1, addresses), nested(2, transport))


def _tcp_info(packet: Wanted) -> bytes:
    """The state of TCP in which such a segment is in order, and no window that it could be out of."""
    flags, state = packet.tcp_flags & 0x17, _ESTABLISHED
    if packet.protocol == TCP and flags & 2 and not flags & 4:
        if flags & 16:
            state = _ESTABLISHED if packet.direction else _SYN_SENT2
        elif packet.direction or packet.state != "established":
            state = _SYN_SENT
    info = attribute(1, bytes([state])) + attribute(4, _LIBERAL) + attribute(5, _LIBERAL)
    return nested(_PROTOINFO, nested(1, info))


def _nat(kind: int, family: int, address: int) -> bytes:
    """CTA_NAT_SRC or CTA_NAT_DST with one address (CTA_NAT_V4_MINIP and on, CTA_NAT_V6_MINIP and on)."""
    first, value = (1, address.to_bytes(4, "big")) if family == 4 else (4, address.to_bytes(16, "big"))
    return nested(kind, attribute(first, value) + attribute(first + 1, value))
