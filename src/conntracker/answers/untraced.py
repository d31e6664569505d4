"""Why a flow has no trace, as far as the recording knows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conntracker.recording.meta import Meta

__all__ = ["NOT_ASKED", "refusals", "why_untraced"]

NOT_ASKED = "the recording was made without -t"
EPOCH = datetime(1970, 1, 1)


def why_untraced(flow: dict[str, Any], meta: Meta | None) -> str:
    """One sentence: the reason where there is only one, or everything that may have been it."""
    if meta is None:
        return "the recording has lost what it says of itself (meta.json), so nobody knows whether it was traced"
    if meta.trace is None:
        return NOT_ASKED
    reasons = _reasons(flow, meta, meta.trace)
    if not reasons:
        return "no packet of it was traced, and nothing that was recorded says why"
    return "no packet of it was traced; possible reasons: " + "; ".join(reasons)


def refusals(packets: Any, rate: Any) -> str | None:
    """How many packets the ceilings kept from being traced, and what the ceilings are; None if there were none."""
    if not packets:
        return None
    return (
        f"{packets:,} packets were not traced: more came than {rate} new flows and directions a second, or a tenth"
        " of that of pings, of ICMP errors or of other protocols (--trace-rate)"
    )


def _reasons(flow: dict[str, Any], meta: Meta, trace: dict[str, Any]) -> list[str]:
    since = int(trace.get("start") or meta.start)
    begin, last = _time(flow["start"]), _time(flow["end"]) or _time(flow["last_seen"]) or 0
    reasons = []
    if last < since:
        reasons.append("it was over before tracing began")
    elif begin is not None and begin < since:
        reasons.append("it began before tracing, and may have been silent since")
    elif begin is None and (_time(flow["first_seen"]) or 0) <= since:
        reasons.append("it may have begun before tracing, and been silent since")
    if trace.get("only"):
        reasons.append(f"tracing was restricted to --trace '{trace['only']}'")
    if flow.get("offloaded"):
        reasons.append("it is offloaded: its packets pass by the rules")
    if refused := refusals(trace.get("refused"), trace.get("rate")):
        reasons.append(refused)
    for loss in meta.losses:
        if loss.kind == "traces" and loss.since <= (last or loss.since) and (begin or 0) <= loss.until:
            number = "some" if loss.events is None else f"{loss.events:,}"
            reasons.append(f"{number} trace messages were lost {_span(loss.since, loss.until)}")
    return reasons


def _time(value: datetime | None) -> int | None:
    return None if value is None else (value - EPOCH) // timedelta(microseconds=1)


def _span(since: int, until: int) -> str:
    first, last = (datetime.fromtimestamp(time // 10**6, UTC).astimezone() for time in (since, until))
    return f"{first:%Y-%m-%d %H:%M:%S} - {last:%H:%M:%S %Z}"
