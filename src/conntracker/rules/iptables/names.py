"""Names that iptables takes in place of numbers. A file may come from another host, so no file of this one is asked."""

from __future__ import annotations

__all__ = [
    "DSCP_CLASSES",
    "ICMP_TYPES",
    "PROTOCOLS",
    "SERVICES",
    "TCP_FLAGS",
    "TOS_NAMES",
]


def _numbers(text: str) -> dict[str, int]:
    return {name: int(number) for name, _, number in (word.partition("=") for word in text.split())}


# /etc/protocols, by which iptables-save names numbers, and libxtables/xtables.c (xtables_chain_protos).
PROTOCOLS = _numbers(
    "all=0 ip=0 hopopt=0 icmp=1 igmp=2 ggp=3 ipencap=4 ipv4=4 st=5 tcp=6 egp=8 igp=9 pup=12 udp=17 hmp=20 xns-idp=22 "
    "rdp=27 iso-tp4=29 dccp=33 xtp=36 ddp=37 idpr-cmtp=38 ipv6=41 ipv6-route=43 ipv6-frag=44 idrp=45 rsvp=46 gre=47 "
    "esp=50 ah=51 skip=57 icmpv6=58 icmp6=58 ipv6-icmp=58 ipv6-nonxt=59 ipv6-opts=60 rspf=73 vmtp=81 eigrp=88 ospf=89 "
    "ospfigp=89 ax.25=93 ipip=94 etherip=97 encap=98 pim=103 ipcomp=108 vrrp=112 carp=112 l2tp=115 isis=124 sctp=132 "
    "fc=133 mobility-header=135 ipv6-mh=135 mh=135 udplite=136 mpls-in-ip=137 manet=138 hip=139 shim6=140 wesp=141 "
    "rohc=142 ethernet=143"
)

# The services that rules written by hand name most; iptables-save writes numbers.
SERVICES = _numbers(
    "tcpmux=1 echo=7 discard=9 daytime=13 netstat=15 chargen=19 ftp-data=20 ftp=21 ssh=22 telnet=23 smtp=25 mail=25 "
    "time=37 whois=43 nicname=43 tacacs=49 domain=53 bootps=67 bootpc=68 tftp=69 gopher=70 finger=79 http=80 www=80 "
    "kerberos=88 pop3=110 pop-3=110 sunrpc=111 portmapper=111 auth=113 ident=113 nntp=119 ntp=123 epmap=135 "
    "netbios-ns=137 netbios-dgm=138 netbios-ssn=139 imap=143 imap2=143 snmp=161 snmp-trap=162 snmptrap=162 bgp=179 "
    "irc=194 ldap=389 https=443 microsoft-ds=445 submissions=465 ssmtp=465 smtps=465 isakmp=500 exec=512 login=513 "
    "shell=514 syslog=514 printer=515 rip=520 route=520 dhcpv6-client=546 dhcpv6-server=547 rtsp=554 nntps=563 "
    "submission=587 ipp=631 ldaps=636 domain-s=853 rsync=873 ftps-data=989 ftps=990 telnets=992 imaps=993 pop3s=995 "
    "socks=1080 openvpn=1194 ms-sql-s=1433 ms-sql-m=1434 l2tp=1701 l2f=1701 pptp=1723 radius=1812 radius-acct=1813 "
    "nfs=2049 squid=3128 mysql=3306 ms-wbt-server=3389 svn=3690 ipsec-nat-t=4500 sip=5060 sip-tls=5061 "
    "xmpp-client=5222 xmpp-server=5269 mdns=5353 postgresql=5432 amqps=5671 amqp=5672 x11=6000 ircd=6667 redis=6379 "
    "http-alt=8080 webcache=8080 git=9418 zabbix-agent=10050 zabbix-trapper=10051"
)

TCP_FLAGS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32, "ALL": 63, "NONE": 0}

# iptables/tos_values: with the mask 0x3f.
TOS_NAMES = {
    "minimize-delay": 0x10,
    "maximize-throughput": 0x08,
    "maximize-reliability": 0x04,
    "minimize-cost": 0x02,
    "normal-service": 0x00,
}

# extensions/dscp_helper.c
DSCP_CLASSES = _numbers(
    "BE=0 LE=1 CS0=0 CS1=8 CS2=16 CS3=24 CS4=32 CS5=40 CS6=48 CS7=56 AF11=10 AF12=12 AF13=14 AF21=18 AF22=20 AF23=22 "
    "AF31=26 AF32=28 AF33=30 AF41=34 AF42=36 AF43=38 EF=46 VOICE-ADMIT=44"
)


def _types(text: str) -> dict[str, tuple[int, int | None]]:
    """`name=type/code`, or `name=type` for every code."""
    out = {}
    for word in text.split():
        name, _, numbers = word.partition("=")
        number, _, code = numbers.partition("/")
        out[name] = int(number), int(code) if code else None
    return out


# By protocol, (type, code): extensions/libipt_icmp.c and libip6t_icmp6.c. `any` is type 255, which in ICMP, not in
# ICMPv6, stands for every type (net/netfilter/xt_tcpudp.c).
ICMP_TYPES = {
    1: _types(
        "any=255 echo-reply=0 pong=0 destination-unreachable=3 network-unreachable=3/0 host-unreachable=3/1 "
        "protocol-unreachable=3/2 port-unreachable=3/3 fragmentation-needed=3/4 source-route-failed=3/5 "
        "network-unknown=3/6 host-unknown=3/7 network-prohibited=3/9 host-prohibited=3/10 tos-network-unreachable=3/11 "
        "tos-host-unreachable=3/12 communication-prohibited=3/13 host-precedence-violation=3/14 precedence-cutoff=3/15 "
        "source-quench=4 redirect=5 network-redirect=5/0 host-redirect=5/1 tos-network-redirect=5/2 "
        "tos-host-redirect=5/3 echo-request=8 ping=8 router-advertisement=9 router-solicitation=10 time-exceeded=11 "
        "ttl-exceeded=11 ttl-zero-during-transit=11/0 ttl-zero-during-reassembly=11/1 parameter-problem=12 "
        "ip-header-bad=12/0 required-option-missing=12/1 timestamp-request=13 timestamp-reply=14 "
        "address-mask-request=17 address-mask-reply=18"
    ),
    58: _types(
        "destination-unreachable=1 no-route=1/0 communication-prohibited=1/1 beyond-scope=1/2 address-unreachable=1/3 "
        "port-unreachable=1/4 failed-policy=1/5 reject-route=1/6 packet-too-big=2 time-exceeded=3 ttl-exceeded=3 "
        "ttl-zero-during-transit=3/0 ttl-zero-during-reassembly=3/1 parameter-problem=4 bad-header=4/0 "
        "unknown-header-type=4/1 unknown-option=4/2 echo-request=128 ping=128 echo-reply=129 pong=129 "
        "router-solicitation=133 router-advertisement=134 neighbour-solicitation=135 neighbor-solicitation=135 "
        "neighbour-advertisement=136 neighbor-advertisement=136 redirect=137"
    ),
}
