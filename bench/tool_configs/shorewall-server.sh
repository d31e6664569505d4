# A server with one interface: a blacklist, rate limits, accounting, logging; iptables of the old kind.
# interfaces: eth0=192.0.2.10/24
# backend: legacy
# saves: v4
cd /etc/shorewall
cat > zones <<'EOF'
fw firewall
net ipv4
EOF
cat > interfaces <<'EOF'
?FORMAT 2
net eth0 tcpflags,logmartians,nosmurfs,sourceroute=0,routefilter=1
EOF
cat > policy <<'EOF'
$FW net ACCEPT
net all DROP info 10/sec:40
all all REJECT info
EOF
cat > blrules <<'EOF'
DROP net:203.0.113.0/24 all
WHITELIST net:198.51.100.7 all
DROP:info net all tcp 23,2323
EOF
cat > rules <<'EOF'
?SECTION ESTABLISHED
?SECTION RELATED
?SECTION INVALID
?SECTION UNTRACKED
?SECTION NEW
Invalid(DROP) net all tcp
Ping(ACCEPT) net $FW { rate=s:1/sec:10 }
SSH(ACCEPT) net $FW { rate=s:ssh:3/min:3 }
Web(ACCEPT) net $FW
ACCEPT net:198.51.100.0/24!198.51.100.13 $FW tcp 5432
ACCEPT:info net:192.0.2.20-192.0.2.29 $FW udp 514
ACCEPT net $FW udp 60000:61000 1024:
DROP $FW net tcp 25 - - - root
EOF
start_shorewall shorewall
