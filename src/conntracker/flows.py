"""The flow table: batches of conntrack messages in, one row a flow out.

A flow is one life of one conntrack entry: its original tuple, zone and kernel id, from the first sight of it to its
DESTROY. The same tuple seen again after that is a new flow. All is done to whole batches, column by column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from conntracker.index import KeyIndex, Rows
from conntracker.model import (
    ADDRESS_COLUMNS,
    COUNTERS,
    DESTROY,
    DUMP,
    IPS_HW_OFFLOAD,
    IPS_OFFLOAD,
    IPS_SEEN_REPLY,
    NEW,
    NO_STATE,
    U8,
    U32,
    U64,
    UNKNOWN,
    Batch,
    unpack_addresses,
)

# Once set, the kernel clears these bits of the status again without an event.
_OFFLOADED = np.uint32(IPS_OFFLOAD | IPS_HW_OFFLOAD)

# Bits of a row.
_BORN, _ENDED, _END_SEEN, _DIRTY, _REPLACED = 1, 2, 4, 8, 16


@dataclass(frozen=True, slots=True)
class Ends:
    """The two ends of flows of one IP version, as columns of equal length.

    source, destination, reply_source, reply_destination   addresses as two words, IPv4 as ::ffff:a.b.c.d
    sport, dport, reply_sport, reply_dport   uint64; for ICMP the echo id, and type << 8 | code
    first, last     from when to when a flow was there, in microseconds since the epoch; first is 0 if it was there
                    before anybody looked, last in the future while it is alive
    seen, touched   when it was seen first, and when the kernel last told of it
    serial          in which order they were made
    translated      whether NAT changed anything
    rows            which rows of the table they are
    owner, peer_owner   the numbers that are known
    """

    version: int
    proto: U8
    source: tuple[U64, U64]
    destination: tuple[U64, U64]
    reply_source: tuple[U64, U64]
    reply_destination: tuple[U64, U64]
    sport: U64
    dport: U64
    reply_sport: U64
    reply_dport: U64
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    seen: NDArray[np.int64]
    touched: NDArray[np.int64]
    serial: U64
    translated: NDArray[np.bool_]
    status: U32
    tcp_state: U8
    rows: Rows
    owner: U32
    peer_owner: U32

    def take(self, which: Rows) -> Ends:
        """Some of them."""

        def pair(words: tuple[U64, U64]) -> tuple[U64, U64]:
            return words[0][which], words[1][which]

        return Ends(
            self.version, self.proto[which], pair(self.source), pair(self.destination), pair(self.reply_source),
            pair(self.reply_destination), self.sport[which], self.dport[which], self.reply_sport[which],
            self.reply_dport[which], self.first[which], self.last[which], self.seen[which], self.touched[which],
            self.serial[which], self.translated[which],
            self.status[which], self.tcp_state[which], self.rows[which], self.owner[which], self.peer_owner[which],
        )  # fmt: skip


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

    @overload
    def directions(self, family: int, proto: int) -> tuple[tuple[U64, ...], U32]: ...

    @overload
    def directions(self, family: int, proto: int, owners: Literal[True]) -> tuple[tuple[U64, ...], U32, U32]: ...

    def directions(
        self, family: int, proto: int, owners: bool = False
    ) -> tuple[tuple[U64, ...], U32] | tuple[tuple[U64, ...], U32, U32]:
        """Every direction of the flows of a protocol: the original one, and the reply once it was seen (not of ICMP).

        Returns (address words as in model, ports: uint32 source << 16 | destination, or type << 8 | code of ICMP); with
        `owners` also the number of who sends (uint32, 0: not known), and what is older stands first then.
        """
        return self.families[family].directions(proto, owners)

    def ends(self, since: int) -> list[Ends]:
        """Those of the flows that had not ended at `since`, for each IP version that has any."""
        return [ends for family in self.families.values() if len((ends := family.ends(since)).rows)]

    def set_owners(self, ends: Ends, owner: U32, peer_owner: U32) -> None:
        """The numbers of the owners of the two ends; flows that have others by that are written again."""
        self.families[ends.version].set_owners(ends.rows, owner, peer_owner)

    def owner_numbers(self) -> U32:
        """The distinct numbers of owners in use."""
        columns = [c[: f.size] for f in self.families.values() for c in (f.owner, f.peer_owner)]
        return np.unique(np.concatenate(columns))

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
        self.version = version
        self.index = KeyIndex(["u8"] * words + ["u8", "u4"], capacity)  # addresses, ports, id
        self.reply_addresses = [np.empty(capacity, np.uint64) for _ in range(words)]
        self.reply_ports, self.serial = np.empty(capacity, np.uint64), np.empty(capacity, np.uint64)
        self.status, self.mark = np.empty(capacity, np.uint32), np.empty(capacity, np.uint32)
        self.owner, self.peer_owner = np.empty(capacity, np.uint32), np.empty(capacity, np.uint32)
        self.tcp_state, self.bits = np.empty(capacity, np.uint8), np.empty(capacity, np.uint8)
        self.first, self.last, self.start, self.end = (np.empty(capacity, np.int64) for _ in range(4))
        self.counters: dict[str, U64] = {}
        self.made = np.zeros(256, np.int64)
        self._scratch = np.empty(capacity, np.int32)

    @property
    def size(self) -> int:
        return self.index.size

    @property
    def addresses(self) -> list[U64]:
        return self.index.columns[:-2]

    @property
    def ports(self) -> U64:
        return self.index.columns[-2]

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
        """Which events belong to rows that have a NEW after their DESTROY, in this batch or an earlier one.

        A second NEW of a living row is no second life: while some listener wants reliable delivery and does not read,
        the kernel sends everybody the events it could not deliver to that one again (nf_conntrack_ecache.c).
        """
        again = np.zeros(len(rows), np.bool_)
        new = np.flatnonzero(event == NEW)
        if not len(new):
            return again
        reborn = self.bits[rows[new]] & _ENDED != 0
        dead = np.flatnonzero(event == DESTROY)
        if len(dead):  # a DESTROY that stands before the NEW of the same row
            self._scratch[rows[dead[::-1]]] = dead[::-1]
            at = self._scratch[rows[new]].clip(0, len(rows) - 1)
            reborn |= (rows[at] == rows[new]) & (event[at] == DESTROY) & (at < new)
        if reborn.any():
            again = np.isin(rows, rows[new[reborn]])
        return again

    def _place(self, batch: Batch, serial: int) -> tuple[Rows, NDArray[np.bool_], int]:
        """The row of each event. The first event of a flow not known yet makes its row, and is taken in with that.

        Returns (rows, which events made a row, next serial).
        """
        self._reserve(len(batch))
        rows, first = self.index.place([*batch.addresses, batch.ports, batch.id])
        makers = np.flatnonzero(first)
        if len(makers):
            self._fill(batch, makers, rows[makers], serial)
        return rows, first, serial + len(makers)

    def _replace(self, batch: Batch, rows: Rows, serial: int) -> int:
        """A new life for each of `rows`: the old row is left as it is, and its key leads to a new row."""
        if not len(rows):
            return serial
        self._reserve(len(rows))
        old, first = np.unique(rows, return_index=True)
        new = self.index.replace(old)
        self.bits[old] |= _REPLACED
        self._fill(batch, first, new, serial)
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
        self.status[rows] = batch.status | (self.status[rows] & _OFFLOADED)
        self.mark[rows] = batch.mark
        known = batch.tcp_state != NO_STATE
        if known.all():
            self.tcp_state[rows] = batch.tcp_state
        elif known.any():
            self.tcp_state[rows[known]] = batch.tcp_state[known]
        self.bits[rows] |= _DIRTY
        new, dead = batch.event == NEW, batch.event == DESTROY
        if new.any():
            born = rows[new & (self.bits[rows] & _BORN == 0)]
            self.start[born] = batch.time
            self.bits[born] |= _BORN
        self._count(batch, rows)
        if dead.any():
            self._finish(batch, rows, dead)

    def _finish(self, batch: Batch, rows: Rows, dead: NDArray[np.bool_]) -> None:
        dead = dead & (self.bits[rows] & (_ENDED | _END_SEEN) != _ENDED | _END_SEEN)  # the first one counts
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
                self.counters[name] = np.full(self.index.capacity, UNKNOWN, np.uint64)
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

    # --- rows ---------------------------------------------------------------------------------------------------

    def _fill(self, batch: Batch, events: Rows, rows: Rows, serial: int) -> None:
        """All that these events say, each the first of its row; the rows are the newest ones, in a sequence."""
        here = slice(int(rows[0]), int(rows[-1]) + 1)
        for mine, theirs in zip(self.reply_addresses, batch.reply_addresses, strict=True):
            mine[here] = theirs.take(events)
        for name in ("reply_ports", "status", "mark", "tcp_state"):
            getattr(self, name)[here] = getattr(batch, name).take(events)
        self.first[here] = self.last[here] = batch.time
        self.serial[here] = np.arange(serial, serial + len(rows))
        self.made += np.bincount((self.ports[here] >> np.uint64(8)).astype(np.uint8), minlength=256)
        for column in self.counters.values():
            column[here] = UNKNOWN
        event = batch.event.take(events)
        self.start[here] = np.where(event == NEW, batch.time, -1)
        self.end[here] = -1
        self.owner[here] = self.peer_owner[here] = 0
        self.bits[here] = np.where(event == NEW, _DIRTY | _BORN, _DIRTY)
        if batch.packets is not None or batch.start is not None:
            self._count(batch.take(events), rows)
        if (dead := event == DESTROY).any():
            self._finish(batch.take(events), rows, dead)

    def _per_row(self) -> list[tuple[Any, str | int]]:
        """Where every column but the key's is kept: (container, key)."""
        names: tuple[str, ...] = ("reply_ports", "status", "mark", "tcp_state", "bits", "serial", "owner", "peer_owner")
        names += ("first", "last", "start", "end")
        places: list[tuple[Any, str | int]] = [(self.__dict__, name) for name in names]
        places += [(self.counters, name) for name in self.counters]
        places += [(self.reply_addresses, i) for i in range(len(self.reply_addresses))]
        return places

    def _reserve(self, more: int) -> None:
        if self.size + more <= self.index.capacity:
            return
        capacity = self.index.capacity * 2
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
        self._scratch = np.empty(capacity, np.int32)
        self.index.rebuild(keep, self.bits[: len(kept)] & _REPLACED == 0, capacity)

    # --- giving out --------------------------------------------------------------------------------------------

    def changed(self) -> Rows:
        return np.flatnonzero(self.bits[: self.size] & _DIRTY)

    def drop_finished(self) -> int:
        done = self.bits[: self.size] & (_ENDED | _DIRTY) == _ENDED
        dropped = int(np.count_nonzero(done))
        if dropped:
            capacity = self.index.capacity
            while capacity > 1 << 16 and (self.size - dropped) * 4 < capacity:
                capacity //= 2
            self._rebuild(np.flatnonzero(~done), capacity)
        return dropped

    def directions(self, proto: int, owners: bool) -> tuple[tuple[U64, ...], U32] | tuple[tuple[U64, ...], U32, U32]:
        rows = np.flatnonzero((self.ports[: self.size] >> np.uint64(8)).astype(np.uint8) == proto)
        addresses = [a[rows] for a in self.addresses]
        ports = (self.ports[rows] >> np.uint64(32)).astype(np.uint32)
        if proto in (1, 58):
            ports &= np.uint32(0xFFFF)
            return (tuple(addresses), ports, self.owner[rows]) if owners else (tuple(addresses), ports)
        back = rows[self.status[rows] & IPS_SEEN_REPLY != 0]
        addresses = [np.concatenate([a, r[back]]) for a, r in zip(addresses, self.reply_addresses, strict=True)]
        ports = np.concatenate([ports, (self.reply_ports[back] >> np.uint64(32)).astype(np.uint32)])
        if not owners:
            return tuple(addresses), ports
        order = np.argsort(np.concatenate([rows, back]), kind="stable")  # older flows first
        senders = np.concatenate([self.owner[rows], self.peer_owner[back]])
        return tuple(address.take(order) for address in addresses), ports.take(order), senders.take(order)

    def ends(self, since: int) -> Ends:
        rows = np.flatnonzero((self.bits[: self.size] & _ENDED == 0) | (self.end[: self.size] >= since))
        halves = [unpack_addresses([word[rows] for word in words]) for words in (self.addresses, self.reply_addresses)]
        if self.version == 4:
            mapped = np.uint64(0xFFFF << 32)
            halves = [(a, b | mapped, c, d | mapped) for a, b, c, d in halves]
        (a, b, c, d), (e, f, g, h) = halves
        ports, reply_ports, low = self.ports[rows], self.reply_ports[rows], np.uint64(0xFFFF)
        return Ends(
            self.version, (ports >> np.uint64(8)).astype(np.uint8), (a, b), (c, d), (e, f), (g, h),
            ports >> np.uint64(48), ports >> np.uint64(32) & low,
            reply_ports >> np.uint64(48), reply_ports >> np.uint64(32) & low,
            self.start[rows].clip(0),
            np.where(self.bits[rows] & _ENDED == 0, 1 << 62, self.end[rows]),
            self.first[rows],
            self.last[rows],
            self.serial[rows],
            (a != g) | (b != h) | (c != e) | (d != f) | (ports >> np.uint64(48) != reply_ports >> np.uint64(32) & low)
            | (ports >> np.uint64(32) & low != reply_ports >> np.uint64(48)),
            self.status[rows], self.tcp_state[rows], rows, self.owner[rows], self.peer_owner[rows],
        )  # fmt: skip

    def set_owners(self, rows: Rows, owner: U32, peer_owner: U32) -> None:
        changed = (self.owner[rows] != owner) | (self.peer_owner[rows] != peer_owner)
        self.owner[rows], self.peer_owner[rows] = owner, peer_owner
        self.bits[rows[changed]] |= _DIRTY

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
            halves = unpack_addresses([word[rows] for word in words])
            out |= dict(zip((prefix + name for name in ADDRESS_COLUMNS), halves, strict=True))
            out[prefix + "sport"] = (ports[rows] >> np.uint64(48)).astype(np.uint16)
            out[prefix + "dport"] = (ports[rows] >> np.uint64(32)).astype(np.uint16)
        for name in ("status", "mark", "tcp_state", "start", "end", "owner", "peer_owner"):
            out[name] = getattr(self, name)[rows]
        out["id"] = self.index.columns[-1][rows]
        for name in COUNTERS:
            column = self.counters.get(name)
            out[name] = np.full(len(rows), UNKNOWN, np.uint64) if column is None else column[rows]
        out["first_seen"], out["last_seen"] = self.first[rows], self.last[rows]
        out["end_seen"] = self.bits[rows] & _END_SEEN != 0
        return out


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
            life[row], over[row] = 0, bool(bits[row] & _ENDED)
        if event[i] == NEW:
            life[row] += over[row]
            over[row] = False
        elif event[i] == DESTROY:
            over[row] = True
        lives[i] = life[row]
    return lives
