"""Owners by number, against the processes of this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.clock import now
from conntracker.owner import (
    BPF,
    CERTAINTIES,
    EXACT,
    FORWARDS,
    HOLDER,
    KERNELS,
    METHODS,
    NO_ID,
    OPEN,
    PROCESS,
    SHARED,
)
from conntracker.ownernumbers import FORWARDED, KERNEL, NOBODY, OwnerNumbers
from conntracker.sources.processes import Processes
from conntracker.wire.ownership import USERS
from conntracker.wire.sides import ANY_REMOTE, CLOSER, SIDES

HERE, THERE = 11, 12  # network namespaces
KTHREADD = 2


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Those of this machine."""
    with contextlib.closing(Processes()) as made:
        yield made


@pytest.fixture
def numbers(processes: Processes) -> OwnerNumbers:
    """Numbers for owners, none of which has one yet."""
    return OwnerNumbers(processes, HERE)


def rows(*some: dict[str, Any]) -> Any:
    """SIDES rows of this process, or what is said instead."""
    made = np.zeros(len(some), SIDES)
    for i, fields in enumerate(some):
        for name, value in ({"pid": os.getpid(), "uid": os.getuid(), "netns": HERE, "time": now()} | fields).items():
            made[name][i] = value
    return made


def of(numbers: OwnerNumbers, *some: dict[str, Any], method: str = BPF, certainty: str = EXACT) -> list[int]:
    """Their numbers."""
    made = rows(*some)
    methods = np.full(len(made), METHODS.index(method), np.uint8)
    found: list[int] = numbers.of_rows(made, methods, np.full(len(made), CERTAINTIES.index(certainty))).tolist()
    return found


def test_two_are_always_there(numbers: OwnerNumbers) -> None:
    """The kernel and what is forwarded have numbers before anybody is seen; nobody has none."""
    assert numbers.owners == {KERNEL: KERNELS, FORWARDED: FORWARDS}
    assert of(numbers) == []
    assert of(numbers, {"pid": 0}) == [NOBODY]


def test_one_process_has_one_number(numbers: OwnerNumbers) -> None:
    """The same process has the same number in every row and reading, another process another one."""
    other = subprocess.Popen(["sleep", "60"])
    try:
        first, second, again = of(numbers, {}, {"pid": other.pid}, {})
    finally:
        other.kill()
        other.wait()
    assert first == again != second
    assert of(numbers, {}) == [first]
    owner = numbers.owners[first]
    assert owner.process is not None
    assert (owner.kind, owner.process.pid, owner.method, owner.certainty, owner.netns) == (
        PROCESS, os.getpid(), BPF, EXACT, None,
    )  # fmt: skip


def test_what_tells_owners_apart(numbers: OwnerNumbers) -> None:
    """How and how surely a process is known, and another network namespace, make another owner; an unknown one not."""
    (plain,) = of(numbers, {})
    others = [
        *of(numbers, {}, method=OPEN), *of(numbers, {}, certainty=HOLDER), *of(numbers, {"netns": THERE}),
    ]  # fmt: skip
    assert len({plain, *others}) == 4
    assert of(numbers, {"netns": 0}, {"wild": ANY_REMOTE}, {"wild": CLOSER}) == [plain] * 3
    assert [numbers.owners[number].netns for number in others] == [None, None, THERE]


def test_rows_of_users(numbers: OwnerNumbers) -> None:
    """Rows that say neither namespace nor whether who is told closed the socket are of the captured namespace."""
    used = np.zeros(1, USERS)
    used["pid"], used["uid"], used["time"] = os.getpid(), os.getuid(), now()
    assert numbers.of_rows(used, np.zeros(1, np.uint8), np.zeros(1, np.uint8)).tolist() == of(numbers, {})


def test_variants(numbers: OwnerNumbers) -> None:
    """A variant is the same process, shared or in another namespace, and has one number of its own."""
    (plain,) = of(numbers, {})
    shared, there = numbers.variant(plain, None), numbers.variant(plain, THERE)
    assert (shared, there) == (numbers.variant(plain, None), numbers.variant(plain, THERE))
    assert len({plain, shared, there}) == 3
    owners = [numbers.owners[number] for number in (plain, shared, there)]
    assert [(owner.certainty, owner.netns) for owner in owners] == [(EXACT, None), (SHARED, None), (EXACT, THERE)]
    assert len({id(owner.process) for owner in owners}) == 1
    assert of(numbers, {"netns": THERE}) == [there]
    assert numbers.variant(shared, None) == shared


@pytest.mark.parametrize("netns", [None, THERE])
@pytest.mark.parametrize("number", [NOBODY, KERNEL, FORWARDED, 99])
def test_what_has_no_variants(numbers: OwnerNumbers, number: int, netns: int | None) -> None:
    """What is no process, and a number that nobody has, stays what it is."""
    assert numbers.variant(number, netns) == number


def test_forgetting(numbers: OwnerNumbers) -> None:
    """What is asked for is kept, with the two that always are; what is not gets a new number when it comes again."""
    kept, dropped = *of(numbers, {}), *of(numbers, {}, certainty=HOLDER)
    owner = numbers.owners[kept]
    numbers.forget({kept, 99}, latest=0)
    assert numbers.owners == {KERNEL: KERNELS, FORWARDED: FORWARDS, kept: owner}
    assert of(numbers, {}) == [kept]
    (anew,) = of(numbers, {}, certainty=HOLDER)
    assert anew > max(kept, dropped)


def test_threads_of_the_kernel(numbers: OwnerNumbers) -> None:
    """A thread of the kernel at a socket is the kernel; that it closed one says nothing of whose that was."""
    name = Path(f"/proc/{KTHREADD}/comm")
    if not name.exists() or name.read_text() != "kthreadd\n":
        pytest.skip("in a namespace of process ids")
    assert of(numbers, {"pid": KTHREADD}, {"pid": KTHREADD, "wild": CLOSER}) == [KERNEL, NOBODY]


def test_a_process_that_is_gone(numbers: OwnerNumbers) -> None:
    """Of one that had ended before anybody looked, what was seen at the socket is known."""
    child = subprocess.Popen(["true"])
    child.wait()
    (number,) = of(numbers, {"pid": child.pid, "uid": 12345, "comm": b"gone", "time": now() + 5_000_000})
    process = numbers.owners[number].process
    assert process is not None
    assert (process.pid, process.uid) == (child.pid, 12345)


strangers = st.lists(
    st.tuples(st.integers(1, 2**22), st.sampled_from([0, 1000, NO_ID]), st.binary(max_size=16)), max_size=8
)


@given(strangers)
def test_ids_of_another_namespace(seen: list[tuple[int, int, bytes]]) -> None:
    """Where ids are another namespace's, /proc is not asked: a process is what was seen at the socket."""
    numbers = OwnerNumbers(None, HERE)
    some = [{"pid": pid, "uid": uid, "comm": comm} for pid, uid, comm in seen]
    first = of(numbers, *some)
    assert of(numbers, *some) == first
    for (pid, uid, _), number in zip(seen, first, strict=True):
        process = numbers.owners[number].process
        assert process is not None
        assert (process.pid, process.uid, process.start, process.exe) == (pid, uid, None, None)
        process.comm.encode()
    told = {(pid, uid, comm.split(b"\0")[0]) for pid, uid, comm in seen}
    assert len(set(first)) <= len(told)


@given(st.binary(max_size=16))
def test_names_of_any_bytes(name: bytes) -> None:
    """A name that is no text does no harm, and can be written."""
    numbers = OwnerNumbers(None, HERE)
    (number,) = of(numbers, {"comm": name})
    process = numbers.owners[number].process
    assert process is not None
    assert process.comm.encode().decode() == process.comm
