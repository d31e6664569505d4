"""The tracer: which rules packets meet, from switching tracing on to finished traces.

    with Tracer(namespace, TraceOptions(), print) as tracer:
        for trace in tracer.poll(1.0):
            ...

Tracing is switched on by private tables that the kernel removes with us (tracetable.py). The rules are read at the
start and whenever they change, so that each step is shown as the rule that stood there when the packet passed.
"""

from __future__ import annotations

import contextlib
import errno
import re
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType

from conntracker.assembly import Assembler, LegacyStep, Passage
from conntracker.clock import now
from conntracker.model import DecodeError, Loss
from conntracker.restore import Changes, read_sysctl
from conntracker.rules.snapshot import Snapshot, Texts
from conntracker.rulewatch import RuleWatch
from conntracker.sources.counters import Counters
from conntracker.sources.netlink import wait
from conntracker.sources.netns import Namespace
from conntracker.sources.nftables import OwnedTable
from conntracker.sources.tracing import RECEIVE_BUFFER, LogSocket, TraceSocket, interface_name
from conntracker.steps import Trace
from conntracker.traces import Resolver
from conntracker.tracetable import COUNTERS, FIRST, TraceOptions, TraceTable, tables
from conntracker.wire import netlink, nflog, nftrace

LOGGERS = ("net/netfilter/nf_log/2", "net/netfilter/nf_log/10")
_MOST_HEAPS = 16  # of the trace socket's ring, before other things are looked after
_PATIENCE = 2_000_000  # µs that traces wait for the rules to be read
_ANEW = 2.0  # seconds between two times that known flows are traced anew, at least
_SET = re.compile(r"^set (\w+) ", re.MULTILINE)
_NAMED = 5_000_000  # µs for which the name of a device is remembered
_COUNT = 1_000_000  # µs between two looks at what the ceilings refused
_STARTING_HOOKS = frozenset(("prerouting", "output"))
_IP = frozenset(("ip", "ip6", "inet"))


class Tracer:
    """Traces in one network namespace.

    options     what to trace
    notice      called with a line for a person
    receive_buffer   bytes asked for each socket
    packets, messages, lost, undecodable, refused   counts: traces given out, messages of the kernel, those that it
                dropped, those that were not understood, packets that a ceiling refused to trace
    losses      windows in which messages were lost, of kind 'traces'

    Entering raises PermissionError without CAP_NET_ADMIN, ImportError without libnftables, OSError where the kernel
    lacks what it takes.
    """

    def __init__(
        self,
        namespace: Namespace,
        options: TraceOptions,
        notice: Callable[[str], None],
        receive_buffer: int = RECEIVE_BUFFER,
    ) -> None:
        self._namespace, self._options, self._notice = namespace, options, notice
        self._receive_buffer = receive_buffer
        self.packets = self.messages = self.lost = self.undecodable = 0
        self.losses: list[Loss] = []
        self._refused: Counter[str] = Counter()  # by tables that are gone
        self._refused_now: Counter[str] = Counter()
        self._tables: list[tuple[TraceTable, OwnedTable]] = []
        self._decoder = nftrace.TraceDecoder()
        self._over: list[Passage] = []  # and not given out yet
        self._names: dict[int, str | None] = {}
        self._named = 0
        self._log: LogSocket | None = None
        self._unfed: list[nflog.LogMessage] = []  # read since legacy rules were looked at
        self._unfed_since = self._next_anew = 0.0
        self._traced_anew = 0  # the change of rules after which that was done last
        self._log_failed = False
        self._counted = self._calm = 0
        self._said: set[str] = set()
        self._stack = contextlib.ExitStack()

    # --- begin and end -----------------------------------------------------------------------------------------

    def __enter__(self) -> Tracer:
        try:
            with self._namespace:
                self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Takes the private tables away and puts everything back; again is harmless."""
        try:
            self._remove_tables()
        finally:
            self._stack.close()

    def _open(self) -> None:
        self._socket = TraceSocket(self._receive_buffer)
        self._stack.callback(self._socket.close)
        self._counters = Counters()
        self._stack.callback(self._counters.close)
        self._rules = RuleWatch()
        self._stack.callback(self._rules.close)
        self._assembler = Assembler(self._rules.is_own)
        self._assembler.hook_of = self._rules.hook_of
        self._resolver = Resolver(self._rules.known, self._interface)
        self._calm = now()
        self._rules.refresh(at_once=True)
        self._adapt()

    def _interface(self, index: int) -> str | None:
        if index not in self._names:
            with self._namespace:
                self._names[index] = interface_name(index)
        return self._names[index]

    @property
    def names(self) -> list[str]:
        """Our tables as nft names them: family and name."""
        return [f"{table.family} {owned.name}" for table, owned in self._tables]

    @property
    def refused(self) -> Counter[str]:
        """Packets that a ceiling kept from being traced, by its counter (tracetable.COUNTERS), as of the last count."""
        return self._refused + self._refused_now

    @property
    def headless(self) -> int:
        """Messages of which nobody knows the packet."""
        return self._assembler.headless

    @property
    def rulesets(self) -> list[tuple[int, Texts]]:
        """The rulesets that were read, each with the time; whoever keeps them empties the list."""
        return self._rules.read

    # --- our tables --------------------------------------------------------------------------------------------

    def _adapt(self) -> None:
        """Makes our tables and sockets fit the rules that were read. Inside the namespace."""
        snapshot = self._rules.snapshot
        if snapshot is None:
            self._say_once("the rules change all the time and cannot be read: steps are shown without them until then")
            snapshot = Snapshot((), has_legacy=False)
        wanted = _make(self._options, snapshot)
        # Of two chains with the same priority, the one that was made last comes first.
        must_be_last_made = any(chain.priority == FIRST and chain.hook in _STARTING_HOOKS for chain in snapshot.chains)
        if must_be_last_made or wanted != [table for table, _ in self._tables]:
            self._remove_tables()
            for table in wanted:
                self._tables.append((table, OwnedTable(table.text, table.family)))
        self._assembler.more = any(
            chain.hook is not None and (chain.family == "bridge" or chain.hook == "egress") for chain in snapshot.chains
        )
        self._listen_to_legacy(snapshot)
        if self._rules.read:
            for line in self._rules.read[-1][1].missing:
                self._say_once(line)

    def _trace_anew(self) -> None:
        """After rules changed, flows that were traced by the old ones are traced again, by the new ones."""
        if self._rules.changes == self._traced_anew or not self._rules.is_current:
            return  # libnftables is busy, and not for two threads
        if time.monotonic() < self._next_anew:
            return
        began, self._traced_anew = time.monotonic(), self._rules.changes
        try:
            for table, owned in self._tables:
                owned.flush(_SET.findall(table.text))
        except OSError as error:
            self._say_once(f"flows that are known are not traced anew: {error.strerror or error}")
        self._next_anew = time.monotonic() + max(_ANEW, 20 * (time.monotonic() - began))

    def _remove_tables(self) -> None:
        if self._tables:
            self._count(now(), at_once=True)
            self._refused, self._refused_now = self._refused + self._refused_now, Counter()
        for _, owned in self._tables:
            owned.remove()
        self._tables.clear()

    def _count(self, moment: int, at_once: bool = False) -> None:
        """Asks our tables what their ceilings refused."""
        if not at_once and moment - self._counted < _COUNT:
            return
        self._counted = moment
        counts: Counter[str] = Counter()
        try:
            for table, owned in self._tables:
                packets = self._counters.packets(table.family, owned.name)
                counts.update({name: packets.get(name, 0) for name in COUNTERS})
        except OSError as error:
            self._say_once(f"what was not traced cannot be counted: {error.strerror or error}")
            return
        self._refused_now = counts

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._notice(line)

    # --- legacy ------------------------------------------------------------------------------------------------

    def _listen_to_legacy(self, snapshot: Snapshot) -> None:
        if self._log is None or self._log_failed:
            families = {chain.family for chain in snapshot.chains if chain.kind == "iptables-legacy"}
            self._resolver.blind = frozenset({"ip": 4, "ip6": 6}[family] for family in families)
        if self._log is not None or self._log_failed or not snapshot.has_legacy:
            return
        try:
            self._log = LogSocket(self._receive_buffer)
            self._stack.callback(self._log.close)
            self._set_loggers()
            self._assembler.legacy, self._assembler.verdict = True, self._rules.verdict
            self._resolver.blind = frozenset()
        except OSError as error:
            self._log_failed = True
            self._notice(f"no traces of iptables-legacy rules: {error.strerror or error}")

    def _set_loggers(self) -> None:
        changes = Changes(self._namespace)
        self._stack.callback(lambda: [self._notice(line) for line in changes.release()])
        there = [name for name in LOGGERS if read_sysctl(name) is not None]
        if not there:
            raise OSError(errno.EOPNOTSUPP, "this kernel has no net.netfilter.nf_log sysctls")
        changed = [name.replace("/", ".") for name in there if changes.set(name, "nfnetlink_log")]
        if changed:
            self._notice(
                f"iptables-legacy rules: {' and '.join(changed)} set to nfnetlink_log, put back at the end "
                "(what conntrack logs of invalid packets comes here meanwhile, and is not shown)"
            )

    # --- the loop ----------------------------------------------------------------------------------------------

    def filenos(self) -> list[int]:
        """For poll(2): readable when messages wait."""
        return [self._socket.fileno()] + ([] if self._log is None else [self._log.fileno()])

    @property
    def patience(self) -> float:
        """For how many seconds `poll` need not be called while nothing waits."""
        if len(self._assembler) or self._over:
            return 0.05
        return 1.0 if self._log is None else 0.2  # legacy rules have to be looked at, as they announce nothing

    def poll(self, timeout: float) -> list[Trace]:
        """The traces that are over, after waiting for messages for at most `timeout` seconds."""
        wait(self.filenos(), timeout)
        self._drain()
        with self._namespace:
            if self._rules.refresh():
                self._adapt()
            self._trace_anew()
        self._forget_names()
        self._count(now())
        self._over += self._assembler.take(now())
        return self._resolve() if self._rules.is_current or self._waited_for_rules() else []

    def finish(self) -> list[Trace]:
        """All that is left, after a moment for what is under way."""
        traces: list[Trace] = []
        for _ in range(10):
            traces += self.poll(0.06)
            if not len(self._assembler):
                break
        with self._namespace:
            self._rules.refresh(at_once=True)
        self._count(now(), at_once=True)
        self._over += self._assembler.take(now(), final=True)
        return traces + self._resolve()

    def _waited_for_rules(self) -> bool:
        """Whether rules that change again and again cannot be waited for any longer."""
        return bool(self._over) and now() - self._over[0].touched > _PATIENCE

    def _forget_names(self) -> None:
        """Devices may be renamed."""
        if now() - self._named > _NAMED:
            self._names.clear()
            self._named = now()

    def _resolve(self) -> list[Trace]:
        passages, self._over = self._over, []
        traces = [trace for passage in passages if (trace := self._resolver.trace(passage)) is not None]
        self.packets += len(traces)
        return traces

    def _drain(self) -> None:
        # Logs first: what they are about has then begun in the trace messages that are read after them.
        if not self._unfed:
            self._unfed_since = time.monotonic()
        self._unfed += self._logged()
        for _ in range(_MOST_HEAPS):
            datagrams = self._socket.datagrams()
            read = now()
            for datagram in datagrams:
                self._feed(datagram, read)
            if not datagrams:
                self._assembler.drained(read)
                if self._drained():
                    self._assembler.rules_changed()
                break
        before = min(self._rules.legacy, self._rules.legacy_at(self._unfed_since))
        with self._namespace:
            looked = self._rules.look_at_legacy(bool(self._unfed))
        if looked and self._unfed:
            self._assembler.feed_legacy([LegacyStep(one, before, self._rules.legacy) for one in self._unfed], now())
            self._unfed = []
        self._watch_losses(now())

    def _drained(self) -> bool:
        with self._namespace:
            return self._rules.drained()

    def _feed(self, datagram: bytes, read: int) -> None:
        try:
            for message in netlink.messages(datagram):
                if message.type == nftrace.MESSAGE_TRACE:
                    self.messages += 1
                    self._assembler.feed(self._decoder.decode(message.payload), read)
                elif self._rules.announced(message.type, message.payload):
                    self._assembler.rules_changed()
        except DecodeError:
            self.undecodable += 1

    def _logged(self) -> list[nflog.LogMessage]:
        steps: list[nflog.LogMessage] = []
        while self._log is not None and (datagrams := self._log.datagrams()):
            for datagram in datagrams:
                try:
                    found = [
                        nflog.decode(message.payload)
                        for message in netlink.messages(datagram)
                        if message.type == nflog.MESSAGE_PACKET
                    ]
                except DecodeError:
                    self.undecodable += 1
                    continue
                steps += [step for step in found if step is not None]
        self.messages += len(steps)
        return steps

    def _watch_losses(self, moment: int) -> None:
        dropped = self._socket.drops() + (0 if self._log is None else self._log.drops())
        if dropped > self.lost:
            self.losses.append(Loss(self._calm, moment, "traces", dropped - self.lost))
            self.lost = dropped
            self._assembler.lost()
            self._assembler.rules_changed()
            self._rules.lost()
        self._calm = moment


def _make(options: TraceOptions, snapshot: Snapshot) -> list[TraceTable]:
    """The tables that a ruleset needs: below its lowest chain, and at ingress and in bridges if it has chains there."""
    lowest = min(
        (chain.priority for chain in snapshot.chains
         if chain.family in _IP and chain.hook in _STARTING_HOOKS and chain.priority is not None),
        default=0,
    )  # fmt: skip
    devices = {
        name.strip() for chain in snapshot.chains if chain.hook == "ingress" for name in (chain.device or "").split(",")
    }
    bridge = any(chain.family == "bridge" and chain.hook is not None for chain in snapshot.chains)
    return tables(options, lowest, sorted(devices - {""}), bridge)
