"""rules.decide: what becomes of many packets, against the plainest decider there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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


@st.composite
def tests(draw: st.DrawFn) -> In | Named:
    """A plain test."""
    if draw(st.integers(0, 4)) == 0:
        patterns = draw(st.sampled_from([("eth0",), ("eth*",), ("lo",), ("wlan*", "eth1"), ("eth*", "eth0", "")]))
        return Named(draw(st.sampled_from(["iif", "oif"])), patterns, draw(st.booleans()))
    name = draw(st.sampled_from(sorted(_SETS)))
    if name in ("tcp_flags", "mark") and draw(st.booleans()):
        return In(name, draw(st.sampled_from([single(0), normal([(1, 2)])])), 2)
    values = normal(draw(st.lists(st.sampled_from(_SETS[name]), min_size=1, max_size=2)))
    if name in _FULL and draw(st.booleans()):
        values = complement(values, 0, _FULL[name])
    return In(name, values)


ATOMS = st.sampled_from(
    [Atom("limit", "1/s", "a"), Atom("limit", "2/s", "b"), Atom("time", "noon"), Atom("time", "noon", "", True)]
)
BOXES = st.lists(st.lists(tests(), min_size=1, max_size=2).map(tuple), min_size=1, max_size=3).map(tuple)
TERMS = st.one_of(tests(), tests(), tests(), st.builds(AnyOf, BOXES, st.booleans()), ATOMS)
CHANGES = st.one_of(
    st.builds(Assign, st.sampled_from(["mark", "ct_mark"]), st.integers(0, 3), st.sampled_from([1, 3, 0xFFFFFFFF])),
    st.builds(
        Assign, st.just("mark"), st.integers(0, 1), st.just(0xFFFFFFFF), st.just("ct_mark"), st.sampled_from([1, 3])
    ).map(lambda one: one),
    st.just(Assign("ct_state", 4, 7)),
    st.just(Effect("log", "log")),
)


def _rules(jumps: list[Verdict], nat: bool = False) -> st.SearchStrategy[tuple[tuple[Part, ...], ...]]:
    ends: list[Part] = [ACCEPT, DROP, RETURN, Verdict("reject"), Verdict("continue"), Verdict("queue"), *jumps]
    if nat:
        ends = [Nat("dnat", (5, 5), None, "x"), Nat("dnat", (9, 9), (80, 80), "y"), Nat("netmap", (8, 9), None, "z"), *ends]
    verdict = st.sampled_from(ends)
    keyed = st.tuples(st.builds(AnyOf, BOXES), st.sampled_from([one for one in ends if isinstance(one, Verdict)]))
    ending = st.one_of(
        st.just(()), st.tuples(verdict), st.tuples(verdict),
        st.tuples(st.lists(keyed, min_size=1, max_size=2).map(tuple).map(Branches)),
    )  # fmt: skip
    middle = st.lists(st.one_of(TERMS, TERMS, CHANGES), max_size=3).map(tuple)
    rule = st.tuples(middle, ending).map(lambda pair: (*pair[0], *pair[1]))
    return st.lists(rule, max_size=4).map(tuple)


@st.composite
def rulesets(draw: st.DrawFn) -> Ruleset:
    """A few chains that call each other."""
    calls = [Verdict(kind, name) for name in ("one", "two") for kind in ("jump", "goto")]
    chains = [
        chain("two", *draw(_rules([]))),
        chain("one", *draw(_rules(calls[2:]))),
        chain("in", *draw(_rules(calls)), hook="input", policy=draw(st.sampled_from(["accept", "drop"]))),
        chain("late", *draw(_rules(calls)), hook="input", priority=10),
        chain("raw", *draw(_rules([])), hook="prerouting", priority=-300),
        chain("nat", *draw(_rules([], nat=True)), hook="prerouting", priority=-100, kind="nat"),
        chain("fwd", *draw(_rules(calls)), hook="forward"),
    ]
    return ruleset(*chains)


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    """A packet of which most is known."""
    pick = {name: sorted({end for pair in pairs for end in pair}) for name, pairs in _SETS.items()}
    packet = {name: draw(st.sampled_from(ends)) for name, ends in pick.items()}
    packet |= {"family": draw(st.sampled_from([4, 6])), "iif": draw(st.sampled_from(["eth0", "eth12", "lo", "x"]))}
    packet |= {"oif": draw(st.sampled_from(["", "eth0", "wlan3"])), "ct_state": draw(st.integers(0, 4))}
    packet["protocol"] = draw(st.sampled_from([1, 6, 17, 58, 47]))
    if draw(st.booleans()):
        packet["mac"] = None
    for name in draw(st.lists(st.sampled_from(["fragment", "reverse_path", "ct_direction"]), max_size=2)):
        packet.pop(name, None)
    return packet


@settings(max_examples=300, deadline=None)
@given(rulesets(), st.lists(packets(), min_size=1, max_size=12), st.sampled_from(["input", "forward"]))
def test_columns_are_decided_as_single_packets_are(rules: Ruleset, some: list[Packet], way: str) -> None:
    """Each row has the one verdict that its packet can get, and is undecided where there are several."""
    found = verdicts(decide(rules, columns(some), way))
    for packet, verdict in zip(some, found, strict=True):
        possible = outcomes(rules, packet, way)
        assert verdict == (possible.pop() if len(possible) == 1 else "undecided")
