"""Packets as bytes: IP headers, transport headers with right checksums (or wrong ones, on purpose), Ethernet.

IPv4 (RFC 791), IPv6 (RFC 8200), TCP (RFC 9293), UDP (RFC 768), UDP-Lite (RFC 3828), ICMP (RFC 792), ICMPv6 (RFC 4443),
SCTP (RFC 9260); Internet checksum (RFC 1071), CRC32c (RFC 9260, appendix A).

Each packet carries a tag by which it is known again, in what neither NAT nor routers change and no field of the rules
reads: IPv4's identification (16 bits), IPv6's flow label (20 bits).
"""

from __future__ import annotations

import struct

from conntracker.lab.oracle.wanted import ICMP, ICMPV6, SCTP, TCP, UDP, UDPLITE, WITH_PORTS, Unsendable, Wanted

__all__ = ["VTAG", "ethernet", "ip_packet", "tag_of"]

VTAG = 0x0A0A0A0A  # verification tag of SCTP, in flows that are there already
_ETHERTYPE = {4: b"\x08\x00", 6: b"\x86\xdd"}
_MULTICAST = {4: bytes.fromhex("01005e000001"), 6: bytes.fromhex("333300000001")}
_OTHER_HOST = bytes.fromhex("02ffffffffff")
_SENDER = bytes.fromhex("02aa00000001")
# ICMP header and the IP header behind it, of errors: NAT drops related packets that are shorter, be they no errors
# (nf_nat_icmp_reply_translation, net/netfilter/nf_nat_proto.c).
ICMP_ENOUGH = {4: 28, 6: 48}
_DATA = 512  # a fragment's offset: more than the shortest first fragment


def ip_packet(packet: Wanted, tag: int, spoilt: bool = False, begins: bool = True) -> bytes:
    """The packet from its IP header on. Raises Unsendable if it cannot be as short as was asked.

    spoilt   so that connection tracking calls it invalid
    begins   of SCTP: whether its chunk begins an association (INIT) or is of one (DATA)
    """
    width = 4 if packet.family == 4 else 16
    source, destination = packet.saddr.to_bytes(width, "big"), packet.daddr.to_bytes(width, "big")
    extension = _extension(packet, tag)
    head = 20 if packet.family == 4 else 40
    room = None if packet.length is None else packet.length - head - len(extension)
    body = bytes(8 if room is None else max(room, 0))
    if not packet.fragment:
        body = _transport(packet, source + destination, room, spoilt, begins)
    if room is not None and len(body) != room:
        raise Unsendable(f"{packet.length} bytes are too few for its headers")
    if packet.family == 4:
        return _ipv4(packet, tag, source + destination, len(body)) + body
    first = 6 << 28 | packet.tos << 20 | tag
    fixed = struct.pack("!IHBB", first, len(extension) + len(body), packet.nexthdr, packet.ttl)
    return fixed + source + destination + extension + body


def tag_of(network: bytes) -> int:
    """The tag in the first bytes of a packet."""
    if network[0] >> 4 == 4:
        return network[4] << 8 | network[5]
    return (network[1] & 0xF) << 16 | network[2] << 8 | network[3]


def ethernet(packet: Wanted, device: bytes, content: bytes) -> bytes:
    """The frame by which the packet reaches the device with that link address."""
    to = device
    if packet.packet_type == "broadcast":
        to = b"\xff" * 6
    elif packet.packet_type == "multicast":
        to = _MULTICAST[packet.family]
    elif packet.packet_type == "otherhost":
        to = _OTHER_HOST
    source = _SENDER if packet.mac is None else packet.mac.to_bytes(6, "big")
    return to + source + _ETHERTYPE[packet.family] + content


def _ipv4(packet: Wanted, tag: int, addresses: bytes, size: int) -> bytes:
    offset = _DATA >> 3 if packet.fragment else 0
    head = struct.pack("!BBHHHBBH", 0x45, packet.tos, 20 + size, tag, offset, packet.ttl, packet.protocol, 0)
    return head[:10] + _checksum(head + addresses).to_bytes(2, "big") + addresses


def _extension(packet: Wanted, tag: int) -> bytes:
    if packet.family == 4 or packet.nexthdr == packet.protocol:
        return b""
    if packet.nexthdr == 44:
        return struct.pack("!BBHI", packet.protocol, 0, _DATA, tag)
    if packet.nexthdr == 43:
        return struct.pack("!BBBB4x", packet.protocol, 0, 0, 0)  # routing of type 0, no segments left (RFC 2460)
    return struct.pack("!BBBB4x", packet.protocol, 0, 1, 4)  # PadN of six bytes


def _transport(packet: Wanted, addresses: bytes, room: int | None, spoilt: bool, begins: bool) -> bytes:
    """The transport header and what is behind it: `room` bytes, if that is enough."""
    protocol = packet.protocol
    if protocol == SCTP:
        return _sctp(packet, room, spoilt, begins)
    data = _header(packet, room, spoilt)
    shortest = 0
    if protocol in (ICMP, ICMPV6):
        shortest = ICMP_ENOUGH[packet.family]
    data += bytes(max(0, (shortest if room is None else room) - len(data)))
    at = {TCP: 16, UDP: 6, UDPLITE: 6, ICMP: 2, ICMPV6: 2}.get(protocol)
    if at is None:
        return data
    # Connection tracking takes UDP-Lite's pseudo header for UDP's (udplite_error, nf_conntrack_proto_udp.c).
    named = UDP if protocol == UDPLITE else protocol
    # Of IPv4, it takes the length for the protocol, of which it looks at eight bits (nf_ip_checksum_partial).
    size = len(data) & 0xFF if (packet.family, protocol) == (4, UDPLITE) else len(data)
    pseudo = b"" if protocol == ICMP else addresses + struct.pack("!II", size, named)
    value = _checksum(pseudo + data)
    if spoilt and not (packet.way == "output" and protocol in (TCP, UDP)):
        value ^= 0x5555
    return data[:at] + (value or 0xFFFF).to_bytes(2, "big") + data[at + 2 :]


def _header(packet: Wanted, room: int | None, spoilt: bool) -> bytes:
    """The header with its checksum zero. What leaves the host is spoilt by a length that is not: checksums of what it
    sends are not looked at by connection tracking."""
    lies = spoilt and packet.way == "output"
    ports = struct.pack("!HH", packet.sport, packet.dport)
    if packet.protocol == TCP:
        words = 1 if lies else 5
        return ports + struct.pack("!IIBBHHH", 1, 1, words << 4, packet.tcp_flags, 0xFFFF, 0, 0)
    if packet.protocol == UDP:
        size = max(8, room or 8)
        return ports + struct.pack("!HH", size + 8 * lies, 0)
    if packet.protocol == UDPLITE:
        return ports + bytes(4)
    if packet.protocol in (ICMP, ICMPV6):
        head = struct.pack("!BBHHH", packet.icmp_type, packet.icmp_code, 0, packet.icmp_id, 1)
        return head if is_request(packet) else head[:4] + bytes(4) + about(packet)
    if packet.protocol in WITH_PORTS:
        return ports + bytes((4, 0, 0, 0)) + bytes(8)  # DCCP: four words, type Request, short sequence numbers
    return bytes(8)


def is_request(packet: Wanted) -> bool:
    """Whether an ICMP packet is none of an error: those have a packet behind their header."""
    if packet.protocol == ICMP:
        return packet.family == 6 or packet.icmp_type not in (3, 4, 5, 11, 12)
    return packet.family == 4 or packet.icmp_type >= 128


def about(packet: Wanted) -> bytes:
    """The packet that an ICMP error is about: one of UDP, that its receiver sent to its sender."""
    ports = struct.pack("!HHHH", packet.icmp_id, 9, 8, 0)
    if packet.family == 4:
        addresses = packet.daddr.to_bytes(4, "big") + packet.saddr.to_bytes(4, "big")
        head = struct.pack("!BBHHHBBH", 0x45, 0, 28, 1, 0, 64, UDP, 0)
        return head[:10] + _checksum(head + addresses).to_bytes(2, "big") + addresses + ports
    addresses = packet.daddr.to_bytes(16, "big") + packet.saddr.to_bytes(16, "big")
    return struct.pack("!IHBB", 6 << 28, 8, UDP, 64) + addresses + ports


def _sctp(packet: Wanted, room: int | None, spoilt: bool, begins: bool) -> bytes:
    if begins:  # INIT: initiate tag, window, streams out and in, first sequence number
        head, fixed = struct.pack("!HHII", packet.sport, packet.dport, 0, 0), struct.pack("!IIHHI", 1, 4096, 1, 1, 1)
        kind = 1
    else:
        head = struct.pack("!HHII", packet.sport, packet.dport, VTAG, 0)
        kind, fixed = 0, struct.pack("!IHHI", 1, 0, 0, 0)
    more = bytes(max(0, (room or 0) - len(head) - 4 - len(fixed)))
    chunk = struct.pack("!BBH", kind, 3 if kind == 0 else 0, 4 + len(fixed) + len(more)) + fixed + more
    value = _crc32c(head + chunk) ^ (0x5555 if spoilt and packet.way != "output" else 0)
    return head[:8] + value.to_bytes(4, "little") + chunk


def _checksum(data: bytes) -> int:
    if len(data) & 1:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) >> 1}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def _crc_table() -> list[int]:
    table = []
    for number in range(256):
        value = number
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC = _crc_table()


def _crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF
