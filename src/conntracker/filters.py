"""Which flows are wanted: one meaning, rendered as a mask over a batch and as an SQL condition on a recording.

Addresses and ports are kept as closed intervals of numbers. NAT gives a flow two sources and two destinations, so a
source is the source of the original tuple or the destination of the reply tuple, and a destination the other two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, TypeVar

from conntracker.model import protocol_name, protocol_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from conntracker.model import U64, Batch

__all__ = ["PORT_PROTOCOLS", "Filter", "quoted"]

# Protocols whose tuples have ports, by IANA number: TCP, UDP, DCCP, GRE (its keys), SCTP, UDP-Lite.
PORT_PROTOCOLS = (6, 17, 33, 47, 132, 136)

# Container ids are 64 hexadecimal digits, or the first 12 of them.
_IS_ID = "regexp_full_match({}, '[0-9a-f]{{12,}}')"

LOW_32, LOW_64 = 2**32 - 1, 2**64 - 1

T = TypeVar("T", "Addresses", "Ports")


@dataclass(frozen=True, slots=True, order=True)
class Addresses:
    """All addresses of one IP version from `first` to `last`, as numbers."""

    family: int
    first: int
    last: int


@dataclass(frozen=True, slots=True, order=True)
class Ports:
    """All ports from `first` to `last`."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions that a flow meets all of; an empty one is met by every flow.

    protocols      IANA numbers
    src, dst       intervals of addresses, on either side of NAT
    port           intervals of ports, any of the four of a flow
    sport, dport   intervals of ports, on either side of NAT
    process, user, unit, container   of an owner, who meets all of them, at either end
    """

    protocols: tuple[int, ...] = ()
    src: tuple[Addresses, ...] = ()
    dst: tuple[Addresses, ...] = ()
    port: tuple[Ports, ...] = ()
    sport: tuple[Ports, ...] = ()
    dport: tuple[Ports, ...] = ()
    process: tuple[str, ...] = ()
    user: tuple[str, ...] = ()
    unit: tuple[str, ...] = ()
    container: tuple[str, ...] = ()

    @classmethod
    def parse(
        cls,
        proto: str | None = None,
        src: str | None = None,
        dst: str | None = None,
        port: str | None = None,
        sport: str | None = None,
        dport: str | None = None,
        process: str | None = None,
        user: str | None = None,
        unit: str | None = None,
        container: str | None = None,
    ) -> Filter:
        """The filter that the options of the command line say: comma-separated lists, a comma in a name as '\\,'.

        Addresses may be prefixes (10.0.0.0/8) and ranges (10.0.0.1-10.0.0.9), ports ranges (8000-8100), protocols
        names or numbers; processes names, pids or paths, users names or numbers. Raises ValueError naming the option
        and the bad part.
        """
        return cls(
            tuple(sorted({_protocol("--proto", part) for part in _parts("--proto", proto)})),
            _intervals("--src", src, _addresses),
            _intervals("--dst", dst, _addresses),
            _intervals("--port", port, _ports),
            _intervals("--sport", sport, _ports),
            _intervals("--dport", dport, _ports),
            _texts("--process", process),
            _texts("--user", user),
            _texts("--unit", unit),
            _texts("--container", container),
        )

    def __bool__(self) -> bool:
        return self.owned or bool(self.protocols or self.src or self.dst or self.port or self.sport or self.dport)

    @property
    def owned(self) -> bool:
        """Whether there are conditions on owners. Only sql() has them: the kernel's messages tell no owners."""
        return bool(self.process or self.user or self.unit or self.container)

    def mask(self, batch: Batch) -> NDArray[np.bool_] | None:
        """The rows of a batch that are wanted, bool[n]; None means all of them."""
        if not self:
            return None
        wanted = _table(256, [(number, number) for number in self.protocols])[_protocols(batch)]
        for intervals, mask in ((self.src, _source_mask), (self.dst, _destination_mask)):
            if intervals:
                wanted &= mask(batch, intervals)
        if self.port or self.sport or self.dport:
            wanted &= self._ports_mask(batch)
        return wanted

    def meets(self, family: int, proto: int, src: int, dst: int, sport: int | None, dport: int | None) -> bool:
        """Whether one tuple is wanted: addresses as numbers, ports None where there are none."""
        if self.protocols and proto not in self.protocols:
            return False
        for wanted, address in ((self.src, src), (self.dst, dst)):
            if wanted and not any(one.family == family and one.first <= address <= one.last for one in wanted):
                return False
        ends = ((self.port, (sport, dport)), (self.sport, (sport,)), (self.dport, (dport,)))
        return all(
            not wanted or any(one.first <= port <= one.last for one in wanted for port in ports if port is not None)
            for wanted, ports in ends
        )

    def _ports_mask(self, batch: Batch) -> NDArray[np.bool_]:
        import numpy as np

        sport, reply_sport = (ports >> np.uint64(48) for ports in (batch.ports, batch.reply_ports))
        dport, reply_dport = (ports >> np.uint64(32) & np.uint64(0xFFFF) for ports in (batch.ports, batch.reply_ports))
        wanted = _table(256, [(number, number) for number in PORT_PROTOCOLS])[_protocols(batch)]
        for intervals, columns in (
            (self.port, (sport, dport, reply_sport, reply_dport)),
            (self.sport, (sport, reply_dport)),
            (self.dport, (dport, reply_sport)),
        ):
            if intervals:
                table = _table(65536, [(ports.first, ports.last) for ports in intervals])
                wanted &= np.logical_or.reduce([table[column] for column in columns])
        return wanted

    def sql(self) -> str:
        """The same as a condition on the columns of a recording, made of numbers, known names and quoted texts only."""
        conditions = []
        if self.protocols:
            names = ", ".join(f"'{protocol_name(number)}'" for number in self.protocols)
            conditions.append(f"proto IN ({names})")
        if self.src:
            conditions.append(_addresses_sql(("src", "reply_dst"), self.src))
        if self.dst:
            conditions.append(_addresses_sql(("dst", "reply_src"), self.dst))
        if self.port:
            conditions.append(_ports_sql(("sport", "dport", "reply_sport", "reply_dport"), self.port))
        if self.sport:
            conditions.append(_ports_sql(("sport", "reply_dport"), self.sport))
        if self.dport:
            conditions.append(_ports_sql(("dport", "reply_sport"), self.dport))
        if self.owned:
            conditions.append(_any(self.owner_sql(end) for end in ("owner", "peer_owner")))
        return " AND ".join(conditions) or "true"

    def owner_sql(self, end: str) -> str:
        """That the owner of one end, `owner` or `peer_owner`, meets all conditions on owners, if there are any."""
        wanted = (
            (_process_sql, self.process), (_user_sql, self.user), (_unit_sql, self.unit),
            (_container_sql, self.container),
        )  # fmt: skip
        return " AND ".join(_any(sql(end, text) for text in texts) for sql, texts in wanted if texts) or "true"


def _parts(option: str, text: str | None) -> list[str]:
    if text is None:
        return []
    # Any other backslash is one: systemd has them in names of units.
    parts = [part.strip().replace("\\,", ",") for part in re.split(r"(?<!\\),", text)]
    if not all(parts):
        raise ValueError(f"{option}: a part of {text!r} is empty")
    return parts


def _texts(option: str, text: str | None) -> tuple[str, ...]:
    parts = _parts(option, text)
    if any("\0" in part for part in parts):
        raise ValueError(f"{option}: {text!r} has a NUL in it")
    return tuple(sorted(set(parts)))


def _intervals(option: str, text: str | None, parse: Callable[[str, str], T]) -> tuple[T, ...]:
    return tuple(sorted({parse(option, part) for part in _parts(option, text)}))


def _protocol(option: str, text: str) -> int:
    try:
        return protocol_number(text)
    except ValueError:
        raise ValueError(f"{option}: {text!r} is not a protocol (a name such as tcp, or 0-255)") from None


def _addresses(option: str, text: str) -> Addresses:
    bad = ValueError(f"{option}: {text!r} is not an address, prefix (10.0.0.0/8) or range (10.0.0.1-10.0.0.9)")
    try:
        if "-" in text:
            ends = [ip_address(end.strip()) for end in text.split("-", 1)]
        else:
            network = ip_network(text, strict=False)
            ends = [network.network_address, network.broadcast_address]
    except ValueError:
        raise bad from None
    first, last = ends
    if first.version != last.version or int(first) > int(last) or "%" in text:
        raise bad
    return Addresses(first.version, int(first), int(last))


def _ports(option: str, text: str) -> Ports:
    ends = [_port(option, end.strip()) for end in text.split("-", 1)]
    if ends[0] > ends[-1]:
        raise ValueError(f"{option}: {text!r} is a range that ends before it begins")
    return Ports(ends[0], ends[-1])


def _port(option: str, text: str) -> int:
    # Longer digit strings are refused before int(): it has a limit of its own and another message.
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) < 65536):
        raise ValueError(f"{option}: {text!r} is not a port (0-65535)")
    return int(text)


def _protocols(batch: Batch) -> NDArray[np.uint8]:
    import numpy as np

    return (batch.ports >> np.uint64(8)).astype(np.uint8)


def _table(size: int, intervals: Iterable[tuple[int, int]]) -> NDArray[np.bool_]:
    """bool[size], true inside the intervals; everywhere if there are none."""
    import numpy as np

    intervals = list(intervals)
    table = np.full(size, not intervals)
    for first, last in intervals:
        table[first : last + 1] = True
    return table


def _source_mask(batch: Batch, intervals: tuple[Addresses, ...]) -> NDArray[np.bool_]:
    return _inside(batch.addresses, 0, intervals) | _inside(batch.reply_addresses, 1, intervals)


def _destination_mask(batch: Batch, intervals: tuple[Addresses, ...]) -> NDArray[np.bool_]:
    return _inside(batch.addresses, 1, intervals) | _inside(batch.reply_addresses, 0, intervals)


def _inside(words: tuple[U64, ...], end: int, intervals: tuple[Addresses, ...]) -> NDArray[np.bool_]:
    """Where the source (end 0) or destination (end 1) of packed addresses lies in one of the intervals."""
    import numpy as np

    inside = np.zeros(len(words[0]), np.bool_)
    if len(words) == 1:
        address = words[0] & np.uint64(LOW_32) if end else words[0] >> np.uint64(32)
        for interval in intervals:
            if interval.family == 4:
                inside |= (address >= np.uint64(interval.first)) & (address <= np.uint64(interval.last))
        return inside
    high, low = words[2 * end], words[2 * end + 1]
    for interval in intervals:
        if interval.family == 6:
            first_high, first_low, last_high, last_low = (np.uint64(word) for word in _words(interval))
            inside |= ((high > first_high) | (high == first_high) & (low >= first_low)) & (
                (high < last_high) | (high == last_high) & (low <= last_low)
            )
    return inside


def _words(interval: Addresses) -> tuple[int, int, int, int]:
    return interval.first >> 64, interval.first & LOW_64, interval.last >> 64, interval.last & LOW_64


def _addresses_sql(columns: Iterable[str], intervals: tuple[Addresses, ...]) -> str:
    return _any(_address_sql(column, interval) for column in columns for interval in intervals)


def _address_sql(column: str, interval: Addresses) -> str:
    first_high, first_low, last_high, last_low = _words(interval)
    if interval.family == 4:
        return f"(family = 4 AND {column}_lo BETWEEN {first_low} AND {last_low})"
    if first_high == last_high:
        return f"(family = 6 AND {column}_hi = {first_high} AND {column}_lo BETWEEN {first_low} AND {last_low})"
    return (
        f"(family = 6"
        f" AND ({column}_hi > {first_high} OR ({column}_hi = {first_high} AND {column}_lo >= {first_low}))"
        f" AND ({column}_hi < {last_high} OR ({column}_hi = {last_high} AND {column}_lo <= {last_low})))"
    )


def _ports_sql(columns: Iterable[str], intervals: tuple[Ports, ...]) -> str:
    return _any(f"{column} BETWEEN {ports.first} AND {ports.last}" for column in columns for ports in intervals)


def _any(conditions: Iterable[str]) -> str:
    return "(" + " OR ".join(conditions) + ")"


def quoted(text: str) -> str:
    """A text as an SQL literal. Bytes that are no text are '?' there, as in recordings."""
    return "'" + text.encode(errors="replace").decode().replace("'", "''") + "'"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10


def _process_sql(end: str, text: str) -> str:
    """A pid, a path, '(kernel)' or '(forwarded)' as they are shown, or a name: of the thread or of the program."""
    if _is_number(text):
        return f"{end}_pid = {int(text)}"
    if "/" in text:
        return f"{end}_exe = {quoted(text)}"
    if text.startswith("(") and text.endswith(")"):
        return f"({end}_kind = {quoted(text[1:-1])} OR {end}_comm = {quoted(text)})"
    return f"({end}_comm = {quoted(text)} OR ends_with({end}_exe, {quoted('/' + text)}))"


def _user_sql(end: str, text: str) -> str:
    return f"{end}_uid = {int(text)}" if _is_number(text) else f"{end}_user = {quoted(text)}"


def _unit_sql(end: str, text: str) -> str:
    """A unit; without a suffix a service, as systemctl(1) takes it."""
    return f"{end}_unit IN ({quoted(text)}, {quoted(text + '.service')})"


def _container_sql(end: str, text: str) -> str:
    """A name or an id, or the first digits of an id."""
    condition = f"{end}_container = {quoted(text)}"
    if set(text) <= set("0123456789abcdef"):
        condition += f" OR starts_with({end}_container, {quoted(text)}) AND {_IS_ID.format(f'{end}_container')}"
    return f"({condition})"
