"""Which answers matter: of many packets that are tried both ways, the questions of which the verdicts hang."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Lineage"]

_Numbers = NDArray[np.int64]
_Masks = NDArray[np.uint8]


class Lineage:
    """What became of states. Each is a node, from 0 those of the packets as they came; one that forks becomes two."""

    def __init__(self, count: int) -> None:
        """`count` packets."""
        self._count = self._size = count
        self._log: list[tuple[str | None, _Numbers, _Numbers, _Numbers]] = []
        self._ends: list[tuple[_Numbers, _Numbers]] = []

    @property
    def forked(self) -> bool:
        """Whether a packet ever became two states."""
        return bool(self._log)

    def fork(self, text: str, nodes: _Numbers, rows: _Numbers) -> tuple[_Numbers, _Numbers]:
        """States, of these packets, are asked what is not known: the nodes of yes and of no."""
        yes = np.arange(self._size, self._size + len(nodes))
        no = yes + len(nodes)
        self._size += 2 * len(nodes)
        self._log.append((text, nodes, yes, rows))
        return yes, no

    def merge(self, nodes: _Numbers, into: _Numbers) -> None:
        """States are from now on the same as others."""
        if len(nodes):
            self._log.append((None, nodes, into, into))

    def end(self, nodes: _Numbers, verdicts: _Numbers) -> None:
        """States came to an end."""
        self._ends.append((nodes, verdicts))

    def settle(self) -> tuple[_Masks, list[tuple[str, _Numbers]]]:
        """(a bit for each verdict that a packet may get, (question, packets for which its answers come to others))."""
        masks = np.zeros(self._size, np.uint8)
        for nodes, verdicts in self._ends:
            masks[nodes] = 1 << verdicts
        mattering = []
        for text, nodes, other, rows in reversed(self._log):
            if text is None:
                masks[nodes] = masks[other]
                continue
            yes, no = masks[other], masks[other + len(nodes)]
            masks[nodes] = yes | no
            differ = yes != no
            if differ.any():
                mattering.append((text, rows[differ]))
        return masks[: self._count], mattering
