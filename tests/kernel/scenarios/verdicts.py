"""How a walk can end: accepted, dropped or rejected, by a rule or by a policy, on each of the ways through a router."""

from __future__ import annotations

from support.sends import ping, tcp, udp
from support.walk import Scenario

__all__ = ["ENDS", "REJECTS", "REJECTS_IPV6", "WAYS"]

ENDS = (
    Scenario(
        "accept-by-rule",
        tcp(80),
        {
            "request": "*forward ip filter FORWARD rule 1 accept",
            "request 2": "*forward ip filter FORWARD rule 1 accept",
            "reply": "*forward ip filter FORWARD rule 2 accept",
        },
        iptables="""*filter
            :FORWARD DROP
            -A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT
            -A FORWARD -p tcp -m tcp --sport 80 -j ACCEPT""",
        nft="""table inet fw { chain forward { type filter hook forward priority 0; policy drop
            tcp dport 80 accept
            tcp sport 80 counter accept
        }; }""",
        nft_path={
            "request": "*forward inet fw forward rule 1 accept",
            "request 2": "*forward inet fw forward rule 1 accept",
            "reply": "*forward inet fw forward rule 2 accept",
        },
    ),
    Scenario(
        "accept-by-policy",
        tcp(80),
        {"request": "*forward ip filter FORWARD policy accept", "reply": "*forward ip filter FORWARD policy accept"},
        iptables="*filter\n-A FORWARD -p tcp -m tcp --dport 81 -j DROP",
        nft="table ip fw { chain forward { type filter hook forward priority 0; tcp dport 81 drop; }; }",
        nft_path={"request": "*forward ip fw forward policy accept", "reply": "*forward ip fw forward policy accept"},
    ),
    Scenario(
        "drop-by-rule",
        tcp(80),
        "*forward ip filter FORWARD rule 3 drop",
        iptables="""*filter
            -A FORWARD -p udp -j ACCEPT
            -A FORWARD -p tcp -m tcp --dport 81 -j ACCEPT
            -A FORWARD -p tcp -m tcp --dport 80 -j DROP
            -A FORWARD -p tcp -j ACCEPT""",
        nft="""table inet fw { chain forward { type filter hook forward priority 0
            udp dport 80 accept
            tcp dport 81 accept
            tcp dport 80 drop
            tcp dport 80 accept
        }; }""",
        nft_path="*forward inet fw forward rule 3 drop",
    ),
    Scenario(
        "drop-by-policy",
        tcp(80),
        "*forward ip filter FORWARD policy drop",
        iptables="*filter\n:FORWARD DROP\n-A FORWARD -p udp -j ACCEPT",
        nft="table inet fw { chain forward { type filter hook forward priority 0; policy drop; udp dport 8 accept; } }",
        nft_path="*forward inet fw forward policy drop",
    ),
    Scenario(
        "no-rules-in-a-chain",
        udp(53),
        "*forward ip filter FORWARD policy drop",
        iptables="*filter\n:FORWARD DROP",
        nft="table inet fw { chain forward { type filter hook forward priority 0; policy drop; }; }",
        nft_path="*forward inet fw forward policy drop",
    ),
    Scenario(
        "unconditional-drop-in-a-base-chain",
        udp(53),
        "*forward ip filter FORWARD rule 2 drop",
        iptables="*filter\n-A FORWARD -p tcp -j ACCEPT\n-A FORWARD -j DROP\n-A FORWARD -p udp -j ACCEPT",
        nft="table inet fw { chain forward { type filter hook forward priority 0; tcp dport 1 accept; drop; accept; }}",
        nft_path="*forward inet fw forward rule 2 drop",
    ),
    Scenario(
        "unconditional-accept-in-a-base-chain",
        udp(53),
        "*forward ip filter FORWARD rule 1 accept",
        iptables="*filter\n:FORWARD DROP\n-A FORWARD -j ACCEPT",
        nft="table inet fw { chain forward { type filter hook forward priority 0; policy drop; accept; }; }",
        nft_path="*forward inet fw forward rule 1 accept",
    ),
    Scenario(
        "unconditional-drop-as-last-rule",
        udp(53),
        "*forward ip filter FORWARD rule 1 drop",
        iptables="*filter\n-A FORWARD -j DROP",
        nft="table inet fw { chain forward { type filter hook forward priority 0; counter drop; }; }",
        nft_path="*forward inet fw forward rule 1 drop",
    ),
    Scenario(
        "nothing-but-a-negated-match",
        udp(53),
        "*forward ip filter FORWARD rule 1 drop",
        iptables="*filter\n-A FORWARD ! -p tcp -j DROP",
        nft="table inet fw { chain forward { type filter hook forward priority 0; meta l4proto != tcp drop; }; }",
        nft_path="*forward inet fw forward rule 1 drop",
    ),
)

WAYS = (
    Scenario(
        "both-ways",
        (tcp(80), tcp(80, source="server", target="client", name="back")),
        {
            "request": "*forward ip filter FORWARD rule 1 accept",
            "reply": "*forward ip filter FORWARD rule 2 accept",
            "back request": "*forward ip filter FORWARD rule 3 drop",
        },
        iptables="""*filter
            -A FORWARD -i client -o server -j ACCEPT
            -A FORWARD -i server -o client -p tcp -m tcp --sport 80 -j ACCEPT
            -A FORWARD -i server -o client -j DROP""",
        nft="""table inet fw { chain forward { type filter hook forward priority 0
            iifname "client" oifname "server" accept
            iifname "server" tcp sport 80 accept
            iifname "server" drop
        }; }""",
        nft_path={
            "request": "*forward inet fw forward rule 1 accept",
            "reply": "*forward inet fw forward rule 2 accept",
            "back request": "*forward inet fw forward rule 3 drop",
        },
    ),
    Scenario(
        "udp-in-both-directions",
        udp(53, count=2, answer=True),
        {
            "request": "*forward ip filter FORWARD rule 1 accept",
            "request 2": "*forward ip filter FORWARD rule 1 accept",
            "reply": "*forward ip filter FORWARD rule 2 accept",
            "reply 2": "*forward ip filter FORWARD rule 2 accept",
        },
        iptables="*filter\n:FORWARD DROP\n-A FORWARD -p udp -m udp --dport 53 -j ACCEPT\n"
        "-A FORWARD -p udp -m udp --sport 53 -j ACCEPT",
        nft="table inet fw { chain forward { type filter hook forward priority 0; policy drop\n"
        "udp dport 53 accept; udp sport 53 accept; }; }",
        nft_path={
            "request": "*forward inet fw forward rule 1 accept",
            "request 2": "*forward inet fw forward rule 1 accept",
            "reply": "*forward inet fw forward rule 2 accept",
            "reply 2": "*forward inet fw forward rule 2 accept",
        },
    ),
    Scenario(
        "input-accept",
        tcp(22, target="router"),
        {"request": "*input ip filter INPUT rule 1 accept", "reply": "*output ip filter OUTPUT policy accept"},
        iptables="*filter\n:INPUT DROP\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT",
        nft="table inet fw { chain input { type filter hook input priority 0; policy drop; tcp dport 22 accept; }; }",
        nft_path={"request": "*input inet fw input rule 1 accept", "reply": ""},
    ),
    Scenario(
        "input-drop",
        tcp(23, target="router"),
        "*input ip filter INPUT policy drop",
        iptables="*filter\n:INPUT DROP\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT",
        nft="table inet fw { chain input { type filter hook input priority 0; policy drop; tcp dport 22 accept; }; }",
        nft_path="*input inet fw input policy drop",
    ),
    Scenario(
        "closed-tcp-port",
        tcp(23, target="router", listen=False),
        {"request": "*input ip filter INPUT policy accept", "reply": "*output ip filter OUTPUT policy accept"},
        iptables="*filter",
        nft="table inet fw { chain input { type filter hook input priority 0; }; chain output { "
        "type filter hook output priority 0; }; }",
        nft_path={"request": "*input inet fw input policy accept", "reply": "*output inet fw output policy accept"},
    ),
    Scenario(
        "closed-udp-port",
        udp(53, target="router", listen=False),
        {"request": "*input ip filter INPUT policy accept", "error": "*output ip filter OUTPUT rule 1 drop"},
        iptables="*filter\n-A OUTPUT -p icmp -j DROP",
        nft="table inet fw { chain input { type filter hook input priority 0; }; chain output { "
        "type filter hook output priority 0; icmp type destination-unreachable drop; }; }",
        nft_path={"request": "*input inet fw input policy accept", "error": "*output inet fw output rule 1 drop"},
    ),
    Scenario(
        "echo-to-the-router",
        ping(target="router", count=2),
        {
            "request": "*input ip filter INPUT rule 1 accept",
            "request 2": "*input ip filter INPUT rule 1 accept",
            "reply": "*output ip filter OUTPUT rule 1 accept",
            "reply 2": "*output ip filter OUTPUT rule 1 accept",
        },
        iptables="*filter\n-A INPUT -p icmp -m icmp --icmp-type 8 -j ACCEPT\n"
        "-A OUTPUT -p icmp -m icmp --icmp-type 0 -j ACCEPT",
        nft="""table inet fw {
            chain input { type filter hook input priority 0; icmp type echo-request accept; }
            chain output { type filter hook output priority 0; icmp type echo-reply accept; }
        }""",
        nft_path={
            "request": "*input inet fw input rule 1 accept",
            "request 2": "*input inet fw input rule 1 accept",
            "reply": "*output inet fw output rule 1 accept",
            "reply 2": "*output inet fw output rule 1 accept",
        },
    ),
    Scenario(
        "echo-through-the-router",
        ping(),
        {"request": "*forward ip filter FORWARD rule 1 accept", "reply": "*forward ip filter FORWARD rule 2 drop"},
        iptables="*filter\n-A FORWARD -p icmp -m icmp --icmp-type 8 -j ACCEPT\n-A FORWARD -p icmp -j DROP",
        nft="table ip fw { chain forward { type filter hook forward priority 0; icmp type echo-request accept; "
        "ip protocol icmp drop; }; }",
        nft_path={"request": "*forward ip fw forward rule 1 accept", "reply": "*forward ip fw forward rule 2 drop"},
    ),
    Scenario(
        "output-accept",
        tcp(80, source="router"),
        {"request": "*output ip filter OUTPUT rule 1 accept", "reply": "*input ip filter INPUT policy accept"},
        iptables="*filter\n:OUTPUT DROP\n-A OUTPUT -o server -j ACCEPT",
        nft="""table inet fw {
            chain input { type filter hook input priority 0; }
            chain output { type filter hook output priority 0; policy drop; oifname "server" accept; }
        }""",
        nft_path={"request": "*output inet fw output rule 1 accept", "reply": "*input inet fw input policy accept"},
    ),
    Scenario(
        "output-drop-by-rule",
        udp(53, source="router"),
        "*output ip filter OUTPUT rule 1 drop",
        iptables="*filter\n-A OUTPUT -p udp -j DROP",
        nft="table inet fw { chain output { type filter hook output priority 0; meta l4proto udp drop; }; }",
        nft_path="*output inet fw output rule 1 drop",
    ),
    Scenario(
        "output-drop-by-policy",
        tcp(80, source="router", target="client"),
        "*output ip filter OUTPUT policy drop",
        iptables="*filter\n:OUTPUT DROP",
        nft="table inet fw { chain output { type filter hook output priority 0; policy drop; }; }",
        nft_path="*output inet fw output policy drop",
    ),
    Scenario(
        "output-reject",
        udp(53, source="router"),
        "*output ip filter OUTPUT rule 1 reject",
        iptables="*filter\n-A OUTPUT -p udp -j REJECT",
        nft="table inet fw { chain output { type filter hook output priority 0; meta l4proto udp reject; }; }",
        nft_path="*output inet fw output rule 1 reject",
    ),
    Scenario(
        "owner",
        (udp(53, source="router", user=65534, name="nobody"), udp(53, source="router", name="root")),
        {
            "nobody request": "*output ip filter OUTPUT rule 1 drop",
            "root request": "*output ip filter OUTPUT rule 2 accept",
        },
        iptables="*filter\n-A OUTPUT -m owner --uid-owner 65534 -j DROP\n-A OUTPUT -m owner --uid-owner 0 -j ACCEPT",
        nft="table inet fw { chain output { type filter hook output priority 0; meta skuid 65534 drop; "
        "meta skuid 0 accept; }; }",
        nft_path={
            "nobody request": "*output inet fw output rule 1 drop",
            "root request": "*output inet fw output rule 2 accept",
        },
    ),
    Scenario(
        "loopback",
        tcp(80, source="router", target="router"),
        {
            "request": "output ip filter OUTPUT policy accept; *input ip filter INPUT rule 1 accept",
            "request 2": "output ip filter OUTPUT policy accept; *input ip filter INPUT rule 1 accept",
            "reply": "output ip filter OUTPUT policy accept; *input ip filter INPUT rule 1 accept",
        },
        iptables="*filter\n:INPUT DROP\n-A INPUT -i lo -j ACCEPT",
        nft="""table inet fw {
            chain input { type filter hook input priority 0; policy drop; iif "lo" accept; }
            chain output { type filter hook output priority 0; }
        }""",
        nft_path={
            "request": "output inet fw output policy accept; *input inet fw input rule 1 accept",
            "request 2": "output inet fw output policy accept; *input inet fw input rule 1 accept",
            "reply": "output inet fw output policy accept; *input inet fw input rule 1 accept",
        },
    ),
    Scenario(
        "loopback-decided-on-the-way-out",
        udp(53, source="router", target="router"),
        "*output ip filter OUTPUT rule 1 accept; input ip filter INPUT policy accept",
        iptables="*filter\n-A OUTPUT -o lo -j ACCEPT",
        nft="""table inet fw {
            chain input { type filter hook input priority 0; }
            chain output { type filter hook output priority 0; oif "lo" accept; }
        }""",
        nft_path="*output inet fw output rule 1 accept; input inet fw input policy accept",
    ),
    Scenario(
        "loopback-drop",
        udp(53, source="router", target="router"),
        "output ip filter OUTPUT policy accept; *input ip filter INPUT rule 1 drop",
        iptables="*filter\n-A INPUT -p udp -j DROP",
        nft="""table inet fw {
            chain input { type filter hook input priority 0; udp dport 53 drop; }
            chain output { type filter hook output priority 0; }
        }""",
        nft_path="output inet fw output policy accept; *input inet fw input rule 1 drop",
    ),
    Scenario(
        "loopback-drop-in-prerouting",
        udp(53, source="router", target="router"),
        """output ip mangle OUTPUT policy accept
           postrouting ip mangle POSTROUTING policy accept
          *prerouting ip mangle PREROUTING rule 1 drop""",
        iptables="*mangle\n-A PREROUTING -i lo -j DROP",
        nft="""table inet fw {
            chain prerouting { type filter hook prerouting priority -150; iif "lo" drop; }
            chain output { type route hook output priority -150; }
            chain postrouting { type filter hook postrouting priority -150; }
        }""",
        nft_path="""output inet fw output policy accept
            postrouting inet fw postrouting policy accept
           *prerouting inet fw prerouting rule 1 drop""",
    ),
    Scenario(
        "an-address-of-our-own-through-loopback",
        udp(53, source="router", target="router", to="192.0.2.1", start="198.51.100.1"),
        "output ip filter OUTPUT policy accept; *input ip filter INPUT rule 1 accept",
        iptables="*filter\n:INPUT DROP\n-A INPUT -s 198.51.100.1/32 -i lo -j ACCEPT",
        nft="""table inet fw {
            chain input { type filter hook input priority 0; policy drop; ip saddr 198.51.100.1 accept; }
            chain output { type filter hook output priority 0; }
        }""",
        nft_path="output inet fw output policy accept; *input inet fw input rule 1 accept",
    ),
)


def _reject(how: str, nft: str) -> Scenario:
    """A rejected datagram, and the router's answer."""
    return Scenario(
        f"reject-{how}",
        udp(53),
        {"request": "*forward ip filter FORWARD rule 1 reject", "error": "*output ip filter OUTPUT policy accept"},
        iptables=f"*filter\n-A FORWARD -p udp -m udp --dport 53 -j REJECT --reject-with {how}",
        nft=f"""table inet fw {{
            chain forward {{ type filter hook forward priority 0; udp dport 53 reject with {nft}; }}
            chain output {{ type filter hook output priority 0; }}
        }}""",
        nft_path={
            "request": "*forward inet fw forward rule 1 reject",
            "error": "*output inet fw output policy accept",
        },
    )


def _reject_ipv6(how: str, nft: str) -> Scenario:
    return Scenario(
        f"reject-{how}",
        udp(53, family=6),
        {"request": "*forward ip6 filter FORWARD rule 1 reject", "error": "*output ip6 filter OUTPUT policy accept"},
        ip6tables=f"*filter\n-A FORWARD -p udp -m udp --dport 53 -j REJECT --reject-with {how}",
        nft=f"""table ip6 fw {{
            chain forward {{ type filter hook forward priority 0; udp dport 53 reject with {nft}; }}
            chain output {{ type filter hook output priority 0; }}
        }}""",
        nft_path={"request": "*forward ip6 fw forward rule 1 reject", "error": "*output ip6 fw output policy accept"},
    )


REJECTS = (
    _reject("icmp-port-unreachable", "icmp port-unreachable"),
    _reject("icmp-host-unreachable", "icmp host-unreachable"),
    _reject("icmp-net-unreachable", "icmp net-unreachable"),
    _reject("icmp-proto-unreachable", "icmp prot-unreachable"),
    _reject("icmp-net-prohibited", "icmp net-prohibited"),
    _reject("icmp-host-prohibited", "icmp host-prohibited"),
    _reject("icmp-admin-prohibited", "icmpx admin-prohibited"),
    Scenario(
        "reject-tcp-reset",
        tcp(80),
        {"request": "*forward ip filter FORWARD rule 1 reject", "reply": "*output ip filter OUTPUT policy accept"},
        iptables="*filter\n-A FORWARD -p tcp -m tcp --dport 80 -j REJECT --reject-with tcp-reset",
        nft="""table inet fw {
            chain forward { type filter hook forward priority 0; tcp dport 80 reject with tcp reset; }
            chain output { type filter hook output priority 0; }
        }""",
        nft_path={
            "request": "*forward inet fw forward rule 1 reject",
            "reply": "*output inet fw output policy accept",
        },
    ),
    Scenario(
        "reject-unconditional-in-a-user-chain",
        tcp(80, target="router"),
        {
            "request": "input ip filter INPUT rule 1 jump no; *input ip filter no rule 2 reject",
            "error": "*output ip filter OUTPUT rule 1 accept",
        },
        iptables="""*filter
            :no
            -A INPUT -p tcp -j no
            -A no -p tcp -m tcp --dport 22 -j ACCEPT
            -A no -j REJECT --reject-with icmp-host-prohibited
            -A OUTPUT -p icmp -j ACCEPT""",
        nft="""table inet fw {
            chain no { tcp dport 22 accept; reject with icmpx host-unreachable; }
            chain input { type filter hook input priority 0; meta l4proto tcp jump no; }
            chain output { type filter hook output priority 0; ip protocol icmp accept; }
        }""",
        nft_path={
            "request": "input inet fw input rule 1 jump no; *input inet fw no rule 2 reject",
            "error": "*output inet fw output rule 1 accept",
        },
    ),
    Scenario(
        "reject-whose-answer-is-dropped",
        udp(53),
        {"request": "*forward ip filter FORWARD rule 1 reject", "error": "*output ip filter OUTPUT rule 1 drop"},
        iptables="*filter\n-A FORWARD -p udp -j REJECT\n-A OUTPUT -p icmp -j DROP",
        nft="""table inet fw {
            chain forward { type filter hook forward priority 0; udp dport 53 reject; }
            chain output { type filter hook output priority 0; ip protocol icmp drop; }
        }""",
        nft_path={"request": "*forward inet fw forward rule 1 reject", "error": "*output inet fw output rule 1 drop"},
    ),
)

REJECTS_IPV6 = (
    _reject_ipv6("icmp6-no-route", "icmpv6 no-route"),
    _reject_ipv6("icmp6-adm-prohibited", "icmpv6 admin-prohibited"),
    _reject_ipv6("icmp6-addr-unreachable", "icmpv6 addr-unreachable"),
    _reject_ipv6("icmp6-port-unreachable", "icmpv6 port-unreachable"),
    _reject_ipv6("icmp6-policy-fail", "icmpv6 policy-fail"),
    _reject_ipv6("icmp6-reject-route", "icmpv6 reject-route"),
    Scenario(
        "reject-tcp-reset-ipv6",
        tcp(80, family=6),
        {"request": "*forward ip6 filter FORWARD rule 1 reject", "reply": "*output ip6 filter OUTPUT policy accept"},
        ip6tables="*filter\n-A FORWARD -p tcp -j REJECT --reject-with tcp-reset",
        nft="""table ip6 fw {
            chain forward { type filter hook forward priority 0; meta l4proto tcp reject with tcp reset; }
            chain output { type filter hook output priority 0; }
        }""",
        nft_path={"request": "*forward ip6 fw forward rule 1 reject", "reply": "*output ip6 fw output policy accept"},
    ),
)
