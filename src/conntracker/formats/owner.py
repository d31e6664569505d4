"""Owners in the text log: `(ssh,pid:5057,uid:rafaeldtinoco)`, as the original tool wrote them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from conntracker.formats.table import printable
from conntracker.owner import EXACT, NO_ID, Owner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from conntracker.model import U32, U64

__all__ = ["NOBODY", "Tails", "owner_text", "owners_text"]

NOBODY = "-"
_MOST = 3  # owners of one direction that are named


def owner_text(owner: Owner | None) -> str:
    """An owner in one word: 'ssh,pid:5057,uid:root', with ',inherited' and the like behind it where it is not sure that
    this process sends; 'kernel'; 'forwarded'; '-' for none. What is not known of a process is '-', too.
    """
    if owner is None:
        return NOBODY
    own = owner.process
    if own is None:
        return owner.kind
    user = own.user or (NOBODY if own.uid == NO_ID else own.uid)
    doubt = "" if owner.certainty in (None, EXACT) else f",{owner.certainty}"
    return printable(f"{own.comm or NOBODY},pid:{own.pid},uid:{user}{doubt}")


def owners_text(owners: Sequence[Owner]) -> str:
    """The distinct owners of a direction in their order: three at most, then how many more there are."""
    texts = list(dict.fromkeys(map(owner_text, owners or (None,))))
    more = [f"+{len(texts) - _MOST}"] if len(texts) > _MOST else []
    return "; ".join(texts[:_MOST] + more)


class Tails:
    """The ends of a group's lines, each with the owners of its direction.

    places   uint32[n]: which of `sets` each line has
    sets     object[m]: tuples of Owner, the empty one first
    icmp     whether the lines are of ICMP, which have no place for an owner: for none nothing stands there
    """

    def __init__(self, places: U32, sets: NDArray[Any], icmp: bool) -> None:
        used = np.flatnonzero(np.bincount(places, minlength=1))
        lines = [f") ({owners_text(owners)})\n".encode() if owners or not icmp else b")\n" for owners in sets[used]]
        line_of = np.zeros(len(sets), np.intp)
        line_of[used] = np.arange(len(used))
        self._lines = line_of.take(places)
        self._sizes = np.array([-(-len(line) // 8) for line in lines], np.intp)
        width = int(self._sizes.max(initial=1))
        self._words = np.array(lines, f"S{width * 8}").view(np.uint64).reshape(-1, width).T.copy()

    def words(self, rows: slice) -> list[U64]:
        """Columns of words of NUL-padded text, as many as the longest of these rows needs."""
        lines = self._lines[rows]
        return [word.take(lines) for word in self._words[: self._sizes[lines].max()]]
