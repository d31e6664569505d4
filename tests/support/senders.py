"""Owners made by hand, as the text log shows them."""

from __future__ import annotations

from typing import Any

from conntracker.owner import BPF, EXACT, PROCESS, Owner, Process

__all__ = ["owner"]


def owner(comm: str, pid: int, uid: int = 0, certainty: str | None = EXACT, **more: Any) -> Owner:
    """A process; `more`: other fields of Process."""
    return Owner(PROCESS, Process(pid, comm, uid, **more), BPF, certainty)
