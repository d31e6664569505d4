"""Which messages belong to one packet: from the kernel's two streams of single steps to packets with all of theirs.

nf_tables numbers packets, but uses the numbers again and gives a packet another one on loopback: it is our own table's
message that says where a packet begins. Legacy logs carry no number: their packet is found by what NAT and routers
leave alone in its headers (wire.packet.Headers.identity), and by its source, which stays until postrouting.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from conntracker.model import DecodeError
from conntracker.steps import Packet
from conntracker.wire.nflog import LogMessage
from conntracker.wire.nftrace import Place, TraceMessage
from conntracker.wire.packet import Headers, parse

OWN_TABLE = re.compile(r"conntracker_\d+(_\d+)?")
# Chains of our own table at the very end of a hook (tracetable.py); all others of its chains mark a packet's beginning.
ENDS = {"input": "input", "forward": "forward", "post": "postrouting"}
# Chains behind extension headers, whose protocol the kernel's message does not tell.
_PROTOCOLS = {"tcp": 6, "udp": 17, "icmpv6": 58}

_IDLE = 500_000  # µs without a message after which a packet is taken to have gone
_QUEUED = 3_000_000  # the same for one that waits for a program (NFQUEUE)
_SETTLE = 150_000  # µs after its end, for legacy logs still to come
_MORE = 20_000  # the same for chains of bridges and of egress
# Rules are in force some time before their change is announced (nf_tables_commit): so many µs, and so many messages.
_NEAR, _MOST_NEAR = 20_000, 1024
_LOOPBACK = 1  # number of lo in every network namespace


def _is_named_so(family: str, table: str) -> bool:
    del family
    return OWN_TABLE.fullmatch(table) is not None


class NftStep(NamedTuple):
    """A step as nf_tables told it.

    epoch    number of the ruleset: changes of rules that were announced before
    near     whether a change was announced so soon after that the next ruleset may have been in force
    first    whether it was the first one of its base chain: those come with headers
    """

    place: Place
    epoch: int
    near: bool = False
    first: bool = False


class LegacyStep(NamedTuple):
    """A step as a legacy table logged it, between two looks at the legacy rules: their numbers before and after."""

    message: LogMessage
    before: int
    after: int


@dataclass(slots=True)
class Passage:
    """One packet on its way, with all that was told of it.

    born, touched   when its first and its last message were read: microseconds since the epoch, UTC
    headers         as it came in; None if nothing said so
    left            as it was last seen
    sources         (address, port) that it came with: at its beginning, and again after loopback
    nft             NftStep, and the hooks of our own table's messages as text, in their order
    seen            hooks at whose end it was seen, and 'prerouting', 'output' or 'ingress' where it began
    into_host       whether a bridge handed it to the host, whose IP hooks come next, under another number
    handed_over     whether it went on under another number
    came_in         how many of `nft` there were when it was first said where it would go; 0 if it never was
    ended           when it was known to have gone: left, arrived, or dropped by nf_tables; 0 before that
    """

    born: int
    touched: int
    headers: Headers | None = None
    left: Packet | None = None
    iif: int = 0
    oif: int = 0
    ct_id: int | None = None
    sources: set[tuple[int, int | None]] = field(default_factory=set)
    nft: list[NftStep | str] = field(default_factory=list)
    legacy: list[LegacyStep] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    tables: set[tuple[str, str, str]] = field(default_factory=set)
    ended: int = 0
    queued: bool = False
    into_host: bool = False
    handed_over: bool = False
    came_in: int = 0
    complete: bool = True


class Assembler:
    """Takes messages in their order, gives passages when they are over.

    is_own      whether a table, by family and name, is ours or another instance's
    legacy      whether legacy logs are to be waited for
    more        whether there are chains behind the end of IP's hooks, of bridges and of egress
    hook_of     the hook of a base chain, as far as that is known
    verdict     what a logged rule did with its packet, as far as that is known
    headless    messages whose packet could not be told
    """

    def __init__(self, is_own: Callable[[str, str], bool] = _is_named_so) -> None:
        self._is_own = is_own
        self.legacy = self.more = False
        self.hook_of: Callable[[Place], str | None] = lambda place: None
        self.verdict: Callable[[LogMessage], str | None] = lambda message: None
        self.headless = 0
        self._open: dict[int, Passage] = {}  # by the kernel's number
        self._all: list[Passage] = []
        self._by_identity: dict[bytes, list[Passage]] = {}
        self._logged: dict[bytes, Passage] = {}  # by identity: what the last log was about
        self._waiting: list[tuple[int, LegacyStep, Headers]] = []
        self._recent: deque[tuple[int, Passage, int]] = deque(maxlen=_MOST_NEAR)  # and when they were read
        self._drained = self._born = 0
        self._gap = False
        self.epoch = 0

    # --- nf_tables ---------------------------------------------------------------------------------------------

    def rules_changed(self) -> None:
        """The rules are others from here on; what came just before may be of them, too."""
        for read, passage, index in self._recent:
            step = passage.nft[index]
            if read > self._drained - _NEAR and isinstance(step, NftStep):
                passage.nft[index] = step._replace(near=True)
        self._recent.clear()
        self.epoch += 1

    def drained(self, now: int) -> None:
        """Nothing more waits: a change announced from now on comes later than this."""
        self._drained = now
        if self._gap:  # it was somewhere in what has been fed
            self._mark_incomplete()
            self._gap = False

    def feed(self, message: TraceMessage, now: int) -> None:
        """One trace message."""
        if message.place.table.startswith("conntracker_") and self._is_own(message.place.family, message.place.table):
            self._feed_own(message, now)
            return
        passage = self._open.get(message.id)
        if passage is None or message.network:
            passage = self._with_headers(message, passage, now)
            if passage is None:
                self.headless += 1
                return
        passage.touched = now
        self._learn(passage, message)
        self._recent.append((now, passage, len(passage.nft)))
        passage.nft.append(NftStep(message.place, self.epoch, False, bool(message.network)))
        if message.place.verdict == "drop":
            passage.ended = now
        elif message.place.verdict == "queue":
            passage.queued = True

    def _with_headers(self, message: TraceMessage, passage: Passage | None, now: int) -> Passage | None:
        """The passage that a message with headers belongs to, given that of its number; None if it has no headers.

        The number may be used again for a packet that others trace, and it changes with the device that a packet comes
        in by: where a bridge calls iptables, between prerouting and what follows.
        """
        headers = _headers(
            message, None if passage is None or passage.headers is None else passage.headers.packet.proto
        )
        if headers is None:
            return passage
        if passage is not None and passage.headers is not None and passage.headers.identity == headers.identity:
            if not self._has_gone(passage, message.place):
                passage.left = headers.packet
                return passage
            # It had gone. A bridge floods copies: they come in once, and may have the same number, one after the other.
            passage = self._copy(passage, headers, now) if passage.came_in else self._begin(message, headers, now)
            self._open[message.id] = passage
            return passage
        source = headers.packet.src, headers.packet.sport
        alike = [one for one in self._by_identity.get(headers.identity, ()) if source in one.sources]
        found = next(
            (one for one in alike if one.seen[-1:] == ["prerouting"] and not one.ended and not one.handed_over), None
        )
        if found is not None:
            found.handed_over = True
            found.came_in = found.came_in or len(found.nft)
        elif (first := next((one for one in alike if one.handed_over), None)) is not None:
            found = self._copy(first, headers, now)  # a bridge floods it: each copy goes a way of its own
        else:
            return self._begin(message, headers, now)
        self._open[message.id] = found
        return found

    def _has_gone(self, passage: Passage, place: Place) -> bool:
        """Whether a message in a base chain cannot be of a passage: it was dropped, or is past the chain's hook."""
        last = passage.nft[-1] if passage.nft else None
        if isinstance(last, NftStep) and last.place.verdict == "drop":
            return True
        hook, seen = self.hook_of(place), passage.seen[-1] if passage.seen else None
        return bool(passage.ended) and hook in _WAY and seen in _WAY and _WAY.index(hook) < _WAY.index(seen)

    def _copy(self, passage: Passage, headers: Headers, now: int) -> Passage:
        """Another packet that came in as this one did."""
        copy = self._new(passage.headers or headers, now)
        copy.nft, copy.seen, copy.tables = passage.nft[: passage.came_in], passage.seen[:1], set(passage.tables)
        copy.iif, copy.came_in, copy.handed_over = passage.iif, passage.came_in, passage.handed_over
        return copy

    def _feed_own(self, message: TraceMessage, now: int) -> None:
        if not message.network:
            return
        passage = self._open.get(message.id)
        end = ENDS.get(message.place.chain)
        if end is not None:
            if passage is None and self._may_have_come_in(message):
                passage = self._with_headers(message, None, now)
            if passage is not None:
                self._reach_end(passage, message, end, now)
            return
        if (headers := _headers(message)) is None:
            return
        hook = "ingress" if message.place.family == "netdev" else "output" if not message.iif else "prerouting"
        if passage is None or not _continues(passage, message, hook):
            passage = self._handed_over(message, headers) or self._begin(message, headers, now)
            self._open[message.id] = passage
        passage.tables.add((message.place.family, message.place.table, hook))
        passage.sources.add((headers.packet.src, headers.packet.sport))
        if hook not in passage.seen:
            passage.seen.append(hook)
        passage.nft.append(hook)
        passage.touched, passage.ended = now, 0
        passage.iif = passage.iif or message.iif
        self._learn(passage, message)

    def _may_have_come_in(self, message: TraceMessage) -> bool:
        """Whether a message under an unknown number may be of a packet that came in under another one."""
        headers = _headers(message)
        alike = [] if headers is None else self._by_identity.get(headers.identity, [])
        return any(one.seen[-1:] == ["prerouting"] or one.handed_over for one in alike)

    def _begin(self, message: TraceMessage, headers: Headers, now: int) -> Passage:
        self._open[message.id] = passage = self._new(headers, now)
        passage.iif = message.iif
        return passage

    def _new(self, headers: Headers, now: int) -> Passage:
        self._born = max(now, self._born + 1)  # no two at once: their order is that of their beginnings
        passage = Passage(self._born, now, headers, headers.packet)
        passage.sources.add((headers.packet.src, headers.packet.sport))
        self._all.append(passage)
        self._by_identity.setdefault(headers.identity, []).append(passage)
        return passage

    def _handed_over(self, message: TraceMessage, headers: Headers) -> Passage | None:
        """The passage that went out through loopback, or from a bridge into the host, and now comes in."""
        for passage in self._by_identity.get(headers.identity, ()):
            if not _is_same(headers.packet, passage.left):
                continue  # looks alike, and is of another flow
            if passage.seen == ["ingress"] and not passage.ended:  # of the device below: it has another number here
                return passage
            if passage.into_host and message.place.family != "bridge":
                passage.into_host = False
                return passage
            looped = message.iif == _LOOPBACK == passage.oif
            if looped and passage.seen[-1:] in (["postrouting"], ["output"]):
                return passage
        return None

    def _reach_end(self, passage: Passage, message: TraceMessage, hook: str, now: int) -> None:
        passage.touched = now
        self._learn(passage, message)
        proto = None if passage.headers is None else passage.headers.packet.proto
        if (headers := _headers(message, proto)) is not None:
            passage.left = headers.packet
        if message.place.family == "bridge" and hook == "input":
            passage.into_host = True
            return
        if hook not in passage.seen:
            passage.seen.append(hook)
        if hook == "input" or (hook == "postrouting" and message.oif != _LOOPBACK):
            passage.ended = now

    @staticmethod
    def _learn(passage: Passage, message: TraceMessage) -> None:
        if message.oif and not passage.came_in and passage.seen[:1] == ["prerouting"]:
            passage.came_in = len(passage.nft)
        if message.oif:
            passage.oif = message.oif
        if message.ct_id is not None:
            passage.ct_id = message.ct_id

    # --- legacy ------------------------------------------------------------------------------------------------

    def feed_legacy(self, steps: Iterable[LegacyStep], now: int) -> None:
        """Logs that were read before the trace messages fed last: so their packets' beginnings have been fed."""
        for step in steps:
            try:
                headers = parse(step.message.payload)
            except DecodeError:
                self.headless += 1
                continue
            if not self._attach(step, headers, now):
                self._waiting.append((now, step, headers))

    def _attach(self, step: LegacyStep, headers: Headers, now: int) -> bool:
        source = headers.packet.src, headers.packet.sport
        found = [one for one in self._by_identity.get(headers.identity, ()) if source in one.sources]
        if not found:
            return False
        # Several packets may look alike (UDPv6 of equal length). The kernel logs one after the other: so this is the
        # one that the last log was about, until that cannot be, and then the next one.
        current = self._logged.get(headers.identity)
        found.sort(key=lambda one: (not _leads_to(one, headers.packet), one is not current))
        passage = next((one for one in found if self._follows(one, step)), None)
        if passage is None:
            return False
        self._logged[headers.identity] = passage
        passage.legacy.append(step)
        passage.touched = max(now, passage.touched)
        if not any(hook in ENDS.values() for hook in passage.seen):
            passage.left = replace(headers.packet, about=None)
        if headers.packet.about is not None and passage.headers is not None:  # trace messages are too short for it
            packet = replace(passage.headers.packet, about=headers.packet.about)
            passage.headers = passage.headers._replace(packet=packet)
        return True

    def _follows(self, passage: Passage, step: LegacyStep) -> bool:
        """Whether a step can be the next one of a packet: not after its end, and numbers grow in a hook's own chain."""
        hook = step.message.hook
        begins = ("output",) if hook == _OUTPUT else ("prerouting", "ingress")
        if passage.seen and hook != _POSTROUTING and not any(one in passage.seen for one in begins):
            return False
        if not passage.legacy:
            return True
        last, chain = passage.legacy[-1], step.message.chain
        verdict = self.verdict(last.message)
        before, place = _place(last, passage), _place(step, passage)
        if before != place or verdict in _ENDINGS:
            return before < place and verdict not in _ENDINGS
        if verdict == "accept":
            return False
        if chain != HOOK_CHAINS[hook]:
            return True
        same = (one.message for one in reversed(passage.legacy) if _place(one, passage) == place)
        number = next((one.number for one in same if one.chain == chain), 0)
        return number < step.message.number

    def _adopt_waiting(self, now: int, final: bool) -> None:
        """Logs whose packet's beginning was never told (somebody else's TRACE rules): packets of their own."""
        waiting, self._waiting = self._waiting, []
        for since, step, headers in waiting:
            if self._attach(step, headers, since):
                continue
            if not final and now - since < _SETTLE:
                self._waiting.append((since, step, headers))
                continue
            passage = self._new(headers, since)
            passage.iif, passage.oif = step.message.iif, step.message.oif
            # Where it began, and whether it left, nothing tells; of later IPv6 fragments never more is told than this.
            passage.complete = headers.packet.fragment
            passage.legacy.append(step)

    # --- giving out --------------------------------------------------------------------------------------------

    def lost(self) -> None:
        """Messages were lost: what is under way may lack steps, and so may what is fed until nothing more waits."""
        self._gap = True
        self._mark_incomplete()

    def _mark_incomplete(self) -> None:
        for passage in self._all:
            passage.complete = False

    def take(self, now: int, final: bool = False) -> list[Passage]:
        """The passages that are over; all of them if `final`."""
        self._adopt_waiting(now, final)
        if self._gap:
            self._mark_incomplete()
        over: list[Passage] = []
        staying: list[Passage] = []
        for passage in self._all:
            (over if final or self._is_over(passage, now) else staying).append(passage)
        if over:
            self._all = staying
            self._forget(over)
        return over

    def _is_over(self, passage: Passage, now: int) -> bool:
        if passage.ended:
            return now - passage.touched > (_SETTLE if self.legacy else _MORE if self.more else -1)
        return now - passage.touched > (_QUEUED if passage.queued else _IDLE)

    def _forget(self, over: list[Passage]) -> None:
        gone = {id(passage) for passage in over}
        self._open = {number: passage for number, passage in self._open.items() if id(passage) not in gone}
        for passage in over:
            if passage.headers is None:
                continue
            same = self._by_identity[passage.headers.identity]
            same[:] = [other for other in same if other is not passage]
            if not same:
                del self._by_identity[passage.headers.identity]
                self._logged.pop(passage.headers.identity, None)

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Passage]:
        return iter(self._all)


def _leads_to(passage: Passage, packet: Packet) -> bool:
    """Whether a packet goes to where the passage's packet went, before or after NAT."""
    ends = [one for one in (passage.headers and passage.headers.packet, passage.left) if one is not None]
    return any((packet.dst, packet.dport) == (one.dst, one.dport) for one in ends)


def _is_same(one: Packet, other: Packet | None) -> bool:
    """Whether two packets have the same tuple."""
    return other is not None and (one.src, one.dst, one.sport, one.dport) == (
        other.src, other.dst, other.sport, other.dport,
    )  # fmt: skip


def _continues(passage: Passage, message: TraceMessage, hook: str) -> bool:
    """Whether a beginning is that of a packet that is under way: seen at ingress or by another instance before."""
    if (message.place.family, message.place.table, hook) in passage.tables:
        return False
    if message.place.family == "bridge" and hook == "output":  # what was routed leaves through a bridge
        return passage.seen[-1:] == ["postrouting"]
    if passage.ended:
        return False
    if hook == "prerouting":
        return all(seen in ("ingress", "prerouting") for seen in passage.seen)
    return hook == "output" and passage.seen == ["output"]


def _headers(message: TraceMessage, proto: int | None = None) -> Headers | None:
    proto = proto or _PROTOCOLS.get(message.place.chain.rpartition("_")[2])
    try:
        return parse(message.network, message.transport, proto)
    except DecodeError:
        return None


_WAY = ("ingress", "prerouting", "forward", "input", "output", "postrouting", "egress")
# How far a packet is, by hook number of linux/netfilter.h: prerouting, input, forward, output, postrouting.
_STAGES = {3: 0, 4: 1, 0: 2, 1: 3, 2: 3}
_OUTPUT, _POSTROUTING, _FORWARDED_POSTROUTING = 3, 4, 4
_ENDINGS = frozenset(("drop", "reject", "stolen"))
HOOK_CHAINS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")  # by hook number, the same in every table
_PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}


def legacy_priority(table: str, hook: int) -> int:
    """Of a legacy table's chains (linux/netfilter_ipv4.h, enum nf_ip_hook_priorities)."""
    if table == "nat":
        return -100 if hook in (0, 3) else 100
    return _PRIORITIES.get(table, 0)


def _place(step: LegacyStep, passage: Passage) -> tuple[int, int]:
    message = step.message
    stage = _STAGES.get(message.hook, 0)
    if message.hook == _POSTROUTING and (message.iif or "prerouting" in passage.seen[:1]):
        stage = _FORWARDED_POSTROUTING
    return stage, legacy_priority(message.table, message.hook)
