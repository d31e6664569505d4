"""Those that are tested: `conntracker -b` with all rights and with fewer, and ss(8) every half a second."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import conntracker
from conntracker.sources.netns import Namespace
from kernel.owners.judge import Answer, Flow
from kernel.owners.truth import ICMP, ICMPV6, TCP, UDP, End, plain

__all__ = ["VARIANTS", "Run", "Ss", "without"]

# Capabilities that it lacks; CAP_SYS_ADMIN stands for the other two as well, see capabilities(7).
VARIANTS = {"all": (), "hooks": ("perfmon", "sys_admin"), "fallback": ("bpf", "sys_admin")}
PROTOCOLS = {"tcp": TCP, "udp": UDP, "icmp": ICMP, "icmpv6": ICMPV6, "icmp6": ICMPV6}
COLUMNS = ("pid", "comm", "uid", "kind", "method", "certainty")


def without(*capabilities: str) -> list[str]:
    """What to put before a command of root's, so that it does not have them."""
    if not capabilities:
        return []
    words = ",".join(f"-{name}" for name in capabilities)
    return ["setpriv", f"--bounding-set={words}", f"--inh-caps={words}"]


class Run:
    """One `conntracker -b` in a namespace, from 'capturing' on."""

    def __init__(self, space: Namespace, directory: Path, cgroup: str | None, before: Sequence[str] = ()) -> None:
        """before: words in front of the command, as of setpriv(1)."""
        self.recording = directory
        command = [
            *before, sys.executable, "-m", "conntracker", "-b", "--accounting", "-o", f"{directory}.log",
            "-w", str(directory), "--flush", "1s", *(("--cgroup", cgroup) if cgroup else ()),
        ]  # fmt: skip
        with space:
            self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.said: list[str] = []
        captures = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(captures,), daemon=True)
        self._reader.start()
        if not captures.wait(20) or not any("capturing" in line for line in self.said):
            self.kill()
            raise RuntimeError(f"does not capture: {''.join(self.said)}")

    def _read(self, captures: threading.Event) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if "capturing" in line:
                captures.set()
        captures.set()

    def end(self) -> int:
        """Ends it as Ctrl-C does; its exit code."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(30)
        self._reader.join(5)
        return code

    def kill(self) -> None:
        """Ends it in any case."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def flows(self) -> list[Flow]:
        """What it recorded."""
        owned = [f"{side}_{name}" for side in ("owner", "peer_owner") for name in COLUMNS]
        columns = (
            "proto", "src", "sport", "dst", "dport", "icmp_id", "reply_src", "reply_sport", "reply_dst", "reply_dport",
            "reply_icmp_id", "epoch_us(coalesce(start, first_seen))", *owned,
        )  # fmt: skip
        with conntracker.open_recording(str(self.recording)) as recording:
            rows = recording.sql(f"SELECT {', '.join(columns)} FROM flows").fetchall()  # noqa: S608
        return [_flow(row) for row in rows]


def _flow(row: tuple) -> Flow:  # type: ignore[type-arg]
    proto, src, sport, dst, dport, number, reply_src, reply_sport, reply_dst, reply_dport, reply_number, start = row[
        :12
    ]
    return Flow(
        PROTOCOLS.get(proto) or int(proto),
        {
            "client": (plain(src), sport or number, plain(dst), dport),
            "server": (plain(reply_src), reply_sport or reply_number, plain(reply_dst), reply_dport),
        },
        {"client": _answer(row[12:18]), "server": _answer(row[18:24])},
        start / 1e6,
    )


def _answer(row: tuple) -> Answer:  # type: ignore[type-arg]
    pid, comm, uid, kind, method, certainty = row
    return Answer(kind, () if pid is None else (pid,), comm, uid, method, certainty)


class Ss(threading.Thread):
    """`ss -Htunwpa` every half a second in several namespaces."""

    EVERY = 0.5
    USER = re.compile(r'\("((?:[^"]|"[^,])*)",pid=(\d+),')

    def __init__(self, spaces: dict[str, Namespace]) -> None:
        super().__init__(daemon=True)
        self._spaces = spaces
        self._ended = threading.Event()
        self._seen: dict[tuple[object, ...], dict[int, str]] = defaultdict(dict)
        self.took: list[float] = []

    def run(self) -> None:
        """Polls until stop()."""
        while not self._ended.is_set():
            before = time.monotonic()
            for place, space in self._spaces.items():
                with space:
                    done = subprocess.run(["ss", "-Htunwpa"], capture_output=True, text=True, check=False, timeout=20)
                for line in done.stdout.splitlines():
                    self._line(place, line)
            self.took.append(time.monotonic() - before)
            self._ended.wait(max(0.0, self.EVERY - self.took[-1]))

    def stop(self) -> None:
        """Ends the polling."""
        self._ended.set()
        self.join()

    def _line(self, place: str, line: str) -> None:
        words = line.split()
        users = {int(pid): comm for comm, pid in self.USER.findall(line)}
        if not users or len(words) < 6 or words[1] == "LISTEN":
            return
        proto, local = PROTOCOLS.get(words[0]), _address(words[4])
        if words[0] == "raw":  # it has its protocol where others have a port
            local, proto = (local[0], None), local[1]
        if (proto, local[1]) != (UDP, None):  # the raw socket of who makes his own headers
            self._seen[place, proto, *local, *_address(words[5])].update(users)

    def answer(self, end: End, flow: Flow | None) -> Answer | None:
        """What it said of an end: of its very socket, else of one that is not connected."""
        if flow is None:
            return None
        local, lport, remote, rport = flow.keys[end.end]
        locals_, remotes = [(local, lport)], [(remote, rport)]
        if end.proto == UDP or (end.proto != TCP and end.end == "client"):
            anywhere = ("0.0.0.0", "::", "*")  # noqa: S104
            locals_ += [(address, lport) for address in anywhere] + [(address, None) for address in anywhere]
            remotes += [(remote, None), *((address, None) for address in anywhere)]
        for ours in locals_:
            for theirs in remotes:
                users = self._seen.get((end.place, end.proto, *ours, *theirs))
                if users:
                    return Answer("process", tuple(users))
        return Answer()


def _address(text: str) -> tuple[str, int | None]:
    address, _, port = text.rpartition(":")
    return plain(address.strip("[]").split("%")[0]), int(port) if port.isdigit() and port != "0" else None
