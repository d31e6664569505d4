"""A recording of flows with owners: a browser's, a server's, the kernel's, one that only passes, one of nobody."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conntracker.owner import BPF, EXACT, FORWARDS, HOLDER, KERNELS, NO_ID, OPEN, PROCESS, Owner, Process
from conntracker.recording.writer import RecordingWriter
from support.columns import NOON, flows

__all__ = ["CURL", "KERNELS", "NGINX", "OWNERS", "ROWS", "owned", "owned_columns"]

CURL = Owner(
    PROCESS,
    Process(
        5057, "curl", 1000, NOON + 1, "/usr/bin/curl", "curl 'it''s' \"x\"", "alice", 1000, "alice", 4000, "bash",
        "/user.slice/session-3.scope", "session-3.scope",
    ),
    BPF, EXACT, None,
)  # fmt: skip
NGINX = Owner(
    PROCESS,
    Process(
        77, "nginx", 33, NOON - 1, "/usr/sbin/nginx", unit="nginx.service", container="0123456789ab" + "0" * 52,
        engine="docker",
    ),
    OPEN, HOLDER, 12,
)  # fmt: skip
UNKNOWN_USER = Owner(PROCESS, Process(9, "", NO_ID), BPF, EXACT)
OWNERS: dict[int, Owner] = {1: CURL, 2: NGINX, 3: KERNELS, 4: FORWARDS, 5: UNKNOWN_USER}

# Differences from a plain flow, and the numbers of the owners of its source and its destination.
ROWS: tuple[tuple[dict[str, Any], int, int], ...] = (
    ({"sport": 1, "dst": "127.0.0.1", "src": "127.0.0.1", "bytes": 10, "reply_bytes": 1000}, 1, 2),
    ({"dst": "93.184.216.34", "dport": 443, "bytes": 100, "reply_bytes": 7}, 1, 0),
    ({"dst": "93.184.216.34", "dport": 443, "sport": 3, "bytes": 100, "reply_bytes": 7}, 1, 0),
    ({"src": "10.0.0.5", "bytes": 5, "reply_bytes": 2000}, 0, 2),
    ({"src": "10.0.0.6", "dst": "1.1.1.1", "reply_src": "10.0.0.2", "dport": 443, "reply_sport": 80}, 0, 2),
    ({"proto": 1, "sport": 1, "dport": 8 << 8, "tcp_state": 255, "src": "9.9.9.9"}, 0, 3),
    ({"src": "10.7.0.5"}, 4, 4),
    ({"src": "10.7.0.6"}, 0, 99),
    ({"sport": 77, "bytes": 1, "reply_bytes": 2}, 2, 2),
)  # fmt: skip


def owned_columns(*rows: tuple[dict[str, Any], int, int], first: int = 0) -> dict[str, NDArray[Any]]:
    """Raw columns of flows, see ROWS."""
    numbers = {
        end: np.array([row[place] for row in rows], np.uint32) for place, end in ((1, "owner"), (2, "peer_owner"))
    }
    return flows(*(row[0] for row in rows), first=first) | numbers


def owned(
    path: Path, rows: tuple[tuple[dict[str, Any], int, int], ...] = ROWS, owners: Mapping[int, Owner] = OWNERS
) -> Path:
    """A recording of these flows in one segment."""
    with RecordingWriter(path, host="gate", start=NOON) as writer:
        writer.update_meta(owners={"method": "bpf", "whole": True, "lost": 0, "start": NOON})
        writer.append(owned_columns(*rows), owners)
    return path
