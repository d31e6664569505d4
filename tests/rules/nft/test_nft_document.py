"""Pieces of libnftables' JSON, and what they mean."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.rules.errors import RuleSyntaxError
from conntracker.rules.nft import format_json, format_nft, parse_json
from conntracker.rules.ruleset import Meaning, Ruleset
from conntracker.rules.terms import AnyOf, Assign, Atom, Branches, Effect, In, Named, Nat, Verdict

TCP, ACCEPT, IPV4 = In("protocol", ((6, 6),)), Verdict("accept"), In("family", ((4, 4),))
ACCEPTED: dict[str, Any] = {"accept": None}


def payload(protocol: str, field: str) -> dict[str, Any]:
    """A field of a header."""
    return {"payload": {"protocol": protocol, "field": field}}


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    """A comparison."""
    return {"match": {"op": op, "left": left, "right": right}}


def document(*rules: list[Any], family: str = "inet", extra: tuple[Any, ...] = ()) -> dict[str, Any]:
    """A table with a chain of these rules."""
    place = {"family": family, "table": "t"}
    return {
        "nftables": [
            {"table": {"family": family, "name": "t"}},
            *extra,
            {"chain": {**place, "name": "c", "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
            *({"rule": {**place, "chain": "c", "handle": 9 + i, "expr": rule}} for i, rule in enumerate(rules)),
        ]
    }


def only(*statements: Any, family: str = "inet", extra: tuple[Any, ...] = ()) -> Meaning:
    """What a chain's one rule means."""
    found = parse_json(document(list(statements), family=family, extra=extra))
    return found.chains[0].meanings[0]


CASES: list[tuple[list[Any], tuple[Any, ...]]] = [
    ([match(payload("tcp", "flags"), "syn", "in"), ACCEPTED], (TCP, In("tcp_flags", ((1, 2),), 2), ACCEPT)),
    ([match(payload("tcp", "flags"), {"set": ["syn", "ack"]})], (TCP, In("tcp_flags", ((2, 2), (16, 16))))),
    ([match({"&": [payload("tcp", "flags"), ["fin", "syn"]]}, "syn")], (TCP, In("tcp_flags", ((2, 2),), 3))),
    ([match({"ct": {"key": "state"}}, {"|": ["established", "related"]}, "!=")], (In("ct_state", ((0, 4),)),)),
    ([match({"meta": {"key": "mark"}}, 256, "<")], (In("mark", ((0, 255),)),)),
    ([match({">>": [{"meta": {"key": "mark"}}, 8]}, 1)], (In("mark", ((256, 511),)),)),
    ([match({"|": [{"meta": {"key": "mark"}}, 3]}, 7)], (In("mark", ((4, 4),), 0xFFFFFFFC),)),
    ([match({"meta": {"key": "iifname"}}, "eth*", "!=")], (Named("iif", ("eth*",), True),)),
    ([match(payload("th", "dport"), 53)], (Atom("th dport", "th dport 53"),)),
    ([match({"meta": {"key": "l4proto"}}, "tcp"), match(payload("th", "dport"), 53)], (TCP, In("dport", ((53, 53),)))),
    (
        [match({"concat": [{"meta": {"key": "l4proto"}}, payload("th", "dport")]}, {"set": [{"concat": ["tcp", 53]}]})],
        (AnyOf(((TCP, In("dport", ((53, 53),))),)),),
    ),
    ([{"notrack": None}], (Assign("ct_state", 4, 7),)),  # also where the chain comes behind connection tracking
    ([{"reject": {"type": "icmp", "expr": "host-unreachable"}}],
     (IPV4, Verdict("reject", text="with icmp host-unreachable"))),
    ([{"snat": {"family": "ip", "addr": "10.0.0.1"}}],
     (Nat("snat", (167772161,) * 2, None, "snat ip to 10.0.0.1", 4),)),
    ([{"something": {"new": 1}}], (Atom("something", "something new 1"),)),
    ([{"limit": {"rate": 5, "per": "second"}}], (Atom("limit", "limit rate 5/second", "inet/t/c/1/1"),)),
    (
        [{"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"|": [{"meta": {"key": "mark"}}, 5]}}}],
        (Assign("mark", 5, 5),),
    ),
    (
        [{"vmap": {"key": payload("tcp", "dport"), "data": {"set": [[22, ACCEPTED], ["*", {"drop": None}]]}}}],
        (
            TCP,
            Branches((
                (AnyOf(((In("dport", ((22, 22),)),),)), ACCEPT),
                (AnyOf(((In("dport", ((0, 65535),)),),)), Verdict("drop")),
            )),
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("statements", "parts"), CASES, ids=[json.dumps(case[0])[:60] for case in CASES])
def test_statements_mean_what_the_kernel_is_given(statements: list[Any], parts: tuple[Any, ...]) -> None:
    """Each statement becomes the comparison that nft makes of it, behind what nft asks first."""
    assert only(*statements).parts == parts


def test_an_opaque_verdict_map_has_an_atom_for_each_verdict() -> None:
    """Where the key is not known, each verdict of the map stands behind an atom of its own."""
    data = {"set": [[0, {"jump": {"target": "a"}}], [1, ACCEPTED]]}
    (part,) = only({"vmap": {"key": {"numgen": {"mode": "inc", "mod": 2, "offset": 0}}, "data": data}}).parts
    assert isinstance(part, Branches)
    assert [verdict for _, verdict in part.cases] == [Verdict("jump", "a"), ACCEPT]
    assert len({case for case, _ in part.cases}) == 2
    assert all(isinstance(case, Atom) and case.occurrence for case, _ in part.cases)


def named(flags: list[str], elements: list[Any]) -> tuple[Any, ...]:
    """A set of addresses."""
    inner = {"family": "inet", "table": "t", "name": "s", "type": "ipv4_addr", "flags": flags, "elem": elements}
    return ({"set": inner},)


def test_a_set_that_stays_is_resolved() -> None:
    """The elements of a named set stand in the term, and its name among what the rule uses."""
    elements = [{"prefix": {"addr": "10.0.0.0", "len": 8}}, {"elem": {"val": "11.0.0.0", "comment": "next"}}]
    meaning = only(match(payload("ip", "saddr"), "@s"), extra=named(["interval"], elements))
    assert meaning.parts == (IPV4, In("saddr", ((10 << 24, 11 << 24),)))
    assert meaning.uses == ("s",)


@pytest.mark.parametrize("flags", [["timeout"], ["dynamic"]])
def test_a_set_that_changes_is_an_atom(flags: list[str]) -> None:
    """Nobody knows which elements a dynamic set has when the packet comes."""
    meaning = only(match(payload("ip", "saddr"), "@s"), extra=named(flags, ["10.0.0.1"]))
    assert meaning.parts == (IPV4, Atom("set", "ip saddr @s", "inet/t/c/1/1"))


def test_a_set_that_a_rule_updates_is_an_atom() -> None:
    """libnftables 1.0.6 says in its JSON nothing of `dynamic`: rules that fill the set tell."""
    fill = {"set": {"op": "add", "elem": payload("ip", "saddr"), "set": "@s"}}
    found = parse_json(document([fill], [match(payload("ip", "saddr"), "@s")], extra=named([], ["10.0.0.1"])))
    assert found.chains[0].meanings[0].parts == (IPV4, Effect("set", "add @s { ip saddr }"))
    assert found.chains[0].meanings[1].atoms == (Atom("set", "ip saddr @s", "inet/t/c/2/1"),)


def test_counters_are_those_of_packets_that_matched() -> None:
    """A counter in front of a match counts others too, and is none of the rule's."""
    count = {"counter": {"packets": 3, "bytes": 4}}
    assert only(match(payload("tcp", "dport"), 22), count, ACCEPTED).counters == (3, 4)
    assert only(count, match(payload("tcp", "dport"), 22), ACCEPTED).counters is None


def test_a_chain_without_a_name_is_kept() -> None:
    """libnftables writes it as text: its rules become atoms with the verdict that the text tells."""
    found = parse_json(document(["jump {\n\t\t\ttcp dport 5 accept\n\t\t\tdrop\n\t\t}"]))
    base, inner = found.chains
    assert base.meanings[0].parts == (Verdict("jump", inner.chain.name),)
    assert [meaning.verdict for meaning in inner.meanings] == [ACCEPT, Verdict("drop")]
    assert [len(meaning.atoms) for meaning in inner.meanings] == [1, 0]
    assert found.notes


def test_json_comes_back_as_it_was() -> None:
    """What format_json writes, parse_json reads as the same model, rules and sets and all."""
    rules = [statements for statements, _ in CASES]
    found = parse_json(document(*rules, extra=named(["interval"], ["10.0.0.1"])), source="fw.json")
    assert parse_json(format_json(found)) == found
    assert "set s {" in format_nft(found)


BROKEN: list[Any] = [
    "", "{", "[]", "{}", '{"nftables": 1}', '{"nftables": [1]}', '{"nftables": [{"table": {}}]}',
    '{"nftables": [{"rule": {"family": "ip", "table": "t", "chain": "c", "expr": 1}}]}', "[" * 100000,
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_what_is_no_ruleset_is_refused(text: str) -> None:
    """A document of another shape raises RuleSyntaxError with the file's name."""
    with pytest.raises(RuleSyntaxError) as raised:
        parse_json(text, source="fw.json")
    assert raised.value.file == "fw.json"


def test_a_place_of_broken_json_is_told() -> None:
    """The line and column are those of the JSON parser."""
    with pytest.raises(RuleSyntaxError) as raised:
        parse_json('{\n"nftables": [}')
    assert (raised.value.line, raised.value.column) == (2, 14)


WORD_LIST = (
    "match op left right == != in < payload protocol field tcp ip dport saddr flags meta key mark iifname ct state set "
    "concat prefix addr len range vmap map data jump target limit counter mangle value elem val dnat family port & | ^ "
    ">> fib result syn new @s 10.0.0.1 * eth0 conntracker is In log reject th numgen jump{ {accept}"
)
WORDS = st.sampled_from(WORD_LIST.split())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 1 << 33) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=12,
)
LEFTS = st.sampled_from([statement["match"]["left"] for case, _ in CASES for statement in case if "match" in statement])
MATCHES = st.builds(match, LEFTS | VALUES, VALUES, WORDS)


@given(
    st.lists(
        st.lists(VALUES | MATCHES | st.dictionaries(WORDS, VALUES, min_size=1, max_size=1), max_size=4), max_size=3
    )
)
def test_any_rule_gives_a_meaning(rules: list[list[Any]]) -> None:
    """Whatever stands in a rule's statements, it becomes parts that can be written and read back."""
    found = parse_json(document(*rules, extra=named([], ["10.0.0.1"])))
    assert isinstance(found, Ruleset)
    assert parse_json(format_json(found)) == found


@given(VALUES, st.text(max_size=30))
def test_any_document_is_read_or_refused(value: Any, text: str) -> None:
    """No other error than RuleSyntaxError comes out."""
    for candidate in (
        text,
        json.dumps(value),
        json.dumps({"nftables": value}),
        json.dumps({"nftables": [{"set": value}]}),
    ):
        try:
            parse_json(candidate)
        except RuleSyntaxError:
            continue
