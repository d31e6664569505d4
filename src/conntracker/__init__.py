"""conntracker: what talks to what on a Linux host or firewall, from the kernel's connection tracking.

capture(...)             a context manager that yields batches of flows and losses as they happen
open_recording(path)     what a run with -w kept: .flows() and .sql()
Ruleset.parse(text)      a ruleset of iptables or nft, understood: .decide(packet or columns), .dead()
equivalent(a, b)         whether two rulesets do the same with every packet
difference(a, b)         what they do otherwise; empty means nothing
DecodeError              raised for bytes that are not what the kernel sends
RuleSyntaxError          raised for text that is no ruleset, with file, line and column
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Batch", "DecodeError", "Loss", "RuleSyntaxError", "Ruleset", "__version__", "capture", "difference", "equivalent",
    "open_recording",
]  # fmt: skip

if TYPE_CHECKING:
    from conntracker.model import Batch, DecodeError, Loss
    from conntracker.recording.reader import open_recording
    from conntracker.rules.errors import RuleSyntaxError
    from conntracker.rules.ruleset import Ruleset
    from conntracker.rules.solve.equal import equivalent
    from conntracker.rules.solve.regions import difference
    from conntracker.tracker import capture

_HOMES = {
    "Batch": "conntracker.model",
    "DecodeError": "conntracker.model",
    "Loss": "conntracker.model",
    "RuleSyntaxError": "conntracker.rules.errors",
    "Ruleset": "conntracker.rules.ruleset",
    "capture": "conntracker.tracker",
    "difference": "conntracker.rules.solve.regions",
    "equivalent": "conntracker.rules.solve.equal",
    "open_recording": "conntracker.recording.reader",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: `conntracker --help` must not pay for numpy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
