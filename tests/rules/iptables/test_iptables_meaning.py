from __future__ import annotations

import pytest

from conntracker.rules.errors import RuleSyntaxError
from conntracker.rules.iptables import meaning_of
from conntracker.rules.terms import AnyOf, Assign, Atom, Branches, Effect, In, Named, Nat, Part, Verdict
from conntracker.steps import Rule

V4, V6 = In("family", ((4, 4),)), In("family", ((6, 6),))
TCP, UDP, ICMP, ICMP6 = (In("protocol", ((number, number),)) for number in (6, 17, 1, 58))
WHOLE = In("fragment", ((0, 0),))
NOWHERE = (In("family", ()),)
MAX = 0xFFFFFFFF


def one(field: str, value: int, mask: int | None = None) -> In:
    """A test for one number."""
    return In(field, ((value, value),), mask)


def to_proxy(text: str) -> Branches:
    """What TPROXY does: it drops a packet for which there is no socket."""
    atom, none = Atom("TPROXY", text), Atom("TPROXY", text, negated=True)
    return Branches(((atom, Verdict("accept")), (none, Verdict("drop"))))


def parts(rule: str, family: str = "ip") -> tuple[Part, ...]:
    """What a rule of the chain C of the table T means."""
    return meaning_of(f"-A C {rule}", Rule("iptables-legacy", family, "T", "C", 7, None, None)).parts


HEAD: list[tuple[str, tuple[Part, ...]]] = [
    ("", ()),
    ("-s 10.1.2.3/8", (V4, In("saddr", ((10 << 24, (11 << 24) - 1),)))),
    ("-s 10.1", (V4, one("saddr", 0x0A010000))),
    ("! -d 0.0.0.1", (V4, In("daddr", ((0, 0), (2, MAX))))),
    ("-d ! 0.0.0.1", (V4, In("daddr", ((0, 0), (2, MAX))))),
    ("-s 0.0.0.1 -d 0.0.0.2", (V4, one("saddr", 1), one("daddr", 2))),
    ("-s 0.0.0.0/0", ()),
    ("! -s 0.0.0.0/0", (V4, In("saddr", ()))),
    ("-s 10.0.5.0/255.255.255.0", (V4, In("saddr", ((0x0A000500, 0x0A0005FF),)))),
    ("-s 10.7.5.9/255.0.255.0", (V4, one("saddr", 0x0A000500, 0xFF00FF00))),
    ("-i eth0 ! -o eth+", (Named("iif", ("eth0",)), Named("oif", ("eth*",), True))),
    ("-i +", ()),
    ("! -i +", (Named("iif", ("*",), True),)),
    ("-i eth*", (Atom("interface", "-i eth*"),)),
    ("-p all", ()),
    ("-p 47", (one("protocol", 47),)),
    ("! -p TCP", (In("protocol", ((0, 5), (7, 255))),)),
    ("-f", (one("fragment", 1),)),
    ("! -f", (one("fragment", 0),)),
]

PROTOCOLS: list[tuple[str, tuple[Part, ...]]] = [
    ("-p tcp --dport 22", (TCP, one("dport", 22))),
    ("-p tcp -m tcp ! --sport 1024: --dport :0x10", (TCP, In("sport", ((0, 1023),)), In("dport", ((0, 16),)))),
    ("-p udp -m udp --dport 010", (UDP, one("dport", 8))),
    ("-p udp --destination-port domain", (UDP, one("dport", 53))),
    ("-p tcp -m tcp", (TCP, WHOLE)),
    ("-p tcp --syn", (TCP, one("tcp_flags", 2, 23))),
    ("-p tcp ! --syn", (TCP, In("tcp_flags", ((0, 1), (3, 23)), 23))),
    ("-p tcp --tcp-flags ALL NONE", (TCP, one("tcp_flags", 0, 63))),
    ("-p tcp --tcp-flags SYN FIN", (TCP, In("tcp_flags", ()))),
    ("-p tcp ! --tcp-option 5", (TCP, WHOLE, Atom("tcp-option", "-m tcp --tcp-option 5", negated=True))),
    (
        "-p sctp --chunk-types any INIT",
        (one("protocol", 132), WHOLE, Atom("chunk-types", "-m sctp --chunk-types any INIT")),
    ),
    ("-p 33 -m dccp ! --dport 5", (one("protocol", 33), In("dport", ((0, 4), (6, 65535))))),
    ("-p icmp --icmp-type echo-request", (ICMP, one("icmp_type", 8))),
    ("-p icmp --icmp-type port-un", (ICMP, one("icmp_type", 3), one("icmp_code", 3))),
    ("-p icmp ! --icmp-type 3/4", (ICMP, AnyOf(((one("icmp_type", 3), one("icmp_code", 4)),), True))),
    ("-p icmp --icmp-type any", (ICMP, In("icmp_type", ((0, 255),)))),
    ("-p icmp ! --icmp-type 255", (ICMP, In("icmp_type", ()))),
    ("-p udp -m multiport --dports 53,67:68", (UDP, In("dport", ((53, 53), (67, 68))))),
    ("-p tcp -m multiport ! --sports 1", (TCP, In("sport", ((0, 0), (2, 65535))))),
    ("-p tcp -m multiport --ports 1", (TCP, AnyOf(((one("sport", 1),), (one("dport", 1),))))),
    ("-p tcp -m multiport ! --ports 0", (TCP, In("sport", ((1, 65535),)), In("dport", ((1, 65535),)))),
]

CONNECTIONS: list[tuple[str, tuple[Part, ...]]] = [
    ("-m state --state NEW,RELATED", (In("ct_state", ((2, 3),)),)),
    ("-m state ! --state INVALID", (In("ct_state", ((1, 4),)),)),
    ("-m conntrack --ctstate INVALID", (one("ct_state", 0),)),
    ("-m conntrack --ctstate DNAT", (In("ct_status", ((1, 32),), 32),)),
    ("-m conntrack --ctstate NEW,SNAT", (AnyOf(((one("ct_state", 3),), (In("ct_status", ((1, 16),), 16),))),)),
    ("-m conntrack ! --ctstate DNAT", (AnyOf(((In("ct_state", ((0, 0), (4, 4))),), (one("ct_status", 0, 32),))),)),
    (
        "-m conntrack ! --ctstate INVALID,UNTRACKED,DNAT",
        (In("ct_state", ((1, 3),)), one("ct_status", 0, 32)),
    ),
    ("-m conntrack --ctstatus EXPECTED,ASSURED", (In("ct_status", ((1, 5),), 5),)),
    ("-m conntrack ! --ctstatus ASSURED", (one("ct_status", 0, 4),)),
    ("-m conntrack --ctstatus NONE", (In("ct_status", ()),)),
    ("-m conntrack --ctdir REPLY", (one("ct_direction", 1),)),
    ("-m conntrack --ctstate NEW --ctdir ORIGINAL", (one("ct_state", 3), one("ct_direction", 0))),
    (
        "-m conntrack --ctstate INVALID,NEW --ctdir REPLY",
        (AnyOf(((one("ct_state", 0),), (one("ct_state", 3), one("ct_direction", 1)))),),
    ),
    (
        "-m conntrack --ctstate INVALID --ctproto tcp",
        (Atom("conntrack", "-m conntrack --ctstate INVALID --ctproto tcp"),),
    ),
    ("-m conntrack ! --ctorigdst 10.0.0.1", (Atom("ctorigdst", "-m conntrack --ctorigdst 10.0.0.1", negated=True),)),
    ("-m connmark ! --mark 0x1/0x3", (In("ct_mark", ((0, 0), (2, 3)), 3),)),
]

FIELDS: list[tuple[str, tuple[Part, ...]]] = [
    ("-m iprange --src-range 0.0.0.1-0.0.0.9", (V4, In("saddr", ((1, 9),)))),
    ("-m iprange ! --dst-range 0.0.0.1", (V4, In("daddr", ((0, 0), (2, MAX))))),
    ("-d 0.0.0.1 -m iprange --src-range 0.0.0.2", (V4, one("daddr", 1), one("saddr", 2))),
    ("-m addrtype --dst-type LOCAL,MULTICAST", (In("daddr_type", ((2, 2), (5, 5))),)),
    ("-m addrtype ! --src-type local", (In("saddr_type", ((0, 1), (3, 15))),)),
    (
        "-m addrtype --dst-type LOCAL --limit-iface-in",
        (Atom("addrtype", "-m addrtype --dst-type LOCAL --limit-iface-in"),),
    ),
    ("-m mark --mark 5", (one("mark", 5),)),
    ("-m mark --mark 5/1", (In("mark", ()),)),
    ("-m mark ! --mark 5/1", (In("mark", ((0, MAX),)),)),
    ("-m mark --mark 0x100/0xff00", (one("mark", 0x100, 0xFF00),)),
    ("-m mac --mac-source 00:00:00:00:01:02", (one("mac", 0x102),)),
    ("-m ttl ! --ttl-eq 0", (In("ttl", ((1, 255),)),)),
    ("-m ttl --ttl-lt 5 --ttl-gt 2", (In("ttl", ((0, 4),)), In("ttl", ((3, 255),)))),
    ("-m ttl --ttl-lt 0", (In("ttl", ()),)),
    ("-m pkttype --pkt-type multicast", (one("packet_type", 2),)),
    ("-m tos --tos 0x10/0x3c", (one("tos", 16, 0x3C),)),
    ("-m tos --tos Minimize-Delay", (one("tos", 16, 0x3F),)),
    ("-m dscp --dscp-class EF", (In("tos", ((184, 187),)),)),
    ("-m ecn --ecn-ip-ect 2", (one("tos", 2, 3),)),
    ("-p tcp -m ecn ! --ecn-tcp-ece", (TCP, one("tcp_flags", 0, 64))),
    ("-m length --length 100:", (In("length", ((100, 65535),)),)),
    ("-m rpfilter", (one("reverse_path", 1),)),
    ("-m rpfilter --invert", (one("reverse_path", 0),)),
    ("-m rpfilter --loose --invert", (Atom("rpfilter", "-m rpfilter --loose", negated=True),)),
    ("-m owner --uid-owner 5-9", (In("skuid", ((5, 9),)),)),
    ("-m owner ! --uid-owner 5", (AnyOf((NOWHERE, (one("skuid", 5),)), True),)),
    ("-m owner ! --uid-owner 0 --gid-owner 3", (In("skuid", ((1, MAX),)), one("skgid", 3))),
    ("-m owner --uid-owner www-data", (Atom("owner", "-m owner --uid-owner www-data"),)),
    ("-m owner --socket-exists", (Atom("owner", "-m owner --socket-exists"),)),
]

IPV6: list[tuple[str, tuple[Part, ...]]] = [
    ("-s ::1", (V6, one("saddr", 1))),
    ("-d fe80::/10", (V6, In("daddr", ((0xFE80 << 112, (0xFEC0 << 112) - 1),)))),
    ("-d ::9/ffff::f", (V6, one("daddr", 9, (0xFFFF << 112) | 15))),
    ("-p ipv6-icmp --icmpv6-type 1/4", (ICMP6, one("icmp_type", 1), one("icmp_code", 4))),
    ("-p icmpv6 -m icmp6 --icmpv6-type 255", (ICMP6, one("icmp_type", 255))),
    ("-m hl --hl-gt 254", (one("ttl", 255),)),
    ("-m addrtype --src-type LOCAL", (one("saddr_type", 2),)),
    ("-m addrtype --dst-type MULTICAST", (V6, In("daddr", ((0xFF << 120, (1 << 128) - 1),)))),
    ("-m addrtype ! --dst-type UNSPEC", (V6, In("daddr", ((1, (1 << 128) - 1),)))),
    (
        "-m addrtype ! --dst-type MULTICAST,LOCAL",
        (V6, AnyOf(((In("daddr", ((0xFF << 120, (1 << 128) - 1),)), one("daddr_type", 2)),), True)),
    ),
    ("-j REJECT", (Verdict("reject", text="icmp6-port-unreachable"),)),
    ("-j HL --hl-dec 1", (Assign("ttl", None, 255),)),
    ("-j DNAT --to-destination ::1-::2", (Nat("dnat", (1, 2), None, "DNAT --to-destination ::1-::2"),)),
    ("-j DNAT --to-destination [::1]:80", (Nat("dnat", (1, 1), (80, 80), "DNAT --to-destination [::1]:80"),)),
    ("-j DNAT --to-destination :80-90", (Nat("dnat", None, (80, 90), "DNAT --to-destination :80-90"),)),
]

TARGETS: list[tuple[str, tuple[Part, ...]]] = [
    ("-j ACCEPT", (Verdict("accept"),)),
    ("-j RETURN", (Verdict("return"),)),
    ("-j other", (Verdict("jump", "other"),)),
    ("-g other", (Verdict("goto", "other"),)),
    ("-j REJECT --reject-with tcp-reset", (Verdict("reject", text="tcp-reset"),)),
    ("-j NFQUEUE --queue-num 4", (Verdict("queue", text="--queue-num 4"),)),
    ('-j LOG --log-prefix "a \\"b"', (Effect("log", 'LOG --log-prefix "a \\"b"'),)),
    ("-j LOG -m limit --limit 1/s", (Atom("limit", "-m limit --limit 1/s", "ip/T/C/7/1"), Effect("log", "LOG"))),
    ("-j MARK --set-mark 0x5/0xf0", (Assign("mark", 5, 0xF5),)),
    ("-j MARK --set-xmark 0x5/0xf0", (Assign("mark", 5, 0xF0),)),
    ("-j MARK --and-mark 0xf", (Assign("mark", 0, 0xFFFFFFF0),)),
    ("-j MARK --or-mark 6", (Assign("mark", 6, 6),)),
    ("-j MARK --xor-mark 6", (Assign("mark", 6, 0),)),
    ("-j CONNMARK --set-mark 1", (Assign("ct_mark", 1, MAX),)),
    ("-j CONNMARK --save-mark --nfmask 1 --ctmask 2", (Assign("ct_mark", 0, 2, "mark", 1),)),
    ("-j CONNMARK --restore-mark --nfmask 1 --ctmask 2", (Assign("mark", 0, 1, "ct_mark", 2),)),
    ("-j TTL --ttl-set 64", (Assign("ttl", 64, 255),)),
    ("-j DSCP --set-dscp 1", (Assign("tos", 4, 0xFC),)),
    ("-j TOS --set-tos 0x10/0x1c", (Assign("tos", 16, 0x1C),)),
    ("-j TOS --and-tos 3", (Assign("tos", 0, 0xFC),)),
    ("-j ECN --ecn-tcp-remove", (Assign("tcp_flags", 0, 192),)),
    ("-j CT --notrack", (Assign("ct_state", 4, 7),)),
    ("-j CT --helper ftp", (Effect("ct", "CT --helper ftp"),)),
    ("-j HMARK --hmark-mod 3", (Assign("mark", None, MAX),)),
    ("-j SNAT --to-source 0.0.0.1-0.0.0.2:5", (Nat("snat", (1, 2), (5, 5), "SNAT --to-source 0.0.0.1-0.0.0.2:5"),)),
    ("-j DNAT --to 0.0.0.9", (Nat("dnat", (9, 9), None, "DNAT --to-destination 0.0.0.9"),)),
    ("-j MASQUERADE", (Nat("masquerade", None, None, "MASQUERADE"),)),
    ("-j REDIRECT --to-ports 5-6", (Nat("redirect", None, (5, 6), "REDIRECT --to-ports 5-6"),)),
    ("-j NETMAP --to 0.0.1.0/24", (Nat("netmap", (256, 511), None, "NETMAP --to 0.0.1.0/24"),)),
    ("-j TPROXY --on-port 1", (to_proxy("-j TPROXY --on-port 1"),)),
    (
        "-j TPROXY --on-port 1 --tproxy-mark 0x1/0x3",
        (Assign("mark", 1, 3), to_proxy("-j TPROXY --on-port 1 --tproxy-mark 0x1/0x3")),
    ),
]

ATOMS: list[tuple[str, tuple[Part, ...]]] = [
    (
        "-m limit -m mark --mark 1 --limit 3/min",
        (Atom("limit", "-m limit --limit 3/min", "ip/T/C/7/1"), one("mark", 1)),
    ),
    ("-m recent ! --rcheck --name x", (Atom("recent", "-m recent ! --rcheck --name x", "ip/T/C/7/1"),)),
    ("-m set ! --match-set x src,dst", (Atom("set", "-m set --match-set x src,dst", negated=True),)),
    ('-m string --string "a b" --algo bm', (Atom("string", '-m string --string "a b" --algo bm'),)),
    ("-m policy --dir in --pol none ! --strict", (Atom("policy", "-m policy --dir in --pol none ! --strict"),)),
    ("-m foo --bar 1 ! --baz -j DROP", (Atom("foo", "-m foo --bar 1 ! --baz"), Verdict("drop"))),
    ("-m nfacct --nfacct-name web", (Effect("nfacct", "-m nfacct --nfacct-name web"),)),
]


@pytest.mark.parametrize(("rule", "expected"), HEAD + PROTOCOLS + CONNECTIONS + FIELDS + TARGETS + ATOMS)
def test_what_a_rule_of_ipv4_means(rule: str, expected: tuple[Part, ...]) -> None:
    """Each option becomes the test or the deed that the kernel makes of it."""
    assert parts(rule) == expected


@pytest.mark.parametrize(("rule", "expected"), IPV6)
def test_what_a_rule_of_ipv6_means(rule: str, expected: tuple[Part, ...]) -> None:
    """Addresses are of 128 bits, and some matches mean other things."""
    assert parts(rule, "ip6") == expected


def test_comments_and_counters() -> None:
    """A comment is no part of what a rule asks, and neither are counters in the midst of it."""
    place = Rule("iptables-nft", "ip", "filter", "INPUT", 1, None, None)
    meaning = meaning_of('-A INPUT -c 3 180 -m comment --comment "! -j DROP" -j ACCEPT', place)
    assert (meaning.parts, meaning.counters, meaning.comment) == ((Verdict("accept"),), (3, 180), "! -j DROP")


def test_a_target_that_nobody_knows() -> None:
    """A target in capitals that is no chain of the table is opaque; where chains are not known it is taken for one."""
    place = Rule("iptables-legacy", "ip", "raw", "C", 1, None, None)
    assert meaning_of("-A C -j NEWEST --x 1", place, {"C"}).parts == (
        Atom("NEWEST", "-j NEWEST --x 1", "ip/raw/C/1/target"),
        Verdict("stolen"),
    )
    assert meaning_of("-A C -j NEWEST", place).parts == (Verdict("jump", "NEWEST"),)


@pytest.mark.parametrize(
    ("rule", "column", "what"),
    [
        ("-A C -p tcp --dport 70000", 21, "port 70000 is larger than 65535"),
        ("-A C -p tcp ! --dport  9:8", 24, "the range 9:8 is upside down"),
        ("-A C -p tcp --dport nowhere", 21, "a service that is not known here: 'nowhere' (its number would do)"),
        ("-A C --dport 80", 6, "no option known here: '--dport'"),
        ("-A C -m tcp --dport 80", 6, "`-m tcp` needs `-p` with a protocol of its own"),
        ("-A C ! -p tcp -m multiport --ports 1", 15, "`-m multiport` needs `-p` with a protocol of its own"),
        ("-A C -p tcp -m multiport --ports 1,2,3,4,5,6,7,8,9,10,11,12,13,14:15,16", 34, "more than 15 ports"),
        ("-A C -s 1.2.3.256", 9, "no IPv4 address: '1.2.3.256'"),
        ("-A C -s 1.2.3.4/33", 9, "length of prefix 33 is larger than 32"),
        ("-A C -s 1.2.3.4,1.2.3.5", 9, "several addresses make several rules: this is one"),
        ("-A C -s 1.1.1.1 -s 2.2.2.2", 17, "-s twice"),
        ("-A C ! -p all", 11, "no packet is of another protocol than all"),
        ("-A C -m state --state NEU", 23, "no state of a connection: 'NEU'"),
        ("-A C -m ttl ! --ttl-lt 5", 24, "--ttl-lt cannot be negated"),
        ("-A C -m mark --mark 1 --mark 2", 23, "--mark twice"),
        ("-A C -m comment --comment \"a", 27, "a string without an end"),
        ("-A C -j ACCEPT -j DROP", 16, "a second target"),
        ("-A C -j ACCEPT stray", 16, "a word that belongs to nothing: 'stray'"),
        ("-A C -j", 6, "-j needs 1 word behind it"),
        ("-A C -p tcp !", 13, "nothing behind `!`"),
        ("-A C -j DNAT", 6, "DNAT needs where to"),
        ("-A C -j MARK --set-mark x", 25, "no number: 'x'"),
        ("-D C -j DROP", 1, "a rule starts with `-A CHAIN`"),
    ],
)  # fmt: skip
def test_what_iptables_refuses(rule: str, column: int, what: str) -> None:
    """A rule that iptables or the kernel would not take is an error that says where."""
    with pytest.raises(RuleSyntaxError) as raised:
        meaning_of(rule, Rule("iptables-legacy", "ip", "filter", "C", 1, None, None, "f:3"))
    assert (raised.value.line, raised.value.column, raised.value.what) == (1, column, what)
