# Three zones and a tunnel: what each may do in the others, one-to-one addresses, connection limits.
# interfaces: eth0=192.0.2.1/24 eth1=10.0.0.1/24 eth2=10.0.2.1/24 tun0=10.8.0.1/24
# saves: v4
# counters: yes
cd /etc/shorewall
cat > zones <<'EOF'
fw firewall
net ipv4
loc ipv4
dmz ipv4
vpn ipv4
EOF
cat > interfaces <<'EOF'
?FORMAT 2
net eth0 tcpflags,nosmurfs,rpfilter
loc eth1 tcpflags
dmz eth2 tcpflags,routeback
vpn tun+ optional
EOF
cat > tunnels <<'EOF'
openvpnserver:1194 net 0.0.0.0/0
ipsec net 198.51.100.7
EOF
cat > policy <<'EOF'
loc net,dmz ACCEPT
vpn loc ACCEPT
dmz net REJECT info
net all DROP info
all all REJECT info
EOF
cat > nat <<'EOF'
192.0.2.5 eth0 10.0.2.5 No No
EOF
cat > snat <<'EOF'
SNAT(192.0.2.1) 10.0.0.0/24,10.0.2.0/24 eth0
EOF
cat > rules <<'EOF'
?SECTION NEW
Web(ACCEPT) net dmz:10.0.2.5
SMTP(ACCEPT) net dmz:10.0.2.25 - - - - 10/sec:20
ACCEPT net dmz:10.0.2.25 tcp 465,587 - - - - - 20
DNAT net dmz:10.0.2.25 tcp 25 - 192.0.2.1
DNS(ACCEPT) dmz,loc net
ACCEPT dmz loc:10.0.0.9 tcp 5432
LOG:info:odd dmz loc tcp
REJECT dmz loc
SSH(ACCEPT) loc,vpn all
NONAT dmz net tcp 53
ACCEPT $FW net tcp 80,443 - - - :www-data
EOF
start_shorewall shorewall
