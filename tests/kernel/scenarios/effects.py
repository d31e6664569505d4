"""Rules that do something else than end the walk, and the tables raw, mangle and security."""

from __future__ import annotations

from support.sends import ping, tcp, udp
from support.walk import Scenario

__all__ = ["EFFECTS", "TABLES"]

EFFECTS = (
    Scenario(
        "mark-in-mangle-matched-in-filter",
        udp(53),
        """prerouting ip mangle PREROUTING rule 1 continue
           prerouting ip mangle PREROUTING policy accept
           forward ip mangle FORWARD policy accept
          *forward ip filter FORWARD rule 2 drop""",
        iptables="""*mangle
            -A PREROUTING -p udp -j MARK --set-mark 7
            *filter
            -A FORWARD -m mark --mark 8 -j ACCEPT
            -A FORWARD -m mark --mark 7 -j DROP""",
        nft="""table inet fw {
            chain prerouting { type filter hook prerouting priority -150; meta l4proto udp meta mark set 7; }
            chain forward { type filter hook forward priority 0; meta mark 8 accept; meta mark 7 drop; }
        }""",
        nft_path="""prerouting inet fw prerouting rule 1 continue
            prerouting inet fw prerouting policy accept
           *forward inet fw forward rule 2 drop""",
    ),
    Scenario(
        "log-before-drop",
        udp(53),
        "forward ip filter FORWARD rule 1 continue; *forward ip filter FORWARD rule 2 drop",
        iptables='*filter\n-A FORWARD -p udp -j LOG --log-prefix "dropped: " --log-level 4\n-A FORWARD -p udp -j DROP',
        nft="""table inet fw { chain forward { type filter hook forward priority 0
            udp dport 53 log prefix "dropped: "
            udp dport 53 drop
        }; }""",
        nft_path="forward inet fw forward rule 1 continue; *forward inet fw forward rule 2 drop",
    ),
    Scenario(
        "log-and-drop-in-a-chain",
        udp(53),
        """forward ip filter FORWARD rule 1 jump LOGDROP
           forward ip filter LOGDROP rule 1 continue
          *forward ip filter LOGDROP rule 2 drop""",
        iptables='*filter\n:LOGDROP\n-A FORWARD -j LOGDROP\n-A LOGDROP -j LOG --log-prefix "drop "\n-A LOGDROP -j DROP',
        nft="""table inet fw {
            chain logdrop { log prefix "drop "; drop; }
            chain forward { type filter hook forward priority 0; jump logdrop; }
        }""",
        nft_path="""forward inet fw forward rule 1 jump logdrop
            forward inet fw logdrop rule 1 continue
           *forward inet fw logdrop rule 2 drop""",
    ),
    Scenario(
        "nflog-to-the-group-of-the-traces",
        udp(53),
        """forward ip filter FORWARD rule 1 continue
           forward ip filter FORWARD rule 2 continue
          *forward ip filter FORWARD rule 3 drop""",
        iptables="""*filter
            -A FORWARD -p udp -j NFLOG
            -A FORWARD -p udp -j NFLOG --nflog-prefix "TRACE this "
            -A FORWARD -p udp -j DROP""",
        nft="""table inet fw { chain forward { type filter hook forward priority 0
            udp dport 53 log group 0
            udp dport 53 log prefix "TRACE this " group 0
            udp dport 53 drop
        }; }""",
        nft_path="""forward inet fw forward rule 1 continue
            forward inet fw forward rule 2 continue
           *forward inet fw forward rule 3 drop""",
    ),
    Scenario(
        "log-and-verdict-in-one-rule",
        udp(53),
        "*forward inet fw forward rule 1 drop",
        nft="""table inet fw { chain forward { type filter hook forward priority 0
            udp dport 53 counter log prefix "x" drop
        } }""",
    ),
    Scenario(
        "targets-that-let-a-packet-go-on",
        tcp(80),
        "\n".join(
            [
                "prerouting ip mangle PREROUTING policy accept",
                *(f"forward ip mangle FORWARD rule {number} continue" for number in range(1, 10)),
                "*forward ip mangle FORWARD policy accept",
                "postrouting ip mangle POSTROUTING policy accept",
            ]
        ),
        iptables="""*mangle
            -A FORWARD -p tcp -j MARK --set-xmark 0x1/0x1
            -A FORWARD -j MARK --or-mark 0x2
            -A FORWARD -p tcp -j CONNMARK --save-mark
            -A FORWARD -p tcp -j DSCP --set-dscp 0x0a
            -A FORWARD -p tcp -j TOS --set-tos 0x10/0x3f
            -A FORWARD -p tcp -j TTL --ttl-set 33
            -A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
            -A FORWARD -j CLASSIFY --set-class 1:2
            -A FORWARD -p tcp -j TCPOPTSTRIP --strip-options timestamp""",
    ),
    Scenario(
        "statements-that-let-a-packet-go-on",
        tcp(80),
        "\n".join(
            [
                *(f"forward inet fw forward rule {number} continue" for number in range(1, 9)),
                "*forward inet fw forward policy accept",
            ]
        ),
        nft="""table inet fw {
            set seen { type ipv4_addr; flags dynamic; }
            counter everything { }
            chain forward { type filter hook forward priority 0
                counter
                counter name everything
                meta mark set 1
                ct mark set meta mark
                ip dscp set cs1
                ip ttl set 33
                add @seen { ip saddr }
                meta priority set 1:2
            }
        }""",
    ),
    Scenario(
        "tracing-of-the-owner-s-own",
        udp(53),
        """prerouting ip raw PREROUTING rule 1 continue
           prerouting ip raw PREROUTING policy accept
          *forward ip filter FORWARD rule 1 drop""",
        iptables="*raw\n-A PREROUTING -p udp -j TRACE\n*filter\n-A FORWARD -p udp -j DROP",
        nft="""table inet fw {
            chain raw { type filter hook prerouting priority -300; udp dport 53 meta nftrace set 1; }
            chain forward { type filter hook forward priority 0; udp dport 53 drop; }
        }""",
        nft_path="""prerouting inet fw raw rule 1 continue
            prerouting inet fw raw policy accept
           *forward inet fw forward rule 1 drop""",
    ),
    Scenario(
        "copy-of-a-packet",
        udp(53, traces=2),
        {
            "request": "forward ip filter FORWARD rule 1 continue; *forward ip filter FORWARD policy accept",
            "request 2": "*output ip filter OUTPUT policy accept",
        },
        iptables="*filter\n-A FORWARD -i client -p udp -j TEE --gateway 198.51.100.2",
        nft="""table ip fw {
            chain forward { type filter hook forward priority 0; iifname "client" dup to 198.51.100.2; }
            chain output { type filter hook output priority 0; }
        }""",
        nft_path={
            "request": "forward ip fw forward rule 1 continue; *forward ip fw forward policy accept",
            "request 2": "*output ip fw output policy accept",
        },
        optional=True,
    ),
    Scenario(
        "limit",
        udp(53, count=3),
        {
            "request": "*forward ip filter FORWARD rule 1 accept",
            "request 2": "*forward ip filter FORWARD rule 1 accept",
            "request 3": "*forward ip filter FORWARD rule 2 drop",
        },
        iptables="*filter\n-A FORWARD -m limit --limit 1/hour --limit-burst 2 -j ACCEPT\n-A FORWARD -j DROP",
        nft="""table inet fw { chain forward { type filter hook forward priority 0
            limit rate 1/hour burst 2 packets accept
            drop
        }; }""",
        nft_path={
            "request": "*forward inet fw forward rule 1 accept",
            "request 2": "*forward inet fw forward rule 1 accept",
            "request 3": "*forward inet fw forward rule 2 drop",
        },
    ),
    Scenario(
        "limit-over",
        udp(53, count=2),
        {
            "request": "*forward ip filter FORWARD policy accept",
            "request 2": "*forward ip filter FORWARD rule 1 drop",
        },
        iptables="*filter\n-A FORWARD -m hashlimit --hashlimit-above 1/hour --hashlimit-burst 1 "
        "--hashlimit-mode srcip --hashlimit-name scenario -j DROP",
        nft="table inet fw { chain forward { type filter hook forward priority 0; "
        "limit rate over 1/hour burst 1 packets drop; }; }",
        nft_path={
            "request": "*forward inet fw forward policy accept",
            "request 2": "*forward inet fw forward rule 1 drop",
        },
    ),
    Scenario(
        "every-second-packet",
        udp(53, count=3),
        {
            "request": "*forward ip filter FORWARD policy accept",
            "request 2": "*forward ip filter FORWARD rule 1 drop",
            "request 3": "*forward ip filter FORWARD policy accept",
        },
        iptables="*filter\n-A FORWARD -m statistic --mode nth --every 2 --packet 1 -j DROP",
        nft="""table inet fw { chain forward { type filter hook forward priority 0
            numgen inc mod 2 vmap { 0 : continue, 1 : drop }
        }; }""",
        nft_path={
            "request": "forward inet fw forward rule 1 continue; *forward inet fw forward policy accept",
            "request 2": "*forward inet fw forward rule 1 drop",
            "request 3": "forward inet fw forward rule 1 continue; *forward inet fw forward policy accept",
        },
    ),
    Scenario(
        "recent",
        udp(53, count=2),
        {
            "request": "forward ip filter FORWARD rule 2 continue; *forward ip filter FORWARD policy accept",
            "request 2": "*forward ip filter FORWARD rule 1 drop",
        },
        iptables="*filter\n-A FORWARD -m recent --rcheck --name r -j DROP\n-A FORWARD -m recent --set --name r",
        nft="""table inet fw {
            set recent { type ipv4_addr; flags dynamic, timeout; timeout 1m; }
            chain forward { type filter hook forward priority 0; ip saddr @recent drop; add @recent { ip saddr }; }
        }""",
        nft_path={
            "request": "forward inet fw forward rule 2 continue; *forward inet fw forward policy accept",
            "request 2": "*forward inet fw forward rule 1 drop",
        },
    ),
    Scenario(
        "multiport",
        (udp(53), udp(54, name="other")),
        {
            "request": "*forward ip filter FORWARD rule 2 accept",
            "other request": "*forward ip filter FORWARD rule 3 drop",
        },
        iptables="""*filter
            -A FORWARD -p udp -m multiport --dports 50:52,55 -j DROP
            -A FORWARD -p udp -m multiport --dports 53,80 -j ACCEPT
            -A FORWARD -p udp -m multiport ! --ports 53 -j DROP""",
        nft="""table inet fw { chain forward { type filter hook forward priority 0
            udp dport { 50-52, 55 } drop
            udp dport { 53, 80 } accept
            udp dport != { 53 } drop
        }; }""",
        nft_path={
            "request": "*forward inet fw forward rule 2 accept",
            "other request": "*forward inet fw forward rule 3 drop",
        },
    ),
    Scenario(
        "address-ranges-and-types",
        udp(53, target="router"),
        """input ip filter INPUT rule 2 continue
           input ip filter INPUT rule 3 continue
          *input ip filter INPUT rule 4 drop""",
        iptables="""*filter
            -A INPUT -m iprange --src-range 10.0.0.1-10.0.0.9 -j ACCEPT
            -A INPUT -m addrtype --dst-type LOCAL -j MARK --set-mark 1
            -A INPUT -m iprange --src-range 192.0.2.1-192.0.2.9 -j MARK --set-mark 2
            -A INPUT -s 192.0.2.0/24 ! -d 10.0.0.0/8 -i client -p udp -m udp --dport 53 -m mark --mark 2 -j DROP""",
        nft="""table inet fw { chain input { type filter hook input priority 0
            ip saddr 10.0.0.1-10.0.0.9 accept
            fib daddr type local meta mark set 1
            ip saddr 192.0.2.1-192.0.2.9 meta mark set 2
            iifname "client" ip saddr 192.0.2.0/24 ip daddr != 10.0.0.0/8 udp dport 53 meta mark 2 drop
        }; }""",
        nft_path="""input inet fw input rule 2 continue
            input inet fw input rule 3 continue
           *input inet fw input rule 4 drop""",
    ),
)

TABLES = (
    Scenario(
        "raw-drop",
        udp(53),
        "*prerouting ip raw PREROUTING rule 1 drop",
        iptables="*raw\n-A PREROUTING -p udp -j DROP\n*filter",
        nft="""table inet fw {
            chain raw { type filter hook prerouting priority -300; meta l4proto udp drop; }
            chain forward { type filter hook forward priority 0; }
        }""",
        nft_path="*prerouting inet fw raw rule 1 drop",
    ),
    Scenario(
        "notrack",
        udp(53, answer=True),
        {
            "request": """prerouting ip raw PREROUTING rule 1 continue
                prerouting ip raw PREROUTING policy accept
               *forward ip filter FORWARD rule 1 accept""",
            "reply": """prerouting ip raw PREROUTING rule 2 continue
                prerouting ip raw PREROUTING policy accept
               *forward ip filter FORWARD rule 1 accept""",
        },
        iptables="""*raw
            -A PREROUTING -p udp -m udp --dport 53 -j CT --notrack
            -A PREROUTING -p udp -m udp --sport 53 -j NOTRACK
            *filter
            :FORWARD DROP
            -A FORWARD -m conntrack --ctstate UNTRACKED -j ACCEPT""",
        nft="""table inet fw {
            chain raw { type filter hook prerouting priority -300; udp dport 53 notrack; udp sport 53 notrack; }
            chain forward { type filter hook forward priority 0; policy drop; ct state untracked accept; }
        }""",
        nft_path={
            "request": """prerouting inet fw raw rule 1 continue
                prerouting inet fw raw policy accept
               *forward inet fw forward rule 1 accept""",
            "reply": """prerouting inet fw raw rule 2 continue
                prerouting inet fw raw policy accept
               *forward inet fw forward rule 1 accept""",
        },
    ),
    Scenario(
        "notrack-keeps-out-of-nat",
        (udp(53), udp(54, name="tracked")),
        {
            "request": """prerouting ip raw PREROUTING rule 1 continue
               *prerouting ip raw PREROUTING policy accept""",
            "tracked request": """prerouting ip raw PREROUTING policy accept
                prerouting ip nat PREROUTING policy accept
               *postrouting ip nat POSTROUTING rule 1 accept""",
        },
        iptables="""*raw
            -A PREROUTING -p udp -m udp --dport 53 -j CT --notrack
            *nat
            -A POSTROUTING -o server -j SNAT --to-source 198.51.100.1""",
        nft="""table ip fw {
            chain raw { type filter hook prerouting priority -300; udp dport 53 notrack; }
            chain before { type nat hook prerouting priority -100; }
            chain after { type nat hook postrouting priority 100; oifname "server" snat to 198.51.100.1; }
        }""",
        nft_path={
            "request": """prerouting ip fw raw rule 1 continue
               *prerouting ip fw raw policy accept""",
            "tracked request": """prerouting ip fw raw policy accept
                prerouting ip fw before policy accept
               *postrouting ip fw after rule 1 accept""",
        },
    ),
    Scenario(
        "raw-on-the-way-out",
        udp(53, source="router"),
        """output ip raw OUTPUT rule 1 continue
           output ip raw OUTPUT policy accept
          *output ip filter OUTPUT rule 1 accept""",
        iptables="""*raw
            -A OUTPUT -o server -j CT --notrack
            *filter
            :OUTPUT DROP
            -A OUTPUT -m conntrack --ctstate UNTRACKED -j ACCEPT""",
        nft="""table ip fw {
            chain raw { type filter hook output priority -300; oifname "server" notrack; }
            chain output { type filter hook output priority 0; policy drop; ct state untracked accept; }
        }""",
        nft_path="""output ip fw raw rule 1 continue
            output ip fw raw policy accept
           *output ip fw output rule 1 accept""",
    ),
    Scenario(
        "mangle-drop-in-prerouting",
        udp(53),
        "*prerouting ip mangle PREROUTING rule 1 drop",
        iptables="*mangle\n-A PREROUTING -p udp -j DROP",
        nft="table inet fw { chain prerouting { type filter hook prerouting priority -150; udp dport 53 drop; }; }",
        nft_path="*prerouting inet fw prerouting rule 1 drop",
    ),
    Scenario(
        "mangle-drop-in-forward",
        udp(53),
        "prerouting ip mangle PREROUTING policy accept; *forward ip mangle FORWARD policy drop",
        iptables="*mangle\n:FORWARD DROP\n*filter\n-A FORWARD -j ACCEPT",
        nft="""table inet fw {
            chain prerouting { type filter hook prerouting priority -150; }
            chain mangle { type filter hook forward priority -150; policy drop; }
            chain forward { type filter hook forward priority 0; accept; }
        }""",
        nft_path="prerouting inet fw prerouting policy accept; *forward inet fw mangle policy drop",
    ),
    Scenario(
        "mangle-drop-in-postrouting",
        udp(53),
        """prerouting ip mangle PREROUTING policy accept
           forward ip mangle FORWARD policy accept
           forward ip filter FORWARD rule 1 accept
          *postrouting ip mangle POSTROUTING rule 1 drop""",
        iptables="*mangle\n-A POSTROUTING -o server -j DROP\n*filter\n-A FORWARD -j ACCEPT",
        nft="""table inet fw {
            chain forward { type filter hook forward priority 0; accept; }
            chain postrouting { type filter hook postrouting priority -150; oifname "server" drop; }
        }""",
        nft_path="forward inet fw forward rule 1 accept; *postrouting inet fw postrouting rule 1 drop",
    ),
    Scenario(
        "accepted-in-mangle-only",
        udp(53),
        """prerouting ip mangle PREROUTING rule 1 accept
          *forward ip mangle FORWARD policy accept
           postrouting ip mangle POSTROUTING policy accept""",
        iptables="*mangle\n-A PREROUTING -p udp -j ACCEPT",
    ),
    Scenario(
        "mangle-on-the-way-out",
        udp(53, source="router"),
        "*output ip mangle OUTPUT rule 1 accept; postrouting ip mangle POSTROUTING policy accept",
        iptables="*mangle\n-A OUTPUT -p udp -j ACCEPT",
    ),
    Scenario(
        "filter-is-preferred-to-mangle-and-security",
        udp(53),
        """prerouting ip mangle PREROUTING policy accept
           forward ip mangle FORWARD rule 1 accept
          *forward ip filter FORWARD policy accept
           forward ip security FORWARD rule 1 accept
           postrouting ip mangle POSTROUTING policy accept""",
        iptables="*mangle\n-A FORWARD -j ACCEPT\n*filter\n*security\n-A FORWARD -p udp -j ACCEPT",
    ),
    Scenario(
        "security-drop",
        udp(53),
        "forward ip filter FORWARD rule 1 accept; *forward ip security FORWARD rule 1 drop",
        iptables="*filter\n-A FORWARD -j ACCEPT\n*security\n-A FORWARD -p udp -j DROP",
    ),
    Scenario(
        "all-tables-forward",
        udp(53, count=2),
        {
            "request": """prerouting ip raw PREROUTING policy accept
                prerouting ip mangle PREROUTING policy accept
                prerouting ip nat PREROUTING policy accept
                forward ip mangle FORWARD policy accept
               *forward ip filter FORWARD rule 1 accept
                forward ip security FORWARD policy accept
                postrouting ip mangle POSTROUTING policy accept
                postrouting ip nat POSTROUTING policy accept""",
            "request 2": """prerouting ip raw PREROUTING policy accept
                prerouting ip mangle PREROUTING policy accept
                forward ip mangle FORWARD policy accept
               *forward ip filter FORWARD rule 1 accept
                forward ip security FORWARD policy accept
                postrouting ip mangle POSTROUTING policy accept""",
        },
        iptables="*raw\n*mangle\n*nat\n*filter\n-A FORWARD -m conntrack --ctstate NEW -j ACCEPT\n*security",
    ),
    Scenario(
        "all-tables-input",
        udp(53, target="router"),
        """prerouting ip raw PREROUTING policy accept
           prerouting ip mangle PREROUTING policy accept
           prerouting ip nat PREROUTING policy accept
           input ip mangle INPUT policy accept
          *input ip filter INPUT rule 1 accept
           input ip security INPUT policy accept
           input ip nat INPUT policy accept""",
        iptables="*raw\n*mangle\n*nat\n*filter\n-A INPUT -m conntrack --ctstate NEW -j ACCEPT\n*security",
        only="iptables-legacy",
    ),
    Scenario(
        "all-tables-input-where-security-is-at-150",  # of iptables-nft 1.8.9 (xtables_ipv4 in iptables/nft.c), not 50
        udp(53, target="router"),
        """prerouting ip raw PREROUTING policy accept
           prerouting ip mangle PREROUTING policy accept
           prerouting ip nat PREROUTING policy accept
           input ip mangle INPUT policy accept
          *input ip filter INPUT rule 1 accept
           input ip nat INPUT policy accept
           input ip security INPUT policy accept""",
        iptables="*raw\n*mangle\n*nat\n*filter\n-A INPUT -m conntrack --ctstate NEW -j ACCEPT\n*security",
        only="iptables-nft",
    ),
    Scenario(
        "all-tables-output",
        udp(53, source="router"),
        """output ip raw OUTPUT policy accept
           output ip mangle OUTPUT policy accept
           output ip nat OUTPUT policy accept
          *output ip filter OUTPUT rule 1 accept
           output ip security OUTPUT policy accept
           postrouting ip mangle POSTROUTING policy accept
           postrouting ip nat POSTROUTING policy accept""",
        iptables="*raw\n*mangle\n*nat\n*filter\n-A OUTPUT -m conntrack --ctstate NEW -j ACCEPT\n*security",
    ),
    Scenario(
        "all-tables-loopback",
        ping(source="router", target="router"),
        {
            "request": """output ip raw OUTPUT policy accept
                output ip mangle OUTPUT policy accept
                output ip nat OUTPUT policy accept
                output ip filter OUTPUT policy accept
                output ip security OUTPUT policy accept
                postrouting ip mangle POSTROUTING policy accept
                postrouting ip nat POSTROUTING policy accept
                prerouting ip raw PREROUTING policy accept
                prerouting ip mangle PREROUTING policy accept
                input ip mangle INPUT policy accept
               *input ip filter INPUT rule 1 accept
                input ip security INPUT policy accept""",
            "reply": """output ip raw OUTPUT policy accept
                output ip mangle OUTPUT policy accept
                output ip filter OUTPUT policy accept
                output ip security OUTPUT policy accept
                postrouting ip mangle POSTROUTING policy accept
                prerouting ip raw PREROUTING policy accept
                prerouting ip mangle PREROUTING policy accept
                input ip mangle INPUT policy accept
               *input ip filter INPUT policy accept
                input ip security INPUT policy accept""",
        },
        iptables="*raw\n*mangle\n*nat\n*filter\n-A INPUT -m conntrack --ctstate NEW -j ACCEPT\n*security",
    ),
)
