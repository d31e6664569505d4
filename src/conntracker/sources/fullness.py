"""How full the connection table is (nf_conntrack-sysctl.rst, /proc/net/stat/nf_conntrack)."""

from __future__ import annotations

import os
from dataclasses import dataclass

_DIRECTORY = "/proc/sys/net/netfilter/"


@dataclass(frozen=True, slots=True)
class Fullness:
    """Entries now, the most there may be, and what was dropped since the namespace began.

    evicted   entries dropped early to make room (early_drop)
    dropped   packets dropped: for lack of room, but for clashes and bad packets, too (drop)
    """

    count: int
    maximum: int
    evicted: int
    dropped: int

    @property
    def share(self) -> float:
        """0 to 1, or more where the maximum was lowered; 0 where there is no maximum."""
        return self.count / self.maximum if self.maximum else 0.0


class Gauge:
    """Reads the fullness of the network namespace in which it was made. Raises OSError where conntrack is missing."""

    def __init__(self) -> None:
        self._descriptors: list[int] = []
        try:
            for name in ("count", "max", "events"):
                self._descriptors.append(os.open(f"{_DIRECTORY}nf_conntrack_{name}", os.O_RDONLY | os.O_CLOEXEC))
            self._statistics = _open_statistics()
        except OSError:
            self.close()
            raise

    def read(self) -> Fullness:
        """One reading: two small files, some 10 µs."""
        count, maximum = (int(os.pread(fd, 32, 0)) for fd in self._descriptors[:2])
        return Fullness(count, maximum, *self._statistics_of("early_drop", "drop"))

    def share(self) -> float:
        """Only how full, for the busy path."""
        count, maximum = (int(os.pread(fd, 32, 0)) for fd in self._descriptors[:2])
        return count / maximum if maximum else 0.0

    def sends_events(self) -> bool:
        """Whether the namespace sends conntrack events (nf_conntrack_events)."""
        return os.pread(self._descriptors[2], 32, 0).strip() != b"0"

    def _statistics_of(self, *columns: str) -> list[int]:
        """Sums of columns, which are hexadecimal, a line for each processor; 0 for what the kernel does not have."""
        lines = [] if self._statistics is None else os.pread(self._statistics, 1 << 16, 0).decode().splitlines()
        names = lines[0].split() if lines else []
        rows = [line.split() for line in lines[1:]]
        return [sum(int(row[names.index(name)], 16) for row in rows) if name in names else 0 for name in columns]

    def close(self) -> None:
        """Gives the descriptors back."""
        for fd in self._descriptors:
            os.close(fd)
        self._descriptors = []
        if getattr(self, "_statistics", None) is not None:
            os.close(self._statistics)  # type: ignore[arg-type]
            self._statistics = None


def _open_statistics() -> int | None:
    """Of the calling thread's namespace; only there where the kernel has CONFIG_NF_CONNTRACK_PROCFS."""
    try:
        return os.open("/proc/thread-self/net/stat/nf_conntrack", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
