"""The kernel as an oracle: rulesets are loaded in a namespace of its own, packets sent, and their steps read back."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from conntracker.lab.oracle import ipset
from conntracker.lab.oracle.devices import ELSEWHERE, Devices
from conntracker.lab.oracle.frames import ethernet, ip_packet
from conntracker.lab.oracle.local import LocalSender
from conntracker.lab.oracle.rounds import Target, rounds
from conntracker.lab.oracle.routing import target_of
from conntracker.lab.oracle.states import Preparation, is_error, prepare
from conntracker.lab.oracle.table import FlowTable
from conntracker.lab.oracle.tracing import ASKING, HIGHEST_TAG, TABLE, Told, Tracing, untracked
from conntracker.lab.oracle.wanted import Fields, Unsendable, Wanted, wanted
from conntracker.rules.host import Host
from conntracker.rules.intervals import normal
from conntracker.rules.snapshot import Snapshot
from conntracker.sources.netns import Namespace
from conntracker.sources.rulesets import read_texts
from conntracker.steps import UNDECIDED, Path, Step
from conntracker.wire.packet import parse

__all__ = ["LoadRefused", "Oracle", "Seen"]

_CHUNK = 256  # packets between two readings
_SLICE = 16_000  # packets that are put in order together: each has a tag of its own
_TIMEOUT = 60  # seconds, of a program that loads
_PROGRAMS = {
    ("iptables-legacy", "ip"): "iptables-legacy-restore", ("iptables-legacy", "ip6"): "ip6tables-legacy-restore",
    ("iptables-nft", "ip"): "iptables-nft-restore", ("iptables-nft", "ip6"): "ip6tables-nft-restore",
}  # fmt: skip
# Of iptables' CT and nft's `ct zone set`.
_ZONES = re.compile(r"\bzone(?:-orig|-reply)?(?: set)? (\d{1,5})\b")
_NOWHERE = Path((), UNDECIDED, None)


class LoadRefused(ValueError):
    """A ruleset that could not be loaded, and what the program said."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the kernel did with a packet.

    index   its place among those that were sent
    path    its steps as a trace has them (steps.Path); the same object for packets of the same path
    fate    left, arrived, or gone: dropped by a rule, or by routing
    out     the interface that it left by, "" if it did not
    flow    (state, direction, status) of its flow as rules first saw them; None if it was invalid, or not tracked
    network, transport   first bytes of its headers when it left or arrived, NAT done
    """

    index: int
    path: Path
    fate: str
    out: str = ""
    flow: tuple[str, int, int] | None = None
    network: bytes = b""
    transport: bytes = b""

    @property
    def steps(self) -> tuple[Step, ...]:
        """The path's steps."""
        return self.path.steps

    @property
    def reached(self) -> str | None:
        """The last hook where it was seen; None if it never came to one."""
        return self.path.reached

    def after(self) -> dict[str, int | None]:
        """Addresses, ports, TOS, TTL and length with which it left or arrived; empty if it is gone."""
        if not self.network:
            return {}
        found = parse(self.network, self.transport).packet
        head = self.network
        if found.family == 4:
            more = {"tos": head[1], "ttl": head[8], "length": head[2] << 8 | head[3]}
        else:
            more = {
                "tos": (head[0] << 4 | head[1] >> 4) & 0xFF,
                "ttl": head[7],
                "length": 40 + (head[4] << 8 | head[5]),
            }
        return {"saddr": found.src, "daddr": found.dst, "sport": found.sport, "dport": found.dport, **more}


@dataclass(slots=True)
class _Ready:
    """A packet about to be sent."""

    index: int
    packet: Wanted
    preparation: Preparation
    target: Target
    tag: int
    content: bytes


class Oracle:
    """A host with these interfaces and an empty ruleset. Nothing of it outlives the process, or `close`.

    host_addresses   interface -> {4: address, 6: address}
    host             what rules can know of it: addresses, what they are to it
    lost             trace messages that the kernel dropped: 0, or steps are missing

    Not for two threads at once; several oracles side by side are fine. Raises OSError where the kernel refuses (EPERM
    without root).
    """

    def __init__(self, interfaces: Sequence[str], *, versions: Sequence[int] = (4, 6)) -> None:
        self.interfaces, self.versions = tuple(interfaces), tuple(versions)
        self._stack = ExitStack()
        self._made = 0

    def __enter__(self) -> Oracle:
        with ExitStack() as stack:
            self._space = Namespace.create()
            stack.callback(self._space.close)
            with self._space:
                self._devices = Devices(self.interfaces)
                stack.callback(self._devices.close)
                self._tracing = Tracing()
                stack.callback(self._tracing.close)
                self._table = FlowTable()
                stack.callback(self._table.close)
                self._local = LocalSender()
                stack.callback(self._local.close)
                self.host = _host(self._devices)
                self._names = {number: name for name, number in self._devices.index.items()}
                self._start_tracing()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Takes the host down. Again is harmless."""
        self._stack.close()

    @property
    def host_addresses(self) -> Mapping[str, Mapping[int, int]]:
        """By interface and IP version."""
        return {name: self._devices.addresses[name] for name in self.interfaces if name in self._devices.addresses}

    @property
    def lost(self) -> int:
        """Trace messages that the kernel dropped."""
        return self._tracing.lost

    @property
    def stray(self) -> int:
        """Messages of no packet that was sent: 0, unless rules trace what the kernel makes itself."""
        return self._tracing.stray

    @property
    def snapshot(self) -> Snapshot:
        """The rules that are loaded, as the product reads them."""
        return self._snapshot

    # --- rules -------------------------------------------------------------------------------------------------

    def load(self, text: str, kind: str = "nft", family: str = "ip") -> None:
        """Loads a ruleset beside what is there: kind as in steps.KINDS, family (ip or ip6) of saves.

        Sets of ip_set that a save asks for are made first. Raises LoadRefused, OSError.
        """
        program = ["nft", "-f", "-"] if kind == "nft" else [_PROGRAMS[kind, family]]
        with self._space:
            for name in ipset.wanted_by(text) if kind != "nft" else ():
                ipset.create(name, family)
            self._run(program, text)
            self._table.zones = (0, *sorted({int(number) for number in _ZONES.findall(text)} - {0}))
            self._start_tracing()

    def _start_tracing(self) -> None:
        """Our table anew (a ruleset may begin with a flush), and the rules as they are now."""
        self._run(["nft", "-f", "-"], f"table inet conntracker_0\ndelete table inet conntracker_0\n{TABLE}")
        self._snapshot = Snapshot.parse(read_texts())
        if any(chain.type == "nat" for chain in self._snapshot.chains):
            self._run(["nft", "-f", "-"], ASKING)
        self._tracing.rules(self._snapshot)
        self._table.translates = any(
            chain.type == "nat" and (chain.rules or chain.policy != "accept") for chain in self._snapshot.chains
        )
        self._table.flush()

    @staticmethod
    def _run(program: list[str], text: str) -> None:
        try:
            done = subprocess.run(
                program, input=text, capture_output=True, text=True, check=False, timeout=_TIMEOUT,
                env={**os.environ, "LC_ALL": "C"}, errors="surrogateescape",
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise LoadRefused(f"{program[0]} gave no answer in {_TIMEOUT} s") from None
        if done.returncode != 0:
            raise LoadRefused(f"{program[0]}: {done.stderr.strip() or done.returncode}")

    # --- packets -----------------------------------------------------------------------------------------------

    def refusal(self, packet: Fields) -> str | None:
        """Why a packet cannot be sent; None if it can."""
        try:
            self._ready(0, packet)
        except Unsendable as error:
            return error.reason
        return None

    def send(self, packets: Sequence[Fields]) -> list[Seen]:
        """Sends packets, each a dict of fields and its `way`, `iif` and `oif`, and tells what became of each.

        They are sent in an order that needs few changes of routes. Raises Unsendable before any is sent.
        """
        ready = []
        for index, packet in enumerate(packets):
            try:
                ready.append(self._ready(index, packet))
            except Unsendable as error:
                raise Unsendable(error.reason, index) from None
        seen: list[Seen | None] = [None] * len(ready)
        with self._space:
            for start in range(0, len(ready), _SLICE):
                for result in self._send_slice(ready[start : start + _SLICE]):
                    seen[result.index] = result
        return [one for one in seen if one is not None]

    def _ready(self, index: int, fields: Fields) -> _Ready:
        self._made += 1
        packet = wanted(fields, self._made)
        if packet.family not in self.versions:
            raise Unsendable(f"IPv{packet.family} is not spoken here")
        for name in (packet.iif, packet.oif):
            if name and name not in self._devices.index:
                raise Unsendable(f"no interface {name}")
        if packet.state == "related" and packet.first and self._table.translates and not is_error(packet):
            # What ctnetlink put in is confirmed, and only unconfirmed flows get NAT (nf_nat_setup_info).
            raise Unsendable("where rules translate, related flows can only be there already (first 0)")
        target = target_of(packet, fields, self.host)
        preparation = prepare(packet)
        tag = 1 + index % HIGHEST_TAG
        if preparation.untracked:
            tag = untracked(packet.family, 1 + index % _SLICE % 0x3FFF)
        content = ip_packet(packet, tag, preparation.spoilt, preparation.begins)
        return _Ready(index, packet, preparation, target, tag, content)

    def _send_slice(self, ready: list[_Ready]) -> Iterator[Seen]:
        for one, members in rounds((item.target, item) for item in ready):
            self._devices.route(one.targets, one.default or ELSEWHERE)
            for start in range(0, len(members), _CHUNK):
                yield from self._send_chunk(members[start : start + _CHUNK])

    def _send_chunk(self, members: list[_Ready]) -> Iterator[Seen]:
        told = {item.tag: Told() for item in members}
        for item in members:
            self._table.make_room(item.preparation)
            packet = item.packet
            if packet.way != "output":
                self._devices.write(packet.iif, ethernet(packet, self._devices.link[packet.iif], item.content))
                continue
            with contextlib.suppress(OSError):  # EPERM: dropped by a rule; others: by routing
                self._local.send(packet, item.content)
        self._tracing.drain(told)
        self._table.flush()
        for item in members:
            yield self._seen(item.index, told[item.tag])

    def _seen(self, index: int, told: Told) -> Seen:
        if not told.steps and not told.logs:
            return Seen(index, _NOWHERE, "gone")
        path = self._tracing.path(told)
        out = self._names.get(told.out, "")
        fate = "arrived" if told.arrived else "left" if out not in {"", "lo"} else "gone"
        if fate == "gone":
            return Seen(index, path, fate, flow=told.flow)
        return Seen(index, path, fate, out, told.flow, told.network, told.transport)


def _host(devices: Devices) -> Host:
    """What rules can know of the host, as far as it does not change from packet to packet."""
    every = devices.addresses
    local = {version: normal([(one[version], one[version]) for one in every.values()]) for version in (4, 6)}
    ends = [one[4] | 0xFF for one in every.values()]
    primary = {(version, name): one[version] for name, one in every.items() for version in (4, 6)}
    return Host(local, {4: normal([(end, end) for end in ends])}, None, primary, by_mark=False)
