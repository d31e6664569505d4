"""Which options the matches and targets of iptables have, and how many words follow each (iptables-extensions(8))."""

from __future__ import annotations

__all__ = ["ALIASES", "IMPLIED", "MATCHES", "STATEFUL", "TARGET_OPTIONS", "Options"]

# option -> (its usual name, words that follow)
Options = dict[str, tuple[str, int]]


def _tables(text: str) -> dict[str, Options]:
    """Lines of `extension: name,othername:words ...`; without a number no word follows."""
    tables: dict[str, Options] = {}
    for line in text.strip().splitlines():
        extension, *words = line.split()
        options = tables.setdefault(extension.removesuffix(":"), {})
        for word in words:
            names, _, count = word.partition(":")
            for name in names.split(","):
                options[f"--{name}"] = names.partition(",")[0], int(count or 0)
    return tables


MATCHES = _tables("""
addrtype: src-type:1 dst-type:1 limit-iface-in limit-iface-out
ah: ahspi:1 ahlen:1 ahres
bpf: object-pinned:1 bytecode:1
cgroup: path:1 cgroup:1
cluster: cluster-total-nodes:1 cluster-local-node:1 cluster-local-nodemask:1 cluster-hash-seed:1
comment: comment:1
connbytes: connbytes:1 connbytes-dir:1 connbytes-mode:1
connlabel: label:1 set
connlimit: connlimit-upto:1 connlimit-above:1 connlimit-mask:1 connlimit-saddr connlimit-daddr
connmark: mark:1
conntrack: ctstate:1 ctproto:1 ctorigsrc:1 ctorigdst:1 ctreplsrc:1 ctrepldst:1 ctorigsrcport:1 ctorigdstport:1
conntrack: ctreplsrcport:1 ctrepldstport:1 ctstatus:1 ctexpire:1 ctdir:1
cpu: cpu:1
dccp: sport,source-port:1 dport,destination-port:1 dccp-types:1 dccp-option:1
devgroup: src-group:1 dst-group:1
dscp: dscp:1 dscp-class:1
dst: dst-len:1 dst-opts:1
ecn: ecn-tcp-cwr ecn-tcp-ece ecn-ip-ect:1
esp: espspi:1
eui64:
frag: fragid:1 fraglen:1 fragres fragfirst fragmore fraglast
hashlimit: hashlimit-upto,hashlimit:1 hashlimit-above:1 hashlimit-burst:1 hashlimit-mode:1 hashlimit-srcmask:1
hashlimit: hashlimit-dstmask:1 hashlimit-name:1 hashlimit-htable-size:1 hashlimit-htable-max:1
hashlimit: hashlimit-htable-expire:1 hashlimit-htable-gcinterval:1 hashlimit-rate-match hashlimit-rate-interval:1
hbh: hbh-len:1 hbh-opts:1
helper: helper:1
hl: hl-eq,hl:1 hl-lt:1 hl-gt:1
icmp: icmp-type:1
icmp6: icmpv6-type:1
ipcomp: ipcompspi:1 compres
iprange: src-range:1 dst-range:1
ipv6header: soft header:1
ipvs: ipvs vproto:1 vaddr:1 vport:1 vdir:1 vmethod:1 vportctl:1
length: length:1
limit: limit:1 limit-burst:1
mac: mac-source:1
mark: mark:1
mh: mh-type:1
multiport: sports,source-ports:1 dports,destination-ports:1 ports:1
nfacct: nfacct-name:1
osf: genre:1 ttl:1 log:1
owner: uid-owner:1 gid-owner:1 suppl-groups socket-exists
physdev: physdev-in:1 physdev-out:1 physdev-is-in physdev-is-out physdev-is-bridged
pkttype: pkt-type:1
policy: dir:1 pol:1 strict reqid:1 spi:1 proto:1 mode:1 tunnel-src:1 tunnel-dst:1 next
quota: quota:1
rateest: rateest-delta rateest-lt rateest-gt rateest-eq rateest:1 rateest1:1 rateest2:1 rateest-bps:1 rateest-pps:1
rateest: rateest-bps1:1 rateest-bps2:1 rateest-pps1:1 rateest-pps2:1
realm: realm:1
recent: set rcheck update remove name:1 rsource rdest mask:1 seconds:1 reap hitcount:1 rttl
rpfilter: loose validmark accept-local invert
rt: rt-type:1 rt-segsleft:1 rt-len:1 rt-0-res rt-0-addrs:1 rt-0-not-strict
sctp: sport,source-port:1 dport,destination-port:1 chunk-types:2
set: match-set,set:2 return-nomatch update-counters update-subcounters packets-eq:1 packets-lt:1 packets-gt:1
set: bytes-eq:1 bytes-lt:1 bytes-gt:1
socket: transparent nowildcard restore-skmark
srh: srh-next-hdr:1 srh-hdr-len-eq:1 srh-hdr-len-gt:1 srh-hdr-len-lt:1 srh-segs-left-eq:1 srh-segs-left-gt:1
srh: srh-segs-left-lt:1 srh-last-entry-eq:1 srh-last-entry-gt:1 srh-last-entry-lt:1 srh-tag:1 srh-psid:1 srh-nsid:1
srh: srh-lsid:1
state: state:1
statistic: mode:1 probability:1 every:1 packet:1
string: algo:1 from:1 to:1 string:1 hex-string:1 icase
tcp: sport,source-port:1 dport,destination-port:1 tcp-flags:2 syn tcp-option:1
tcpmss: mss:1
time: datestart:1 datestop:1 timestart:1 timestop:1 monthdays:1 weekdays:1 contiguous kerneltz utc localtz
tos: tos:1
ttl: ttl-eq,ttl:1 ttl-lt:1 ttl-gt:1
u32: u32:1
udp: sport,source-port:1 dport,destination-port:1
""")

TARGET_OPTIONS = _tables("""
ACCEPT:
AUDIT: type:1
CHECKSUM: checksum-fill
CLASSIFY: set-class:1
CLUSTERIP: new hashmode:1 clustermac:1 total-nodes:1 local-node:1 hash-init:1
CONNMARK: set-xmark:1 set-mark:1 save-mark restore-mark and-mark:1 or-mark:1 xor-mark:1 nfmask:1 ctmask:1 mask:1
CONNMARK: left-shift-mark:1 right-shift-mark:1
CONNSECMARK: save restore
CT: notrack helper:1 ctevents:1 expevents:1 zone-orig:1 zone-reply:1 zone:1 timeout:1
DNAT: to-destination:1 random persistent
DNPT: src-pfx:1 dst-pfx:1
DROP:
DSCP: set-dscp:1 set-dscp-class:1
ECN: ecn-tcp-remove ecn-tcp-cwr:1 ecn-tcp-ece:1 ecn-ip-ect:1
HL: hl-set:1 hl-dec:1 hl-inc:1
HMARK: hmark-tuple:1 hmark-mod:1 hmark-offset:1 hmark-src-prefix:1 hmark-dst-prefix:1 hmark-sport-mask:1
HMARK: hmark-dport-mask:1 hmark-spi-mask:1 hmark-proto-mask:1 hmark-rnd:1 hmark-sport:1 hmark-dport:1 hmark-spi:1
IDLETIMER: timeout:1 label:1 alarm
LED: led-trigger-id:1 led-delay:1 led-always-blink
LOG: log-level:1 log-prefix:1 log-tcp-sequence log-tcp-options log-ip-options log-uid log-macdecode
MARK: set-xmark:1 set-mark:1 and-mark:1 or-mark:1 xor-mark:1
MASQUERADE: to-ports:1 random random-fully
NETMAP: to:1
NFLOG: nflog-group:1 nflog-prefix:1 nflog-range:1 nflog-size:1 nflog-threshold:1
NFQUEUE: queue-num:1 queue-balance:1 queue-bypass queue-cpu-fanout
NOTRACK:
QUEUE:
RATEEST: rateest-name:1 rateest-interval:1 rateest-ewmalog:1
REDIRECT: to-ports:1 random
REJECT: reject-with:1
RETURN:
SECMARK: selctx:1
SET: add-set:2 del-set:2 map-set:2 timeout:1 exist map-mark map-prio map-queue
SNAT: to-source:1 random random-fully persistent
SNPT: src-pfx:1 dst-pfx:1
SYNPROXY: mss:1 wscale:1 sack-perm timestamp ecn
TCPMSS: set-mss:1 clamp-mss-to-pmtu
TCPOPTSTRIP: strip-options:1
TEE: gateway:1 oif:1
TOS: set-tos:1 and-tos:1 or-tos:1 xor-tos:1
TPROXY: on-port:1 on-ip:1 tproxy-mark:1
TRACE:
TTL: ttl-set:1 ttl-dec:1 ttl-inc:1
ULOG: ulog-nlgroup:1 ulog-prefix:1 ulog-cprange:1 ulog-qthreshold:1
""")

ALIASES = {"icmpv6": "icmp6", "ipv6-icmp": "icmp6"}

# The match whose options need no `-m` behind `-p` (find_proto in iptables/xshared.c).
IMPLIED = {
    1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 50: "esp", 51: "ah", 58: "icmp6", 108: "ipcomp", 132: "sctp", 135: "mh",
}  # fmt: skip

# Those of which two with one text may answer differently for one packet: they count, or hold what they are given.
STATEFUL = {
    "connlabel", "connlimit", "dstlimit", "fuzzy", "hashlimit", "limit", "lscan", "nth", "psd", "quota", "quota2",
    "random", "rateest", "recent", "statistic",
}  # fmt: skip
