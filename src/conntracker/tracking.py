"""Connection tracking on or off: switched on where nothing else asks for it, and off again before it can do harm.

Conntrack works in a namespace once a rule there asks for it. Where none does, a private table with one rule that no
packet ever meets asks for it; the table belongs to our socket and the kernel removes it with us. A full connection
table makes the kernel drop packets: when it was we who switched tracking on, our table goes away before that.
"""

from __future__ import annotations

from collections.abc import Callable

from conntracker.model import Loss
from conntracker.sources.conntrack import is_tracked
from conntracker.sources.fullness import Fullness, Gauge
from conntracker.sources.netns import Namespace, has_ipv6
from conntracker.sources.nftables import Nftables, OwnedTable

# A chain without a hook: the expression alone makes nft_ct take a reference on conntrack (nft_ct_get_init, nft_ct.c).
_TABLE = "chain tracking { ct state new; }"
_OURS = "table inet conntracker_"

_WARN, _CALM = 0.80, 0.70
_LEAVE, _RETURN = 0.95, 0.50
_AHEAD = 200_000  # µs: we leave, too, when the table would be full by then at the rate at which it fills
_INTERVAL = 1_000_000  # µs between two full checks
_BUSY_INTERVAL = 5_000  # µs between two looks at the fullness while our table is there
_QUIET, _PROBE_AGAIN = 10_000_000, 60_000_000  # µs without an event before a probe, and between two probes

Probe = dict[str, bool | None]


class TrackingOff(OSError):
    """Connection tracking is off and must not be switched on."""


class Tracking:
    """Keeps tracking on for a capture. Made, begun and closed in any thread; works in the namespace given.

    own   the first halves of the ports words (model) of our own probes, which are nobody's flows
    """

    def __init__(self, namespace: Namespace, gauge: Gauge, enable: bool, notice: Callable[[str], None]) -> None:
        self._namespace, self._gauge, self._enable, self._notice = namespace, gauge, enable, notice
        self._table: OwnedTable | None = None
        self._state: Probe = {}
        self.own: set[int] = set()
        self._off_since: int | None = None
        self._mute_since: int | None = None
        self._checked = self._looked = self._probed = 0
        self._share = 0.0
        self._warned = self._failing = False
        self._before = gauge.read()

    @property
    def is_ours(self) -> bool:
        """Whether our table keeps tracking on."""
        return self._table is not None

    # --- switching on ------------------------------------------------------------------------------------------

    def probe(self) -> None:
        """Finds out whether tracking is on, by a datagram over loopback: see `is_tracked`."""
        self._state = self._ask()

    def _ask(self) -> Probe:
        with self._namespace:
            families = {"IPv4": 4, "IPv6": 6} if has_ipv6() else {"IPv4": 4}
            return {name: is_tracked(family, self.own) for name, family in families.items()}

    def begin(self) -> None:
        """Switches tracking on if it is off for IPv4 or IPv6.

        Raises TrackingOff if that is forbidden, OSError or ImportError if it cannot be done.
        """
        off = [name for name, state in self._state.items() if state is False]
        if all(self._state.values()):
            self._join()
            return
        what = f"connection tracking is off for {' and '.join(off)}"
        if not off:
            unknown = [name for name, state in self._state.items() if state is None]
            what = f"cannot tell whether connection tracking is on for {' and '.join(unknown)}"
            if not self._enable:
                self._notice(f"{what} here; left as it is")
                return
        if not self._enable and any(self._state.values()):
            self._notice(f"{what} here; left as it is")
            return
        if not self._enable:
            raise TrackingOff(f"{what} here, and --no-enable forbids to switch it on")
        self._switch_on()
        self._notice(f"{what} here: switched on by {self._described()}")
        self._notice("connections that are open already are seen from their next packet on, maybe turned round")

    def _join(self) -> None:
        """Where another instance's table keeps tracking on, ours must be there when that one ends."""
        if not self._enable:
            return
        try:
            with self._namespace, Nftables() as nft:
                others = _OURS in nft.run("list tables inet")
            if others:
                self._switch_on()
        except (OSError, ImportError):
            return
        if others:
            self._notice(f"another conntracker keeps connection tracking on here: joined by {self._described()}")

    def _switch_on(self) -> None:
        with self._namespace:
            self._table = OwnedTable(_TABLE)

    def _described(self) -> str:
        name = self._table.name if self._table is not None else ""
        return f"the private table inet {name}, which goes away with this process (a ruleset saved meanwhile has it)"

    # --- looking after it --------------------------------------------------------------------------------------

    def guard(self, time: int) -> None:
        """Takes our table away when the connection table is nearly full, or will be in a moment. Cheap: call often."""
        if self._table is None or time - self._looked < _BUSY_INTERVAL:
            return
        share = self._gauge.share()
        ahead = share + max(0.0, share - self._share) * _AHEAD / max(1, time - self._looked)
        rising = self._looked and share >= _RETURN and ahead >= 1
        self._looked, self._share = time, share
        if share >= _LEAVE or rising:
            self._leave(time, share)

    def check(self, time: int, last_event: int) -> list[Loss]:
        """Looks after everything else once a second. Returns the gaps, of kind 'untracked', that have ended.

        last_event   when an event was last seen
        """
        self.guard(time)
        if time - self._checked < _INTERVAL:
            return []
        self._checked = time
        reading = self._gauge.read()
        self._warn(reading)
        gaps = self._watch_events(time)
        if self._off_since is not None:
            gaps += self._come_back(time, reading)
        elif self._table is None and min(time - last_event, time - self._probed + _QUIET - _PROBE_AGAIN) >= _QUIET:
            gaps += self._watch_others(time, last_event)
        return gaps

    def _leave(self, time: int, share: float) -> None:
        assert self._table is not None  # noqa: S101
        self._table.remove()
        self._table, self._off_since = None, time
        self._notice(
            f"the connection table is {share:.0%} full: our private table is gone, so that no packet is dropped; "
            f"flows are not seen until it is below {_RETURN:.0%}"
        )
        if any(state is True for state in self._ask().values()):
            self._off_since = None
            self._notice("other rules keep connection tracking on: nothing is missed")

    def _come_back(self, time: int, reading: Fullness) -> list[Loss]:
        assert self._off_since is not None  # noqa: S101
        if reading.share >= _RETURN:
            return []
        try:
            self._switch_on()
        except (OSError, ImportError) as error:
            if not self._failing:
                self._notice(f"connection tracking cannot be switched on again: {error}; tried every second")
            self._failing = True
            return []
        gap, self._off_since, self._failing = Loss(self._off_since, time, "untracked", None), None, False
        self._share = reading.share
        self._notice(f"the connection table is below {_RETURN:.0%} again: connection tracking switched on")
        return [gap]

    def _watch_others(self, time: int, last_event: int) -> list[Loss]:
        """After a while without events: is tracking, which others' rules had on, still on?"""
        self._probed = time
        self.own.clear()  # events of the last probe, a minute ago, have all been read
        before, self._state = self._state, self._ask()
        gone = [name for name, state in before.items() if state is True and self._state.get(name) is not True]
        if not gone:
            return []
        what = f"connection tracking went away for {' and '.join(gone)}"
        if not self._enable:
            self._notice(f"{what}, and --no-enable forbids to switch it on")
            self._off_since = last_event
            return []
        self._off_since = last_event
        gaps = self._come_back(time, Fullness(0, 0, 0, 0))
        if gaps:
            self._notice(f"{what}: switched on by {self._described()}")
        return gaps

    def _watch_events(self, time: int) -> list[Loss]:
        """Whether somebody switched the events off (nf_conntrack_events = 0)."""
        if not self._gauge.sends_events():
            if self._mute_since is None:
                self._mute_since = time
                self._notice("conntrack events were switched off: sysctl -w net.netfilter.nf_conntrack_events=1")
            return []
        if self._mute_since is None:
            return []
        gap, self._mute_since = Loss(self._mute_since, time, "untracked", None), None
        return [gap]

    def _warn(self, reading: Fullness) -> None:
        if reading.share >= _WARN and not self._warned:
            self._notice(f"the connection table is {reading.share:.0%} full ({reading.count} of {reading.maximum})")
            self._warned = True
        elif reading.share < _CALM:
            self._warned = False
        evicted, dropped = reading.evicted - self._before.evicted, reading.dropped - self._before.dropped
        if evicted > 0:
            self._notice(f"the connection table was full: {evicted} entries dropped early to make room")
        if dropped > 0 and reading.share >= _WARN:
            self._notice(f"the connection table is full: {dropped} packets dropped")
        self._before = reading

    def end(self, time: int) -> list[Loss]:
        """The gaps that are still open."""
        open_since = [since for since in (self._off_since, self._mute_since) if since is not None]
        self._off_since = self._mute_since = None
        return [Loss(since, time, "untracked", None) for since in open_since]

    def close(self) -> None:
        """Takes our table away."""
        if self._table is not None:
            self._table.remove()
            self._table = None
