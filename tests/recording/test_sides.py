from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from conntracker.filters import Filter
from conntracker.owner import KERNELS
from conntracker.recording.choices import OWN_NAMES
from conntracker.recording.owned import OWNER_KEYS
from conntracker.recording.reader import open_recording
from conntracker.recording.sides import Peer, by_owner, sides
from conntracker.recording.writer import RecordingWriter
from support.columns import many
from support.owners import CURL, NGINX, ROWS, owned, owned_columns


def rows(path: Path, by: str, **where: Any) -> list[dict[str, Any]]:
    """All rows as dicts."""
    with open_recording(path) as recording:
        chunks = list(sides(recording, by, **where))
    return [
        dict(zip(chunk, values, strict=True))
        for chunk in chunks
        for values in zip(*(column.tolist() for column in chunk.values()), strict=True)
    ]


CASES: list[tuple[str, list[tuple[Any, ...]]]] = [
    (
        "process",
        [
            ("nginx", "process", 4, 3003, 18), ("curl", "process", 3, 210, 1014),
            ("(forwarded)", "forwarded", 1, None, None), ("(kernel)", "kernel", 1, None, None),
            (None, None, 1, None, None),
        ],
    ),
    (
        "user",
        [
            ("33", "process", 4, 3003, 18), ("alice", "process", 3, 210, 1014), (None, "forwarded", 1, None, None),
            (None, "kernel", 1, None, None), (None, None, 1, None, None),
        ],
    ),
    ("unit", [("nginx.service", "process", 4, 3003, 18), ("session-3.scope", "process", 3, 210, 1014)]),
    ("engine", [("docker", "process", 4, 3003, 18), (None, "process", 3, 210, 1014)]),
    (
        "kind",
        [("process", 6, 3213, 1032), ("forwarded", 1, None, None), ("kernel", 1, None, None), (None, 1, None, None)],
    ),
    ("uid", [(33, "process", 4, 3003, 18), (1000, "process", 3, 210, 1014)]),
    ("login", [(None, "process", 4, 3003, 18), ("alice", "process", 3, 210, 1014)]),
    ("comm", [("nginx", "process", 4, 3003, 18), ("curl", "process", 3, 210, 1014)]),
    ("parent", [(None, "process", 4, 3003, 18), ("bash", "process", 3, 210, 1014)]),
    ("ppid", [(None, "process", 4, 3003, 18), (4000, "process", 3, 210, 1014)]),
    ("cgroup", [(None, "process", 4, 3003, 18), ("/user.slice/session-3.scope", "process", 3, 210, 1014)]),
    ("loginuid", [(None, "process", 4, 3003, 18), (1000, "process", 3, 210, 1014)]),
    ("certainty", [("holder", "process", 4, 3003, 18), ("exact", "process", 3, 210, 1014)]),
    ("method", [("open", "process", 4, 3003, 18), ("bpf", "process", 3, 210, 1014)]),
    ("netns", [(12, "process", 4, 3003, 18), (None, "process", 3, 210, 1014)]),
    ("role", [("server", "process", 4, 3002, 16), ("client", "process", 4, 211, 1016)]),
]  # fmt: skip


@pytest.mark.parametrize(("by", "expected"), CASES)
def test_sides(tmp_path: Path, by: str, expected: list[tuple[Any, ...]]) -> None:
    """Each flow counts for both of its owners, once for one who has both ends; no owner here is a row of its own."""
    got = rows(owned(tmp_path / "rec"), by)
    names = [by, *(["kind"] if by != "kind" else []), "flows", "sent_bytes", "received_bytes"]
    assert [tuple(row[name] for name in names) for row in got][: len(expected)] == expected
    assert all(one["flows"] >= other["flows"] for one, other in pairwise(got))


def test_peers(tmp_path: Path) -> None:
    """Clients have the services that they asked, servers who came, both with the process if it is here."""
    of = {row["process"]: row["peers"] for row in rows(owned(tmp_path / "rec"), "process")}
    assert of["curl"] == (
        2,
        [Peer("client", "93.184.216.34", 443, "tcp", None, 2), Peer("client", "127.0.0.1", 80, "tcp", "nginx", 1)],
    )
    assert sorted(of["nginx"].first, key=lambda peer: peer[:2]) == [
        Peer("client", "10.0.0.2", 80, "tcp", "nginx", 1),
        Peer("server", "10.0.0.1", 80, "tcp", "nginx", 1),
        Peer("server", "10.0.0.5", 80, "tcp", None, 1),
        Peer("server", "10.0.0.6", 80, "tcp", None, 1),
        Peer("server", "127.0.0.1", 80, "tcp", "curl", 1),
    ]
    assert of["(kernel)"].first == [Peer("server", "9.9.9.9", None, "icmp", None, 1)]
    assert of["(forwarded)"].first == [Peer(None, "10.0.0.2", 80, "tcp", None, 1)]


def test_all_that_is_known_of_owners() -> None:
    """Every key of an owner in JSON is a column, but when it began, which tells processes of one pid apart anyway."""
    assert {*OWN_NAMES} - {"process"} == {*OWNER_KEYS} - {"start"}


def test_roles_beside_columns_of_flows(tmp_path: Path) -> None:
    """A flow's source does not tell whose it is: `role` says whether the owner has that end or the other."""
    got = rows(owned(tmp_path / "rec", ROWS[:4]), "src,process", sort="src")
    assert [(row["src"], row["process"], row["role"], row["flows"]) for row in got] == [
        ("10.0.0.1", "curl", "client", 2), ("10.0.0.5", "nginx", "server", 1), ("127.0.0.1", "curl", "client", 1),
        ("127.0.0.1", "nginx", "server", 1),
    ]  # fmt: skip
    assert "role" not in rows(tmp_path / "rec", "process")[0]


@pytest.mark.parametrize(
    ("by", "wanted", "expected"),
    [
        ("process", {"user": "alice"}, [("curl", 3, 210)]),
        ("user", {"process": "nginx"}, [("33", 4, 3003)]),
        ("user", {"process": "nginx,curl"}, [("33", 4, 3003), ("alice", 3, 210)]),
        ("process", {"process": "(kernel)"}, [("(kernel)", 1, None)]),
        ("process", {"process": "(forwarded)"}, [("(forwarded)", 1, None)]),
        ("process", {"process": "nginx", "dport": "443"}, [("nginx", 1, None)]),
        ("process", {"process": "nginx", "user": "alice"}, []),
        ("process", {"src": "127.0.0.1"}, [("nginx", 1, 1000), ("curl", 1, 10)]),
    ],
)
def test_only_wanted_owners_count(
    tmp_path: Path, by: str, wanted: dict[str, str], expected: list[tuple[Any, ...]]
) -> None:
    """With conditions on owners the other ends of their flows do not count."""
    got = rows(owned(tmp_path / "rec"), by, filter=Filter.parse(**wanted))
    assert [(row[by], row["flows"], row["sent_bytes"]) for row in got] == expected


def test_a_flow_counts_where_only_its_destination_is_wanted(tmp_path: Path) -> None:
    """Of two owners of one user, the one who is wanted counts the flow, at whichever end."""
    assert CURL.process
    other = dataclasses.replace(CURL, process=dataclasses.replace(CURL.process, pid=1, comm="wget", exe=None))
    path = owned(tmp_path / "rec", (({"bytes": 3, "reply_bytes": 4}, 1, 2),), {1: other, 2: CURL})
    for process, sent in (("curl", 4), ("wget", 3), ("curl,wget", 7)):
        (row,) = rows(path, "user", filter=Filter.parse(process=process))
        assert (row["flows"], row["sent_bytes"]) == (1, sent)


@pytest.mark.parametrize(
    ("process", "by", "there"), [("curl", "user", False), (None, "user", True), ("curl", "kind", True)]
)
def test_terse(tmp_path: Path, process: str | None, by: str, there: bool) -> None:
    """`terse` leaves out the kind where all owners are processes and nobody asked."""
    for row in rows(owned(tmp_path / "rec"), by, filter=Filter.parse(process=process), terse=True):
        assert ("kind" in row) == there


def test_few_peers(tmp_path: Path) -> None:
    """With `most` only the first peers are there, and how many there are."""
    first = rows(owned(tmp_path / "rec"), "process", most=2)[0]["peers"]
    assert (first.total, len(first.first)) == (5, 2)


def test_with_columns_of_flows(tmp_path: Path) -> None:
    """Together with columns of flows there are no peers, and each combination is a row."""
    got = rows(owned(tmp_path / "rec"), "process,dst,dport", sort="dst")
    assert "peers" not in got[0]
    assert [(row["process"], row["dst"], row["dport"], row["flows"]) for row in got][:2] == [
        ("nginx", "1.1.1.1", 443, 1), ("(forwarded)", "10.0.0.2", 80, 1),
    ]  # fmt: skip
    assert sum(row["flows"] for row in got if row["process"] == "curl") == 3


def test_a_reused_pid_is_another_process(tmp_path: Path) -> None:
    """By pid, processes that began at other times are other rows."""
    assert CURL.process
    later = dataclasses.replace(CURL, process=dataclasses.replace(CURL.process, start=7))
    path = owned(tmp_path / "rec", (({}, 1, 0), ({"sport": 2}, 2, 0)), {1: CURL, 2: later})
    assert [(row["pid"], row["flows"]) for row in rows(path, "pid")] == [(5057, 1), (5057, 1)]


def test_sort_limit_and_filter(tmp_path: Path) -> None:
    """Rows are sorted by any column and cut; peers stay with their rows; flows that are not wanted do not count."""
    path = owned(tmp_path / "rec")
    got = rows(path, "process", sort="process", limit=3)
    assert [row["process"] for row in got] == ["(forwarded)", "(kernel)", "curl"]
    assert got[2]["peers"].total == 2
    assert [row["process"] for row in rows(path, "process", sort="-received_bytes", limit=1)] == ["curl"]
    assert [(row["process"], row["flows"]) for row in rows(path, "process", filter=Filter.parse(dst="9.0.0.0/8"))] == []
    only = rows(path, "process", filter=Filter.parse(dst="93.184.216.34"))
    assert [(row["process"], row["flows"]) for row in only] == [("curl", 2)]


def test_without_owners(tmp_path: Path) -> None:
    """Where nobody looked for owners every flow is of nobody known."""
    with RecordingWriter(tmp_path / "rec") as writer:
        writer.append(owned_columns(*ROWS))
    assert [(row["user"], row["kind"], row["flows"]) for row in rows(tmp_path / "rec", "user")] == [(None, None, 9)]


def test_no_flows(tmp_path: Path) -> None:
    """A recording without flows has no rows."""
    RecordingWriter(tmp_path / "rec").close()
    assert rows(tmp_path / "rec", "process") == []


def test_more_groups_than_a_chunk(tmp_path: Path) -> None:
    """Where rows come in many chunks each has its own peers."""
    count = 3000
    owners = {number: dataclasses.replace(NGINX, netns=None) for number in (1, 2)} | {3: KERNELS}
    columns = many(count)
    columns["owner"] = columns["flow"].astype("u4") % 3 + 1
    with RecordingWriter(tmp_path / "rec") as writer:
        writer.append(columns, owners)
    got = rows(tmp_path / "rec", "process")
    assert [row["flows"] for row in got] == [2000, 1000]
    assert all(sum(peer.flows for peer in row["peers"].first) == row["flows"] for row in got)
    by_number = rows(tmp_path / "rec", "process,sport,src")
    assert sum(row["flows"] for row in by_number) == count


def test_names() -> None:
    """Columns of owners make rows sides; a column that is not there is named with all that are."""
    assert by_owner("dst, process")
    assert not by_owner("dst,dport")
    with pytest.raises(ValueError, match=r"--group-by: no column 'nope'; there are: process, user, .*, host"):
        by_owner("process,nope")


def test_sort_by_what_is_not_shown(tmp_path: Path) -> None:
    """Only what is shown can be sorted by."""
    with pytest.raises(ValueError, match="--sort: no column 'dst'; there are: process, kind, flows, sent_bytes"):
        rows(owned(tmp_path / "rec"), "process", sort="dst")
