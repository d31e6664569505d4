"""What a host knows besides its rules: its addresses, its routes, and so what a packet's addresses are to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from conntracker.rules.fields import ROUTE_TYPES
from conntracker.rules.intervals import Intervals, contains

__all__ = ["Host", "Route", "always_of_type"]

_LOOPBACK = {4: ((127 << 24, (128 << 24) - 2),), 6: ((1, 1),)}
_MULTICAST = {4: ((224 << 24, (240 << 24) - 1),), 6: ((0xFF << 120, (1 << 128) - 1),)}
# The last one of the loopback's network, too: it has the route that such addresses have (fib_add_ifaddr).
_BROADCAST = {4: (((128 << 24) - 1, (128 << 24) - 1), ((1 << 32) - 1, (1 << 32) - 1)), 6: ()}


def always_of_type(version: int, address: int) -> str | None:
    """The route type (ROUTE_TYPES) that an address has on every host: multicast, broadcast; None if that depends."""
    if contains(_MULTICAST[version], address):
        return "multicast"
    if contains(_BROADCAST[version], address):
        return "broadcast"
    return "local" if contains(_LOOPBACK[version], address) else None


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table: addresses low to high lead out of an interface."""

    low: int
    high: int
    interface: str
    metric: int = 0


@dataclass(frozen=True, slots=True)
class Host:
    """Addresses and routes, by IP version.

    local       addresses that are the host's own
    broadcast   those of its networks
    routes      of the main table; None where they are not known
    primary     by version and interface, the address that masquerading gives
    interfaces  names of all
    by_mark     whether policy routing may ask for a packet's mark
    """

    local: Mapping[int, Intervals] = field(default_factory=dict)
    broadcast: Mapping[int, Intervals] = field(default_factory=dict)
    routes: Mapping[int, tuple[Route, ...]] | None = None
    primary: Mapping[tuple[int, str], int] = field(default_factory=dict)
    by_mark: bool = True
    interfaces: tuple[str, ...] = ()

    def address_type(self, version: int, address: int) -> int:
        """What the address is to this host: an index into ROUTE_TYPES, as fib and addrtype tell."""
        name = always_of_type(version, address)
        if name is None and contains(self.local.get(version, ()), address):
            name = "local"
        if name is None and contains(self.broadcast.get(version, ()), address):
            name = "broadcast"
        if name is None and self.routes is not None and self.out_interface(version, address) is None:
            name = "unreachable" if version == 6 else "unspec"
        return ROUTE_TYPES.index(name or "unicast")

    def out_interface(self, version: int, address: int) -> str | None:
        """Where the main table sends packets to; None without a route, or if routes are not known."""
        if self.routes is None:
            return None
        fitting = [one for one in self.routes.get(version, ()) if one.low <= address <= one.high]
        return min(fitting, key=lambda one: (one.high - one.low, one.metric)).interface if fitting else None
