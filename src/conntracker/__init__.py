"""conntracker: what talks to what on a Linux host or firewall, from the kernel's connection tracking.

capture(...)             a context manager that yields batches of flows and losses as they happen
open_recording(path)     what a run with -w kept: .flows() and .sql()
DecodeError              raised for bytes that are not what the kernel sends
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Batch", "DecodeError", "Loss", "__version__", "capture", "open_recording"]

if TYPE_CHECKING:
    from conntracker.model import Batch, DecodeError, Loss
    from conntracker.recording.reader import open_recording
    from conntracker.tracker import capture

_HOMES = {
    "Batch": "conntracker.model",
    "DecodeError": "conntracker.model",
    "Loss": "conntracker.model",
    "capture": "conntracker.tracker",
    "open_recording": "conntracker.recording.reader",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: `conntracker --help` must not pay for numpy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
