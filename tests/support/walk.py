"""Scenarios for tracing: rules in the lab's router, a packet or two through them, and the way that each must take.

A case is a scenario with one kind of rules. It gets a lab of its own (20 ms), as legacy tables stay registered as long
as their namespace lives. What happens is seen from three sides: the tracer's, the counters of the rules, and the
packets that arrive in the namespaces next to the router.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from unittest import mock

from conntracker.lab import topology
from conntracker.lab.topology import MAC, Lab
from conntracker.steps import Packet, Trace
from conntracker.tracer import Tracer
from conntracker.tracetable import TraceOptions
from support import frames, rulesets
from support.paths import Expected, expected
from support.sends import BRIDGED, WAIT, Send, Sender, Sniffer

__all__ = ["Case", "Outcome", "Scenario", "Unsupported", "cases", "run"]

# Multicast reports, which would be traced as well, are sent at once and not in the seconds after an address is made.
QUIET = {f"net/ipv6/conf/{name}/mldv2_unsolicited_report_interval": 1 for name in ("all", "default")}

IPTABLES_KINDS = ("iptables-nft", "iptables-legacy")


@dataclass(frozen=True, slots=True)
class Scenario:
    """Rules, what is sent, and the path of each packet that is looked at (see paths.py), by its name (see Send).

    path        for iptables rules, and for nft's without an `nft_path`; text stands for {"request": text}
    iptables, ip6tables   rules as of restore_text, run as iptables-nft and as iptables-legacy (or `only` one of them)
    nft         native rules
    mixed       instead of these, (tool, text) in the order in which they are loaded, for one case
    system      sysctl names and values, set in the router before
    commands    run in the router before
    bridged     whether the router is a bridge, and client and server are in one network
    optional    whether the kernel may lack what the rules need
    """

    name: str
    send: Send | tuple[Send, ...]
    path: str | Mapping[str, str] = ""
    iptables: str = ""
    ip6tables: str = ""
    nft: str = ""
    nft_path: str | Mapping[str, str] | None = None
    mixed: tuple[tuple[str, str], ...] = ()
    only: str | None = None
    system: Mapping[str, object] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    bridged: bool = False
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """A scenario with one kind of rules; None for mixed ones."""

    scenario: Scenario
    kind: str | None

    @property
    def id(self) -> str:
        """Its name among the tests."""
        return f"{self.scenario.name}-{self.kind or 'mixed'}"

    @property
    def rules(self) -> tuple[tuple[str, str], ...]:
        """(tool, text) of its rulesets, in the order in which they are loaded."""
        scenario, kind = self.scenario, self.kind
        if kind is None:
            return scenario.mixed
        if kind == "nft":
            return (("nft", scenario.nft),)
        texts = ((kind, scenario.iptables), (kind.replace("ip", "ip6", 1), scenario.ip6tables))
        return tuple((tool, text) for tool, text in texts if text)

    @property
    def sends(self) -> tuple[Send, ...]:
        """What is sent."""
        sends = self.scenario.send
        return (sends,) if isinstance(sends, Send) else sends

    @property
    def paths(self) -> dict[str, Expected]:
        """The expected path of each packet by its name."""
        scenario = self.scenario
        own = scenario.nft_path if self.kind == "nft" else None
        paths = scenario.path if own is None else own
        named = {"request": paths} if isinstance(paths, str) else paths
        return {name: expected(text, self.kind) for name, text in named.items()}


def cases(scenario: Scenario) -> Iterator[Case]:
    """The scenario in each kind of rules that it has."""
    if scenario.mixed:
        yield Case(scenario, None)
    if scenario.nft:
        yield Case(scenario, "nft")
    if scenario.iptables or scenario.ip6tables:
        for kind in IPTABLES_KINDS:
            if scenario.only in {None, kind}:
                yield Case(scenario, kind)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case.

    sent       the packets by name, as they came to the router
    counts     how many of them, where that is known
    traces     all traces, in the order in which the tracer gave them
    arrived    the packets that came out of the router, by the interface
    before, after   the rulesets with their counters
    notices    what the tracer had to say
    """

    sent: dict[str, Packet]
    counts: dict[str, int]
    before: dict[rulesets.Place, rulesets.Chain]
    traces: list[Trace] = field(default_factory=list)
    arrived: dict[str, list[Packet]] = field(default_factory=dict)
    after: dict[rulesets.Place, rulesets.Chain] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def of(self, name: str) -> Trace | None:
        """The trace of a packet by its name, `reply 2` and such included."""
        which, _, digits = name.rpartition(" ")
        which, number = (which, int(digits)) if digits.isdigit() else (name, 1)
        found = self.all(which)
        return found[number - 1] if len(found) >= number else None

    def all(self, name: str) -> list[Trace]:
        """The traces of all packets of that name."""
        start, _, which = name.rpartition(" ")
        if which == "error":
            about = self.sent[f"{start} request".strip()]
            return [trace for trace in self.traces if _is_about(trace.packet, about)]
        wanted = self.sent.get(name)
        return [trace for trace in self.traces if wanted is not None and trace.packet == wanted]


class Unsupported(Exception):
    """The kernel lacks what an optional scenario needs."""


def run(case: Case) -> Outcome:
    """Run a case, from an empty lab to the traces. Raises Unsupported."""
    scenario = case.scenario
    verdicts = {name: path.verdict for name, path in case.paths.items()}
    with mock.patch.dict(topology.SYSCTLS, QUIET), Lab(None) as lab, contextlib.ExitStack() as opened:
        _prepare(lab, scenario)
        try:
            for tool, text in case.rules:
                rulesets.load(lab.router, tool, text)
        except rulesets.Refused as error:
            if scenario.optional:
                raise Unsupported(f"this kernel lacks something: {error}".splitlines()[0]) from None
            raise
        sender = Sender(lab, verdicts)
        outcome = Outcome(sender.sent, sender.counts, rulesets.listed(lab.router, case.rules))
        sniffers = {name: opened.enter_context(Sniffer(lab.spaces[name])) for name in ("client", "server")}
        with Tracer(lab.router, TraceOptions(), outcome.notices.append) as tracer:
            for send in case.sends:
                sender.send(send)
            deadline = time.monotonic() + WAIT
            while not all(map(outcome.of, case.paths)) and time.monotonic() < deadline:
                outcome.traces.extend(tracer.poll(0.02))
            outcome.traces.extend(tracer.finish())
        outcome.traces.sort(key=attrgetter("time"))
        outcome.after.update(rulesets.listed(lab.router, case.rules))
        outcome.arrived.update({name: list(sniffer.received()) for name, sniffer in sniffers.items()})
    return outcome


def _is_about(packet: Packet, request: Packet) -> bool:
    """Whether it is an ICMP error about the request, whose addresses NAT may have changed before.

    A message of nf_tables has too little of the packet (20 bytes behind the IP header) to tell what it is about.
    """
    if packet.about is not None:
        about = packet.about
        return (about.proto, about.sport, about.icmp_id) == (request.proto, request.sport, request.icmp_id)
    return packet.icmp_type in frames.ERRORS.get(packet.proto, ()) and packet.family == request.family


def _prepare(lab: Lab, scenario: Scenario) -> None:
    commands = {"client": [], "server": [], "router": list(scenario.commands)}
    if scenario.bridged:
        for this, other in (("client", "server"), ("server", "client")):
            commands[this] = [
                f"ip address add {BRIDGED[this]}/24 dev eth0",
                f"ip neighbour replace {BRIDGED[other]} lladdr {MAC[other, 'eth0']} nud permanent dev eth0",
            ]
            commands["router"].insert(0, f"ip link set {this} master br0")
        commands["router"][:0] = ["ip link add br0 type bridge", "ip link set br0 up"]
    for name, lines in commands.items():
        with lab.spaces[name]:
            for line in lines:
                subprocess.run(line.split(), check=True, timeout=10)
    with lab.router:
        for name, value in scenario.system.items():
            Path("/proc/sys", name).write_text(str(value))
