from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from conntracker.formats.jsonl import json_lines


def test_values_and_nulls() -> None:
    """Every kind of column has its JSON, and what is not known is null."""
    columns: dict[str, Any] = {
        "number": np.array([0, 2**64 - 1], np.uint64),
        "maybe": np.ma.MaskedArray(np.array([5, 6], np.uint16), [False, True]),
        "flag": np.array([True, False]),
        "flag_or_not": np.ma.MaskedArray(np.array([True, False]), [True, False]),
        "text": np.array(['quote " and ä', None], object),
        "time": np.array(["2026-01-01T12:00:00.000001", "NaT"], "M8[us]"),
    }
    first, second = json_lines(columns)
    assert first == (
        '{"number": 0, "maybe": 5, "flag": true, "flag_or_not": null, "text": "quote \\" and \\u00e4",'
        ' "time": "2026-01-01T12:00:00.000001Z"}\n'
    )
    assert json.loads(second) == {
        "number": 2**64 - 1,
        "maybe": None,
        "flag": False,
        "flag_or_not": False,
        "text": None,
        "time": None,
    }


def test_written_elsewhere() -> None:
    """A column that is neither number nor text is written by what is given for it."""
    column = np.empty(2, object)
    column[:] = [(1, 2), ()]
    lines = json_lines({"list": column, "text": np.array(["%s", None], object)}, {"list": lambda one: str(list(one))})
    assert list(lines) == ['{"list": [1, 2], "text": "%s"}\n', '{"list": [], "text": null}\n']


@given(st.text(), st.text())
def test_any_text(key: str, value: str) -> None:
    """Any text comes back as it was, in one line."""
    (line,) = json_lines({key: np.array([value], object)})
    assert line.count("\n") == 1
    assert json.loads(line) == {key: value}
