"""rules.decide: what becomes of many packets, against the plainest decider there is."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from conntracker.lab.trials.generate import random_ruleset
from conntracker.rules.decide import VERDICTS, Column, Decider, Decisions, decide
from conntracker.rules.host import Host, Route
from conntracker.rules.intervals import complement, normal, single
from conntracker.rules.ruleset import KnownChain, Ruleset
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
from conntracker.rules.walk import Course, walk
from support.near import Judge, Near, as_columns
from support.plain_rules import chain, outcomes

ACCEPT, DROP, RETURN = Verdict("accept"), Verdict("drop"), Verdict("return")
Packet = dict[str, Any]


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


def one(rules: Ruleset, way: str = "input", host: Host | None = None, **fields: Any) -> tuple[str, str | None]:
    """(verdict, name of the chain that decided with the position of its rule, 0 for its policy) of one packet."""
    packet = {name: value for name, value in (BASIC | fields).items() if value != "?"}
    found = decide(rules, columns([packet]), way, host=host)
    rule, policy = int(found.rule[0]), int(found.policy[0])
    if rule >= 0:
        return verdicts(found)[0], f"{found.rules[rule].chain} {found.rules[rule].position}"
    return verdicts(found)[0], f"{found.chains[policy].chain.name} 0" if policy >= 0 else None


TCP22 = (In("protocol", single(6)), In("dport", single(22)))
SIMPLE = ruleset(
    chain("in", (*TCP22, ACCEPT), (Atom("limit", "1/s", "x"), Verdict("reject")), hook="input", policy="drop")
)


@pytest.mark.parametrize(
    ("fields", "verdict", "decided"),
    [
        ({}, "accept", "in 1"),
        ({"dport": 23}, "undecided", None),
        ({"protocol": 1}, "undecided", None),
        ({"dport": "?"}, "undecided", None),
    ],
)
def test_a_packet_gets_a_verdict_and_the_rule_that_gave_it(
    fields: dict[str, Any], verdict: str, decided: str | None
) -> None:
    """A rule, a policy, or what the verdict hangs on."""
    assert one(SIMPLE, **fields) == (verdict, decided)


def test_what_an_undecided_packet_hangs_on_is_named() -> None:
    """By the texts of matches and of fields that are not known."""
    packets = [BASIC, BASIC | {"dport": 23}, {name: value for name, value in BASIC.items() if name != "dport"}]
    found = decide(SIMPLE, columns(packets), "input")
    assert found.atoms[0] == -1
    assert [found.reasons[number] for number in found.atoms[1:]] == [("1/s",), ("1/s", "the packet's destination port")]


def test_a_verdict_is_definite_when_all_outcomes_agree() -> None:
    """The first of the rules that may have decided is named."""
    rules = ruleset(chain("in", (Atom("limit", "", "x"), ACCEPT), (ACCEPT,), hook="input"))
    assert one(rules) == ("accept", "in 1")


def test_the_accept_of_a_filter_chain_decides_rather_than_a_later_policy_elsewhere() -> None:
    """Rules come before policies, filter chains before those that only prepare."""
    rules = ruleset(
        chain("pre", (ACCEPT,), hook="prerouting"),
        chain("in", (*TCP22, ACCEPT), hook="input"),
        chain("late", hook="input", priority=5),
    )
    assert one(rules) == ("accept", "in 1")
    assert one(rules, dport=1) == ("accept", "late 0")


def test_addresses_of_ipv6_are_compared_in_full() -> None:
    """Both halves count, at borders too."""
    low, high = (1 << 120) + 5, (1 << 120) + (1 << 64)
    rules = ruleset(chain("in", (In("family", single(6)), In("saddr", ((low, high),)), DROP), hook="input"))
    for address, verdict in ((low - 1, "accept"), (low, "drop"), (high, "drop"), (high + 1, "accept"), (5, "accept")):
        assert one(rules, family=6, saddr=address)[0] == verdict


def test_a_type_of_address_follows_from_the_hosts_addresses_also_behind_nat() -> None:
    """As routing would tell it of the new address."""
    rules = ruleset(
        chain("nat", (In("daddr", single(7)), Nat("dnat", (9, 9), None, "")), hook="prerouting", kind="nat"),
        chain("in", (In("daddr_type", single(2)), ACCEPT), hook="input", policy="drop"),
    )
    host = Host(local={4: ((9, 9),)})
    assert [one(rules, host=host, daddr=daddr)[0] for daddr in (9, 7, 8)] == ["accept", "accept", "drop"]
    assert one(rules, daddr=9)[0] == "undecided"


def test_a_way_that_is_none_and_packets_without_family_are_refused() -> None:
    """With ValueError."""
    with pytest.raises(ValueError, match="way"):
        Decider(SIMPLE, "sideways")
    with pytest.raises(ValueError, match="family"):
        decide(SIMPLE, {}, "input")


def test_a_chain_that_leads_back_to_itself_is_refused() -> None:
    """No kernel loads one."""
    rules = ruleset(chain("a", (Verdict("jump", "a"),)), chain("in", (Verdict("jump", "a"),), hook="input"))
    with pytest.raises(ValueError, match="leads back"):
        one(rules)


# --- what the kernel does between rules ---


def test_a_packet_that_is_forwarded_has_one_hop_less() -> None:
    """From the forward hook on; a TTL that a rule set is lowered too, and none is less than 0."""
    rules = ruleset(
        chain("pre", (In("mark", single(1)), Assign("ttl", 9, 255)), hook="prerouting"),
        chain("fwd", (In("ttl", normal([(8, 8), (63, 63)])), DROP), hook="forward"),
    )
    found = [
        one(rules, "forward", ttl=ttl, mark=mark)[0] for ttl, mark in ((64, 0), (63, 0), (0, 0), (64, 1), ("?", 1))
    ]
    assert found == ["drop", "accept", "accept", "drop", "drop"]
    assert one(rules, "forward", ttl="?") == ("undecided", None)


@pytest.mark.parametrize(
    ("nat", "fields", "verdict"),
    [
        (Nat("dnat", (9, 9), None, ""), {}, "drop"),
        (Nat("dnat", (9, 9), None, ""), {"daddr": 9}, "accept"),
        (Nat("dnat", (9, 9), None, ""), {"ct_state": 1}, "accept"),
        (Nat("dnat", (9, 10), None, ""), {"daddr": 9}, "drop"),
        (Nat("dnat", None, (22, 22), ""), {}, "accept"),
        (Nat("dnat", None, (23, 23), ""), {}, "drop"),
        (Nat("dnat", None, (23, 23), ""), {"protocol": 1}, "accept"),
        (Nat("redirect", None, None, ""), {}, "drop"),
        (Nat("redirect", None, None, ""), {"daddr": 7}, "accept"),
        (Nat("dnat", (9, 9), None, "", 6), {}, "accept"),
    ],
)
def test_nat_that_changes_anything_is_seen_in_the_flows_status(nat: Nat, fields: Packet, verdict: str) -> None:
    """The bit is set for what became another, and for what is not known."""
    rules = ruleset(
        chain("nat", (nat,), hook="prerouting", kind="nat"),
        chain("in", (In("ct_status", single(32), 32), DROP), hook="input"),
    )
    host = Host(primary={(4, "eth0"): 7})
    assert one(rules, host=host, **fields)[0] == verdict


ROUTES = (Route(0, 99, "eth0"), Route(9, 9, "eth1"))


@pytest.mark.parametrize(
    ("host", "daddr", "verdict"),
    [
        (Host(routes={4: ROUTES}), 2, "accept"),
        (Host(routes={4: ROUTES}), 9, "reject"),
        (Host({4: ((9, 9),)}, routes={4: ROUTES}), 2, "drop"),
        (None, 2, "undecided"),
        (None, 9, "reject"),
    ],
)
def test_a_packet_that_gets_another_destination_behind_output_is_routed_again(
    host: Host | None, daddr: int, verdict: str
) -> None:
    """To where the host's routes lead; to itself, it comes in again."""
    rules = ruleset(
        chain("nat", (Nat("dnat", (9, 9), None, ""),), hook="output", kind="nat"),
        chain("post", (Named("oif", ("eth7",)), Verdict("reject")), hook="postrouting"),
        chain("in", (Named("iif", ("lo",)), DROP), hook="input"),
    )
    assert one(rules, "output", host, daddr=daddr, oif="eth7")[0] == verdict


@pytest.mark.parametrize(("by_mark", "verdict"), [(True, "undecided"), (False, "drop")])
def test_a_mark_may_send_a_packet_that_is_made_here_another_way(by_mark: bool, verdict: str) -> None:
    """Behind a chain of type route, if policy routing asks for marks."""
    rules = ruleset(
        chain("marks", (Assign("mark", 1, 0xFFFFFFFF),), hook="output", kind="route"),
        chain("post", (Named("oif", ("eth7",)), DROP), hook="postrouting"),
    )
    assert one(rules, "output", Host(by_mark=by_mark), oif="eth7")[0] == verdict
    assert one(rules, "output", Host(by_mark=by_mark), oif="eth7", mark=1)[0] == "drop"


def test_a_limit_that_is_asked_twice_may_answer_twice() -> None:
    """Other questions have the same answer for one packet."""
    for atom, verdict in ((Atom("limit", "1/s", "x"), "undecided"), (Atom("time", "noon"), "accept")):
        rules = ruleset(
            chain("asked", (atom, RETURN), (DROP,)),
            chain("in", (atom, Verdict("goto", "asked")), hook="input"),
        )
        assert one(rules, mark=0)[0] == verdict


def test_notrack_reaches_packets_of_no_flow_and_a_zone_hides_the_flow() -> None:
    """Behind connection tracking only invalid ones; what is found in another zone is not known."""
    untracked = (In("ct_state", single(4)), DROP)
    late = ruleset(chain("in", (Assign("ct_state", 4, 7),), untracked, hook="input"))
    assert [one(late, ct_state=state)[0] for state in (0, 1, 3)] == ["drop", "accept", "accept"]
    zone = ruleset(
        chain("raw", (Assign("ct_state", None, 7),), hook="prerouting", priority=-300),
        chain("in", (In("ct_state", single(3)), DROP), hook="input"),
    )
    assert one(zone, ct_state=3)[0] == "undecided"


@pytest.mark.parametrize(("saddr", "iif", "verdict"), [(5, "eth0", "drop"), (9, "eth0", "accept"), (9, "eth1", "drop")])
def test_the_reverse_path_follows_from_routes(saddr: int, iif: str, verdict: str) -> None:
    """Unless the packet says it."""
    rules = ruleset(chain("pre", (In("reverse_path", single(1)), DROP), hook="prerouting"))
    host = Host(routes={4: tuple(Route(one.low + (1 << 24), one.high + (1 << 24), one.interface) for one in ROUTES)})
    assert one(rules, host=host, saddr=saddr + (1 << 24), iif=iif)[0] == verdict
    assert one(rules, host=host, saddr=saddr, iif=iif, reverse_path=0)[0] == "accept"


def test_questions_that_change_nothing_are_no_reasons() -> None:
    """Only those whose answers lead to different verdicts are named."""
    rules = ruleset(
        chain(
            "in",
            (Atom("limit", "1/s", "x"), Assign("mark", 1, 1)),
            (Atom("limit", "2/s", "y"), In("dport", single(22)), DROP),
            hook="input",
        )
    )
    found = decide(rules, columns([{name: value for name, value in BASIC.items() if name != "dport"}]), "input")
    assert [found.reasons[number] for number in found.atoms] == [("2/s", "the packet's destination port")]


# --- random rulesets ---

_SETS = {
    "saddr": [(1, 1), (0, 2), (3, 9)], "daddr": [(2, 2), (0, 1), (5, 9)], "protocol": [(6, 6), (17, 17), (1, 1)],
    "dport": [(22, 22), (20, 30), (80, 65535)], "sport": [(0, 1), (2, 9)], "mark": [(0, 0), (1, 1), (2, 3)],
    "ct_state": [(3, 3), (0, 1), (4, 4)], "ct_mark": [(0, 0), (1, 3)], "fragment": [(0, 0), (1, 1)],
    "mac": [(7, 7)], "reverse_path": [(1, 1)], "ct_direction": [(0, 0)], "tcp_flags": [(2, 2), (18, 18)],
    "icmp_type": [(135, 135), (0, 8)], "ttl": [(0, 0), (1, 2), (63, 64)], "ct_status": [(0, 0), (8, 8), (16, 40)],
}  # fmt: skip
_FULL = {
    "saddr": (1 << 32) - 1,
    "daddr": (1 << 32) - 1,
    "dport": 65535,
    "sport": 65535,
    "ct_state": 7,
    "mac": 2**48 - 1,
}


ATOMS = (Atom("limit", "1/s", "a"), Atom("limit", "2/s", "b"), Atom("time", "noon"), Atom("time", "noon", "", True))
PATTERNS = (("eth0",), ("eth*",), ("lo",), ("wlan*", "eth1"), ("eth*", "eth0", ""))
CALLS = tuple(Verdict(kind, name) for name in ("one", "two") for kind in ("jump", "goto"))
NATS = (
    Nat("dnat", (5, 5), None, "x"), Nat("dnat", (6, 6), None, "v", 6),
    Nat("dnat", (9, 9), (80, 80), "y"), Nat("netmap", (8, 9), None, "z"),
)  # fmt: skip
CHANGES = (
    Assign("mark", 1, 1), Assign("mark", 2, 3), Assign("mark", 3, 0xFFFFFFFF), Assign("ct_mark", 1, 1),
    Assign("ct_mark", 0, 0xFFFFFFFF), Assign("mark", 1, 0xFFFFFFFF, "ct_mark", 1), Assign("mark", 0, 3, "ct_mark", 3),
    Assign("ct_mark", 0, 1, "mark", 1), Assign("ct_state", 4, 7), Assign("ct_state", None, 7), Assign("ttl", 64, 255),
    Assign("dport", 22, 65535), Effect("log", "log"),
)  # fmt: skip


class Maker:
    """Random rulesets over few values, and packets that meet them."""

    def __init__(self, seed: int) -> None:
        self.pick = random.Random(seed)  # noqa: S311

    def test(self) -> In | Named:
        """A plain test."""
        pick = self.pick
        if pick.randrange(5) == 0:
            return Named(pick.choice(["iif", "oif"]), pick.choice(PATTERNS), pick.random() < 0.5)
        name = pick.choice(sorted(_SETS))
        if name == "ct_status":
            return In(name, *pick.choice([(single(16), 16), (single(32), 32), (single(0), 32), (single(8), None)]))
        if name in ("tcp_flags", "mark") and pick.random() < 0.5:
            return In(name, pick.choice([single(0), normal([(1, 2)])]), 2)
        values = normal(pick.choices(_SETS[name], k=pick.randint(1, 2)))
        return In(name, complement(values, 0, _FULL[name]) if name in _FULL and pick.random() < 0.5 else values)

    def any_of(self, negated: bool) -> AnyOf:
        """A few boxes."""
        boxes = (tuple(self.test() for _ in range(self.pick.randint(1, 2))) for _ in range(self.pick.randint(1, 3)))
        return AnyOf(tuple(boxes), negated)

    def case(self) -> AnyOf | Atom:
        """The key of a verdict map."""
        return self.pick.choice(ATOMS) if self.pick.random() < 0.2 else self.any_of(self.pick.random() < 0.1)

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
            if pick.random() < 0.2:
                cases = [(self.case(), pick.choice(verdicts)) for _ in range(pick.randint(1, 3))]
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
            chain("marks", *self.rules(count=2), hook="output", priority=-150, kind="route"),
            chain("onat", *self.rules(NATS, 2), hook="output", priority=-100, kind="nat"),
            chain("post", *self.rules(CALLS, 3), hook="postrouting"),
        )

    def packet(self, gaps: bool) -> Packet:
        """A packet of which most is known; with gaps, not all."""
        pick = self.pick
        packet: Packet = {name: pick.choice([end for pair in pairs for end in pair]) for name, pairs in _SETS.items()}
        packet |= {"family": pick.choice([4, 6]), "iif": pick.choice(["eth0", "eth12", "lo", "x"])}
        packet |= {"oif": pick.choice(["", "eth0", "wlan3", "lo"]), "ct_state": pick.randint(0, 4)}
        packet["protocol"] = pick.choice([1, 6, 17, 58, 47])
        if pick.random() < 0.3:
            packet["first"] = pick.randrange(2)
        if pick.random() < 0.5:
            packet["mac"] = None
        if gaps:
            for name in pick.sample(["fragment", "reverse_path", "ct_direction"], pick.randrange(3)):
                packet.pop(name)
        return packet


@pytest.mark.parametrize("seed", range(40))
def test_columns_are_decided_as_single_packets_are(seed: int) -> None:
    """Each row has the verdict that its packet gets whatever is not known, or is undecided where it has several."""
    maker = Maker(seed)
    rules = maker.ruleset()
    packets = [maker.packet(gaps=True) for _ in range(12)]
    for way in ("input", "forward", "output"):
        for packet, verdict in zip(packets, verdicts(decide(rules, columns(packets), way)), strict=True):
            possible = outcomes(rules, packet, way)
            assert verdict == (next(iter(possible)) if len(possible) == 1 else "undecided"), (packet, way)


@pytest.mark.parametrize("seed", range(100, 110))
def test_the_deciding_rule_is_that_of_the_walk(seed: int) -> None:
    """Where nothing was taken for granted, both name the same rule or policy."""
    maker = Maker(seed)
    rules = maker.ruleset()
    packets = [maker.packet(gaps=False) for _ in range(25)]
    for way in ("input", "forward"):
        found = decide(rules, columns(packets), way)
        for row, packet in enumerate(packets):
            answer = walk(rules, packet, way)
            assert verdicts(found)[row] == answer.verdict
            if len(answer.outcomes) == 1:
                step = answer.outcomes[0].path.deciding
                rule, policy = int(found.rule[row]), int(found.policy[row])
                assert (step.rule if step else None) == (found.rules[rule] if rule >= 0 else None)
                if step is not None and step.rule is None:
                    assert found.chains[policy].chain.name == step.chain


@pytest.mark.parametrize("kind", ["iptables", "ip6tables"])
@pytest.mark.parametrize("seed", range(200, 205))
def test_columns_and_the_walk_say_the_same_of_rulesets_of_every_match(kind: str, seed: int) -> None:
    """Verdicts and what decided, of packets near the rules, on hosts that know routes or do not."""
    rules = Ruleset.parse(random_ruleset(seed, kind), family={"iptables": "ip", "ip6tables": "ip6"}[kind])
    (version,) = rules.families()
    near, course, judge = Near(rules, version, random.Random(seed)), Course(rules, version), Judge(rules)  # noqa: S311
    for way in ("input", "forward", "output"):
        host, packets = near.host(), [near.packet(number % 2 == 0) for number in range(40)]
        found = decide(rules, as_columns(packets), way, host=host)
        for row, packet in enumerate(packets):
            assert judge.same(found, row, walk(course, packet, way, host=host)), (packet, way, host)
