"""The flow table: batches of conntrack messages in, one row a flow out.

A flow is one life of one conntrack entry: its original tuple, zone and kernel id, from the first sight of it to its
DESTROY. The same tuple seen again after that is a new flow. Rows are found by open addressing over columns, a whole
batch at a time.
"""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from conntracker.model import DESTROY, DUMP, IPS_SEEN_REPLY, NEW, NO_STATE, U8, U32, U64, UNKNOWN, Batch

Rows: TypeAlias = NDArray[np.intp]
COUNTERS = ("packets", "bytes", "reply_packets", "reply_bytes")

# Bits of a row.
_BORN, _ENDED, _END_SEEN, _DIRTY, _REPLACED = 1, 2, 4, 8, 16

_FREE = -1  # an empty slot of the index
_CLAIM = -2  # minus the number of an event: a slot that will lead to the row which this event makes


class FlowTable:
    """All flows of one capture. Bounded by its caller: `len` and `drop_finished`.

    expected   how many flows there will be soon; only saves time
    """

    def __init__(self, expected: int = 0) -> None:
        capacity = 1 << max(16, (expected + expected // 8).bit_length())
        self.families = {4: _Family(4, 1, capacity), 6: _Family(6, 4, 1 << 16)}
        self._serial = 0

    def __len__(self) -> int:
        return sum(family.size for family in self.families.values())

    @property
    def seen(self) -> int:
        """How many flows there have been, those dropped from memory included."""
        return self._serial

    def apply(self, batch: Batch) -> None:
        """Takes in a batch of events or of a dump."""
        if len(batch):
            self._serial = self.families[batch.family].apply(batch, self._serial)

    def conclude_ended(self, since: int, time: int) -> int:
        """After events were lost, and a whole dump asked for at `since` was applied: what it did not show has ended.

        The end is `time`, and `end_seen` stays false. Returns how many flows that are.
        """
        return sum(family.conclude_ended(since, time) for family in self.families.values())

    def alive(self) -> int:
        """How many flows have not ended."""
        return sum(int(np.count_nonzero(f.bits[: f.size] & _ENDED == 0)) for f in self.families.values())

    def changed(self) -> list[dict[str, NDArray[Any]]]:
        """Raw columns of the rows changed since `mark_written`, a dict for each IP version that has any."""
        return [family.columns(rows) for family in self.families.values() if len(rows := family.changed())]

    def mark_written(self) -> None:
        """What `changed` gave is safe on disk."""
        for family in self.families.values():
            family.bits[: family.size] &= 0xFF ^ _DIRTY

    def drop_finished(self) -> int:
        """Forgets flows that ended and were written. Returns how many."""
        return sum(family.drop_finished() for family in self.families.values())

    def directions(self, family: int, proto: int) -> tuple[tuple[U64, ...], U32]:
        """Every direction of the flows of a protocol: the original one, and the reply once it was seen (not of ICMP).

        Returns (address words as in model, ports: uint32 source << 16 | destination, or type << 8 | code of ICMP).
        """
        return self.families[family].directions(proto)

    def made(self) -> dict[tuple[int, int], int]:
        """(family, protocol) to how many flows there have been."""
        return {
            (family.version, int(proto)): int(family.made[proto])
            for family in self.families.values()
            for proto in np.flatnonzero(family.made)
        }


class _Family:
    """The rows of one IP version."""

    def __init__(self, version: int, words: int, capacity: int) -> None:
        self.version, self.size = version, 0
        self.addresses = [np.empty(capacity, np.uint64) for _ in range(words)]
        self.reply_addresses = [np.empty(capacity, np.uint64) for _ in range(words)]
        self.ports, self.reply_ports = np.empty(capacity, np.uint64), np.empty(capacity, np.uint64)
        self.id, self.status, self.mark = (np.empty(capacity, np.uint32) for _ in range(3))
        self.tcp_state, self.bits = np.empty(capacity, np.uint8), np.empty(capacity, np.uint8)
        self.serial = np.empty(capacity, np.uint64)
        self.first, self.last, self.start, self.end = (np.empty(capacity, np.int64) for _ in range(4))
        self.counters: dict[str, U64] = {}
        self.made = np.zeros(256, np.int64)
        self._slots = np.full(capacity * 2, _FREE, np.int32)
        self._scratch = np.empty(capacity, np.int32)
        # Secret odd multipliers: nobody can choose packets whose flows meet in one slot.
        self._factors = np.frombuffer(os.urandom(8 * (words + 2)), np.uint64) | np.uint64(1)

    # --- taking in ---------------------------------------------------------------------------------------------

    def apply(self, batch: Batch, serial: int) -> int:
        rows, first, serial = self._place(batch, serial)
        if first.all():
            return serial
        if first.any():
            batch, rows = batch.take(~first), rows[~first]
        if batch.event[0] == DUMP:
            return self._apply_dump(batch, rows, serial)
        again = self._born_again(batch.event, rows)
        if not again.any():
            self._update(batch, rows)
            return serial
        lives = _lives(batch.event, rows, again, self.bits)
        self._update(batch.take(lives == 0), rows[lives == 0])
        for life in range(1, int(lives.max()) + 1):
            part = batch.take(lives == life)
            rows, _, serial = self._place(part, serial)
            serial = self._replace(part, rows, serial)
        return serial

    def _apply_dump(self, batch: Batch, rows: Rows, serial: int) -> int:
        """A dump shows what lives: an ended row in it is a new life, unless its DESTROY overtook the dump.

        What events said since the dump was asked for is newer, too: then only its counters are taken.
        """
        since = batch.dump_since
        bits = self.bits[rows]
        ended, seen = bits & _ENDED != 0, bits & _END_SEEN != 0
        newer = (self.last[rows] >= since) & ~ended
        if newer.any():
            self._count(batch.take(newer), rows[newer])
        self._revive(rows[ended & ~seen])
        plain = ~newer & ~(ended & seen)
        self._update(batch.take(plain), rows[plain])
        again = np.flatnonzero(ended & seen & (self.end[rows] < since))
        return self._replace(batch.take(again), rows[again], serial)

    def _born_again(self, event: U8, rows: Rows) -> NDArray[np.bool_]:
        """Which events belong to rows that have a second NEW, in this batch or since an earlier one."""
        again = np.zeros(len(rows), np.bool_)
        new = np.flatnonzero(event == NEW)
        if not len(new):
            return again
        self._scratch[rows[new[::-1]]] = new[::-1]
        twice = self._scratch[rows[new]] != new
        twice |= self.bits[rows[new]] & (_BORN | _ENDED) != 0
        dead = np.flatnonzero(event == DESTROY)
        if len(dead):  # a DESTROY that stands before the NEW of the same row
            self._scratch[rows[dead[::-1]]] = dead[::-1]
            at = self._scratch[rows[new]].clip(0, len(rows) - 1)
            twice |= (rows[at] == rows[new]) & (event[at] == DESTROY) & (at < new)
        if twice.any():
            again = np.isin(rows, rows[new[twice]])
        return again

    def _replace(self, batch: Batch, rows: Rows, serial: int) -> int:
        """A new life for each of `rows`: the old row is left as it is, and its slot leads to a new row."""
        if not len(rows):
            return serial
        self._reserve(len(rows))
        old, first = np.unique(rows, return_index=True)
        slots = self._slots_of(old)
        new = self._append(batch, first, serial)
        self.bits[old] |= _REPLACED
        self._slots[slots] = new
        self._update(batch, new[np.searchsorted(old, rows)])
        return serial + len(new)

    def _revive(self, rows: Rows) -> None:
        self.bits[rows] &= 0xFF ^ _ENDED
        self.end[rows] = -1

    def _update(self, batch: Batch, rows: Rows) -> None:
        """Assigns in order of arrival: where a row stands twice, numpy keeps the last."""
        if not len(rows):
            return
        self.last[rows] = batch.time
        self.status[rows] = batch.status
        self.mark[rows] = batch.mark
        known = batch.tcp_state != NO_STATE
        if known.all():
            self.tcp_state[rows] = batch.tcp_state
        elif known.any():
            self.tcp_state[rows[known]] = batch.tcp_state[known]
        self.bits[rows] |= _DIRTY
        new, dead = batch.event == NEW, batch.event == DESTROY
        if new.any():
            self.start[rows[new]] = batch.time
            self.bits[rows[new]] |= _BORN
        self._count(batch, rows)
        if dead.any():
            self._finish(batch, rows, dead)

    def _finish(self, batch: Batch, rows: Rows, dead: NDArray[np.bool_]) -> None:
        ended = rows[dead]
        self.end[ended] = batch.time
        self.bits[ended] |= _ENDED | _END_SEEN | _DIRTY
        if batch.stop is not None:
            stop = batch.stop[dead]
            known = (stop != UNKNOWN) & (stop != 0)
            self.end[ended[known]] = (stop[known] // np.uint64(1000)).astype(np.int64)

    def _count(self, batch: Batch, rows: Rows) -> None:
        for name in COUNTERS:
            values = getattr(batch, name)
            if values is None:
                continue
            if name not in self.counters:
                self.counters[name] = np.full(len(self.ports), UNKNOWN, np.uint64)
            known = values != UNKNOWN
            self.counters[name][rows[known]] = values[known]
        if batch.start is not None:
            known = (batch.start != UNKNOWN) & (batch.start != 0)
            self.start[rows[known]] = (batch.start[known] // np.uint64(1000)).astype(np.int64)

    def conclude_ended(self, since: int, time: int) -> int:
        bits = self.bits[: self.size]
        gone = (bits & _ENDED == 0) & (self.last[: self.size] < since)
        bits[gone] |= _ENDED | _DIRTY
        self.end[: self.size][gone] = time
        return int(np.count_nonzero(gone))

    # --- the index ---------------------------------------------------------------------------------------------

    def _hash(self, addresses: tuple[U64, ...], ports: U64, ids: U32) -> U64:
        h: U64 = ports * self._factors[0]
        words: list[NDArray[Any]] = [*addresses, ids]
        for word, factor in zip(words, self._factors[1:], strict=True):
            h ^= h >> np.uint64(29)
            h += word
            h *= factor
        h ^= h >> np.uint64(32)
        return h

    def _probe(self, addresses: tuple[U64, ...], ports: U64, ids: U32) -> tuple[Rows, Rows]:
        """Where to look for a flow: the first slot, and the odd step to the next ones (double hashing)."""
        h = self._hash(addresses, ports, ids)
        mask = np.uint64(len(self._slots) - 1)
        return (h & mask).astype(np.intp), ((h >> np.uint64(40)) | np.uint64(1)).astype(np.intp)

    def _place(self, batch: Batch, serial: int) -> tuple[Rows, NDArray[np.bool_], int]:
        """The row of each event. The first event of a flow not known yet makes its row, and is taken in with that.

        Returns (rows, which events made a row, next serial).
        """
        self._reserve(len(batch))
        mask = len(self._slots) - 1
        slot, step = self._probe(batch.addresses, batch.ports, batch.id)
        rows, first, home = np.empty(len(batch), np.intp), np.zeros(len(batch), np.bool_), slot.copy()
        pending = np.arange(len(batch))
        while len(pending):
            at = self._slots.take(slot)
            empty = np.flatnonzero(at == _FREE)
            missed = np.ones(len(pending), np.bool_)
            if len(empty):
                # Several events may want one slot: they claim it in turn, the first one last, and so it gets it.
                claims = (_CLAIM - pending[empty]).astype(np.int32)
                self._slots[slot[empty[::-1]]] = claims[::-1]
                at = self._slots.take(slot)
                won = empty[at.take(empty) == claims]
                first[pending[won]], home[pending[won]] = True, slot[won]
                missed[won] = False
            looked = np.flatnonzero(missed)
            found = looked[self._same(at[looked], batch, pending[looked])]
            rows[pending[found]] = at[found]
            missed[found] = False
            pending, slot, step = pending[missed], slot[missed], step[missed]
            slot = (slot + step) & mask
        if first.any():
            events = np.flatnonzero(first)
            made = self._append(batch, events, serial)
            self._slots[home[events]] = rows[events] = made
            claimed = np.flatnonzero(rows < 0)
            rows[claimed] = rows[_CLAIM - rows[claimed]]
            serial += len(made)
        return rows, first, serial

    def _same(self, at: NDArray[np.int32], batch: Batch, events: Rows) -> NDArray[np.bool_]:
        """Whether each event is of the flow that its slot leads to: a row, or the claim of another event."""
        claimed = at < 0
        rows = np.where(claimed, 0, at)
        same: NDArray[np.bool_] = self.ports.take(rows) == batch.ports.take(events)
        for mine, theirs in zip(self.addresses, batch.addresses, strict=True):
            same &= mine.take(rows) == theirs.take(events)
        same &= self.id.take(rows) == batch.id.take(events)
        if claimed.any():
            one, other = events[claimed], _CLAIM - at[claimed]
            equal: NDArray[np.bool_] = batch.ports.take(one) == batch.ports.take(other)
            for theirs in batch.addresses:
                equal &= theirs.take(one) == theirs.take(other)
            equal &= batch.id.take(one) == batch.id.take(other)
            same[claimed] = equal
        return same

    def _slots_of(self, rows: Rows) -> Rows:
        """The slots that lead to these rows, which are all in the index."""
        mask = len(self._slots) - 1
        slot, step = self._probe(tuple(a[rows] for a in self.addresses), self.ports[rows], self.id[rows])
        while (away := self._slots[slot] != rows).any():
            slot[away] = (slot[away] + step[away]) & mask
        return slot

    def _append(self, batch: Batch, events: Rows, serial: int) -> Rows:
        """New rows at the end, with all that these events say, which are of different flows."""
        n, start = len(events), self.size
        self._reserve(n)
        self.size += n
        here = slice(start, self.size)
        for mine, theirs in zip(self.addresses, batch.addresses, strict=True):
            mine[here] = theirs.take(events)
        for mine, theirs in zip(self.reply_addresses, batch.reply_addresses, strict=True):
            mine[here] = theirs.take(events)
        for name in ("ports", "reply_ports", "id", "status", "mark", "tcp_state"):
            getattr(self, name)[here] = getattr(batch, name).take(events)
        self.first[here] = self.last[here] = batch.time
        self.serial[here] = np.arange(serial, serial + n)
        self.made += np.bincount((self.ports[here] >> np.uint64(8)).astype(np.uint8), minlength=256)
        for column in self.counters.values():
            column[here] = UNKNOWN
        event, rows = batch.event.take(events), np.arange(start, self.size)
        self.start[here] = np.where(event == NEW, batch.time, -1)
        self.end[here] = -1
        self.bits[here] = np.where(event == NEW, _DIRTY | _BORN, _DIRTY)
        if batch.packets is not None or batch.start is not None:
            self._count(batch.take(events), rows)
        if (dead := event == DESTROY).any():
            self._finish(batch.take(events), rows, dead)
        return rows

    def _per_row(self) -> list[tuple[Any, str | int]]:
        """Where every column is kept: (container, key)."""
        names = ("ports", "reply_ports", "id", "status", "mark", "tcp_state", "bits", "serial", "first", "last",
                 "start", "end")  # fmt: skip
        places: list[tuple[Any, str | int]] = [(self.__dict__, name) for name in names]
        places += [(self.counters, name) for name in self.counters]
        for words in (self.addresses, self.reply_addresses):
            places += [(words, i) for i in range(len(words))]
        return places

    def _reserve(self, more: int) -> None:
        if self.size + more <= len(self.ports):
            return
        capacity = len(self.ports) * 2
        while capacity < 2 * more + self.size:
            capacity *= 2
        self._rebuild(slice(self.size), capacity)

    def _rebuild(self, keep: Rows | slice, capacity: int) -> None:
        """Moves the rows `keep` to columns of another capacity, a column at a time, and makes the index anew."""
        for container, key in self._per_row():
            kept = container[key][keep]
            column = np.empty(capacity, kept.dtype)
            column[: len(kept)] = kept
            container[key] = column
        self.size = len(kept)
        self._scratch = np.empty(capacity, np.int32)
        self._slots = np.full(capacity * 2, _FREE, np.int32)
        mask = len(self._slots) - 1
        rows = np.flatnonzero(self.bits[: self.size] & _REPLACED == 0).astype(np.int32)
        slot, step = self._probe(tuple(a[rows] for a in self.addresses), self.ports[rows], self.id[rows])
        while len(rows):
            empty = np.flatnonzero(self._slots.take(slot) == _FREE)
            self._slots[slot[empty]] = rows[empty]
            lost = self._slots.take(slot) != rows
            rows, slot, step = rows[lost], slot[lost], step[lost]
            slot = (slot + step) & mask

    # --- giving out --------------------------------------------------------------------------------------------

    def changed(self) -> Rows:
        return np.flatnonzero(self.bits[: self.size] & _DIRTY)

    def drop_finished(self) -> int:
        done = self.bits[: self.size] & (_ENDED | _DIRTY) == _ENDED
        dropped = int(np.count_nonzero(done))
        if dropped:
            capacity = len(self.ports)
            while capacity > 1 << 16 and (self.size - dropped) * 4 < capacity:
                capacity //= 2
            self._rebuild(np.flatnonzero(~done), capacity)
        return dropped

    def directions(self, proto: int) -> tuple[tuple[U64, ...], U32]:
        rows = np.flatnonzero((self.ports[: self.size] >> np.uint64(8)).astype(np.uint8) == proto)
        addresses = [a[rows] for a in self.addresses]
        ports = (self.ports[rows] >> np.uint64(32)).astype(np.uint32)
        if proto in (1, 58):
            return tuple(addresses), ports & np.uint32(0xFFFF)
        back = rows[self.status[rows] & IPS_SEEN_REPLY != 0]
        addresses = [np.concatenate([a, r[back]]) for a, r in zip(addresses, self.reply_addresses, strict=True)]
        back_ports = (self.reply_ports[back] >> np.uint64(32)).astype(np.uint32)
        return tuple(addresses), np.concatenate([ports, back_ports])

    def columns(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Raw flow columns: what a recording's writer takes. Times in µs, -1 for null; see recording.schema."""
        out: dict[str, NDArray[Any]] = {
            "flow": self.serial[rows],
            "family": np.full(len(rows), self.version, np.uint8),
            "proto": (self.ports[rows] >> np.uint64(8)).astype(np.uint8),
            "zone": (self.ports[rows] >> np.uint64(16)).astype(np.uint16),
        }
        for prefix, words, ports in (
            ("", self.addresses, self.ports),
            ("reply_", self.reply_addresses, self.reply_ports),
        ):
            out |= _address_columns(prefix, [word[rows] for word in words])
            out[prefix + "sport"] = (ports[rows] >> np.uint64(48)).astype(np.uint16)
            out[prefix + "dport"] = (ports[rows] >> np.uint64(32)).astype(np.uint16)
        for name in ("id", "status", "mark", "tcp_state", "start", "end"):
            out[name] = getattr(self, name)[rows]
        for name in COUNTERS:
            column = self.counters.get(name)
            out[name] = np.full(len(rows), UNKNOWN, np.uint64) if column is None else column[rows]
        out["first_seen"], out["last_seen"] = self.first[rows], self.last[rows]
        out["end_seen"] = self.bits[rows] & _END_SEEN != 0
        return out


def _address_columns(prefix: str, words: list[U64]) -> dict[str, U64]:
    names = [prefix + name for name in ("src_hi", "src_lo", "dst_hi", "dst_lo")]
    if len(words) == 4:
        return dict(zip(names, words, strict=True))
    zero, low = np.zeros(len(words[0]), np.uint64), np.uint64(0xFFFFFFFF)
    return dict(zip(names, (zero, words[0] >> np.uint64(32), zero, words[0] & low), strict=True))


def _lives(event: U8, rows: Rows, again: NDArray[np.bool_], bits: U8) -> Rows:
    """To which life of its row each event belongs: 0 for the row as it is, 1 for the next, and so on.

    Only the events marked `again` are looked at one by one; there are few, as a port has to be used twice.
    """
    lives = np.zeros(len(event), np.intp)
    life: dict[int, int] = {}
    over: dict[int, bool] = {}
    for i in np.flatnonzero(again).tolist():
        row = int(rows[i])
        if row not in life:
            life[row], over[row] = 0, bool(bits[row] & (_BORN | _ENDED))
        if event[i] == NEW:
            life[row] += over[row]
            over[row] = True
        elif event[i] == DESTROY:
            over[row] = True
        lives[i] = life[row]
    return lives
