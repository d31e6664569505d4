"""The table of cases: how the server is made, how the client is made, where both are, how many clients there are."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BUSY", "CASES", "IDLE", "LISTENER", "Case"]

FIRST_PORT, PORTS = 20000, 20  # each case has so many ports
LISTENER, IDLE, BUSY = "listener", "idle", "busy"
FORWARD_PORT = 10  # behind DNAT the server is at the case's port and this


@dataclass(frozen=True, slots=True)
class Case:
    """A server and its clients.

    server, client   a function of `servers` and `clients`, and its arguments
    to          where clients go; {n} is the client's number
    on, at      the network namespaces of server and clients
    bind        what the server binds to, if not `to`
    public      the address of the server's end, if not the one where clients went
    seen_as     the address of the clients as the server sees it, if not their own
    before      LISTENER: the server is there before the capture begins; IDLE: the flows, too, and nothing is sent
                after; BUSY: something is
    nat         (chain, rule); {port} is where clients go, {inside} where the server is
    twin        the name of the case whose ports it has, in another namespace; its own flows are not captured
    """

    name: str
    server: str
    client: str
    count: int = 10
    to: str = "127.0.0.1"
    on: str = "host"
    at: str = "host"
    bind: str | None = None
    public: str | None = None
    seen_as: str | None = None
    before: str | None = None
    nat: tuple[str, str] | None = None
    twin: str | None = None

    @property
    def port(self) -> int:
        """The first port that clients go to."""
        names = [case.name for case in CASES]
        return FIRST_PORT + PORTS * names.index(self.twin or self.name)

    @property
    def inside(self) -> int:
        """The first port of the server."""
        return self.port + (FORWARD_PORT if self.nat and self.public else 0)

    def rule(self) -> list[tuple[str, str]]:
        """Its rule of NAT, if it has one."""
        return [(self.nat[0], self.nat[1].format(port=self.port, inside=self.inside))] if self.nat else []


CASES = (
    # TCP: addresses, and ways to accept
    Case("tcp4", "tcp address", "tcp"),
    Case("tcp6", "tcp address", "tcp", to="::1"),
    Case("tcp-no-address", "tcp null", "tcp"),
    Case("tcp6-no-address", "tcp null", "tcp", to="::1"),
    Case("mapped-server", "tcp address", "tcp", bind="::"),
    Case("mapped-server-no-address", "tcp null", "tcp", bind="::"),
    Case("mapped-client", "tcp address", "tcp", to="::ffff:127.0.0.1", bind="127.0.0.1"),
    Case("mapped-both", "tcp address", "tcp", to="::ffff:127.0.0.1", bind="::"),
    Case("prefork", "prefork address", "tcp", 12),
    Case("prefork-no-address", "prefork null", "tcp", 12),
    Case("reuseport", "reuseport address", "tcp", 12),
    Case("reuseport-no-address", "reuseport null", "tcp", 12),
    Case("activation", "activation address", "tcp"),
    Case("activation-no-address", "activation null", "tcp"),
    Case("fork-per-connection", "fork_each address", "tcp"),
    Case("fork-per-connection-no-address", "fork_each null", "tcp"),
    Case("passed-to-worker", "pass_on", "tcp"),
    Case("server-threads", "threads", "tcp"),
    Case("client-thread", "tcp address", "tcp thread"),
    Case("client-renamed", "tcp address", "tcp rename"),
    Case("client-passed", "tcp address", "passed"),
    Case("nobody", "tcp address", "tcp nobody"),
    Case("pid-namespace", "tcp address", "tcp pids"),
    Case("pid-namespace-server", "pids", "tcp"),
    Case("sendfile", "tcp address", "tcp sendfile"),
    Case("splice", "tcp address", "tcp splice"),
    Case("no-data", "tcp null", "silent"),
    Case("io-uring", "tcp address", "quick ring"),
    Case("io-uring-async", "tcp address", "quick ring-async"),
    Case("io-uring-registered", "tcp address", "quick ring-registered"),
    Case("io-uring-server", "ring", "tcp"),
    Case("mptcp", "tcp mptcp", "tcp mptcp"),
    Case("mptcp-server", "tcp mptcp", "tcp"),
    Case("client-executes", "tcp address", "tcp execute"),
    Case("client-leaks", "tcp address", "tcp leak"),
    Case("shared-connection", "tcp address", "tcp shared", 5),
    Case("fast-open", "tcp address", "tcp fastopen", 5),
    Case("unanswered", "none", "unanswered", 5, to="10.76.0.1{n}"),
    Case("port-reused", "tcp address", "reuse", 5),
    Case("refused4", "none", "refused", to="10.78.1.{n}"),
    Case("refused6", "none", "refused", to="fd78::1:{n}"),
    # UDP
    Case("udp4-connected", "udp address", "udp connected"),
    Case("udp4", "udp address", "udp"),
    Case("udp6-connected", "udp address", "udp connected", to="::1"),
    Case("udp6", "udp address", "udp", to="::1"),
    Case("udp-mapped", "udp address", "udp", to="::ffff:127.0.0.1", bind="::"),
    Case("udp-any", "udp address", "udp", bind="0.0.0.0"),  # noqa: S104
    Case("udp-no-address", "udp null", "udp"),
    Case("udp-no-address-connected", "udp null", "udp connected"),
    Case("udp-prefork", "udp prefork", "udp", 12),
    Case("udp-reuseport", "udp reuseport", "udp", 12),
    Case("udp-two-versions", "udp two", "udp"),
    Case("udp-connected-anew", "udp many", "udp anew many", 2),
    Case("udp-multicast", "udp null", "udp_multicast", 5, to="239.1.2.3", bind="0.0.0.0"),  # noqa: S104
    Case("udp-server-connects", "udp connects", "udp", 1),
    Case("udp-child", "udp address", "udp child"),
    Case("udp-child-connected", "udp address", "udp connected child"),
    Case("udp-one-to-many", "udp many", "udp many", 2),
    Case("udp-io-uring", "udp address", "quick ring-udp"),
    Case("udp-refused", "none", "udp_refused", to="10.78.2.{n}"),
    # ICMP, and protocols without ports
    Case("ping4", "none", "ping", 5, to="10.78.3.{n}"),
    Case("ping6", "none", "ping", 5, to="fd78::3:{n}"),
    Case("ping4-socket", "none", "ping", 5, to="10.78.4.{n}", at="a"),
    Case("ping6-socket", "none", "ping", 5, to="fd78::4:{n}", at="a"),
    Case("echo4-socket", "none", "echo dgram", 5, to="10.78.5.{n}", at="a"),
    Case("echo4-raw", "none", "echo raw", 5, to="10.78.6.{n}"),
    Case("echo6-raw", "none", "echo raw", 5, to="fd78::6:{n}"),
    Case("raw-udp", "udp null", "raw_udp", 5),
    Case("raw-protocol", "none", "raw", 5, to="10.79.1.{n}", on="b"),
    # other namespaces, and NAT
    Case("from-namespace", "tcp address", "tcp", to="10.77.0.1", at="a"),
    Case("to-namespace-no-address", "tcp null", "tcp", to="fd77::2", on="a"),
    Case("namespace-udp", "udp address", "udp", to="10.77.0.2", on="a"),
    Case("forwarded", "tcp address", "tcp", to="10.76.0.2", on="b", at="a"),
    Case("forwarded-udp", "udp address", "udp", to="fd76::2", on="b", at="a"),
    Case(
        "masquerade", "tcp address", "tcp", to="10.76.0.2", on="b", at="a", seen_as="10.76.0.1",
        nat=("postrouting", "ip daddr 10.76.0.2 tcp dport {port} masquerade"),
    ),
    Case(
        "snat-udp", "udp address", "udp", to="10.76.0.2", on="b", seen_as="10.78.7.1",
        nat=("postrouting", "ip daddr 10.76.0.2 udp dport {port} snat ip to 10.78.7.1"),
    ),
    Case(
        "dnat", "tcp address", "tcp", to="10.78.7.2", on="b", at="a", bind="10.76.0.2", public="10.76.0.2",
        nat=("prerouting", "tcp dport {port} dnat ip to 10.76.0.2:{inside}"),
    ),
    Case(
        "dnat-local", "tcp null", "tcp", to="10.78.7.3", bind="10.77.0.1", public="10.77.0.1",
        nat=("output", "tcp dport {port} dnat ip to 10.77.0.1:{inside}"),
    ),
    Case(
        "redirect-udp", "udp address", "udp", bind="127.0.0.1", public="127.0.0.1",
        nat=("output", "udp dport {port} redirect to :{inside}"),
    ),
    Case("twin", "tcp address", "tcp same-ports", 5),
    Case("twin-elsewhere", "tcp address", "tcp same-ports", 5, on="a", at="a", twin="twin"),
    # open before the capture
    Case("listener-before", "tcp address", "tcp", before=LISTENER),
    Case("listener-before-no-address", "tcp null", "tcp", before=LISTENER),
    Case("prefork-before-no-address", "prefork null", "tcp", before=LISTENER),
    Case("udp-server-before", "udp address", "udp", before=LISTENER),
    Case("idle-before", "tcp address", "tcp", 5, before=IDLE),
    Case("idle-before-no-address", "tcp null", "tcp", 5, to="::1", before=IDLE),
    Case("idle-before-udp", "udp address", "udp connected", 5, before=IDLE),
    Case("busy-before", "tcp null", "tcp", 5, before=BUSY),
    Case("busy-before-udp", "udp address", "udp", 5, before=BUSY),
    Case("namespace-before", "tcp address", "tcp", 5, to="10.77.0.1", at="a", before=BUSY),
    Case("namespace-before-udp", "udp address", "udp", 5, to="10.77.0.2", on="a", before=BUSY),
    # short lives, and programs of others
    Case("short-tcp4", "tcp address", "quick tcp", 40),
    Case("short-tcp6", "tcp null", "quick tcp", 40, to="::1"),
    Case("short-udp4", "udp address", "quick udp", 40),
    Case("short-udp6", "udp address", "quick udp", 40, to="::1"),
    Case("short-nobody", "tcp address", "quick tcp nobody"),
    Case("curl4", "http", "tool curl", to="10.78.8.{n}", bind="0.0.0.0"),  # noqa: S104
    Case("curl6", "http", "tool curl", to="fd78::8:{n}", bind="::"),
    Case("wget", "http", "tool wget", 5, to="10.78.10.{n}", bind="0.0.0.0"),  # noqa: S104
    Case("bash", "tcp address", "tool bash", to="10.78.9.{n}", bind="0.0.0.0"),  # noqa: S104
)  # fmt: skip
