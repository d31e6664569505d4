"""The lab's firewall: a small stateful ruleset with NAT in both directions, and what it does to an address."""

from __future__ import annotations

__all__ = ["CONNTRACK_ONLY", "MASQUERADED", "REDIRECTED", "RULESET"]

# Sources that leave the router with its own address, by IP version.
MASQUERADED = {4: "10.1.0.0/16", 6: "fd00:1::/32"}

# Ports of the router that are handed to the server: (protocol, port there) -> port on the server.
REDIRECTED = {("tcp", 8080): 80, ("tcp", 8081): 81, ("tcp", 8082): 7001, ("udp", 8053): 53}

RULESET = """
table inet lab {
    counter dropped { }

    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        ct state invalid drop
        iifname "lo" accept
        icmp type echo-request accept
        icmpv6 type { echo-request, nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept
        tcp dport 22 accept
        counter name dropped
    }

    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        ct state invalid drop
        iifname "server" counter name dropped drop
        icmp type echo-request accept
        icmpv6 type { echo-request, nd-neighbor-solicit, nd-neighbor-advert } accept
        tcp dport { 80, 81, 443, 7000-7099 } accept
        udp dport { 53, 514, 7000-7099 } accept
        meta l4proto { gre, esp, sctp } accept
        counter name dropped
    }

    chain prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        iifname "client" ip daddr 192.0.2.1 tcp dport 8080 dnat ip to 198.51.100.2:80
        iifname "client" ip daddr 192.0.2.1 tcp dport 8081 dnat ip to 198.51.100.2:81
        iifname "client" ip daddr 192.0.2.1 tcp dport 8082 dnat ip to 198.51.100.2:7001
        iifname "client" ip daddr 192.0.2.1 udp dport 8053 dnat ip to 198.51.100.2:53
        iifname "client" ip6 daddr 2001:db8:1::1 tcp dport 8080 dnat ip6 to [2001:db8:2::2]:80
        iifname "client" ip6 daddr 2001:db8:1::1 tcp dport 8081 dnat ip6 to [2001:db8:2::2]:81
        iifname "client" ip6 daddr 2001:db8:1::1 tcp dport 8082 dnat ip6 to [2001:db8:2::2]:7001
        iifname "client" ip6 daddr 2001:db8:1::1 udp dport 8053 dnat ip6 to [2001:db8:2::2]:53
    }

    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "server" ip saddr 10.1.0.0/16 masquerade
        oifname "server" ip6 saddr fd00:1::/32 masquerade
    }
}
"""

# Nothing but a rule that makes the kernel track connections: it does so only where some rule asks.
CONNTRACK_ONLY = "table inet lab { chain track { type filter hook forward priority filter; ct state new counter; }; }"
