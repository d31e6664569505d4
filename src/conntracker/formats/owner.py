"""Owners in the text log: `(ssh,pid:5057,uid:rafaeldtinoco)`, as the original tool wrote them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from conntracker.formats.table import printable
from conntracker.owner import EXACT, NO_ID, Owner
from conntracker.recording.senders import Sender

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from conntracker.model import U32, U64

__all__ = ["NOBODY", "Tails", "owner_text", "sender", "senders_text"]

NOBODY = "-"
_MOST = 3  # owners of one direction that are named


def sender(owner: Owner) -> Sender:
    """What the log says of an owner."""
    own = owner.process
    if own is None:
        return Sender(owner.kind, None, None, None, None, None)
    return Sender(owner.kind, own.pid, own.comm, own.user, own.uid, owner.certainty)


def owner_text(owner: Owner | None) -> str:
    """An owner in one word: 'ssh,pid:5057,uid:root', with ',inherited' and the like behind it where it is not sure that
    this process sends; 'kernel'; 'forwarded'; '-' for none. What is not known of a process is '-', too.
    """
    return NOBODY if owner is None else _text(sender(owner))


def _text(sender: Sender) -> str:
    kind, pid, comm, user, uid, certainty = sender
    if pid is None:
        return kind
    by = user or (NOBODY if uid is None or uid == NO_ID else uid)
    doubt = "" if certainty is None or certainty == EXACT else f",{certainty}"
    return printable(f"{comm or NOBODY},pid:{pid},uid:{by}{doubt}")


def senders_text(senders: Sequence[Sender]) -> str:
    """The distinct senders of a direction in their order: three at most, then how many more there are."""
    if len(senders) < 2:
        return _text(senders[0]) if senders else NOBODY
    texts = list(dict.fromkeys(map(_text, senders)))
    more = [f"+{len(texts) - _MOST}"] if len(texts) > _MOST else []
    return "; ".join(texts[:_MOST] + more)


class Tails:
    """The ends of a group's lines, each with those who send in its direction.

    places   uint32[n]: which of `sets` each line has
    sets     object[m]: tuples of Sender, the empty one first
    icmp     whether the lines are of ICMP, which have no place for an owner: for none nothing stands there
    """

    def __init__(self, places: U32, sets: NDArray[Any], icmp: bool) -> None:
        used = np.flatnonzero(np.bincount(places, minlength=1))
        lines = [f") ({senders_text(one)})\n".encode() if one or not icmp else b")\n" for one in sets[used]]
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
