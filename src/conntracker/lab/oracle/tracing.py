"""What the kernel tells of packets that are sent one after the other, put together packet by packet.

A table of our own turns tracing on for what we send, and for nothing that the kernel makes itself (answers of REJECT,
resets, neighbour discovery): its first chain is the first of all, and its last chains say who got through. Messages of
nf_tables come in the order of the packets; logs of legacy tables carry the tag of theirs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path as FilePath

from conntracker.assembly import LegacyStep, NftStep, Passage
from conntracker.lab.oracle.frames import tag_of
from conntracker.rules.snapshot import Snapshot
from conntracker.sources.tracing import LogSocket, TraceSocket
from conntracker.steps import Packet, Path
from conntracker.traces import Resolver, Rulesets
from conntracker.wire import netlink, nflog, nftrace
from conntracker.wire.packet import Headers

__all__ = ["ASKING", "HIGHEST_TAG", "TABLE", "Told", "Tracing", "untracked"]

HIGHEST_TAG = 0xBFFF  # of packets that are tracked
_UNTRACKED = {4: 0xC000, 6: 0xC0000}
_NAME = "conntracker_0"  # tables named so are left out when rulesets are read (rules.nft_listing.without_own)
_BEGINNINGS = {"begin_in": "prerouting", "begin_out": "output"}
_FLOWS = ("flow_in", "flow_out")  # right behind connection tracking
_ENDS = {"end_input": "input", "end_post": "postrouting"}
_BUFFER = 256 << 20
_LOOPBACK = 1
_PAYLOAD = struct.pack("=HH", 12, nflog.PAYLOAD)  # header of the last attribute of a log
# enum nft_trace_attributes, from Linux 6.16 on; the bits of NFTA_TRACE_CT_STATE are NF_CT_STATE_BIT(ctinfo).
_CT_DIRECTION, _CT_STATUS, _CT_STATE = 19, 20, 21
_OF_FLOW = frozenset((_CT_DIRECTION, _CT_STATUS, _CT_STATE))
_attribute = netlink.ATTRIBUTE.unpack_from
_CT_BITS = {2: "established", 4: "related", 8: "new", 64: "untracked"}

TABLE = f"""
table inet {_NAME} {{
    chain begin_in {{
        type filter hook prerouting priority -2147483648; policy accept;
        iifname "lo" accept
        ip id >= 0xc000 meta nftrace set 1 notrack accept
        ip6 flowlabel >= 0xc0000 meta nftrace set 1 notrack accept
        meta nftrace set 1 accept
    }}
    chain begin_out {{
        type filter hook output priority -2147483648; policy accept;
        meta skuid 0-4294967294 jump sent
    }}
    chain sent {{
        ip id >= 0xc000 meta nftrace set 1 notrack accept
        ip6 flowlabel >= 0xc0000 meta nftrace set 1 notrack accept
        meta nftrace set 1 accept
    }}
    chain flow_in {{
        type filter hook prerouting priority -199; policy accept;
    }}
    chain flow_out {{
        type filter hook output priority -199; policy accept;
    }}
    chain end_input {{
        type filter hook input priority 2147483646; policy accept;
    }}
    chain end_post {{
        type filter hook postrouting priority 2147483646; policy accept;
    }}
}}
"""

# A chain that nobody calls: connection tracking follows all packets from then on. Chains of NAT need it and do not ask
# for it themselves; only rules do. Without it, later fragments come through as they are.
ASKING = f"""
table inet {_NAME} {{
    chain asking {{
        ct state new accept
    }}
}}
"""


def untracked(family: int, tag: int) -> int:
    """The tag of a packet that connection tracking is to leave alone."""
    return _UNTRACKED[family] | tag


@dataclass(slots=True)
class Told:
    """What was told of one packet.

    steps, logs         numbers of what nf_tables and legacy tables told, in their order
    network, transport  headers as it was last seen at an end; empty if it was not
    out                 number of the interface that it left by, 0 if it did not leave
    arrived             whether it came to the end of input
    flow                state, direction and status of its flow behind connection tracking; None if it has none: it is
                        invalid, was dropped before, or nothing asks for connection tracking
    """

    steps: list[int] = field(default_factory=list)
    logs: list[int] = field(default_factory=list)
    network: bytes = b""
    transport: bytes = b""
    out: int = 0
    arrived: bool = False
    flow: tuple[str, int, int] | None = None


class _Log(LogSocket):
    """Logs one by one, so that nothing waits when a packet has gone; of the packet, what holds its tag."""

    def _subscribe(self) -> None:
        super()._subscribe()
        values = ((2, struct.pack("!IBB", 8, 2, 0)), (3, struct.pack("!I", 512)), (5, struct.pack("!I", 1)))
        for kind, value in values:  # NFULA_CFG_MODE, NFULA_CFG_NLBUFSIZ, NFULA_CFG_QTHRESH
            body = netlink.attribute(kind, value)
            self._socket.send(netlink.request(nflog.MESSAGE_CONFIG, netlink.NLM_F_ACK, 1, 0, body))
            self._check(self._socket.recv(1 << 16))


class Tracing:
    """The sockets of a namespace, and paths by what was told; made in that namespace.

    lost   messages that the kernel dropped
    stray  messages of which the packet was not known
    """

    def __init__(self) -> None:
        self._trace = TraceSocket(_BUFFER)
        self._log: _Log | None = None
        self.stray = 0
        self._decoder = nftrace.TraceDecoder()
        self._objects: list[NftStep | LegacyStep | str] = []
        self._numbers: dict[object, int] = {}
        self._plain: dict[bytes, int] = {}
        self._logged: dict[bytes, int | None] = {}
        self._paths: dict[tuple[tuple[int, ...], tuple[int, ...]], Path] = {}
        self._resolver = Resolver(Rulesets(), lambda index: None)
        self._current: Told | None = None

    def rules(self, snapshot: Snapshot) -> None:
        """The rules are these from now on. Handles may be used again: nothing that was known stays."""
        rulesets = Rulesets()
        rulesets.put(snapshot, 0, 0)
        self._resolver = Resolver(rulesets, lambda index: None)
        self._paths.clear()
        if snapshot.has_legacy and self._log is None:
            self._log = _Log(_BUFFER)
            for family in (2, 10):
                FilePath(f"/proc/sys/net/netfilter/nf_log/{family}").write_text("nfnetlink_log")
        self.drain({})

    @property
    def lost(self) -> int:
        """How many messages were dropped since the beginning."""
        return self._trace.drops() + (0 if self._log is None else self._log.drops())

    def close(self) -> None:
        """Ends the subscriptions."""
        self._trace.close()
        if self._log is not None:
            self._log.close()

    # --- joining -----------------------------------------------------------------------------------------------

    def drain(self, told: dict[int, Told]) -> None:
        """Adds what was told of packets by their tags."""
        self._current = None
        while datagrams := self._trace.datagrams():
            for datagram in datagrams:
                # Behind nlmsghdr: nfgenmsg 4, NFPROTO 8, TYPE 8, then the packet's number, then the place.
                number = self._plain.get(datagram[16:36] + datagram[44:])
                if number is None:
                    self._learn(datagram, told)
                elif self._current is None:
                    self.stray += 1
                else:
                    self._current.steps.append(number)
        while self._log is not None and (datagrams := self._log.datagrams()):
            for datagram in datagrams:
                self._feed_log(datagram, told)

    def _learn(self, datagram: bytes, told: dict[int, Told]) -> None:
        """A message that is no repeated one: with headers, or new."""
        if struct.unpack_from("=H", datagram, 4)[0] != nftrace.MESSAGE_TRACE:
            return
        body = datagram[16 : struct.unpack_from("=I", datagram)[0]]
        message = self._decoder.decode(body)
        place = message.place
        if place.table == _NAME:
            self._learn_own(message, told, body)
            return
        number = self._number(NftStep(place, 0, False, bool(message.network)))
        if not (message.network or message.transport):
            self._plain[datagram[16:36] + datagram[44:]] = number
        if self._current is None:
            self.stray += 1
            return
        self._current.steps.append(number)

    def _learn_own(self, message: nftrace.TraceMessage, told: dict[int, Told], body: bytes) -> None:
        place = message.place
        hook = _BEGINNINGS.get(place.chain, "output" if place.chain == "sent" else "")
        if hook:
            if headers := message.network or message.transport:  # of later fragments of IPv6, the latter is the former
                self._begin(hook, tag_of(headers), told)
            return
        current = self._current
        if current is None or not (message.network or message.transport):
            return
        if place.chain in _FLOWS:
            current.flow = current.flow or _flow(body)
            return
        end = _ENDS[place.chain]
        current.network = message.network or message.transport
        current.transport = message.transport if message.network else b""
        current.arrived = end == "input"
        current.out = message.oif
        current.steps.append(self._number(f"end {end} {message.oif == _LOOPBACK:d}"))

    def _begin(self, hook: str, tag: int, told: dict[int, Told]) -> None:
        self._current = told.get(tag)
        if self._current is None:
            self.stray += 1
        else:  # for the second time where it comes in by loopback
            self._current.steps.append(self._number(hook))

    def _feed_log(self, datagram: bytes, told: dict[int, Told]) -> None:
        # nlmsghdr 16, nfgenmsg 4, PACKET_HDR 8, then PREFIX; PAYLOAD, its first eight bytes, stands last.
        if len(datagram) < 60 or datagram[-12:-8] != _PAYLOAD:
            self.stray += 1
            return
        key = datagram[16 : 28 + struct.unpack_from("=H", datagram, 28)[0]]
        number = self._logged.get(key, -1)
        if number == -1:
            number = self._logged[key] = self._learn_log(datagram)
        if number is None:
            return  # somebody's LOG
        found = told.get(tag_of(datagram[-8:]))
        if found is None:
            self.stray += 1
        else:
            found.logs.append(number)

    def _learn_log(self, datagram: bytes) -> int | None:
        message = nflog.decode(datagram[16 : struct.unpack_from("=I", datagram)[0]])
        if message is None:
            return None
        return self._number(LegacyStep(message._replace(payload=b"", iif=0, oif=0), 0, 0))

    def _number(self, thing: NftStep | LegacyStep | str) -> int:
        number = self._numbers.setdefault(thing, len(self._objects))
        if number == len(self._objects):
            self._objects.append(thing)
        return number

    # --- paths -------------------------------------------------------------------------------------------------

    def path(self, told: Told) -> Path:
        """The path of a packet: equal ones are the same object, until other rules are loaded."""
        key = tuple(told.steps), tuple(told.logs)
        found = self._paths.get(key)
        if found is None:
            found = self._paths[key] = self._resolve(*key)
        return found

    def _resolve(self, steps: tuple[int, ...], logs: tuple[int, ...]) -> Path:
        passage = Passage(0, 0, Headers(Packet(4, 0, 0, 0), b""))
        for thing in (self._objects[number] for number in steps):
            if isinstance(thing, NftStep):
                passage.nft.append(thing)
            elif isinstance(thing, str):
                self._pass_by(passage, thing)
        found = [self._objects[number] for number in logs]
        passage.legacy += [one for one in found if isinstance(one, LegacyStep)]
        trace = self._resolver.trace(passage)
        if trace is None:
            raise AssertionError("a passage with headers has a trace")
        return trace.path

    @staticmethod
    def _pass_by(passage: Passage, mark: str) -> None:
        """A message of our own table: a beginning, by its hook, or an end."""
        words = mark.split()
        hook = words[1] if words[0] == "end" else mark
        if words[0] == "end":
            passage.oif = _LOOPBACK if words[2] == "1" else 0
        else:
            passage.nft.append(hook)
            passage.iif = passage.iif or int(hook == "prerouting")
        if hook not in passage.seen:
            passage.seen.append(hook)


def _flow(body: bytes) -> tuple[str, int, int] | None:
    """State, direction and status as a message tells them; None where it does not."""
    found: dict[int, int] = {}
    at, end = 4, len(body) - 7
    while at < end:  # a plain loop: this is done for each packet
        length, kind = _attribute(body, at)
        if kind in _OF_FLOW:
            found[kind] = int.from_bytes(body[at + 4 : at + length], "big")
        at += (length + 3) & ~3 or 4
    if _CT_STATE not in found:
        return None
    state = _CT_BITS.get(found[_CT_STATE], "invalid")
    return state, found.get(_CT_DIRECTION, 0), found.get(_CT_STATUS, 0)
