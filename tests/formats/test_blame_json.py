from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path as File
from typing import Any

from conntracker.answers.blame import blame
from conntracker.answers.rules import by_rule
from conntracker.formats.blame_json import blame_json, rule_json
from conntracker.formats.jsonl import FLOW_KEYS
from conntracker.recording.reader import open_recording
from conntracker.steps import Path
from support.columns import NOON
from support.owners import CURL, NGINX, ROWS, owned
from support.traces import DROPPED, LOST, PATHS, icmp, record, row, tcp

PLAIN = tcp("10.0.0.1", 40000, "10.0.0.2", 80)


def answers(path: File) -> list[dict[str, Any]]:
    """The objects of all lines."""
    with open_recording(path) as recording:
        return [json.loads(blame_json(one)) for one in blame(recording)]


def test_a_flow(tmp_path: File) -> None:
    """A flow has the keys that it has everywhere, its verdict, rule and path, and every way."""
    known = {"start": NOON, "packets": 3}
    (one,) = answers(record(tmp_path / "rec", [known], [row(PLAIN, tcp("10.0.0.1", 40000, "10.9.0.2", 80), 2)]))
    assert tuple(one["flow"]) == FLOW_KEYS
    assert (one["flow"]["start"], one["flow"]["end"], one["flow"]["packets"]) == (
        "2026-01-01T12:00:00.000000Z", None, 3,
    )  # fmt: skip
    assert (one["verdict"], one["why_not"], one["complete"]) == ("drop", None, True)
    assert one["rule"] == {
        "kind": "iptables-nft", "family": "ip", "table": "filter", "chain": "LOGS", "position": 2, "handle": None,
        "text": "-A LOGS -p tcp -m tcp --dport 443 -j DROP", "source": None,
    }  # fmt: skip
    assert one["path"] == [step.json() for step in DROPPED.steps]
    assert one["decided"] == one["path"][3]
    (way,) = one["ways"]
    assert (way["direction"], way["traced"], way["first_seen"], way["verdict"], way["out_interface"]) == (
        "original", 1, "2026-01-01T12:00:00.000000Z", "drop", "eth1",
    )  # fmt: skip
    assert (way["packet"]["dst"], way["left"]["dst"], way["packet"]["proto"]) == ("10.0.0.2", "10.9.0.2", "tcp")


def test_owners(tmp_path: File) -> None:
    """A flow's owners are objects with the keys of an owner, null where none is known."""
    one, *_, nobody = (one["flow"] for one in answers(owned(tmp_path / "rec", (ROWS[0], ROWS[3], ROWS[7]))))
    assert one["owner"] == CURL.json() | {"start": "2026-01-01T12:00:00.000001Z"}
    assert one["peer_owner"] == NGINX.json() | {"start": "2026-01-01T11:59:59.999999Z"}
    assert list(one["owner"]) == list(CURL.json())
    assert (nobody["owner"], nobody["peer_owner"]) == (None, None)


def test_packets_without_a_flow(tmp_path: File) -> None:
    """They have their headers in place of a flow; what no rule decided has no rule, and possible causes."""
    (one,) = answers(record(tmp_path / "rec", traces=[row(PLAIN, path=3)]))
    assert "flow" not in one
    assert (one["packet"]["src"], one["packet"]["sport"], one["packet"]["about"]) == ("10.0.0.1", 40000, None)
    assert (one["verdict"], one["rule"], one["decided"]) == ("undecided", None, None)
    assert (one["reached"], one["expected"]) == ("prerouting", list(LOST.expected))
    assert len(one["possible_causes"]) > 3


def test_without_a_trace(tmp_path: File) -> None:
    """A flow that was not traced has the same keys, null, and the reason."""
    path = record(tmp_path / "rec", [{}, {"sport": 1}], [row(PLAIN)], trace=None)
    traced, untraced = sorted(answers(path), key=lambda one: one["flow"]["flow"])
    assert traced.keys() == untraced.keys()
    assert (untraced["verdict"], untraced["path"], untraced["ways"]) == (None, None, [])
    assert untraced["why_not"] == "the recording was made without -t"


def test_rules(tmp_path: File) -> None:
    """A rule's line has what it decided and how much."""
    with open_recording(record(tmp_path / "rec", traces=[row(PLAIN, path=2)])) as recording:
        (one,) = (json.loads(rule_json(rule)) for rule in by_rule(recording))
    assert (one["host"], one["verdict"], one["flows"], one["traced"]) == ("gate", "drop", 1, 1)
    assert one["rule"]["position"] == 2
    assert one["first_seen"] == one["last_seen"] == "2026-01-01T12:00:00.000000Z"
    assert "path" not in one


def test_what_the_host_answered(tmp_path: File) -> None:
    """An error of this host's own takes the place of possible causes."""
    error = row(icmp("10.0.0.254", "10.0.0.1", 11, about=PLAIN), path=5, interfaces=(None, "eth0"))
    paths = PATHS | {5: Path((), "accept", None, "postrouting")}
    (one,) = answers(record(tmp_path / "rec", [{}], [row(PLAIN, path=3), error], paths=paths))
    assert one["answered"] == {
        "proto": "icmp", "src": "10.0.0.254", "icmp_type": 11, "icmp_code": 0, "name": "time to live exceeded",
        "own": True,
    }  # fmt: skip
    assert one["possible_causes"] == []


def test_what_changed_and_what_was_not_seen(tmp_path: File) -> None:
    """Another verdict before, and legacy rules that were not traced, are keys of their own."""
    traces = [row(PLAIN), row(PLAIN, path=4, at=NOON + 10**6)]
    (one,) = answers(record(tmp_path / "rec", [{}], traces, paths=PATHS | {4: replace(LOST, blind=True)}))
    assert one["changed"] == {"verdicts": ["accept"], "since": "2026-01-01T12:00:01.000000Z"}
    assert (one["blind"], one["complete"], "iptables-legacy" in one["possible_causes"][0]) == (True, True, True)
