"""What only native nft rules have: sets, maps, verdict maps, base chains in any number, at any hook and priority."""

from __future__ import annotations

from support.sends import ping, tcp, udp
from support.walk import Scenario

__all__ = ["HOOKS", "SETS"]

SETS = (
    Scenario(
        "named-sets",
        (udp(53), udp(54, name="other")),
        {
            "request": "*forward inet fw forward rule 2 drop",
            "other request": "*forward inet fw forward rule 3 accept",
        },
        nft="""table inet fw {
            set ports { type inet_service; elements = { 53, 80 }; }
            set nets { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.0.2.0/25 }; }
            set services { type inet_proto . inet_service; elements = { tcp . 80, udp . 54 }; }
            chain forward { type filter hook forward priority 0; policy drop
                tcp dport @ports accept
                ip saddr @nets udp dport @ports drop
                meta l4proto . th dport @services accept
            }
        }""",
    ),
    Scenario(
        "large-anonymous-set",
        udp(53),
        "*forward inet fw forward rule 1 drop",
        nft="table inet fw { chain forward { type filter hook forward priority 0; udp dport { "
        + ", ".join(str(port) for port in range(1, 100, 2))
        + " } drop; } }",
    ),
    Scenario(
        "map-to-a-mark",
        udp(53),
        "forward inet fw forward rule 1 continue; *forward inet fw forward rule 3 drop",
        nft="""table inet fw { chain forward { type filter hook forward priority 0
            meta mark set udp dport map { 53 : 5, 54 : 6 }
            meta mark set tcp dport map { 53 : 6 }
            meta mark 5 drop
        } }""",
    ),
    Scenario(
        "map-to-an-address",
        udp(5353, target="router", listen=False),
        "prerouting ip fw before rule 1 accept; *forward ip fw forward policy accept",
        nft="""table ip fw {
            map hosts { type inet_service : ipv4_addr; elements = { 5353 : 203.0.113.200 }; }
            chain before { type nat hook prerouting priority -100; dnat to udp dport map @hosts; }
            chain forward { type filter hook forward priority 0; }
        }""",
    ),
    Scenario(
        "verdict-map",
        (udp(53), udp(54, name="accepted"), udp(55, name="jump"), udp(56, name="goto"), udp(57, name="missing")),
        {
            "request": "*forward inet fw forward rule 1 drop",
            "accepted request": "*forward inet fw forward rule 1 accept",
            "jump request": """forward inet fw forward rule 1 jump a
                forward inet fw a rule 1 continue
                forward inet fw a return
               *forward inet fw forward rule 2 accept""",
            "goto request": """forward inet fw forward rule 1 goto a
                forward inet fw a rule 1 continue
                forward inet fw a return
               *forward inet fw forward policy drop""",
            "missing request": "*forward inet fw forward rule 2 accept",
        },
        nft="""table inet fw {
            chain a { counter; }
            chain forward { type filter hook forward priority 0; policy drop
                udp dport vmap { 53 : drop, 54 : accept, 55 : jump a, 56 : goto a }
                accept
            }
        }""",
    ),
    Scenario(
        "named-verdict-map",
        (tcp(80), udp(53, name="udp")),
        {
            "request": "forward inet fw forward rule 1 jump web; *forward inet fw web rule 1 reject",
            "udp request": """forward inet fw forward rule 1 jump other
                forward inet fw other return 1
               *forward inet fw forward policy accept""",
        },
        nft="""table inet fw {
            chain web { tcp dport 80 reject with tcp reset; }
            chain other { return; drop; }
            map protocols { type inet_proto : verdict; elements = { tcp : jump web, udp : jump other }; }
            chain forward { type filter hook forward priority 0; meta l4proto vmap @protocols; }
        }""",
    ),
    Scenario(
        "verdict-map-that-returns",
        udp(53),
        """forward inet fw forward rule 1 jump a
           forward inet fw a return 1
          *forward inet fw forward rule 2 drop""",
        nft="""table inet fw {
            chain a { udp dport vmap { 53 : return }; accept; }
            chain forward { type filter hook forward priority 0; jump a; drop; }
        }""",
    ),
    Scenario(
        "verdict-map-of-states",
        udp(53, count=2, answer=True),
        {
            "request": "forward inet fw forward rule 1 jump new; *forward inet fw new rule 1 accept",
            "reply": "*forward inet fw forward rule 1 accept",
            "request 2": "*forward inet fw forward rule 1 accept",
        },
        nft="""table inet fw {
            chain new { udp dport 53 accept; }
            chain forward { type filter hook forward priority 0; policy drop
                ct state vmap { invalid : drop, established : accept, related : accept, new : jump new }
            }
        }""",
    ),
    Scenario(
        "named-limit-and-quota",
        udp(53, count=3),
        {
            "request": "forward inet fw forward rule 1 continue; *forward inet fw forward policy accept",
            "request 2": "forward inet fw forward rule 1 continue; *forward inet fw forward policy accept",
            "request 3": "*forward inet fw forward rule 2 drop",
        },
        nft="""table inet fw {
            limit few { rate 1/hour burst 2 packets; }
            quota much { over 80 bytes; }
            chain forward { type filter hook forward priority 0; limit name "few" counter; quota name "much" drop; }
        }""",
    ),
    Scenario(
        "set-that-rules-fill",
        udp(53, count=2),
        {
            "request": "forward inet fw forward rule 2 continue; *forward inet fw forward policy accept",
            "request 2": "*forward inet fw forward rule 1 drop",
        },
        nft="""table inet fw {
            set seen { type ipv4_addr . inet_service; flags dynamic, timeout; timeout 1m; }
            chain forward { type filter hook forward priority 0
                ip saddr . udp dport @seen drop
                udp dport 53 update @seen { ip saddr . udp dport timeout 5s }
            }
        }""",
    ),
    Scenario(
        "limit-in-a-set",
        udp(53, count=2),
        {
            "request": "*forward inet fw forward policy accept",
            "request 2": "*forward inet fw forward rule 1 drop",
        },
        nft="""table inet fw {
            set many { type ipv4_addr; flags dynamic; }
            chain forward { type filter hook forward priority 0
                udp dport 53 add @many { ip saddr limit rate over 1/hour burst 1 packets } drop
            }
        }""",
    ),
)

HOOKS = (
    Scenario(
        "first-chain-accepts-second-drops",
        udp(53),
        "forward inet fw first rule 1 accept; *forward inet fw second rule 1 drop",
        nft="""table inet fw {
            chain second { type filter hook forward priority 10; udp dport 53 drop; }
            chain first { type filter hook forward priority 0; udp dport 53 accept; }
        }""",
    ),
    Scenario(
        "first-chain-drops",
        udp(53),
        "*forward inet fw first rule 1 drop",
        nft="""table inet fw {
            chain second { type filter hook forward priority 10; accept; }
            chain first { type filter hook forward priority -10; udp dport 53 drop; }
        }""",
    ),
    Scenario(
        "an-explicit-accept-is-preferred-to-a-later-policy",
        udp(53),
        """forward inet fw one policy accept
          *forward inet fw two rule 1 accept
           forward inet fw three policy accept""",
        nft="""table inet fw {
            chain one { type filter hook forward priority -10; }
            chain two { type filter hook forward priority 0; udp dport 53 accept; }
            chain three { type filter hook forward priority 10; }
        }""",
    ),
    Scenario(
        "of-two-explicit-accepts-the-last",
        udp(53),
        "forward inet fw one rule 1 accept; *forward inet fw two rule 1 accept",
        nft="""table inet fw {
            chain one { type filter hook forward priority -10; accept; }
            chain two { type filter hook forward priority 0; udp dport 53 accept; }
        }""",
    ),
    Scenario(
        "chains-of-three-families-at-one-hook",
        (udp(53), udp(53, family=6, name="six")),
        {
            "request": """forward ip fw forward policy accept
               *forward inet fw forward policy accept""",
            "six request": """forward inet fw forward policy accept
               *forward ip6 fw forward rule 1 drop""",
        },
        nft="""table inet fw { chain forward { type filter hook forward priority 0; } }
            table ip fw { chain forward { type filter hook forward priority -1; } }
            table ip6 fw { chain forward { type filter hook forward priority 1; drop; } }""",
    ),
    Scenario(
        "equal-priorities-the-chain-made-last-runs-first",  # nf_hook_entries_grow in net/netfilter/core.c
        udp(53),
        """forward inet two forward policy accept
          *forward inet one forward rule 1 drop""",
        nft="""table inet one { chain forward { type filter hook forward priority 0; drop; } }
            table inet two { chain forward { type filter hook forward priority 0; } }""",
    ),
    Scenario(
        "one-name-in-two-families",
        udp(53, target="router"),
        """nft: input inet filter INPUT rule 1 continue
           nft: input inet filter INPUT policy accept
          *iptables-nft: input ip filter INPUT rule 1 drop""",
        mixed=(
            ("iptables-nft", "*filter\n-A INPUT -p udp -j DROP"),
            (
                "nft",
                "table inet filter { chain INPUT { type filter hook input priority -1; udp dport 53 counter; } }",
            ),
        ),
    ),
    Scenario(
        "drop-at-450-below",
        udp(53),
        "*prerouting inet fw early rule 1 drop",
        nft="""table inet fw {
            chain early { type filter hook prerouting priority -450; udp dport 53 drop; }
            chain forward { type filter hook forward priority 0; }
        }""",
    ),
    Scenario(
        "accept-at-450-below",
        udp(53),
        """prerouting inet fw early rule 1 accept
           prerouting inet fw raw policy accept
          *forward inet fw forward policy accept""",
        nft="""table inet fw {
            chain early { type filter hook prerouting priority -450; udp dport 53 accept; }
            chain raw { type filter hook prerouting priority -300; }
            chain forward { type filter hook forward priority 0; }
        }""",
    ),
    Scenario(
        "output-at-450-below",
        udp(53, source="router", target="router"),
        """output inet fw early policy accept
           prerouting inet fw raw policy accept
          *input inet fw input rule 1 drop""",
        nft="""table inet fw {
            chain early { type filter hook output priority -450; }
            chain raw { type filter hook prerouting priority -301; }
            chain input { type filter hook input priority 0; drop; }
        }""",
    ),
    Scenario(
        "at-the-lowest-and-the-highest-priority",
        udp(53),
        """prerouting inet fw lowest rule 1 continue
           prerouting inet fw lowest policy accept
           prerouting inet fw highest policy accept
           forward inet fw lowest_forward policy accept
          *forward inet fw highest_forward policy accept
           postrouting inet fw out policy accept""",
        nft="""table inet fw {
            chain lowest { type filter hook prerouting priority -2147483648; udp dport 53 counter; }
            chain highest { type filter hook prerouting priority 2147483647; }
            chain lowest_forward { type filter hook forward priority -2147483648; }
            chain highest_forward { type filter hook forward priority 2147483647; }
            chain out { type filter hook postrouting priority 2147483647; }
        }""",
    ),
    Scenario(
        "drop-at-the-highest-priority",
        udp(53),
        "forward inet fw forward policy accept; *postrouting inet fw last rule 1 drop",
        nft="""table inet fw {
            chain forward { type filter hook forward priority 0; }
            chain last { type filter hook postrouting priority 2147483647; udp dport 53 drop; }
        }""",
    ),
    Scenario(
        "drop-of-input-at-the-highest-priority",
        udp(53, target="router"),
        "*input inet fw last rule 1 drop",
        nft="table inet fw { chain last { type filter hook input priority 2147483647; udp dport 53 drop; } }",
    ),
    Scenario(
        "where-tracing-itself-starts",
        udp(53),
        "prerouting inet fw start rule 1 continue; *prerouting inet fw start policy accept",
        nft="table inet fw { chain start { type filter hook prerouting priority -310; udp dport 53 counter; } }",
    ),
    Scenario(
        "all-hooks-forward",
        udp(53),
        """ingress netdev fw ingress policy accept
           prerouting inet fw prerouting policy accept
          *forward inet fw forward policy accept
           postrouting inet fw postrouting policy accept""",
        nft="""table netdev fw { chain ingress { type filter hook ingress device "client" priority 0; } }
            table inet fw {
                chain prerouting { type filter hook prerouting priority 0; }
                chain input { type filter hook input priority 0; }
                chain forward { type filter hook forward priority 0; }
                chain output { type filter hook output priority 0; }
                chain postrouting { type filter hook postrouting priority 0; }
            }""",
    ),
    Scenario(
        "dormant-table",
        udp(53),
        "*forward inet fw forward policy accept",
        nft="""table inet asleep { flags dormant; chain forward { type filter hook forward priority -1; drop; } }
            table inet fw { chain forward { type filter hook forward priority 0; } }""",
    ),
    Scenario(
        "table-without-base-chains",
        udp(53),
        "*forward inet fw forward policy accept",
        nft="""table inet unused { chain a { drop; } }
            table inet fw { chain forward { type filter hook forward priority 0; } }""",
    ),
    Scenario(
        "no-chain-on-the-way",
        udp(53),
        "",
        nft="table inet fw { chain output { type filter hook output priority 0; drop; } }",
    ),
    Scenario(
        "ingress-drop",
        udp(53),
        "*ingress netdev fw ingress rule 2 drop",
        nft="""table netdev fw {
            chain ingress { type filter hook ingress device "client" priority 0
                tcp dport 1 accept; udp dport 53 drop; }
        }""",
    ),
    Scenario(
        "ingress-accept",
        udp(53, answer=True),
        {
            "request": "*ingress netdev fw ingress rule 1 accept",
            "reply": "",
        },
        nft="""table netdev fw {
            chain ingress { type filter hook ingress device "client" priority 0; policy drop; udp dport 53 accept; }
        }""",
    ),
    Scenario(
        "ingress-of-two-devices",
        udp(53, answer=True),
        {
            "request": "ingress netdev fw ingress rule 1 jump a; ingress netdev fw a return; "
            "ingress netdev fw ingress policy accept; *forward inet fw forward rule 1 accept",
            "reply": "ingress netdev fw ingress rule 1 jump a; *ingress netdev fw a rule 1 drop",
        },
        nft="""table netdev fw {
            chain a { udp sport 53 drop; }
            chain ingress { type filter hook ingress devices = { client, server } priority 0; jump a; }
        }
        table inet fw { chain forward { type filter hook forward priority 0; accept; } }""",
    ),
    Scenario(
        "ingress-of-family-inet",
        udp(53),
        "ingress inet fw ingress rule 1 continue; *ingress inet fw ingress rule 2 drop",
        nft="""table inet fw {
            chain ingress { type filter hook ingress device "client" priority 0
                udp dport 53 counter; udp dport 53 drop; }
        }""",
    ),
    Scenario(
        "ingress-to-the-router",
        ping(target="router"),
        "ingress netdev fw ingress policy accept; *input inet fw input rule 1 drop",
        nft="""table netdev fw { chain ingress { type filter hook ingress device "client" priority -500; } }
            table inet fw { chain input { type filter hook input priority 0; icmp type echo-request drop; } }""",
    ),
    Scenario(
        "forwarded-at-ingress",
        udp(53, listen=False),
        "*ingress netdev fw ingress rule 1 stolen",
        nft="""table netdev fw {
            chain ingress { type filter hook ingress device "client" priority 0; udp dport 53 fwd to "server"; }
        }""",
    ),
    Scenario(
        "egress-drop",
        udp(53),
        "forward inet fw forward policy accept; *egress netdev fw egress rule 1 drop",
        nft="""table netdev fw { chain egress { type filter hook egress device "server" priority 0
                udp dport 53 drop; } }
            table inet fw { chain forward { type filter hook forward priority 0; } }""",
    ),
)
