# A router: masquerading, a forwarded port, routed rules; iptables of the old kind.
# interfaces: eth0=192.0.2.1/24,2001:db8::1/64 eth1=10.0.0.1/24,2001:db8:a::1/64 eth2=10.0.2.1/24
# backend: legacy
# saves: v4 v6
# counters: yes
sed -i 's/^IPV6=.*/IPV6=yes/; s/^DEFAULT_FORWARD_POLICY=.*/DEFAULT_FORWARD_POLICY="DROP"/' /etc/default/ufw
cat > /etc/ufw/nat.rules <<'EOF'
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -i eth0 -p tcp --dport 8080 -j DNAT --to-destination 10.0.2.20:80
-A PREROUTING -i eth0 -p udp --dport 27000:27050 -j DNAT --to-destination 10.0.0.30
-A POSTROUTING -s 10.0.0.0/24 -o eth0 -j MASQUERADE
-A POSTROUTING -s 10.0.2.0/24 -o eth0 -j SNAT --to-source 192.0.2.1
COMMIT
EOF
cat /etc/ufw/nat.rules >> /etc/ufw/before.rules
ufw default deny incoming
ufw default reject outgoing
ufw default deny routed
ufw logging high
ufw allow in on eth1 to any port 53
ufw allow in on eth1 to any port 67 proto udp
ufw allow in on eth1 from 10.0.0.0/24 to 10.0.0.1 port 22 proto tcp
ufw allow out on eth0 to any port 53
ufw allow out on eth0 proto tcp to any port 80,443
ufw route allow in on eth1 out on eth0 from 10.0.0.0/24
ufw route allow in on eth0 out on eth2 to 10.0.2.20 port 80 proto tcp
ufw route allow in on eth0 out on eth1 to 10.0.0.30 port 27000:27050 proto udp
ufw route deny in on eth2 out on eth1
ufw route limit in on eth1 out on eth2 to any port 22 proto tcp
ufw --force enable
