from __future__ import annotations

import time

import numpy as np
import pytest

from conntracker.formats.table import human_bytes, table_lines


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20, "1.0 MiB"),
        (5 * 2**30, "5.0 GiB"),
        (2**64 - 1, "16.0 EiB"),
    ],
)
def test_human_bytes(number: int, text: str) -> None:
    """Bytes are in the largest unit that leaves at least 1."""
    assert human_bytes(number) == text


def test_containers() -> None:
    """Of a container's id 12 digits are shown, of a name all, and of other columns anything."""
    name, digits = "web-" + "f" * 60, "0123456789ab" + "f" * 52
    columns = {"container": np.array([digits, name, None], object), "user": np.array([digits] * 3, object)}
    assert [line.split()[0] for line in table_lines([columns])] == ["container", "0123456789ab", name, "-"]
    assert "".join(table_lines([columns])).count(digits) == 3


def test_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text stands left, numbers right, times are local, '-' is not known."""
    monkeypatch.setenv("TZ", "UTC-2")
    time.tzset()
    columns = {
        "proto": np.array(["tcp", "udp"], object),
        "dport": np.ma.MaskedArray(np.array([80, 0], np.uint16), [False, True]),
        "bytes": np.array([2048, 5], np.uint64),
        "start": np.array(["2026-01-01T12:00:00.9", "NaT"], "M8[us]"),
        "offloaded": np.array([True, False]),
    }
    assert "".join(table_lines([columns])) == (
        "proto  dport    bytes  start                offloaded\n"
        "tcp       80  2.0 KiB  2026-01-01 14:00:00  yes\n"
        "udp        -      5 B  -                    no\n"
    )


@pytest.mark.parametrize(("width", "names"), [(80, ["a", "bb", "cc"]), (16, ["a", "bb"]), (15, ["a"]), (1, ["a"])])
def test_narrow(width: int, names: list[str]) -> None:
    """Where the width is too small optional columns are left out, and nothing is cut off."""
    columns = {name: np.array(["0123456"], object) for name in ("a", "bb", "cc")}
    header, row = table_lines([columns], width, optional=("cc", "bb"))
    assert header.split() == names
    assert row.split() == ["0123456"] * len(names)


def test_later_chunks_keep_the_columns() -> None:
    """Rows of later chunks stand under the same header, longer ones whole."""
    chunks = [
        {"a": np.array(["x"], object), "b": np.array(["y"], object)},
        {"a": np.array(["long"], object), "b": np.array(["z"], object)},
    ]
    assert list(table_lines(chunks)) == ["a  b\n", "x  y\n", "long  z\n"]


def test_terminal_controls() -> None:
    """What a terminal would obey is not printed."""
    assert list(table_lines([{"host": np.array(["a\x1b[2Jb"], object)}]))[1] == "a?[2Jb\n"


@pytest.mark.parametrize(
    ("width", "names", "room"),
    [(80, ["a", "b", "c"], 80 - 9), (200, ["a", "b", "c"], 100), (30, ["a", "c"], 27), (10, ["a", "c"], 24)],
)
def test_a_roomy_column(width: int, names: list[str], room: int) -> None:
    """A column that takes what room there is stands last, as wide as that, but neither too narrow nor too wide."""
    column = np.empty(1, object)
    column[0] = ["x", "y"]
    columns = {"c": column, "a": np.array(["0"], object), "b": np.array(["0123"], object)}
    header, row = table_lines([columns], width, ("b",), {"c": lambda value, room: f"{'+'.join(value)}{room}"})
    assert header.split() == names
    assert row.split()[-1] == f"x+y{room}"
