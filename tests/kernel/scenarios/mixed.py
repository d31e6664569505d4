"""Several kinds of rules at once: every hook runs its chains by priority, whoever made them."""

from __future__ import annotations

from support.sends import BRIDGED, ping, tcp, udp
from support.walk import Scenario

__all__ = ["BRIDGES", "MIXED"]

MIXED = (
    Scenario(
        "legacy-accepts-nft-drops",
        udp(53),
        """iptables-legacy: forward ip filter FORWARD rule 1 accept
          *nft: forward inet fw forward rule 1 drop""",
        mixed=(
            ("iptables-legacy", "*filter\n-A FORWARD -p udp -j ACCEPT"),
            ("nft", "table inet fw { chain forward { type filter hook forward priority 10; udp dport 53 drop; } }"),
        ),
    ),
    Scenario(
        "nft-accepts-legacy-drops",
        udp(53),
        """nft: forward inet fw forward rule 1 accept
          *iptables-legacy: forward ip filter FORWARD rule 1 drop""",
        mixed=(
            ("iptables-legacy", "*filter\n-A FORWARD -j DROP"),
            ("nft", "table inet fw { chain forward { type filter hook forward priority -10; udp dport 53 accept; } }"),
        ),
    ),
    Scenario(
        "nft-drops-before-legacy",
        udp(53),
        """iptables-legacy: prerouting ip mangle PREROUTING rule 1 continue
           iptables-legacy: prerouting ip mangle PREROUTING policy accept
           iptables-legacy: forward ip mangle FORWARD policy accept
          *nft: forward inet fw forward rule 1 drop""",
        mixed=(
            ("iptables-legacy", "*mangle\n-A PREROUTING -j MARK --set-mark 1\n*filter\n-A FORWARD -j ACCEPT"),
            ("nft", "table inet fw { chain forward { type filter hook forward priority -10; meta mark 1 drop; } }"),
        ),
    ),
    Scenario(
        "both-accept",
        udp(53),
        """nft: forward inet fw forward rule 1 jump a
           nft: forward inet fw a rule 1 continue
           nft: forward inet fw a return
           nft: forward inet fw forward policy accept
           iptables-legacy: forward ip filter FORWARD rule 1 jump A
          *iptables-legacy: forward ip filter A rule 2 accept""",
        mixed=(
            ("iptables-legacy", "*filter\n:FORWARD DROP\n:A\n-A FORWARD -j A\n-A A -p tcp -j DROP\n-A A -j ACCEPT"),
            (
                "nft",
                """table inet fw {
                    chain a { counter; }
                    chain forward { type filter hook forward priority -1; jump a; }
                }""",
            ),
        ),
    ),
    Scenario(
        "interleaved-priorities",
        udp(53, count=3),
        {
            "request": """nft: prerouting inet fw p1 policy accept
                iptables-legacy: prerouting ip raw PREROUTING policy accept
                iptables-legacy: prerouting ip mangle PREROUTING policy accept
                nft: prerouting inet fw p2 policy accept
                iptables-legacy: prerouting ip nat PREROUTING policy accept
                iptables-legacy: forward ip mangle FORWARD policy accept
                nft: forward inet fw f1 policy accept
                iptables-legacy: forward ip filter FORWARD policy accept
               *nft: forward inet fw f2 policy accept
                iptables-legacy: forward ip security FORWARD policy accept
                iptables-legacy: postrouting ip mangle POSTROUTING policy accept
                nft: postrouting inet fw o1 policy accept
                iptables-legacy: postrouting ip nat POSTROUTING policy accept
                nft: postrouting inet fw o2 policy accept""",
            "request 3": """nft: prerouting inet fw p1 policy accept
                iptables-legacy: prerouting ip raw PREROUTING policy accept
                iptables-legacy: prerouting ip mangle PREROUTING policy accept
                nft: prerouting inet fw p2 policy accept
                iptables-legacy: forward ip mangle FORWARD policy accept
                nft: forward inet fw f1 policy accept
                iptables-legacy: forward ip filter FORWARD policy accept
               *nft: forward inet fw f2 policy accept
                iptables-legacy: forward ip security FORWARD policy accept
                iptables-legacy: postrouting ip mangle POSTROUTING policy accept
                nft: postrouting inet fw o1 policy accept
                nft: postrouting inet fw o2 policy accept""",
        },
        mixed=(
            ("iptables-legacy", "*raw\n*mangle\n*nat\n-A POSTROUTING -o client -j MASQUERADE\n*filter\n*security"),
            (
                "nft",
                """table inet fw {
                    chain p1 { type filter hook prerouting priority -305; }
                    chain p2 { type filter hook prerouting priority -145; }
                    chain f1 { type filter hook forward priority -145; }
                    chain f2 { type filter hook forward priority 25; }
                    chain o1 { type filter hook postrouting priority -10; }
                    chain o2 { type filter hook postrouting priority 120; }
                }""",
            ),
        ),
    ),
    Scenario(
        "legacy-and-nft-on-loopback",
        ping(source="router", target="router", count=2),
        {
            name: """iptables-legacy: output ip filter OUTPUT policy accept
                nft: output inet fw output policy accept
                nft: prerouting inet fw prerouting policy accept
                nft: input inet fw input rule 1 continue
                nft: input inet fw input policy accept
               *iptables-legacy: input ip filter INPUT policy accept"""
            for name in ("request", "request 2", "reply", "reply 2")
        },
        mixed=(
            ("iptables-legacy", "*filter"),
            (
                "nft",
                """table inet fw {
                    chain output { type filter hook output priority 10; }
                    chain prerouting { type filter hook prerouting priority -150; }
                    chain input { type filter hook input priority -10; counter; }
                }""",
            ),
        ),
    ),
    Scenario(
        "legacy-and-nft-on-input",
        tcp(22, target="router"),
        {
            "request": """iptables-legacy: prerouting ip mangle PREROUTING policy accept
                iptables-legacy: input ip mangle INPUT policy accept
                iptables-legacy: input ip filter INPUT rule 1 accept
               *nft: input inet fw input rule 1 accept""",
            "reply": """nft: output inet fw output policy accept
                iptables-legacy: output ip mangle OUTPUT policy accept
               *iptables-legacy: output ip filter OUTPUT rule 1 accept
                iptables-legacy: postrouting ip mangle POSTROUTING policy accept""",
        },
        mixed=(
            (
                "iptables-legacy",
                """*mangle
                *filter
                -A INPUT -p tcp -j ACCEPT
                -A OUTPUT -p tcp -m tcp --sport 22 -j ACCEPT""",
            ),
            (
                "nft",
                """table inet fw {
                    chain input { type filter hook input priority 200; policy drop; tcp dport 22 accept; }
                    chain output { type filter hook output priority -160; }
                }""",
            ),
        ),
    ),
    Scenario(
        "legacy-translates-nft-drops",
        udp(5353, target="router", listen=False),
        """iptables-legacy: prerouting ip nat PREROUTING rule 1 accept
          *nft: forward inet fw forward rule 1 drop""",
        mixed=(
            ("iptables-legacy", "*nat\n-A PREROUTING -p udp -j DNAT --to-destination 203.0.113.200:53"),
            (
                "nft",
                "table inet fw { chain forward { type filter hook forward priority 0; "
                "ip daddr 203.0.113.200 udp dport 53 drop; } }",
            ),
        ),
    ),
    Scenario(
        "nft-translates-legacy-accepts",
        tcp(8080, target="router", at="server"),
        {
            "request": """nft: prerouting ip fw before rule 1 accept
               *iptables-legacy: forward ip filter FORWARD rule 1 accept
                nft: postrouting ip fw after rule 1 accept""",
            "reply": "*iptables-legacy: forward ip filter FORWARD rule 2 accept",
        },
        mixed=(
            (
                "iptables-legacy",
                """*filter
                :FORWARD DROP
                -A FORWARD -d 198.51.100.2/32 -p tcp -j ACCEPT
                -A FORWARD -d 192.0.2.2/32 -p tcp -j ACCEPT""",
            ),
            (
                "nft",
                """table ip fw {
                    chain before { type nat hook prerouting priority -100; tcp dport 8080 dnat to 198.51.100.2; }
                    chain after { type nat hook postrouting priority 100; oifname "server" masquerade; }
                }""",
            ),
        ),
    ),
    Scenario(
        "nft-made-last-runs-first-at-equal-priority",
        udp(53),
        """nft: forward inet fw forward rule 1 accept
          *iptables-legacy: forward ip filter FORWARD rule 1 drop""",
        mixed=(
            ("iptables-legacy", "*filter\n-A FORWARD -p udp -j DROP"),
            ("nft", "table inet fw { chain forward { type filter hook forward priority 0; udp dport 53 accept; } }"),
        ),
    ),
    Scenario(
        "legacy-made-last-runs-first-at-equal-priority",
        udp(53),
        """iptables-legacy: forward ip filter FORWARD rule 1 accept
          *nft: forward inet fw forward rule 1 drop""",
        mixed=(
            ("nft", "table inet fw { chain forward { type filter hook forward priority 0; udp dport 53 drop; } }"),
            ("iptables-legacy", "*filter\n-A FORWARD -p udp -j ACCEPT"),
        ),
    ),
    Scenario(
        "legacy-drops-before-nft-at-equal-priority",
        udp(53),
        "*iptables-legacy: forward ip filter FORWARD policy drop",
        mixed=(
            ("nft", "table inet fw { chain forward { type filter hook forward priority 0; udp dport 53 accept; } }"),
            ("iptables-legacy", "*filter\n:FORWARD DROP"),
        ),
    ),
    Scenario(
        "both-iptables-with-the-same-chains",
        udp(53),
        """iptables-nft: forward ip filter FORWARD rule 1 jump A
           iptables-nft: forward ip filter A return
           iptables-nft: forward ip filter FORWARD policy accept
           iptables-legacy: forward ip filter FORWARD rule 1 jump A
          *iptables-legacy: forward ip filter A rule 1 drop""",
        mixed=(
            ("iptables-legacy", "*filter\n:A\n-A FORWARD -p udp -j A\n-A A -p udp -j DROP"),
            ("iptables-nft", "*filter\n:A\n-A FORWARD -p udp -j A\n-A A -p tcp -j DROP"),
        ),
    ),
    Scenario(
        "all-three-kinds",
        udp(53, answer=True),
        {
            "request": """iptables-nft: prerouting ip mangle PREROUTING policy accept
                nft: forward inet fw early policy accept
                iptables-nft: forward ip mangle FORWARD rule 1 continue
                iptables-nft: forward ip mangle FORWARD policy accept
                iptables-legacy: forward ip filter FORWARD policy accept
               *nft: forward inet fw late policy accept
                iptables-nft: postrouting ip mangle POSTROUTING policy accept""",
            "reply": """iptables-nft: prerouting ip mangle PREROUTING policy accept
                nft: forward inet fw early policy accept
                iptables-nft: forward ip mangle FORWARD rule 1 continue
                iptables-nft: forward ip mangle FORWARD policy accept
                iptables-legacy: forward ip filter FORWARD policy accept
               *nft: forward inet fw late rule 1 drop""",
        },
        mixed=(
            ("iptables-legacy", "*filter"),
            ("iptables-nft", "*mangle\n-A FORWARD -j MARK --set-mark 1"),
            (
                "nft",
                """table inet fw {
                    chain early { type filter hook forward priority -200; }
                    chain late { type filter hook forward priority 200; udp sport 53 drop; }
                }""",
            ),
        ),
    ),
    Scenario(
        "iptables-nft-and-nft",
        udp(53),
        """nft: forward inet fw forward rule 1 accept
           iptables-nft: forward ip filter FORWARD rule 2 continue
          *iptables-nft: forward ip filter FORWARD rule 3 drop""",
        mixed=(
            (
                "iptables-nft",
                "*filter\n-A FORWARD -p tcp -j DROP\n-A FORWARD -p udp -j MARK --set-mark 1\n-A FORWARD -j DROP",
            ),
            ("nft", "table inet fw { chain forward { type filter hook forward priority -1; udp dport 53 accept; } }"),
        ),
    ),
    Scenario(
        "nft-table-with-the-name-of-iptables",
        udp(53),
        """iptables-nft: forward ip filter FORWARD policy accept
          *nft: forward inet filter FORWARD rule 1 drop""",
        mixed=(
            ("iptables-nft", "*filter"),
            ("nft", "table inet filter { chain FORWARD { type filter hook forward priority 1; udp dport 53 drop; } }"),
        ),
    ),
    Scenario(
        "legacy-rejects-with-nft-around",
        udp(53),
        {
            "request": """nft: forward inet fw forward policy accept
               *iptables-legacy: forward ip filter FORWARD rule 1 reject""",
            "error": """iptables-legacy: output ip filter OUTPUT policy accept
               *nft: output inet fw output rule 1 accept""",
        },
        mixed=(
            ("iptables-legacy", "*filter\n-A FORWARD -p udp -j REJECT --reject-with icmp-port-unreachable"),
            (
                "nft",
                """table inet fw {
                    chain forward { type filter hook forward priority -10; }
                    chain output { type filter hook output priority 10; ip protocol icmp accept; }
                }""",
            ),
        ),
    ),
    Scenario(
        "legacy-and-nft-ipv6",
        udp(53, family=6, count=2),
        {
            name: """iptables-legacy: forward ip6 filter FORWARD rule 1 accept
                *nft: forward inet fw forward rule 1 drop"""
            for name in ("request", "request 2")
        },
        mixed=(
            ("ip6tables-legacy", "*filter\n-A FORWARD -p udp -j ACCEPT"),
            ("nft", "table inet fw { chain forward { type filter hook forward priority 10; udp dport 53 drop; } }"),
        ),
    ),
    Scenario(
        "legacy-behind-ingress",
        udp(53),
        """nft: ingress netdev fw ingress rule 1 continue
           nft: ingress netdev fw ingress policy accept
          *iptables-legacy: forward ip filter FORWARD rule 1 drop""",
        mixed=(
            ("iptables-legacy", "*filter\n-A FORWARD -p udp -j DROP"),
            (
                "nft",
                'table netdev fw { chain ingress { type filter hook ingress device "client" priority 0; counter; } }',
            ),
        ),
    ),
    Scenario(
        "legacy-of-one-version-nft-of-the-other",
        (udp(53), udp(53, family=6, name="six")),
        {
            "request": "*iptables-legacy: forward ip filter FORWARD policy drop",
            "six request": "*nft: forward ip6 fw forward policy drop",
        },
        mixed=(
            ("iptables-legacy", "*filter\n:FORWARD DROP"),
            ("nft", "table ip6 fw { chain forward { type filter hook forward priority 0; policy drop; } }"),
        ),
    ),
)

_WITHOUT_IP = {"net/bridge/bridge-nf-call-iptables": 0}
_WITH_IP = {"net/bridge/bridge-nf-call-iptables": 1}
_BRIDGED = udp(53, start=BRIDGED["client"], to=BRIDGED["server"])
_BRIDGE = """table bridge fw {
    chain prerouting { type filter hook prerouting priority -300; }
    chain forward { type filter hook forward priority -200; %s; }
    chain postrouting { type filter hook postrouting priority 300; }
}"""

BRIDGES = (
    Scenario(
        "bridge-drop",
        _BRIDGED,
        "prerouting bridge fw prerouting policy accept; *forward bridge fw forward rule 1 drop",
        nft=_BRIDGE % "udp dport 53 drop",
        system=_WITHOUT_IP,
        bridged=True,
    ),
    Scenario(
        "bridge-accept",
        _BRIDGED,
        """prerouting bridge fw prerouting policy accept
          *forward bridge fw forward rule 1 accept
           postrouting bridge fw postrouting policy accept""",
        nft=_BRIDGE % "udp dport 53 accept",
        system=_WITHOUT_IP,
        bridged=True,
    ),
    Scenario(
        "bridge-accept-by-policy",
        udp(53, start=BRIDGED["client"], to=BRIDGED["server"], count=2, answer=True),
        {
            "request": "*forward bridge fw forward policy accept",
            "request 2": "*forward bridge fw forward policy accept",
            "reply": "forward bridge fw forward rule 1 jump back; *forward bridge fw back rule 1 accept",
        },
        nft="""table bridge fw {
            chain back { accept; }
            chain forward { type filter hook forward priority 0; udp sport 53 jump back; }
        }""",
        system=_WITHOUT_IP,
        bridged=True,
    ),
    Scenario(
        "bridge-with-ip-rules",
        _BRIDGED,
        """nft: prerouting bridge fw prerouting policy accept
           nft: forward bridge fw forward rule 1 continue
           nft: forward bridge fw forward policy accept
          *iptables-nft: forward ip filter FORWARD rule 1 drop""",
        mixed=(
            ("nft", _BRIDGE % "udp dport 53 counter"),
            ("iptables-nft", "*filter\n-A FORWARD -i br0 -p udp -j DROP"),
        ),
        system=_WITH_IP,
        bridged=True,
    ),
    Scenario(
        "bridge-to-the-router",
        ping(start=BRIDGED["client"], to="172.16.0.1"),
        """prerouting bridge fw prerouting policy accept
           input bridge fw input policy accept
          *input ip fw input rule 1 drop""",
        nft="""table bridge fw {
            chain prerouting { type filter hook prerouting priority -300; }
            chain input { type filter hook input priority -200; }
        }
        table ip fw { chain input { type filter hook input priority 0; icmp type echo-request drop; } }""",
        system=_WITHOUT_IP,
        commands=("ip address add 172.16.0.1/24 dev br0",),
        bridged=True,
    ),
)
