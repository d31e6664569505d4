# A desktop: closed outwards too, little logging, an order of rules that grew by hand.
# interfaces: wlan0=192.168.1.23/24 tun0=10.8.0.2/24
# saves: v4 v6
sed -i 's/^IPV6=.*/IPV6=yes/' /etc/default/ufw
ufw default reject incoming
ufw default deny outgoing
ufw logging low
ufw allow out on tun0
ufw allow out 53
ufw allow out 123/udp
ufw allow out 1194/udp
ufw allow from 192.168.1.0/24 to any port 631
ufw allow from 192.168.1.0/24
ufw deny from 192.168.1.66
ufw insert 1 deny in from 192.168.1.99 to any
ufw allow in proto esp from 198.51.100.7
ufw allow in proto gre from 198.51.100.7
ufw --force enable
