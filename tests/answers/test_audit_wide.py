from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path as File

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.answers.audit_wide import Wide, covering, size, wide_rules
from conntracker.recording.reader import open_recording
from conntracker.rules.ruleset import Ruleset
from conntracker.steps import Path
from support.traces import record, row, step, tcp

WIDE = "-A FORWARD -p tcp -m tcp --dport 1024:65535 -j ACCEPT"


def answers(where: File, text: str, sources: list[str], ports: list[int], hook: str = "forward") -> list[Wide]:
    """The wide rules of a save whose first rule of a chain decided about packets from these sources to these ports."""
    rule = next(line for line in text.splitlines() if line.startswith("-A"))
    chain = rule.split()[1]
    path = Path((step(hook, f"ip filter {chain}", "accept", rule, 1),), "accept", 0, hook)
    traces = [row(tcp(source, 40000, "192.0.2.1", port)) for source in sources for port in ports]
    with open_recording(record(where / "rec", traces=traces, paths={1: path})) as recording:
        return wide_rules(Ruleset.parse(text, family="ip"), recording)


def saved(*rules: str) -> str:
    """An iptables-save."""
    return "\n".join(["*filter", ":INPUT DROP [0:0]", ":FORWARD DROP [0:0]", ":A - [0:0]", *rules, "COMMIT", ""])


def test_wide(tmp_path: File) -> None:
    """What a rule admits is compared with the prefixes and ports that were seen deciding by it."""
    (one,) = answers(tmp_path, saved(WIDE), ["10.0.0.1", "10.0.0.9"], [8080, 8081])
    sides = {side.field: side for side in one.sides}
    assert set(sides) == {"saddr", "daddr", "dport"}
    assert (size(sides["dport"].admitted), sides["dport"].seen, sides["dport"].values) == (64512, ((8080, 8081),), 2)
    assert [size(sides["saddr"].seen), sides["saddr"].values] == [2, 2]


def test_one_end_is_this_host(tmp_path: File) -> None:
    """Of packets to this host the destination is no news."""
    text = saved("-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT")
    (one,) = answers(tmp_path, text, ["10.0.0.1"], [22], "input")
    assert [side.field for side in one.sides] == ["saddr"]


@pytest.mark.parametrize(
    "rules",
    [
        ["-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"],
        ["-A FORWARD -s 10.0.0.0/24 -d 192.0.2.0/24 -p tcp -m tcp --dport 22 -j ACCEPT"],
        ["-A A -p tcp -m tcp --dport 22 -j ACCEPT", "-A FORWARD -s 10.0.0.0/24 -d 192.0.2.0/24 -j A"],
    ],
)
def test_narrow(tmp_path: File, rules: list[str]) -> None:
    """A rule that admits little, by itself or by the only jump to it, or only known flows, is left out."""
    assert answers(tmp_path, saved(*rules), ["10.0.0.1"], [22]) == []


def test_a_rule_that_decided_nothing(tmp_path: File) -> None:
    """Of a rule that decided about no packet nothing is said."""
    found = answers(tmp_path, saved(WIDE, "-A INPUT -j ACCEPT"), ["10.0.0.1"], [8080])
    assert [one.rule.chain for one in found] == ["FORWARD"]


def test_covering() -> None:
    """Addresses are joined where they are nearest."""
    values = [int(ip_address(text)) for text in ("10.0.0.1", "10.0.0.2", "172.16.0.1")]
    networks = [ip_network("10.0.0.0/30"), ip_network("172.16.0.1/32")]
    assert covering(values, 32, 2) == tuple((int(one[0]), int(one[-1])) for one in networks)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40), st.integers(1, 8))
def test_covering_holds_all(values: list[int], most: int) -> None:
    """Every value is in one of the prefixes, of which there are no more than were asked for."""
    found = covering(values, 32, most)
    assert all(any(low <= value <= high for low, high in found) for value in values)
    assert len(found) <= most
