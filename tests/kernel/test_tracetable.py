"""The private tables against the kernel: what is traced, how often, and where the messages come from."""

from __future__ import annotations

import itertools
import re
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings

from conntracker.lab.topology import ROUTER, SERVER, SERVER_MANY, Lab
from conntracker.lab.traffic import Traffic
from conntracker.sources.counters import Counters
from conntracker.sources.netns import Namespace
from conntracker.sources.nftables import Nftables, OwnedTable
from conntracker.sources.tracing import TraceSocket
from conntracker.traceonly import conditions
from conntracker.tracetable import COUNTERS, MARKERS, STARTS, TraceOptions, tables
from conntracker.wire import netlink, nftrace
from support.restrictions import restrictions

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
WINDOW = 0.5
GRE = 47


class Watch:
    """Our tables in one namespace, and the trace messages that come from them."""

    def __init__(self, space: Namespace, options: TraceOptions, **more: object) -> None:
        self._space, self._stack = space, ExitStack()
        with space:
            self._socket = TraceSocket()
            self._stack.callback(self._socket.close)
            made = tables(options, **more)  # type: ignore[arg-type]
            self.tables = [(table, self._stack.enter_context(OwnedTable(table.text, table.family))) for table in made]

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def messages(self) -> list[nftrace.TraceMessage]:
        """What came since the last time, of our own tables, without what interfaces say by themselves."""
        time.sleep(0.05)
        found = []
        while datagrams := self._socket.datagrams():
            for datagram in datagrams:
                found += [one.payload for one in netlink.messages(datagram) if one.type == nftrace.MESSAGE_TRACE]
        own = [message for message in map(nftrace.decode, found) if message.place.table.startswith("conntracker_")]
        return [message for message in own if not background(message)]

    def chains(self) -> Counter[str]:
        """How many messages came from markers by their names, how many packets began ('begin')."""
        return Counter(marker(message) or "begin" for message in self.messages() if message.network)

    def refused(self) -> dict[str, int]:
        """What the ceilings refused, by counter."""
        table, owned = self.tables[0]
        with self._space, closing(Counters()) as counters:
            return counters.packets(table.family, owned.name)

    def elements(self, name: str) -> int:
        """How many elements a set has."""
        table, owned = self.tables[0]
        text = owned.run(f"list set {table.family} {owned.name} {name}")
        return sum("expires" in line for line in re.split(r"[,{]", text) if not re.search(r"fe80::|ff0|[{ ]:: ", line))


def marker(message: nftrace.TraceMessage) -> str | None:
    """The marker that it comes from."""
    return message.place.chain if message.place.chain in MARKERS else None


def background(message: nftrace.TraceMessage) -> bool:
    """Whether it is about multicast or link-local addresses: IPv6 looks for neighbours and routers."""
    if message.network[:1] >= b"\x60":
        return (
            message.network[8:10] == b"\xfe\x80"
            or not any(message.network[8:24])
            or message.network[24] in (0xFE, 0xFF)
        )
    return message.network[16:17] >= b"\xe0"


@contextmanager
def sender(lab: Lab, family: int, kind: int = socket.SOCK_DGRAM, proto: int = 0) -> Iterator[socket.socket]:
    """A socket of the client."""
    with lab.client:
        made = socket.socket(FAMILY[family], kind, proto)
    with made:
        yield made


def silent(family: int) -> str:
    """An address of the server's side that answers nothing."""
    return {4: "203.0.113.131", 6: "2001:db8:3::8001"}[family]


def time_exceeded(space: Namespace) -> int:
    """How many ICMP errors of that type were sent."""
    with space:
        names, values = (line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()[2:4])
    return int(values[names.index("OutTimeExcds")])


def echo(family: int, number: int) -> bytes:
    """An echo request with an identifier."""
    if family == 6:
        return struct.pack("!BBHHH", 128, 0, 0, number, 1)
    return struct.pack("!BBHHH", 8, 0, (0xFFFF - 0x0800 - number - 1) % 0xFFFF, number, 1)


@pytest.fixture
def plain() -> Iterator[Lab]:
    """The lab without any rules, so without connection tracking."""
    with Lab(None) as made:
        yield made


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("packets", [1, 4])
def test_first_packets_of_each_window(lab: Lab, family: int, packets: int) -> None:
    """Of each direction exactly so many packets are traced in a window, and as many again in the next one."""
    options = TraceOptions(packets=packets, window=WINDOW)
    with Watch(lab.router, options) as watch, sender(lab, family) as client:
        with lab.server:
            server = socket.socket(FAMILY[family], socket.SOCK_DGRAM)
        with server:
            server.bind((SERVER[family], 53))
            for window in range(3):
                start = time.monotonic()
                for _ in range(packets + 6):
                    client.sendto(b"question", (SERVER[family], 53))
                    server.sendto(b"answer", server.recvfrom(64)[1])
                    client.recv(64)
                assert time.monotonic() - start < WINDOW, "the machine is too slow for this test"
                expected = 2 * packets
                assert watch.chains() == {"begin": expected, "forward": expected, "post": expected}, window
                time.sleep(WINDOW + 0.1)
        assert not any(watch.refused().values())


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", ["udp", "echo", "gre"])
def test_every_protocol(lab: Lab, family: int, kind: str) -> None:
    """UDP, echoes and protocols without ports are traced a flow at a time: so many packets of each of two flows."""
    proto = {"udp": 0, "echo": 1 if family == 4 else 58, "gre": GRE}[kind]
    with (
        Watch(lab.router, TraceOptions(packets=3)) as watch,
        sender(lab, family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_RAW, proto) as client,
    ):
        for number, _ in itertools.product((1, 2), range(8)):
            if kind == "udp":
                client.sendto(b"x", (silent(family), 7000 + number))
            elif kind == "echo":
                client.sendto(echo(family, number), (silent(family), 0))
            else:
                client.sendto(b"\0\0\x08\0" + bytes(20), (silent(family)[:-1] + str(7 + number), 0))
        assert watch.chains() == {"begin": 6, "forward": 6, "post": 6}


def test_markers_of_local_packets(lab: Lab) -> None:
    """A packet to the host ends in `input`, one from it begins in `out` and ends in `post`; each gives one message."""
    with Watch(lab.router, TraceOptions()) as watch, sender(lab, 4, socket.SOCK_RAW, 1) as client:
        client.sendto(echo(4, 7), (ROUTER[4], 0))
        found = watch.messages()
    places = [(marker(message), bool(message.iif), message.place.type) for message in found]
    assert places == [(None, True, "rule"), ("input", True, "rule"), (None, False, "rule"), ("post", False, "rule")]
    assert all(message.network and message.transport for message in found)


@pytest.mark.parametrize("family", [4, 6])
def test_loopback_counts_once(space: Namespace, family: int) -> None:
    """A packet through the loopback device is counted when it goes out, and traced on both sides."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    address = {4: "127.0.0.1", 6: "::1"}[family]
    with (
        Watch(space, TraceOptions(packets=3)) as watch,
        socket.socket(FAMILY[family], socket.SOCK_DGRAM) as client,
        socket.socket(FAMILY[family], socket.SOCK_DGRAM) as server,
    ):
        server.bind((address, 4000))
        for _ in range(9):
            client.sendto(b"x", (address, 4000))
        found = watch.messages()
    assert Counter(filter(None, map(marker, found))) == {
        "post": 3,
        "input": 3,
    }
    assert Counter(message.place.chain for message in found if message.iif) == {"pre": 3, "input": 3}


@pytest.mark.parametrize("counter", ["refused", "refused_echo", "refused_other"])
def test_ceiling(plain: Lab, counter: str) -> None:
    """New directions beyond the ceiling are refused and counted: refused and traced together are what was sent."""
    flows, rate = 300, 20
    options = TraceOptions(rate=rate if counter == "refused" else 10 * rate, packets=1)
    proto = {"refused": 17, "refused_echo": 1, "refused_other": GRE}[counter]
    with Watch(plain.router, options) as watch, sender(plain, 4, socket.SOCK_RAW, proto) as client:
        for number in range(flows):
            with sender(plain, 4) as other:
                if counter == "refused":
                    other.sendto(b"x", (silent(4), 7000 + number))
                elif counter == "refused_echo":
                    client.sendto(echo(4, number), (silent(4), 0))
                else:
                    client.sendto(b"\0\0\x08\0" + bytes(20), (f"203.0.113.{129 + number % 100}", 0))
        traced = watch.chains()
        refused = {name: number for name, number in watch.refused().items() if number}
        kind = {"refused": "flow4", "refused_echo": "echo4", "refused_other": "other4"}[counter]
        assert watch.elements(f"seen_{kind}") == traced["begin"]
    assert rate - 5 <= traced["begin"] < flows / 2  # neighbour discovery may take some
    assert traced["begin"] == traced["post"]
    if counter == "refused_other":  # addresses came again: those that were traced are done
        assert 0 < refused.pop(counter) <= flows - traced["begin"]
    else:
        assert refused.pop(counter) == flows - traced["begin"]
    refused.pop("refused_other", None)  # of which neighbour discovery makes some
    assert not refused


def test_icmp_errors_have_a_ceiling(plain: Lab) -> None:
    """ICMP errors are traced without regard to flows, up to a ceiling of their own, and counted beyond."""
    flows = 60
    with Watch(plain.router, TraceOptions(rate=100, packets=1)) as watch, sender(plain, 4) as client:
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        before = time_exceeded(plain.router)
        for number in range(flows):
            client.sendto(b"x", (SERVER_MANY[4], 7000 + number))  # the router answers: time exceeded
        found = watch.messages()
        errors = sum(message.place.chain == "errors4" for message in found)
        sent = time_exceeded(plain.router) - before  # the kernel has a ceiling for them, too
        assert 10 <= errors < sent
        assert errors + watch.refused()["refused_errors"] == sent
    assert sum(message.place.chain == "pre" or message.place.chain.startswith("new_") for message in found) == flows


@pytest.mark.parametrize("family", [4, 6])
def test_later_fragments(plain: Lab, family: int) -> None:
    """Without defragmentation later fragments are traced by their addresses, apart from the flow of the first one."""
    with Watch(plain.router, TraceOptions(packets=2)) as watch, sender(plain, family) as client:
        for _ in range(5):
            client.sendto(bytes(4000), (silent(family), 7000))  # three fragments
        found = watch.messages()
        names = Counter(message.place.chain for message in found if message.place.chain not in MARKERS)
        assert watch.elements(f"seen_flow{family}") == watch.elements(f"seen_other{family}") == 1
    assert sum(names.values()) == 4, names
    assert sum(message.place.chain == "post" for message in found) == 4


def test_extension_headers(plain: Lab) -> None:
    """Behind extension headers of IPv6 the flow is told by its ports, and the chain's name tells the protocol."""
    with Watch(plain.router, TraceOptions(packets=2)) as watch, sender(plain, 6) as client:
        client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, bytes((0, 1, 1, 12)) + bytes(12))
        for number, _ in itertools.product(range(3), range(4)):
            client.sendto(b"x", (silent(6), 7000 + number))
        found = [message for message in watch.messages() if message.place.chain not in MARKERS]
    assert [message.place.chain for message in found] == ["mark6_udp"] * 6
    assert {message.network[6] for message in found} == {60}


def test_set_is_bounded(plain: Lab) -> None:
    """A flood of new flows makes no more elements than the ceiling lets through in a window, and the burst."""
    rate, window = 50, 1.0
    with Watch(plain.router, TraceOptions(rate=rate, window=window, packets=1)) as watch, sender(plain, 4) as client:
        end, most = time.monotonic() + 2.5, 0
        while time.monotonic() < end:
            for port in range(1, 20000, 20):
                client.sendto(b"x", (silent(4), port + int(time.monotonic() * 10) % 20))
            most = max(most, watch.elements("seen_flow4"), watch.elements("done_flow4"))
        assert rate <= most <= rate * window + rate
        assert watch.refused()["refused"] > 1000


def test_begins_below_every_chain(plain: Lab) -> None:
    """A packet that a chain of very low priority drops is traced all the same."""
    rules = (
        "table ip low { chain x { type filter hook prerouting priority -450; policy accept; udp dport 7000 drop; }; }"
    )
    with plain.router, Nftables() as nft:
        nft.run(rules)
    with Watch(plain.router, TraceOptions(), lowest=-450) as watch, sender(plain, 4) as client:
        client.sendto(b"x", (silent(4), 7000))
        assert watch.chains() == {"begin": 1}


def test_ingress(plain: Lab) -> None:
    """In a netdev table tracing begins before the chains at ingress."""
    hook = 'type filter hook ingress device "client" priority -2147483648; policy accept;'
    rules = f"table netdev low {{ chain x {{ {hook} udp dport 7000 drop; }}; }}"
    with plain.router, Nftables() as nft:
        nft.run(rules)
    with Watch(plain.router, TraceOptions(packets=2), ingress=["client", "server"]) as watch:
        for family, port in itertools.product((4, 6), (7000, 7001)):
            with sender(plain, family) as client:
                for _ in range(5):
                    client.sendto(b"x", (silent(family), port))
        found = Counter((one.place.family, marker(one)) for one in watch.messages() if one.network)
    assert found == {("netdev", None): 8, ("inet", None): 4, ("inet", "forward"): 4, ("inet", "post"): 4}


BRIDGE = """
link add bridge type bridge
link set bridge up
link set lo up
"""


@pytest.fixture
def bridged() -> Iterator[tuple[Namespace, Namespace, Namespace]]:
    """Three namespaces: a bridge, and 192.0.2.1 and 192.0.2.2 on both sides of it."""
    spaces = [Namespace.create() for _ in range(3)]
    with spaces[0]:
        subprocess.run(["ip", "-batch", "-"], input=BRIDGE, text=True, check=True)
    for number, space in enumerate(spaces[1:], 1):
        with space:
            link = f"link add eth0 type veth peer name port{number} netns {spaces[0].path}"
            lines = [link, f"address add 192.0.2.{number}/24 dev eth0", "link set eth0 up"]
            subprocess.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True)
        with spaces[0]:
            subprocess.run(["ip", "link", "set", f"port{number}", "master", "bridge", "up"], check=True)
    yield spaces[0], spaces[1], spaces[2]
    for space in spaces:
        space.close()


@pytest.mark.parametrize("to_ip", [False, True])
def test_bridge(bridged: tuple[Namespace, Namespace, Namespace], to_ip: bool) -> None:
    """What crosses a bridge begins in its table's `pre` and ends in its `post`, and br_netfilter shows it to inet."""
    space, first, second = bridged
    switch = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    with space:
        if switch.exists():
            switch.write_text(str(int(to_ip)))
        elif to_ip:
            pytest.skip("no br_netfilter")
    with Watch(space, TraceOptions(packets=2), bridge=True) as watch:
        with second:
            server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            server.bind(("192.0.2.2", 4000))
        with first:
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with server, client:
            for _ in range(6):
                client.sendto(b"x", ("192.0.2.2", 4000))
                server.settimeout(3)
                server.recv(8)
        found = Counter((one.place.family, marker(one)) for one in watch.messages() if one.network)
    expected = [None, "forward", "post"]
    families = ["bridge", "inet"] if to_ip else ["bridge"]
    assert found == {(family, place): 2 for family in families for place in expected}


@pytest.mark.parametrize(
    ("only", "traced"),
    [
        ("tcp dport 80", "TCP connection"),
        ("ip daddr 198.51.100.0/24 udp dport 53", "IPv4 UDP answered"),
        ("ip6 daddr 2001:db8:2::2 th dport { 53, 54-60 }", "IPv6 UDP answered"),
        ("icmp type echo-request", "IPv4 echo"),
        ("ip saddr 192.0.2.2 meta l4proto gre", "IPv4 GRE"),
    ],
)
def test_restriction(plain: Lab, only: str, traced: str) -> None:
    """With a restriction only its flows are traced, in both directions."""
    with Traffic(plain) as traffic, Watch(plain.router, TraceOptions(only=only)) as watch:
        for words, drive in (
            (f"IPv{family} {name}", function)
            for family in (4, 6)
            for name, function in (
                ("TCP connection", partial(traffic.tcp, family)),
                ("TCP refused", partial(traffic.tcp_refused, family)),
                ("UDP answered", partial(traffic.udp, family)),
                ("echo", partial(traffic.echo, family)),
                ("GRE", partial(traffic.other, family, GRE)),
            )
        ):
            flow = drive()[0]
            found = [message for message in watch.messages() if message.place.chain == "post"]
            if traced not in words:
                assert not found, words
                continue
            width = 4 if flow.src.count(".") else 16
            at = 12 if width == 4 else 8
            sources = {message.network[at : at + width] for message in found}
            assert len(sources) == (2 if flow.replied else 1), words


def test_all_options_load(space: Namespace) -> None:
    """Whatever the options are, the kernel takes the tables, and nothing is left of them when they are closed."""
    subprocess.run(["ip", "link", "add", "veth0", "type", "veth", "peer", "name", "a};b,c"], check=True)
    choices = itertools.product(
        (1, 1000), (0.1, 30, 86400), (1, 500, 100_000), (None, "tcp dport 443"), (0, -(2**31)),
    )  # fmt: skip
    for packets, window, rate, only, lowest in choices:
        options = TraceOptions(packets, window, rate, only)
        with Watch(space, options, lowest=lowest, ingress=["veth0", "a};b,c"], bridge=True) as watch:
            assert [table.family for table, _ in watch.tables] == ["inet", "netdev", "bridge"]
    with Nftables() as nft:
        assert nft.run("list ruleset") == ""


@pytest.mark.needs("nft")
def test_others_can_list_it(plain: Lab) -> None:
    """`nft list ruleset` of others shows the tables, with elements in all sets, and nft takes that text again."""
    with Watch(plain.router, TraceOptions(packets=1)) as watch:
        with Traffic(plain) as traffic:
            for _ in range(2):
                for family in (4, 6):
                    traffic.udp(family)
                    traffic.echo(family)
                    traffic.other(family, GRE)
        with plain.router:
            text = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
        owned = watch.tables[0][1]
        assert owned.name in text
        for name in re.findall(r"set (seen_\w+)", text):
            assert watch.elements(name), name
        text = re.sub(r"flags owner|# progname.*", "", text)
        with plain.server:
            subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)


@pytest.mark.needs("nft")
def test_nothing_else_changes(lab: Lab) -> None:
    """The firewall and its NAT work as without us, and its rules are not touched."""
    listing = ["nft", "-s", "list", "table", "inet", "lab"]
    with lab.router:
        before = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    with Traffic(lab) as traffic, Watch(lab.router, TraceOptions(), bridge=True):
        assert any(flows for flows in traffic.drive().values())
        with lab.router:
            assert subprocess.run(listing, capture_output=True, text=True, check=True).stdout == before


def test_counters_by_name(space: Namespace) -> None:
    """The counters have the names that are promised, and can be reset by the owner."""
    with Watch(space, TraceOptions(), bridge=True) as watch:
        assert watch.refused() == dict.fromkeys(COUNTERS, 0)
        with space, closing(Counters()) as counters:
            for table, owned in watch.tables:
                assert counters.packets(table.family, owned.name) == watch.refused()


@given(restrictions())
@settings(max_examples=150)
def test_every_restriction_loads(text: str) -> None:
    """What the grammar of restrictions accepts, nft and the kernel accept, in every family and at every hook."""
    conditions(text)
    space = Namespace.create()
    with space:
        subprocess.run(["ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1"], check=True)
        with Watch(space, TraceOptions(only=text), ingress=["veth0"], bridge=True):
            pass
    space.close()


def test_starts_are_named() -> None:
    """The base chains in which packets begin have the names that are promised."""
    made = tables(replace(TraceOptions(), packets=2), ingress=["veth0"], bridge=True)
    names = [re.findall(r"chain (\w+) \{\s+type", table.text) for table in made]
    assert names == [["pre", "out", *MARKERS], ["ingress"], ["pre", "out", *MARKERS]]
    assert set(itertools.chain(*names)) == {*STARTS, *MARKERS}
