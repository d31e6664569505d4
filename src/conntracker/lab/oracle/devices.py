"""The host that the packets meet: a namespace of its own with TAP devices, addresses, and routes that change by round.

A write to a TAP device returns when the packet has gone all its way (tun_get_user, drivers/net/tun.c): nothing queues
up, and messages about packets come in the order in which these were written.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from conntracker.lab.oracle.wanted import HIGHEST_MTU

__all__ = ["ELSEWHERE", "LOCAL", "Devices", "address_of"]

LOCAL = ""  # in place of an interface: packets are for the host
ELSEWHERE = "oracle-else"  # the interface of all addresses that no packet is to have a route back to

_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h
_RULES = 1000  # number of the first interface's routing table
_MAIN = 254
_RTM_NEWROUTE, _RTA_OIF, _RTA_TABLE = 24, 4, 15  # linux/rtnetlink.h
_REPLACE = 0x1 | 0x4 | 0x100 | 0x400  # NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_CREATE
_RTN_UNICAST, _RTN_LOCAL = 1, 2

# Nothing may come of itself, be refused for where it came from, or be answered less often than it should.
_SYSCTLS: dict[str, int] = {
    "net/ipv6/conf/all/disable_ipv6": 0, "net/ipv6/conf/default/disable_ipv6": 0,
    "net/ipv6/conf/default/accept_dad": 0, "net/ipv6/conf/default/accept_ra": 0,
    "net/ipv6/conf/default/router_solicitations": 0, "net/ipv6/conf/default/addr_gen_mode": 1,
    "net/ipv6/conf/all/forwarding": 1, "net/ipv6/icmp/ratelimit": 0,
    "net/ipv4/conf/all/rp_filter": 0, "net/ipv4/conf/default/rp_filter": 0, "net/ipv4/conf/all/accept_local": 1,
    "net/ipv4/conf/all/route_localnet": 1, "net/ipv4/conf/all/send_redirects": 0,
    "net/ipv4/conf/default/send_redirects": 0, "net/ipv4/ip_forward": 1, "net/ipv4/icmp_ratelimit": 0,
    "net/ipv4/icmp_msgs_per_sec": 1_000_000,
}  # fmt: skip


def address_of(family: int, index: int) -> tuple[int, int]:
    """(address, bits of its network) of the interface with that index, from 1."""
    if family == 4:
        return int(ipaddress.IPv4Address("198.18.0.1")) + (index << 8), 24
    return int(ipaddress.IPv6Address("2001:db8:0:1::1")) + (index << 64), 64


class Devices:
    """TAP devices with the names given, in the namespace of the calling thread; `close` takes them down.

    index       name -> number of the interface
    addresses   name -> {4: address, 6: address}
    link        name -> link address
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.index: dict[str, int] = {"lo": 1}
        self.addresses: dict[str, dict[int, int]] = {}
        self.link: dict[str, bytes] = {}
        self._taps: dict[str, int] = {}
        self._routes: dict[tuple[int, int], str] = {}
        self._table: dict[str, int] = {}
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        try:
            self._make([*dict.fromkeys(name for name in names if name != "lo"), ELSEWHERE])
        except BaseException:
            self.close()
            raise

    def _make(self, names: list[str]) -> None:
        _write_sysctls(_SYSCTLS)
        commands = ["link set lo up"]
        for number, name in enumerate(names, 1):
            self._taps[name] = _tap(name)
            self.index[name] = socket.if_nametoindex(name)
            self._table[name] = _RULES + number
            self.link[name] = bytes((2, 0, 0, 1, number >> 8, number & 0xFF))
            commands += self._commands(name, number)
        run_ip(commands)
        run_ip([f"rule add iif {name} pref {table} lookup {table}" for name, table in self._table.items()], "-6")
        self.route({name: ELSEWHERE for name in names}, ELSEWHERE)

    def _commands(self, name: str, number: int) -> list[str]:
        """What ip(8) has to do for an interface."""
        table, link = self._table[name], self.link[name].hex(":")
        made = [
            f"link set dev {name} address {link} arp off mtu {HIGHEST_MTU} up txqueuelen 1",
            f"rule add iif {name} pref {table} lookup {table}",
        ]
        if name == ELSEWHERE:
            return made  # its network would be a route of its own
        self.addresses[name] = {}
        for family, kind in ((4, ipaddress.IPv4Address), (6, ipaddress.IPv6Address)):
            value, bits = address_of(family, number)
            self.addresses[name][family] = value
            extra = "broadcast +" if family == 4 else "nodad"
            made.append(f"addr add {kind(value)}/{bits} dev {name} {extra}")
        return made

    def write(self, name: str, frame: bytes) -> None:
        """A frame comes in by an interface. Returns when the packet has gone."""
        os.write(self._taps[name], frame)

    def route(self, targets: Mapping[str, str], default: str) -> None:
        """What comes in by an interface goes to the target: another interface or LOCAL; all else to `default`.

        The default is the main table's: routes of what the host sends, and routes back.
        """
        wanted = {(family, self._table[name]): target for name, target in targets.items() for family in (4, 6)}
        wanted |= {(4, _MAIN): default, (6, _MAIN): default}
        changed = {place: target for place, target in wanted.items() if self._routes.get(place) != target}
        for (family, table), target in changed.items():
            self._replace(family, table, target)
            self._routes[family, table] = target

    def _replace(self, family: int, table: int, target: str) -> None:
        kind, scope, device = (_RTN_LOCAL, 254, 1) if target == LOCAL else (_RTN_UNICAST, 253, self.index[target])
        head = struct.pack(
            "=BBBBBBBBI", 2 if family == 4 else 10, 0, 0, 0, table & 0xFF if table < 256 else 0, 4,
            scope if family == 4 else 0, kind, 0,
        )  # fmt: skip
        body = struct.pack("=HHI", 8, _RTA_TABLE, table) + struct.pack("=HHI", 8, _RTA_OIF, device)
        message = struct.pack("=IHHII", 16 + len(head) + len(body), _RTM_NEWROUTE, _REPLACE, 1, 0) + head + body
        self._netlink.send(message)
        number = -int(struct.unpack_from("=i", self._netlink.recv(4096), 16)[0])
        if number:
            raise OSError(number, f"route to {target or 'the host'} in table {table}: {os.strerror(number)}")

    def close(self) -> None:
        """Takes the devices down: they last as long as their descriptors."""
        for tap in self._taps.values():
            os.close(tap)
        self._taps.clear()
        self._netlink.close()


def _tap(name: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    except OSError as error:
        os.close(tap)
        raise OSError(error.errno, f"TAP device {name!r}: {error.strerror}") from None
    return tap


def run_ip(commands: Sequence[str], *options: str) -> None:
    """Lines of ip(8) with options, in the namespace of the calling thread. Raises OSError with its first complaint."""
    try:
        done = subprocess.run(
            ["ip", *options, "-batch", "-"], input="\n".join(commands) + "\n", capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip
    except FileNotFoundError:
        raise OSError(errno.ENOPKG, "ip is missing: install iproute2") from None
    if done.returncode != 0:
        raise OSError(0, f"ip: {(done.stderr.strip() or 'failed').splitlines()[0]}")


def _write_sysctls(values: Mapping[str, int]) -> None:
    for name, value in values.items():
        path = Path("/proc/sys") / name
        if path.exists():  # IPv6 may be off altogether; icmp_msgs_per_sec is the host's own before Linux 6.12
            path.write_text(str(value))
