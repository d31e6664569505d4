# What libvirt makes for its default network, with NAT, and for a routed one.
# interfaces: eth0=192.0.2.10/24,2001:db8::10/64
# saves: v4 v6
mkdir -p /run/libvirt /run/dbus
dbus-daemon --system --fork
cat > /run/routed.xml <<'EOF'
<network ipv6='yes'><name>routed</name><forward mode='route' dev='eth0'/><bridge name='virbr1' stp='on' delay='0'/>
<ip address='10.0.9.1' netmask='255.255.255.0'/><ip family='ipv6' address='2001:db8:9::1' prefix='64'/></network>
EOF
libvirtd --daemon
virsh -c network:///system net-list > /dev/null
virsh -c network:///system net-start default || virsh -c network:///system net-list
virsh -c network:///system net-create /run/routed.xml
