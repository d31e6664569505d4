"""Real traffic through real sockets, and for each exchange the flows that the router must have tracked.

A socket belongs to the namespace in which it was made, wherever its thread is later, so one thread plays both sides:
every step waits for the one before, and nothing is left to timing.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from conntracker.lab.firewall import REDIRECTED
from conntracker.lab.topology import CLIENT, ROUTER, ROUTER_OUTSIDE, SERVER, Lab
from conntracker.model import ICMP, ICMPV6, TCP, UDP

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ExpectedFlow", "Traffic"]

GRE, ESP, SCTP = 47, 50, 132
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
ECHO = {4: (ICMP, 8, 0), 6: (ICMPV6, 128, 129)}  # protocol, type of the request, type of the answer

MASQUERADED_CLIENT = {4: "10.1.0.2", 6: "fd00:1::2"}  # inside firewall.MASQUERADED
PLAIN_CLIENT = {4: "10.2.0.2", 6: "fd00:2::2"}

WAIT = 5.0  # seconds for an answer, which comes in less than a millisecond
FIRST_PORT = 20000


@dataclass(frozen=True, slots=True)
class ExpectedFlow:
    """One entry of the router's connection tracking: both tuples, as conntrack(8) shows them.

    Addresses are text; the echo id of ICMP stands as source port of both tuples; a port is 0 where there is none.
    icmp_type and icmp_code are those of the request, None for other protocols. `refused`: a TCP reset came back, for
    which the kernel destroys the flow at once, not marked as answered, so that only events show it.
    """

    proto: int
    src: str
    sport: int
    dst: str
    dport: int
    reply_src: str
    reply_sport: int
    reply_dst: str
    reply_dport: int
    replied: bool
    icmp_type: int | None = None
    icmp_code: int | None = None
    refused: bool = False


class Traffic:
    """The traffic of one lab; as a context manager it has the servers listening.

    Each method does one exchange and returns the flows that it made: one, or none where the firewall drops it.
    `nat` is '', 'snat' (a client that the firewall masquerades) or 'dnat' (a port of the router that it hands on).
    Raises OSError when an answer does not come.
    """

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._sockets = contextlib.ExitStack()
        self._listeners: dict[tuple[int, int], socket.socket] = {}
        self._ports = itertools.count(FIRST_PORT)  # never the same twice: no two flows may share a tuple

    def __enter__(self) -> Traffic:
        with contextlib.ExitStack() as opened, self._lab.server:
            for family in (4, 6):
                for kind, port in ((socket.SOCK_STREAM, 80), (socket.SOCK_DGRAM, 53), (socket.SOCK_DGRAM, 514)):
                    listener = opened.enter_context(socket.socket(FAMILY[family], kind))
                    listener.settimeout(WAIT)
                    listener.bind((SERVER[family], port))
                    if kind == socket.SOCK_STREAM:
                        listener.listen()
                    self._listeners[family, port] = listener
            self._sockets = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._sockets.close()
        self._listeners.clear()

    def drive(self) -> dict[str, list[ExpectedFlow]]:
        """One round of everything, IPv4 and IPv6: what was done, in words, and the flows it made."""
        done: dict[str, list[ExpectedFlow]] = {}
        for family in (4, 6):
            for nat in ("", "snat", "dnat") if self._lab.translates else ("", "snat"):
                words = f"IPv{family} {nat}".strip()
                done[f"{words} TCP connection"] = self.tcp(family, nat)
                done[f"{words} TCP refused"] = self.tcp_refused(family, nat)
                done[f"{words} UDP answered"] = self.udp(family, nat)
                if nat != "dnat":
                    done[f"{words} UDP unanswered"] = self.udp_unanswered(family, nat)
                    done[f"{words} echo"] = self.echo(family, nat)
            done[f"IPv{family} echo to the router"] = self.echo(family, to_router=True)
            done[f"IPv{family} TCP dropped"] = self.tcp_dropped(family)
            for name, proto in (("GRE", GRE), ("ESP", ESP), ("SCTP", SCTP)):
                done[f"IPv{family} {name}"] = self.other(family, proto)
        return done

    def tcp(self, family: int, nat: str = "") -> list[ExpectedFlow]:
        """A whole connection: connect, question, answer, close."""
        flow = self._plan(TCP, family, 80, nat)
        with self._client(flow, family, socket.SOCK_STREAM) as client:
            client.connect((flow.dst, flow.dport))
            server, _ = self._listeners[family, 80].accept()
            with server:
                server.settimeout(WAIT)
                client.sendall(b"question")
                server.sendall(server.recv(64) + b" answered")
                client.recv(64)
                client.shutdown(socket.SHUT_WR)
                server.recv(64)
        return [replace(flow, replied=True)]

    def tcp_refused(self, family: int, nat: str = "") -> list[ExpectedFlow]:
        """A connection to a closed port."""
        flow = self._plan(TCP, family, 81, nat)
        with self._client(flow, family, socket.SOCK_STREAM) as client, contextlib.suppress(ConnectionRefusedError):
            client.connect((flow.dst, flow.dport))
        return [replace(flow, refused=True)]

    def tcp_dropped(self, family: int) -> list[ExpectedFlow]:
        """A connection that the lab's firewall drops: never confirmed, so never a flow. Refused without it."""
        flow = self._plan(TCP, family, 23, "")
        with self._client(flow, family, socket.SOCK_STREAM) as client:
            client.setblocking(False)
            client.connect_ex((flow.dst, flow.dport))
        return [] if self._lab.translates else [replace(flow, refused=True)]

    def udp(self, family: int, nat: str = "") -> list[ExpectedFlow]:
        """A datagram and its answer."""
        flow = self._plan(UDP, family, 53, nat)
        with self._client(flow, family, socket.SOCK_DGRAM) as client:
            client.sendto(b"question", (flow.dst, flow.dport))
            server = self._listeners[family, 53]
            data, sender = server.recvfrom(64)
            server.sendto(data + b" answered", sender)
            client.recv(64)
        return [replace(flow, replied=True)]

    def udp_unanswered(self, family: int, nat: str = "") -> list[ExpectedFlow]:
        """A datagram that arrives and gets no answer."""
        flow = self._plan(UDP, family, 514, nat)
        with self._client(flow, family, socket.SOCK_DGRAM) as client:
            client.sendto(b"message", (flow.dst, flow.dport))
            self._listeners[family, 514].recv(64)
        return [flow]

    def echo(self, family: int, nat: str = "", *, to_router: bool = False) -> list[ExpectedFlow]:
        """An ICMP or ICMPv6 echo and its answer, from the server or from the router itself."""
        proto, request, answer = ECHO[family]
        flow = self._plan(proto, family, 0, nat)
        if to_router:
            flow = replace(flow, dst=ROUTER[family], reply_src=ROUTER[family])
        flow = replace(flow, reply_sport=flow.sport, reply_dport=0, icmp_type=request, icmp_code=0, replied=True)
        with self._client(flow, family, socket.SOCK_RAW) as client:
            message = struct.pack("!BBHHH", request, 0, 0, flow.sport, 1)
            # The kernel fills the checksum in for ICMPv6 only.
            message = message[:2] + struct.pack("!H", _checksum(message)) + message[4:]
            client.sendto(message, (flow.dst, 0))
            while not _is_echo(client.recv(2048), family, answer, flow.sport):
                pass
        return [flow]

    def other(self, family: int, proto: int) -> list[ExpectedFlow]:
        """A packet of a protocol that is none of TCP, UDP and ICMP, to a silent address."""
        port = 7000 if proto == SCTP else 0
        flow = self._plan(proto, family, port, "")
        flow = replace(flow, dst=_silent(family), reply_src=_silent(family))
        if not port:
            flow = replace(flow, sport=0, reply_dport=0)
        with self._client(flow, family, socket.SOCK_RAW) as client:
            client.sendto(_payload(flow), (flow.dst, 0))
        return [flow]

    def _plan(self, proto: int, family: int, port: int, nat: str) -> ExpectedFlow:
        """An unanswered flow from a new port of the client to `port` of the server."""
        src = {"snat": MASQUERADED_CLIENT, "dnat": PLAIN_CLIENT}.get(nat, CLIENT)[family]
        masqueraded = nat == "snat" and self._lab.translates
        dst, dport = SERVER[family], port
        if nat == "dnat":
            dst = ROUTER[family]
            name = "tcp" if proto == TCP else "udp"
            dport = next(outer for (known, outer), inner in REDIRECTED.items() if (known, inner) == (name, port))
        sport = next(self._ports)
        outside = ROUTER_OUTSIDE[family] if masqueraded else src
        return ExpectedFlow(proto, src, sport, dst, dport, SERVER[family], port, outside, sport, replied=False)

    @contextlib.contextmanager
    def _client(self, flow: ExpectedFlow, family: int, kind: int) -> Iterator[socket.socket]:
        raw = kind == socket.SOCK_RAW
        with self._lab.client:
            client = socket.socket(FAMILY[family], kind, flow.proto if raw else 0)
        with client:
            client.settimeout(WAIT)
            with self._lab.client:
                client.bind((flow.src, 0 if raw else flow.sport))
            yield client


def _silent(family: int) -> str:
    return {4: "203.0.113.129", 6: "2001:db8:3::8001"}[family]


def _is_echo(packet: bytes, family: int, kind: int, echo_id: int) -> bool:
    """Whether what a raw socket received is that answer; with IPv4 it starts with the IP header (raw(7))."""
    message = packet[(packet[0] & 15) * 4 :] if family == 4 else packet
    return message[:1] == bytes([kind]) and message[4:6] == echo_id.to_bytes(2, "big")


def _payload(flow: ExpectedFlow) -> bytes:
    if flow.proto == GRE:
        return struct.pack("!HH", 0, 0x0800) + bytes(20)  # RFC 2784
    if flow.proto == ESP:
        return struct.pack("!II", 0x1000, 1) + bytes(16)  # RFC 4303
    header = struct.pack("!HHI", flow.sport, flow.dport, 0)
    init = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65536, 1, 1, 1)  # RFC 9260
    return header + struct.pack("<I", _crc32c(header + bytes(4) + init)) + init


def _checksum(message: bytes) -> int:
    """The Internet checksum (RFC 1071) of a message of even length."""
    total: int = sum(struct.unpack(f"!{len(message) // 2}H", message))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def _crc32c(message: bytes) -> int:
    """The checksum of SCTP (RFC 9260, appendix A)."""
    value = 0xFFFFFFFF
    for byte in message:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF
