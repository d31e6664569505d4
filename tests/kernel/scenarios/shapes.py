"""Packets of odd shapes: fragments, extension headers, options, protocols without ports."""

from __future__ import annotations

from conntracker.lab.topology import CLIENT, SERVER
from support import frames
from support.sends import frame, ping, tcp, udp
from support.walk import Scenario

__all__ = ["EXTENSIONS", "FRAGMENTS", "PROTOCOLS"]

_UDP4 = frames.ipv4(CLIENT[4], SERVER[4], frames.udp(4000, 53, bytes(100)))
_UDP6 = frames.ipv6(CLIENT[6], SERVER[6], frames.udp(4000, 53, bytes(100)))
_PIECES4 = frames.split4(_UDP4, 64)
_PIECES6 = frames.split6(_UDP6, 64)

# Of a later IPv6 fragment the messages of nf_tables have the first 20 bytes and no more: nothing says where it goes
# (ipv6_find_hdr finds no transport header, and nf_tables_trace.c takes the network header to end there): no trace.
_FIRST_TRACED6 = (frame(_PIECES6[0]), frame(_PIECES6[1], name="later", traces=0))
_BOTH_TRACED6 = (frame(_PIECES6[0]), frame(_PIECES6[1], name="later"))
_UDP_RULES6 = "*filter\n-A FORWARD -p udp -m udp --dport 53 -j ACCEPT\n-A FORWARD -p udp -j DROP"
_FRAGMENT_RULES6 = "*filter\n-A FORWARD -m frag --fraglast -j DROP\n-A FORWARD -m frag --fragfirst -j ACCEPT"

FRAGMENTS = (
    Scenario(
        "fragments-without-conntrack",
        (frame(_PIECES4[0]), frame(_PIECES4[1], name="later")),
        {
            "request": "*forward ip filter FORWARD rule 1 accept",
            "later request": "*forward ip filter FORWARD rule 3 drop",
        },
        iptables="""*filter
            -A FORWARD -p udp -m udp --dport 53 -j ACCEPT
            -A FORWARD -p tcp -j ACCEPT
            -A FORWARD -p udp -f -j DROP""",
        nft="""table ip fw { chain forward { type filter hook forward priority 0
            udp dport 53 accept
            meta l4proto tcp accept
            ip frag-off & 0x1fff != 0 drop
        } }""",
        nft_path={
            "request": "*forward ip fw forward rule 1 accept",
            "later request": "*forward ip fw forward rule 3 drop",
        },
    ),
    Scenario(
        "fragments-that-pass-without-conntrack",
        (frame(_PIECES4[0]), frame(_PIECES4[1], name="later")),
        {
            "request": "*forward ip filter FORWARD rule 1 accept",
            "later request": "*forward ip filter FORWARD policy accept",
        },
        iptables="*filter\n-A FORWARD -p udp -m udp --dport 53 -j ACCEPT\n-A FORWARD -p tcp -j DROP",
        nft="table ip fw { chain forward { type filter hook forward priority 0; udp dport 53 accept; } }",
        nft_path={
            "request": "*forward ip fw forward rule 1 accept",
            "later request": "*forward ip fw forward policy accept",
        },
    ),
    Scenario(
        "fragments-with-conntrack",  # put together before any rule sees them
        frame(*_PIECES4),
        "*forward ip filter FORWARD rule 2 accept",
        iptables="""*filter
            :FORWARD DROP
            -A FORWARD -f -j DROP
            -A FORWARD -p udp -m conntrack --ctstate NEW -m udp --dport 53 -j ACCEPT""",
        nft="""table ip fw { chain forward { type filter hook forward priority 0; policy drop
            ip frag-off & 0x1fff != 0 drop
            ct state new udp dport 53 accept
        } }""",
        nft_path="*forward ip fw forward rule 2 accept",
    ),
    Scenario(
        "fragments-in-the-wrong-order-with-conntrack",
        frame(*reversed(_PIECES4)),
        "*forward ip filter FORWARD rule 1 drop",
        iptables="*filter\n-A FORWARD -p udp -m conntrack --ctstate NEW -m udp --dport 53 -j DROP",
        nft="table ip fw { chain forward { type filter hook forward priority 0; ct state new udp dport 53 drop; } }",
        nft_path="*forward ip fw forward rule 1 drop",
    ),
    Scenario(
        "fragments-without-conntrack-ipv6",
        _FIRST_TRACED6,
        "*forward ip6 filter FORWARD rule 1 accept",
        ip6tables=_UDP_RULES6,
        only="iptables-nft",
        nft="""table ip6 fw { chain forward { type filter hook forward priority 0
            udp dport 53 accept
            meta l4proto udp drop
        } }""",
        nft_path="*forward ip6 fw forward rule 1 accept",
    ),
    Scenario(
        "fragments-without-conntrack-ipv6",
        _BOTH_TRACED6,
        {
            "request": "*forward ip6 filter FORWARD rule 1 accept",
            "later request": "*forward ip6 filter FORWARD rule 2 drop",
        },
        ip6tables=_UDP_RULES6,
        only="iptables-legacy",
    ),
    Scenario(
        "fragment-header-matched-ipv6",
        _FIRST_TRACED6,
        "*forward ip6 filter FORWARD rule 2 accept",
        ip6tables=_FRAGMENT_RULES6,
        only="iptables-nft",
        nft="""table ip6 fw { chain forward { type filter hook forward priority 0
            frag more-fragments 0 drop
            frag frag-off 0 accept
        } }""",
        nft_path="*forward ip6 fw forward rule 2 accept",
    ),
    Scenario(
        "fragment-header-matched-ipv6",
        _BOTH_TRACED6,
        {
            "request": "*forward ip6 filter FORWARD rule 2 accept",
            "later request": "*forward ip6 filter FORWARD rule 1 drop",
        },
        ip6tables=_FRAGMENT_RULES6,
        only="iptables-legacy",
    ),
    Scenario(
        "fragments-with-conntrack-ipv6",
        frame(*_PIECES6),
        "*forward ip6 filter FORWARD rule 2 drop",
        ip6tables="""*filter
            -A FORWARD -m conntrack --ctstate INVALID -j DROP
            -A FORWARD -p udp -m conntrack --ctstate NEW -m udp --dport 53 -j DROP""",
        nft="""table inet fw { chain forward { type filter hook forward priority 0
            ct state invalid drop
            ct state new udp dport 53 drop
        } }""",
        nft_path="*forward inet fw forward rule 2 drop",
    ),
)


def _extension(name: str, kinds: tuple[int, ...], ip6tables: str, nft: str) -> Scenario:
    """A datagram behind extension headers."""
    extensions = tuple(map(frames.options, kinds))
    return Scenario(
        name,
        frame(frames.ipv6(CLIENT[6], SERVER[6], frames.udp(4000, 53), extensions=extensions)),
        "forward ip6 filter FORWARD rule 2 continue; *forward ip6 filter FORWARD rule 3 drop",
        ip6tables=f"""*filter
            -A FORWARD -p tcp -j ACCEPT
            -A FORWARD {ip6tables} -j MARK --set-mark 1
            -A FORWARD -p udp -m udp --dport 53 -j DROP""",
        nft=f"""table inet fw {{ chain forward {{ type filter hook forward priority 0
            meta l4proto tcp accept
            {nft} counter
            udp dport 53 drop
        }} }}""",
        nft_path="forward inet fw forward rule 2 continue; *forward inet fw forward rule 3 drop",
    )


EXTENSIONS = (
    _extension("hop-by-hop-options", (frames.HOP_BY_HOP,), "-m hbh", "exthdr hbh exists"),
    _extension("destination-options", (frames.DESTINATION,), "-m dst", "exthdr dst exists"),
    _extension("routing-header", (frames.ROUTING,), "-m rt", "exthdr rt exists"),
    _extension(
        "three-extension-headers",
        (frames.HOP_BY_HOP, frames.ROUTING, frames.DESTINATION),
        "-m ipv6header --header hop-by-hop,ipv6-route,ipv6-opts --soft",
        "exthdr hbh exists exthdr rt exists exthdr dst exists",
    ),
    Scenario(
        "extension-headers-and-tcp-that-is-tracked",
        frame(
            frames.ipv6(
                CLIENT[6],
                SERVER[6],
                frames.tcp(4000, 80),
                extensions=(frames.options(frames.HOP_BY_HOP), frames.options(frames.DESTINATION)),
            )
        ),
        "*forward ip6 filter FORWARD rule 1 reject",
        ip6tables="*filter\n-A FORWARD -p tcp -m conntrack --ctstate NEW -j REJECT",
        nft="table inet fw { chain forward { type filter hook forward priority 0; "
        "ct state new tcp dport 80 reject; } }",
        nft_path="*forward inet fw forward rule 1 reject",
    ),
    Scenario(
        "ipv6",
        (tcp(80, family=6), ping(family=6, name="echo")),
        {
            "request": "*forward ip6 filter FORWARD rule 1 accept",
            "reply": "*forward ip6 filter FORWARD rule 2 accept",
            "echo request": "*forward ip6 filter FORWARD rule 3 drop",
        },
        ip6tables="""*filter
            :FORWARD DROP
            -A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT
            -A FORWARD -p tcp -m tcp --sport 80 -j ACCEPT
            -A FORWARD -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j DROP""",
        nft="""table ip6 fw { chain forward { type filter hook forward priority 0; policy drop
            tcp dport 80 accept
            tcp sport 80 accept
            icmpv6 type echo-request drop
        } }""",
        nft_path={
            "request": "*forward ip6 fw forward rule 1 accept",
            "reply": "*forward ip6 fw forward rule 2 accept",
            "echo request": "*forward ip6 fw forward rule 3 drop",
        },
    ),
    Scenario(
        "ipv6-loopback",
        udp(53, source="router", target="router", family=6),
        "output ip6 filter OUTPUT policy accept; *input ip6 filter INPUT rule 1 accept",
        ip6tables="*filter\n:INPUT DROP\n-A INPUT -i lo -j ACCEPT",
        nft="""table inet fw {
            chain input { type filter hook input priority 0; policy drop; iif "lo" accept; }
            chain output { type filter hook output priority 0; }
        }""",
        nft_path="output inet fw output policy accept; *input inet fw input rule 1 accept",
    ),
    Scenario(
        "echo-to-the-router-ipv6",
        ping(target="router", family=6),
        {
            "request": "*input ip6 filter INPUT rule 1 accept",
            "reply": "*output ip6 filter OUTPUT policy accept",
        },
        ip6tables="*filter\n:INPUT DROP\n-A INPUT -p ipv6-icmp -j ACCEPT",
        nft="""table inet fw {
            chain input { type filter hook input priority 0; policy drop; meta l4proto ipv6-icmp accept; }
            chain output { type filter hook output priority 0; }
        }""",
        nft_path={
            "request": "*input inet fw input rule 1 accept",
            "reply": "*output inet fw output policy accept",
        },
    ),
    Scenario(
        "the-same-rules-for-both-versions",
        (udp(53), udp(53, family=6, name="six")),
        {
            "request": "forward ip filter FORWARD rule 1 jump A; *forward ip filter A rule 2 drop",
            "six request": "forward ip6 filter FORWARD rule 1 jump A; *forward ip6 filter A rule 2 drop",
        },
        iptables="*filter\n:A\n-A FORWARD -j A\n-A A -p tcp -j ACCEPT\n-A A -p udp -j DROP",
        ip6tables="*filter\n:A\n-A FORWARD -j A\n-A A -p tcp -j ACCEPT\n-A A -p udp -j DROP",
        nft="""table inet fw {
            chain a { meta l4proto tcp accept; meta l4proto udp drop; }
            chain forward { type filter hook forward priority 0; jump a; }
        }""",
        nft_path={
            "request": "forward inet fw forward rule 1 jump a; *forward inet fw a rule 2 drop",
            "six request": "forward inet fw forward rule 1 jump a; *forward inet fw a rule 2 drop",
        },
    ),
    Scenario(
        "different-rules-for-each-version",
        (udp(53), udp(53, family=6, name="six")),
        {
            "request": "*forward ip filter FORWARD policy accept",
            "six request": "*forward ip6 filter FORWARD policy drop",
        },
        iptables="*filter",
        ip6tables="*filter\n:FORWARD DROP",
        nft="""table ip fw { chain forward { type filter hook forward priority 0; } }
            table ip6 fw { chain forward { type filter hook forward priority 0; policy drop; } }""",
        nft_path={
            "request": "*forward ip fw forward policy accept",
            "six request": "*forward ip6 fw forward policy drop",
        },
    ),
)

PROTOCOLS = (
    Scenario(
        "ip-options",
        frame(frames.ipv4(CLIENT[4], SERVER[4], frames.udp(4000, 53), options=bytes([1, 1, 1, 0]) + bytes(8))),
        "*forward ip filter FORWARD rule 1 drop",
        iptables="*filter\n-A FORWARD -p udp -m udp --dport 53 -j DROP",
        nft="table ip fw { chain forward { type filter hook forward priority 0; udp dport 53 drop; } }",
        nft_path="*forward ip fw forward rule 1 drop",
    ),
    Scenario(
        "gre",
        frame(frames.ipv4(CLIENT[4], SERVER[4], frames.plain(47, bytes([0, 0, 8, 0]) + bytes(20)))),
        "*forward ip filter FORWARD rule 2 drop",
        iptables="*filter\n-A FORWARD -p udp -j ACCEPT\n-A FORWARD -p gre -j DROP",
        nft="table ip fw { chain forward { type filter hook forward priority 0; ip protocol udp accept; "
        "ip protocol gre drop; } }",
        nft_path="*forward ip fw forward rule 2 drop",
    ),
    Scenario(
        "sctp",
        frame(frames.ipv4(CLIENT[4], SERVER[4], frames.plain(132, bytes([15, 160, 27, 88]) + bytes(20)))),
        "*forward ip filter FORWARD rule 1 drop",
        iptables="*filter\n-A FORWARD -p sctp -m sctp --dport 7000 -j DROP",
        nft="table ip fw { chain forward { type filter hook forward priority 0; sctp dport 7000 drop; } }",
        nft_path="*forward ip fw forward rule 1 drop",
    ),
    Scenario(
        "a-protocol-that-nobody-knows-ipv6",
        frame(frames.ipv6(CLIENT[6], SERVER[6], frames.plain(253, bytes(8)))),
        "*forward ip6 filter FORWARD rule 1 drop",
        ip6tables="*filter\n-A FORWARD -p 253 -j DROP",
        nft="table ip6 fw { chain forward { type filter hook forward priority 0; meta l4proto 253 drop; } }",
        nft_path="*forward ip6 fw forward rule 1 drop",
    ),
    Scenario(
        "flags-of-tcp",
        frame(frames.ipv4(CLIENT[4], SERVER[4], frames.tcp(4000, 80, 0x29))),
        "*forward ip filter FORWARD rule 2 drop",
        iptables="""*filter
            -A FORWARD -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT
            -A FORWARD -p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG FIN,PSH,URG -j DROP""",
        nft="""table ip fw { chain forward { type filter hook forward priority 0
            tcp flags & (fin | syn | rst | ack) == syn accept
            tcp flags == fin | psh | urg drop
        } }""",
        nft_path="*forward ip fw forward rule 2 drop",
    ),
)
