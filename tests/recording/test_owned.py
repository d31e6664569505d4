from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntracker.formats.jsonl import FLOW_KEYS, json_lines
from conntracker.owner import BPF, CERTAINTIES, METHODS, NO_ID, PROCESS, Owner, Process
from conntracker.recording import ownertexts
from conntracker.recording.owned import ENDS, OWNER_COLUMNS, OWNER_KEYS
from conntracker.recording.query import flows_query
from conntracker.recording.reader import open_recording
from conntracker.recording.writer import RecordingWriter
from support.columns import flows
from support.owners import CURL, KERNELS, NGINX, OWNERS, ROWS, owned, owned_columns


def objects(*paths: Path) -> list[dict[str, Any]]:
    """The flows of recordings as JSON, by their numbers."""
    with open_recording(paths) as recording, ownertexts.owner_texts(recording, "true") as with_texts:
        chunks = recording.chunks(flows_query(FLOW_KEYS, sort="flow"))
        return [
            json.loads(line)
            for chunk in chunks
            for line in json_lines(with_texts(chunk), dict.fromkeys(ENDS, str))
        ]  # fmt: skip


def expected(owner: Owner | None) -> dict[str, Any] | None:
    """What JSON has of an owner: times as text, null for what is not known."""
    if owner is None:
        return None
    values = owner.json()
    if values["start"] is not None:
        values["start"] = f"{np.datetime64(values['start'], 'us')}Z"
    for name, value in values.items():
        if isinstance(value, str):
            values[name] = value.encode(errors="replace").decode()
    return values | {name: None for name in ("uid", "loginuid") if values[name] == NO_ID}


def test_columns_are_those_of_owners() -> None:
    """Each end has a column for each key of an owner's JSON, in its order."""
    assert tuple(Owner(PROCESS).json()) == OWNER_KEYS
    assert [name for name, _, _ in OWNER_COLUMNS] == [f"{end}_{key}" for end in ENDS for key in OWNER_KEYS]


def test_owners_come_back(tmp_path: Path) -> None:
    """Each end of a flow has its owner; a number that nobody has is no owner."""
    rows = objects(owned(tmp_path / "rec"))
    assert [(row["owner"], row["peer_owner"]) for row in rows] == [
        (expected(OWNERS.get(one)), expected(OWNERS.get(other))) for _, one, other in ROWS
    ]
    assert tuple(rows[0]["owner"]) == OWNER_KEYS


def test_columns_of_flows(tmp_path: Path) -> None:
    """The columns of a recording have owners flat, with numbers and times of their own types, and in words."""
    with open_recording(owned(tmp_path / "rec", ROWS[:1])) as recording:
        row = recording.flows().numpy()
        assert recording.owned
    assert row["owner_pid"].dtype == np.uint32
    assert row["owner_start"].dtype == np.dtype("M8[us]")
    assert row["peer_owner_netns"].tolist() == [12]
    assert (row["process"][0], row["peer_process"][0]) == ("curl[5057]", "nginx[77]?")


def test_without_owners(tmp_path: Path) -> None:
    """A recording without owners has no columns for them in its files, and null for all of them when asked."""
    with RecordingWriter(tmp_path / "rec") as writer:
        writer.append(owned_columns(*ROWS))
    file = str(tmp_path / "rec/flows-000001.parquet")
    names = {name for (name,) in duckdb.execute("SELECT name FROM parquet_schema($file)", {"file": file}).fetchall()}
    assert not any("owner" in name for name in names)
    with open_recording(tmp_path / "rec") as recording:
        assert not recording.owned
        assert not any("process" in name or "owner" in name for name in recording.flows().numpy())
        assert recording.sql("SELECT DISTINCT owner_comm, peer_owner_start, process FROM flows").fetchall() == [
            (None, None, None)
        ]
    assert objects(tmp_path / "rec")[0]["owner"] is None


def test_nobody_known(tmp_path: Path) -> None:
    """With no owner known, and without numbers, the columns are there and null."""
    with RecordingWriter(tmp_path / "rec") as writer:
        writer.append(flows({}), {})
    with open_recording(tmp_path / "rec") as recording:
        assert recording.owned
        assert recording.sql("SELECT owner_kind, peer_owner_kind FROM flows").fetchall() == [(None, None)]


def test_mixed(tmp_path: Path) -> None:
    """Segments with and without owners are one recording, in either order, and so are recordings."""
    for name, first in (("a", True), ("b", False)):
        with RecordingWriter(tmp_path / name) as writer:
            for number, with_owners in enumerate((first, not first)):
                writer.append(owned_columns(ROWS[0], first=number), OWNERS if with_owners else None)
    with RecordingWriter(tmp_path / "c") as writer:
        writer.append(owned_columns(ROWS[0], first=2))
    known = [row["owner"] and row["owner"]["comm"] for row in objects(tmp_path / "a")]
    assert known == ["curl", None]
    assert [row["owner"] and row["owner"]["comm"] for row in objects(tmp_path / "b")] == [None, "curl"]
    both = objects(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert sorted(row["owner"] is None for row in both) == [False, False, True, True, True]


def test_the_last_state_counts(tmp_path: Path) -> None:
    """An owner who was found later is the flow's."""
    with RecordingWriter(tmp_path / "rec") as writer:
        for number in (0, 1):
            writer.append(owned_columns(({}, number, 0)), OWNERS)
    (row,) = objects(tmp_path / "rec")
    assert row["owner"] == expected(CURL)


def test_lengths(tmp_path: Path) -> None:
    """Numbers of another length than the flows are refused."""
    with RecordingWriter(tmp_path / "rec") as writer, pytest.raises(ValueError, match="different lengths"):
        writer.append(flows({}) | {"owner": np.zeros(2, np.uint32)}, {})


def test_again_after_an_error(tmp_path: Path) -> None:
    """After a segment that could not be written the next one can be."""
    with RecordingWriter(tmp_path / "rec") as writer:
        (tmp_path / "rec/flows-000001.parquet.tmp").mkdir()
        (tmp_path / "rec/flows-000001.parquet").mkdir()
        with pytest.raises(OSError, match=r"flows-000001\.parquet"):
            writer.append(owned_columns(ROWS[0]), OWNERS)
        for directory in (tmp_path / "rec").glob("flows*"):
            directory.rmdir()
        writer.append(owned_columns(ROWS[0]), OWNERS)
    assert len(objects(tmp_path / "rec")) == 1


TEXT = st.one_of(st.none(), st.text(max_size=20), st.text(st.characters(), max_size=20))
NUMBER = st.one_of(st.none(), st.integers(0, NO_ID))


@st.composite
def any_owner(draw: st.DrawFn) -> Owner:
    """Processes with any text, surrogates included, and any numbers."""
    names = ("exe", "cmdline", "user", "login", "parent", "cgroup", "unit", "container", "engine")
    process = Process(
        draw(st.integers(0, NO_ID)), draw(TEXT) or "", draw(st.integers(0, NO_ID)),
        draw(st.none() | st.integers(0, 2**52)), loginuid=draw(NUMBER),
        ppid=draw(NUMBER), **{name: draw(TEXT) for name in names},
    )  # fmt: skip
    netns = draw(st.none() | st.integers(0, 2**64 - 1))
    return Owner(PROCESS, process, draw(st.sampled_from(METHODS)), draw(st.sampled_from(CERTAINTIES)), netns)


@settings(max_examples=25, deadline=None)
@given(st.lists(any_owner(), min_size=1, max_size=8))
def test_any_owner_comes_back(owners: list[Owner]) -> None:
    """Whatever text a process has, its JSON comes back as it was, what is no text as '?'."""
    known = dict(enumerate(owners, 1))
    rows: tuple[tuple[dict[str, Any], int, int], ...] = tuple(({}, number, number) for number in known)
    with TemporaryDirectory() as directory:
        written = objects(owned(Path(directory) / "rec", rows, known))
    assert [row["peer_owner"] for row in written] == [
        json.loads(json.dumps(expected(owner)).encode()) for owner in owners
    ]


def test_more_owners_than_are_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are forgotten when there are too many, and made again."""
    monkeypatch.setattr(ownertexts, "MOST", 1)
    path = owned(tmp_path / "rec", (ROWS[0], ROWS[3], ROWS[5]))
    with open_recording(path) as recording, ownertexts.owner_texts(recording, "true") as with_texts:
        for flow in (0, 1, 2, 0):
            query = f"SELECT * FROM ({flows_query(FLOW_KEYS)}) WHERE flow = {flow}"  # noqa: S608
            (chunk,) = map(with_texts, recording.chunks(query))
            owner = json.loads(chunk["peer_owner"][0])
            assert owner == expected((NGINX, NGINX, KERNELS)[flow])


def test_same_process_known_in_two_ways(tmp_path: Path) -> None:
    """Owners who differ in how they are known only stay apart."""
    other = replace(CURL, certainty="shared", method=BPF)
    rows = objects(owned(tmp_path / "rec", (({}, 1, 2),), {1: CURL, 2: other}))
    assert (rows[0]["owner"]["certainty"], rows[0]["peer_owner"]["certainty"]) == ("exact", "shared")
