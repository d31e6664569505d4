"""User chains: jumps, gotos and returns, and where a rule stands."""

from __future__ import annotations

from support.sends import tcp, udp
from support.walk import Scenario

__all__ = ["CHAINS", "PLACES"]

CHAINS = (
    Scenario(
        "three-chains-deep",
        tcp(80),
        """forward ip filter FORWARD rule 2 jump A
           forward ip filter A rule 2 jump B
           forward ip filter B rule 1 jump C
          *forward ip filter C rule 2 drop""",
        iptables="""*filter
            :A
            :B
            :C
            -A FORWARD -p udp -j ACCEPT
            -A FORWARD -p tcp -j A
            -A A -p udp -j RETURN
            -A A -p tcp -j B
            -A B -p tcp -m tcp --dport 80 -j C
            -A C -p tcp -m tcp --dport 81 -j ACCEPT
            -A C -p tcp -m tcp --dport 80 -j DROP""",
        nft="""table inet fw {
            chain c { tcp dport 81 accept; tcp dport 80 drop; }
            chain b { tcp dport 80 jump c; }
            chain a { meta l4proto udp return; meta l4proto tcp jump b; }
            chain forward { type filter hook forward priority 0; udp dport 80 accept; jump a; }
        }""",
        nft_path="""forward inet fw forward rule 2 jump a
            forward inet fw a rule 2 jump b
            forward inet fw b rule 1 jump c
           *forward inet fw c rule 2 drop""",
    ),
    Scenario(
        "three-chains-deep-and-back",
        tcp(80),
        """forward ip filter FORWARD rule 1 jump A
           forward ip filter A rule 1 jump B
           forward ip filter B rule 1 jump C
           forward ip filter C rule 1 continue
           forward ip filter C return
           forward ip filter B return
           forward ip filter A rule 2 continue
           forward ip filter A return
          *forward ip filter FORWARD rule 2 accept""",
        iptables="""*filter
            :FORWARD DROP
            :A
            :B
            :C
            -A FORWARD -j A
            -A FORWARD -p tcp -j ACCEPT
            -A A -j B
            -A A -j MARK --set-mark 1
            -A B -j C
            -A C -p tcp -j MARK --set-mark 2
            -A C -p udp -j DROP""",
        nft="""table inet fw {
            chain c { meta l4proto tcp counter; meta l4proto udp drop; }
            chain b { jump c; }
            chain a { jump b; meta mark set 1; }
            chain forward { type filter hook forward priority 0; policy drop; jump a; meta l4proto tcp accept; }
        }""",
        nft_path="""forward inet fw forward rule 1 jump a
            forward inet fw a rule 1 jump b
            forward inet fw b rule 1 jump c
            forward inet fw c rule 1 continue
            forward inet fw c return
            forward inet fw b return
            forward inet fw a rule 2 continue
            forward inet fw a return
           *forward inet fw forward rule 2 accept""",
    ),
    Scenario(
        "return-on-a-condition",
        udp(53),
        """forward ip filter FORWARD rule 1 jump A
           forward ip filter A return 1
          *forward ip filter FORWARD policy accept""",
        iptables="*filter\n:A\n-A FORWARD -p udp -j A\n-A A -p udp -m udp --dport 53 -j RETURN\n-A A -j DROP",
        nft="""table inet fw {
            chain a { udp dport 53 return; drop; }
            chain forward { type filter hook forward priority 0; meta l4proto udp jump a; }
        }""",
        nft_path="""forward inet fw forward rule 1 jump a
            forward inet fw a return 1
           *forward inet fw forward policy accept""",
    ),
    Scenario(
        "unconditional-return-before-a-drop",
        udp(53),
        """forward ip filter FORWARD rule 1 jump A
           forward ip filter A return 2
          *forward ip filter FORWARD rule 2 accept""",
        iptables="""*filter
            :FORWARD DROP
            :A
            -A FORWARD -j A
            -A FORWARD -j ACCEPT
            -A A -p tcp -j DROP
            -A A -j RETURN
            -A A -j DROP""",
        nft="""table inet fw {
            chain a { meta l4proto tcp drop; return; drop; }
            chain forward { type filter hook forward priority 0; policy drop; jump a; accept; }
        }""",
        nft_path="""forward inet fw forward rule 1 jump a
            forward inet fw a return 2
           *forward inet fw forward rule 2 accept""",
    ),
    Scenario(
        "unconditional-return-as-last-rule",
        udp(53),
        """forward ip filter FORWARD rule 1 jump A
           forward ip filter A return 1
          *forward ip filter FORWARD policy drop""",
        iptables="*filter\n:FORWARD DROP\n:A\n-A FORWARD -j A\n-A A -j RETURN",
        nft="""table inet fw {
            chain a { return; }
            chain forward { type filter hook forward priority 0; policy drop; jump a; }
        }""",
        nft_path="""forward inet fw forward rule 1 jump a
            forward inet fw a return 1
           *forward inet fw forward policy drop""",
    ),
    Scenario(
        "return-in-a-base-chain",
        (tcp(80), udp(53, name="other")),
        {
            "request": "forward ip filter FORWARD return 1; *forward ip filter FORWARD policy accept",
            "other request": "*forward ip filter FORWARD rule 2 drop",
        },
        iptables="*filter\n-A FORWARD -p tcp -j RETURN\n-A FORWARD -j DROP",
        nft="table inet fw { chain forward { type filter hook forward priority 0; meta l4proto tcp return; drop; }; }",
        nft_path={
            "request": "forward inet fw forward return 1; *forward inet fw forward policy accept",
            "other request": "*forward inet fw forward rule 2 drop",
        },
    ),
    Scenario(
        "unconditional-return-in-a-base-chain",
        udp(53),
        "forward ip filter FORWARD return 1; *forward ip filter FORWARD policy drop",
        iptables="*filter\n:FORWARD DROP\n-A FORWARD -j RETURN\n-A FORWARD -j ACCEPT",
        nft="table inet fw { chain forward { type filter hook forward priority 0; policy drop; return; accept; }; }",
        nft_path="forward inet fw forward return 1; *forward inet fw forward policy drop",
    ),
    Scenario(
        "goto-from-a-base-chain",
        udp(53),
        """forward ip filter FORWARD rule 1 goto A
           forward ip filter A return
          *forward ip filter FORWARD policy drop""",
        iptables="""*filter
            :FORWARD DROP
            :A
            -A FORWARD -p udp -g A
            -A FORWARD -j ACCEPT
            -A A -p tcp -j ACCEPT""",
        nft="""table inet fw {
            chain a { meta l4proto tcp accept; }
            chain forward { type filter hook forward priority 0; policy drop; meta l4proto udp goto a; accept; }
        }""",
        nft_path="""forward inet fw forward rule 1 goto a
            forward inet fw a return
           *forward inet fw forward policy drop""",
    ),
    Scenario(
        "goto-from-a-user-chain",
        udp(53),
        """forward ip filter FORWARD rule 1 jump A
           forward ip filter A rule 1 goto B
           forward ip filter B return
          *forward ip filter FORWARD rule 2 accept""",
        iptables="""*filter
            :FORWARD DROP
            :A
            :B
            -A FORWARD -p udp -j A
            -A FORWARD -p udp -j ACCEPT
            -A A -g B
            -A A -j DROP
            -A B -p tcp -j DROP""",
        nft="""table inet fw {
            chain b { meta l4proto tcp drop; }
            chain a { goto b; drop; }
            chain forward { type filter hook forward priority 0; policy drop
                meta l4proto udp jump a
                meta l4proto udp accept
            }
        }""",
        nft_path="""forward inet fw forward rule 1 jump a
            forward inet fw a rule 1 goto b
            forward inet fw b return
           *forward inet fw forward rule 2 accept""",
    ),
    Scenario(
        "goto-and-a-returning-rule",
        udp(53),
        """forward ip filter FORWARD rule 1 jump A
           forward ip filter A rule 1 goto B
           forward ip filter B return 1
          *forward ip filter FORWARD rule 2 drop""",
        iptables="""*filter
            :A
            :B
            -A FORWARD -j A
            -A FORWARD -p udp -j DROP
            -A A -p udp -g B
            -A A -j ACCEPT
            -A B -p udp -j RETURN
            -A B -j ACCEPT""",
        nft="""table inet fw {
            chain b { meta l4proto udp return; accept; }
            chain a { meta l4proto udp goto b; accept; }
            chain forward { type filter hook forward priority 0; jump a; meta l4proto udp drop; }
        }""",
        nft_path="""forward inet fw forward rule 1 jump a
            forward inet fw a rule 1 goto b
            forward inet fw b return 1
           *forward inet fw forward rule 2 drop""",
    ),
    Scenario(
        "goto-that-decides",
        udp(53),
        "forward ip filter FORWARD rule 1 goto A; *forward ip filter A rule 1 accept",
        iptables="*filter\n:FORWARD DROP\n:A\n-A FORWARD -g A\n-A A -p udp -j ACCEPT",
        nft="""table inet fw {
            chain a { udp dport 53 accept; }
            chain forward { type filter hook forward priority 0; policy drop; goto a; }
        }""",
        nft_path="forward inet fw forward rule 1 goto a; *forward inet fw a rule 1 accept",
    ),
    Scenario(
        "unconditional-drop-in-a-user-chain",
        udp(53),
        "forward ip filter FORWARD rule 1 jump A; *forward ip filter A rule 2 drop",
        iptables="*filter\n:A\n-A FORWARD -j A\n-A A -p tcp -j ACCEPT\n-A A -j DROP\n-A A -p udp -j ACCEPT",
        nft="""table inet fw {
            chain a { meta l4proto tcp accept; drop; accept; }
            chain forward { type filter hook forward priority 0; jump a; }
        }""",
        nft_path="forward inet fw forward rule 1 jump a; *forward inet fw a rule 2 drop",
    ),
    Scenario(
        "unconditional-accept-in-a-user-chain",
        udp(53),
        "forward ip filter FORWARD rule 1 jump A; *forward ip filter A rule 1 accept",
        iptables="*filter\n:FORWARD DROP\n:A\n-A FORWARD -j A\n-A A -j ACCEPT",
        nft="""table inet fw {
            chain a { accept; }
            chain forward { type filter hook forward priority 0; policy drop; jump a; }
        }""",
        nft_path="forward inet fw forward rule 1 jump a; *forward inet fw a rule 1 accept",
    ),
    Scenario(
        "an-empty-chain",
        udp(53),
        """forward ip filter FORWARD rule 1 jump A
           forward ip filter A return
          *forward ip filter FORWARD policy accept""",
        iptables="*filter\n:A\n-A FORWARD -j A",
        nft="""table inet fw {
            chain a { }
            chain forward { type filter hook forward priority 0; jump a; }
        }""",
        nft_path="""forward inet fw forward rule 1 jump a
            forward inet fw a return
           *forward inet fw forward policy accept""",
    ),
    Scenario(
        "one-chain-twice",
        udp(53),
        """forward ip filter FORWARD rule 1 jump A
           forward ip filter A return
           forward ip filter FORWARD rule 2 jump A
           forward ip filter A return
          *forward ip filter FORWARD rule 3 drop""",
        iptables="*filter\n:A\n-A FORWARD -p udp -j A\n-A FORWARD -j A\n-A FORWARD -j DROP\n-A A -p tcp -j ACCEPT",
        nft="""table inet fw {
            chain a { meta l4proto tcp accept; }
            chain forward { type filter hook forward priority 0; meta l4proto udp jump a; jump a; drop; }
        }""",
        nft_path="""forward inet fw forward rule 1 jump a
            forward inet fw a return
            forward inet fw forward rule 2 jump a
            forward inet fw a return
           *forward inet fw forward rule 3 drop""",
    ),
    Scenario(
        "one-chain-from-two-hooks",
        udp(53, source="router", target="router"),
        """output ip filter OUTPUT rule 1 jump A
           output ip filter A return
           output ip filter OUTPUT policy accept
           input ip filter INPUT rule 1 jump A
          *input ip filter A rule 1 drop""",
        iptables="*filter\n:A\n-A OUTPUT -j A\n-A INPUT -j A\n-A A -i lo -j DROP",
        nft="""table inet fw {
            chain a { iif "lo" drop; }
            chain output { type filter hook output priority 0; jump a; }
            chain input { type filter hook input priority 0; jump a; }
        }""",
        nft_path="""output inet fw output rule 1 jump a
            output inet fw a return
            output inet fw output policy accept
            input inet fw input rule 1 jump a
           *input inet fw a rule 1 drop""",
    ),
    Scenario(
        "one-name-in-several-tables",
        udp(53),
        """prerouting ip mangle PREROUTING rule 1 jump A
           prerouting ip mangle A rule 2 continue
           prerouting ip mangle A return
           prerouting ip mangle PREROUTING policy accept
           prerouting ip nat PREROUTING rule 1 jump A
           prerouting ip nat A rule 1 accept
           forward ip mangle FORWARD policy accept
           forward ip filter FORWARD rule 1 jump A
          *forward ip filter A rule 3 drop""",
        iptables="""*mangle
            :A
            -A PREROUTING -j A
            -A A -p tcp -j DROP
            -A A -p udp -j MARK --set-mark 1
            *nat
            :A
            -A PREROUTING -j A
            -A A -p udp -j DNAT --to-destination 203.0.113.1
            *filter
            :A
            -A FORWARD -j A
            -A A -p tcp -j ACCEPT
            -A A -s 192.0.2.2/32 -p icmp -j ACCEPT
            -A A -d 203.0.113.1/32 -j DROP""",
        nft="""table ip one {
            chain a { meta l4proto tcp drop; counter; }
            chain prerouting { type filter hook prerouting priority -150; jump a; }
        }
        table ip two {
            chain a { meta l4proto udp dnat to 203.0.113.1; }
            chain prerouting { type nat hook prerouting priority -100; jump a; }
        }
        table ip three {
            chain a { meta l4proto tcp accept; meta l4proto icmp accept; ip daddr 203.0.113.1 drop; }
            chain forward { type filter hook forward priority 0; jump a; }
        }""",
        nft_path="""prerouting ip one prerouting rule 1 jump a
            prerouting ip one a rule 2 continue
            prerouting ip one a return
            prerouting ip one prerouting policy accept
            prerouting ip two prerouting rule 1 jump a
            prerouting ip two a rule 1 accept
            forward ip three forward rule 1 jump a
           *forward ip three a rule 3 drop""",
    ),
    Scenario(
        "sixteen-chains-deep",
        udp(53),
        "\n".join(
            [
                "forward ip filter FORWARD rule 1 jump c1",
                *(f"forward ip filter c{n} rule 1 jump c{n + 1}" for n in range(1, 15)),
                "*forward ip filter c15 rule 1 drop",
            ]
        ),
        iptables="\n".join(
            [
                "*filter",
                *(f":c{n}" for n in range(1, 16)),
                "-A FORWARD -j c1",
                *(f"-A c{n} -j c{n + 1}" for n in range(1, 15)),
                "-A c15 -p udp -j DROP",
            ]
        ),
        nft="table inet fw { chain c15 { meta l4proto udp drop; }; "
        + " ".join(f"chain c{n} {{ jump c{n + 1}; }}; " for n in range(14, 0, -1))
        + "chain forward { type filter hook forward priority 0; jump c1; }; }",
        nft_path="\n".join(
            [
                "forward inet fw forward rule 1 jump c1",
                *(f"forward inet fw c{n} rule 1 jump c{n + 1}" for n in range(1, 15)),
                "*forward inet fw c15 rule 1 drop",
            ]
        ),
    ),
)

PLACES = (
    Scenario(
        "far-down-a-chain",
        udp(53),
        "*forward ip filter FORWARD rule 301 drop",
        iptables="\n".join(
            [
                "*filter",
                *(f"-A FORWARD -p tcp -m tcp --dport {port} -j ACCEPT" for port in range(1, 301)),
                "-A FORWARD -p udp -j DROP",
                "-A FORWARD -p udp -j ACCEPT",
            ]
        ),
        nft="\n".join(
            [
                "table inet fw { chain forward { type filter hook forward priority 0",
                *(f"tcp dport {port} accept" for port in range(1, 301)),
                "udp dport 53 drop; accept; }; }",
            ]
        ),
        nft_path="*forward inet fw forward rule 301 drop",
    ),
    Scenario(
        "inserted-and-deleted-rules",
        udp(53),
        """nft: forward inet fw forward rule 1 continue
           nft: forward inet fw forward rule 2 continue
         *nft: forward inet fw forward rule 3 drop""",
        mixed=(
            (
                "nft",
                """table inet fw {
                    chain forward { type filter hook forward priority 0; tcp dport 1 accept; udp dport 53 drop; }
                    chain other { accept; }
                }""",
            ),
            (
                "nft",
                """insert rule inet fw forward udp dport 53 counter
                add rule inet fw forward udp dport 53 accept
                insert rule inet fw forward position 4 udp dport 53 meta mark set 1
                add rule inet fw forward position 4 tcp dport 2 accept
                delete rule inet fw forward handle 3""",
            ),
        ),
    ),
    Scenario(
        "inserted-and-deleted-rules-of-iptables",
        udp(53),
        "forward ip filter FORWARD rule 2 continue; *forward ip filter FORWARD rule 3 drop",
        iptables="""*filter
            -A FORWARD -p udp -m udp --dport 1 -j ACCEPT
            -A FORWARD -p udp -m udp --dport 53 -j DROP
            -A FORWARD -p udp -j ACCEPT
            -D FORWARD 1
            -I FORWARD 1 -p udp -m udp --dport 53 -j MARK --set-mark 1
            -I FORWARD 1 -p tcp -j ACCEPT""",
    ),
    Scenario(
        "rule-without-a-target",
        udp(53),
        """forward ip filter FORWARD rule 1 continue
           forward ip filter FORWARD rule 2 continue
          *forward ip filter FORWARD rule 3 drop""",
        iptables="*filter\n-A FORWARD -p udp\n-A FORWARD\n-A FORWARD -p udp -j DROP",
        nft="""table inet fw { chain forward { type filter hook forward priority 0
            udp dport 53 counter
            counter
            udp dport 53 drop
        }; }""",
        nft_path="""forward inet fw forward rule 1 continue
            forward inet fw forward rule 2 continue
           *forward inet fw forward rule 3 drop""",
    ),
    Scenario(
        "odd-names-of-chains",
        udp(53),
        """forward ip filter FORWARD rule 1 jump a:rule:7
           forward ip filter a:rule:7 rule 1 jump policy
           forward ip filter policy rule 1 jump FORWARD:return:2
          *forward ip filter FORWARD:return:2 rule 1 drop""",
        iptables="""*filter
            :a:rule:7
            :policy
            :FORWARD:return:2
            -A FORWARD -p udp -j a:rule:7
            -A a:rule:7 -j policy
            -A policy -p udp -j FORWARD:return:2
            -A FORWARD:return:2 -j DROP""",
    ),
    Scenario(
        "names-of-targets-as-names-of-chains",
        udp(53),
        """forward ip filter FORWARD rule 1 jump drop
           forward ip filter drop return 1
          *forward ip filter FORWARD rule 2 accept""",
        iptables="""*filter
            :FORWARD DROP
            :drop
            -A FORWARD -p udp -j drop
            -A FORWARD -p udp -j ACCEPT
            -A drop -p udp -j RETURN
            -A drop -j DROP""",
        nft="""table inet filter {
            chain ACCEPT { meta l4proto udp return; drop; }
            chain DROP { type filter hook forward priority 0; policy drop; meta l4proto udp jump ACCEPT; accept; }
        }""",
        nft_path="""forward inet filter DROP rule 1 jump ACCEPT
            forward inet filter ACCEPT return 1
           *forward inet filter DROP rule 2 accept""",
    ),
    Scenario(
        "comments-with-odd-text",
        udp(53),
        """forward ip filter FORWARD rule 1 continue
           forward ip filter FORWARD rule 2 continue
          *forward ip filter FORWARD rule 3 accept""",
        iptables="""*filter
            :FORWARD DROP
            -A FORWARD -m comment --comment "a -j DROP; \\"quoted\\" \\\\ # { } 'x' -j REJECT" -j MARK --set-mark 1
            -A FORWARD -p udp -m comment --comment "-g A" -j LOG --log-prefix "x -j ACCEPT "
            -A FORWARD -m comment --comment "*nat :A -j DROP" -j ACCEPT
            -A FORWARD -j DROP""",
        nft="""table inet fw { chain forward { type filter hook forward priority 0; policy drop
            meta mark set 1 comment "a drop; 'x' } { # handle 99 reject"
            udp dport 53 log prefix "reject # handle 7 " comment "jump a"
            accept comment "drop # handle 5"
            drop
        }; }""",
        nft_path="""forward inet fw forward rule 1 continue
            forward inet fw forward rule 2 continue
           *forward inet fw forward rule 3 accept""",
    ),
    Scenario(
        "comments-of-tables-and-chains",
        udp(53),
        "*forward inet fw forward rule 2 drop",
        nft="""table inet fw {
            comment "chain forward { drop # handle 7"
            chain forward {
                comment "type filter hook input priority 5; policy drop;"
                type filter hook forward priority 0
                tcp dport 53 accept comment "}"
                udp dport 53 drop comment "{"
            }
        }""",
    ),
    Scenario(
        "a-drop-that-talks-of-reject",
        udp(53),
        "*forward ip filter FORWARD rule 1 drop",
        iptables='*filter\n-A FORWARD -p udp -m comment --comment "no -j REJECT --reject-with tcp-reset" -j DROP',
        nft="""table inet fw { chain forward { type filter hook forward priority 0
            udp dport 53 log prefix "reject " drop comment "reject with tcp reset"
        }; }""",
        nft_path="*forward inet fw forward rule 1 drop",
    ),
    Scenario(
        "a-comment-is-a-match",
        udp(53),
        "*forward ip filter FORWARD rule 2 drop",
        iptables="""*filter
            -A FORWARD -p tcp -m comment --comment tcp -j ACCEPT
            -A FORWARD -m comment --comment "everything else" -j DROP""",
    ),
)
