"""Fields of packets, their values and sets of values, in words that people use."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import TYPE_CHECKING

from conntracker.model import protocol_name
from conntracker.rules.fields import CT_STATES, PACKET_TYPES, ROUTE_TYPES, width_of
from conntracker.rules.intervals import complement, intersect, prefixes

if TYPE_CHECKING:
    from conntracker.rules.intervals import Intervals

__all__ = ["value_text", "values_text"]

_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")
# linux/netfilter/nf_conntrack_common.h (IPS_*), as nft names them.
_STATUS = (
    "expected", "seen-reply", "assured", "confirmed", "snat", "dnat", "seq-adjust", "snat-done", "dnat-done", "dying",
    "fixed-timeout", "template", "untracked", "helper", "offload",
)  # fmt: skip
_INDEXED = {
    "ct_state": CT_STATES, "packet_type": PACKET_TYPES, "saddr_type": ROUTE_TYPES, "daddr_type": ROUTE_TYPES,
    "ct_direction": ("original", "reply"), "reverse_path": ("missing", "exists"),
}  # fmt: skip
_MOST = 8  # parts of a set that are written out


def value_text(field: str, value: int | str | None, version: int = 4) -> str:
    """One value; version (4 or 6) is that of addresses."""
    if value is None or value == "":
        return "none"
    if isinstance(value, str):
        return value
    if field in {"saddr", "daddr"}:
        return str(ip_address(value.to_bytes(4 if version == 4 else 16, "big")))
    if field in _INDEXED and value < len(_INDEXED[field]):
        return _INDEXED[field][value]
    return _TEXTS.get(field, str)(value)


def _mac(value: int) -> str:
    return ":".join(f"{byte:02x}" for byte in value.to_bytes(6, "big"))


def _bits(names: tuple[str, ...]) -> Callable[[int], str]:
    return lambda value: "|".join(name for bit, name in enumerate(names) if value >> bit & 1) or "none"


_TEXTS: dict[str, Callable[[int], str]] = {
    "protocol": protocol_name, "nexthdr": protocol_name, "mac": _mac, "mark": hex, "ct_mark": hex, "tos": hex,
    "tcp_flags": _bits(_FLAGS), "ct_status": _bits(_STATUS),
}  # fmt: skip


def values_text(field: str, values: Intervals, version: int = 4, mask: int | None = None) -> str:
    """A set of values: `10.1.0.0/16`, `22, 80-90`, `any but 443`; under a mask, `0x1/0xff`."""
    if mask is not None:
        return ", ".join(f"{_range(field, one, version)}/{_mask(field, mask, version)}" for one in values[:_MOST])
    top = len(_INDEXED[field]) - 1 if field in _INDEXED else (1 << width_of(field, version)) - 1
    values = intersect(values, ((0, top),))
    others = complement(values, 0, top)
    if not others:
        return "any"
    if values and values[0][0] == 0 and values[-1][1] == top and len(others) < len(values):
        return f"any but {_listed(field, others, version)}"
    return _listed(field, values, version)


def _listed(field: str, values: Intervals, version: int) -> str:
    texts = [_range(field, one, version) for one in values[:_MOST]]
    more = f" and {len(values) - _MOST} more" if len(values) > _MOST else ""
    return (", ".join(texts) or "nothing") + more


def _range(field: str, interval: tuple[int, int], version: int) -> str:
    low, high = interval
    if low == high:
        return value_text(field, low, version)
    if field in {"saddr", "daddr"}:
        width = width_of(field, version)
        parts = list(prefixes(low, high, width))
        if len(parts) == 1:
            return f"{value_text(field, low, version)}/{parts[0][1]}"
    if field in _INDEXED:
        return ", ".join(value_text(field, value) for value in range(low, high + 1))
    return f"{value_text(field, low, version)}-{value_text(field, high, version)}"


def _mask(field: str, mask: int, version: int) -> str:
    return value_text(field, mask, version) if field in {"saddr", "daddr", "tcp_flags", "ct_status"} else f"{mask:#x}"
