# Zones, a policy between them, masquerading and forwarded ports, in nftables.
# interfaces: eth0=192.0.2.1/24,2001:db8::1/64 eth1=10.0.0.1/24,2001:db8:a::1/64 eth2=10.0.2.1/24
# saves: nft
sed -i 's/^LogDenied=.*/LogDenied=all/; s/^IPv6_rpfilter=.*/IPv6_rpfilter=yes/' /etc/firewalld/firewalld.conf
firewall-offline-cmd --zone=external --add-interface=eth0
firewall-offline-cmd --zone=internal --add-interface=eth1
firewall-offline-cmd --zone=dmz --add-interface=eth2
firewall-offline-cmd --zone=trusted --add-source=10.0.0.7
firewall-offline-cmd --zone=work --add-source=02:00:00:00:00:17
firewall-offline-cmd --zone=external --add-forward-port=port=443:proto=tcp:toport=8443:toaddr=10.0.2.20
firewall-offline-cmd --zone=external --add-forward-port=port=2200-2210:proto=tcp:toaddr=10.0.0.30
firewall-offline-cmd --zone=external --add-forward-port=port=8080:proto=tcp:toport=80
firewall-offline-cmd --zone=external --add-rich-rule='rule family="ipv4" source address="198.51.100.0/24" forward-port port="25" protocol="tcp" to-port="2525" to-addr="10.0.2.25"'
firewall-offline-cmd --zone=internal --add-service=dns --add-service=dhcp --add-service=ntp
firewall-offline-cmd --zone=internal --add-icmp-block-inversion
firewall-offline-cmd --zone=internal --add-icmp-block=echo-request
firewall-offline-cmd --new-policy=outwards
firewall-offline-cmd --policy=outwards --add-ingress-zone=internal
firewall-offline-cmd --policy=outwards --add-egress-zone=external
firewall-offline-cmd --policy=outwards --set-target=ACCEPT
firewall-offline-cmd --new-policy=serve
firewall-offline-cmd --policy=serve --add-ingress-zone=external
firewall-offline-cmd --policy=serve --add-egress-zone=dmz
firewall-offline-cmd --policy=serve --add-service=http --add-service=https
firewall-offline-cmd --policy=serve --set-target=REJECT
start_firewalld
