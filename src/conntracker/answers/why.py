"""Recorded flows as packets for rules: what a ruleset would do with the first packet of each."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from conntracker.model import protocol_number
from conntracker.rules.fields import CT_STATES
from conntracker.rules.intervals import contains

if TYPE_CHECKING:
    from conntracker.answers.blame import Blame
    from conntracker.rules.host import Host
    from conntracker.rules.packets import Packet

__all__ = ["packet_of", "way_of"]

SYN = 2
# Types of ICMP and ICMPv6 that are about another packet (net/netfilter/nf_conntrack_proto_icmp.c, _icmpv6.c).
_ERRORS = {1: frozenset((3, 4, 5, 11, 12)), 58: frozenset((1, 2, 3, 4))}
_CT_FIELDS = ("ct_state", "ct_status", "ct_direction", "ct_mark")


def packet_of(one: Blame) -> Packet:
    """The first packet of a flow, or of packets that never became one; interfaces are those of its trace.

    It is taken to be the first: in state new, without a mark, and a SYN where it is TCP. An ICMP error is never in
    state new: whether it is related or invalid is not known.
    """
    packet = _of_flow(one.flow) if one.flow is not None else _of_packet(one)
    packet |= {
        "ct_state": CT_STATES.index("new"),
        "ct_status": 0,
        "ct_direction": 0,
        "ct_mark": 0,
        "mark": 0,
        "fragment": 0,
    }
    if packet["protocol"] == 6:
        packet["tcp_flags"] = SYN
    if packet["icmp_type"] in _ERRORS.get(int(packet["protocol"] or 0), ()):
        for field in _CT_FIELDS:
            del packet[field]
    way = next((way for way in one.ways if way.direction in {"original", "unknown"}), None)
    if way is not None:
        packet["iif"] = way.in_interface or ""
        if way.out_interface is not None:
            packet["oif"] = way.out_interface
    return packet


def way_of(one: Blame, packet: Packet, host: Host | None) -> str | None:
    """output for what this host sent, input and forward where the trace says so; None where the destination decides."""
    way = next((way for way in one.ways if way.direction in {"original", "unknown"}), None)
    if way is not None:
        hooks = {step.hook for step in way.path.steps}
        return "output" if way.local else next((hook for hook in ("input", "forward") if hook in hooks), None)
    source, version = packet["saddr"], 4 if packet["family"] == 4 else 6
    if host is not None and isinstance(source, int) and contains(host.local.get(version, ()), source):
        return "output"
    return None


def _of_flow(flow: dict[str, Any]) -> Packet:
    source, destination = ip_address(flow["src"]), ip_address(flow["dst"])
    return {
        "family": source.version, "saddr": int(source), "daddr": int(destination),
        "protocol": protocol_number(flow["proto"]), "sport": flow["sport"], "dport": flow["dport"],
        "icmp_type": flow["icmp_type"], "icmp_code": flow["icmp_code"],
    }  # fmt: skip


def _of_packet(one: Blame) -> Packet:
    packet = one.packet
    if packet is None:
        raise ValueError("neither a flow nor a packet")
    return {
        "family": packet.family, "saddr": packet.src, "daddr": packet.dst, "protocol": packet.proto,
        "sport": packet.sport, "dport": packet.dport, "icmp_type": packet.icmp_type, "icmp_code": packet.icmp_code,
    }  # fmt: skip
