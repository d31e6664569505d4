"""What it costs to know owners: the programs at sockets (sources/bpf/), reading their rows, and long runs.

Everything happens on loopback in network namespaces and in a cgroup made for it, which are gone at the end. The load is
bench/c/owned.c on one CPU. `all` has every program attached, `hooks` the cgroup's alone, as without CAP_PERFMON.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import resource
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import common
from conntracker.owners import Sides
from conntracker.ownerwatch import OwnerOptions, OwnerWatch
from conntracker.sources.bpf import ownership
from conntracker.sources.bpf.calls import Map
from conntracker.sources.bpf.ownership import Ownership
from conntracker.sources.cgroups import id_of, open_root
from conntracker.sources.netns import Namespace
from conntracker.wire.ownership import KEY, SIDE, USER, sides_of

# Mode of owned.c, how much of it, the least share of operations per CPU second that must be left.
LOADS = (
    ("connect", 4000, 0.70), ("datagram", 40000, 0.75), ("connected", 40000, None), ("request", 8000, None),
    ("bulk", 800, 0.97),
)  # fmt: skip
OFF, ALL, HOOKS = "none", "all", "hooks"
_BEST_OF = 3  # what others do on the machine makes a run dearer, never cheaper
PARTS = ("overhead", "programs", "reading", "long")

_NEXT_TAKE = 0.1  # seconds, as OwnerWatch
_FLUSH = 5.0
_BPF, _OBJ_GET_INFO, _ENABLE_STATS = {"x86_64": 321}.get(os.uname().machine, 280), 15, 32


# ------------------------------------------------------------------ the place


@dataclass(frozen=True, slots=True)
class Place:
    """A cgroup and a network namespace with loopback, both of our own; `cgroup` is its descriptor."""

    cgroup: int
    space: Namespace
    owned: str

    def command(self, mode: str, *words: object, cpu: int = common.GENERATOR_CPU) -> list[str]:
        """The command of a load in the cgroup on one CPU; start it inside the namespace."""
        procs = f"/proc/{os.getpid()}/fd/{self.cgroup}/cgroup.procs"
        enter = ["sh", "-c", 'echo 0 >"$0"; exec "$@"', procs]
        return [*enter, "taskset", "-c", str(cpu), self.owned, mode, *map(str, words)]

    def cpu(self, mode: str, count: int) -> float:
        """Runs a load to its end. Returns the seconds of CPU that it took."""
        with self.space:
            return common.measured(self.command(mode, count)).cpu


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """Makes both, and takes them away."""
    with contextlib.ExitStack() as stack:
        try:
            root = open_root()
        except OSError as error:
            common.give_up(str(error.strerror))
        stack.callback(os.close, root)
        name = f"conntracker-bench-{os.getpid()}"
        os.mkdir(name, dir_fd=root)
        stack.callback(_remove, name, root)
        cgroup = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=root)
        stack.callback(os.close, cgroup)
        space = Namespace.create()
        stack.callback(space.close)
        with space:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield Place(cgroup, space, common.build("owned"))


def _remove(name: str, root: int) -> None:
    for _ in range(100):  # the last process may be leaving still
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=root)
            return
        time.sleep(0.05)
    os.rmdir(name, dir_fd=root)


@contextlib.contextmanager
def attached(where: Place, side: str) -> Iterator[Ownership | None]:
    """The programs of a side, whose rows are taken ten times a second meanwhile."""
    if side == OFF:
        yield None
        return
    with Ownership(where.cgroup, uses=side == ALL) as programs:
        ended = threading.Event()

        def drain() -> None:
            while not ended.wait(_NEXT_TAKE):
                programs.take()

        thread = threading.Thread(target=drain)
        thread.start()
        try:
            yield programs
        finally:
            ended.set()
            thread.join()


# ------------------------------------------------------------------ overhead


def overhead(where: Place, rounds: int, loads: Sequence[str]) -> list[common.Claim]:
    """Operations per CPU second with the programs against none, in each round beside each other."""
    chosen = [load for load in LOADS if load[0] in loads]

    def one(side: str, _: int) -> dict[str, float]:
        with attached(where, side):
            return {mode: min(where.cpu(mode, count) for _ in range(_BEST_OF)) for mode, count, _ in chosen}

    one(OFF, 0)
    sides = (OFF, ALL, HOOKS)
    results = common.interleaved(sides, rounds, one)
    rows, claims = [], []
    for mode, count, least in chosen:
        spent = {side: [result[mode] for result in results[side]] for side in sides}
        without = common.median(spent[OFF])
        for side in sides:
            share = common.median(off / on for off, on in zip(spent[OFF], spent[side], strict=True))
            more = (common.median(spent[side]) - without) / count * 1e9
            rows.append((f"{mode}, {side}", round(count / common.median(spent[side])), share, round(more)))
            if least is not None and side != OFF:
                text = f"{mode}, {side}: CPU against none attached"
                claims.append(common.Claim(text, 1 / share, round(1 / least, 3), "times"))
    common.table(("", "a CPU second", "share", "more ns each"), rows)
    return claims


def programs_table(where: Place) -> list[common.Claim]:
    """How long each program runs, as the kernel counts it (BPF_ENABLE_STATS), which itself takes some time."""
    runs: dict[str, list[tuple[int, int]]] = {}
    counting = _bpf(_ENABLE_STATS, bytes(4))
    try:
        for mode, count, _ in LOADS:
            with attached(where, ALL) as held:
                assert held is not None
                where.cpu(mode, count)
                for fd in held._programs:
                    name, spent, times = _statistics(fd)
                    runs.setdefault(name, []).append((spent, times))
    finally:
        os.close(counting)
    print("ns a run, and runs an operation")
    rows = []
    for name, measured in sorted(runs.items()):
        cells = [
            f"{spent / times:.0f} x {times / count:.2f}" if times > 100 else "-"
            for (spent, times), (_, count, _) in zip(measured, LOADS, strict=True)
        ]
        rows.append((name, *cells))
    common.table(("", *(mode for mode, _, _ in LOADS)), rows)
    return []


def _bpf(command: int, attributes: bytes | ctypes.Array[ctypes.c_char]) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(ctypes.c_long(_BPF), command, attributes, len(attributes)))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _statistics(fd: int) -> tuple[str, int, int]:
    """Name, nanoseconds and runs of a program: struct bpf_prog_info of linux/bpf.h."""
    info = ctypes.create_string_buffer(208)
    _bpf(_OBJ_GET_INFO, struct.pack("<IIQ", fd, len(info), ctypes.addressof(info)))
    name, spent, times = struct.unpack_from("<64x16s112xQQ", info)
    return name.rstrip(b"\0").decode(), spent, times


# ------------------------------------------------------------------ reading


def reading(where: Place, rounds: int, flows: int = 50000) -> list[common.Claim]:
    """Taking and reading the rows of many flows, against the same in C."""
    spent: dict[str, list[float]] = {name: [] for name in ("look, C", "read", "take, C", "take", "take, as sides")}
    with Ownership(where.cgroup) as programs:
        rows = programs._maps["ct_sides"]

        def fill() -> None:
            rows.take(KEY, SIDE)
            where.cpu("peers", flows)

        def timed(name: str, run: Callable[[], int]) -> None:
            start = time.perf_counter()
            assert run() >= flows
            spent[name].append(time.perf_counter() - start)

        for _ in range(rounds):
            fill()
            spent["look, C"].append(_in_c(where, rows, "look", flows))
            timed("read", lambda: len(rows.read(KEY, SIDE)[0]))
            timed("take", lambda: len(rows.take(KEY, SIDE)[0]))
            fill()
            spent["take, C"].append(_in_c(where, rows, "take", flows))
            fill()
            timed("take, as sides", lambda: len(sides_of(*rows.take(KEY, SIDE), 0)))
        assert programs.lost == 0
    milliseconds = {name: 1000 * common.median(times) for name, times in spent.items()}
    common.table((f"{flows:,} flows", "ms"), list(milliseconds.items()))
    return [
        common.Claim(f"{one} against C", milliseconds[one] / milliseconds[other], 1.5, "times")
        for one, other in (("read", "look, C"), ("take", "take, C"))
    ]


def _in_c(where: Place, rows: Map, mode: str, flows: int) -> float:
    words = (rows.fd, rows.shape.key_size, rows.shape.value_size, 1 << 16)
    found = subprocess.run(
        [where.owned, mode, *map(str, words)], pass_fds=(rows.fd,), stdout=subprocess.PIPE, text=True, check=True
    )
    entries, seconds = found.stdout.split()
    assert int(entries) >= flows
    return float(seconds)


# ------------------------------------------------------------------ long runs


def long(where: Place, connections: int) -> list[common.Claim]:
    """Many connections while owners are watched: what stays in the kernel and in this process; CPU of watching."""
    step = connections // 10
    rows, resident, left, cpu, begun = [], [], [], [], time.monotonic()
    with OwnerWatch(where.space, OwnerOptions(f"/proc/self/fd/{where.cgroup}"), print) as watch:
        held = watch._bpf
        assert held is not None
        sides = Sides(where.space.cookie, watch.numbers.variant)
        idle = _idle(watch, sides)
        for number in range(10):
            before = time.process_time()
            _churn(where, watch, sides, step)
            cpu.append(time.process_time() - before)
            entries = [len(held._maps["ct_sides"].read(KEY, SIDE)[0]), _users_of_ours(held, where)]
            left.append(sum(entries))
            resident.append(_resident())
            rows.append(((number + 1) * step, *entries, len(sides), resident[-1], cpu[-1] / step * 1e6, held.lost))
        lost = held.lost
    common.table(("connections", "ct_sides", "ct_users", "sides", "MB", "ms CPU a 1,000", "lost"), rows)
    print(f"idle: {idle:.2f} ms of CPU a second; {time.monotonic() - begun:.0f} s in all")
    return [
        common.Claim("entries in the kernel at the end, against half the way", left[-1] - left[4], 1000),
        common.Claim("memory in the last third, against that before", max(resident[-3:]) / max(resident[-6:-3]), 1.05),
        common.Claim("rows lost", lost, 0),
    ]


def _users_of_ours(programs: Ownership, where: Place) -> int:
    """Entries of the load in ct_users, which has those of other cgroups, too: the tracepoints are the host's."""
    users = programs._maps["ct_users"].read(np.dtype("u8"), USER)[1]
    return int(np.count_nonzero(users["actor"]["cgroup"] == id_of(where.cgroup)))


def _churn(where: Place, watch: OwnerWatch, sides: Sides, count: int) -> None:
    with where.space:
        load = subprocess.Popen(where.command("churn", count))
    flush = time.monotonic() + _FLUSH
    while load.poll() is None:
        time.sleep(0.1)
        if time.monotonic() > flush:
            flush += _FLUSH
            _flush(watch, sides)
    assert load.returncode == 0
    watch.settle()
    _flush(watch, sides)


def _flush(watch: OwnerWatch, sides: Sides) -> None:
    """What a capture does with owners at each flush, but for looking at its flows."""
    found, users = watch.take()
    for rows, numbers in found:
        sides.add(rows, numbers)
    for rows, numbers in users:
        sides.use(rows, numbers)
    sides.merge()
    sides.news()
    sides.forget(time.time_ns() // 1000)


def _idle(watch: OwnerWatch, sides: Sides, seconds: float = 5.0) -> float:
    """Milliseconds of CPU a second while nothing happens."""
    before = time.process_time()
    time.sleep(seconds)
    _flush(watch, sides)
    return (time.process_time() - before) / seconds * 1000


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def main() -> int:
    """Measures, prints tables, and judges."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"only these of: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    parser.add_argument("--connections", type=int, default=1_000_000, metavar="N", help="of the long run")
    parser.add_argument("--object", type=Path, metavar="FILE", help="measure these programs instead")
    arguments = parser.parse_args()
    parts = arguments.parts or PARTS
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"no part called {', '.join(unknown)}")
    common.need_root()
    common.end_on_sigterm()
    if arguments.object is not None:
        ownership.OBJECT = arguments.object
    claims: list[common.Claim] = []
    with place() as where:
        if "overhead" in parts:
            claims += overhead(where, arguments.rounds, [mode for mode, _, _ in LOADS])
        if "programs" in parts:
            claims += programs_table(where)
        if "reading" in parts:
            claims += reading(where, max(5, arguments.rounds // 2))
        if "long" in parts:
            claims += long(where, arguments.connections)
    return common.judge(claims)


if __name__ == "__main__":
    sys.exit(main())
