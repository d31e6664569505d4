"""What a scenario sends, and what comes out of the router."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import select
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter

from conntracker.lab.topology import CLIENT, MAC, ROUTER, ROUTER_OUTSIDE, SERVER, Lab
from conntracker.sources.netns import Namespace
from conntracker.steps import Packet
from support import frames

__all__ = ["BRIDGED", "WAIT", "Send", "Sender", "Sniffer", "frame", "ping", "tcp", "udp"]

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
ANY = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - in a namespace of its own
LOCALHOST = {4: "127.0.0.1", 6: "::1"}
ETHERTYPE = {4: b"\x08\x00", 6: b"\x86\xdd"}
ETH_P_ALL, PACKET_OUTGOING = 3, 4  # linux/if_ether.h, linux/if_packet.h
TCP, UDP = 6, 17
ECHO = {4: (1, 8, 0), 6: (58, 128, 129)}  # protocol, type of the request, type of the answer

# Client and server in one network, of which the router is the bridge.
BRIDGED = {"client": "172.16.0.2", "server": "172.16.0.3"}

WAIT = 2.0  # seconds for what comes in a millisecond
FIRST_PORT = 20001

# The address of a target as the source knows it.
ADDRESS = {
    ("client", "server"): SERVER,
    ("client", "router"): ROUTER,
    ("server", "client"): CLIENT,
    ("server", "router"): ROUTER_OUTSIDE,
    ("router", "client"): CLIENT,
    ("router", "server"): SERVER,
    ("router", "router"): LOCALHOST,
}


@dataclass(frozen=True, slots=True)
class Send:
    """Something sent from `source` to `target`, each one of client, router and server, or to the address `to`.

    Its packets are called `request`, `reply` and `error` (an ICMP error about the request) in a scenario's paths, with
    `name` and a blank in front if it has one; the second request is `request 2`, and so on.

    at        where somebody listens, the target if None; nobody does if `listen` is False
    count     of datagrams or echo requests of one flow, each datagram answered if `answer`
    traces    how many each of its requests makes
    user      whose socket it is
    start     the source's address, its usual one if None
    """

    verb: str
    port: int = 0
    source: str = "client"
    target: str = "server"
    family: int = 4
    to: str | None = None
    name: str = ""
    at: str | None = None
    listen: bool = True
    count: int = 1
    answer: bool = False
    traces: int = 1
    user: int = 0
    start: str | None = None
    data: tuple[bytes, ...] = ()

    @property
    def destination(self) -> str:
        """The address that it goes to."""
        return self.to or ADDRESS[self.source, self.target][self.family]

    @property
    def origin(self) -> str:
        """The address that it comes from."""
        return self.start or ADDRESS.get((self.target, self.source), LOCALHOST)[self.family]

    def called(self, which: str) -> str:
        """The name of one of its packets."""
        return f"{self.name} {which}".strip()


tcp = partial(Send, "tcp")
udp = partial(Send, "udp")
ping = partial(Send, "ping")


def frame(*data: bytes, name: str = "", source: str = "client", count: int = 1, traces: int = 1) -> Send:
    """An IP packet as it stands, or all fragments of one, sent past the source's own stack."""
    return Send("frame", source=source, family=data[0][0] >> 4, name=name, data=data, count=count, traces=traces)


class Sender:
    """Sends, and remembers which packets that makes, as they come to the router.

    `verdicts` of packets by their names tell it whether to wait until they arrive.
    """

    def __init__(self, lab: Lab, verdicts: Mapping[str, str]) -> None:
        self.sent: dict[str, Packet] = {}
        self.counts: dict[str, int] = {}
        self._lab = lab
        self._verdicts = verdicts
        self._ports = itertools.count(FIRST_PORT)  # never the same twice: no two flows may share a tuple

    def send(self, send: Send) -> None:
        """Send it, and wait until it has arrived if it is expected to."""
        {"tcp": self._tcp, "udp": self._udp, "ping": self._ping, "frame": self._frame}[send.verb](send)

    def _tcp(self, send: Send) -> None:
        with self._listener(send, socket.SOCK_STREAM) as server, self._client(send, socket.SOCK_STREAM) as client:
            client.setblocking(False)
            client.connect_ex((send.destination, send.port))
            request = self._note_request(send, TCP, client)
            reply = _turned(request)
            if self._passes(send, "request", "reply"):
                select.select([], [client], [], WAIT)  # a refusal counts as well
                if server is not None:
                    with server.accept()[0] as accepted:
                        reply = _between(send.family, TCP, accepted)
            self.sent[send.called("reply")] = reply

    def _udp(self, send: Send) -> None:
        with self._listener(send, socket.SOCK_DGRAM) as server, self._client(send, socket.SOCK_DGRAM) as client:
            client.connect((send.destination, send.port))
            self._note_request(send, UDP, client)
            self.counts[send.called("request")] = send.count * send.traces
            for number in range(1, send.count + 1):
                with contextlib.suppress(ConnectionRefusedError, PermissionError):  # the answer; OUTPUT said no
                    client.send(b"datagram")
                if server is not None and self._passes(send, "request", f"request {number}"):
                    _, sender = server.recvfrom(64)
                    if send.answer:
                        server.connect(sender)
                        self.sent[send.called("reply")] = _between(send.family, UDP, server)
                        server.send(b"answer")

    def _ping(self, send: Send) -> None:
        proto, kind, answer = ECHO[send.family]
        number = next(self._ports)
        with self._client(send, socket.SOCK_RAW, proto) as client:
            for _ in range(send.count):
                client.sendto(frames.echo(number, kind)[1](b""), (send.destination, 0))
        request = Packet(
            send.family, proto, _number(send.origin), _number(send.destination), None, None, kind, 0, number
        )
        self.sent[send.called("request")] = request
        self.counts[send.called("request")] = send.count * send.traces
        self.sent[send.called("reply")] = replace(request, src=request.dst, dst=request.src, icmp_type=answer)

    def _frame(self, send: Send) -> None:
        with self._lab.spaces[send.source]:
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # protocol 0: it only sends
        addresses = MAC["router", send.source] + MAC[send.source, "eth0"]
        header = bytes.fromhex(addresses.replace(":", "")) + ETHERTYPE[send.family]
        with raw:
            with self._lab.spaces[send.source]:
                raw.bind(("eth0", 0))
            for data in send.data * send.count:
                raw.send(header + data)
        packets = [packet for packet in map(frames.packet_of, send.data) if packet is not None]
        packet = min(packets, key=attrgetter("fragment"))  # that of the first fragment, in whichever order they come
        self.sent[send.called("request")] = packet
        self.counts[send.called("request")] = send.count * send.traces
        self.sent[send.called("reply")] = _turned(packet)

    def _passes(self, send: Send, *which: str) -> bool:
        """Whether these packets are expected to arrive."""
        return all(self._verdicts.get(send.called(one), "accept") == "accept" for one in which)

    def _note_request(self, send: Send, proto: int, client: socket.socket) -> Packet:
        src, sport = client.getsockname()[:2]
        packet = Packet(send.family, proto, _number(src), _number(send.destination), sport, send.port)
        self.sent[send.called("request")] = packet
        return packet

    @contextlib.contextmanager
    def _listener(self, send: Send, kind: int) -> Iterator[socket.socket | None]:
        if not send.listen:
            yield None
            return
        with self._lab.spaces[send.at or send.target]:
            server = socket.socket(FAMILY[send.family], kind)
        with server:
            server.settimeout(WAIT)
            server.bind((ANY[send.family], send.port))
            if kind == socket.SOCK_STREAM:
                server.listen()
            yield server

    @contextlib.contextmanager
    def _client(self, send: Send, kind: int, proto: int = 0) -> Iterator[socket.socket]:
        # A socket's owner is who made it (its file's credentials), and stays so.
        with self._lab.spaces[send.source], _as_user(send.user):
            client = socket.socket(FAMILY[send.family], kind, proto)
        with client:
            client.settimeout(WAIT)
            client.bind((send.origin, next(self._ports) if proto == 0 else 0))
            yield client


class Sniffer:
    """Sees the packets that arrive on `eth0` of a namespace."""

    def __init__(self, space: Namespace) -> None:
        with space:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
            self._socket.bind(("eth0", ETH_P_ALL))
        self._socket.setblocking(False)

    def received(self) -> Iterator[Packet]:
        """What has arrived since."""
        with contextlib.suppress(BlockingIOError):
            while True:
                data, (_, _, kind, *_) = self._socket.recvfrom(65536)
                packet = frames.packet_of(data)
                if packet is not None and kind != PACKET_OUTGOING:
                    yield packet

    def __enter__(self) -> Sniffer:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


@contextlib.contextmanager
def _as_user(user: int) -> Iterator[None]:
    if user == 0:
        yield
        return
    before = os.geteuid()
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(before)


def _turned(packet: Packet) -> Packet:
    return replace(packet, src=packet.dst, dst=packet.src, sport=packet.dport, dport=packet.sport)


def _between(family: int, proto: int, answering: socket.socket) -> Packet:
    """A packet from this end of a connected socket to the other."""
    (src, sport), (dst, dport) = answering.getsockname()[:2], answering.getpeername()[:2]
    return Packet(family, proto, _number(src), _number(dst), sport, dport)


def _number(address: str) -> int:
    return int(ipaddress.ip_address(address))
