"""The matrix itself: one play of all cases beside captures with different rights and ss(8), and the verdicts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from kernel.owners.capture import VARIANTS, Run, Ss, without
from kernel.owners.cgroup import own_cgroup
from kernel.owners.judge import EXACT, NONE, Verdict, judge, matched
from kernel.owners.network import PLACES, Network
from kernel.owners.plan import CASES
from kernel.owners.truth import KERNEL, End, read

__all__ = ["Played", "build", "play"]

TESTS = Path(__file__).resolve().parent.parent.parent


@dataclass(slots=True)
class Played:
    """What came of it.

    ends        the truth
    verdicts    by variant, and those on ss(8)
    said        by variant: lines on standard error
    polls       how long each poll of ss(8) took
    stage       what the stage said of cases that could not be played
    seconds     how long all took
    """

    ends: list[End]
    verdicts: dict[str, list[Verdict]] = field(default_factory=dict)
    said: dict[str, list[str]] = field(default_factory=dict)
    polls: list[float] = field(default_factory=list)
    stage: str = ""
    seconds: float = 0.0

    def counts(self, name: str, case: str | None = None) -> Counter[str]:
        """How many ends, of a case or of all, have which verdict."""
        return Counter(one.value for one in self.verdicts[name] if case in (None, one.end.case))

    def share(self, name: str, place: str | None = None) -> float:
        """How much of the ends, of a network namespace or of all, is exact. Who watches one cgroup alone cannot know
        that an end of which he knows nothing is the kernel's: where nothing is said of those they do not count.
        """
        chosen = [one for one in self.verdicts[name] if place in (None, one.end.place)]
        counts = Counter(one.value for one in chosen if one.end.pid != KERNEL or one.value != NONE)
        return counts[EXACT] / max(1, counts.total())


def build(directory: Path) -> Path:
    """The program of quick.c."""
    made = directory / "quick"
    source = Path(__file__).with_name("quick.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", str(made), str(source)], check=True, timeout=60)
    return made


class _Stage:
    """The stage's process, in a cgroup."""

    def __init__(self, truth: Path, quick: Path, network: Network, cgroup: str, cases: Sequence[str]) -> None:
        spaces = {place: network.spaces[place].fd for place in PLACES}
        self._said = open(f"{truth}.said", "w+")  # noqa: SIM115
        files = os.open(truth, os.O_WRONLY | os.O_APPEND), os.open(quick, os.O_RDONLY)
        paths = [str(TESTS), str(TESTS.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        words = [cgroup, *map(str, files), *(f"{place}={fd}" for place, fd in spaces.items()), *cases]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kernel.owners.stage", *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True,
            pass_fds=[*files, *spaces.values()], env={**os.environ, "PYTHONPATH": ":".join(paths)},
        )  # fmt: skip
        for fd in files:
            os.close(fd)

    def do(self, word: str) -> None:
        """Has it do something, and waits."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        if self.process.stdout.readline() != "done\n":
            raise RuntimeError(f"the stage broke off: {self.said()}")

    def said(self) -> str:
        """Its complaints."""
        self._said.seek(0)
        return self._said.read()

    def close(self) -> None:
        """Ends it and all its processes."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)


def play(directory: Path, variants: Sequence[str] = tuple(VARIANTS), cases: Sequence[str] = ()) -> Played:
    """Plays cases, all without names, once, captured by several variants at the same time."""
    begun = time.monotonic()
    truth, quick = directory / "truth", build(directory)
    truth.touch()
    runs: dict[str, Run] = {}
    with ExitStack() as stack:
        network = stack.enter_context(Network([rule for case in CASES for rule in case.rule()]))
        cgroup = stack.enter_context(own_cgroup("conntracker-matrix"))
        stage = _Stage(truth, quick, network, cgroup, cases)
        stack.callback(stage.close)
        stage.do("before")
        for name in variants:  # one after the other: a snapshot holds others' sockets for a moment
            runs[name] = Run(network.spaces["host"], directory / name, cgroup, without(*VARIANTS[name]))
            stack.callback(runs[name].kill)
        ss = Ss(network.spaces)
        ss.start()
        stack.callback(ss.stop)
        stage.do("play")
        time.sleep(1.5)
        ss.stop()
        for name, run in runs.items():
            code = run.end()
            if code:
                raise RuntimeError(f"{name} ended with {code}: {''.join(run.said)}")
        said = stage.said()
    with open(truth) as lines:
        unseen = {case.name for case in CASES if case.twin}
        ends = [end for end in read(lines) if end.case not in unseen]
    played = Played(ends, polls=ss.took, stage=said)
    for name, run in runs.items():
        found = matched(ends, run.flows())
        played.verdicts[name] = [judge(end, flow.answers[end.end] if flow else None) for end, flow in found]
        played.verdicts.setdefault("ss", [judge(end, ss.answer(end, flow)) for end, flow in found])
        played.said[name] = run.said
    played.seconds = time.monotonic() - begun
    return played
