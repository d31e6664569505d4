# A server with one interface on IPv6; iptables of the old kind.
# interfaces: eth0=2001:db8::10/64
# backend: legacy
# saves: v6
cd /etc/shorewall6
printf 'fw firewall\nnet ipv6\n' > zones
printf '?FORMAT 2\nnet eth0 tcpflags\n' > interfaces
printf '$FW net ACCEPT\nnet all DROP info\nall all REJECT info\n' > policy
cat > blrules <<'EOF'
DROP net:[2001:db8:bad::]/48 all
EOF
cat > rules <<'EOF'
?SECTION NEW
Ping(ACCEPT) net $FW
Web(ACCEPT) net $FW
Mail(ACCEPT) net $FW
ACCEPT net $FW icmp packet-too-big
REJECT net $FW tcp 113
EOF
start_shorewall shorewall6
