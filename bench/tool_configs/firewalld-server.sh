# One zone with services, rich rules, sets of sources and rate limits, in nftables.
# interfaces: eth0=192.0.2.10/24,2001:db8::10/64
# saves: nft
sed -i 's/^LogDenied=.*/LogDenied=unicast/' /etc/firewalld/firewalld.conf
firewall-offline-cmd --new-ipset=blocked --type=hash:net
firewall-offline-cmd --ipset=blocked --add-entry=203.0.113.0/24
firewall-offline-cmd --ipset=blocked --add-entry=198.51.100.128/25
firewall-offline-cmd --zone=drop --add-source=ipset:blocked
firewall-offline-cmd --zone=public --add-service=http --add-service=https --add-service=dns
firewall-offline-cmd --zone=public --add-port=8000-8100/tcp --add-port=51820/udp
firewall-offline-cmd --zone=public --add-protocol=gre
firewall-offline-cmd --zone=public --add-source-port=68/udp
firewall-offline-cmd --zone=public --add-icmp-block=timestamp-request --add-icmp-block=redirect
firewall-offline-cmd --zone=public --add-rich-rule='rule family="ipv4" source address="198.51.100.0/25" service name="postgresql" log prefix="pg " level="info" limit value="3/m" accept'
firewall-offline-cmd --zone=public --add-rich-rule='rule family="ipv6" source address="2001:db8:1::/48" port port="5432" protocol="tcp" accept'
firewall-offline-cmd --zone=public --add-rich-rule='rule family="ipv4" source NOT address="192.0.2.0/24" port port="9100" protocol="tcp" reject type="icmp-admin-prohibited"'
firewall-offline-cmd --zone=public --add-rich-rule='rule priority="-10" protocol value="esp" accept'
firewall-offline-cmd --zone=public --add-rich-rule='rule service name="ftp" accept limit value="10/m"'
start_firewalld
