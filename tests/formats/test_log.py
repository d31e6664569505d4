"""The original's log."""

from __future__ import annotations

import io
import socket

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.formats import log
from conntracker.formats.owner import sender, senders_text
from conntracker.model import ADDRESS_COLUMNS, LOG_GROUPS
from conntracker.owner import FORWARDS, INHERITED, KERNELS, Owner
from support.senders import owner

Line = tuple[int, int, int, int]
OWNERS = {
    2: owner("ssh", 5057, 1000, user="me"), 3: owner("nginx", 7, 33, INHERITED), 4: KERNELS, 7: FORWARDS,
    9: owner("a" * 15, 4194304, user="u" * 32), 10: owner("caf\u00e9\n", 1),
}  # fmt: skip


def written(label: str, lines: list[Line], owners: list[int] | None = None) -> bytes:
    """The log of the directions of one group, with the numbers of their owners."""
    wanted = next((family, proto) for name, family, proto in LOG_GROUPS if name == label)
    bits = 8 if label.startswith("ICMP") else 16

    def directions(family: int, proto: int) -> log.Directions | log.OwnedDirections:
        chosen = lines if (family, proto) == wanted else []
        low = 2**64 - 1
        if family == 4:
            words = [[src << 32 | dst for src, dst, _, _ in chosen]]
        else:
            words = [
                [v[i] >> 64 if high else v[i] & low for v in chosen] for i, high in ((0, 1), (0, 0), (1, 1), (1, 0))
            ]
        ports = np.array([first << bits | second for _, _, first, second in chosen], np.uint32)
        addresses = tuple(np.array(word, np.uint64) for word in words)
        return (addresses, ports) if owners is None else (addresses, ports, np.array(owners[: len(chosen)], np.uint32))

    out = io.BytesIO()
    assert log.write_log(out, directions, None, None if owners is None else OWNERS) == len(set(lines))
    return out.getvalue()


def expected(label: str, lines: list[Line], owners: list[int] | None = None) -> bytes:
    """The same, a line at a time."""
    out = []
    had: dict[Line, list[Owner]] = {}
    for line, number in zip(lines, owners or [0] * len(lines), strict=True):
        had.setdefault(line, []).extend([OWNERS[number]] if number in OWNERS else [])
    domain, size = (socket.AF_INET, 4) if label.endswith("4") else (socket.AF_INET6, 16)
    for i, (src, dst, first, second) in enumerate(sorted(set(lines))):
        a, b = (socket.inet_ntop(domain, end.to_bytes(size, "big")) for end in (src, dst))
        text = senders_text([sender(one) for one in had[src, dst, first, second]])
        if label.startswith("ICMP"):
            behind = "" if text == "-" else f" ({text})"
            out.append(f"{label:>6} [{i:12}] src = {a} to dst = {b} (type={first} | code={second}){behind}\n")
        else:
            out.append(f"{label:>6} [{i:12}] src = {a} (port={first}) to dst = {b} (port={second}) ({text})\n")
    return "".join(out).encode()


def test_the_lines_of_the_original() -> None:
    """Blanks, brackets, numbering and order are the original's, byte for byte."""
    ours, theirs = (int.from_bytes(socket.inet_aton(a), "big") for a in ("10.250.97.151", "10.250.97.1"))
    assert written("TCPv4", [(ours, theirs, 677, 2049), (theirs, ours, 2049, 677)]) == (
        b" TCPv4 [           0] src = 10.250.97.1 (port=2049) to dst = 10.250.97.151 (port=677) (-)\n"
        b" TCPv4 [           1] src = 10.250.97.151 (port=677) to dst = 10.250.97.1 (port=2049) (-)\n"
    )
    assert written("ICMPv4", [(ours, 0x08080404, 8, 0)]) == (
        b"ICMPv4 [           0] src = 10.250.97.151 to dst = 8.8.4.4 (type=8 | code=0)\n"
    )


def test_the_lines_of_the_original_with_owners() -> None:
    """The owner stands where the original had it, and behind the type and code of ICMP, if there is one."""
    one, other = 0x0A000001, 0x0A000002
    assert written("TCPv4", [(one, other, 46666, 22), (other, one, 22, 46666)], [2, 0]) == (
        b" TCPv4 [           0] src = 10.0.0.1 (port=46666) to dst = 10.0.0.2 (port=22) (ssh,pid:5057,uid:me)\n"
        b" TCPv4 [           1] src = 10.0.0.2 (port=22) to dst = 10.0.0.1 (port=46666) (-)\n"
    )
    assert written("ICMPv4", [(one, other, 8, 0), (other, one, 8, 0)], [3, 0]) == (
        b"ICMPv4 [           0] src = 10.0.0.1 to dst = 10.0.0.2 (type=8 | code=0) (nginx,pid:7,uid:33,inherited)\n"
        b"ICMPv4 [           1] src = 10.0.0.2 to dst = 10.0.0.1 (type=8 | code=0)\n"
    )


def test_no_owner_is_known() -> None:
    """Looking for owners and finding none gives the log that there is without looking."""
    columns = np.array([1 << 32 | 2], np.uint64), np.array([3], np.uint32)

    def directions(family: int, proto: int) -> log.OwnedDirections:
        rows = 1 if (family, proto) == (4, 6) else 0
        return (columns[0][:rows],) * (1 if family == 4 else 4), columns[1][:rows], columns[1][:rows]

    out = io.BytesIO()
    assert log.write_log(out, directions, None, {}) == 1
    assert out.getvalue() == expected("TCPv4", [(1, 2, 0, 3)])


def test_a_direction_of_several_owners() -> None:
    """A direction that was used again has its owners in the order in which they came, each once."""
    line = (1, 2, 3, 4)
    assert written("UDPv4", [line] * 5, [4, 0, 2, 4, 7]).endswith(
        b"(port=4) (kernel; ssh,pid:5057,uid:me; forwarded)\n"
    )


def lines(bits: int, ports: int) -> st.SearchStrategy[list[Line]]:
    """Directions with many equal parts, so that every level of the order is used."""
    address = st.integers(0, 2**bits - 1) | st.sampled_from([0, 1, 2**bits - 1, 0xFFFF0A000001 % 2**bits])
    port = st.integers(0, ports) | st.sampled_from([0, 1])
    return st.lists(st.tuples(address, address, port, port), max_size=60)


@pytest.mark.parametrize("label", [label for label, _, _ in LOG_GROUPS])
@given(data=st.data())
def test_any_directions_are_sorted_and_distinct(label: str, data: st.DataObject) -> None:
    """Whatever comes in, the lines are those of a plain sort, each once, numbered from 0."""
    given_ = data.draw(lines(32 if label.endswith("4") else 128, 255 if label.startswith("ICMP") else 65535))
    assert written(label, given_) == expected(label, given_)


@pytest.mark.parametrize("label", [label for label, _, _ in LOG_GROUPS])
@given(data=st.data())
def test_any_directions_have_their_owners(label: str, data: st.DataObject) -> None:
    """Whatever owners directions have, each line is a plain one with their text; an unknown number is nobody."""
    given_ = data.draw(lines(32 if label.endswith("4") else 128, 255 if label.startswith("ICMP") else 65535))
    given_ = [*given_, *data.draw(st.lists(st.sampled_from(given_), max_size=9) if given_ else st.just([]))]
    number = st.sampled_from([0, *OWNERS, 1, 11, 2**32 - 1])
    numbers = data.draw(st.lists(number, min_size=len(given_), max_size=len(given_)))
    assert written(label, given_, numbers) == expected(label, given_, numbers)


@pytest.mark.parametrize("first", [0, 9_998, 99_999_995, 123_456_789_000])
def test_numbers_of_any_size_are_aligned(first: int) -> None:
    """The number takes twelve places, whether it has one digit or twelve."""
    zero, ports = np.zeros(10, np.uint64), np.arange(10, dtype=np.uint16)
    columns = dict.fromkeys(ADDRESS_COLUMNS, zero) | {"sport": ports, "dport": ports}
    out = io.BytesIO()
    log.write_directions(out, "UDPv4", columns, first)
    numbers = [line[8:20].decode() for line in out.getvalue().splitlines()]
    assert numbers == [f"{first + i:12}" for i in range(10)]


def test_more_lines_than_one_piece() -> None:
    """A group larger than one piece of rows is written whole and in order."""
    many = [(i, 1, i % 7, 80) for i in range(40_000)]
    assert written("TCPv4", many) == expected("TCPv4", many)
    owners = [i % 11 for i in range(40_000)]
    assert written("TCPv4", many, owners) == expected("TCPv4", many, owners)
