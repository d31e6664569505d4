# Two jails with banned hosts in sets, in nftables.
# interfaces: eth0=192.0.2.10/24,2001:db8::10/64
# saves: nft
touch /var/log/one.log
rm -f /etc/fail2ban/jail.d/*
cat > /etc/fail2ban/jail.local <<'EOF'
[DEFAULT]
backend = polling
logpath = /var/log/one.log
banaction = nftables-multiport
[sshd]
enabled = true
port = 22,2222
backend = polling
logpath = /var/log/one.log
[postfix]
enabled = true
backend = polling
logpath = /var/log/one.log
banaction = nftables-allports
EOF
mkdir -p /run/fail2ban
fail2ban-client start
for address in 203.0.113.5 203.0.113.99 2001:db8:bad::1; do fail2ban-client set sshd banip $address; done
fail2ban-client set postfix banip 203.0.113.7
for _ in $(seq 40); do
    if nft list ruleset | grep -q 203.0.113.99 && nft list ruleset | grep -q bad::1 && nft list ruleset | grep -q 203.0.113.7; then break; fi
    sleep 0.25
done
nft list ruleset | grep -q 203.0.113.7
