# Two interfaces on IPv6.
# interfaces: eth0=2001:db8::1/64 eth1=2001:db8:a::1/64
# saves: v6
cd /etc/shorewall6
cat > zones <<'EOF'
fw firewall
net ipv6
loc ipv6
EOF
cat > interfaces <<'EOF'
?FORMAT 2
net eth0 tcpflags,rpfilter
loc eth1 tcpflags
EOF
cat > policy <<'EOF'
loc net ACCEPT
$FW all ACCEPT
net all DROP info
all all REJECT info
EOF
cat > rules <<'EOF'
?SECTION NEW
Invalid(DROP) net all
AllowICMPs(ACCEPT) all all
SSH(ACCEPT) loc $FW
SSH(ACCEPT) net:[2001:db8:1::]/48 $FW { rate=s:ssh6:3/min:3 }
Web(ACCEPT) net loc:[2001:db8:a::80]
ACCEPT net loc:[2001:db8:a::20]-[2001:db8:a::2f] udp 5060:5070
EOF
start_shorewall shorewall6
