"""The time of day, but never backwards."""

from __future__ import annotations

import time

_last = _monotonic = 0


def now() -> int:
    """Microseconds since the epoch, UTC.

    When somebody sets the clock back, it goes on at half its pace until the two agree, so that a later call never gives
    an earlier time, and intervals end.
    """
    global _last, _monotonic
    wall, monotonic = time.time_ns() // 1000, time.monotonic_ns() // 1000
    _last, _monotonic = max(wall, _last + (monotonic - _monotonic) // 2), monotonic
    return _last
