"""Connection tracking: states, ICMP errors, and packets that never get to a verdict."""

from __future__ import annotations

from conntracker.lab.topology import CLIENT, ROUTER, SERVER, SERVER_SILENT
from support import frames
from support.sends import frame, ping, tcp, udp
from support.walk import Scenario

__all__ = ["LOST", "STATES"]

_CORRUPT = frames.ipv4(CLIENT[4], SERVER[4], frames.udp(4000, 53, b"datagram"))[:-1] + b"x"

STATES = (
    Scenario(
        "stateful-firewall",
        (tcp(80), tcp(81, name="closed", source="server", target="client")),
        {
            "request": "*forward ip filter FORWARD rule 3 accept",
            "reply": "*forward ip filter FORWARD rule 1 accept",
            "request 2": "*forward ip filter FORWARD rule 1 accept",
            "closed request": "*forward ip filter FORWARD policy drop",
        },
        iptables="""*filter
            :FORWARD DROP
            -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
            -A FORWARD -m conntrack --ctstate INVALID -j DROP
            -A FORWARD -i client -p tcp -m conntrack --ctstate NEW -m tcp --dport 80 -j ACCEPT""",
        nft="""table inet fw { chain forward { type filter hook forward priority 0; policy drop
            ct state vmap { established : accept, related : accept, invalid : drop }
            iifname "client" ct state new tcp dport 80 accept
        }; }""",
        nft_path={
            "request": "*forward inet fw forward rule 2 accept",
            "reply": "*forward inet fw forward rule 1 accept",
            "request 2": "*forward inet fw forward rule 1 accept",
            "closed request": "*forward inet fw forward policy drop",
        },
    ),
    Scenario(
        "later-packets-of-a-connection",
        udp(53, count=3, answer=True),
        {
            "request": "*forward ip filter FORWARD rule 2 accept",
            "request 2": "*forward ip filter FORWARD rule 1 accept",
            "request 3": "*forward ip filter FORWARD rule 1 accept",
            "reply": "*forward ip filter FORWARD rule 1 accept",
            "reply 3": "*forward ip filter FORWARD rule 1 accept",
        },
        iptables="""*filter
            :FORWARD DROP
            -A FORWARD -m state --state ESTABLISHED -j ACCEPT
            -A FORWARD -p udp -m state --state NEW -j ACCEPT""",
        nft="""table ip fw { chain forward { type filter hook forward priority 0; policy drop
            ct state established accept
            ct state new udp dport 53 accept
        }; }""",
        nft_path={
            "request": "*forward ip fw forward rule 2 accept",
            "request 2": "*forward ip fw forward rule 1 accept",
            "request 3": "*forward ip fw forward rule 1 accept",
            "reply": "*forward ip fw forward rule 1 accept",
            "reply 3": "*forward ip fw forward rule 1 accept",
        },
    ),
    Scenario(
        "invalid",
        frame(frames.ipv4(CLIENT[4], SERVER[4], frames.tcp(4000, 80, frames.SYN_ACK))),
        "*forward ip filter FORWARD rule 2 drop",
        iptables="""*filter
            -A FORWARD -m conntrack --ctstate NEW -j ACCEPT
            -A FORWARD -m conntrack --ctstate INVALID -j DROP""",
        nft="""table inet fw { chain forward { type filter hook forward priority 0
            ct state new accept
            ct state invalid drop
        }; }""",
        nft_path="*forward inet fw forward rule 2 drop",
    ),
    Scenario(
        "invalid-keeps-out-of-nat",
        frame(frames.ipv4(CLIENT[4], SERVER[4], frames.tcp(4000, 80, frames.SYN_ACK))),
        "*forward ip filter FORWARD rule 1 drop",
        iptables="""*nat
            -A PREROUTING -p tcp -j DNAT --to-destination 203.0.113.1
            *filter
            -A FORWARD -m conntrack --ctstate INVALID -j DROP""",
        nft="""table ip fw {
            chain before { type nat hook prerouting priority -100; meta l4proto tcp dnat to 203.0.113.1; }
            chain forward { type filter hook forward priority 0; ct state invalid drop; }
        }""",
        nft_path="*forward ip fw forward rule 1 drop",
    ),
    Scenario(
        "invalid-by-its-checksum",
        frame(_CORRUPT),
        "*forward ip filter FORWARD rule 2 drop",
        iptables="""*filter
            -A FORWARD -m conntrack --ctstate NEW -j ACCEPT
            -A FORWARD -p udp -m conntrack --ctstate INVALID -j DROP""",
        nft="""table inet fw { chain forward { type filter hook forward priority 0
            ct state new accept
            ct state invalid udp dport 53 drop
        } }""",
        nft_path="*forward inet fw forward rule 2 drop",
    ),
    Scenario(
        "connmark",
        udp(53, count=2),
        {
            "request": """prerouting ip mangle PREROUTING rule 1 continue
                prerouting ip mangle PREROUTING rule 3 continue
                prerouting ip mangle PREROUTING rule 4 continue
                prerouting ip mangle PREROUTING policy accept
                forward ip mangle FORWARD policy accept
               *forward ip filter FORWARD rule 1 accept
                postrouting ip mangle POSTROUTING policy accept""",
            "request 2": """prerouting ip mangle PREROUTING rule 1 continue
                prerouting ip mangle PREROUTING rule 2 accept
                forward ip mangle FORWARD policy accept
               *forward ip filter FORWARD rule 1 accept
                postrouting ip mangle POSTROUTING policy accept""",
        },
        iptables="""*mangle
            -A PREROUTING -j CONNMARK --restore-mark
            -A PREROUTING -m mark ! --mark 0 -j ACCEPT
            -A PREROUTING -p udp -j MARK --set-mark 4
            -A PREROUTING -j CONNMARK --save-mark
            *filter
            :FORWARD DROP
            -A FORWARD -m connmark --mark 4 -j ACCEPT""",
        nft="""table inet fw {
            chain prerouting { type filter hook prerouting priority -150
                meta mark set ct mark
                meta mark != 0 accept
                meta l4proto udp meta mark set 4
                ct mark set meta mark
            }
            chain forward { type filter hook forward priority 0; policy drop; ct mark 4 accept; }
        }""",
        nft_path={
            "request": """prerouting inet fw prerouting rule 1 continue
                prerouting inet fw prerouting rule 3 continue
                prerouting inet fw prerouting rule 4 continue
                prerouting inet fw prerouting policy accept
               *forward inet fw forward rule 1 accept""",
            "request 2": """prerouting inet fw prerouting rule 1 continue
                prerouting inet fw prerouting rule 2 accept
               *forward inet fw forward rule 1 accept""",
        },
    ),
    Scenario(
        "invalid-and-logged-by-conntrack",
        frame(frames.ipv4(CLIENT[4], SERVER[4], frames.tcp(4000, 80, frames.SYN_ACK))),
        "*forward ip filter FORWARD rule 1 drop",
        iptables="*filter\n-A FORWARD -m conntrack --ctstate INVALID -j DROP",
        system={"net/netfilter/nf_conntrack_log_invalid": 255},
    ),
    Scenario(
        "conntrack-state-changes-on-loopback",
        ping(source="router", target="router"),
        {
            "request": """output ip filter OUTPUT rule 2 accept
               *input ip filter INPUT rule 2 accept""",
            "reply": """output ip filter OUTPUT rule 1 accept
               *input ip filter INPUT rule 1 accept""",
        },
        iptables="""*filter
            :INPUT DROP
            :OUTPUT DROP
            -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT
            -A INPUT -m conntrack --ctstate NEW -j ACCEPT
            -A OUTPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT
            -A OUTPUT -m conntrack --ctstate NEW -j ACCEPT""",
        nft="""table inet fw {
            chain input { type filter hook input priority 0; policy drop; ct state established accept
                ct state new accept; }
            chain output { type filter hook output priority 0; policy drop; ct state established accept
                ct state new accept; }
        }""",
        nft_path={
            "request": "output inet fw output rule 2 accept; *input inet fw input rule 2 accept",
            "reply": "output inet fw output rule 1 accept; *input inet fw input rule 1 accept",
        },
    ),
    Scenario(
        "error-passing-through",
        udp(9, listen=False),
        {
            "request": "*forward ip filter FORWARD rule 2 accept",
            "error": "*forward ip filter FORWARD rule 1 accept",
        },
        iptables="""*filter
            :FORWARD DROP
            -A FORWARD -m conntrack --ctstate RELATED -j ACCEPT
            -A FORWARD -p udp -j ACCEPT""",
        nft="""table inet fw { chain forward { type filter hook forward priority 0; policy drop
            ct state related accept
            meta l4proto udp accept
        }; }""",
        nft_path={
            "request": "*forward inet fw forward rule 2 accept",
            "error": "*forward inet fw forward rule 1 accept",
        },
    ),
    Scenario(
        "error-passing-through-and-dropped",
        udp(9, listen=False),
        {
            "request": "*forward ip filter FORWARD policy accept",
            "error": "*forward ip filter FORWARD rule 1 drop",
        },
        iptables="*filter\n-A FORWARD -p icmp -m icmp --icmp-type 3/3 -j DROP",
        nft="table inet fw { chain forward { type filter hook forward priority 0; "
        "icmp type destination-unreachable icmp code 3 drop; }; }",
        nft_path={
            "request": "*forward inet fw forward policy accept",
            "error": "*forward inet fw forward rule 1 drop",
        },
    ),
    Scenario(
        "error-through-nat",
        udp(5353, target="router", listen=False),
        {
            "request": """prerouting ip nat PREROUTING rule 1 accept
               *forward ip filter FORWARD rule 2 accept
                postrouting ip nat POSTROUTING rule 1 accept""",
            "error": "*forward ip filter FORWARD rule 1 accept",
        },
        iptables="""*nat
            -A PREROUTING -i client -p udp -j DNAT --to-destination 198.51.100.2:9
            -A POSTROUTING -o server -j MASQUERADE
            *filter
            :FORWARD DROP
            -A FORWARD -m conntrack --ctstate RELATED -j ACCEPT
            -A FORWARD -p udp -m udp --dport 9 -j ACCEPT""",
        nft="""table ip fw {
            chain before { type nat hook prerouting priority -100
                iifname "client" udp dport 5353 dnat to 198.51.100.2:9; }
            chain after { type nat hook postrouting priority 100; oifname "server" masquerade; }
            chain forward { type filter hook forward priority 0; policy drop; ct state related accept
                udp dport 9 accept; }
        }""",
        nft_path={
            "request": """prerouting ip fw before rule 1 accept
               *forward ip fw forward rule 2 accept
                postrouting ip fw after rule 1 accept""",
            "error": "*forward ip fw forward rule 1 accept",
        },
    ),
    Scenario(
        "error-through-the-router-ipv6",
        udp(9, family=6, listen=False),
        {
            "request": "*forward ip6 filter FORWARD policy accept",
            "error": "*forward ip6 filter FORWARD rule 1 accept",
        },
        ip6tables="*filter\n-A FORWARD -m conntrack --ctstate RELATED -j ACCEPT",
        nft="table inet fw { chain forward { type filter hook forward priority 0; ct state related accept; }; }",
        nft_path={
            "request": "*forward inet fw forward policy accept",
            "error": "*forward inet fw forward rule 1 accept",
        },
    ),
)

_LOSS = "prerouting ip mangle PREROUTING policy accept; undecided after prerouting"
_NFT_LOSS = "prerouting inet fw prerouting policy accept; undecided after prerouting"
_MANGLE = "*mangle\n*filter"
_PREROUTING = """table inet fw {
    chain prerouting { type filter hook prerouting priority -150; }
    chain input { type filter hook input priority 0; }
    chain forward { type filter hook forward priority 0; }
    chain output { type filter hook output priority 0; }
}"""
_SENT = """output ip mangle OUTPUT policy accept
          *output ip filter OUTPUT policy accept
           postrouting ip mangle POSTROUTING policy accept"""

LOST = (
    Scenario(
        "rp-filter",
        frame(frames.ipv4("198.51.100.77", SERVER[4], frames.udp(4000, 53))),
        _LOSS,
        iptables=_MANGLE,
        nft=_PREROUTING,
        nft_path=_NFT_LOSS,
        system={"net/ipv4/conf/all/rp_filter": 1},
    ),
    Scenario(
        "rp-filter-without-a-chain-before",
        frame(frames.ipv4("198.51.100.77", SERVER[4], frames.udp(4000, 53))),
        "undecided after prerouting",
        iptables="*filter",
        nft="table inet fw { chain forward { type filter hook forward priority 0; }; }",
        system={"net/ipv4/conf/all/rp_filter": 1},
    ),
    Scenario(
        "martian-source",
        frame(frames.ipv4("127.0.0.1", SERVER[4], frames.udp(4000, 53))),
        _LOSS,
        iptables=_MANGLE,
        nft=_PREROUTING,
        nft_path=_NFT_LOSS,
    ),
    Scenario(
        "forwarding-is-off",
        udp(53, listen=False),
        _LOSS,
        iptables=_MANGLE,
        nft=_PREROUTING,
        nft_path=_NFT_LOSS,
        system={"net/ipv4/ip_forward": 0},
    ),
    Scenario(
        "broadcast",
        frame(frames.ipv4(CLIENT[4], "192.0.2.255", frames.udp(4000, 53))),
        """prerouting ip mangle PREROUTING policy accept
           input ip mangle INPUT policy accept
          *input ip filter INPUT policy accept""",
        iptables=_MANGLE,
        nft=_PREROUTING,
        nft_path="prerouting inet fw prerouting policy accept; *input inet fw input policy accept",
    ),
    Scenario(
        "no-route",
        frame(frames.ipv4(CLIENT[4], "172.31.9.9", frames.udp(4000, 53))),
        {"request": _LOSS, "error": _SENT},
        iptables=_MANGLE,
        nft=_PREROUTING,
        nft_path={"request": _NFT_LOSS, "error": "*output inet fw output policy accept"},
    ),
    Scenario(
        "no-route-ipv6",
        frame(frames.ipv6(CLIENT[6], "2001:db8:ffff::1", frames.udp(4000, 53))),
        {
            "request": "prerouting ip6 mangle PREROUTING policy accept; undecided after prerouting",
            "error": _SENT.replace(" ip ", " ip6 "),
        },
        ip6tables=_MANGLE,
        nft=_PREROUTING,
        nft_path={"request": _NFT_LOSS, "error": "*output inet fw output policy accept"},
    ),
    Scenario(
        "blackhole",
        frame(frames.ipv4(CLIENT[4], SERVER_SILENT[4], frames.udp(4000, 53))),
        _LOSS,
        iptables=_MANGLE,
        nft=_PREROUTING,
        nft_path=_NFT_LOSS,
        commands=(f"ip route add blackhole {SERVER_SILENT[4]}/32",),
    ),
    Scenario(
        "time-to-live",
        frame(frames.ipv4(CLIENT[4], SERVER[4], frames.udp(4000, 53), ttl=1)),
        {"request": _LOSS, "error": _SENT},
        iptables=_MANGLE,
        nft=_PREROUTING,
        nft_path={"request": _NFT_LOSS, "error": "*output inet fw output policy accept"},
    ),
    Scenario(
        "hop-limit",
        frame(frames.ipv6(CLIENT[6], SERVER[6], frames.udp(4000, 53), hops=1)),
        {
            "request": "prerouting ip6 mangle PREROUTING policy accept; undecided after prerouting",
            "error": _SENT.replace(" ip ", " ip6 "),
        },
        ip6tables=_MANGLE,
        nft=_PREROUTING,
        nft_path={"request": _NFT_LOSS, "error": "*output inet fw output policy accept"},
    ),
    Scenario(
        "too-big",
        frame(frames.ipv4(CLIENT[4], SERVER[4], frames.udp(4000, 53, bytes(1000)), flags=0x4000)),
        {"request": _LOSS, "error": _SENT},
        iptables=_MANGLE,
        nft=_PREROUTING,
        nft_path={"request": _NFT_LOSS, "error": "*output inet fw output policy accept"},
        commands=("ip link set server mtu 600",),
    ),
    Scenario(
        "lost-on-the-way-out",  # no route back to the client's network: the router has no answer to send either
        frame(frames.ipv4("172.31.9.9", ROUTER[4], frames.echo(77))),
        """prerouting ip mangle PREROUTING policy accept
           input ip mangle INPUT policy accept
          *input ip filter INPUT policy accept""",
        iptables=_MANGLE,
        nft=_PREROUTING,
        nft_path="prerouting inet fw prerouting policy accept; *input inet fw input policy accept",
    ),
    Scenario(
        "marked-then-lost",
        frame(frames.ipv4(CLIENT[4], "172.31.9.9", frames.tcp(4000, 80))),
        """prerouting ip mangle PREROUTING rule 1 continue
           prerouting ip mangle PREROUTING rule 2 accept
           undecided after prerouting""",
        iptables="*mangle\n-A PREROUTING -j MARK --set-mark 1\n-A PREROUTING -p tcp -j ACCEPT\n*filter\n:FORWARD DROP",
        nft="""table inet fw {
            chain prerouting { type filter hook prerouting priority -150; meta mark set 1; tcp dport 80 accept; }
            chain forward { type filter hook forward priority 0; policy drop; }
        }""",
        nft_path="""prerouting inet fw prerouting rule 1 continue
            prerouting inet fw prerouting rule 2 accept
            undecided after prerouting""",
    ),
)
