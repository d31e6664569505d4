"""Packets as columns: what is known of each field, in many packets at once, and after what happened to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conntracker.rules.changes import GIVEN, HOPPED, Derived, Past, Routed, Xor
from conntracker.rules.fields import FIELDS, NAMES, ROUTE_TYPES, width_of
from conntracker.rules.host import Host, always_of_type
from conntracker.rules.intervals import Intervals
from conntracker.rules.lookup import Axis, Classes
from conntracker.rules.packets import Packet, completed

__all__ = ["ABSENT", "KNOWN", "UNKNOWN", "Column", "Rows", "Values", "requires_of", "width_in"]

# What is known of a value: it, nothing, or that the packet has none.
KNOWN, UNKNOWN, ABSENT = 0, 1, 2

Status = NDArray[np.uint8]
_LOW = 0xFFFFFFFFFFFFFFFF
_ADDRESS_OF = {"saddr_type": "saddr", "daddr_type": "daddr"}


@dataclass(frozen=True, slots=True)
class Column:
    """A field of n packets.

    values   n numbers, for addresses of IPv6 n pairs (high and low 64 bits); of interfaces indices into names
    known    which of them are known; None: all
    present  which packets have the field; None: all that can have it, by what FIELDS says
    names    of interfaces, "" for none
    """

    values: NDArray[np.generic]
    known: NDArray[np.bool_] | None = None
    present: NDArray[np.bool_] | None = None
    names: Sequence[str] = ()


@dataclass(slots=True)
class Values:
    """Values of a field in some packets, and what is known of each: one of KNOWN, UNKNOWN, ABSENT."""

    values: NDArray[np.uint64]
    status: Status


def width_in(field: str, version: int) -> int:
    """As fields.width_of; also of `first`."""
    return 1 if field == "first" else 32 if field in NAMES else width_of(field, version)


def requires_of(field: str) -> tuple[tuple[str, Intervals], ...]:
    """What a packet must be to have the field."""
    return FIELDS[field].requires if field in FIELDS else ()


class Rows:
    """The packets of one IP version, field by field.

    names   all names of interfaces that may come: values of iif and oif are indices into it
    """

    def __init__(self, columns: Mapping[str, Column], count: int, version: int, host: Host | None, way: str) -> None:
        self.count, self.version, self.host = count, version, host
        self.names: list[str] = ["", "lo"]
        self._types = _Types(version, host)
        self._base = {field: self._read(field, column) for field, column in columns.items() if field != "family"}
        if "nexthdr" not in self._base and "protocol" in self._base and version == 6:
            self._base["nexthdr"] = self._base["protocol"]
        self._routes = _Routes(version, host, self) if way != "input" and host and host.routes is not None else None
        self._reverse = _ReversePath(version, host) if host and host.routes is not None else None

    @property
    def is_routed(self) -> bool:
        """Whether it is known where addresses are routed to."""
        return self._routes is not None

    def routed(self, addresses: Values) -> NDArray[np.int64]:
        """Indices of the interfaces that addresses are routed to, -1 where that is not known."""
        if self._routes is None:
            return np.full(len(addresses.status), -1)
        found = self._routes.of(addresses.values).astype(np.int64) - 1
        return np.where(addresses.status == KNOWN, found, -1)

    def number_of(self, name: str) -> int:
        """The index of a name."""
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    def _read(self, field: str, column: Column) -> Values:
        values = self._numbers(column) if field in NAMES else column.values.astype(np.uint64, copy=False)
        values = np.ascontiguousarray(values)
        wide = width_in(field, self.version) > 64
        if wide and values.ndim == 1:
            values = np.stack([np.zeros_like(values), values], axis=1)
        elif not wide and values.ndim == 2:
            values = values[:, 1].copy()
        status = np.zeros(self.count, np.uint8)
        if column.known is not None:
            status[~column.known] = UNKNOWN
        if column.present is not None:
            status[~column.present] = ABSENT
        return Values(values, status)

    def _numbers(self, column: Column) -> NDArray[np.uint64]:
        """Names of interfaces as indices into `names`."""
        if column.names:
            numbers = np.array([self.number_of(name) for name in column.names], np.uint64)
            return numbers.take(column.values.astype(np.intp), mode="clip")
        texts, inverse = np.unique(column.values.astype(str), return_inverse=True)
        return np.array([self.number_of(str(one)) for one in texts], np.uint64)[inverse]

    def take(self, chosen: NDArray[np.intp]) -> Rows:
        """Some of the rows."""
        out = object.__new__(Rows)
        out.count, out.version, out.host, out.names = len(chosen), self.version, self.host, self.names
        out._types, out._routes, out._reverse = self._types, self._routes, self._reverse
        out._base = {name: Values(one.values[chosen], one.status[chosen]) for name, one in self._base.items()}
        return out

    # --- values ---

    def values(self, field: str, past: Past, rows: NDArray[np.intp]) -> Values:
        """A field as it is after what happened; whether the packets can have it is part of the answer."""
        change = past.change(field)
        if field == HOPPED:
            found = self.values("ttl", GIVEN, rows)
            found.values = np.maximum(found.values, np.uint64(1)) - np.uint64(1)
            return found
        if isinstance(change, Xor):
            found = self._xor(change, width_in(field, self.version), rows)
        elif change is None:
            found = self._given(field, past, rows)
        elif isinstance(change, Derived):
            found = self._derived(field, past, rows)
        elif isinstance(change, Routed):
            found = self._outgoing(change, rows)
        else:
            found = self._nothing(field, len(rows))
        for other, inside in requires_of(field):
            held = self.values(other, past, rows)
            lacking = (held.status == ABSENT) | ((held.status == KNOWN) & ~_within(held.values, inside))
            found.status[lacking] = ABSENT
        return found

    def _nothing(self, field: str, count: int) -> Values:
        shape = (count, 2) if width_in(field, self.version) > 64 else (count,)
        return Values(np.zeros(shape, np.uint64), np.full(count, UNKNOWN, np.uint8))

    def _given(self, field: str, past: Past, rows: NDArray[np.intp]) -> Values:
        base = self._base.get(field)
        found = self._nothing(field, len(rows)) if base is None else Values(base.values[rows], base.status[rows])
        if field in _ADDRESS_OF or (field == "reverse_path" and self._reverse is not None):
            missing = np.flatnonzero(found.status == UNKNOWN)
            if len(missing):
                more = self._derived(field, past, rows[missing])
                found.values[missing], found.status[missing] = more.values, more.status
        return found

    def _derived(self, field: str, past: Past, rows: NDArray[np.intp]) -> Values:
        if field == "reverse_path" and self._reverse is not None:
            source, interface, destination = (self.values(name, GIVEN, rows) for name in ("saddr", "iif", "daddr"))
            return self._reverse.of(source, interface, destination, self.names)
        source = self.values(_ADDRESS_OF[field], past, rows)
        known = self._types.of(source.values)
        status = np.where((source.status == KNOWN) & (known > 0), KNOWN, UNKNOWN).astype(np.uint8)
        return Values(np.maximum(known, np.uint64(1)) - np.uint64(1), status)

    def _outgoing(self, change: Routed, rows: NDArray[np.intp]) -> Values:
        """The interface that packets came with, or that they are routed to."""
        found = self.values("oif", GIVEN, rows)
        missing = np.flatnonzero(found.status == UNKNOWN)
        if len(missing) and isinstance(change.address, Xor):
            width = width_in("daddr", self.version)
            numbers = self.routed(self._xor(change.address, width, rows[missing]))
            found.values[missing] = np.maximum(numbers, 0).astype(np.uint64)
            found.status[missing] = np.where(numbers >= 0, KNOWN, UNKNOWN)
        return found

    def _xor(self, change: Xor, width: int, rows: NDArray[np.intp]) -> Values:
        shape = (len(rows), 2) if width > 64 else (len(rows),)
        out = Values(np.zeros(shape, np.uint64), np.zeros(len(rows), np.uint8))
        out.values ^= _number(change.constant, width)
        for field, mask in change.fields:
            one = self.values(field, GIVEN, rows)
            out.values ^= one.values & _number(mask, width)
            out.status[one.status != KNOWN] = UNKNOWN
        return out

    def classes(self, axis: Axis, past: Past, rows: NDArray[np.intp]) -> Classes:
        """The classes of an axis in some packets."""
        found = self.values(axis.name, past, rows)
        if axis.name in NAMES:
            table = np.array([axis.class_of(name) for name in self.names], np.int32)
            out = table.take(found.values.astype(np.intp), mode="clip")
        else:
            out = axis.classes(found.values)
        out[found.status == UNKNOWN] = axis.size
        out[found.status == ABSENT] = axis.size + 1
        return out


def _number(value: int, width: int) -> NDArray[np.uint64] | np.uint64:
    return np.array([value >> 64 & _LOW, value & _LOW], np.uint64) if width > 64 else np.uint64(value & _LOW)


def _within(values: NDArray[np.uint64], inside: Intervals) -> NDArray[np.bool_]:
    out = np.zeros(len(values), np.bool_)
    for low, high in inside:
        out |= (values >= np.uint64(low)) & (values <= np.uint64(high))
    return out


class _Types:
    """The types of addresses, as far as they are known: 0, or one more than the index into ROUTE_TYPES."""

    def __init__(self, version: int, host: Host | None) -> None:
        width = width_in("saddr", version)
        top = 1 << width
        bounds = {0, 1, 2, 127 << width - 8, 128 << width - 8, 224 << width - 8, 240 << width - 8, 255 << width - 8}
        bounds.add(top - 1)
        if host is not None:
            for pairs in (host.local.get(version, ()), host.broadcast.get(version, ())):
                bounds.update(end for low, high in pairs for end in (low, high + 1))
            for route in (host.routes or {}).get(version, ()):
                bounds.update((route.low, route.high + 1))
        self._axis = Axis("address", None, width)
        self._axis.cut(bounds)
        self._table = np.array([_type(version, low, host) for low in self._axis.lows], np.uint64)

    def of(self, addresses: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return self._table.take(self._axis.classes(addresses))


def _type(version: int, address: int, host: Host | None) -> int:
    if host is not None:
        return host.address_type(version, address) + 1
    name = always_of_type(version, address)
    return 0 if name is None else ROUTE_TYPES.index(name) + 1


class _ReversePath:
    """Whether a route back to the source leads out of the interface it came by, as packets.completed tells."""

    def __init__(self, version: int, host: Host) -> None:
        self._version, self._host = version, host
        width = width_in("saddr", version)
        bounds = {0, 0x3FA << width - 10, 0x3FB << width - 10, 1 << width - 8}
        bounds.update(end for low, high in host.local.get(version, ()) for end in (low, high + 1))
        for route in (host.routes or {}).get(version, ()):
            bounds.update((route.low, route.high + 1))
        self._axis = Axis("address", None, width)
        self._axis.cut(bounds)

    def of(self, source: Values, interface: Values, destination: Values, names: Sequence[str]) -> Values:
        """Of packets of these addresses, by these interfaces."""
        everywhere = destination.status == KNOWN
        everywhere &= destination.values == 0xFFFFFFFF if destination.values.ndim == 1 else False
        key = (self._axis.classes(source.values) * np.int64(len(names)) + interface.values.astype(np.int64)) * 2
        different, inverse = np.unique(key + everywhere, return_inverse=True)
        found = np.array([self._one(int(one), names) for one in different], np.int64)[inverse]
        found[(source.status != KNOWN) | (interface.status != KNOWN)] = -1
        return Values(np.maximum(found, 0).astype(np.uint64), np.where(found >= 0, KNOWN, UNKNOWN).astype(np.uint8))

    def _one(self, key: int, names: Sequence[str]) -> int:
        number, everywhere = divmod(key, 2)
        address, name = divmod(number, len(names))
        packet: Packet = {"family": self._version, "saddr": self._axis.lows[address], "iif": names[name]}
        found = completed(packet | ({"daddr": 0xFFFFFFFF} if everywhere else {}), self._host).get("reverse_path")
        return -1 if found is None else int(found)


class _Routes:
    """Interfaces that addresses are routed to: 0, or one more than the index into the names."""

    def __init__(self, version: int, host: Host, rows: Rows) -> None:
        self._axis = Axis("address", None, width_in("daddr", version))
        routes = (host.routes or {}).get(version, ())
        self._axis.cut({0, *(end for route in routes for end in (route.low, route.high + 1))})
        found = (host.out_interface(version, low) for low in self._axis.lows)
        self._table = np.array([0 if name is None else rows.number_of(name) + 1 for name in found], np.uint64)

    def of(self, addresses: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return self._table.take(self._axis.classes(addresses))
