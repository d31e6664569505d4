# Zones and forwarded ports through firewalld's older backend.
# interfaces: eth0=192.0.2.1/24,2001:db8::1/64 eth1=10.0.0.1/24
# backend: legacy
# saves: v4 v6
sed -i 's/^FirewallBackend=.*/FirewallBackend=iptables/; s/^LogDenied=.*/LogDenied=unicast/' /etc/firewalld/firewalld.conf
firewall-offline-cmd --zone=external --add-interface=eth0
firewall-offline-cmd --zone=home --add-interface=eth1
firewall-offline-cmd --zone=external --add-forward-port=port=2222:proto=tcp:toport=22:toaddr=10.0.0.5
firewall-offline-cmd --zone=external --add-icmp-block=redirect
firewall-offline-cmd --zone=external --add-rich-rule='rule family="ipv4" source address="198.51.100.0/24" port port="161" protocol="udp" log prefix="snmp " limit value="2/m" accept'
firewall-offline-cmd --zone=home --add-port=32400/tcp --add-port=6881-6889/udp
firewall-offline-cmd --direct --add-rule ipv4 filter INPUT_direct 0 -m ttl --ttl-lt 2 -j DROP
start_firewalld
