"""The grammar of `--trace`: what it takes, what it mirrors, and what it must never let through."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.traceonly import check_restriction, conditions, mirrored
from support.restrictions import restrictions

# A restriction, and the match of the other direction; None where there is none.
MIRRORED = [
    ("tcp dport 443", "tcp sport 443"),
    ("tcp sport { 80, 8000-8099 }", "tcp dport { 80, 8000-8099 }"),
    ("ip saddr 10.0.0.0/8 tcp dport {80,443}", "ip daddr 10.0.0.0-10.255.255.255 tcp sport { 80, 443 }"),
    ("ip saddr 1.2.3.4 ip daddr 5.6.7.8", "ip daddr 1.2.3.4 ip saddr 5.6.7.8"),
    ("ip6 daddr 2001:db8::1", "ip6 saddr 2001:db8::1"),
    ("tcp dport ssh", "tcp sport 22"),
    ("tcp dport != ssh", "tcp sport != 22"),
    ("udp dport lt 1024", "udp sport < 1024"),
    ("th dport 53", "th sport 53"),
    ("icmp type echo-request", "icmp type 0"),
    ("icmp type { echo-request, timestamp-request } icmp id 5", "icmp id 5 icmp type { 0, 14 }"),
    ("icmpv6 type 128", "icmpv6 type 129"),
    ("meta l4proto { tcp, udp }", "meta l4proto { 6, 17 }"),
    ("ip protocol { tcp, udp } tcp dport 80", "tcp sport 80 ip protocol { 6, 17 }"),
    ("meta nfproto ipv6", "meta protocol ip6"),
    ("icmp type destination-unreachable", None),
    ("icmp type 8-9", None),
    ('iifname "eth0"', None),
    ("meta oifname eth*", None),
    ("tcp flags syn tcp dport 80", None),
    ("ip ttl 1", None),
    ("mark 5", None),
    ("ether saddr 02:00:00:00:00:01", None),
]

REFUSED = [
    "",
    " ",
    "tcp",
    "tcp dport",
    "tcp dport 443 accept",
    "tcp dport 443 drop",
    "tcp dport 443 counter",
    "tcp dport 443 log",
    'tcp dport 443 log prefix "x"',
    "tcp dport 443 jump x",
    "tcp dport 443 goto x",
    "tcp dport 443 return",
    "tcp dport 443 queue",
    "tcp dport 443 reject",
    "tcp dport 443 notrack",
    "tcp dport 443 masquerade",
    "tcp dport 443 dnat to 1.2.3.4",
    "tcp dport 443 meta mark set 1",
    "tcp dport 443 meta nftrace set 1",
    "meta nftrace 1",
    "tcp dport set 443",
    "tcp dport 443; drop",
    "tcp dport 443;",
    "tcp dport 443\ndrop",
    "tcp dport 443\r\ndrop",
    "tcp dport 443 }",
    "tcp dport 443 } chain x { type filter hook input priority 0; policy drop; ",
    "tcp dport { 443 } }",
    "tcp dport { 443",
    "tcp dport { { 443 } }",
    "tcp dport { }",
    "tcp dport { 1 2 }",
    "tcp dport { , }",
    "tcp dport { 1, , 2 }",
    "tcp dport { 1-5, 3 }",
    "tcp dport { 22, ssh }",
    "tcp dport { 443 : accept }",
    "tcp dport vmap { 443 : drop }",
    "tcp dport @ports",
    "ip saddr @blocked",
    "add @x { ip saddr }",
    "update @x { ip saddr timeout 5s }",
    "tcp dport $port",
    "define x = 5",
    "$x",
    "tcp dport 443 # drop",
    "# tcp dport 443",
    "include /etc/passwd",
    'include "/etc/passwd"',
    'tcp dport "443"',
    'iifname "eth0" } "',
    'iifname "eth0\\" drop"',
    'iifname "eth0; drop"',
    'iifname ""',
    'iifname "a b"',
    "iifname '*'",
    "iifname *",
    "iifname eth*0",
    'iifname { "eth*" }',
    'iifname "0123456789abcdef"',
    "iifname `id`",
    "tcp dport $(id)",
    "tcp dport `id`",
    "tcp dport 443 \\\n drop",
    "tcp dport 443\\",
    "tcp dport 443\0",
    "tcp dport 443\x0b",
    "tcp dport 443\u2028drop",
    "tcp dport \uff14\uff14\uff13",
    "tcp dport \u0664",
    "tcp dport 443 || drop",
    "tcp dport 443 or udp dport 53",
    "tcp dport 443 & 1",
    "tcp dport (443)",
    "!tcp dport 443",
    "not tcp dport 443",
    "tcp dport = 443",
    "tcp dport === 443",
    "tcp dport 65536",
    "tcp dport -1",
    "tcp dport 1e3",
    "tcp dport 080",
    "tcp dport 443-80",
    "tcp dport 80-80",
    "tcp dport 1-2-3",
    "tcp dport no-such-service",
    "tcp dport < { 1, 2 }",
    "tcp dport < 5-9",
    "ip saddr < 1.2.3.4",
    "ip saddr 1.2.3",
    "ip saddr 1.2.3.4/33",
    "ip saddr 1.2.3.4/255.0.0.0",
    "ip saddr 1.2.3.4/8/8",
    "ip saddr example.org",
    "ip saddr localhost",
    "ip saddr ::1",
    "ip6 saddr 1.2.3.4",
    "ip6 saddr fe80::1%eth0",
    "ip saddr 2.2.2.2-1.1.1.1",
    "ip saddr { 10.0.0.0/8, 10.1.0.0/16 }",
    "ip saddr . tcp dport { 1.2.3.4 . 80 }",
    "ip saddr 1.2.3.4 ip6 saddr ::1",
    "tcp dport 1 udp dport 2",
    "icmp type 8 tcp dport 1",
    "icmp type 8 ip6 saddr ::1",
    "icmp type echo",
    "tcp flags syn|ack",
    "tcp flags & (syn|ack) == syn",
    "ct mark 1",
    "ct state new",
    "meta iif eth0",
    "iif eth0",
    "fib daddr type local",
    "socket transparent 1",
    "numgen random mod 2 0",
    "jhash ip saddr mod 2 0",
    "limit rate 1/second",
    "quota 5 bytes",
    "@th,0,16 80",
    "meta skuid root",
    "ip options lsrr exists",
    "exthdr frag exists",
    "tcp dport 443 comment",
    "flush ruleset",
    "delete table inet x",
    "tcp dport " + "4" * 100,
    "tcp dport { " + ", ".join(map(str, range(400))) + " }",
    "tcp dport 1 " * 1000,
]


@pytest.mark.parametrize(("text", "expected"), MIRRORED)
def test_mirrored(text: str, expected: str | None) -> None:
    """The match of the other direction has source and destination changed, and answers for requests."""
    check_restriction(text)
    assert mirrored(text) == expected
    assert conditions(text)[1:] == ([] if expected in {None, conditions(text)[0]} else [expected])


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text: str) -> None:
    """Anything else raises ValueError, whose one line says which option is meant."""
    for function in (check_restriction, mirrored, conditions):
        with pytest.raises(ValueError, match=r"^--trace: .") as caught:
            function(text)
        assert len(caught.value.args[0]) < 160
        assert re.fullmatch(r"[ -~]+", caught.value.args[0])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ct mark 1", "connection tracking comes after"),
        ("ip saddr @set", "sets of other tables"),
        ("iif eth0", "use iifname"),
        ("tcp dport 443; drop", "unexpected ';' at character 14"),
        ("tcp dport 70000", "tcp dport: '70000' is no value of it"),
        ("tcp dport { 1-5, 3 }", "tcp dport: values of the set overlap"),
        ("ip saddr 1.2.3.4 ip6 saddr ::1", "IPv4 and IPv6 in one match"),
    ],
)
def test_reasons(text: str, reason: str) -> None:
    """The error says what is wrong."""
    with pytest.raises(ValueError, match=re.escape(reason)):
        check_restriction(text)


def test_numbers_for_names() -> None:
    """nft is given numbers where a person writes names, and the text of nobody."""
    text = "tcp  dport\t{ssh,0x50 ,https-500}   iifname eth*  tcp flags == syn ip daddr eq 10.1.2.3/8"
    assert conditions(text) == [
        'tcp dport { 22, 80, 443-500 } meta iifname "eth*" tcp flags == syn ip daddr 10.0.0.0-10.255.255.255'
    ]


@given(restrictions())
def test_what_is_written_is_read_again(text: str) -> None:
    """What nft is given is a restriction itself, and says the same."""
    for match in conditions(text):
        assert conditions(match)[0] == match
    back = mirrored(text)
    if back is not None:
        assert mirrored(back) == conditions(text)[0]


WORDS = r"""tcp udp dport sport ip ip6 saddr daddr meta mark iifname ct { } , ; # @ $ == != < - / . * " ' \
    80 1.2.3.4 ::1 ssh eth0 drop accept set jump log counter"""
PIECES = st.lists(st.sampled_from([*WORDS.split(), "\n"]))


@given(st.text() | PIECES.map(" ".join) | PIECES.map("".join))
def test_any_text(text: str) -> None:
    """Any text is refused in words of our own, or written in letters that end no rule."""
    try:
        made = conditions(text)
    except ValueError as error:
        assert str(error).startswith("--trace: ")
    else:
        for match in made:
            assert re.fullmatch(r'[A-Za-z0-9 .,:*_{}<>=!"-]+', match)
            assert match.count("{") == match.count("}")
            assert match.count('"') % 2 == 0
            assert not set(match.split()) & {"drop", "accept", "set", "jump", "log", "counter", "ct"}
