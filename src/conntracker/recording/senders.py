"""Who sends in each direction of the log of a recording, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from conntracker.recording.arrow import concatenate
from conntracker.sorting import gather

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from conntracker.recording.arrow import Columns
    from conntracker.recording.reader import Recording

__all__ = ["TIME_ORDER", "Sender", "owners_of_flows", "sender_numbers", "with_senders"]


class Sender(NamedTuple):
    """What the log says of an owner, see owner.Owner and owner.Process; all but `kind` None unless it is a process.

    There may be as many as lines, and tuples are made much faster than those.
    """

    kind: str
    pid: int | None
    comm: str | None
    user: str | None
    uid: int | None
    certainty: str | None


_SAID = Sender._fields

# The order of the senders of one direction. Only where a flow's two directions are one (a socket connected to itself)
# is its `reply` beside it.
TIME_ORDER = ("first_seen", "part", "flow", "reply")


def _number(end: str) -> str:
    """The number of an owner: a hash of what is said of it, 0 for none."""
    said = ", ".join(f"{end}_{name}" for name in _SAID)
    return f"CASE WHEN {end}_kind IS NULL THEN 0::UBIGINT ELSE hash({said}) END"


def sender_numbers() -> str:
    """Columns over the view `flows`: the numbers of who sends in a flow's two directions, and its place in time."""
    return f"{_number('owner')} AS sender, {_number('peer_owner')} AS reply_sender, first_seen, part, flow"


def owners_of_flows(where: str) -> str:
    """The query for the owners that flows have, each once: `number`, and what is said of it."""
    ends = " UNION ALL ".join(
        f"SELECT {_number(end)} AS number, {', '.join(f'{end}_{name} AS {name}' for name in _SAID)}"  # noqa: S608
        f" FROM flows WHERE {end}_kind IS NOT NULL AND {where}"
        for end in ("owner", "peer_owner")
    )
    return f"SELECT DISTINCT * FROM ({ends})"  # noqa: S608


def with_senders(recording: Recording, owners: str, chunks: Iterator[Columns]) -> Iterator[Columns]:
    """Sorted directions, each once, with those that `sender` numbers: `owner` and `owners`, as sorting.gather has them.

    owners   a table with the answer to `owners_of_flows`
    """
    held: Columns = {}  # the last direction, which may go on in the next chunk, once for each of its senders
    for chunk in chunks:
        rows = concatenate([held, chunk]) if held else chunk
        fresh = _fresh(rows)
        last = int(np.flatnonzero(fresh)[-1])
        if last:
            yield _gathered(recording, owners, {name: column[:last] for name, column in rows.items()}, fresh[:last])
        _, kept = np.unique(rows["sender"][last:], return_index=True)
        held = {name: column[last + np.sort(kept)] for name, column in rows.items()}
    if held:
        yield _gathered(recording, owners, held, _fresh(held))


def _fresh(rows: Columns) -> NDArray[np.bool_]:
    """Which rows are of another direction than the one before."""
    fresh = np.ones(len(rows["sender"]), np.bool_)
    fresh[1:] = False
    for name, column in rows.items():
        if name != "sender":
            fresh[1:] |= column[1:] != column[:-1]
    return fresh


def _gathered(recording: Recording, owners: str, rows: Columns, fresh: NDArray[np.bool_]) -> Columns:
    numbers = np.unique(np.append(rows["sender"], np.uint64(0)))
    known = _load(recording, owners, numbers[1:].tolist())
    values = [None, *map(known.__getitem__, numbers[1:].tolist())]
    places = np.searchsorted(numbers, rows["sender"]).astype(np.uint32)
    columns = {name: column[fresh] for name, column in rows.items() if name != "sender"}
    owner, sets = gather(fresh, places, values)
    return columns | {"owner": owner, "owners": sets}


def _load(recording: Recording, owners: str, numbers: list[int]) -> dict[int, Sender]:
    if not numbers:
        return {}
    chosen = ", ".join(map(str, numbers))
    found: dict[int, Sender] = {}
    for chunk in recording.chunks(f"SELECT * FROM {owners} WHERE number IN ({chosen})"):  # noqa: S608
        of_rows, *said = (column.tolist() for column in chunk.values())
        found.update(zip(of_rows, map(Sender._make, zip(*said, strict=True)), strict=True))
    return found
