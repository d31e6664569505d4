"""Network address translation, which only the first packet of a connection passes."""

from __future__ import annotations

from support.sends import ping, tcp, udp
from support.walk import Scenario

__all__ = ["NAT", "NAT_IPV6"]

_NAT_CHAINS = """
    chain before { type nat hook prerouting priority -100; %s }
    chain after { type nat hook postrouting priority 100; %s }
"""


def _table(before: str = "", after: str = "", rest: str = "", family: str = "ip") -> str:
    return f"table {family} fw {{ {_NAT_CHAINS % (before, after)} {rest} }}"


NAT = (
    Scenario(
        "dnat",
        tcp(8080, target="router", at="server"),
        {
            "request": """prerouting ip nat PREROUTING rule 1 accept
               *forward ip filter FORWARD rule 1 accept
                postrouting ip nat POSTROUTING policy accept""",
            "request 2": "*forward ip filter FORWARD rule 1 accept",
            "reply": "*forward ip filter FORWARD rule 2 accept",
        },
        iptables="""*nat
            -A PREROUTING -i client -p tcp -m tcp --dport 8080 -j DNAT --to-destination 198.51.100.2:8080
            *filter
            :FORWARD DROP
            -A FORWARD -d 198.51.100.2/32 -p tcp -m tcp --dport 8080 -j ACCEPT
            -A FORWARD -s 198.51.100.2/32 -p tcp -m tcp --sport 8080 -j ACCEPT""",
        nft=_table(
            'iifname "client" tcp dport 8080 dnat to 198.51.100.2;',
            rest="""chain forward { type filter hook forward priority 0; policy drop
                ip daddr 198.51.100.2 tcp dport 8080 accept
                ip saddr 198.51.100.2 tcp sport 8080 accept
            }""",
        ),
        nft_path={
            "request": """prerouting ip fw before rule 1 accept
               *forward ip fw forward rule 1 accept
                postrouting ip fw after policy accept""",
            "request 2": "*forward ip fw forward rule 1 accept",
            "reply": "*forward ip fw forward rule 2 accept",
        },
    ),
    Scenario(
        "dnat-to-another-port",
        udp(5353, target="router", listen=False),
        {
            "request": """prerouting ip nat PREROUTING rule 2 accept
               *forward ip filter FORWARD policy accept
                postrouting ip nat POSTROUTING policy accept""",
        },
        iptables="""*nat
            -A PREROUTING -p tcp -j DNAT --to-destination 198.51.100.2
            -A PREROUTING -p udp -m udp --dport 5353 -j DNAT --to-destination 203.0.113.200:53
            *filter""",
        nft=_table(
            "meta l4proto tcp dnat to 198.51.100.2; udp dport 5353 dnat to 203.0.113.200:53;",
            rest="chain forward { type filter hook forward priority 0; }",
        ),
        nft_path="""prerouting ip fw before rule 2 accept
           *forward ip fw forward policy accept
            postrouting ip fw after policy accept""",
    ),
    Scenario(
        "dnat-alone",
        udp(5353, target="router", listen=False),
        """*prerouting ip nat PREROUTING rule 1 accept
            postrouting ip nat POSTROUTING policy accept""",
        iptables="*nat\n-A PREROUTING -p udp -j DNAT --to-destination 203.0.113.200:53",
        nft=_table("meta l4proto udp dnat to 203.0.113.200:53;"),
        nft_path="*prerouting ip fw before rule 1 accept; postrouting ip fw after policy accept",
    ),
    Scenario(
        "snat",
        udp(53, count=2, answer=True),
        {
            "request": """prerouting ip nat PREROUTING policy accept
               *forward ip filter FORWARD policy accept
                postrouting ip nat POSTROUTING rule 1 accept""",
            "request 2": "*forward ip filter FORWARD policy accept",
            "reply": "*forward ip filter FORWARD policy accept",
            "reply 2": "*forward ip filter FORWARD policy accept",
        },
        iptables="""*nat
            -A POSTROUTING -o server -p udp -j SNAT --to-source 198.51.100.1:3333
            *filter""",
        nft=_table(
            after='oifname "server" meta l4proto udp snat to 198.51.100.1:3333;',
            rest="chain forward { type filter hook forward priority 0; }",
        ),
        nft_path={
            "request": """prerouting ip fw before policy accept
               *forward ip fw forward policy accept
                postrouting ip fw after rule 1 accept""",
            "request 2": "*forward ip fw forward policy accept",
            "reply": "*forward ip fw forward policy accept",
            "reply 2": "*forward ip fw forward policy accept",
        },
    ),
    Scenario(
        "masquerade",
        tcp(80, start="10.1.0.2"),
        {
            "request": """prerouting ip nat PREROUTING policy accept
               *forward ip filter FORWARD policy accept
                postrouting ip nat POSTROUTING rule 2 accept""",
            "request 2": "*forward ip filter FORWARD policy accept",
            "reply": "*forward ip filter FORWARD policy accept",
        },
        iptables="""*nat
            -A POSTROUTING -o client -j RETURN
            -A POSTROUTING -s 10.0.0.0/8 -o server -j MASQUERADE
            *filter""",
        nft=_table(
            after='oifname "client" return; ip saddr 10.0.0.0/8 oifname "server" masquerade;',
            rest="chain forward { type filter hook forward priority 0; }",
        ),
        nft_path={
            "request": """prerouting ip fw before policy accept
               *forward ip fw forward policy accept
                postrouting ip fw after rule 2 accept""",
            "request 2": "*forward ip fw forward policy accept",
            "reply": "*forward ip fw forward policy accept",
        },
    ),
    Scenario(
        "masquerade-alone",
        ping(start="10.1.0.2"),
        {
            "request": """prerouting ip nat PREROUTING policy accept
               *postrouting ip nat POSTROUTING rule 1 accept""",
        },
        iptables="*nat\n-A POSTROUTING -o server -j MASQUERADE",
        nft=_table(after='oifname "server" masquerade;'),
        nft_path="prerouting ip fw before policy accept; *postrouting ip fw after rule 1 accept",
    ),
    Scenario(
        "dnat-and-snat",
        tcp(8080, target="router", at="server"),
        {
            "request": """prerouting ip nat PREROUTING rule 1 accept
               *forward ip filter FORWARD policy accept
                postrouting ip nat POSTROUTING rule 1 accept""",
            "reply": "*forward ip filter FORWARD policy accept",
        },
        iptables="""*nat
            -A PREROUTING -p tcp -m tcp --dport 8080 -j DNAT --to-destination 198.51.100.2
            -A POSTROUTING -d 198.51.100.2/32 -j MASQUERADE
            *filter""",
        nft=_table(
            "tcp dport 8080 dnat to 198.51.100.2;",
            "ip daddr 198.51.100.2 masquerade;",
            "chain forward { type filter hook forward priority 0; }",
        ),
        nft_path={
            "request": """prerouting ip fw before rule 1 accept
               *forward ip fw forward policy accept
                postrouting ip fw after rule 1 accept""",
            "reply": "*forward ip fw forward policy accept",
        },
    ),
    Scenario(
        "redirect",
        tcp(80, at="router"),
        {
            "request": """prerouting ip nat PREROUTING rule 1 accept
               *input ip filter INPUT rule 1 accept
                input ip nat INPUT policy accept""",
            "request 2": "*input ip filter INPUT rule 1 accept",
        },
        iptables="""*nat
            -A PREROUTING -i client -p tcp -m tcp --dport 80 -j REDIRECT
            *filter
            :INPUT DROP
            -A INPUT -i client -p tcp -m tcp --dport 80 -j ACCEPT""",
        nft="""table ip fw {
            chain before { type nat hook prerouting priority -100; iifname "client" tcp dport 80 redirect; }
            chain inside { type nat hook input priority 100; }
            chain input { type filter hook input priority 0; policy drop; iifname "client" tcp dport 80 accept; }
        }""",
        nft_path={
            "request": """prerouting ip fw before rule 1 accept
               *input ip fw input rule 1 accept
                input ip fw inside policy accept""",
            "request 2": "*input ip fw input rule 1 accept",
        },
    ),
    Scenario(
        "redirect-to-another-port",
        udp(53, listen=False),
        """prerouting ip nat PREROUTING rule 1 accept
          *input ip filter INPUT rule 1 drop""",
        iptables="""*nat
            -A PREROUTING -p udp -m udp --dport 53 -j REDIRECT --to-ports 5353
            *filter
            -A INPUT -p udp -m udp --dport 5353 -j DROP""",
        nft="""table ip fw {
            chain before { type nat hook prerouting priority -100; udp dport 53 redirect to :5353; }
            chain input { type filter hook input priority 0; udp dport 5353 drop; }
        }""",
        nft_path="prerouting ip fw before rule 1 accept; *input ip fw input rule 1 drop",
    ),
    Scenario(
        "netmap",
        ping(to="203.0.113.130"),
        {
            "request": """prerouting ip nat PREROUTING rule 1 accept
               *forward ip filter FORWARD rule 1 accept
                postrouting ip nat POSTROUTING policy accept""",
        },
        iptables="""*nat
            -A PREROUTING -d 203.0.113.128/25 -j NETMAP --to 203.0.113.0/25
            *filter
            -A FORWARD -d 203.0.113.2/32 -j ACCEPT""",
        nft=_table(
            "dnat ip prefix to ip daddr map { 203.0.113.128/25 : 203.0.113.0/25 };",
            rest="chain forward { type filter hook forward priority 0; ip daddr 203.0.113.2 accept; }",
        ),
        nft_path="""prerouting ip fw before rule 1 accept
           *forward ip fw forward rule 1 accept
            postrouting ip fw after policy accept""",
    ),
    Scenario(
        "dnat-of-our-own",
        tcp(80, source="router", to="203.0.113.200", at="server"),
        {
            "request": """output ip nat OUTPUT rule 1 accept
               *output ip filter OUTPUT rule 1 accept
                postrouting ip nat POSTROUTING policy accept""",
            "request 2": "*output ip filter OUTPUT rule 1 accept",
            "reply": "*input ip filter INPUT policy accept",
        },
        iptables="""*nat
            -A OUTPUT -d 203.0.113.200/32 -p tcp -j DNAT --to-destination 198.51.100.2
            *filter
            :OUTPUT DROP
            -A OUTPUT -d 198.51.100.2/32 -p tcp -m tcp --dport 80 -j ACCEPT""",
        nft="""table ip fw {
            chain own { type nat hook output priority -100; ip daddr 203.0.113.200 dnat to 198.51.100.2; }
            chain after { type nat hook postrouting priority 100; }
            chain output { type filter hook output priority 0; policy drop; ip daddr 198.51.100.2 tcp dport 80 accept; }
            chain input { type filter hook input priority 0; }
        }""",
        nft_path={
            "request": """output ip fw own rule 1 accept
               *output ip fw output rule 1 accept
                postrouting ip fw after policy accept""",
            "request 2": "*output ip fw output rule 1 accept",
            "reply": "*input ip fw input policy accept",
        },
    ),
    Scenario(
        "redirect-of-our-own",
        udp(53, source="router", at="router"),
        """output ip nat OUTPUT rule 1 accept
           output ip filter OUTPUT policy accept
           postrouting ip nat POSTROUTING policy accept
          *input ip filter INPUT policy accept""",
        iptables="*nat\n-A OUTPUT -p udp -m udp --dport 53 -j REDIRECT\n*filter",
        nft="""table ip fw {
            chain own { type nat hook output priority -100; udp dport 53 redirect; }
            chain after { type nat hook postrouting priority 100; }
            chain output { type filter hook output priority 0; }
            chain input { type filter hook input priority 0; }
        }""",
        nft_path="""output ip fw own rule 1 accept
            output ip fw output policy accept
            postrouting ip fw after policy accept
           *input ip fw input policy accept""",
    ),
    Scenario(
        "dropped-after-dnat",
        tcp(8080, target="router", at="server"),
        "prerouting ip nat PREROUTING rule 1 accept; *forward ip filter FORWARD policy drop",
        iptables="""*nat
            -A PREROUTING -p tcp -m tcp --dport 8080 -j DNAT --to-destination 198.51.100.2:80
            *filter
            :FORWARD DROP
            -A FORWARD -p tcp -m tcp --dport 8080 -j ACCEPT""",
        nft=_table(
            "tcp dport 8080 dnat to 198.51.100.2:80;",
            rest="chain forward { type filter hook forward priority 0; policy drop; tcp dport 8080 accept; }",
        ),
        nft_path="prerouting ip fw before rule 1 accept; *forward ip fw forward policy drop",
    ),
    Scenario(
        "rejected-after-dnat",
        udp(5353, target="router", at="server"),
        {
            "request": "prerouting ip nat PREROUTING rule 1 accept; *forward ip filter FORWARD rule 1 reject",
            "error": "*output ip filter OUTPUT policy accept",
        },
        iptables="""*nat
            -A PREROUTING -p udp -j DNAT --to-destination 198.51.100.2:53
            *filter
            -A FORWARD -p udp -j REJECT --reject-with icmp-port-unreachable""",
        nft=_table(
            "meta l4proto udp dnat to 198.51.100.2:53;",
            rest="""chain forward { type filter hook forward priority 0; meta l4proto udp reject; }
                chain output { type filter hook output priority 0; }""",
        ),
        nft_path={
            "request": "prerouting ip fw before rule 1 accept; *forward ip fw forward rule 1 reject",
            "error": "*output ip fw output policy accept",
        },
    ),
    Scenario(
        "state-of-translation",
        tcp(8080, target="router", at="server"),
        {
            "request": """prerouting ip nat PREROUTING rule 1 accept
               *forward ip filter FORWARD rule 1 accept
                postrouting ip nat POSTROUTING policy accept""",
            "reply": "*forward ip filter FORWARD rule 1 accept",
        },
        iptables="""*nat
            -A PREROUTING -p tcp -m tcp --dport 8080 -j DNAT --to-destination 198.51.100.2
            *filter
            :FORWARD DROP
            -A FORWARD -m conntrack --ctstate DNAT --ctorigdstport 8080 -j ACCEPT""",
        nft=_table(
            "tcp dport 8080 dnat to 198.51.100.2;",
            rest="""chain forward { type filter hook forward priority 0; policy drop
                meta l4proto tcp ct status dnat ct original proto-dst 8080 accept
            }""",
        ),
        nft_path={
            "request": """prerouting ip fw before rule 1 accept
               *forward ip fw forward rule 1 accept
                postrouting ip fw after policy accept""",
            "reply": "*forward ip fw forward rule 1 accept",
        },
    ),
    Scenario(
        "snat-of-what-comes-in",
        udp(53, target="router"),
        """prerouting ip nat PREROUTING policy accept
          *input ip filter INPUT policy accept
           input ip nat INPUT rule 1 accept""",
        iptables="*nat\n-A INPUT -p udp -j SNAT --to-source 203.0.113.9\n*filter",
        nft="""table ip fw {
            chain before { type nat hook prerouting priority -100; }
            chain inside { type nat hook input priority 100; meta l4proto udp snat to 203.0.113.9; }
            chain input { type filter hook input priority 0; }
        }""",
        nft_path="""prerouting ip fw before policy accept
           *input ip fw input policy accept
            input ip fw inside rule 1 accept""",
    ),
    Scenario(
        "nat-in-user-chains",
        tcp(8080, target="router", at="server"),
        """prerouting ip nat PREROUTING rule 1 jump ports
           prerouting ip nat ports rule 2 accept
           postrouting ip nat POSTROUTING rule 1 jump out
           postrouting ip nat out return 1
          *postrouting ip nat POSTROUTING rule 2 accept""",
        iptables="""*nat
            :ports
            :out
            -A PREROUTING -p tcp -j ports
            -A ports -p tcp -m tcp --dport 8081 -j DNAT --to-destination 198.51.100.2:81
            -A ports -p tcp -m tcp --dport 8080 -j DNAT --to-destination 198.51.100.2:8080
            -A POSTROUTING -j out
            -A POSTROUTING -o server -j MASQUERADE
            -A out -j RETURN""",
        nft="""table ip fw {
            chain ports { tcp dport 8081 dnat to 198.51.100.2:81; tcp dport 8080 dnat to 198.51.100.2; }
            chain out { return; }
            chain before { type nat hook prerouting priority -100; meta l4proto tcp jump ports; }
            chain after { type nat hook postrouting priority 100; jump out; oifname "server" masquerade; }
        }""",
        nft_path="""prerouting ip fw before rule 1 jump ports
            prerouting ip fw ports rule 2 accept
            postrouting ip fw after rule 1 jump out
            postrouting ip fw out return 1
           *postrouting ip fw after rule 2 accept""",
    ),
    Scenario(
        "accept-in-nat-means-no-nat",
        udp(53),
        """prerouting ip nat PREROUTING rule 1 accept
          *forward ip filter FORWARD policy accept
           postrouting ip nat POSTROUTING rule 1 accept""",
        iptables="""*nat
            -A PREROUTING -p udp -j ACCEPT
            -A PREROUTING -p udp -j DNAT --to-destination 203.0.113.1
            -A POSTROUTING -j ACCEPT
            -A POSTROUTING -j MASQUERADE
            *filter""",
        nft=_table(
            "meta l4proto udp accept; meta l4proto udp dnat to 203.0.113.1;",
            "accept; masquerade;",
            "chain forward { type filter hook forward priority 0; }",
        ),
        nft_path="""prerouting ip fw before rule 1 accept
           *forward ip fw forward policy accept
            postrouting ip fw after rule 1 accept""",
    ),
    Scenario(
        "nat-chains-without-tracking-are-not-passed",
        udp(53),
        "*forward ip filter FORWARD policy accept",
        iptables="*nat\n-A PREROUTING -j ACCEPT\n*filter",
        nft=_table("accept;", rest="chain forward { type filter hook forward priority 0; }"),
        nft_path="*forward ip fw forward policy accept",
    ),
    Scenario(
        "the-first-nat-chain-that-translates-is-the-last",
        tcp(8080, target="router", at="server"),
        """prerouting ip one before rule 2 accept
           prerouting ip two before rule 1 accept
           postrouting ip one after policy accept
          *postrouting ip two after rule 1 accept
           """,
        nft="""table ip one {
            chain before { type nat hook prerouting priority -110; udp dport 1 accept; meta l4proto tcp accept; }
            chain after { type nat hook postrouting priority 90; }
        }
        table ip two {
            chain before { type nat hook prerouting priority -100; tcp dport 8080 dnat to 198.51.100.2; }
            chain after { type nat hook postrouting priority 100; masquerade; }
        }
        table ip three {
            chain before { type nat hook prerouting priority -90; tcp dport 8080 dnat to 203.0.113.1; }
            chain after { type nat hook postrouting priority 110; snat to 198.51.100.1; }
        }""",
    ),
    Scenario(
        "drop-in-a-nat-chain",
        udp(53),
        "*prerouting ip fw before rule 1 drop",
        nft=_table("udp dport 53 drop;", "masquerade;"),
    ),
    Scenario(
        "the-priority-of-a-nat-chain-orders-nat-chains-only",  # all run at -100 (nf_nat_register_fn in nf_nat_core.c)
        udp(53, listen=False),
        """prerouting ip fw mangle policy accept
          *prerouting ip fw early rule 1 accept""",
        nft="""table ip fw {
            chain mangle { type filter hook prerouting priority -150; }
            chain early { type nat hook prerouting priority -180; udp dport 53 dnat to 203.0.113.200; }
        }""",
    ),
)

NAT_IPV6 = (
    Scenario(
        "dnat-ipv6",
        tcp(8080, target="router", at="server", family=6),
        {
            "request": """prerouting ip6 nat PREROUTING rule 1 accept
               *forward ip6 filter FORWARD policy accept
                postrouting ip6 nat POSTROUTING rule 1 accept""",
            "reply": "*forward ip6 filter FORWARD policy accept",
        },
        ip6tables="""*nat
            -A PREROUTING -p tcp -m tcp --dport 8080 -j DNAT --to-destination [2001:db8:2::2]:8080
            -A POSTROUTING -o server -j MASQUERADE
            *filter""",
        nft=_table(
            "tcp dport 8080 dnat ip6 to [2001:db8:2::2]:8080;",
            'oifname "server" masquerade;',
            "chain forward { type filter hook forward priority 0; }",
            "inet",
        ),
        nft_path={
            "request": """prerouting inet fw before rule 1 accept
               *forward inet fw forward policy accept
                postrouting inet fw after rule 1 accept""",
            "reply": "*forward inet fw forward policy accept",
        },
    ),
    Scenario(
        "redirect-ipv6",
        udp(53, at="router", family=6),
        """prerouting ip6 nat PREROUTING rule 1 accept
          *input ip6 filter INPUT policy accept
           input ip6 nat INPUT policy accept""",
        ip6tables="*nat\n-A PREROUTING -p udp -m udp --dport 53 -j REDIRECT\n*filter",
        nft="""table ip6 fw {
            chain before { type nat hook prerouting priority -100; udp dport 53 redirect; }
            chain inside { type nat hook input priority 100; }
            chain input { type filter hook input priority 0; }
        }""",
        nft_path="""prerouting ip6 fw before rule 1 accept
           *input ip6 fw input policy accept
            input ip6 fw inside policy accept""",
    ),
)
