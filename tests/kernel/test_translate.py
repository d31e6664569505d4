"""Files in nft's syntax, translated by the kernel; and the rules in force, read and understood."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from conntracker.rules.errors import RuleSyntaxError
from conntracker.rules.nft import format_nft, parse_json
from conntracker.rules.ruleset import Meaning, Ruleset
from conntracker.rules.terms import AnyOf, Assign, Atom, Branches, Effect, In, Named, Nat, Part, Verdict
from conntracker.sources.live_rules import read_ruleset
from conntracker.sources.netns import Namespace
from conntracker.sources.nftables import OwnedTable
from conntracker.sources.translate import translate

pytestmark = pytest.mark.needs("nft")

IPV4, IPV6 = In("family", ((4, 4),)), In("family", ((6, 6),))
TCP, UDP, ICMP, ICMPV6 = (In("protocol", ((number, number),)) for number in (6, 17, 1, 58))
ACCEPT, DROP = Verdict("accept"), Verdict("drop")
NET, ONE = (10 << 24, 11 * (1 << 24) - 1), (0x01020304, 0x01020304)


def atom(name: str, text: str = "") -> Atom:
    """An atom without a place of its own."""
    return Atom(name, text or name)


# What stands in a chain of an inet table, and what it means; occurrences of atoms are left out.
RULES: list[tuple[str, tuple[Part, ...]]] = [
    ("tcp dport 22 accept", (TCP, In("dport", ((22, 22),)), ACCEPT)),
    ("udp dport != 22-30 drop", (UDP, In("dport", ((0, 21), (31, 65535))), DROP)),
    ("tcp dport < 1024 tcp sport >= 1024", (TCP, In("dport", ((0, 1023),)), In("sport", ((1024, 65535),)))),
    ("tcp flags syn", (TCP, In("tcp_flags", ((1, 2),), 2))),
    ("tcp flags == syn", (TCP, In("tcp_flags", ((2, 2),)))),
    ("tcp flags { syn, ack }", (TCP, In("tcp_flags", ((2, 2), (16, 16))))),
    ("tcp flags & (fin|syn) == syn", (TCP, In("tcp_flags", ((2, 2),), 3))),
    ("tcp flags fin,syn", (TCP, In("tcp_flags", ((1, 3),), 3))),
    ("tcp flags != fin,syn", (TCP, In("tcp_flags", ((0, 2), (4, 255))))),
    ("tcp flags & (fin|syn) == 0", (TCP, In("tcp_flags", ((0, 0),), 3))),
    ("tcp flags != syn / fin,syn", (TCP, In("tcp_flags", ((0, 1), (3, 3)), 3))),
    ("ct state established,related", (In("ct_state", ((1, 2),)),)),
    # The kernel is given `!= 6`, and no packet has both bits.
    ("ct state != established,related", (In("ct_state", ((0, 4),)),)),
    ("ct state != { established, related }", (In("ct_state", ((0, 0), (3, 4))),)),
    ("ct status dnat", (In("ct_status", ((1, 32),), 32),)),
    ("ct status != dnat", (In("ct_status", ((0, 31), (33, 32767))),)),
    ("ct direction reply", (In("ct_direction", ((1, 1),)),)),
    ("ct mark & 0xff00 != 0x100", (In("ct_mark", ((0, 255), (257, 0xFF00)), 0xFF00),)),
    ("ct original ip saddr 1.2.3.4", (atom("ct ip saddr", "ct original ip saddr 1.2.3.4"),)),
    ("ip saddr 10.0.0.0/8", (IPV4, In("saddr", (NET,)))),
    ("ip saddr & 255.0.255.0 == 10.0.5.0", (IPV4, In("saddr", ((167773440,) * 2,), 0xFF00FF00))),
    ("ip6 daddr ::1-::5", (IPV6, In("daddr", ((1, 5),)))),
    ("ip protocol tcp", (IPV4, TCP)),
    ("ip6 nexthdr udp udp dport 53", (IPV6, In("nexthdr", ((17, 17),)), UDP, In("dport", ((53, 53),)))),
    ("meta l4proto { tcp, udp } th dport 53", (In("protocol", ((6, 6), (17, 17))), In("dport", ((53, 53),)))),
    ("th dport 53", (atom("th dport", "th dport 53"),)),
    ("icmp type echo-request", (IPV4, ICMP, In("icmp_type", ((8, 8),)))),
    ("icmpv6 type destination-unreachable icmpv6 code no-route",
     (IPV6, ICMPV6, In("icmp_type", ((1, 1),)), In("icmp_code", ((0, 0),)))),
    ("meta nfproto ipv6", (IPV6,)),
    ("meta protocol ip", (IPV4,)),
    ("ip version 4", (IPV4,)),
    ("ip dscp cs1", (IPV4, In("tos", ((32, 32),), 0xFC))),
    ("ip ecn ce", (IPV4, In("tos", ((3, 3),), 3))),
    ("ip6 length 100", (IPV6, In("length", ((140, 140),)))),
    ("ip frag-off & 0x1fff != 0", (IPV4, In("fragment", ((1, 1),)))),
    ("meta mark & 0xff == 1", (In("mark", ((1, 1),), 255),)),
    ("meta mark > 5", (In("mark", ((6, 0xFFFFFFFF),)),)),
    ("meta pkttype { broadcast, multicast }", (In("packet_type", ((1, 2),)),)),
    ("meta skuid { 0, 1000 }", (In("skuid", ((0, 0), (1000, 1000))),)),
    ("iif != wan0", (Named("iif", ("wan0",), True),)),
    ('oifname { "eth0", "wg*" }', (Named("oif", ("eth0", "wg*")),)),
    ("fib daddr type local", (In("daddr_type", ((2, 2),)),)),
    ("fib saddr . iif oif missing", (In("reverse_path", ((0, 0),)),)),
    ("fib daddr . iif type local", (atom("fib", "fib daddr . iif type local"),)),
    ("ether saddr 00:00:00:00:00:05", (In("mac", ((5, 5),)),)),
    ("ip saddr @nets", (IPV4, In("saddr", (NET, (12 << 24, 12 << 24))))),
    ("ip saddr @seen", (IPV4, atom("set", "ip saddr @seen"))),
    ("add @seen { ip saddr }", (IPV4, Effect("set", "add @seen { ip saddr }"))),
    ("ip saddr . tcp dport != @pairs", (IPV4, TCP, AnyOf(((In("saddr", (NET,)), In("dport", ((80, 90),))),), True))),
    ("meta l4proto . th dport { tcp . 53 }", (AnyOf(((TCP, In("dport", ((53, 53),))),)),)),
    ("tcp dport vmap @verdicts",
     (TCP, Branches(((AnyOf(((In("dport", ((22, 22),)),),)), ACCEPT),
                     (AnyOf(((In("dport", ((23, 23),)),),)), Verdict("jump", "other")))))),
    ("limit rate 5/second", (atom("limit", "limit rate 5/second"),)),
    ("ct count over 5 drop", (atom("ct count", "ct count over 5"), DROP)),
    ("meta mark set meta mark & 0xffffff00 | 5", (Assign("mark", 5, 255),)),
    ("ct mark set meta mark & 0xff", (Assign("ct_mark", 0, 0xFFFFFFFF, "mark", 255),)),
    ("meta mark set ct mark", (In("ct_state", ((1, 3),)), Assign("mark", 0, 0xFFFFFFFF, "ct_mark", 0xFFFFFFFF))),
    ("meta mark set tcp dport map { 1 : 2, 3 : 4 }",
     (TCP, In("dport", ((1, 1), (3, 3))), Assign("mark", None, 0xFFFFFFFF))),
    ("ip dscp set cs1", (IPV4, Assign("tos", 32, 0xFC))),
    ('tcp dport 22 log prefix "a" ip saddr 1.2.3.4 accept',
     (TCP, In("dport", ((22, 22),)), Effect("log", 'log prefix "a"'), IPV4, In("saddr", (ONE,)), ACCEPT)),
    ("reject with icmpv6 no-route", (IPV6, Verdict("reject", text="with icmpv6 no-route"))),
    ("socket transparent 1", (atom("socket", "socket transparent 1"),)),
    ("tcp option maxseg exists", (atom("tcp option", "tcp option maxseg exists"),)),
    ("exthdr frag exists", (IPV6, atom("exthdr", "exthdr frag exists"))),
    ("goto other", (Verdict("goto", "other"),)),
    ("jump { tcp dport 5 accept; }", (Verdict("jump", "nameless_1"),)),
]  # fmt: skip

NATS: list[tuple[str, tuple[Part, ...]]] = [
    ("dnat ip to 1.2.3.4-1.2.3.6", (Nat("dnat", (ONE[0], ONE[0] + 2), None, "dnat ip to 1.2.3.4-1.2.3.6", 4),)),
    ("tcp dport 80 dnat ip6 to [::1]:8080",
     (TCP, In("dport", ((80, 80),)), Nat("dnat", (1, 1), (8080, 8080), "dnat ip6 to [::1]:8080", 6))),
    ("dnat ip to ip saddr map { 1.2.3.4 : 5.6.7.8 }",
     (IPV4, In("saddr", (ONE,)),
      Nat("dnat", (0x05060708, 0x05060708), None, "dnat ip to ip saddr map { 1.2.3.4 : 5.6.7.8 }", 4))),
    ("meta l4proto tcp redirect to :8080", (TCP, Nat("redirect", None, (8080, 8080), "redirect to :8080"))),
]  # fmt: skip

TEXT = """
define wan = "wan0"
table inet t {
	counter hits { }
	set nets { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 12.0.0.0 } }
	set seen { type ipv4_addr; flags dynamic; size 100; }
	set pairs { type ipv4_addr . inet_service; flags interval; elements = { 10.0.0.0/8 . 80-90 } }
	map verdicts { type inet_service : verdict; elements = { 22 : accept, 23 : jump other } }
	chain other { counter name hits iif $wan; }
	chain c {
		type filter hook input priority 0; policy drop;
"""


def text() -> str:
    """A ruleset with all of the rules."""
    rules = "".join(f"\t\t{rule}\n" for rule, _ in RULES)
    nats = "".join(f"\t\t{rule}\n" for rule, _ in NATS)
    return f"{TEXT}{rules}\t}}\n\tchain n {{\n\t\ttype nat hook prerouting priority -100;\n{nats}\t}}\n}}\n"


def placeless(meaning: Meaning) -> tuple[Part, ...]:
    """Its parts, without the places of atoms."""
    return tuple(replace(part, occurrence="") if isinstance(part, Atom) else part for part in meaning.parts)


@pytest.fixture(scope="module")
def translated() -> tuple[str, str]:
    """What nft says of it, once for all tests."""
    return translate(text(), "all.nft")


def test_each_rule_means_what_it_says(translated: tuple[str, str]) -> None:
    """What the kernel lists of each rule has the meaning that the rule was written with."""
    chains = {one.chain.name: one for one in parse_json(translated[0], listing=translated[1]).chains}
    for name, rules in (("c", RULES), ("n", NATS)):
        for (rule, parts), meaning in zip(rules, chains[name].meanings, strict=True):
            assert placeless(meaning) == parts, rule
    assert [placeless(one) for one in chains["nameless_1"].meanings] == [(TCP, In("dport", ((5, 5),)), ACCEPT)]


def test_rules_are_written_as_nft_lists_them(translated: tuple[str, str]) -> None:
    """Without a listing, the text of a rule made from its JSON is that of the listing."""
    listed, made = parse_json(translated[0], listing=translated[1]), parse_json(translated[0])
    assert [rule.text for one in made.chains for rule in one.chain.rules] == [
        rule.text for one in listed.chains for rule in one.chain.rules
    ]


def model(ruleset: Ruleset) -> list[object]:
    """A ruleset without handles."""
    rules = [
        (one.key, one.chain.hook, one.chain.priority, [(rule.text, meaning) for rule, meaning in one.items()])
        for one in ruleset.chains
    ]
    return [sorted(rules), ruleset.sets]


def test_what_is_written_down_is_loaded_as_the_same(translated: tuple[str, str]) -> None:
    """format_nft writes what nft loads, and the kernel then has the same ruleset."""
    found = parse_json(translated[0], listing=translated[1])
    document, listing = translate(format_nft(found), "again.nft")
    assert model(parse_json(document, listing=listing)) == model(found)


def test_an_error_tells_its_place(tmp_path: Path) -> None:
    """File, line and column of what nft refuses are told, in files that are included too."""
    with pytest.raises(RuleSyntaxError) as raised:
        translate("table ip t {\n\tchain c {\n\t\ttcp dprt 5\n\t}\n}\n", "fw.nft")
    assert (raised.value.file, raised.value.line, raised.value.column) == ("fw.nft", 3, 7)
    (tmp_path / "part.nft").write_text("add rule ip t c accept\n")
    with pytest.raises(RuleSyntaxError) as raised:
        translate('include "./part.nft"\n', str(tmp_path / "fw.nft"))
    assert (raised.value.file, raised.value.line) == ("./part.nft", 1)


def test_interfaces_that_rules_name_are_there() -> None:
    """Rules by index, and chains of devices, load though this host has no such interfaces."""
    document, listing = translate(
        'define outer = { one1, "two2" }\ndefine inner = three3\n'
        "table netdev t {\n\tchain c {\n\t\ttype filter hook ingress devices = $outer priority 0;\n\t}\n}\n"
        "table ip t {\n\tchain c {\n\t\tiif $inner oif { four4, five5 } accept\n\t}\n}\n",
        "fw.nft",
    )
    netdev, plain = parse_json(document, listing=listing).chains
    assert netdev.chain.device == "one1,two2"
    assert plain.meanings[0].parts[0] == Named("iif", ("three3",))


@pytest.mark.needs("setpriv")
def test_no_root_is_needed() -> None:
    """Who has no rights over namespaces uses those of a user namespace of its own; who may not is told."""
    script = (
        "from conntracker.sources.translate import translate\n"
        "try: print('handle' in translate('table ip t { chain c { accept\\n }\\n }', 'x')[1])\n"
        "except OSError as error: print('user namespaces' in str(error))\n"
    )
    without = ["setpriv", "--bounding-set=-sys_admin,-net_admin", "--inh-caps=-sys_admin,-net_admin"]
    done = subprocess.run(
        [*without, sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "True\n", done.stderr


def _run(*command: str, stdin: str | None = None) -> None:
    subprocess.run(command, input=stdin, text=True, check=True, timeout=60)


@pytest.mark.needs("iptables-nft", "iptables-legacy")
def test_the_rules_in_force_are_understood(space: Namespace) -> None:
    """nft's, iptables-nft's and legacy rules become one model; our own tables are left out."""
    _run("nft", "-f", "-", stdin="table inet t {\n chain c {\n tcp dport 5 counter packets 3 bytes 4 accept\n }\n}\n")
    _run("iptables-nft", "-A", "INPUT", "-m", "string", "--algo", "bm", "--string", "x", "-j", "DROP")
    _run("iptables-legacy", "-A", "INPUT", "-p", "udp", "--dport", "53", "-j", "DROP")
    with OwnedTable("chain own { }"):
        found = read_ruleset().by_key()
    native = found["nft", "inet", "t", "c"]
    assert native.meanings[0].counters == (3, 4)
    assert native.meanings[0].verdict == ACCEPT
    tables = found["nft", "ip", "filter", "INPUT"]
    assert tables.chain.rules[0].kind == "iptables-nft"
    assert [one.name for one in tables.meanings[0].atoms] == ["string"]
    assert tables.meanings[0].counters == (0, 0)
    assert found["legacy", "ip", "filter", "INPUT"].meanings[0].verdict == DROP
    assert not [key for key in found if key[2].startswith("conntracker_")]


def test_what_json_cannot_say_is_read_as_text(space: Namespace) -> None:
    """Chains without a name, and tables with an owner, are understood by their listing; handles stay."""
    with OwnedTable("chain c {\n\tct state new jump {\n\t\ttcp dport 5 accept\n\t}\n}\n") as table:
        _run(
            "nft",
            "-f",
            "-",
            stdin="table ip t {\n chain c {\n ip saddr 1.2.3.4 jump {\n tcp dport 5 accept\n }\n }\n}\n",
        )
        found = read_ruleset()
        assert table.name not in {one.chain.table for one in found.chains}
    (rule,), (inner,) = (one.chain.rules for one in found.chains)
    assert rule.handle is not None
    assert "jump {" in (rule.text or "")
    assert inner.text == "tcp dport 5 accept"
    assert [one.atoms for one in found.chains[1].meanings] == [()]


def test_tables_with_an_owner_are_read_as_without() -> None:
    """A listing of a table with an owner is read, though the kernel takes such a table away with who loaded it."""
    text = 'table ip t {\n\tflags owner,persist\n\tchain c {\n\t\taccept comment "; flags owner"\n\t}\n}\n'
    (known,) = parse_json(*translate(text, "text")[:1]).chains
    assert known.chain.name == "c"
    assert len(known.chain.rules) == 1
    with pytest.raises(RuleSyntaxError) as refused:
        translate("table ip t { flags owner; chain c {\n  nonsense\n }\n}\n", "text")
    assert (refused.value.line, refused.value.column) == (2, 11)


def test_a_dormant_table_decides_nothing() -> None:
    """Chains of a dormant table are in no hook, and a note says so."""
    text = "table ip t {\n flags dormant\n chain c { type filter hook input priority 0; policy drop;\n }\n}\n"
    document, listing = translate(text, "text")
    assert "dormant" in listing
    found = parse_json(document, listing=listing)
    assert [known.chain.hook for known in found.chains] == [None]
    assert found.notes == ("table ip t is dormant: no packet comes to its chains",)
    garbled = json.loads(document)
    garbled["nftables"][1]["table"]["flags"] = "A"  # as libnftables 1.0.6 may write it
    assert "may be dormant" in parse_json(garbled).notes[0]
