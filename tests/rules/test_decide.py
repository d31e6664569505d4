"""rules.decide: what becomes of many packets, against the plainest decider there is."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from support.plain_rules import outcomes

from conntracker.rules.chain import Chain
from conntracker.rules.decide import VERDICTS, Column, Decider, Decisions, decide
from conntracker.rules.host import Host
from conntracker.rules.intervals import complement, normal, single
from conntracker.rules.ruleset import KnownChain, Meaning, Ruleset
from conntracker.rules.terms import (
    AnyOf,
    Assign,
    Atom,
    Branches,
    Effect,
    In,
    Named,
    Nat,
    Part,
    Verdict,
)
from conntracker.rules.walk import walk
from conntracker.steps import Rule

ACCEPT, DROP, RETURN = Verdict("accept"), Verdict("drop"), Verdict("return")
WIDTHS = {"saddr": 32, "daddr": 32, "sport": 16, "dport": 16}
Packet = dict[str, Any]


def chain(
    name: str,
    *rules: tuple[Part, ...],
    hook: str | None = None,
    priority: int = 0,
    policy: str = "accept",
    kind: str = "filter",
    family: str = "inet",
) -> KnownChain:
    """A chain of nft's table `t` (of nat's chains `n`)."""
    texts = tuple(
        Rule("nft", family, "t", name, number, number, str(parts)) for number, parts in enumerate(rules, 1)
    )
    where = (hook, priority, policy, kind) if hook else (None, None, None, None)
    return KnownChain(Chain("nft", family, "t", name, *where, None, texts), tuple(Meaning(parts) for parts in rules))


def ruleset(*chains: KnownChain) -> Ruleset:
    """Chains of one table."""
    return Ruleset(chains)


def columns(packets: list[Packet]) -> dict[str, Column]:
    """Packets as columns: a key that is missing is not known, None is a field that is not there."""
    out = {}
    for name in sorted({name for packet in packets for name in packet}):
        known = np.array([name in packet for packet in packets])
        present = np.array([packet.get(name, 0) is not None for packet in packets])
        if name in ("iif", "oif"):
            out[name] = Column(np.array([packet.get(name) or "" for packet in packets]), known, present)
        elif name in ("saddr", "daddr"):
            pairs = [divmod(packet.get(name) or 0, 1 << 64) for packet in packets]
            out[name] = Column(np.array(pairs, np.uint64), known, present)
        else:
            out[name] = Column(np.array([packet.get(name) or 0 for packet in packets], np.uint64), known, present)
    return out


def verdicts(decisions: Decisions) -> list[str]:
    """The verdicts as words."""
    return [VERDICTS[number] for number in decisions.verdict]


BASIC: Packet = {
    "family": 4, "saddr": 1, "daddr": 2, "protocol": 6, "fragment": 0, "sport": 1, "dport": 22, "ct_state": 3,
    "ct_status": 0, "ct_direction": 0, "ct_mark": 0, "mark": 0, "iif": "eth0", "oif": "", "tcp_flags": 2,
    "mac": None, "skuid": None,
}  # fmt: skip

# --- random rulesets ---

_SETS = {
    "saddr": [(1, 1), (0, 2), (3, 9)], "daddr": [(2, 2), (0, 1), (5, 9)], "protocol": [(6, 6), (17, 17), (1, 1)],
    "dport": [(22, 22), (20, 30), (80, 65535)], "sport": [(0, 1), (2, 9)], "mark": [(0, 0), (1, 1), (2, 3)],
    "ct_state": [(3, 3), (0, 1), (4, 4)], "ct_mark": [(0, 0), (1, 3)], "fragment": [(0, 0), (1, 1)],
    "mac": [(7, 7)], "reverse_path": [(1, 1)], "ct_direction": [(0, 0)], "tcp_flags": [(2, 2), (18, 18)],
    "icmp_type": [(135, 135), (0, 8)],
}  # fmt: skip
_FULL = {"saddr": (1 << 32) - 1, "daddr": (1 << 32) - 1, "dport": 65535, "sport": 65535, "ct_state": 7, "mac": 2**48 - 1}


ATOMS = (Atom("limit", "1/s", "a"), Atom("limit", "2/s", "b"), Atom("time", "noon"), Atom("time", "noon", "", True))
PATTERNS = (("eth0",), ("eth*",), ("lo",), ("wlan*", "eth1"), ("eth*", "eth0", ""))
CALLS = tuple(Verdict(kind, name) for name in ("one", "two") for kind in ("jump", "goto"))
NATS = (Nat("dnat", (5, 5), None, "x"), Nat("dnat", (9, 9), (80, 80), "y"), Nat("netmap", (8, 9), None, "z"))
CHANGES = (
    Assign("mark", 1, 1), Assign("mark", 2, 3), Assign("mark", 3, 0xFFFFFFFF), Assign("ct_mark", 1, 1),
    Assign("ct_mark", 0, 0xFFFFFFFF), Assign("mark", 1, 0xFFFFFFFF, "ct_mark", 1), Assign("mark", 0, 3, "ct_mark", 3),
    Assign("ct_mark", 0, 1, "mark", 1), Assign("ct_state", 4, 7), Assign("dport", 22, 65535), Effect("log", "log"),
)  # fmt: skip


class Maker:
    """Random rulesets over few values, and packets that meet them."""

    def __init__(self, seed: int) -> None:
        self.pick = random.Random(seed)

    def test(self) -> In | Named:
        """A plain test."""
        pick = self.pick
        if pick.randrange(5) == 0:
            return Named(pick.choice(["iif", "oif"]), pick.choice(PATTERNS), pick.random() < 0.5)
        name = pick.choice(sorted(_SETS))
        if name in ("tcp_flags", "mark") and pick.random() < 0.5:
            return In(name, pick.choice([single(0), normal([(1, 2)])]), 2)
        values = normal(pick.choices(_SETS[name], k=pick.randint(1, 2)))
        return In(name, complement(values, 0, _FULL[name]) if name in _FULL and pick.random() < 0.5 else values)

    def any_of(self, negated: bool) -> AnyOf:
        """A few boxes."""
        boxes = (tuple(self.test() for _ in range(self.pick.randint(1, 2))) for _ in range(self.pick.randint(1, 3)))
        return AnyOf(tuple(boxes), negated)

    def part(self) -> Part:
        """Something that a rule asks or changes."""
        pick = self.pick
        kind = pick.randrange(8)
        if kind < 4:
            return self.test()
        if kind < 6:
            return self.any_of(pick.random() < 0.5)
        return pick.choice(ATOMS if kind == 6 else CHANGES)

    def rules(self, more: tuple[Part, ...] = (), count: int = 4) -> list[tuple[Part, ...]]:
        """The rules of a chain; `more` are things they can end with."""
        pick = self.pick
        ends = [ACCEPT, DROP, RETURN, Verdict("reject"), Verdict("continue"), Verdict("queue"), *more]
        verdicts = [one for one in ends if isinstance(one, Verdict)]
        out = []
        for _ in range(pick.randint(0, count)):
            parts = [self.part() for _ in range(pick.randint(0, 3))]
            if any(isinstance(part, Assign) and part.source == "ct_mark" for part in parts):
                parts.insert(0, In("ct_state", normal([(1, 3)])))  # as parsers do: there is a mark to read
            if pick.random() < 0.2:
                cases = [(self.any_of(False), pick.choice(verdicts)) for _ in range(pick.randint(1, 2))]
                parts.append(Branches(tuple(cases)))
            elif pick.random() < 0.8:
                parts.append(pick.choice(ends))
            out.append(tuple(parts))
        return out

    def ruleset(self) -> Ruleset:
        """A few chains that call each other."""
        return ruleset(
            chain("two", *self.rules()),
            chain("one", *self.rules(CALLS[2:])),
            chain("in", *self.rules(CALLS), hook="input", policy=self.pick.choice(["accept", "drop"])),
            chain("late", *self.rules(CALLS), hook="input", priority=10),
            chain("raw", *self.rules(count=2), hook="prerouting", priority=-300),
            chain("nat", *self.rules(NATS), hook="prerouting", priority=-100, kind="nat"),
            chain("nat2", *self.rules(NATS, 2), hook="prerouting", priority=-90, kind="nat"),
            chain("fwd", *self.rules(CALLS), hook="forward"),
            chain("out", *self.rules(CALLS), hook="output"),
        )

    def packet(self, gaps: bool) -> Packet:
        """A packet of which most is known; with gaps, not all."""
        pick = self.pick
        packet: Packet = {name: pick.choice([end for pair in pairs for end in pair]) for name, pairs in _SETS.items()}
        packet |= {"family": pick.choice([4, 6]), "iif": pick.choice(["eth0", "eth12", "lo", "x"])}
        packet |= {"oif": pick.choice(["", "eth0", "wlan3"]), "ct_state": pick.randint(0, 4)}
        packet["protocol"] = pick.choice([1, 6, 17, 58, 47])
        if pick.random() < 0.3:
            packet["first"] = pick.randrange(2)
        if pick.random() < 0.5:
            packet["mac"] = None
        if gaps:
            for name in pick.sample(["fragment", "reverse_path", "ct_direction"], pick.randrange(3)):
                packet.pop(name)
        return packet


@pytest.mark.parametrize("seed", range(120))
def test_columns_are_decided_as_single_packets_are(seed: int) -> None:
    """Each row has the one verdict that its packet can get, and is undecided where there are several."""
    maker = Maker(seed)
    rules = maker.ruleset()
    packets = [maker.packet(gaps=True) for _ in range(25)]
    for way in ("input", "forward", "output"):
        for packet, verdict in zip(packets, verdicts(decide(rules, columns(packets), way)), strict=True):
            possible = outcomes(rules, packet, way)
            assert verdict == (next(iter(possible)) if len(possible) == 1 else "undecided"), (packet, way)
