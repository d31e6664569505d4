"""Which rules are in force when: rulesets read at the start and whenever they change, each for its stretch of time.

nf_tables announces every change on the socket on which traces come, so that order alone tells which ruleset a trace
message belongs to: an epoch begins with each announcement. Legacy tables announce nothing: they are looked at before
and after their logs are read, and their epochs begin when a difference was seen.
"""

from __future__ import annotations

import threading
import time
from collections import deque

from conntracker.assembly import OWN_TABLE
from conntracker.clock import now
from conntracker.model import DecodeError
from conntracker.rules.snapshot import Snapshot, Texts, effect
from conntracker.sources.netns import Namespace
from conntracker.sources.rulesets import LegacyWatch, generation, read_texts
from conntracker.traces import Rulesets
from conntracker.wire import nflog
from conntracker.wire.netlink import attributes
from conntracker.wire.nftrace import CHANGES, FAMILIES, MADE_ANEW, MESSAGE_NEWGEN, Place

_FLAGS, _OWNER = 2, 0x2  # NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER
_NAME, _GEN_ID = 1, 1  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE and NFTA_RULE_TABLE are all 1; NFTA_GEN_ID (nf_tables.h)
_LOOK = 0.05  # seconds between two looks at legacy rules, at least, while none of them is logged
_QUICK = 0.05  # seconds: a reading that takes less is waited for
_READINGS = 3  # of these, in a row
_BUSY = 3  # changes while the rules are read, by the rate at which they come
_GIVEN_UP = 20.0  # seconds after which one that was too busy to be read is tried again
_LONGEST = 20.0  # seconds that a reading is waited for, where it must be
_REST = 3  # times as long as a reading took, before the next one: a host that reloads all the time


class RuleWatch:
    """The rulesets of the network namespace in which it was made. To be used inside of it.

    known      the snapshots, by epoch
    epoch      of nf_tables' rules, counted by the announcements that were fed
    legacy     of the legacy rules
    changes    how often other rules were read than before
    read       what was read since the caller last emptied it: (when, texts)
    """

    def __init__(self) -> None:
        self.known = Rulesets()
        self.epoch = self.legacy = 0
        self.read: list[tuple[int, Texts]] = []
        self.snapshot: Snapshot | None = None
        self._last: Texts | None = None
        self._begins: list[tuple[int, int]] = []  # (nft generation, the epoch that began with it)
        self._newest = 0  # generation announced last
        self.own: set[tuple[str, str]] = set()
        self.changes = 0
        self._ahead: tuple[int, Snapshot] | None = None  # read, and newer than what was announced to us so far
        self._reading: _Reading | None = None
        self._legacy_read, self._seconds = 0, 0.0  # epoch of legacy rules and duration of the last reading
        self._announcements: deque[float] = deque(maxlen=1000)
        self._gap = False
        self._changing: dict[tuple[str, str], bool] = {}  # (family, table): whether it was made anew
        self._stale = True
        self._next = 0.0
        self._legacy_begins: deque[float] = deque(maxlen=1000)  # when changes were seen
        self._next_look = self._next_dear_look = 0.0
        self._watch = LegacyWatch()

    def close(self) -> None:
        """Lets go of its sockets."""
        self._watch.close()

    def announced(self, kind: int, body: bytes) -> bool:
        """A message of nf_tables about its rules; returns whether a new epoch begins. Our own changes are none."""
        try:
            if kind in CHANGES:
                self._note(kind, body)
            elif kind == MESSAGE_NEWGEN:
                self._newest = _number(body)
                self._announcements.append(time.monotonic())
                if self._changing:
                    self._stale = True
                    self.epoch += 1
                    self.known.changed(self.epoch, self._changing)
                    self._changing = {}
                    self._begins = [*self._begins[-1000:], (self._newest, self.epoch)]
                    return True
        except DecodeError:
            self._stale = True
        return False

    def _note(self, kind: int, body: bytes) -> None:
        family, table = FAMILIES.get(body[0] if body else 0, ""), _text(body)
        if kind in MADE_ANEW and OWN_TABLE.fullmatch(table) and _is_owned(body):
            self.own.add((family, table))
        elif (family, table) not in self.own:
            anew = kind in MADE_ANEW or self._changing.get((family, table), False)
            self._changing[family, table] = anew

    def is_own(self, family: str, table: str) -> bool:
        """Whether a table is ours or another instance's: of our names, and with an owner."""
        return (family, table) in self.own

    def lost(self) -> None:
        """Messages were lost, announcements maybe too: what is fed until nothing more waits is of no known rules.

        A new epoch begins, and another one with the next `drained`.
        """
        self._gap, self._stale, self._ahead = True, True, None
        self._forget()

    def drained(self) -> bool:
        """Nothing more waits. Returns whether a new epoch begins, because messages had been lost."""
        if not self._gap:
            return False
        self._gap, self._newest = False, generation() or self._newest
        self._forget()
        self._begins.append((self._newest, self.epoch))
        return True

    def _forget(self) -> None:
        self.epoch += 1
        self.known.forget(self.epoch)

    def look_at_legacy(self, logged: bool) -> bool:
        """Looks whether legacy rules changed; returns whether it did. The nearer looks are, the less stays uncertain.

        A look compares all rules, which takes 14 ms for 10,000 of them: at most a twentieth of the time is spent on it,
        and a fifth while some are logged.
        """
        began = time.monotonic()
        if began < self._next_look and not (logged and began >= self._next_dear_look):
            return False
        if self._watch.changed():
            self._legacy_changed()
            self._stale = True
        ended = time.monotonic()
        self._next_look = ended + max(_LOOK, 20 * (ended - began))
        self._next_dear_look = ended + 4 * (ended - began)
        return True

    def _legacy_changed(self) -> None:
        self.legacy += 1
        self._legacy_begins.append(time.monotonic())

    def legacy_at(self, moment: float) -> int:
        """The earliest epoch that a log may be of that was read at a moment (time.monotonic)."""
        # The kernel may have kept it for the time that nflog.bind_requests asks for.
        recent = [began for began in self._legacy_begins if began > moment - nflog.LONGEST_WAIT]
        return self.legacy - len(recent)

    @property
    def is_current(self) -> bool:
        """Whether the rules were read after the last change that is known of."""
        return not self._stale and self._ahead is None and self._reading is None

    def refresh(self, at_once: bool = False) -> bool:
        """Reads the rules if they changed, unless that was just done. Returns whether they have been read.

        Reading goes on in a thread: libnftables begins anew as long as rules change under it, which may be for ever. It
        is waited for if the last one was quick.
        at_once   wait for it anyhow
        """
        self._place_what_was_ahead()
        took = False
        for _ in range(_READINGS):  # legacy tables are replaced one after the other
            if not self._read(at_once):
                break
            took = True
            if self.legacy == self._legacy_read:
                break
        return took

    def _read(self, at_once: bool) -> bool:
        if self._reading is None:
            due = at_once or time.monotonic() >= self._next or self.legacy != self._legacy_read
            if not self._stale or self._gap or not due:
                return False
            self._stale = False
            if self._watch.changed():
                self._legacy_changed()
            self._reading = _Reading(self.legacy, self._is_busy(at_once))
        if not self._reading.wait(_LONGEST if at_once else _QUICK if self._seconds < _QUICK else 0):
            return False
        reading, self._reading = self._reading, None
        if self._watch.changed():
            self._legacy_changed()
        self._legacy_read, self._seconds = reading.legacy, reading.seconds
        if self.legacy != reading.legacy or reading.texts is None:
            self._stale = True
        self._next = time.monotonic() + _REST * reading.seconds
        if reading.texts is None:
            return False
        if reading.busy and reading.texts.nft is None:
            self._stale, self._next = True, time.monotonic() + _GIVEN_UP
        self._take(reading.texts)
        return True

    def _is_busy(self, at_once: bool) -> bool:
        """Whether something changes so often that it would while the rules are read."""
        if at_once:  # nothing was announced so far, or not lately
            before = generation()
            time.sleep(_LOOK)
            return generation() != before
        recent = sum(one > time.monotonic() - 1 for one in self._announcements)
        return recent * self._seconds > _BUSY

    def _take(self, texts: Texts) -> None:
        self.snapshot = Snapshot.parse(texts)
        self.own |= texts.own
        self.known.put(self.snapshot, None, None if self._stale else self.legacy)
        if texts.nft is None:
            self.known.put(self.snapshot, None if self._stale else self.epoch, None)
        elif texts.generation is None:
            self._stale = True
        else:
            self._newest = self._newest or texts.generation
            self._ahead = texts.generation, self.snapshot
            self._place_what_was_ahead()
        if texts != self._last:
            self._last = texts
            self.changes += 1
            self.read.append((now(), texts))

    def _place_what_was_ahead(self) -> None:
        """A snapshot may be of rules whose announcement still waits to be read: only then its epoch is known."""
        if self._ahead is not None and self._ahead[0] <= self._newest:
            generation, snapshot = self._ahead
            epoch = max((epoch for began, epoch in self._begins if began <= generation), default=0)
            self.known.put(snapshot, epoch, None)
            self._ahead = None

    def hook_of(self, place: Place) -> str | None:
        """The hook of a base chain in the present ruleset."""
        chain = None if self.snapshot is None else self.snapshot.nft_chain(place.family, place.table, place.chain)
        return None if chain is None else chain.hook

    def verdict(self, message: nflog.LogMessage) -> str | None:
        """What the present ruleset says that a logged legacy rule or policy did."""
        chain = None
        if self.snapshot is not None:
            chain = self.snapshot.legacy_chain(message.family, message.table, message.chain)
        if chain is None:
            return None
        if message.number > len(chain.rules):
            return chain.policy if message.type == "policy" else "return"
        return effect(chain.rules[message.number - 1])[0]


class _Reading:
    """The rulesets, read in a thread, in the network namespace of the calling one.

    legacy    the epoch of legacy rules when it began
    busy      whether something changed all the time
    texts     what was read; None before it is done, and if it failed
    seconds   how long it took
    """

    def __init__(self, legacy: int, busy: bool) -> None:
        self.legacy, self.busy = legacy, busy
        self.texts: Texts | None = None
        self.seconds = 0.0
        self._namespace = Namespace.current()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        began = time.monotonic()
        try:
            with self._namespace:
                self.texts = read_texts(self.busy)
        finally:
            self.seconds = time.monotonic() - began
            self._namespace.close()

    def wait(self, seconds: float) -> bool:
        """Whether it is done, after waiting for at most so long."""
        self._thread.join(seconds)
        return not self._thread.is_alive()


def _text(body: bytes) -> str:
    for kind, start, length in attributes(body, 4, len(body)):
        if kind == _NAME:
            return body[start : start + length].rstrip(b"\0").decode("utf-8", "surrogateescape")
    return ""


def _is_owned(body: bytes) -> bool:
    for kind, start, length in attributes(body, 4, len(body)):
        if kind == _FLAGS:
            return bool(int.from_bytes(body[start : start + length], "big") & _OWNER)
    return False


def _number(body: bytes) -> int:
    for kind, start, length in attributes(body, 4, len(body)):
        if kind == _GEN_ID:
            return int.from_bytes(body[start : start + length], "big")
    return 0
