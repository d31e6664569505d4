"""Three network namespaces in a row, client - router - server, with IPv4 and IPv6, gone when they are let go of.

    client  192.0.2.2, 10.0.0.0/8      -- 192.0.2.0/24 ----  router  -- 198.51.100.0/24 --  server  198.51.100.2
            2001:db8:1::2, fd00::/16      2001:db8:1::/64            2001:db8:2::/64                2001:db8:2::2

The client has every address of 10.0.0.0/8 and fd00::/16, the server those of 203.0.113.0/24 and 2001:db8:3::/64; the
upper half of each of the latter (.128 and up, ::8000 and up) is silent: what arrives there is never answered.
"""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

from conntracker.lab import firewall
from conntracker.sources.netns import Namespace
from conntracker.sources.nftables import Nftables

__all__ = ["CLIENT", "MAC", "ROUTER", "ROUTER_OUTSIDE", "SERVER", "SERVER_MANY", "SERVER_SILENT", "Lab"]

# Addresses by IP version.
CLIENT = {4: "192.0.2.2", 6: "2001:db8:1::2"}
ROUTER = {4: "192.0.2.1", 6: "2001:db8:1::1"}
ROUTER_OUTSIDE = {4: "198.51.100.1", 6: "2001:db8:2::1"}
SERVER = {4: "198.51.100.2", 6: "2001:db8:2::2"}
SERVER_MANY = {4: "203.0.113.0", 6: "2001:db8:3::"}
SERVER_SILENT = {4: "203.0.113.128", 6: "2001:db8:3::8000"}

# Link addresses by (namespace, interface), locally administered.
MAC = {
    ("client", "eth0"): "02:00:00:00:01:02",
    ("router", "client"): "02:00:00:00:01:01",
    ("router", "server"): "02:00:00:00:02:01",
    ("server", "eth0"): "02:00:00:00:02:02",
}

# No duplicate address detection, so that addresses work at once; no rate limits or source checks that lose packets;
# binding to addresses that are only routed here. All of them exist once in each network namespace.
SYSCTLS = {
    "net/ipv6/conf/all/disable_ipv6": 0,
    "net/ipv6/conf/default/disable_ipv6": 0,
    "net/ipv6/conf/default/accept_dad": 0,
    "net/ipv6/conf/default/accept_ra": 0,
    "net/ipv6/conf/default/router_solicitations": 0,
    "net/ipv6/icmp/ratelimit": 0,
    "net/ipv6/ip_nonlocal_bind": 1,
    "net/ipv4/conf/all/rp_filter": 0,
    "net/ipv4/conf/default/rp_filter": 0,
    "net/ipv4/icmp_ratelimit": 0,
}
FORWARDING = {"net/ipv4/ip_forward": 1, "net/ipv6/conf/all/forwarding": 1}

CLIENT_NETWORK = """
addr add 192.0.2.2/24 dev eth0
addr add 2001:db8:1::2/64 dev eth0 nodad
neigh replace 192.0.2.1 lladdr 02:00:00:00:01:01 nud permanent dev eth0
neigh replace 2001:db8:1::1 lladdr 02:00:00:00:01:01 nud permanent dev eth0
route add default via 192.0.2.1
route add default via 2001:db8:1::1
route add local 10.0.0.0/8 dev lo
route add local fd00::/16 dev lo
"""

ROUTER_NETWORK = """
addr add 192.0.2.1/24 dev client
addr add 2001:db8:1::1/64 dev client nodad
addr add 198.51.100.1/24 dev server
addr add 2001:db8:2::1/64 dev server nodad
neigh replace 192.0.2.2 lladdr 02:00:00:00:01:02 nud permanent dev client
neigh replace 2001:db8:1::2 lladdr 02:00:00:00:01:02 nud permanent dev client
neigh replace 198.51.100.2 lladdr 02:00:00:00:02:02 nud permanent dev server
neigh replace 2001:db8:2::2 lladdr 02:00:00:00:02:02 nud permanent dev server
route add 10.0.0.0/8 via 192.0.2.2
route add fd00::/16 via 2001:db8:1::2
route add 203.0.113.0/24 via 198.51.100.2
route add 2001:db8:3::/64 via 2001:db8:2::2
"""

SERVER_NETWORK = """
addr add 198.51.100.2/24 dev eth0
addr add 2001:db8:2::2/64 dev eth0 nodad
neigh replace 198.51.100.1 lladdr 02:00:00:00:02:01 nud permanent dev eth0
neigh replace 2001:db8:2::1 lladdr 02:00:00:00:02:01 nud permanent dev eth0
route add default via 198.51.100.1
route add default via 2001:db8:2::1
route add local 203.0.113.0/25 dev lo
route add blackhole 203.0.113.128/25
route add local 2001:db8:3::/113 dev lo
route add blackhole 2001:db8:3::8000/113
"""


class Lab:
    """The three namespaces, ready when entered; `ruleset` is nft text for the router, None for no rule at all.

    Without any rule that asks for it, the router does not track connections. `close`, the end of the with-block or the
    end of the process takes everything down. Raises OSError when the kernel refuses (EPERM: neither root nor in a user
    namespace), NftablesError for a bad ruleset.
    """

    def __init__(self, ruleset: str | None = firewall.RULESET) -> None:
        self.ruleset = ruleset
        self.spaces: dict[str, Namespace] = {}

    @property
    def client(self) -> Namespace:
        """The namespace of the client."""
        return self.spaces["client"]

    @property
    def router(self) -> Namespace:
        """The namespace of the router."""
        return self.spaces["router"]

    @property
    def server(self) -> Namespace:
        """The namespace of the server."""
        return self.spaces["server"]

    @property
    def translates(self) -> bool:
        """Whether the router does the NAT of the lab's own firewall."""
        return self.ruleset == firewall.RULESET

    def __enter__(self) -> Lab:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the namespaces; the kernel removes what is in them. Again is harmless."""
        for space in self.spaces.values():
            space.close()
        self.spaces.clear()

    def dropped(self) -> int:
        """Packets lost between the namespaces so far: the receiver's queue (net.core.netdev_max_backlog) was full."""
        return sum(_transmit_drops(space) for space in self.spaces.values())

    def keep_flows(self, seconds: int = 3600) -> None:
        """Let every flow that the router tracks from now on stay in its table for that long, whatever its state."""
        with self.router:
            for name in Path("/proc/sys/net/netfilter").glob("nf_conntrack_*_timeout*"):
                name.write_text(str(seconds))

    def _build(self) -> None:
        for name in ("client", "router", "server"):
            self.spaces[name] = space = Namespace.create()
            with space:
                _write_sysctls(SYSCTLS | (FORWARDING if name == "router" else {}))
        _ip(self.client, "link set lo up", _veth("client", self.router), "link set eth0 up")
        _ip(self.server, "link set lo up", _veth("server", self.router), "link set eth0 up")
        _ip(self.router, "link set lo up", "link set client up", "link set server up", ROUTER_NETWORK)
        _ip(self.client, CLIENT_NETWORK)
        _ip(self.server, SERVER_NETWORK)
        if self.ruleset is not None:
            with self.router, Nftables() as nft:
                nft.run(self.ruleset)


def _veth(name: str, router: Namespace) -> str:
    return (
        f"link add eth0 address {MAC[name, 'eth0']} type veth "
        f"peer name {name} address {MAC['router', name]} netns {router.path}"
    )


def _ip(space: Namespace, *commands: str) -> None:
    """Run lines of ip(8) inside `space`, all in one process. Raises OSError with its first complaint."""
    lines = "\n".join(commands) + "\n"
    try:
        with space:
            done = subprocess.run(["ip", "-batch", "-"], input=lines, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise OSError(errno.ENOPKG, "ip is missing: install iproute2") from None
    if done.returncode != 0:
        raise OSError(0, f"ip: {(done.stderr.strip() or 'failed').splitlines()[0]}")


def _write_sysctls(values: dict[str, int]) -> None:
    for name, value in values.items():
        path = Path("/proc/sys") / name
        if path.exists():  # IPv6 may be off altogether; ip(8) then says so
            path.write_text(str(value))


def _transmit_drops(space: Namespace) -> int:
    """Sum of the transmit drops of the interfaces: veth counts there what its peer's queue did not take."""
    with space:
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
    return sum(int(line.partition(":")[2].split()[11]) for line in lines)
