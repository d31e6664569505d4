"""Rows of the BPF programs, and the sides they are."""

from __future__ import annotations

import ipaddress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from conntracker.owner import CERTAINTIES, METHODS
from conntracker.wire.ownership import KEY, SIDE, USER, USERS, sides_of, users_of
from conntracker.wire.sides import ANY_LOCAL, CLOSER, FIXED, SIDES, mapped

OFFSET = 1_700_000_000_000_000_000  # nanoseconds from boot to the epoch, as if booted in 2023
ANY4 = "0.0.0.0"  # noqa: S104
OWNER, USED = (100, 1, b"owner"), (200, 2, b"user")
NOT_USED = (0, 0, b"")

# enum how of owners.bpf.c
NOBODY, CREATE, BIND, CONNECT, ACCEPT, SENDMSG, RECVMSG = range(7)
INHERITED, RELEASED = 4, 8  # flags

# how, flags, user, how often the user changed; the process, certainty, bits of wild
CASES = [
    (NOBODY, 0, NOT_USED, 0, OWNER, "inherited", 0),
    (CREATE, 0, NOT_USED, 0, OWNER, "inherited", 0),
    (BIND, 0, NOT_USED, 0, OWNER, "inherited", 0),
    (CONNECT, 0, NOT_USED, 0, OWNER, "exact", 0),
    (ACCEPT, 0, NOT_USED, 0, OWNER, "holder", 0),
    (SENDMSG, 0, NOT_USED, 0, OWNER, "exact", FIXED),
    (RECVMSG, 0, NOT_USED, 0, OWNER, "exact", FIXED),
    # The socket of a listening one's child: whoever made that.
    (BIND, INHERITED, NOT_USED, 0, OWNER, "inherited", 0),
    (CONNECT, INHERITED, NOT_USED, 0, OWNER, "inherited", 0),
    # Somebody was seen using it.
    (NOBODY, 0, USED, 0, USED, "exact", 0),
    (BIND, INHERITED, USED, 0, USED, "exact", 0),
    (CONNECT, 0, USED, 3, USED, "shared", 0),
    (ACCEPT, 0, USED, 0, USED, "exact", 0),
    # Who names the peer with each datagram is known for each.
    (SENDMSG, 0, USED, 5, OWNER, "exact", FIXED),
    (RECVMSG, 0, USED, 0, OWNER, "exact", FIXED),
    # Nobody was seen using it, and another than its owner closed it last.
    (NOBODY, RELEASED, USED, 0, USED, "holder", CLOSER),
    (BIND, RELEASED | INHERITED, USED, 0, USED, "holder", CLOSER),
    (ACCEPT, RELEASED, USED, 0, USED, "shared", CLOSER),
    (CONNECT, RELEASED, USED, 0, OWNER, "exact", 0),
    (SENDMSG, RELEASED, USED, 0, OWNER, "exact", FIXED),
]


def actor(who: tuple[int, int, bytes], time: int) -> tuple[Any, ...]:
    """A struct actor: of a thread with another id than its process, in cgroup 77."""
    pid, uid, comm = who
    return (pid, pid + 1, uid, uid, 77 if pid else 0, time, comm)


def key(local: str = "10.0.0.1", remote: str = "10.0.0.2", lport: int = 4000, rport: int = 443) -> NDArray[Any]:
    """One key, its addresses in network byte order."""
    rows = np.zeros(1, KEY)
    rows["cookie"], rows["netns"], rows["lport"], rows["rport"], rows["proto"] = 5, 6, lport, rport, 17
    for end, text in (("local", local), ("remote", remote)):
        address = ipaddress.ip_address(text)
        full = address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed
        rows[end] = np.frombuffer(full, ">u8")
    return rows


def side(
    how: int, flags: int = 0, user: tuple[int, int, bytes] = NOT_USED, users: int = 0, closed: int = 0
) -> NDArray[Any]:
    """One value; its owner at 1 ms after boot, its user at 2 ms, its first packet at 3 ms."""
    rows = np.zeros(1, SIDE)
    rows[0] = (actor(OWNER, 10**6), actor(user, 2 * 10**6), 3 * 10**6, closed, how, flags, users, 0)
    return rows


@pytest.mark.parametrize(("how", "flags", "user", "users", "who", "certainty", "wild"), CASES)
def test_cases(
    how: int, flags: int, user: tuple[int, int, bytes], users: int, who: tuple[int, int, bytes], certainty: str,
    wild: int,
) -> None:  # fmt: skip
    """Who owns a side, and how sure that is, comes of how its owner was found and of who used it."""
    (row,) = sides_of(key(), side(how, flags, user, users), OFFSET)
    assert (row["pid"], row["uid"], row["comm"]) == who
    assert (METHODS[row["method"]], CERTAINTIES[row["certainty"]]) == ("bpf", certainty)
    assert row["wild"] == wild
    assert row["cgroup"] == 77
    assert row["time"] == OFFSET // 1000 + (1000 if who == OWNER else 2000)


@pytest.mark.parametrize("how", range(7))
@pytest.mark.parametrize("flags", [0, INHERITED])
def test_without_uses(how: int, flags: int) -> None:
    """Where uses are not seen, who connected a socket had it, but may have handed it on."""
    certainties = [
        CERTAINTIES[sides_of(key(), side(how, flags), OFFSET, uses)["certainty"][0]] for uses in (True, False)
    ]
    if how == CONNECT and not flags:
        assert certainties == ["exact", "holder"]
    else:
        assert certainties[0] == certainties[1]


@pytest.mark.parametrize(("local", "wild"), [(ANY4, ANY_LOCAL), ("::", ANY_LOCAL), ("::1", 0), ("127.0.0.1", 0)])
def test_unbound(local: str, wild: int) -> None:
    """A datagram that was told by its call comes from any of our addresses where its socket is bound to none."""
    assert sides_of(key(local, "10.0.0.2" if "." in local else "::1"), side(SENDMSG), OFFSET)["wild"][0] == FIXED | wild


@pytest.mark.parametrize(
    ("local", "remote"), [("10.0.0.1", "192.0.2.255"), ("fd00::1", "2001:db8::ffff:1"), ("::1", "::1")]
)
def test_ends(local: str, remote: str) -> None:
    """Addresses become words, IPv4 as mapped ones; ports, protocol and cookies stay as they are."""
    (row,) = sides_of(key(local, remote, 65535, 1), side(CONNECT), OFFSET)
    assert [(row[f"{end}_hi"], row[f"{end}_lo"]) for end in ("local", "remote")] == [
        mapped(int(ipaddress.ip_address(text)), ipaddress.ip_address(text).version) for text in (local, remote)
    ]
    assert (row["lport"], row["rport"], row["proto"], row["cookie"], row["netns"]) == (65535, 1, 17, 5, 6)


@pytest.mark.parametrize(("closed", "last"), [(0, -1), (5 * 10**6, OFFSET // 1000 + 5000)])
def test_times(closed: int, last: int) -> None:
    """A side begins with its first packet, and ends when its socket is closed."""
    (row,) = sides_of(key(), side(CONNECT, closed=closed), OFFSET)
    assert (row["first"], row["last"]) == (OFFSET // 1000 + 3000, last)


def test_nobody() -> None:
    """A socket that no process was seen at has the process 0."""
    values = side(NOBODY)
    values["owner"] = 0
    assert sides_of(key(), values, OFFSET)["pid"] == 0


def test_none() -> None:
    """No rows make no sides and no users."""
    assert len(sides_of(np.empty(0, KEY), np.empty(0, SIDE), OFFSET)) == 0
    assert len(users_of(np.empty(0, USER), OFFSET)) == 0


@pytest.mark.parametrize(("changes", "shared"), [(0, False), (1, True), (9, True)])
def test_users(changes: int, shared: bool) -> None:
    """A user is the process seen last on a socket, which it shares if others were before."""
    values = np.zeros(1, USER)
    values[0] = (actor(USED, 2 * 10**6), 5, changes, 0)
    (row,) = users_of(values, OFFSET)
    assert row.tolist() == (5, 200, 2, 77, OFFSET // 1000 + 2000, b"user", shared)


@given(st.binary(min_size=3 * (KEY.itemsize + SIDE.itemsize), max_size=3 * (KEY.itemsize + SIDE.itemsize)))
def test_any_rows(data: bytes) -> None:
    """Any bytes in the maps make rows whose method and certainty are known ones."""
    keys, values = np.frombuffer(data, KEY, 3), np.frombuffer(data, SIDE, 3, 3 * KEY.itemsize)
    rows = sides_of(keys, values, OFFSET)
    assert rows.dtype == SIDES
    assert all(row["method"] < len(METHODS) and row["certainty"] < len(CERTAINTIES) for row in rows)
    assert users_of(np.frombuffer(data, USER, 3), OFFSET).dtype == USERS
