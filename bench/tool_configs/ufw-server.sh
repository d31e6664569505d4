# A web and database server: rate limited ssh, an application profile, IPv4 and IPv6.
# interfaces: eth0=192.0.2.10/24,2001:db8::10/64
# saves: v4 v6
# counters: yes
sed -i 's/^IPV6=.*/IPV6=yes/' /etc/default/ufw
cat > /etc/ufw/applications.d/mail <<'EOF'
[Mail]
title=Mail server
description=SMTP, submission and IMAP
ports=25,465,587/tcp|993/tcp
EOF
ufw default deny incoming
ufw default allow outgoing
ufw logging medium
ufw limit 22/tcp comment 'ssh, slowly'
ufw allow proto tcp from any to any port 80,443
ufw allow Mail
ufw allow from 198.51.100.0/24 to any port 5432 proto tcp
ufw allow from 2001:db8:1::/48 to any port 5432 proto tcp
ufw deny log from 203.0.113.66
ufw reject in on eth0 to any port 113 proto tcp
ufw allow 60000:61000/udp
ufw --force enable
