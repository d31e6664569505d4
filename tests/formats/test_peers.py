from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.formats.peers import peers_json, peers_text
from conntracker.recording.sides import CLIENT, SERVER, Peer, Peers

WEB = Peer(CLIENT, "93.184.216.34", 443, "tcp", None, 9)
DNS = Peer(CLIENT, "10.0.0.2", 53, "udp", None, 5)
SAME = Peer(CLIENT, "10.0.0.2", 53, "tcp", None, 4)
DATABASE = Peer(CLIENT, "127.0.0.1", 5432, "tcp", "postgres", 3)
SIX = Peer(CLIENT, "fd00::1", 80, "tcp", None, 2)
PINGED = Peer(CLIENT, "8.8.8.8", None, "icmp", None, 1)
ADMIN = Peer(SERVER, "10.0.0.5", 22, "tcp", None, 8)
GUEST = Peer(SERVER, "10.0.0.7", 22, "tcp", None, 7)
LOCAL = Peer(SERVER, "::1", 80, "tcp", "curl", 2)
PING = Peer(SERVER, "10.0.0.9", None, "icmp", None, 1)
PASSING = Peer(None, "10.0.0.2", 80, "tcp", None, 1)


@pytest.mark.parametrize(
    ("first", "total", "room", "text"),
    [
        ([WEB, DNS], 14, 100, "93.184.216.34:443, 10.0.0.2:53 +12"),
        ([WEB, DNS], 2, 100, "93.184.216.34:443, 10.0.0.2:53"),
        ([WEB, DNS], 2, 30, "93.184.216.34:443, 10.0.0.2:53"),
        ([WEB, DNS], 2, 29, "93.184.216.34:443 +1"),
        ([WEB, DNS], 2, 1, "93.184.216.34:443 +1"),
        ([DNS, SAME], 2, 100, "10.0.0.2:53"),
        ([DATABASE, SIX, PINGED], 3, 100, "postgres (127.0.0.1:5432), [fd00::1]:80, 8.8.8.8"),
        ([ADMIN, GUEST], 5, 100, ":22 from 10.0.0.5, 10.0.0.7 +3"),
        ([ADMIN, WEB, GUEST, LOCAL], 4, 90, ":22 from 10.0.0.5, 10.0.0.7; 93.184.216.34:443; :80 from curl (::1)"),
        ([PING], 1, 100, "icmp from 10.0.0.9"),
        ([PASSING], 1, 100, "10.0.0.2:80"),
        ([Peer(CLIENT, "10.0.0.1", 1, "tcp", "a\x1b[2J", 1)], 1, 100, "a?[2J (10.0.0.1:1)"),
    ],
)  # fmt: skip
def test_in_words(first: list[Peer], total: int, room: int, text: str) -> None:
    """Clients' peers with their ports, servers' by service, as many as there is room for, then how many more."""
    assert peers_text(Peers(total, first), room) == text


@given(
    st.lists(st.sampled_from([WEB, DNS, DATABASE, SIX, ADMIN, GUEST, LOCAL, PING]), min_size=1, unique=True),
    st.integers(0, 1000),
    st.integers(1, 120),
)
def test_room(first: list[Peer], more: int, room: int) -> None:
    """Only a single peer may need more room than there is."""
    peers = Peers(len(first) + more, first)
    text = peers_text(peers, room)
    assert len(text) <= room or text == peers_text(peers, 1)


def test_json() -> None:
    """JSON has all peers with all that is known of them."""
    assert json.loads(peers_json(Peers(2, [WEB, LOCAL]))) == [WEB._asdict(), LOCAL._asdict()]
    assert json.loads(peers_json(Peers(1, [LOCAL])))[0] == {
        "role": "server", "address": "::1", "port": 80, "proto": "tcp", "process": "curl", "flows": 2,
    }  # fmt: skip
