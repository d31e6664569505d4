"""Packets, against a plain checksum and tcpdump(8)."""

from __future__ import annotations

import shutil
import struct
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.lab import packets
from conntracker.lab.packets import Tuples
from conntracker.model import ICMP, ICMPV6, TCP, UDP

port = st.integers(0, 65535)
rows = st.lists(
    st.tuples(
        st.sampled_from([(4, TCP), (4, UDP), (4, ICMP), (6, TCP), (6, UDP), (6, ICMPV6)]),
        st.integers(0, 2**128 - 1), st.integers(0, 2**128 - 1), port, port, st.integers(0, 255),
    ),
    min_size=1,
    max_size=20,
)  # fmt: skip

Drawn = list[tuple[tuple[int, int], int, int, int, int, int]]


def tuples_of(drawn: Drawn) -> Tuples:
    """Columns of the rows that hypothesis made."""

    def address(family: int, value: int) -> list[int]:
        return [0, value & 0xFFFFFFFF] if family == 4 else [value >> 64, value & 2**64 - 1]

    icmp = [kind[1] in {ICMP, ICMPV6} for kind, *_ in drawn]
    return Tuples(
        family=np.array([kind[0] for kind, *_ in drawn], np.uint8),
        proto=np.array([kind[1] for kind, *_ in drawn], np.uint8),
        src=np.array([address(kind[0], src) for kind, src, *_ in drawn], np.uint64),
        dst=np.array([address(kind[0], dst) for kind, _, dst, *_ in drawn], np.uint64),
        sport=np.array([row[3] for row in drawn], np.uint16),
        dport=np.array([0 if echo else row[4] for row, echo in zip(drawn, icmp, strict=True)], np.uint16),
        icmp_type=np.array([row[5] if echo else 0 for row, echo in zip(drawn, icmp, strict=True)], np.uint8),
        icmp_code=np.array([row[5] // 2 if echo else 0 for row, echo in zip(drawn, icmp, strict=True)], np.uint8),
    )


def plain_sum(data: bytes) -> int:
    """The Internet checksum as RFC 1071 tells it; 0 over data that has its checksum in it."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def test_checksum_of_a_known_header() -> None:
    """The checksum of a header from the literature comes out as printed there."""
    header = [0x4500, 0x0073, 0, 0x4000, 0x4011, 0, 0xC0A8, 0x0001, 0xC0A8, 0x00C7]
    assert packets.checksum(np.array([header], np.uint32)).tolist() == [0xB861]


@given(rows)
def test_packets_carry_their_tuple(drawn: Drawn) -> None:
    """Every packet has the addresses, protocol, ports, types and the length of its row, and right checksums."""
    tuples = tuples_of(drawn)
    built, lengths = packets.build(tuples)
    for number, ((family, proto), src, dst, sport, dport, kind) in enumerate(drawn):
        packet = built[number].tobytes()
        assert not any(packet[lengths[number] :])
        packet = packet[: lengths[number]]
        if family == 4:
            header, size = packet[:20], 4
            assert (packet[0], packet[9], struct.unpack("!H", packet[2:4])[0]) == (0x45, proto, len(packet))
            assert plain_sum(header) == 0
        else:
            header, size = packet[:40], 16
            assert (packet[0], packet[6], struct.unpack("!H", packet[4:6])[0]) == (0x60, proto, len(packet) - 40)
        mask = 2 ** (8 * size) - 1
        both = header[-2 * size :]
        assert both == (src & mask).to_bytes(size, "big") + (dst & mask).to_bytes(size, "big")
        body = packet[len(header) :]
        pseudo = b"" if proto == ICMP else both + struct.pack("!HH", proto, len(body))
        assert plain_sum(body + pseudo) == 0
        if proto in {TCP, UDP}:
            assert struct.unpack("!HH", body[:4]) == (sport, dport)
            assert proto == TCP or body[6:8] != b"\0\0"
        else:
            assert (body[0], body[1], struct.unpack("!H", body[4:6])[0]) == (kind, kind // 2, sport)


def test_udp_checksum_is_never_zero() -> None:
    """A UDP checksum that comes out as 0 is sent as 0xffff: 0 means that there is none."""
    tuples = tuples_of([((4, UDP), 0, 0, port_number, 0, 0) for port_number in range(65536)])
    built, _ = packets.build(tuples)
    checksums = built[:, 26:28].copy().view(">u2")
    assert checksums.min() > 0
    assert (checksums == 0xFFFF).any()


@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="tcpdump is not installed")
def test_tcpdump_reads_them() -> None:
    """tcpdump shows each frame as what it is and finds no checksum wrong."""
    v6 = 0xFD00 << 112 | 7
    tuples = tuples_of(
        [
            ((4, TCP), 0x0A000001, 0xC6336402, 1024, 80, 0), ((4, UDP), 0x0A000002, 0xC6336402, 1025, 9, 0),
            ((4, ICMP), 0x0A000003, 0xC6336402, 77, 0, 8), ((6, TCP), v6, v6 + 1, 1026, 80, 0),
            ((6, UDP), v6, v6 + 1, 1027, 9, 0), ((6, ICMPV6), v6, v6 + 1, 78, 0, 128),
        ]
    )  # fmt: skip
    tuples.icmp_code[:] = 0
    frames, lengths = packets.ethernet(*packets.build(tuples), "02:00:00:00:00:01", "02:00:00:00:00:02")
    capture = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)  # pcap, LINKTYPE_ETHERNET
    for frame, length in zip(frames, lengths.tolist(), strict=True):
        capture += struct.pack("<IIII", 0, 0, length, length) + frame[:length].tobytes()
    done = subprocess.run(["tcpdump", "-nevvr", "-"], input=capture, capture_output=True, check=True)
    text = done.stdout.decode()
    for words in (
        "10.0.0.1.1024 > 198.51.100.2.80: Flags [S]", "10.0.0.2.1025 > 198.51.100.2.9",
        "ICMP echo request, id 77, seq 1",
        "fd00::7.1026 > fd00::8.80: Flags [S]", "fd00::7.1027 > fd00::8.9", "ICMP6, echo request, id 78, seq 1",
        "02:00:00:00:00:02 > 02:00:00:00:00:01",
    ):  # fmt: skip
        assert words in text, text
    assert not [word for word in ("incorrect", "bad", "wrong", "invalid", "truncated") if word in text], text
