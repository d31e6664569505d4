"""A host's addresses and routes, read from the kernel."""

from __future__ import annotations

import subprocess
from ipaddress import ip_address

from conntracker.rules.fields import ROUTE_TYPES
from conntracker.sources.host import read_host
from conntracker.sources.netns import Namespace

SETUP = """
link set lo up
link add eth0 type veth peer name eth1
addr add 10.1.2.3/24 dev eth0
addr add 10.1.2.4/24 dev eth0
addr add 2001:db8::1/64 dev eth0 nodad
link set eth0 up
link set eth1 up
route add default via 10.1.2.254
"""


def number(text: str) -> int:
    """An address as a number."""
    return int(ip_address(text))


def test_addresses_and_routes_are_the_kernels() -> None:
    """Own, broadcast and other addresses are told apart, and packets go where the main table says."""
    namespace = Namespace.create()
    try:
        with namespace:
            subprocess.run(["ip", "-batch", "-"], input=SETUP, text=True, check=True, timeout=20)
            host = read_host()
            subprocess.run(["ip", "rule", "add", "from", "10.9.9.9", "lookup", "100"], check=True, timeout=20)
            policed = read_host()
    finally:
        namespace.close()
    kinds = {
        text: ROUTE_TYPES[host.address_type(ip_address(text).version, number(text))]
        for text in ("10.1.2.3", "127.9.9.9", "10.1.2.255", "224.0.0.1", "8.8.8.8", "2001:db8::1", "ff02::1")
    }
    assert kinds == {
        "10.1.2.3": "local", "127.9.9.9": "local", "10.1.2.255": "broadcast", "224.0.0.1": "multicast",
        "8.8.8.8": "unicast", "2001:db8::1": "local", "ff02::1": "multicast",
    }  # fmt: skip
    assert host.out_interface(4, number("8.8.8.8")) == "eth0"
    assert host.out_interface(6, number("2001:db9::1")) is None
    assert host.primary[4, "eth0"] == number("10.1.2.3")
    assert policed.routes is None
