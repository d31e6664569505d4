"""The owners of flows as JSON: the text of each is made once, however many flows it has."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from conntracker.recording.owned import ENDS, OWNER_KEYS, owner_json, owner_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from conntracker.recording.arrow import Columns
    from conntracker.recording.reader import Recording

__all__ = ["owner_texts"]

NULL = "null"
MOST = 200_000  # texts that are held at once, of some hundred bytes each


@contextmanager
def owner_texts(recording: Recording, where: str) -> Iterator[Callable[[Columns], Columns]]:
    """What puts JSON texts in the place of the numbers in the columns `owner` and `peer_owner`.

    where   the condition on the view `flows` that the rows meet
    """
    if not recording.owned:
        yield lambda columns: columns | {end: np.full(len(columns[end]), NULL, object) for end in ENDS}
        return
    with recording.kept(_texts(where)) as table:
        texts = {0: NULL}

        def fill(columns: Columns) -> Columns:
            numbers = {end: columns[end].tolist() for end in ENDS}
            unknown = set().union(*numbers.values()) - texts.keys()
            if unknown:
                if len(texts) > MOST:
                    texts.clear()
                    texts[0] = NULL
                    unknown = set().union(*numbers.values()) - {0}
                texts.update(_load(recording, table, unknown))
            return columns | {end: _column(texts, numbers[end]) for end in ENDS}

        yield fill


def _texts(where: str) -> str:
    """The query for each owner's number and text."""

    def of_end(end: str) -> str:
        values = ", ".join(f"any_value({end}_{key}) AS owner_{key}" for key in OWNER_KEYS)
        known = f"{end}_kind IS NOT NULL AND {where}"
        return f"SELECT {owner_number(end)} AS number, {values} FROM flows WHERE {known} GROUP BY number"  # noqa: S608

    ends = " UNION ALL ".join(map(of_end, ENDS))
    return f"SELECT number, any_value({owner_json('owner')}) AS text FROM ({ends}) GROUP BY number"  # noqa: S608


def _load(recording: Recording, table: str, numbers: set[int]) -> dict[int, str]:
    query = f"SELECT number, text FROM {table} WHERE number IN ({', '.join(map(str, sorted(numbers)))})"  # noqa: S608
    texts: dict[int, str] = {}
    for chunk in recording.chunks(query):
        texts.update(zip(chunk["number"].tolist(), chunk["text"].tolist(), strict=True))
    return texts


def _column(texts: dict[int, str], numbers: list[int]) -> NDArray[np.object_]:
    column = np.empty(len(numbers), object)
    column[:] = [texts[number] for number in numbers]
    return column
