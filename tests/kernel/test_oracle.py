"""The oracle: what it says of packets is what was asked for and what the rules do, and nothing of it stays."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from conntracker.lab.oracle import LoadRefused, Oracle, Seen, Unsendable
from conntracker.rules.fields import CT_STATES
from conntracker.steps import Step

pytestmark = pytest.mark.needs("ip", "nft", "iptables-legacy", "iptables-nft", "ip6tables-legacy", "ip6tables-nft")

Fields = dict[str, int | str | None]

NFT = """
table inet f {
    chain input {
        type filter hook input priority 0; policy drop;
        ct state vmap { invalid : drop, established : accept, related : accept }
        meta l4proto tcp tcp dport 22 accept
        udp dport 53 reject
        icmp type echo-request jump pings
    }
    chain pings {
        ip saddr 10.0.0.1 return
        accept
    }
    chain forward {
        type filter hook forward priority 0; policy accept;
        iifname "eth0" oifname "eth1" drop
        ip6 daddr 2001:db8:f::/48 goto pings
    }
    chain output {
        type filter hook output priority 0; policy accept;
        meta mark 7 drop
        meta skuid 1000 meta skgid 2000 reject
    }
}
"""
SAVE = """*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -p udp -m udp --dport 9 -j DROP
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:USER - [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A INPUT -p tcp -j USER
-A FORWARD -i eth0 -o eth1 -j DROP
-A OUTPUT -m mark --mark 0x7 -j REJECT
-A USER -p tcp -m tcp --dport 80 -j RETURN
-A USER -p tcp -m tcp --dport 81 -j ACCEPT
COMMIT
"""
NAT = """
table ip n {
    chain before { type nat hook prerouting priority dstnat; tcp dport 8080 dnat to 203.0.113.7:80; }
    chain after { type nat hook postrouting priority srcnat; oifname "eth1" snat to 192.0.2.99; }
}
"""
STATES = """
table inet s {
    chain input { type filter hook input priority 0; ct state vmap { new : jump a, established : jump b, \
related : jump c, invalid : jump d, untracked : jump e }; }
    chain forward { type filter hook forward priority 0; ct state new accept; }
    chain output { type filter hook output priority 0; ct state new accept; }
    chain a { }
    chain b { }
    chain c { }
    chain d { }
    chain e { }
}
"""


def number(text: str) -> int:
    """An address as a number."""
    return int(ip_address(text))


def packet(way: str, protocol: int = 6, family: int = 4, **more: int | str | None) -> Fields:
    """A packet from eth0, to port 22 or wherever is said."""
    source, to = ("10.0.0.1", "10.9.0.1") if family == 4 else ("fd00::1", "fd00:9::1")
    made: Fields = {
        "way": way, "family": family, "protocol": protocol, "saddr": number(source), "daddr": number(to), "dport": 22,
        "sport": 5000,
    }  # fmt: skip
    made |= {} if way == "output" else {"iif": "eth0"}
    made |= {} if way == "input" else {"oif": "eth2"}
    return made | more


@pytest.fixture
def oracle() -> Iterator[Oracle]:
    """A host with three interfaces, that lost no message."""
    with Oracle(["eth0", "eth1", "eth2"]) as made:
        yield made
        assert (made.lost, made.stray) == (0, 0)


def shown(step: Step) -> str:
    """A step in few words."""
    rule = "-" if step.rule is None else str(step.rule.position)
    return f"{step.chain} {step.type} {rule} {step.verdict}"


def told(seen: Seen) -> tuple[str, ...]:
    """What became of a packet: where it went, then its steps."""
    return seen.fate + (f" {seen.out}" if seen.out else ""), *map(shown, seen.steps)


NFT_CASES: list[tuple[Fields, tuple[str, ...]]] = [
    (packet("input"), ("arrived", "input rule 2 accept")),
    (packet("input", family=6), ("arrived", "input rule 2 accept")),
    (packet("input", dport=23), ("gone", "input policy - drop")),
    (packet("input", 17, dport=53), ("gone", "input rule 3 reject")),
    (packet("input", 17, 6, dport=53), ("gone", "input rule 3 reject")),
    (packet("input", 1), ("gone", "input rule 4 jump", "pings return 1 return", "input policy - drop")),
    (packet("input", 1, saddr=9 << 24), ("arrived", "input rule 4 jump", "pings rule 2 accept")),
    (packet("input", ct_state=1, dport=23), ("arrived", "input rule 1 accept")),
    (packet("input", ct_state=0), ("gone", "input rule 1 drop")),
    (packet("forward"), ("left eth2", "forward policy - accept")),
    (packet("forward", oif="eth1"), ("gone", "forward rule 1 drop")),
    (packet("forward", iif="eth2", oif="eth1"), ("left eth1", "forward policy - accept")),
    (packet("forward", iif="eth2", oif="eth2"), ("left eth2", "forward policy - accept")),
    (packet("forward", 58, 6, daddr=number("2001:db8:f::1")),
     ("left eth2", "forward rule 2 goto", "pings rule 2 accept")),
    (packet("forward", ttl=1), ("gone",)),
    (packet("output"), ("left eth2", "output policy - accept")),
    (packet("output", family=6, oif="eth0"), ("left eth0", "output policy - accept")),
    (packet("output", mark=7), ("gone", "output rule 1 drop")),
    (packet("output", 132, 6, mark=7), ("gone", "output rule 1 drop")),
    (packet("output", skuid=1000, skgid=2000), ("gone", "output rule 2 reject")),
    (packet("output", skuid=1000, skgid=1000), ("left eth2", "output policy - accept")),
]  # fmt: skip


def test_nft(oracle: Oracle) -> None:
    """Each packet takes the steps that the rules say, and goes where it is sent."""
    oracle.load(NFT)
    asked = [fields for fields, _ in NFT_CASES]
    assert [told(one) for one in oracle.send(asked)] == [expected for _, expected in NFT_CASES]


@pytest.mark.parametrize("kind", ["iptables-legacy", "iptables-nft"])
@pytest.mark.parametrize("family", [4, 6])
def test_iptables(oracle: Oracle, kind: str, family: int) -> None:
    """Both kinds of iptables give the same steps, of both versions of IP."""
    oracle.load(SAVE, kind, "ip" if family == 4 else "ip6")
    raw, output = "PREROUTING policy - accept", "OUTPUT policy - accept"
    cases = [
        (packet("input", 6, family), ("arrived", raw, "INPUT rule 1 accept")),
        (packet("input", 6, family, dport=23, ct_state=1), ("arrived", raw, "INPUT rule 2 accept")),
        (packet("input", 6, family, dport=80),
         ("gone", raw, "INPUT rule 3 jump", "USER return 1 return", "INPUT policy - drop")),
        (packet("input", 6, family, dport=81), ("arrived", raw, "INPUT rule 3 jump", "USER rule 2 accept")),
        (packet("input", 6, family, dport=82),
         ("gone", raw, "INPUT rule 3 jump", "USER return - return", "INPUT policy - drop")),
        (packet("forward", 17, family, dport=9), ("gone", "PREROUTING rule 1 drop")),
        (packet("forward", 17, family, dport=10), ("left eth2", raw, "FORWARD policy - accept")),
        (packet("forward", 17, family, dport=10, oif="eth1"), ("gone", raw, "FORWARD rule 1 drop")),
        (packet("output", 17, family), ("left eth2", output, output)),
        (packet("output", 17, family, mark=7), ("gone", output, "OUTPUT rule 1 reject")),
    ]  # fmt: skip
    seen = oracle.send([fields for fields, _ in cases])
    assert [told(one) for one in seen] == [expected for _, expected in cases]
    assert {step.kind for one in seen for step in one.steps} == {kind}
    assert {step.priority for one in seen for step in one.steps} == {-300, 0}


def test_two_kinds_together(oracle: Oracle) -> None:
    """Steps of legacy and nft tables stand in the order of their priorities."""
    oracle.load(SAVE, "iptables-legacy")
    oracle.load(NFT)
    (seen,) = oracle.send([packet("input", ct_state=1)])
    assert told(seen) == (
        "arrived", "PREROUTING policy - accept", "INPUT rule 1 accept", "input rule 1 accept",
    )  # fmt: skip


def test_flush_in_a_file(oracle: Oracle) -> None:
    """A ruleset that begins by flushing all is traced as any other."""
    oracle.load(f"flush ruleset\n{NFT}")
    (seen,) = oracle.send([packet("input")])
    assert told(seen) == ("arrived", "input rule 2 accept")


def test_nat(oracle: Oracle) -> None:
    """A packet leaves with the addresses that NAT gave it."""
    oracle.load(NAT)
    alike = [packet("forward", dport=8080, oif="eth1")] * 3
    for seen in oracle.send(alike):
        assert told(seen) == ("left eth1", "before rule 1 accept", "after rule 1 accept")
        assert seen.after() == {
            "saddr": number("192.0.2.99"), "daddr": number("203.0.113.7"), "sport": 5000, "dport": 80,
            "tos": 0, "ttl": 63, "length": 40,
        }  # fmt: skip


def test_nat_of_flows_alike(oracle: Oracle) -> None:
    """What NAT made of the packet before stands in nobody's way, not even where addresses alone tell flows apart."""
    oracle.load("table ip n {\n chain o { type nat hook output priority -100; redirect; }\n}")
    alike = [packet("output", 50, daddr=number(f"10.9.0.{last}")) for last in (1, 2, 3)]
    assert [told(seen)[0] for seen in oracle.send(alike)] == ["arrived"] * 3
    mixed = [packet("output", 17, daddr=number("10.9.0.1"), ct_state=state) for state in (3, 1, 3, 1)]
    assert [seen.flow and seen.flow[0] for seen in oracle.send(mixed)] == ["new", "established"] * 2


def test_zones(oracle: Oracle) -> None:
    """Nothing is left in the zones that rules put packets into, where NAT is about."""
    oracle.load(f"{NAT}\ntable ip z {{ chain p {{ type filter hook prerouting priority raw; ct zone set 7; }}; }}")
    translated = ("before rule 1 accept", "after rule 1 accept")
    for seen in oracle.send([packet("forward", dport=8080, oif="eth1")] * 3):
        assert told(seen) == ("left eth1", "p rule 1 continue", "p policy - accept", *translated)


def test_conntrack_without_rules_that_ask(oracle: Oracle) -> None:
    """Where there are chains of NAT, connection tracking follows all packets, whether or not a rule asks for it."""
    oracle.load("table ip f { chain input { type nat hook input priority 100; }; }")
    (seen,) = oracle.send([packet("input", ct_state=1)])
    assert seen.flow is not None
    assert seen.flow[0] == "established"


@pytest.mark.parametrize("kind", ["iptables-legacy", "iptables-nft"])
@pytest.mark.parametrize(("family", "inside"), [("ip", "10.1.2.3"), ("ip6", "fd00:1:2::3")])
def test_sets(oracle: Oracle, kind: str, family: str, inside: str) -> None:
    """The sets that a save asks for are there, with networks in them."""
    lines = ["*filter", ":INPUT ACCEPT [0:0]", "-A INPUT -m set --match-set some src -j DROP", "COMMIT"]
    oracle.load("\n".join(lines) + "\n", kind, family)
    version = 4 if family == "ip" else 6
    seen = oracle.send([packet("input", family=version, saddr=number(inside)), packet("input", family=version)])
    assert [told(one)[0] for one in seen] == ["gone", "arrived"]


def test_headers_in_front(oracle: Oracle) -> None:
    """IPv6 packets come with options or a routing header in front of the transport's, if that is asked for."""
    save = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m rt --rt-type 0 -j DROP\nCOMMIT\n"
    oracle.load(save, "iptables-legacy", "ip6")
    seen = oracle.send([packet("input", family=6, nexthdr=header) for header in (0, 6, 43, 60)])
    assert [told(one)[0] for one in seen] == ["arrived", "arrived", "gone", "arrived"]


def asked_for_states(way: str, family: int) -> Iterator[Fields]:
    """Packets of each protocol in each state and direction."""
    icmp = 1 if family == 4 else 58
    error = 3 if family == 4 else 1
    for protocol in (6, 17, 1, 58, 132, 136, 33, 47, 50, 253):
        for state in range(len(CT_STATES)):
            for direction in (0, 1):
                yield packet(way, protocol, family, ct_state=state, ct_direction=direction)
        yield packet(way, protocol, family, ct_state=1, ct_mark=0x50001)
    yield from (packet(way, icmp, family, icmp_type=error, ct_state=2, ct_direction=one) for one in (0, 1))
    for flags in range(256):
        for state in (0, 1, 2, 3):
            yield packet(way, 6, family, tcp_flags=flags, ct_state=state)
            yield packet(way, 6, family, tcp_flags=flags, ct_state=state, ct_direction=1)
    for kind in range(256):
        for state in range(len(CT_STATES)):
            yield packet(way, icmp, family, icmp_type=kind, ct_state=state)


@pytest.mark.parametrize("way", ["input", "forward", "output"])
@pytest.mark.parametrize("family", [4, 6])
def test_states(oracle: Oracle, way: str, family: int) -> None:
    """Connection tracking sees each packet in the state and direction that was asked for, or it is refused."""
    oracle.load(STATES)
    packets = [one for one in asked_for_states(way, family) if oracle.refusal(one) is None]
    wrong = []
    for fields, seen in zip(packets, oracle.send(packets), strict=True):
        state = CT_STATES[int(fields["ct_state"] or 0)]
        found, direction, _ = seen.flow or ("invalid", 0, 0)
        if found != state or (state != "untracked" and direction != fields.get("ct_direction", direction)):
            wrong.append((fields, seen.flow))
    assert wrong == []
    assert len({(one["protocol"], one["ct_state"]) for one in packets}) >= 7 * 4


def test_flows_that_are_asked_for(oracle: Oracle) -> None:
    """Rules see the mark and the status bits of a flow as they were asked for."""
    oracle.load("""table inet f { chain input { type filter hook input priority 0;
        ct mark 0x1234 accept
        ct status snat accept
        ct status dnat accept
        ct status assured accept
        ct status seen-reply accept
    }
    }""")
    reply = {"ct_state": 1, "ct_direction": 1}
    cases: list[tuple[Fields, str]] = [
        (packet("input", ct_state=1, ct_mark=0x1234), "input rule 1 accept"),
        (packet("input", ct_state=1, ct_status=2 | 4 | 8 | 16), "input rule 2 accept"),
        (packet("input", ct_status=2 | 4 | 8 | 32, **reply), "input rule 3 accept"),
        (packet("input", ct_state=1, ct_status=2 | 4 | 8), "input rule 4 accept"),
        (packet("input", 50, ct_state=1, ct_status=2 | 8), "input rule 5 accept"),
        (packet("input", 17, 6, ct_status=2 | 4 | 8 | 32, **reply), "input rule 3 accept"),
        (packet("input"), "input policy - accept"),
    ]
    seen = oracle.send([fields for fields, _ in cases])
    assert [told(one)[1] for one in seen] == [expected for _, expected in cases]


def asked_for_status() -> Iterator[Fields]:
    """Packets of flows with each set of status bits, some of them impossible."""
    for protocol, family in ((6, 4), (6, 6), (17, 4), (17, 6), (1, 4), (58, 6), (132, 4), (47, 6), (50, 4)):
        for direction in (0, 1):
            types = (8, 0) if protocol == 1 else (128, 129)
            for status in range(0, 64, 2):
                fields = {"ct_direction": direction, "ct_status": status, "icmp_type": types[direction]}
                yield packet("forward", protocol, family, ct_state=1, **fields)
        for status in range(64):
            yield packet("forward", protocol, family, ct_state=2, ct_status=status)


def test_status(oracle: Oracle) -> None:
    """The status bits of a flow are those that were asked for, or the packet is refused."""
    oracle.load(STATES)
    packets = [one for one in asked_for_status() if oracle.refusal(one) is None]
    done = 128 | 256
    for fields, seen in zip(packets, oracle.send(packets), strict=True):
        assert seen.flow is not None, fields
        assert seen.flow[2] & ~done == fields["ct_status"], (fields, seen.flow)
    assert len(packets) > 40


def test_first_of_a_flow(oracle: Oracle) -> None:
    """Rules of nat chains are asked of the first packet of a flow alone, also in states new and related."""
    oracle.load(NAT)
    for protocol in (1, 6, 17, 47, 50, 132):
        asked = [packet("forward", protocol, dport=8080, ct_state=one, first=0, oif="eth1") for one in (2, 3)]
        assert [(told(one), one.flow and one.flow[0]) for one in oracle.send(asked)] == [
            (("left eth1",), "related"), (("left eth1",), "new"),
        ]  # fmt: skip
    assert oracle.refusal(packet("forward", ct_state=2)) is not None
    (seen,) = oracle.send([packet("forward", 1, icmp_type=3, ct_state=2, oif="eth1")])
    assert told(seen) == ("left eth1",)


FIELDS = [
    ("ip dscp cs2", {"tos": 0x40}, 4), ("ip6 dscp cs2", {"tos": 0x40}, 6), ("ip ttl 7", {"ttl": 7}, 4),
    ("ip6 hoplimit 7", {"ttl": 7}, 6), ("meta length 1234", {"length": 1234}, 4),
    ("meta length 1234", {"length": 1234}, 6), ("meta length 65521", {"length": 65521}, 4),
    ("ether saddr 02:03:04:05:06:07", {"mac": 0x020304050607}, 4),
    ("meta pkttype broadcast", {"packet_type": 1}, 4), ("meta pkttype multicast", {"packet_type": 2}, 6),
    ("tcp flags == syn|ack|urg", {"tcp_flags": 0x32}, 4), ("tcp flags == 0x0", {"tcp_flags": 0}, 6),
    ("tcp sport 1-5", {"sport": 3}, 4), ("sctp dport 99", {"protocol": 132, "dport": 99}, 4),
    ("udplite dport 99", {"protocol": 136, "dport": 99}, 6), ("dccp dport 99", {"protocol": 33, "dport": 99}, 4),
    ("icmp type 13 icmp code 5", {"protocol": 1, "icmp_type": 13, "icmp_code": 5}, 4),
    ("icmpv6 type 200 icmpv6 code 5", {"protocol": 58, "icmp_type": 200, "icmp_code": 5}, 6),
    ("ip6 nexthdr 60 tcp dport 22", {"nexthdr": 60}, 6), ("ip6 nexthdr 0 tcp dport 22", {"nexthdr": 0}, 6),
    ("ip frag-off & 0x1fff != 0", {"fragment": 1}, 4), ("frag frag-off != 0", {"fragment": 1}, 6),
    ("meta l4proto 253", {"protocol": 253}, 4), ("ip protocol 51", {"protocol": 51}, 4),
    ("fib saddr . iif oif != 0", {"reverse_path": 1}, 4), ("fib saddr . iif oif 0", {"reverse_path": 0}, 4),
    ("fib saddr . iif oif != 0", {"reverse_path": 1}, 6), ("fib saddr . iif oif 0", {"reverse_path": 0}, 6),
]  # fmt: skip


def test_fields(oracle: Oracle) -> None:
    """Rules see the fields that were asked for, and not where they were not."""
    for text, more, family in FIELDS:
        hook = "type filter hook prerouting priority -300; policy drop;"
        oracle.load(f"flush ruleset\ntable inet f {{\nchain before {{ {hook} {text} accept\n}}\n}}")
        asked = packet("forward", **{"protocol": 6, **more}, family=family)
        other = packet("forward", 17 if "flags" in text or "fib" in text else 6, family)
        other |= {"reverse_path": 1 - int(more["reverse_path"])} if "reverse_path" in more else {}
        seen = oracle.send([asked, other])
        assert [told(one)[1:] for one in seen] == [("before rule 1 accept",), ("before policy - drop",)], text


def test_iptables_rpfilter(oracle: Oracle) -> None:
    """The way back to a packet's source is as it was asked for, to iptables as well."""
    save = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -m rpfilter -j ACCEPT\nCOMMIT\n"
    for family, name in ((4, "ip"), (6, "ip6")):
        oracle.load(save, "iptables-nft", name)
        seen = oracle.send([packet("forward", family=family, reverse_path=one) for one in (0, 1)])
        assert [told(one)[1] for one in seen] == ["PREROUTING policy - accept", "PREROUTING rule 1 accept"]


def test_loopback(oracle: Oracle) -> None:
    """What the host sends to itself is one packet, that passes output and then comes in."""
    oracle.load(NFT)
    (seen,) = oracle.send([packet("output", daddr=oracle.host_addresses["eth1"][4], oif="lo")])
    assert told(seen) == ("arrived", "output policy - accept", "input rule 2 accept")


def test_fragments_wait(oracle: Oracle) -> None:
    """Where connection tracking is asked for, a later fragment alone never comes to a rule."""
    oracle.load(STATES)
    assert [told(one) for one in oracle.send([packet("input", fragment=1), packet("input", 6, 6, fragment=1)])] == [
        ("gone",), ("gone",),
    ]  # fmt: skip


REFUSED = [
    packet("input", mark=1), packet("input", skuid=5), packet("output", mac=5), packet("input", 47, ct_state=0),
    packet("input", tcp_flags=3, ct_state=1), packet("input", tcp_flags=4, ct_state=3), packet("input", ct_mark=1),
    packet("input", 1, icmp_type=3, ct_state=1), packet("input", 58, 6, icmp_type=135, ct_state=3),
    packet("input", length=30), packet("input", iif="eth9"), packet("forward", oif=None), packet("output", oif="lo"),
    packet("input", oif="eth1"), packet("forward", daddr=number("127.0.0.1")), packet("input", family=5),
    packet("input", ct_state=2, ct_direction=1), packet("input", fragment=1, ct_state=3),
    packet("input", daddr_type=2),
]  # fmt: skip


@pytest.mark.parametrize("fields", REFUSED)
def test_refused(oracle: Oracle, fields: Fields) -> None:
    """What cannot be made is refused with its place and a reason, and nothing is sent."""
    with pytest.raises(Unsendable) as error:
        oracle.send([packet("input"), fields])
    assert error.value.index == 1
    assert error.value.reason == oracle.refusal(fields) != ""


def test_load_refused(oracle: Oracle) -> None:
    """A ruleset that is not taken is refused with what the program says."""
    with pytest.raises(LoadRefused, match="syntax error"):
        oracle.load("table inet f { bla }")
    with pytest.raises(LoadRefused, match="iptables-legacy-restore"):
        oracle.load("*filter\n-A INPUT -j\nCOMMIT\n", "iptables-legacy")


def test_many(oracle: Oracle) -> None:
    """Thousands of packets, alike and not, are told apart, and none is lost."""
    oracle.load(NFT)
    packets = [packet("input", dport=22 + one % 3, sport=1000 + one % 50) for one in range(2000)]
    seen = oracle.send(packets)
    assert [one.fate for one in seen] == ["gone" if one % 3 else "arrived" for one in range(2000)]
    assert [one.index for one in seen] == list(range(2000))
    assert len({id(one.path) for one in seen}) == 2


HOLD = """
import time
from conntracker.lab.oracle import Oracle
with Oracle(["orc0", "orc1"]) as oracle:
    oracle.load("table inet f { chain c { type filter hook input priority 0; }; }")
    print(oracle._space.inode, flush=True)
    time.sleep(60)
"""


def namespaces() -> set[int]:
    """Network namespaces of all processes, by their descriptors too."""
    found = set()
    for pattern in ("[0-9]*/ns/net", "[0-9]*/fd/*"):
        for path in Path("/proc").glob(pattern):
            try:
                target = os.readlink(path)
            except OSError:
                continue
            if target.startswith("net:["):
                found.add(int(target[5:-1]))
    return found


def test_nothing_stays() -> None:
    """After a kill -9 there is no namespace, and the own one never had the interfaces."""
    before = socket.if_nameindex()
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            inode = int(process.stdout.readline())
            assert inode in namespaces()
            assert socket.if_nameindex() == before
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    limit = time.monotonic() + 5
    while inode in namespaces() and time.monotonic() < limit:
        time.sleep(0.01)
    assert inode not in namespaces()


def test_close_leaves_nothing() -> None:
    """Descriptors are as many after as before."""
    before = len(os.listdir("/proc/self/fd"))
    with Oracle(["eth0"]) as made:
        made.load(SAVE, "iptables-legacy")
        made.send([packet("input"), packet("input", 6, 6)])
    assert len(os.listdir("/proc/self/fd")) == before
