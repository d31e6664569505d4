"""The oracle's packets as bytes, before any kernel sees them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.lab.oracle import Unsendable
from conntracker.lab.oracle.frames import ethernet, ip_packet, tag_of
from conntracker.lab.oracle.states import prepare
from conntracker.lab.oracle.wanted import Fields, wanted
from conntracker.wire.packet import parse

WIDTH = {4: 32, 6: 128}


# Mobility, HIP, shim6: what the reader of packets looks behind, while to the kernel they are the transport.
BEHIND = (135, 139, 140)


@st.composite
def packets(draw: st.DrawFn) -> Fields:
    """Fields of packets, few of them impossible."""
    family = draw(st.sampled_from((4, 6)))
    address = st.integers(0, (1 << WIDTH[family]) - 1)
    port, byte = st.integers(0, 65535), st.integers(0, 255)
    way = draw(st.sampled_from(("input", "forward", "output")))
    chosen: dict[str, int | str | None] = {
        "family": family, "way": way, "iif": "" if way == "output" else "a", "oif": "" if way == "input" else "b",
        "saddr": draw(address), "daddr": draw(address),
        "protocol": draw(st.one_of(st.sampled_from((1, 6, 17, 58)), byte)),
    }  # fmt: skip
    more = {
        "sport": port, "dport": port, "icmp_type": byte, "icmp_code": byte, "tcp_flags": byte, "tos": byte, "ttl": byte,
        "length": st.integers(20, 2000), "ct_state": st.integers(0, 4), "ct_direction": st.integers(0, 1),
        "ct_status": st.integers(0, 63), "fragment": st.integers(0, 1), "mark": port, "first": st.integers(0, 1),
    }  # fmt: skip
    for name in draw(st.sets(st.sampled_from(sorted(more)), max_size=5)):
        chosen[name] = draw(more[name])
    return chosen


@given(packets(), st.integers(1, 0xBFFF))
def test_packets_are_what_was_asked_for(fields: Fields, tag: int) -> None:
    """The bytes say what the fields say, and carry the tag; or the packet is refused."""
    try:
        packet = wanted(fields)
        how = prepare(packet)
        data = ip_packet(packet, tag, how.spoilt, how.begins)
    except Unsendable:
        return
    assert tag_of(data) == tag
    assert packet.length in (None, len(data))
    if packet.family == 6 and packet.protocol in BEHIND:
        return
    found = parse(data).packet
    assert (found.family, found.src, found.dst) == (packet.family, packet.saddr, packet.daddr)
    assert found.proto == packet.protocol
    assert found.fragment == packet.fragment
    if found.sport is not None:
        assert (found.sport, found.dport) == (packet.sport, packet.dport)
    if found.icmp_type is not None:
        assert (found.icmp_type, found.icmp_code) == (packet.icmp_type, packet.icmp_code)


BASE: Fields = {"way": "input", "iif": "a", "family": 4, "saddr": 1 << 24, "daddr": 2 << 24, "protocol": 17}


@pytest.mark.parametrize(
    ("kind", "to"), [(0, "020000000001"), (1, "ffffffffffff"), (2, "01005e000001"), (3, "02ffffffffff")]
)
def test_packet_types(kind: int, to: str) -> None:
    """A packet type is made by the link address that a frame is sent to."""
    packet = wanted({**BASE, "packet_type": kind, "mac": 0x0A0B0C0D0E0F})
    frame = ethernet(packet, bytes.fromhex("020000000001"), ip_packet(packet, 1))
    assert (frame[:6].hex(), frame[6:12].hex(), frame[12:14].hex()) == (to, "0a0b0c0d0e0f", "0800")


@pytest.mark.parametrize("missing", ["way", "family", "saddr", "daddr", "protocol", "iif"])
def test_what_every_packet_has(missing: str) -> None:
    """A packet without one of these is refused."""
    with pytest.raises(Unsendable):
        wanted({name: value for name, value in BASE.items() if name != missing})
