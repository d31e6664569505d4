# Two interfaces: masquerading, forwarded ports, traffic marks, a list of MAC addresses, with counters.
# interfaces: eth0=192.0.2.1/24 eth1=10.0.0.1/24
# saves: v4
# counters: yes
cd /etc/shorewall
cat > zones <<'EOF'
fw firewall
net ipv4
loc ipv4
EOF
cat > interfaces <<'EOF'
?FORMAT 2
net eth0 dhcp,tcpflags,nosmurfs,physical=eth0
loc eth1 dhcp,tcpflags,maclist
EOF
cat > maclist <<'EOF'
ACCEPT eth1 02:00:00:00:00:05 10.0.0.5
ACCEPT eth1 02:00:00:00:00:06 10.0.0.6
ACCEPT eth1 02:00:00:00:00:07
EOF
cat > policy <<'EOF'
loc net ACCEPT
loc $FW REJECT info
net all DROP info
all all REJECT info
EOF
cat > snat <<'EOF'
MASQUERADE 10.0.0.0/24 eth0
SNAT(192.0.2.3) 10.0.1.0/24 eth0
EOF
cat > mangle <<'EOF'
MARK(1):F 10.0.0.0/24 0.0.0.0/0 tcp 22
MARK(2):P eth1 0.0.0.0/0 udp 5060:5070
DSCP(EF):T 0.0.0.0/0 0.0.0.0/0 udp - 5060
CONNMARK(3):P eth0 0.0.0.0/0 tcp 443
EOF
cat > rules <<'EOF'
?SECTION NEW
Invalid(DROP) net all tcp
DNS(ACCEPT) loc $FW
NTP(ACCEPT) $FW net
SSH(ACCEPT) loc $FW
Ping(ACCEPT) loc $FW
Ping(DROP) net $FW
ACCEPT $FW loc icmp
DNAT net loc:10.0.0.5:80 tcp 8080
DNAT:info net loc:10.0.0.6 tcp 3389 - - 5/min:5
DNAT net:198.51.100.0/24 loc:10.0.0.7 tcp 5900:5910
REDIRECT loc 3128 tcp 80 - !192.0.2.0/24
EOF
start_shorewall shorewall
