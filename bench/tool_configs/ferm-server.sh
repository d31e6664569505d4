# A server: variables, arrays, limits, recent, owners, both versions of IP; iptables of the old kind.
# interfaces: eth0=192.0.2.10/24,2001:db8::10/64
# backend: legacy
# saves: v4 v6
# counters: yes
cat > /etc/ferm/ferm.conf <<'EOF'
@def $TRUSTED = (198.51.100.0/25 203.0.113.8 192.0.2.0/255.255.255.0);
domain (ip ip6) table filter {
    chain INPUT {
        policy DROP;
        mod conntrack ctstate INVALID DROP;
        mod conntrack ctstate (ESTABLISHED RELATED) ACCEPT;
        interface lo ACCEPT;
        proto tcp tcp-flags ALL NONE DROP;
        proto tcp tcp-flags (SYN FIN) (SYN FIN) DROP;
        proto tcp !syn mod conntrack ctstate NEW NFLOG nflog-group 5 nflog-prefix "odd: ";
        proto tcp dport (http https) ACCEPT;
        proto tcp mod multiport destination-ports (25 465 587 993) ACCEPT;
        proto tcp dport ssh {
            mod recent name ssh update seconds 60 hitcount 4 DROP;
            mod recent name ssh set ACCEPT;
        }
        proto tcp dport 6667 mod connlimit connlimit-above 5 REJECT reject-with tcp-reset;
        proto tcp dport 6667 mod hashlimit hashlimit 10/minute hashlimit-burst 20 hashlimit-mode srcip hashlimit-name irc ACCEPT;
        mod limit limit 5/minute limit-burst 10 LOG log-prefix "input: " log-level info;
    }
    chain FORWARD policy DROP;
    chain OUTPUT {
        policy ACCEPT;
        outerface lo ACCEPT;
        proto tcp dport smtp mod owner uid-owner mail ACCEPT;
        proto tcp dport smtp mod owner ! uid-owner root REJECT;
        mod owner gid-owner nogroup REJECT;
    }
}
domain ip table filter chain INPUT {
    proto icmp icmp-type (echo-request destination-unreachable time-exceeded) ACCEPT;
    saddr $TRUSTED proto tcp dport 5432 ACCEPT;
    saddr $TRUSTED proto udp dport 161 ACCEPT;
    mod iprange src-range 192.0.2.40-192.0.2.70 proto udp dport 514 ACCEPT;
    mod addrtype dst-type (BROADCAST MULTICAST) DROP;
    mod pkttype pkt-type broadcast DROP;
    mod ttl ttl-lt 3 DROP;
    fragment DROP;
    mod length length 1400:65535 proto icmp DROP;
}
domain ip6 table filter chain INPUT {
    proto icmpv6 icmpv6-type (echo-request packet-too-big neighbour-solicitation neighbour-advertisement router-advertisement) ACCEPT;
    saddr 2001:db8:1::/48 proto tcp dport 5432 ACCEPT;
    mod hl hl-eq 1 DROP;
}
domain ip table raw chain PREROUTING proto udp dport 53 NOTRACK;
EOF
ferm /etc/ferm/ferm.conf
