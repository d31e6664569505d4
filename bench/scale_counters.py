"""Counters for a large ruleset from the kernel itself: it is loaded in a network namespace, and packets are sent."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from pathlib import Path
from random import Random

from scale_flows import Flows, flows
from tool_configs.traffic import checksum

_SETTINGS = {"conf/all/rp_filter": "0", "conf/default/rp_filter": "0", "conf/all/accept_local": "1", "ip_forward": "1"}


def with_counters(text: str, seed: int = 1, packets: int = 20_000) -> str:
    """The iptables-save (of scale_site or scale_flat) with the counters of so many packets. Needs root."""
    command = ["unshare", "--net", sys.executable, __file__, str(seed), str(packets)]
    return subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True, timeout=120).stdout


def frames(drawn: Flows, macs: dict[str, bytes]) -> list[tuple[str, bytes]]:
    """(interface, frame) of each flow that comes in by an interface with a far end."""
    columns = {name: values.tolist() for name, values in drawn.columns.items()}
    found = []
    for i in range(drawn.size):
        name = drawn.names[columns["iif"][i]]
        if name not in macs:
            continue
        ends = struct.pack("!II", columns["saddr"][i], columns["daddr"][i])
        protocol, ports = columns["protocol"][i], struct.pack("!HH", columns["sport"][i], columns["dport"][i])
        body = _body(protocol, ports, columns["tcp_flags"][i], columns["icmp_type"][i], ends)
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), i & 0xFFFF, 0, 64, protocol, 0) + ends
        header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
        found.append((name, macs[name] + columns["mac"][i].to_bytes(6, "big") + b"\x08\x00" + header + body))
    return found


def _body(protocol: int, ports: bytes, flags: int, icmp_type: int, ends: bytes) -> bytes:
    """Header of the transport and a little payload, with its checksum."""
    if protocol == 1:
        body = struct.pack("!BBHHH", icmp_type, 0, 0, 1, 1) + bytes(20)
        return body[:2] + struct.pack("!H", checksum(body)) + body[4:]
    if protocol == 6:
        body, place = ports + struct.pack("!IIBBHHH", 1, 0, 0x50, flags, 512, 0, 0), 16
    else:
        body, place = ports + struct.pack("!HH", 12, 0) + b"data", 6
    value = checksum(ends + struct.pack("!BBH", 0, protocol, len(body)) + body)
    return body[:place] + struct.pack("!H", value or 0xFFFF) + body[place + 2 :]


def _interfaces(names: tuple[str, ...]) -> dict[str, bytes]:
    """Makes them, each with a far end and its own network. Returns their MAC addresses."""
    lines = ["link set lo up"]
    for number, name in enumerate(one for one in names if one not in {"", "lo"}):
        vlan = name.rpartition(".")[2]
        address = f"10.{vlan}.0.1/16" if vlan.isdigit() else "192.0.2.1/24"
        lines.append(f"link add {name} type veth peer name far{number}")
        lines += [f"link set far{number} up", f"link set {name} up"]
        lines.append(f"address add {address} dev {name}")
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
    listed = subprocess.run(["ip", "-j", "link"], stdout=subprocess.PIPE, text=True, check=True).stdout
    macs = {one["ifname"]: bytes.fromhex(one["address"].replace(":", "")) for one in json.loads(listed)}
    return {name: macs[name] for name in names if name not in {"", "lo"}}


def main() -> None:
    """In the namespace: a ruleset comes on standard input, and goes out with counters."""
    text, seed, packets = sys.stdin.read(), int(sys.argv[1]), int(sys.argv[2])
    way = "forward" if "-A FORWARD" in text else "input"
    drawn = flows(packets, text, seed, way)
    macs = _interfaces(drawn.names)
    for setting, value in _SETTINGS.items():
        Path("/proc/sys/net/ipv4", setting).write_text(value)
    anywhere = ["default", "via", "192.0.2.254"] if way == "forward" else ["local", "0.0.0.0/0", "dev", "lo"]
    subprocess.run(["ip", "route", "add", *anywhere], check=True)
    subprocess.run(["iptables-legacy-restore"], input=text, text=True, check=True)
    order = frames(drawn, macs)
    Random(seed).shuffle(order)  # noqa: S311
    links = {}
    for number, name in enumerate(one for one in drawn.names if one not in {"", "lo"}):
        links[name] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        links[name].bind((f"far{number}", 0))
    for name, frame in order:
        links[name].send(frame)
    sys.stdout.write(
        subprocess.run(["iptables-legacy-save", "-c"], stdout=subprocess.PIPE, text=True, check=True).stdout
    )


if __name__ == "__main__":
    main()
