# A router: subchains, NAT of every kind, marks, MAC addresses, negations.
# interfaces: ppp0=192.0.2.1/24 eth1=10.0.0.1/24 eth2=10.0.2.1/24
# saves: v4
cat > /etc/ferm/ferm.conf <<'EOF'
@def $INSIDE = eth1; @def $DMZ = eth2;
domain ip {
    table filter {
        chain INPUT {
            policy DROP;
            mod state state INVALID DROP;
            mod state state (ESTABLISHED RELATED) ACCEPT;
            interface lo ACCEPT;
            interface ! ppp+ proto (udp tcp) dport domain ACCEPT;
            interface $INSIDE @subchain "inside" {
                proto tcp dport (ssh 8443) ACCEPT;
                proto icmp ACCEPT;
                proto udp dport (67 123) ACCEPT;
                saddr ! 10.0.0.0/24 DROP;
                RETURN;
            }
            mod mark mark 0x10/0xf0 ACCEPT;
            REJECT reject-with icmp-host-prohibited;
        }
        chain OUTPUT { policy ACCEPT; mod conntrack ctstate INVALID DROP; }
        chain known-hosts {
            mod mac mac-source 02:00:00:00:00:05 RETURN;
            mod mac mac-source 02:00:00:00:00:06 saddr 10.0.0.6 RETURN;
            mod mac mac-source ! 02:00:00:00:00:07 mod limit limit 3/hour LOG log-prefix "stranger ";
            DROP;
        }
        chain FORWARD {
            policy DROP;
            proto tcp tcp-flags (SYN RST) SYN TCPMSS clamp-mss-to-pmtu;
            mod conntrack ctstate (ESTABLISHED RELATED) ACCEPT;
            mod conntrack ctstate DNAT ACCEPT;
            interface $INSIDE jump known-hosts;
            interface $INSIDE outerface ppp0 ACCEPT;
            interface $INSIDE outerface $DMZ daddr (10.0.2.20 10.0.2.25) proto tcp dport ! 22 ACCEPT;
            interface $DMZ outerface ppp0 proto tcp mod multiport destination-ports (80 443 8000:8100) ACCEPT;
            interface $DMZ mod statistic mode random probability 0.1 LOG log-prefix "dmz ";
            interface $DMZ outerface $INSIDE realgoto last;
        }
        chain last { proto tcp REJECT reject-with tcp-reset; REJECT; }
    }
    table nat {
        chain PREROUTING {
            interface ppp0 proto tcp dport (80 443) DNAT to 10.0.2.20;
            interface ppp0 proto tcp dport 2222 DNAT to 10.0.2.25:22;
            interface $INSIDE proto tcp dport 80 daddr ! 10.0.0.0/8 REDIRECT to-ports 3128;
        }
        chain POSTROUTING {
            outerface ppp0 saddr 10.0.0.0/24 MASQUERADE;
            outerface ppp0 saddr 10.0.2.0/24 SNAT to 192.0.2.1-192.0.2.3;
        }
    }
    table mangle {
        chain PREROUTING {
            CONNMARK restore-mark;
            interface $INSIDE proto udp dport 5060 MARK set-xmark 0x10/0xf0;
            interface ppp0 MARK or-mark 0x100;
            CONNMARK save-mark;
        }
        chain POSTROUTING outerface ppp0 { proto udp sport 5060 DSCP set-dscp-class EF; mod tos tos 0x10 TOS and-tos 0xfc; }
        chain FORWARD outerface ppp0 TTL ttl-set 64;
    }
}
EOF
ferm --remote --noexec --lines /etc/ferm/ferm.conf | iptables-restore
