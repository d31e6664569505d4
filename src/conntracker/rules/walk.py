"""Walking a packet through a ruleset, rule by rule, as the kernel does: the steps it takes, and every way it may go.

Where a rule asks what is not known (a limit's state, an interface that was not said), both answers are tried: each
outcome says what it took for granted. The walk is plain on purpose; `rules.decide` answers for millions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from conntracker.rules.deciding import deciding_accept, weight
from conntracker.rules.fields import CT_STATES, PACKET_TYPES, ROUTE_TYPES
from conntracker.rules.host import Host
from conntracker.rules.intervals import normal, single
from conntracker.rules.order import CONNTRACK, LEFT_ONCE, WAYS, base_chains, effective_priority
from conntracker.rules.packets import Packet, completed
from conntracker.rules.ruleset import ChainKey, KnownChain, Meaning, Ruleset, namespace_of
from conntracker.rules.state import UNKNOWN, Answers, Assumed, State
from conntracker.rules.terms import AnyOf, Assign, Atom, Branches, In, Named, Nat, Term, Verdict
from conntracker.steps import UNDECIDED, Path, Rule, Step

__all__ = ["Answer", "Course", "Outcome", "Passed", "walk"]

MOST_OUTCOMES = 512
_ENDINGS = frozenset(("accept", "drop", "reject", "queue", "stolen"))
_BEFORE_ROUTING = frozenset(("prerouting", "output"))
_LOCAL_TYPES = frozenset(ROUTE_TYPES.index(name) for name in ("local", "broadcast", "anycast", "multicast"))
_LOOPBACK = "lo"
_HOST = PACKET_TYPES.index("host")
_LOCAL = ROUTE_TYPES.index("local")
_MOST_DEEP = 200  # nft allows 16 (NFT_JUMP_STACK_SIZE), iptables any number


@dataclass(frozen=True, slots=True)
class Passed:
    """A rule that did not match: which of its terms failed, and of which packet. `after` steps came before it."""

    after: int
    rule: Rule
    term: Term | Branches
    packet: Packet


@dataclass(frozen=True, slots=True)
class Outcome:
    """One way that the packet may go.

    path      its steps, verdict and deciding step
    assumed   what it hangs on, in the order in which it was asked; empty where nothing was unknown
    packet    as it was at the end, after NAT
    passed    rules that did not match, if they were asked for
    hops      its TTL when routing sent it on: with less than two it goes no further; None if it never was, or unknown
    """

    path: Path
    assumed: tuple[Assumed, ...]
    packet: Packet
    passed: tuple[Passed, ...] = ()
    hops: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """All that may become of a packet. `whole` is False where there were more outcomes than are kept."""

    outcomes: tuple[Outcome, ...]
    whole: bool = True

    @property
    def verdict(self) -> str:
        """What all outcomes come to, or UNDECIDED."""
        found = {one.path.verdict for one in self.outcomes}
        return found.pop() if self.whole and len(found) == 1 else UNDECIDED

    @property
    def undecided_by(self) -> tuple[str, ...]:
        """What the verdict hangs on: the questions of which the answers lead to different verdicts."""
        return tuple(dict.fromkeys(_mattering(self.outcomes, 0))) if self.verdict == UNDECIDED else ()


def _mattering(outcomes: Sequence[Outcome], number: int) -> Iterator[str]:
    """Of outcomes that answer their first `number` questions alike, the later questions that matter."""
    asking = [one for one in outcomes if len(one.assumed) > number]
    if not asking:
        return
    yes, no = ([one for one in asking if one.assumed[number].value is value] for value in (True, False))
    if {one.path.verdict for one in yes} != {one.path.verdict for one in no}:
        yield asking[0].assumed[number].text
    for some in (yes, no):
        yield from _mattering(some, number + 1)


class Course:
    """The chains that packets of one IP version pass, by hook; made once for many packets."""

    def __init__(self, ruleset: Ruleset, version: int) -> None:
        """Of a ruleset, for packets of IP version 4 or 6."""
        self.hooks = {hook: base_chains(ruleset, version, hook) for hooks in WAYS.values() for hook in hooks}
        self._chains = ruleset.by_key()
        self._steps: dict[tuple[int, int], Step] = {}

    def target(self, rule: Rule, name: str) -> KnownChain | None:
        """The chain of the rule's table that a jump leads to."""
        return self._chains.get((namespace_of(rule.kind), rule.family, rule.table, name))

    def step(self, base: KnownChain, rule: Rule, verdict: str, target: str | None) -> Step:
        """The step of a rule that matched; equal ones are one."""
        key = id(rule), id(base)
        found = self._steps.get(key)
        if found is None or found.verdict != verdict or found.target != target:
            kind = "return" if verdict == "return" else "rule"
            found = self._steps[key] = Step(
                base.chain.hook, base.chain.priority, rule.kind, rule.family, rule.table, rule.chain, kind, rule,
                verdict, target,
            )  # fmt: skip
        return found


def walk(
    ruleset: Ruleset | Course,
    packet: Mapping[str, int | str | None],
    way: str | None,
    *,
    host: Host | None = None,
    passed: bool = False,
    answers: Answers | None = None,
) -> Answer:
    """Every way that a packet may go.

    packet    see packets.completed; the family must be among its fields
    way       input, forward or output; None for a packet that came in: its destination decides, behind NAT
    passed    whether to keep the rules that did not match
    answers   asked first for the outcome of an atom; None where it does not know
    """
    whole = completed(packet, host)
    version = 4 if whole["family"] == 4 else 6
    course = ruleset if isinstance(ruleset, Course) else Course(ruleset, version)
    outcomes: list[Outcome] = []
    scripts: list[list[bool]] = [[]]
    while scripts and len(outcomes) < MOST_OUTCOMES:
        script = scripts.pop()
        state = State(dict(whole), version, host, script, answers)
        outcomes.append(_Run(course, state, passed).go(way))
        scripts += [[*state.choices[:i], not state.choices[i]] for i in range(len(script), len(state.choices))]
    return Answer(tuple(outcomes), whole=not scripts)


class _Run:
    """One packet, once through."""

    def __init__(self, course: Course, state: State, keep_passed: bool) -> None:
        self._course, self._state, self._packet = course, state, state.packet
        self._steps: list[Step] = []
        self._weights: list[int] = []
        self._translated: set[str] = set()
        self._passed: list[Passed] | None = [] if keep_passed else None
        self._hook = ""
        self._hops: int | None = None
        self._inside: set[ChainKey] = set()

    # --- the way ---

    def go(self, way: str | None) -> Outcome:
        """The outcome."""
        out = self._packet.get("oif", UNKNOWN)
        hooks = WAYS["input"][:2] if way is None else WAYS[way]
        if way == "output":
            self._packet["iif"] = ""
        else:
            self._packet["oif"] = ""
        for hook in hooks:
            if (ended := self._at(hook, out)) is not None:
                return ended
        for hook in self._routed(out) if way is None else self._looped() if way == "output" else ():
            if (ended := self._at(hook, out)) is not None:
                return ended
        decided = deciding_accept(tuple(self._steps), self._weights)
        return self._outcome("accept", decided)

    def _at(self, hook: str, out: object) -> Outcome | None:
        """Passes a hook; the outcome if the packet ends there."""
        self._hook, sent_to, remarked = hook, self._packet.get("daddr", UNKNOWN), False
        if hook == "forward":
            self._forwarded(out)
        meets = hook in _BEFORE_ROUTING and not (hook == "prerouting" and self._packet.get("iif") == _LOOPBACK)
        if meets:
            self._state.hide_conntrack()
        for known in self._course.hooks[hook]:
            if effective_priority(known) > CONNTRACK and hook not in {"ingress", "egress"}:
                self._state.show_conntrack()
            routed_by = self._routing_key()
            verdict = self._base(known)
            if verdict not in {"accept", "continue"}:
                return self._outcome(verdict, len(self._steps) - 1)
            remarked |= known.chain.type == "route" and self._routing_key() != routed_by
        if meets:
            self._state.show_conntrack()
        if hook == "output" and self._packet.get("daddr", UNKNOWN) != sent_to:
            self._reroute()
        elif remarked and (self._state.host is None or self._state.host.by_mark):
            self._state.put("oif", UNKNOWN)
        if hook not in {"ingress", "forward"}:
            self._translated.add("dst" if hook in _BEFORE_ROUTING else "src")  # a packet that loops is asked no more
        return None

    def _forwarded(self, out: object) -> None:
        """Routing gives a packet its way out, and takes a hop off it (ip_forward, ip6_forward: before the hook)."""
        self._state.put("oif", out)
        if out is UNKNOWN and (name := self._route_out()) is not None:
            self._packet["oif"] = name
        if isinstance(ttl := self._packet.get("ttl", UNKNOWN), int):
            self._hops = ttl
            if ttl > 0:
                self._state.put("ttl", ttl - 1)
        elif ttl is UNKNOWN:
            self._state.put("ttl", UNKNOWN)

    def _routed(self, out: object) -> tuple[str, ...]:
        """The hooks behind prerouting."""
        kind = self._packet.get("daddr_type", UNKNOWN)
        if kind is UNKNOWN:
            here = out in {"", UNKNOWN} and self._state.choose("routing", ("routing",), "whether it is for this host")
        else:
            here = kind in _LOCAL_TYPES
        return WAYS["input"][2:] if here else WAYS["forward"][2:]

    def _looped(self) -> tuple[str, ...]:
        """The hooks that a packet passes when the loopback device brings it in again: its state and mark stay."""
        if self._packet.get("oif") != _LOOPBACK:
            return ()
        self._state.put("iif", _LOOPBACK)
        self._state.put("oif", "")
        self._state.put("packet_type", _HOST)
        self._state.put("reverse_path", 1)  # nft_fib_is_loopback, rpfilter_is_loopback
        self._state.assign(LEFT_ONCE)
        for field in ("skuid", "skgid"):
            self._state.put(field, UNKNOWN)
        return WAYS["input"][1:]

    def _routing_key(self) -> tuple[object, ...]:
        """What chains of type route have a packet routed again for (nft_chain_route.c, iptable_mangle.c)."""
        return tuple(self._packet.get(name, UNKNOWN) for name in ("mark", "saddr", "daddr", "tos"))

    def _reroute(self) -> None:
        """Behind output, a packet with another destination than it was sent to is routed again (ip_route_me_harder)."""
        kind = self._packet.get("daddr_type", UNKNOWN)
        if kind is UNKNOWN:
            self._state.put("oif", UNKNOWN)
        elif kind == _LOCAL:
            self._state.put("oif", _LOOPBACK)
        else:
            name = self._route_out()
            self._state.put("oif", UNKNOWN if name is None else name)

    def _route_out(self) -> str | None:
        address, host = self._packet.get("daddr"), self._state.host
        if host is None or not isinstance(address, int):
            return None
        return host.out_interface(self._state.version, address)

    def _outcome(self, verdict: str, decided: int | None) -> Outcome:
        path = Path(tuple(self._steps), verdict, decided, self._hook or None)
        return Outcome(path, tuple(self._state.assumed), self._packet, tuple(self._passed or ()), self._hops)

    # --- chains and rules ---

    def _base(self, known: KnownChain) -> str:
        chain = known.chain
        if chain.hook in {"ingress", "egress"} and not self._is_device(chain.device, chain.hook):
            return "continue"
        if chain.type == "nat" and not self._nat_wanted():
            return "continue"
        verdict = self._chain(known, known)
        if verdict is not None:
            return verdict
        policy = chain.policy or "accept"
        self._take(
            Step(chain.hook, chain.priority, chain.kind, chain.family, chain.table, chain.name, "policy", None, policy),
            known,
        )
        return policy

    def _is_device(self, devices: str | None, hook: str) -> bool:
        if devices is None:
            return True
        return self._state.holds(Named("iif" if hook == "ingress" else "oif", tuple(devices.split(","))))

    def _nat_wanted(self) -> bool:
        """Whether nf_nat asks its chains: for the first packet of a flow, once in each direction."""
        direction = "dst" if self._hook in _BEFORE_ROUTING else "src"
        if direction in self._translated or self._packet.get("first") == 0:
            return False
        if self._state.holds(In("ct_state", single(CT_STATES.index("new")))):
            return True
        if not self._state.holds(In("ct_state", single(CT_STATES.index("related")))):
            return False
        return not self._state.holds(In("protocol", normal([(1, 1), (58, 58)])))

    def _chain(self, known: KnownChain, base: KnownChain) -> str | None:
        """The verdict that ended the packet's way through the base chain; None if it came out of this chain."""
        if known.key in self._inside:
            raise ValueError(f"chain {known.chain.name} of table {known.chain.table} leads back to itself")
        if len(self._inside) >= _MOST_DEEP:
            raise ValueError(f"more than {_MOST_DEEP} chains inside each other, at {known.chain.name}")
        self._inside.add(known.key)
        try:
            for rule, meaning in known.items():
                verdict = self._matched(rule, meaning)
                if verdict is None:
                    continue
                self._take(self._course.step(base, rule, verdict.kind, verdict.chain), base)
                if verdict.kind in _ENDINGS:
                    return verdict.kind
                if verdict.kind == "return":
                    return None
                if verdict.kind in {"jump", "goto"}:
                    target = self._course.target(rule, verdict.chain or "")
                    ended = None if target is None else self._chain(target, base)
                    if ended is not None or verdict.kind == "goto":
                        return ended
            if known.chain.hook is None:
                chain, top = known.chain, base.chain
                end = Step(
                    top.hook, top.priority, chain.kind, chain.family, chain.table, chain.name, "return", None, "return"
                )
                self._take(end, base)
            return None
        finally:
            self._inside.discard(known.key)

    def _take(self, step: Step, base: KnownChain) -> None:
        self._steps.append(step)
        self._weights.append(weight(step, base.chain.type == "nat"))

    def _matched(self, rule: Rule, meaning: Meaning) -> Verdict | None:
        """What a rule does with the packet; None if it does not match."""
        self._state.rule = rule
        for part in meaning.parts:
            if isinstance(part, In | Named | AnyOf | Atom):
                if not self._state.holds(part):
                    self._pass_over(rule, part)
                    return None
            elif isinstance(part, Verdict):
                return part
            elif isinstance(part, Assign):
                self._state.assign(part)
            elif isinstance(part, Nat):
                if part.family is not None and part.family != self._state.version:
                    continue
                self._translated.add("dst" if self._hook in _BEFORE_ROUTING else "src")
                self._state.translate(part, self._hook)
                return _ACCEPT
            elif isinstance(part, Branches):
                found = next((verdict for case, verdict in part.cases if self._state.holds(case)), None)
                if found is None:
                    self._pass_over(rule, part)
                return found
        return _CONTINUE

    def _pass_over(self, rule: Rule, term: Term | Branches) -> None:
        if self._passed is not None:
            self._passed.append(Passed(len(self._steps), rule, term, dict(self._packet)))


_ACCEPT, _CONTINUE = Verdict("accept"), Verdict("continue")
