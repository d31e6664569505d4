"""Matches of iptables(8) with random arguments, and in which chains each is allowed (iptables-extensions(8))."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from conntracker.lab.trials.pool import Pool

__all__ = ["MATCHES", "Match", "protocol_part"]

_PRE, _IN, _FWD, _OUT, _POST = "PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"
_FLAGS = ("SYN", "ACK", "FIN", "RST", "URG", "PSH")
_ICMP = {
    4: ("8", "0", "3", "3/1", "3/4", "11/0", "echo-request", "echo-reply", "destination-unreachable", "any"),
    6: ("128", "129", "1", "1/4", "2", "3/0", "echo-request", "echo-reply", "packet-too-big"),
}
_CT_STATES = ("NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED", "DNAT", "SNAT")
_STATES = ("NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED")
_STATUS = ("EXPECTED", "SEEN_REPLY", "ASSURED", "CONFIRMED", "NONE")


@dataclass(frozen=True, slots=True)
class Match:
    """How a match is made, and where it is allowed.

    weight     how likely it is
    hooks      built-in chains that may lead to it; None: all
    tables     None: all
    versions   of IP
    """

    make: Callable[[Pool], str]
    weight: int = 4
    hooks: frozenset[str] | None = None
    tables: frozenset[str] | None = None
    versions: tuple[int, ...] = (4, 6)

    def fits(self, version: int, table: str, hooks: frozenset[str]) -> bool:
        """Whether it may stand in a chain of the table that these built-in chains lead to."""
        return (
            version in self.versions
            and (self.tables is None or table in self.tables)
            and (self.hooks is None or hooks <= self.hooks)
        )


def protocol_part(pool: Pool, name: str) -> str:
    """`-p` with what belongs to the protocol."""
    if name in {"tcp", "udp", "sctp", "udplite"}:
        return _with_ports(pool, name)
    if name == "icmp":
        kind = pool.one(_ICMP[pool.version])
        if pool.version == 4:
            return f"-p icmp -m icmp {pool.negated() if kind != 'any' else ''}--icmp-type {kind}"
        return f"-p ipv6-icmp -m icmp6 {pool.negated()}--icmpv6-type {kind}"
    return f"{pool.negated()}-p {name}"


def _with_ports(pool: Pool, name: str) -> str:
    if pool.chance(0.12):
        return f"{pool.negated('! ', 0.3)}-p {name}"
    if name != "udplite" and pool.chance(0.6):
        return f"-p {name} -m {name} {_ports_or_flags(pool, name)}"
    return f"-p {name} -m multiport {_multiport(pool)}"


def _ports_or_flags(pool: Pool, name: str) -> str:
    words = []
    if name == "tcp" and pool.chance(0.35):
        mask = pool.some(_FLAGS, 4)
        flags = pool.one((",".join(pool.some(mask, 2)), "NONE", ",".join(mask)))
        words.append(pool.one(("--syn", "! --syn", f"{pool.negated()}--tcp-flags {','.join(mask)} {flags}")))
        if pool.chance(0.5):
            return words[0]
    if name == "tcp" and pool.chance(0.04):
        return f"{pool.negated()}--tcp-option {pool.one((2, 5, 8))}"
    if name == "sctp" and pool.chance(0.1):
        return f"--chunk-types {pool.one(('any', 'all', 'only'))} INIT"
    side = pool.weighed({("dport",): 6, ("sport",): 2, ("sport", "dport"): 1})
    words += [f"{pool.negated()}--{one} {pool.ports(':')}" for one in side]
    return " ".join(words)


def _multiport(pool: Pool) -> str:
    option = pool.weighed({"dports": 5, "sports": 2, "ports": 2})
    return f"{pool.negated()}--{option} {','.join(pool.port_list(':', 5))}"


def _icmp_like(values: tuple[str, ...], most: int) -> Callable[[Pool], str]:
    return lambda pool: ",".join(pool.some(values, most))


def _conntrack(pool: Pool) -> str:
    what = pool.weighed({"ctstate": 10, "ctstatus": 4, "ctdir": 2, "ctorigdst": 1, "ctreplsrc": 1, "ctproto": 1})
    if what == "ctstate":
        return f"-m conntrack {pool.negated()}--ctstate {','.join(pool.some(_CT_STATES, 3))}"
    if what == "ctstatus":
        chosen = "NONE" if pool.chance(0.1) else ",".join(pool.some(_STATUS[:-1], 2))
        return f"-m conntrack {pool.negated()}--ctstatus {chosen}"
    if what == "ctdir":
        return f"-m conntrack --ctdir {pool.one(('ORIGINAL', 'REPLY'))}"
    if what == "ctproto":
        return f"-m conntrack {pool.negated()}--ctproto {pool.one((6, 17))}"
    return f"-m conntrack {pool.negated()}--{what} {pool.prefix()}"


def _limit(pool: Pool) -> str:
    return f"-m limit --limit {pool.one(('1/sec', '5/min', '100/sec', '3/hour'))} --limit-burst {pool.one((1, 5, 20))}"


def _recent(pool: Pool) -> str:
    name = pool.one(("seen", "ssh", "DEFAULT"))
    side = pool.one(("--rsource", "--rdest"))
    how = pool.one(
        ("--set", "--rcheck", "--remove", "--update --seconds 60", "--rcheck --seconds 5 --hitcount 3", "--update")
    )
    return f"-m recent {pool.negated()}{how} --name {name} {side}"


def _hashlimit(pool: Pool) -> str:
    name = f"h{pool.random.randrange(10**6)}"
    mode = pool.one(("srcip", "dstip", "srcip,dstport", "srcip --hashlimit-srcmask 24"))
    if pool.version == 6 and "mask" in mode:
        mode = "srcip --hashlimit-srcmask 64"
    return f"-m hashlimit --hashlimit-{pool.one(('upto', 'above'))} {pool.one(('1/sec', '50/min'))} --hashlimit-burst 5 --hashlimit-mode {mode} --hashlimit-name {name}"  # noqa: E501


def _connlimit(pool: Pool) -> str:
    mask = pool.one((32, 24) if pool.version == 4 else (128, 64))
    return f"-m connlimit --connlimit-{pool.one(('above', 'upto'))} {pool.one((1, 3))} --connlimit-mask {mask} --connlimit-{pool.one(('saddr', 'daddr'))}"  # noqa: E501


def _addrtype(pool: Pool) -> str:
    kinds = ["LOCAL", "UNICAST", "MULTICAST", "ANYCAST", "UNICAST,LOCAL"]
    if pool.version == 4:
        kinds.append("BROADCAST")
    side = pool.weighed({"dst": 3, "src": 1})
    return f"-m addrtype {pool.negated()}--{side}-type {pool.one(kinds)}"


def _length(pool: Pool) -> str:
    return f"-m length {pool.negated()}--length {pool.one(('40', '60', '0:59', '61:100', '40:80', '1000:65535'))}"


def _hop_limit(pool: Pool) -> str:
    name = "ttl" if pool.version == 4 else "hl"
    form = pool.one((f"{pool.negated()}--{name}-eq", f"--{name}-lt", f"--{name}-gt"))
    return f"-m {name} {form} {pool.one((1, 2, 63, 64, 65, 254))}"


def _time(pool: Pool) -> str:
    return pool.one(
        (
            "-m time --timestart 00:00 --timestop 12:00",
            "-m time --timestart 12:00 --timestop 23:59:59",
            f"-m time {pool.negated()}--weekdays Mon,Tue,Wed,Thu,Fri",
        )
    )


def _policy(pool: Pool) -> str:
    return f"-m policy --dir in --pol {pool.one(('none', 'ipsec'))}"


def _owner(pool: Pool) -> str:
    what = pool.one(("uid-owner 0", "uid-owner 1000", "uid-owner 1000-1999", "gid-owner 0", "gid-owner 1000"))
    return f"-m owner {pool.negated()}--{what}" if pool.chance(0.85) else f"-m owner {pool.negated()}--socket-exists"


def _statistic(pool: Pool) -> str:
    if pool.chance(0.5):
        return f"-m statistic --mode nth --every {pool.one((2, 3))} --packet {pool.one((0, 1))}"
    return f"-m statistic --mode random {pool.negated()}--probability 0.5"


def _set_of(*hooks: str) -> frozenset[str]:
    return frozenset(hooks)


_WAYS_IN = _set_of(_PRE, _IN, _FWD)
MATCHES: dict[str, Match] = {
    "state": Match(lambda pool: f"-m state {pool.negated()}--state {','.join(pool.some(_STATES, 3))}", 10),
    "conntrack": Match(_conntrack, 10),
    "limit": Match(_limit, 3),
    "addrtype": Match(_addrtype, 5),
    "addrtype-in": Match(
        lambda pool: f"-m addrtype {pool.negated()}--dst-type LOCAL --limit-iface-in", 1, _WAYS_IN - {_FWD}
    ),
    "recent": Match(_recent, 3),
    "owner": Match(_owner, 12, _set_of(_OUT, _POST)),
    "comment": Match(lambda pool: f'-m comment --comment "{pool.one(("a rule", "ssh, and -j DROP", "x"))}"', 3),
    "iprange": Match(lambda pool: f"-m iprange {pool.negated()}--{pool.one(('src', 'dst'))}-range {pool.span()}", 5),
    "mark": Match(lambda pool: f"-m mark {pool.negated()}--mark {pool.mark()}", 6),
    "connmark": Match(lambda pool: f"-m connmark {pool.negated()}--mark {pool.mark()}", 3),
    "mac": Match(
        lambda pool: f"-m mac {pool.negated()}--mac-source {pool.one(('02:AA:00:00:00:01', '02:AA:00:00:00:02'))}",
        5,
        _WAYS_IN,
    ),
    "policy": Match(_policy, 2, _WAYS_IN),
    "hashlimit": Match(_hashlimit, 2),
    "connlimit": Match(_connlimit, 2),
    "hl": Match(_hop_limit, 4),
    "pkttype": Match(
        lambda pool: f"-m pkttype {pool.negated()}--pkt-type {pool.one(('unicast', 'broadcast', 'multicast'))}", 4
    ),
    "time": Match(_time, 2),
    "length": Match(_length, 4),
    "rpfilter": Match(
        lambda pool: f"-m rpfilter{pool.one(('', ' --loose', ' --validmark'))}{pool.negated(' --invert', 0.5)}",
        6,
        _set_of(_PRE),
        frozenset({"raw", "mangle"}),
    ),
    "string": Match(
        lambda pool: f'-m string {pool.negated()}--hex-string "|{pool.one(("0016", "0050", "dead"))}|" --algo bm', 2
    ),
    "physdev": Match(lambda pool: f"-m physdev {pool.negated(of_one=0.5)}--physdev-is-bridged", 1),
    "rt": Match(lambda pool: f"-m rt {pool.negated()}--rt-type 0", 1, versions=(6,)),
    "dscp": Match(lambda pool: f"-m dscp {pool.negated()}--dscp {pool.one(('0x04', '0x08', '0x2e'))}", 3),
    "tos": Match(lambda pool: f"-m tos {pool.negated()}--tos {pool.one(('0x10', '0x10/0x3f', '0x08/0xff'))}", 2),
    "statistic": Match(_statistic, 1),
    "helper": Match(lambda pool: f"-m helper {pool.negated()}--helper ftp", 1),
    "fragment": Match(lambda pool: f"{pool.negated()}-f", 2, versions=(4,)),
}
