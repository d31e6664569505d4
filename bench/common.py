"""What the benchmarks share: C programs, a private network namespace, measured processes, claims that hold or fail."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn, Self

ROOT = Path(__file__).resolve().parent.parent
C_SOURCES = ROOT / "bench" / "c"
BUILD = ROOT / "bench" / "build"

GENERATOR_CPU, READER_CPU = 0, 1
RECEIVE_BUFFER = 64 << 20

NETLINK_NETFILTER = "12"
_RULES = """table inet bench {
    chain output { type filter hook output priority 0; policy accept; ct state new counter; }
}"""
_LIMITS = Path("/proc/sys/net/netfilter/nf_conntrack_max"), Path("/proc/sys/net/netfilter/nf_conntrack_buckets")


# ------------------------------------------------------------------ claims and tables


@dataclass(frozen=True, slots=True)
class Claim:
    """Something that must hold: `value` is at most `limit`."""

    text: str
    value: float
    limit: float
    unit: str = ""

    @property
    def holds(self) -> bool:
        return self.value <= self.limit

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "FAILS"
        unit = f" {self.unit}" if self.unit else ""
        return f"{verdict}  {self.text}: {self.value:.3g}{unit}, at most {self.limit:g}{unit}"


def judge(claims: Iterable[Claim]) -> int:
    """Prints a line a claim. Returns the exit code: 1 if one fails."""
    claims = list(claims)
    for claim in claims:
        print(claim, flush=True)
    return 0 if all(claim.holds for claim in claims) else 1


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints rows below each other: the first column to the left, the others to the right."""
    cells = [list(header), *([_text(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *numbers]).rstrip())
    sys.stdout.flush()


def _text(cell: object) -> str:
    return f"{cell:.3f}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)


def interleaved(sides: Sequence[str], rounds: int, run: Callable[[str, int], Any]) -> dict[str, list[Any]]:
    """Calls `run(side, round)` for every side in every round, each round beginning with the next side."""
    results: dict[str, list[Any]] = {side: [] for side in sides}
    for number in range(rounds):
        turn = number % len(sides)
        for side in (*sides[turn:], *sides[:turn]):
            results[side].append(run(side, number))
    return results


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


# ------------------------------------------------------------------ processes


def give_up(message: str, code: int = 3) -> NoReturn:
    """Ends the benchmark: something it needs is missing."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    raise SystemExit(code)


def need_root() -> None:
    """Loads of this size need limits and buffers that only root may raise."""
    if os.geteuid():
        give_up("needs root: it raises nf_conntrack_max and receive buffers")
    if (os.cpu_count() or 1) < 2:
        give_up("needs two CPUs: one for the load, one for the reader")


def end_on_sigterm() -> None:
    """SIGTERM ends a benchmark the way Ctrl-C does: everything is put back."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def environment() -> dict[str, str]:
    """The environment for our own processes: they import the source tree, whether it is installed or not."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def build(name: str) -> str:
    """Compiles bench/c/NAME.c if that is needed. Returns the path of the program."""
    source, program = C_SOURCES / f"{name}.c", BUILD / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(exist_ok=True)
        fresh = program.with_suffix(f".{os.getpid()}")
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", fresh, source], check=True)
        fresh.replace(program)
    return str(program)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a finished process took.

    The kernel counts the memory that a process had before it became another program: `peak_mb` is never less than what
    the benchmark itself takes: none imports numpy in the process that measures.
    """

    wall: float
    cpu: float
    peak_mb: float


def measured(argv: Sequence[str], **options: Any) -> Usage:
    """Runs a command to its end, start of the process included."""
    start = time.perf_counter()
    process = subprocess.Popen(argv, env=environment(), **options)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv)
    return Usage(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def cpu_seconds(pid: int) -> float:
    """CPU that the threads of a process have used: to the nanosecond where the kernel tells, else to the tick."""
    with suppress(OSError, IndexError, ValueError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ------------------------------------------------------------------ the host's limits


@contextmanager
def room_for(entries: int) -> Iterator[None]:
    """Raises the size of the host's connection table, where it is smaller, and puts it back at the end."""
    before = [int(path.read_text()) for path in _LIMITS]
    try:
        for path, old, new in zip(_LIMITS, before, (2 * entries, entries), strict=True):
            if new > old:
                path.write_text(str(new))
        yield
    finally:
        for path, old in zip(_LIMITS, before, strict=True):
            if int(path.read_text()) != old:
                path.write_text(str(old))


# ------------------------------------------------------------------ a private network namespace


@dataclass(frozen=True, slots=True)
class NetlinkSocket:
    """A line of /proc/net/netlink: a subscriber of netfilter events."""

    port: int
    waiting: int
    drops: int


@dataclass(slots=True)
class Namespace:
    """A network namespace with connection tracking on, where packets to 10.0.0.0/8 and fd00::/8 go nowhere.

    It lives as long as a process of its own that waits for our end of a pipe: it goes away however we die.
    """

    _holder: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __enter__(self) -> Self:
        self._holder = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
        try:
            self._wait_until_made()
            self._set_up()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._holder is not None and self._holder.stdin is not None:
            self._holder.stdin.close()
            self._holder.wait()

    @property
    def pid(self) -> int:
        """A process inside the namespace."""
        assert self._holder is not None
        return self._holder.pid

    def _wait_until_made(self) -> None:
        own, deadline = os.readlink("/proc/self/ns/net"), time.monotonic() + 10
        while os.readlink(f"/proc/{self.pid}/ns/net") == own:
            if time.monotonic() > deadline or (self._holder and self._holder.poll() is not None):
                give_up("no network namespace could be made")
            time.sleep(0.005)

    def _set_up(self) -> None:
        self.run("ip", "link", "set", "lo", "up")
        if self.run("ip", "link", "add", "sink", "type", "dummy", check=False, stderr=subprocess.DEVNULL).returncode:
            self.run("ip", "link", "add", "sink", "type", "ifb")
        self.run("ip", "link", "set", "sink", "up")
        self.run("ip", "address", "add", "10.0.0.1/8", "dev", "sink")
        self.run("ip", "address", "add", "fd00::1/8", "dev", "sink", "nodad")
        self.run("nft", _RULES)
        # entries that never see a reply live for 30 to 120 s, which is shorter than some rounds
        for name in ("udp_timeout", "icmp_timeout", "tcp_timeout_syn_sent"):
            self.run("sysctl", "-qw", f"net.netfilter.nf_conntrack_{name}=900")

    def command(self, argv: Sequence[str], cpu: int | None = None) -> list[str]:
        """The command that runs `argv` inside, on one CPU: it is replaced by `argv`, so its pid is that of `argv`."""
        pin = [] if cpu is None else ["taskset", "-c", str(cpu)]
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *pin, *argv]

    def run(self, *argv: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[Any]:
        """Runs a command inside."""
        return subprocess.run(self.command(argv), check=check, env=environment(), **options)

    def generate(self, mode: str, count: int, rate: int = 0, seed: int = 0) -> dict[str, float]:
        """Makes COUNT new flows at RATE a second (0: as fast as it goes), see bench/c/gen.c."""
        argv = self.command([build("gen"), mode, str(count), str(rate), str(seed)], GENERATOR_CPU)
        result: dict[str, float] = json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout)
        return result

    def count(self) -> int:
        """How many entries the connection table holds."""
        return int(self.run("conntrack", "-C", stdout=subprocess.PIPE).stdout)

    def flush(self) -> None:
        """Empties the connection table."""
        self.run("conntrack", "-F", stderr=subprocess.DEVNULL)
        for _ in range(100):
            if self.count() == 0:
                return
            time.sleep(0.05)
        give_up("the connection table of the namespace does not become empty")

    def subscribers(self) -> list[NetlinkSocket]:
        """The sockets that listen to netfilter events, with what waits in them and what the kernel dropped."""
        lines = Path(f"/proc/{self.pid}/net/netlink").read_text().splitlines()[1:]
        rows = (line.split() for line in lines)
        return [
            NetlinkSocket(int(row[2]), int(row[4]), int(row[8]))
            for row in rows
            if row[1] == NETLINK_NETFILTER and int(row[3], 16)
        ]

    def settle(self, quiet: float = 0.3, most: float = 120) -> list[NetlinkSocket]:
        """Waits until every subscriber has read what was waiting for it, for `quiet` seconds. Returns them."""
        deadline, since = time.monotonic() + most, time.monotonic()
        while time.monotonic() < deadline:
            sockets = self.subscribers()
            if any(sock.waiting for sock in sockets):
                since = time.monotonic()
            elif time.monotonic() - since > quiet:
                return sockets
            time.sleep(0.02)
        give_up(f"a reader is still behind after {most:g} s: {self.subscribers()}")


# ------------------------------------------------------------------ a reader of events under measurement


class Reader:
    """A process inside a namespace, on a CPU of its own, that subscribes to events.

    `ready` is a word on its stderr, or None where having subscribed is enough. What it prints goes to files: one that
    complains a lot must not wait for us to read it.
    """

    def __init__(self, namespace: Namespace, argv: Sequence[str], ready: str | None = None, out: bool = False) -> None:
        self._namespace, self._name = namespace, argv[0]
        self._files = ExitStack()
        self._out = self._files.enter_context(tempfile.TemporaryFile()) if out else None  # noqa: SIM115
        self._messages = self._files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self._process = subprocess.Popen(
            namespace.command(argv, READER_CPU), env=environment(),
            stdout=self._out or subprocess.DEVNULL, stderr=self._messages,
        )  # fmt: skip
        try:
            self._wait_until(lambda: bool(namespace.subscribers()))
            self._wait_until(lambda: ready is None or ready in _content(self._messages))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends it in any case."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._files.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            if time.monotonic() > deadline or self._process.poll() is not None:
                give_up(f"{self._name} does not listen to events: {_content(self._messages)}")
            time.sleep(0.01)

    def finish(self) -> tuple[str, str]:
        """Ends it with SIGINT. Returns what it printed: (stdout, stderr)."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(timeout=120)
        return _content(self._out) if self._out else "", _content(self._messages)


def _content(file: IO[bytes]) -> str:
    """All of a file that another process writes, without moving its offset."""
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode(errors="replace")
