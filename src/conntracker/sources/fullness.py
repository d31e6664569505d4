"""How full the connection table is (nf_conntrack-sysctl.rst, /proc/net/stat/nf_conntrack)."""

from __future__ import annotations

import os
from dataclasses import dataclass

_DIRECTORY = "/proc/sys/net/netfilter/"


@dataclass(frozen=True, slots=True)
class Fullness:
    """Entries now, the most there may be, and how many packets and entries were dropped since boot for lack of room."""

    count: int
    maximum: int
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
            for path in (_DIRECTORY + "nf_conntrack_count", _DIRECTORY + "nf_conntrack_max"):
                self._descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            self._statistics = _open_statistics()
        except OSError:
            self.close()
            raise

    def read(self) -> Fullness:
        """One reading: two small files, some 10 µs."""
        count, maximum = (int(os.pread(fd, 32, 0)) for fd in self._descriptors)
        return Fullness(count, maximum, self._dropped())

    def share(self) -> float:
        """Only how full, for the busy path."""
        count, maximum = (int(os.pread(fd, 32, 0)) for fd in self._descriptors)
        return count / maximum if maximum else 0.0

    def _dropped(self) -> int:
        """Columns `drop` and `early_drop`, in hexadecimal, a line for each processor."""
        if self._statistics is None:
            return 0
        lines = os.pread(self._statistics, 1 << 16, 0).decode().splitlines()
        if not lines:
            return 0
        names = lines[0].split()
        columns = [names.index(name) for name in ("drop", "early_drop") if name in names]
        return sum(int(line.split()[column], 16) for line in lines[1:] for column in columns)

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
