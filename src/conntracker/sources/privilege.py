"""What this process may do, and where it is: its capabilities, and whether its process ids are everybody's."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["capabilities", "in_first_pid_namespace"]

_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, linux/proc_ns.h


def capabilities() -> int:
    """The effective capabilities of this thread, as bits (linux/capability.h). Raises OSError."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def in_first_pid_namespace() -> bool:
    """Whether process ids here are those that the kernel, and so BPF programs, give out. Raises OSError."""
    return os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE
