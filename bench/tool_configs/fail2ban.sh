# Two jails with banned hosts, beside a short ruleset of one's own.
# interfaces: eth0=192.0.2.10/24,2001:db8::10/64
# backend: legacy
# saves: v4 v6
iptables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A INPUT -p tcp -m multiport --dports 22,25,80,443 -j ACCEPT
iptables -A INPUT -i eth0 -j DROP
touch /var/log/one.log
rm -f /etc/fail2ban/jail.d/*
cat > /etc/fail2ban/jail.local <<'EOF'
[DEFAULT]
backend = polling
logpath = /var/log/one.log
banaction = iptables-multiport
[sshd]
enabled = true
port = 22,2222
backend = polling
logpath = /var/log/one.log
[postfix]
enabled = true
backend = polling
logpath = /var/log/one.log
banaction = iptables-allports
EOF
mkdir -p /run/fail2ban
fail2ban-client start
for address in 203.0.113.5 203.0.113.99 2001:db8:bad::1; do fail2ban-client set sshd banip $address; done
fail2ban-client set postfix banip 203.0.113.7
for _ in $(seq 40); do
    if iptables -S f2b-sshd 2> /dev/null | grep -q 203.0.113.99 && ip6tables -S f2b-sshd 2> /dev/null | grep -q bad \
        && iptables -S f2b-postfix 2> /dev/null | grep -q 203.0.113.7; then break; fi
    sleep 0.25
done
iptables -S f2b-postfix > /dev/null
ip6tables -S f2b-sshd > /dev/null
