"""Sends frames to every interface of the namespace from its far end, so that the counters of a ruleset tell something.

Runs in the namespace of a tool (see bench/tool_rulesets.py) with nothing but Python's own library. The frames are IPv4
TCP, UDP and ICMP, from the same and from other networks, to this host and through it, some with wrong checksums.
"""

from __future__ import annotations

import random
import re
import socket
import struct
import subprocess
from pathlib import Path

FRAMES = 1500  # an interface
NETWORKS = ("192.0.2", "198.51.100", "203.0.113", "10.0.0", "10.0.2", "10.8.0", "172.17.0")
FLAGS = (0x02, 0x02, 0x02, 0x10, 0x12, 0x04, 0x00, 0x03, 0x29)


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def transport(rng: random.Random, ports: list[int], ends: bytes) -> tuple[int, bytes]:
    """(protocol, header and payload): addresses for the checksum as source and destination, 8 bytes."""
    sport, dport = (
        rng.choice([rng.randrange(1024, 65536), rng.choice(ports)]),
        rng.choice([*ports, rng.randrange(1, 65536)]),
    )
    kind = rng.choices([6, 17, 1], [6, 3, 1])[0]
    if kind == 1:
        body = struct.pack("!BBHHH", rng.choice([8, 8, 8, 13, 5]), 0, 0, rng.randrange(65536), 1) + b"x" * 24
        return 1, body[:2] + struct.pack("!H", checksum(body)) + body[4:]
    if kind == 6:
        body, place = (
            struct.pack("!HHIIBBHHH", sport, dport, rng.getrandbits(32), 0, 0x50, rng.choice(FLAGS), 512, 0, 0),
            16,
        )
    else:
        body, place = struct.pack("!HHHH", sport, dport, 12, 0) + b"data", 6
    value = (
        checksum(ends + struct.pack("!BBH", 0, kind, len(body)) + body)
        if rng.random() < 0.95
        else rng.randrange(1, 65536)
    )
    return kind, body[:place] + struct.pack("!H", value or 0xFFFF) + body[place + 2 :]


def frame(rng: random.Random, mac: bytes, targets: list[str], ports: list[int]) -> bytes:
    """An Ethernet frame."""
    source, target = f"{rng.choice(NETWORKS)}.{rng.randrange(2, 254)}", rng.choice(targets)
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    kind, body = transport(rng, ports, ends)
    header = (
        struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), rng.randrange(65536), 0, rng.choice([64, 64, 64, 2]), kind, 0)
        + ends
    )
    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    sender = bytes([2, 0, 0, 0, 0, rng.randrange(16)])
    return mac + sender + b"\x08\x00" + header + body


def main() -> None:
    """To every interface that has a far end."""
    saved = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    ports = [int(port) for port in re.findall(r"(?<=[ ,:])\d{2,5}(?=[ ,:])", saved) if 0 < int(port) < 65536] or [80]
    addresses = re.findall(
        r"inet ([\d.]+)/", subprocess.run(["ip", "address"], capture_output=True, text=True, check=True).stdout
    )
    targets = [*addresses, "10.0.0.5", "10.0.2.20", "10.0.2.25", "198.51.100.9", "192.0.2.255"]
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    rng = random.Random(1)  # noqa: S311
    for folder in sorted(Path("/sys/class/net").glob("far-*")):
        mac = bytes.fromhex((folder.parent / folder.name.removeprefix("far-") / "address").read_text().replace(":", ""))
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
            link.bind((folder.name, 0))
            for _ in range(FRAMES):
                link.send(frame(rng, mac, targets, ports))


if __name__ == "__main__":
    main()
