"""Events as lines."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from conntracker.formats.events import json_lines, text_lines
from conntracker.formats.jsonl import FLOW_KEYS
from conntracker.wire.columns import Decoder
from support.messages import message, messages, rows

TIME = 1_700_000_000_123_456


def lines_of(*datagrams: bytes) -> tuple[list[str], list[dict[str, object]]]:
    """The text lines and the JSON objects of datagrams."""
    batches = Decoder().decode_rows(*rows(list(datagrams)), time=TIME)
    text = [line for batch in batches for line in text_lines(batch)]
    return text, [json.loads(line) for batch in batches for line in json_lines(batch)]


def test_a_connection_begins() -> None:
    """Time, event, protocol, both ends and the state stand in one line; no reply tuple without NAT."""
    (text,), (row,) = lines_of(message("new", src=0x0A000001, dst=0x0A000002, tcp_state=1))
    assert text == "2023-11-14T22:13:20.123456Z new     tcp    10.0.0.1:1000 > 10.0.0.2:80 SYN_SENT"
    assert (row["event"], row["src"], row["dport"], row["state"]) == ("new", "10.0.0.1", 80, "SYN_SENT")
    assert row["packets"] is None


def test_nat_shows_the_reply_tuple() -> None:
    """Where the reply is not the original turned round, both are shown."""
    reply = (0x0A000009, 0xC0A80001, 6, 8080, 61000)
    (text,), (row,) = lines_of(message("update", src=0x0A000001, dst=0x0A000002, reply=reply))
    assert text.endswith("10.0.0.1:1000 > 10.0.0.2:80 reply 10.0.0.9:8080 > 192.168.0.1:61000")
    assert (row["reply_src"], row["reply_sport"]) == ("10.0.0.9", 8080)


def test_an_end_with_counters_and_times() -> None:
    """Counters and kernel times are numbers and ISO times when they were sent."""
    datagram = message(
        "destroy", family=6, proto=17, src=1, dst=2, counters=(3, 180), reply_counters=(0, 0),
        times=(TIME * 1000, TIME * 1000 + 5_000_000),
    )  # fmt: skip
    (text,), (row,) = lines_of(datagram)
    assert text.endswith("udp    [::1]:1000 > [::2]:80 packets=3+0 bytes=180+0")
    assert (row["packets"], row["reply_bytes"]) == (3, 0)
    assert (row["start"], row["end"]) == ("2023-11-14T22:13:20.123456Z", "2023-11-14T22:13:20.128456Z")


def test_echoes_have_types_and_no_ports() -> None:
    """ICMP shows type, code and id; ports are null."""
    (text,), (row,) = lines_of(message(proto=1, first=7, second=8 << 8, src=1, dst=2))
    assert text.endswith("icmp   0.0.0.1 > 0.0.0.2 type=8 code=0 id=7")
    assert (row["icmp_type"], row["icmp_id"], row["sport"]) == (8, 7, None)


@given(st.lists(messages(), min_size=1, max_size=8))
def test_every_event_is_one_object_with_the_keys_of_a_flow(datagrams: list[bytes]) -> None:
    """Whatever the kernel sends is a line of text and a JSON object with the keys that `show --json` uses."""
    text, objects = lines_of(*datagrams)
    assert len(text) == len(objects) == len(datagrams)
    wanted = set(FLOW_KEYS) - {"flow", "host", "first_seen", "last_seen", "end_seen", "owner", "peer_owner"}
    assert all(wanted <= row.keys() for row in objects)
