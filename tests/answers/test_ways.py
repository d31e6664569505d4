from __future__ import annotations

from dataclasses import replace

import pytest

from conntracker.answers.ways import Change, Way, answer_of, headline, sorted_ways
from conntracker.steps import Packet, Path
from support.traces import ACCEPTED, DROPPED, LOST, icmp, step, tcp

PLAIN = tcp("10.0.0.1", 40000, "10.0.0.2", 80)
GROUP = tcp("10.0.0.1", 40000, "239.0.0.1", 80, 17)
SENT = Path((step("output", "ip filter OUTPUT", "accept"),), "accept", 0, "postrouting")


def way(
    path: Path = ACCEPTED,
    first: int = 0,
    last: int | None = None,
    direction: str = "original",
    packet: Packet = PLAIN,
    left: Packet | None = None,
    doors: tuple[str | None, str | None] = ("eth0", "eth1"),
) -> Way:
    """Packets of a way, the order of places that of times."""
    return Way(direction, True, 1, first, first if last is None else last, first, packet, left or packet, *doors, path)


@pytest.mark.parametrize(
    ("path", "doors", "local"),
    [
        (SENT, (None, "eth1"), True),
        (ACCEPTED, ("eth0", "eth1"), False),
        (DROPPED, ("eth0", None), False),
        (Path((), "accept", None), (None, "eth1"), True),
        (Path((), "accept", None), ("eth0", None), False),
        (Path((), "accept", None), (None, None), False),
        (Path((step("postrouting", "ip nat POSTROUTING", "accept"),), "accept", 0), (None, "eth1"), True),
        (Path((step(None, "ip x y", "accept"), *SENT.steps), "accept", 0), (None, "eth1"), True),
    ],
)
def test_where_packets_began(path: Path, doors: tuple[str | None, str | None], local: bool) -> None:
    """The first hook tells, and the interfaces where it does not."""
    assert way(path, doors=doors).local == local


@pytest.mark.parametrize(
    ("ways", "copies"),
    [
        ([way(DROPPED), way(SENT, 1, doors=(None, "eth1"))], 1),
        ([way(DROPPED), way(SENT, doors=(None, "eth1"))], 1),
        ([way(DROPPED, 2), way(SENT, 1, doors=(None, "eth1"))], 0),
        ([way(DROPPED), way(SENT, 1, doors=(None, "lo"))], 0),
        ([way(DROPPED, packet=GROUP), way(SENT, 1, packet=GROUP, doors=(None, "eth1"))], 0),
        ([way(DROPPED, packet=GROUP, left=PLAIN), way(SENT, 1, doors=(None, "eth1"))], 1),
        ([way(SENT, doors=(None, "eth0")), way(SENT, 1, doors=(None, "eth1"))], 0),
        ([way(DROPPED, direction="reply"), way(SENT, 1, doors=(None, "eth1"))], 0),
    ],
)
def test_copies(ways: list[Way], copies: int) -> None:
    """What was sent with the headers of what came in before is a copy, but for loopback and multicast."""
    found = sorted_ways(ways)
    assert [one.direction for one in found].count("copy") == copies
    assert [one.direction for one in found[len(found) - copies :]] == ["copy"] * copies


@pytest.mark.parametrize(
    ("ways", "chosen", "change"),
    [
        ([way(), way(SENT, 5)], 0, None),
        ([way(SENT, 5), way()], 1, None),
        ([way(), way(DROPPED, 5, 9)], 1, Change(("accept",), 5, 9)),
        ([way(), way(LOST, 3), way(DROPPED, 5), way(replace(DROPPED, reached="input"), 7)], 2,
         Change(("accept", "undecided"), 5, 7)),
        ([way(last=9), way(DROPPED, 5)], 0, Change(("drop",), None, 9)),
        ([way(direction="reply"), way(DROPPED, direction="error")], 0, None),
        ([way(direction="error")], None, None),
        ([], None, None),
    ],
)  # fmt: skip
def test_which_way_answers(ways: list[Way], chosen: int | None, change: Change | None) -> None:
    """The oldest way of a direction, or the oldest of those that came to what the newest packet came to."""
    assert headline(ways) == (None if chosen is None else ways[chosen], change)


def error(kind: int, code: int = 0, about: Packet = PLAIN, first: int = 1, own: bool = True) -> Way:
    """An ICMP error of this host or of another."""
    path = SENT if own else ACCEPTED
    doors = (None, "eth0") if own else ("eth1", "eth0")
    return way(
        path, first, direction="error", packet=icmp("10.0.0.9", "10.0.0.1", kind, code, about=about), doors=doors
    )


@pytest.mark.parametrize(
    ("about", "errors", "chosen"),
    [
        (way(LOST), [error(11)], 0),
        (way(LOST), [error(3, 1, own=False)], None),
        (way(), [error(3, 3, own=False)], 0),
        (way(), [error(3, 1, first=1), error(3, 1, own=False, first=2)], 0),
        (way(), [error(3, 1), error(3, 13, first=2)], 1),
        (way(), [error(5, 1)], None),
        (way(first=2), [error(3, 1)], None),
        (way(DROPPED), [error(3, 1)], None),
        (way(LOST), [error(3, 1, tcp("10.0.0.2", 80, "10.0.0.1", 40000))], None),
        (way(LOST, left=tcp("10.9.0.1", 7, "10.0.0.2", 80)), [error(3, 1, tcp("10.9.0.1", 7, "10.0.0.2", 80))], 0),
        (way(LOST), [way(SENT, direction="error", packet=icmp("10.0.0.9", "10.0.0.1", 3))], 0),
        (way(LOST), [way(SENT, direction="error", packet=icmp("10.0.0.9", "10.0.0.2", 3))], None),
        (way(packet=icmp("10.0.0.9", "10.0.0.1", 3)), [way(SENT, packet=icmp("10.0.0.9", "10.0.0.1", 3))], None),
    ],
)
def test_which_error_says_why(about: Way, errors: list[Way], chosen: int | None) -> None:
    """The newest error about these packets: this host's own, or another's where they left."""
    assert answer_of(about, [about, *errors]) == (None if chosen is None else errors[chosen])
