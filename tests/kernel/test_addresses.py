"""Which addresses are the host's, asked of real network namespaces."""

from __future__ import annotations

import contextlib
import ipaddress
import subprocess
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.sources import addresses
from conntracker.sources.addresses import LocalAddresses
from conntracker.sources.netns import Namespace
from conntracker.wire.route import Prefix
from conntracker.wire.sides import mapped


def ip(*commands: str) -> None:
    """Has ip(8) change something in the namespace of the calling thread."""
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)


def ours(known: LocalAddresses, *texts: str) -> list[bool]:
    """Which of the addresses are ours."""
    words = [mapped(int(one), one.version) for one in map(ipaddress.ip_address, texts)]
    hi, lo = (np.array(column, np.uint64) for column in zip(*words, strict=True))
    return [bool(one) for one in known.contains(hi, lo)]


@pytest.fixture
def known(space: Namespace) -> Iterator[LocalAddresses]:
    """Those of a namespace in which loopback and one interface have addresses."""
    ip(
        "link set lo up", "link add d0 type veth peer d1", "link set d0 up", "link set d1 up",
        "addr add 10.1.0.5/24 dev d0", "addr add fd01::5/64 dev d0 nodad", "addr add 10.7.0.1 peer 10.7.0.2 dev d0",
    )  # fmt: skip
    with contextlib.closing(LocalAddresses()) as made:
        yield made


# address, whether it is the host's
CASES = [
    ("127.0.0.1", True), ("127.255.3.4", True), ("10.1.0.5", True), ("10.1.0.255", True), ("10.1.0.6", False),
    ("10.7.0.1", True), ("10.7.0.2", False), ("10.1.1.5", False), ("126.255.255.255", False), ("128.0.0.0", False),
    ("0.0.0.1", False), ("223.255.255.255", False), ("224.0.0.1", True), ("239.255.255.255", True),
    ("240.0.0.0", False), ("255.255.255.255", True), ("255.255.255.254", False), ("::1", True), ("::", False),
    ("::2", False), ("fd01::5", True), ("fd01::", False), ("fd01::6", False), ("ff02::1", True), ("feff::1", False),
    ("2001:db8::1", False), ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", True),
]  # fmt: skip


def test_cases(known: LocalAddresses) -> None:
    """Addresses of interfaces, their broadcast addresses and multicast are ours; neighbours and peers are not."""
    assert dict(zip((text for text, _ in CASES), ours(known, *(text for text, _ in CASES)), strict=True)) == dict(CASES)


def test_nothing_to_ask(known: LocalAddresses) -> None:
    """No addresses are no answers."""
    assert known.contains(np.zeros(0, np.uint64), np.zeros(0, np.uint64)).tolist() == []


def test_added_and_removed(known: LocalAddresses) -> None:
    """A refresh asks only if something changed, and what was ours once stays."""
    known.refresh()
    assert not known.refresh()
    ip("addr add 10.2.0.5/24 dev d0", "addr add fd02::5/64 dev d0 nodad")
    assert ours(known, "10.2.0.5", "fd02::5") == [False, False]
    assert known.refresh()
    assert ours(known, "10.2.0.5", "fd02::5") == [True, True]
    ip("addr del 10.2.0.5/24 dev d0", "addr del fd02::5/64 dev d0")
    known.refresh()
    assert ours(known, "10.2.0.5", "fd02::5", "10.1.0.5") == [True, True, True]


def test_other_routes_change_nothing(known: LocalAddresses) -> None:
    """Routes to others are no reason to ask again, and make no address ours."""
    known.refresh()
    ip("route add 192.0.2.0/24 dev d0", "route add 2001:db8::/32 dev d0")
    assert not known.refresh()
    assert ours(known, "192.0.2.1", "2001:db8::1") == [False, False]


def test_any_ip(known: LocalAddresses) -> None:
    """Prefixes that are routed to the host itself are ours, from their first address to their last."""
    ip("route add local 10.9.0.0/16 dev lo", "route add local 2001:db8:9::/48 dev lo")
    assert known.refresh()
    inside = ("10.9.0.0", "10.9.255.255", "2001:db8:9::", "2001:db8:9:ffff:ffff:ffff:ffff:ffff")
    outside = ("10.8.255.255", "10.10.0.0", "2001:db8:8:ffff:ffff:ffff:ffff:ffff", "2001:db8:a::")
    assert ours(known, *inside, *outside) == [True] * 4 + [False] * 4


def test_all_of_one_family(known: LocalAddresses) -> None:
    """Where all of IPv6 is routed to the host itself, IPv4 is not."""
    ip("route add local ::/0 dev lo")
    assert known.refresh()
    assert ours(known, "2001:db8::1", "192.0.2.1", "10.1.0.5") == [True, False, True]


def test_transparent_proxy(known: LocalAddresses) -> None:
    """A 'local default' of another table, as transparent proxies have it, makes nothing ours."""
    ip("route add local 0.0.0.0/0 dev lo table 100")
    known.refresh()
    assert ours(known, "192.0.2.1") == [False]


def test_another_table(known: LocalAddresses) -> None:
    """The addresses of interfaces are ours where another table has their local routes, as with those in a VRF."""
    known.refresh()
    ip("addr add 10.3.0.5/24 dev d1", "route del local 10.3.0.5 dev d1 table local")
    ip("route add local 10.3.0.5 dev d1 table 10")
    assert known.refresh()
    assert ours(known, "10.3.0.5", "10.3.0.6") == [True, False]


def test_another_namespace(space: Namespace) -> None:
    """Addresses are those of the namespace given, also when the thread is elsewhere and its descriptor closed."""
    other = Namespace.create()
    with contextlib.closing(LocalAddresses(other)) as known:
        with other:
            ip("link set lo up", "route add local 10.9.0.0/16 dev lo")
        ip("link set lo up", "route add local 10.10.0.0/16 dev lo")
        other.close()
        known.refresh()
        assert ours(known, "10.9.1.1", "10.10.1.1") == [True, False]


def test_overrun(known: LocalAddresses) -> None:
    """More changes than the kernel keeps for us count as a change."""
    known.refresh()
    batch = [f"route {do} 192.0.2.0/24 dev d0" for _ in range(2000) for do in ("add", "del")]
    ip(*batch, "route add local 10.9.0.0/16 dev lo")
    assert known.refresh()
    assert ours(known, "10.9.1.1") == [True]


def test_bounded(known: LocalAddresses, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that went away, only the last ones are remembered; those of now always are."""
    monkeypatch.setattr(addresses, "MAX_PREFIXES", 40)
    for i in range(30):
        ip(f"route add local 10.50.{i}.0/25 dev lo")
        known.refresh()
        ip(f"route del local 10.50.{i}.0/25 dev lo")
    known.refresh()
    assert len(known._prefixes) <= 40
    assert ours(known, "10.50.0.1", "10.50.29.1", "10.1.0.5", "127.0.0.1") == [False, True, True, True]


def test_many_prefixes(known: LocalAddresses) -> None:
    """A thousand prefixes stay fast: 100,000 addresses take a few hundredths of a second."""
    ip(*(f"route add local 10.{i // 128}.{i % 128 * 2}.0/24 dev lo" for i in range(1280) if i // 128 != 1))
    assert known.refresh()
    lo = np.uint64(0xFFFF << 32 | 0x0A000000) + np.arange(0, 10 << 16, 6, dtype=np.uint64)
    begin = time.perf_counter()
    found = known.contains(np.zeros(len(lo), np.uint64), lo)
    assert time.perf_counter() - begin < 1
    third = lo >> np.uint64(8) & np.uint64(0xFF)
    second = lo >> np.uint64(16) & np.uint64(0xFF)
    expected = (third & np.uint64(1)) == 0
    assert (found == expected)[(second != 1) & (second != 7)].all()


def shares(family: int, address: int, prefix: Prefix) -> bool:
    """Whether an address begins as the prefix does."""
    rest = (32 if family == 4 else 128) - prefix.length
    return family == prefix.family and address >> rest == prefix.address >> rest


def prefixes_of(family: int) -> st.SearchStrategy[Prefix]:
    """Any prefix of a family."""
    bits = 32 if family == 4 else 128
    return st.builds(
        lambda address, length: Prefix(family, address >> bits - length << bits - length, length),
        st.integers(0, (1 << bits) - 1),
        st.integers(0, bits),
    )


@given(st.lists(prefixes_of(4) | prefixes_of(6), max_size=20), st.lists(st.integers(0, 2**128 - 1), max_size=5))
def test_any_prefixes(prefixes: list[Prefix], others: list[int]) -> None:
    """An address is inside exactly if it shares the bits of one of the prefixes of its family."""
    known = LocalAddresses.__new__(LocalAddresses)
    known._prefixes = {}
    known._keep(prefixes)
    asked = [(4, n & 2**32 - 1) for n in others] + [(6, n) for n in others if n >> 32 != 0xFFFF]
    for family, first, length in prefixes:
        bits = 32 if family == 4 else 128
        last = first + (1 << bits - length) - 1
        near = [n for n in (first - 1, first, last, last + 1) if 0 <= n < 1 << bits]
        asked += [(family, n) for n in near if family == 4 or n >> 32 != 0xFFFF]
    wanted = [any(shares(family, n, prefix) for prefix in (*prefixes, *addresses._ALWAYS)) for family, n in asked]
    words = np.array([mapped(n, f) for f, n in asked], np.uint64).reshape(-1, 2)
    assert known.contains(words[:, 0], words[:, 1]).tolist() == wanted
