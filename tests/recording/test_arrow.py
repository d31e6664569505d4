from __future__ import annotations

import duckdb
import numpy as np
import pytest

from conntracker.recording.arrow import concatenate, read_stream


def test_types_and_nulls() -> None:
    """Numbers with nulls are masked, times are NaT, text is None; without nulls they are plain arrays."""
    query = (
        "SELECT range::USMALLINT AS number, nullif(range, 1)::INT AS holes, range % 2 = 0 AS even,"
        " CASE WHEN range > 0 THEN range > 1 END AS maybe, make_timestamp(nullif(range, 2)) AS time,"
        " CASE WHEN range > 0 THEN 'ä' || range END AS text FROM range(3)"
    )
    columns = concatenate(read_stream(duckdb.sql(query)))
    assert columns["number"].dtype == np.uint16
    assert not np.ma.isMaskedArray(columns["number"])
    assert {name: column.tolist() for name, column in columns.items() if name != "time"} == {
        "number": [0, 1, 2],
        "holes": [0, None, 2],
        "even": [True, False, True],
        "maybe": [None, False, True],
        "text": [None, "ä1", "ä2"],
    }
    assert columns["time"].dtype == np.dtype("M8[us]")
    assert np.isnat(columns["time"]).tolist() == [False, False, True]


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 1000])
def test_chunks_do_not_change_values(rows: int) -> None:
    """However the rows are cut, bitmaps and text stay aligned; the chunks own their memory."""
    query = (
        "SELECT nullif(range % 3, 0)::UTINYINT AS a, nullif(range, 5)::VARCHAR AS b, range % 5 = 1 AS c FROM range(100)"
    )
    chunks = list(read_stream(duckdb.sql(query), rows))
    columns = concatenate(chunks)
    assert max(len(chunk["a"]) for chunk in chunks) == min(rows, 100)
    assert columns["a"].tolist() == [i % 3 or None for i in range(100)]
    assert columns["b"].tolist() == [str(i) if i != 5 else None for i in range(100)]
    assert columns["c"].tolist() == [i % 5 == 1 for i in range(100)]


def test_no_rows() -> None:
    """A stream without rows gives no chunk."""
    assert list(read_stream(duckdb.sql("SELECT 1 AS a LIMIT 0"))) == []


def test_unknown_type() -> None:
    """A type that is not supported is named."""
    with pytest.raises(TypeError, match="'\\+l'"):
        next(read_stream(duckdb.sql("SELECT [1] AS a")))
