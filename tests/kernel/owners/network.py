"""Three network namespaces that the matrix plays in: a host, whose flows are captured, and two that hang on it.

    a   10.77.0.2, fd77::2   --   host   10.77.0.1, fd77::1, 10.76.0.1, fd76::1   --   b   10.76.0.2, fd76::2

The host forwards, and has every address of 10.78.0.0/16 and fd78::/64 besides, `b` those of 10.79.0.0/16. In `a`
everybody may make ping sockets.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType

from conntracker.sources.netns import Namespace

__all__ = ["PLACES", "Network"]

PLACES = ("host", "a", "b")
ROUTER = """
link set lo up
link add to-a type veth peer name eth0 netns {a}
link add to-b type veth peer name eth0 netns {b}
addr add 10.77.0.1/24 dev to-a
addr add fd77::1/64 dev to-a nodad
addr add 10.76.0.1/24 dev to-b
addr add fd76::1/64 dev to-b nodad
link set to-a up
link set to-b up
route add local 10.78.0.0/16 dev lo
route add local fd78::/64 dev lo
route add 10.79.0.0/16 via 10.76.0.2
"""
LEAF = """
link set lo up
addr add {four}.2/24 dev eth0
addr add {six}::2/64 dev eth0 nodad
link set eth0 up
route add default via {four}.1
route add default via {six}::1
"""
SYSCTLS = {
    "host": {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1", "net/ipv4/ping_group_range": "1 0"},
    "a": {"net/ipv4/ping_group_range": "0 2147483647"},
    "b": {},
}
# A rule that asks for connection tracking, and the chains of the cases' own rules.
RULES = """table inet matrix {{
    chain sent {{ type filter hook output priority 0; policy accept; ct state new counter; }}
    chain passed {{ type filter hook forward priority 0; policy accept; ct state new counter; }}
    chain output {{ type nat hook output priority -100; policy accept; {output}}}
    chain prerouting {{ type nat hook prerouting priority -100; policy accept; {prerouting}}}
    chain postrouting {{ type nat hook postrouting priority 100; policy accept; {postrouting}}}
}}
"""


class Network:
    """The namespaces, while the context lasts; processes may hold them longer."""

    def __init__(self, rules: list[tuple[str, str]]) -> None:
        """Rules of NAT as (chain, rule)."""
        chains = ("output", "prerouting", "postrouting")
        self._rules = RULES.format(
            **{chain: "".join(f"{rule}; " for where, rule in rules if where == chain) for chain in chains}
        )
        self.spaces: dict[str, Namespace] = {}

    def __enter__(self) -> Network:
        try:
            for name in PLACES:
                self.spaces[name] = Namespace.create()
            self._ip("host", ROUTER.format(a=self.spaces["a"].path, b=self.spaces["b"].path))
            self._ip("a", LEAF.format(four="10.77.0", six="fd77"))
            self._ip("b", LEAF.format(four="10.76.0", six="fd76") + "route add local 10.79.0.0/16 dev lo\n")
            for name, values in SYSCTLS.items():
                with self.spaces[name]:
                    for path, value in values.items():
                        Path("/proc/sys", path).write_text(value)
            with self.spaces["host"]:
                subprocess.run(["nft", "-f", "-"], input=self._rules, text=True, check=True, timeout=20)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of all of them."""
        for space in self.spaces.values():
            space.close()
        self.spaces.clear()

    def _ip(self, name: str, commands: str) -> None:
        with self.spaces[name]:
            subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True, timeout=20)
