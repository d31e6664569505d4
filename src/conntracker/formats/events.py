"""Events as text, a line each: for people, and as JSON lines with the keys of a flow (see formats.jsonl)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache

import numpy as np

from conntracker.model import (
    DESTROY,
    EVENT_NAMES,
    ICMP,
    ICMPV6,
    IPS_HW_OFFLOAD,
    IPS_OFFLOAD,
    IPS_SEEN_REPLY,
    NO_STATE,
    TCP_STATES,
    U64,
    UNKNOWN,
    Batch,
    protocol_name,
)

_PORTLESS = frozenset(range(256)) - {6, 17, 33, 47, 132, 136}


def text_lines(batch: Batch) -> Iterator[str]:
    """Time, event, protocol, ends, the reply's where NAT changed them, state, counters; without a newline."""
    stamp = _time(batch.time)
    for row in _rows(batch):
        kind, proto, there, back, state, counters = row
        name = protocol_name(proto)
        words = [stamp, f"{EVENT_NAMES[kind]:<7}", f"{name:<6}", _ends_text(proto, there, batch.family)]
        if not _mirrors(proto, there, back):
            words.append(f"reply {_ends_text(proto, back, batch.family)}")
        yield " ".join([*words, *(word for word in (state, _counter_text(counters)) if word)])


def json_lines(batch: Batch) -> Iterator[str]:
    """An object for each event: time, event, and the keys of a flow; null for what the kernel did not send."""
    head = f'{{"time": "{_time(batch.time)}", "event": "'
    statuses, marks = batch.status.tolist(), batch.mark.tolist()
    times = (_stamps(batch.start, len(batch)), _stamps(batch.stop, len(batch)))
    for i, (kind, proto, there, back, state, counters) in enumerate(_rows(batch)):
        src, dst, first, second, zone = there
        reply_src, reply_dst, reply_first, reply_second, _ = back
        icmp, portless = proto in (ICMP, ICMPV6), proto in _PORTLESS
        sport, dport = ("null", "null") if portless else (first, second)
        reply_sport, reply_dport = ("null", "null") if portless else (reply_first, reply_second)
        kinds = (second >> 8, second & 0xFF, first) if icmp else ("null",) * 3
        replied = "true" if statuses[i] & IPS_SEEN_REPLY else "false"
        offloaded = "true" if statuses[i] & (IPS_OFFLOAD | IPS_HW_OFFLOAD) else "false"
        end = times[1][i] if kind == DESTROY else "null"
        yield (
            f'{head}{EVENT_NAMES[kind]}", "family": {batch.family}, "proto": "{protocol_name(proto)}", '
            f'"src": "{_address(batch.family, src)}", "sport": {sport}, '
            f'"dst": "{_address(batch.family, dst)}", "dport": {dport}, '
            f'"reply_src": "{_address(batch.family, reply_src)}", "reply_sport": {reply_sport}, '
            f'"reply_dst": "{_address(batch.family, reply_dst)}", "reply_dport": {reply_dport}, '
            f'"icmp_type": {kinds[0]}, "icmp_code": {kinds[1]}, "icmp_id": {kinds[2]}, "zone": {zone}, '
            f'"mark": {marks[i]}, "state": {_quoted(state)}, "replied": {replied}, "offloaded": {offloaded}, '
            f'"packets": {_null(counters[0])}, "bytes": {_null(counters[1])}, '
            f'"reply_packets": {_null(counters[2])}, "reply_bytes": {_null(counters[3])}, '
            f'"start": {times[0][i]}, "end": {end}}}'
        )


_Tuple = tuple[int, int, int, int, int]  # source, destination, two port fields, zone
_Row = tuple[int, int, _Tuple, _Tuple, str, tuple[int, ...]]


def _rows(batch: Batch) -> Iterator[_Row]:
    """(event, protocol, original tuple, reply tuple, state, counters) with addresses as numbers."""
    n = len(batch)
    counters = [
        [UNKNOWN] * n if column is None else column.tolist()
        for column in (batch.packets, batch.bytes, batch.reply_packets, batch.reply_bytes)
    ]
    there = _tuples(batch.family, batch.addresses, batch.ports)
    back = _tuples(batch.family, batch.reply_addresses, batch.reply_ports)
    protocols = ((batch.ports >> np.uint64(8)) & np.uint64(0xFF)).tolist()
    states = ["" if state == NO_STATE else _state(state) for state in batch.tcp_state.tolist()]
    yield from zip(batch.event.tolist(), protocols, there, back, states, zip(*counters, strict=True), strict=True)


def _tuples(family: int, words: tuple[U64, ...], ports: U64) -> Iterator[_Tuple]:
    lists = [word.tolist() for word in words]
    if family == 4:
        src, dst = [word >> 32 for word in lists[0]], [word & 0xFFFFFFFF for word in lists[0]]
    else:
        src = [high << 64 | low for high, low in zip(lists[0], lists[1], strict=True)]
        dst = [high << 64 | low for high, low in zip(lists[2], lists[3], strict=True)]
    numbers = ports.tolist()
    yield from zip(
        src, dst, [p >> 48 for p in numbers], [p >> 32 & 0xFFFF for p in numbers], [p >> 16 & 0xFFFF for p in numbers],
        strict=True,
    )  # fmt: skip


@lru_cache(maxsize=1 << 16)
def _address(family: int, number: int) -> str:
    if family == 4:
        return socket.inet_ntop(socket.AF_INET, number.to_bytes(4, "big"))
    return socket.inet_ntop(socket.AF_INET6, number.to_bytes(16, "big"))


def _ends_text(proto: int, ends: _Tuple, family: int) -> str:
    src, dst, first, second, _ = ends
    if proto in (ICMP, ICMPV6):
        what = f" type={second >> 8} code={second & 0xFF} id={first}"
        return f"{_address(family, src)} > {_address(family, dst)}{what}"
    if proto in _PORTLESS:
        return f"{_address(family, src)} > {_address(family, dst)}"
    mark = "[{}]:{}" if family == 6 else "{}:{}"
    return f"{mark.format(_address(family, src), first)} > {mark.format(_address(family, dst), second)}"


def _mirrors(proto: int, there: _Tuple, back: _Tuple) -> bool:
    """Whether the reply tuple is the original one turned round: no NAT."""
    same_ports = proto in (ICMP, ICMPV6) or (back[2], back[3]) == (there[3], there[2])
    return (back[0], back[1]) == (there[1], there[0]) and same_ports


def _counter_text(counters: tuple[int, ...]) -> str:
    if counters[0] == UNKNOWN:
        return ""
    return f"packets={counters[0]}+{counters[2]} bytes={counters[1]}+{counters[3]}"


def _state(number: int) -> str:
    return TCP_STATES[number] if number < len(TCP_STATES) else str(number)


def _time(microseconds: int) -> str:
    moment = datetime.fromtimestamp(microseconds // 1_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{microseconds % 1_000_000:06}Z"


def _stamps(column: U64 | None, n: int) -> list[str]:
    if column is None:
        return ["null"] * n
    return ["null" if t in (0, UNKNOWN) else f'"{_time(t // 1000)}"' for t in column.tolist()]


def _quoted(text: str) -> str:
    return f'"{text}"' if text else "null"


def _null(number: int) -> int | str:
    return "null" if number == UNKNOWN else number
