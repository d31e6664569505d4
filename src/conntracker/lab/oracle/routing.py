"""What a packet needs of the host's routes to go the way that was asked for."""

from __future__ import annotations

from conntracker.lab.oracle.devices import LOCAL
from conntracker.lab.oracle.rounds import Target
from conntracker.lab.oracle.wanted import Fields, Unsendable, Wanted
from conntracker.rules.fields import ROUTE_TYPES
from conntracker.rules.host import Host

__all__ = ["target_of"]

_LOCAL, _BROADCAST = ROUTE_TYPES.index("local"), ROUTE_TYPES.index("broadcast")


def target_of(packet: Wanted, fields: Fields, host: Host) -> Target:
    """The routes that bring it from `iif` to `oif`. Raises Unsendable where the host's own addresses are in the way."""
    kinds = {name: host.address_type(packet.family, getattr(packet, name)) for name in ("saddr", "daddr")}
    for name, kind in kinds.items():
        asked = fields.get(f"{name}_type")
        if asked is not None and asked != kind:
            raise Unsendable(f"{name}_type is {ROUTE_TYPES[kind]} here")
    if packet.way == "output":
        if (packet.oif == "lo") != (kinds["daddr"] == _LOCAL):
            raise Unsendable("the host sends to its own addresses by lo, and nothing else")
        return Target("", "", None if packet.oif == "lo" else packet.oif)
    if packet.iif == "lo":
        raise Unsendable("what comes in by lo was sent by the host: that is output")
    if packet.way == "forward" and (kinds["daddr"] in (_LOCAL, _BROADCAST) or packet.oif == "lo"):
        raise Unsendable("addresses of the host are not forwarded")
    goes = LOCAL if packet.way == "input" else packet.oif
    if packet.reverse_path is None:
        return Target(packet.iif, goes, None)
    return Target(packet.iif, goes, packet.iif) if packet.reverse_path else Target(packet.iif, goes, None, packet.iif)
