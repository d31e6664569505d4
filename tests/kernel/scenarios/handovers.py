"""Packets that somebody else takes over: queues, proxies. And many packets at once."""

from __future__ import annotations

from conntracker.lab.topology import CLIENT, SERVER
from support import frames
from support.sends import frame, tcp, udp
from support.walk import Scenario

__all__ = ["HANDOVERS", "MANY"]

# In iptables' words alone: not every kernel has nft's own queue.
HANDOVERS = (
    Scenario(
        "queue-that-nobody-reads",
        udp(53),
        "*forward ip filter FORWARD rule 1 queue",
        iptables="*filter\n-A FORWARD -p udp -j NFQUEUE --queue-num 5",
    ),
    Scenario(
        "unconditional-queue",
        udp(53, target="router"),
        "input ip filter INPUT rule 1 jump q; *input ip filter q rule 1 queue",
        iptables="*filter\n:q\n-A INPUT -j q\n-A q -j NFQUEUE --queue-num 0",
    ),
    Scenario(
        "queue-that-is-bypassed",
        udp(53),
        """forward ip filter FORWARD rule 1 queue
          *forward ip security FORWARD rule 1 accept""",
        iptables="*filter\n-A FORWARD -p udp -j NFQUEUE --queue-num 5 --queue-bypass\n*security\n-A FORWARD -j ACCEPT",
    ),
    Scenario(
        "synproxy",
        tcp(80),
        """prerouting ip raw PREROUTING rule 1 continue
           prerouting ip raw PREROUTING policy accept
          *forward ip filter FORWARD rule 1 stolen""",
        iptables="""*raw
            -A PREROUTING -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j CT --notrack
            *filter
            -A FORWARD -p tcp -m conntrack --ctstate INVALID,UNTRACKED -j SYNPROXY --wscale 7 --mss 1460""",
        nft="""table ip fw {
            chain raw { type filter hook prerouting priority -300; tcp flags & (fin | syn | rst | ack) == syn notrack; }
            chain forward { type filter hook forward priority 0
                ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm
            }
        }""",
        nft_path="""prerouting ip fw raw rule 1 continue
            prerouting ip fw raw policy accept
           *forward ip fw forward rule 1 stolen""",
        optional=True,
    ),
    Scenario(
        "tproxy-without-a-proxy",
        udp(53),
        "*prerouting ip mangle PREROUTING rule 1 drop",
        iptables="*mangle\n-A PREROUTING -p udp -j TPROXY --on-port 5353 --tproxy-mark 0x1/0x1",
        only="iptables-nft",
        nft="""table ip fw { chain prerouting { type filter hook prerouting priority -150
            meta l4proto udp tproxy to :5353 accept
            udp dport 53 drop
        } }""",
        nft_path="*prerouting ip fw prerouting rule 2 drop",
        optional=True,
    ),
)

_DEEP = """*raw
    *mangle
    -A PREROUTING -p udp -j MARK --set-mark 1
    *filter
    :A
    -A FORWARD -p udp -j A
    -A FORWARD -j ACCEPT
    -A A -p udp -m udp --dport 53 -j DROP"""
_DEEP_NFT = """table inet fw {
    chain raw { type filter hook prerouting priority -300; }
    chain prerouting { type filter hook prerouting priority -150; meta l4proto udp meta mark set 1; }
    chain a { udp dport 53 drop; }
    chain forward { type filter hook forward priority 0; jump a; accept; }
}"""
_DROPPED = """prerouting ip raw PREROUTING policy accept
    prerouting ip mangle PREROUTING rule 1 continue
    prerouting ip mangle PREROUTING policy accept
    forward ip mangle FORWARD policy accept
    forward ip filter FORWARD rule 1 jump A
   *forward ip filter A rule 1 drop"""
_PASSED = """prerouting ip raw PREROUTING policy accept
    prerouting ip mangle PREROUTING rule 1 continue
    prerouting ip mangle PREROUTING policy accept
    forward ip mangle FORWARD policy accept
    forward ip filter FORWARD rule 1 jump A
    forward ip filter A return
   *forward ip filter FORWARD rule 2 accept
    postrouting ip mangle POSTROUTING policy accept"""
_DROPPED_NFT = """prerouting inet fw raw policy accept
    prerouting inet fw prerouting rule 1 continue
    prerouting inet fw prerouting policy accept
    forward inet fw forward rule 1 jump a
   *forward inet fw a rule 1 drop"""
_PASSED_NFT = """prerouting inet fw raw policy accept
    prerouting inet fw prerouting rule 1 continue
    prerouting inet fw prerouting policy accept
    forward inet fw forward rule 1 jump a
    forward inet fw a return
   *forward inet fw forward rule 2 accept"""
_FLOWS = range(100)

MANY = (
    Scenario(
        "many-flows-at-once",  # the kernel uses the numbers of its traces again
        tuple(udp(53 + flow % 2, name=f"{flow}", to="203.0.113.200", listen=False) for flow in _FLOWS),
        {f"{flow} request": (_DROPPED, _PASSED)[flow % 2] for flow in _FLOWS},
        iptables=_DEEP,
        nft=_DEEP_NFT,
        nft_path={f"{flow} request": (_DROPPED_NFT, _PASSED_NFT)[flow % 2] for flow in _FLOWS},
    ),
    Scenario(
        "four-packets-of-one-flow",
        udp(54, count=4, to="203.0.113.200", listen=False),
        {name: _PASSED for name in ("request", "request 2", "request 3", "request 4")},
        iptables=_DEEP,
        nft=_DEEP_NFT,
        nft_path={name: _PASSED_NFT for name in ("request", "request 2", "request 3", "request 4")},
    ),
    Scenario(
        "four-packets-that-look-alike",
        frame(frames.ipv4(CLIENT[4], SERVER[4], frames.udp(4000, 54)), count=4),
        {name: _PASSED for name in ("request", "request 2", "request 3", "request 4")},
        iptables=_DEEP,
        nft=_DEEP_NFT,
        nft_path={name: _PASSED_NFT for name in ("request", "request 2", "request 3", "request 4")},
    ),
    Scenario(
        "dropped-packets-that-look-alike",
        frame(frames.ipv4(CLIENT[4], SERVER[4], frames.udp(4000, 53)), count=3),
        {name: _DROPPED for name in ("request", "request 2", "request 3")},
        iptables=_DEEP,
        nft=_DEEP_NFT,
        nft_path={name: _DROPPED_NFT for name in ("request", "request 2", "request 3")},
    ),
    Scenario(
        "packets-that-look-alike-and-end-differently",
        frame(frames.ipv6(CLIENT[6], SERVER[6], frames.udp(4000, 53)), count=4),
        {
            "request": "*forward ip6 filter FORWARD rule 1 drop",
            "request 2": "*forward ip6 filter FORWARD rule 1 drop",
            "request 3": "*forward ip6 filter FORWARD policy accept",
            "request 4": "*forward ip6 filter FORWARD policy accept",
        },
        ip6tables="*filter\n-A FORWARD -m limit --limit 1/hour --limit-burst 2 -j DROP",
        nft="table ip6 fw { chain forward { type filter hook forward priority 0; "
        "limit rate 1/hour burst 2 packets drop; } }",
        nft_path={
            "request": "*forward ip6 fw forward rule 1 drop",
            "request 2": "*forward ip6 fw forward rule 1 drop",
            "request 3": "*forward ip6 fw forward policy accept",
            "request 4": "*forward ip6 fw forward policy accept",
        },
    ),
)
