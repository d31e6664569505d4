# What netavark, podman's network tool, makes for a bridge with published ports.
# interfaces: eth0=192.0.2.10/24,2001:db8::10/64
# saves: v4 v6
ip netns add box
cat > /run/network.json <<'EOF'
{"container_id": "0123456789abcdef", "container_name": "box",
 "port_mappings": [
   {"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp", "range": 1},
   {"container_port": 5000, "host_ip": "192.0.2.10", "host_port": 5000, "protocol": "udp", "range": 11}],
 "networks": {"podman": {"interface_name": "eth0", "static_ips": ["10.88.0.2", "fd00:88::2"]}},
 "network_info": {"podman": {
   "name": "podman", "id": "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9", "driver": "bridge",
   "network_interface": "podman0", "created": "2024-01-01T00:00:00Z",
   "subnets": [{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}, {"subnet": "fd00:88::/64", "gateway": "fd00:88::1"}],
   "ipv6_enabled": true, "internal": false, "dns_enabled": false, "ipam_options": {"driver": "host-local"}}}}
EOF
/usr/lib/podman/netavark setup /run/netns/box < /run/network.json
