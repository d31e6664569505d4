"""Packets near what rules ask, hosts near the packets, and whether walk and columns say the same of them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from conntracker.lab.trials.aim import tests_of
from conntracker.rules.decide import VERDICTS, Column, Decisions
from conntracker.rules.fields import FIELDS, NAMES, ROUTE_TYPES, width_of
from conntracker.rules.host import Host, Route
from conntracker.rules.intervals import normal
from conntracker.rules.ruleset import ChainKey, Meaning, Ruleset, namespace_of
from conntracker.rules.terms import AnyOf, Assign, Branches, In, Named, Nat, Part, Test, Verdict
from conntracker.rules.walk import Answer

Packet = dict[str, int | str | None]

_PROTOCOLS = (6, 6, 6, 17, 17, 1, 58, 132, 47)
_TYPES = tuple(ROUTE_TYPES.index(name) for name in ("unicast", "unicast", "local", "broadcast", "multicast"))
# Fields of which a packet may not say the value.
_HIDDEN = (
    "saddr", "daddr", "sport", "dport", "ct_state", "ct_status", "ct_mark", "mark", "ttl", "tos", "oif", "iif",
    "fragment", "protocol", "icmp_type", "tcp_flags", "packet_type", "skuid", "length", "mac", "ct_direction",
)  # fmt: skip
_DERIVED = ("saddr_type", "daddr_type", "reverse_path")


class Near:
    """Packets of one IP version near the rules of a ruleset. `draw` is all its chance."""

    def __init__(self, ruleset: Ruleset, version: int, draw: random.Random) -> None:
        self.version, self.draw = version, draw
        self.values: dict[str, list[int]] = defaultdict(list)
        self.names = ["", "lo", "eth0", "nowhere"]
        self.targets: list[tuple[Part, ...]] = []
        self._callers: dict[ChainKey, list[tuple[Part, ...]]] = defaultdict(list)
        names: set[str] = set()
        for known in ruleset.chains:
            if known.chain.family not in {"inet", "netdev", {4: "ip", 6: "ip6"}[version]}:
                continue
            for rule, meaning in known.items():
                self._take(meaning, names)
                for target in _jumps(meaning.parts):
                    key = namespace_of(rule.kind), rule.family, rule.table, target
                    self._callers[key].append(meaning.parts)
                self.targets.append(meaning.parts)
        self._chain_of = {id(meaning.parts): known.key for known in ruleset.chains for meaning in known.meanings}
        self.names += sorted(names)

    def _take(self, meaning: Meaning, names: set[str]) -> None:
        for test in _tests(meaning.parts):
            if isinstance(test, Named):
                names.update(pattern.replace("*", end) for pattern in test.patterns for end in ("7", ""))
            else:
                top = (1 << width_of(test.field, self.version)) - 1
                near = (end + by for pair in test.values for end in pair for by in (-1, 0, 1))
                self.values[test.field] += [value for value in near if 0 <= value <= top]
        for part in meaning.parts:
            if isinstance(part, Nat) and part.addresses is not None:
                for field in ("saddr", "daddr"):
                    low, high = part.addresses
                    if high >> width_of(field, self.version) == 0:
                        self.values[field] += [low, high]

    # --- hosts ---

    def host(self) -> Host | None:
        """None, or one of which addresses of the rules are its own; with routes or without."""
        draw = self.draw
        if draw.random() < 0.3:
            return None
        width = width_of("saddr", self.version)
        addresses = [*self.values["saddr"], *self.values["daddr"], draw.getrandbits(width)]
        own, cast = (normal((one, one) for one in draw.choices(addresses, k=3)) for _ in range(2))
        primary = {(self.version, name): draw.choice(addresses) for name in draw.choices(self.names, k=3) if name}
        routes = None
        if draw.random() < 0.6:
            routes = tuple(self._route(draw.choice(addresses), width) for _ in range(draw.randint(1, 5)))
        return Host(
            {self.version: own},
            {self.version: cast if self.version == 4 else ()},
            None if routes is None else {self.version: routes},
            primary,
            draw.random() < 0.5,
        )

    def _route(self, address: int, width: int) -> Route:
        free = self.draw.choice((0, width // 4, width // 2, width))
        low = address >> free << free
        name = self.draw.choice([name for name in self.names if name])
        return Route(low, low + (1 << free) - 1, name, self.draw.randrange(2))

    # --- packets ---

    def packet(self, typed: bool) -> Packet:
        """One; `typed` says the types of its addresses, which else follow from the host's."""
        draw, packet = self.draw, self._blank()
        if self.targets and draw.random() < 0.8:
            self._approach(packet, draw.choice(self.targets), 3)
        if not typed:
            for name in _DERIVED:
                del packet[name]
        if draw.random() < 0.25:
            packet["first"] = draw.randrange(2)
        if draw.random() < 0.25:
            for name in draw.sample(_HIDDEN, draw.randint(1, 3)):
                del packet[name]
        return packet

    def _blank(self) -> Packet:
        draw = self.draw
        packet: Packet = {"family": self.version, "fragment": int(draw.random() < 0.02)}
        for name in FIELDS:
            if name not in packet:
                width = width_of(name, self.version)
                packet[name] = draw.choice(self.values.get(name) or [draw.getrandbits(min(width, 30))])
        for name in ("mac", "skuid", "skgid"):
            if draw.random() < 0.3:
                packet[name] = None
        packet |= {"saddr_type": draw.choice(_TYPES), "daddr_type": draw.choice(_TYPES)}
        packet |= {"protocol": draw.choice(_PROTOCOLS), "ct_state": draw.choice((0, 1, 2, 3, 3, 3, 4))}
        packet |= {"ct_status": draw.choice((0, 0, 8, 16, 32, 398)), "ttl": draw.choice((0, 1, 2, 63, 64, 65, 255))}
        return packet | {"iif": draw.choice(self.names), "oif": draw.choice(self.names)}

    def _approach(self, packet: Packet, parts: tuple[Part, ...], jumps: int) -> None:
        callers = self._callers.get(self._chain_of[id(parts)])
        if callers and jumps:
            self._approach(packet, self.draw.choice(callers), jumps - 1)
        for part in parts:
            self._hold(packet, part)

    def _hold(self, packet: Packet, part: Part) -> None:
        draw = self.draw
        if isinstance(part, In) and part.values and part.field != "family":
            low, high = draw.choice(part.values)
            value = draw.choice((low, high, draw.randint(low, high)))
            if part.mask is not None:
                old = packet.get(part.field) or 0
                value = (int(old) & ~part.mask) | (value & part.mask)
            packet[part.field] = value & ((1 << width_of(part.field, self.version)) - 1)
        elif isinstance(part, Named) and not part.negated:
            packet[part.field] = draw.choice(part.patterns).replace("*", "7")
        elif isinstance(part, AnyOf) and part.boxes and not part.negated:
            for test in draw.choice(part.boxes):
                self._hold(packet, test)
        elif isinstance(part, Branches) and part.cases:
            case = draw.choice(part.cases)[0]
            if isinstance(case, AnyOf):
                self._hold(packet, case)


def _tests(parts: Iterable[Part]) -> Iterator[Test]:
    """Those of terms, and of what changes make of a field."""
    parts = tuple(parts)
    yield from tests_of(parts)
    for part in parts:
        if isinstance(part, Assign) and part.value is not None:
            yield In(part.field, ((part.value, part.value),))


def _jumps(parts: Iterable[Part]) -> Iterator[str]:
    for part in parts:
        ends = (
            [part]
            if isinstance(part, Verdict)
            else [end for _, end in part.cases]
            if isinstance(part, Branches)
            else []
        )
        yield from (end.chain for end in ends if end.chain is not None)


# --- columns ---


def as_columns(packets: list[Packet]) -> dict[str, Column]:
    """Packets as columns: what one does not say is not known, None is a field that it does not have."""
    names = sorted({name for packet in packets for name in packet})
    return {name: _column(name, packets) for name in names}


def _column(name: str, packets: list[Packet]) -> Column:
    known = np.array([name in packet for packet in packets])
    present = np.array([packet.get(name, 0) is not None for packet in packets])
    return Column(_array(name, [packet.get(name) for packet in packets]), known, present)


def _array(name: str, values: list[int | str | None]) -> NDArray[np.generic]:
    if name in NAMES:
        return np.array([str(value or "") for value in values])
    numbers = [int(value or 0) for value in values]
    if name in {"saddr", "daddr"}:
        return np.array([divmod(number, 1 << 64) for number in numbers], np.uint64)
    return np.array(numbers, np.uint64)


# --- comparison ---


class Judge:
    """Compares what the decider says of rows with what the walk says of the packets."""

    def __init__(self, ruleset: Ruleset) -> None:
        rules = (rule for known in ruleset.chains for rule in known.chain.rules)
        self._rules = {id(rule): number for number, rule in enumerate(rules)}
        self._chains = {known.key: number for number, known in enumerate(ruleset.chains)}

    def wanted(self, answer: Answer) -> tuple[str, int, int]:
        """(verdict, number of the deciding rule, of the deciding chain): -1 for none; the first of several."""
        if answer.verdict == VERDICTS[-1]:
            return answer.verdict, -1, -1
        steps = [outcome.path.deciding for outcome in answer.outcomes]
        rules = [self._rules[id(step.rule)] for step in steps if step is not None and step.rule is not None]
        policies = [
            self._chains[namespace_of(step.kind), step.family, step.table, step.chain]
            for step in steps
            if step is not None and step.rule is None
        ]
        return answer.verdict, min(rules, default=-1), min(policies, default=-1) if not rules else -1

    def same(self, decisions: Decisions, row: int, answer: Answer) -> bool:
        """Whether verdict and deciding rule are the same; so they are where the walk gave up."""
        return not answer.whole or told(decisions, row) == self.wanted(answer)


def told(decisions: Decisions, row: int) -> tuple[str, int, int]:
    """(verdict, deciding rule, chain of the deciding policy) of a row, as Judge.wanted."""
    return VERDICTS[decisions.verdict[row]], int(decisions.rule[row]), int(decisions.policy[row])


def reasons(decisions: Decisions, row: int) -> tuple[str, ...]:
    """What a row hangs on, sorted."""
    number = int(decisions.atoms[row])
    return decisions.reasons[number] if number >= 0 else ()
