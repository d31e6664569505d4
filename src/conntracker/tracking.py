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
from conntracker.sources.netns import Namespace
from conntracker.sources.nftables import OwnedTable

# A chain without a hook: the expression alone makes nft_ct take a reference on conntrack (nft_ct_get_init, nft_ct.c).
_TABLE = "chain tracking { ct state new; }"

_WARN, _CALM = 0.80, 0.70
_LEAVE, _RETURN = 0.95, 0.50
_INTERVAL = 1_000_000  # µs between two full checks
_BUSY_INTERVAL = 10_000  # µs between two looks at the fullness while our table is there


class TrackingOff(RuntimeError):
    """Connection tracking is off and must not be switched on."""


class Tracking:
    """Keeps tracking on for a capture. Made, begun and closed in any thread; works in the namespace given."""

    def __init__(self, namespace: Namespace, gauge: Gauge, enable: bool, notice: Callable[[str], None]) -> None:
        self._namespace, self._gauge, self._enable, self._notice = namespace, gauge, enable, notice
        self._table: OwnedTable | None = None
        self._state: dict[str, bool | None] = {}
        self._off_since: int | None = None
        self._checked = self._looked = 0
        self._warned = False
        self._dropped = gauge.read().dropped

    def probe(self) -> None:
        """Finds out whether tracking is on, by a datagram over loopback: see `is_tracked`."""
        with self._namespace:
            self._state = {"IPv4": is_tracked(4), "IPv6": is_tracked(6)}

    def begin(self) -> None:
        """Switches tracking on if it is off for IPv4 or IPv6.

        Raises TrackingOff if that is forbidden, OSError or ImportError if it cannot be done.
        """
        off = [name for name, state in self._state.items() if state is False]
        if all(self._state.values()):
            return
        what = f"connection tracking is off for {' and '.join(off)}"
        if not off:
            what = "cannot tell whether connection tracking is on"
            if not self._enable:
                self._notice(f"{what} here; left as it is")
                return
        if not self._enable:
            raise TrackingOff(f"{what} here, and --no-enable forbids to switch it on")
        self._switch_on()
        assert self._table is not None  # noqa: S101
        self._notice(
            f"{what} here: switched on by the private table inet {self._table.name}, which goes away with this process "
            "(a ruleset saved meanwhile contains it)"
        )

    def _switch_on(self) -> None:
        with self._namespace:
            self._table = OwnedTable(_TABLE)

    def check(self, time: int) -> list[Loss]:
        """Looks after the table's fullness. Returns a Loss of kind 'untracked' when a gap has ended."""
        if self._table is not None and time - self._looked >= _BUSY_INTERVAL:
            self._looked = time
            if self._gauge.share() >= _LEAVE:
                self._leave(time)
        if time - self._checked < _INTERVAL:
            return []
        self._checked = time
        reading = self._gauge.read()
        self._warn(reading)
        if self._off_since is not None and reading.share < _RETURN:
            return self._come_back(time)
        return []

    def _leave(self, time: int) -> None:
        assert self._table is not None  # noqa: S101
        self._table.remove()
        self._table, self._off_since = None, time
        self._notice(
            f"the connection table is over {_LEAVE:.0%} full: our private table is gone, so that no packet is dropped; "
            f"flows are not seen until it is below {_RETURN:.0%}"
        )

    def _come_back(self, time: int) -> list[Loss]:
        assert self._off_since is not None  # noqa: S101
        self._switch_on()
        gap, self._off_since = Loss(self._off_since, time, "untracked", None), None
        self._notice(f"the connection table is below {_RETURN:.0%} again: connection tracking switched on")
        return [gap]

    def _warn(self, reading: Fullness) -> None:
        if reading.share >= _WARN and not self._warned:
            self._notice(f"the connection table is {reading.share:.0%} full ({reading.count} of {reading.maximum})")
            self._warned = True
        elif reading.share < _CALM:
            self._warned = False
        if reading.dropped > self._dropped:
            self._notice(f"the connection table was full: {reading.dropped - self._dropped} entries or packets dropped")
        self._dropped = reading.dropped

    def end(self, time: int) -> list[Loss]:
        """The gap that is still open, if there is one."""
        if self._off_since is None:
            return []
        gap, self._off_since = Loss(self._off_since, time, "untracked", None), None
        return [gap]

    def close(self) -> None:
        """Takes our table away."""
        if self._table is not None:
            self._table.remove()
            self._table = None
