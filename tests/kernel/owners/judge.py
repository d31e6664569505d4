"""What was said of each end, held against the truth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import zip_longest

from kernel.owners.truth import KERNEL, End

__all__ = ["EXACT", "HELD", "NONE", "VERDICTS", "WRONG", "Answer", "Flow", "Verdict", "judge", "matched"]

# Names the process that did the I/O, it alone; another one that held the socket; nobody; one that never held it.
EXACT, HELD, NONE, WRONG = "exact", "held", "none", "wrong"
VERDICTS = (EXACT, HELD, NONE, WRONG)


@dataclass(frozen=True, slots=True)
class Answer:
    """Who is at an end, as somebody says it.

    kind    process, kernel, forwarded; None: nothing is said
    pids    several where one cannot be told from the other
    """

    kind: str | None = None
    pids: tuple[int, ...] = ()
    comm: str | None = None
    uid: int | None = None
    method: str | None = None
    certainty: str | None = None


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow with the answers for both of its ends; each end's key: (local, lport, remote, rport)."""

    proto: int
    keys: Mapping[str, tuple[str, int | None, str, int | None]]
    answers: Mapping[str, Answer]
    start: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """One end, what was said of it, and what that is worth; `complaints`: what is wrong beside the pid."""

    end: End
    answer: Answer | None
    value: str
    complaints: list[str] = field(default_factory=list)


def matched(ends: Iterable[End], flows: Iterable[Flow]) -> list[tuple[End, Flow | None]]:
    """Each end with its flow. Of several with the same key the one whose turn it was; where UDP's ports were used again
    while the kernel took it for the same flow, each of the processes did its part.
    """
    by_port: dict[tuple[int, str, str, int | None], list[Flow]] = defaultdict(list)
    for flow in sorted(flows, key=lambda flow: flow.start):
        for side, (local, lport, remote, rport) in flow.keys.items():
            for index in {("local", lport), ("remote", rport), (remote, None), (local, None)}:
                by_port[flow.proto, side, *index].append(flow)
    alike: dict[tuple[object, ...], list[End]] = defaultdict(list)
    for end in sorted(ends, key=lambda end: end.time):
        alike[end.case, end.end, end.proto, end.local, end.lport, end.remote, end.rport].append(end)
    found: list[tuple[End, Flow | None]] = []
    for same in alike.values():
        fitting = [flow for flow in by_port.get(_index(same[0]), []) if _fits(same[0], flow)]
        if 0 < len(fitting) < len(same):
            pids = [end.pid for end in same]
            found += [(replace(end, doers=[*end.doers, *pids]), fitting[-1]) for end in same]
        else:
            found += zip_longest(same, fitting[: len(same)])
    return found


def _index(end: End) -> tuple[int, str, str, int | None]:
    if end.lport is not None and end.end == "client":
        return end.proto, end.end, "local", end.lport
    if end.rport is not None:
        return end.proto, end.end, "remote", end.rport
    address = end.remote or end.local
    assert address is not None
    return end.proto, end.end, address, None


def _fits(end: End, flow: Flow) -> bool:
    known = (end.local, end.lport, end.remote, end.rport)
    return all(ours in (None, theirs) for ours, theirs in zip(known, flow.keys[end.end], strict=True))


def judge(end: End, answer: Answer | None) -> Verdict:
    """The verdict on one answer; None: there is no such flow."""
    value = _value(end, answer)
    complaints = []
    if answer is not None and answer.kind == "process":
        if value != EXACT and answer.certainty == "exact":
            complaints.append("claims to be exact")
        if value == EXACT and end.uid is not None and answer.uid is not None and answer.uid != end.uid:
            complaints.append(f"uid {answer.uid}, not {end.uid}")
        if value == EXACT and end.comms and answer.comm is not None and answer.comm not in end.comms:
            complaints.append(f"name {answer.comm}, not {' or '.join(end.comms)}")
    return Verdict(end, answer, value, complaints)


def _value(end: End, answer: Answer | None) -> str:
    if answer is None or answer.kind is None:
        return NONE
    if answer.kind == "forwarded":
        # Two containers of this host talk: that the flow only passes through the namespace that was captured is true.
        return NONE if end.place != "host" else WRONG
    if answer.kind == "kernel":
        return EXACT if end.pid == KERNEL else WRONG
    if len(answer.pids) == 1 and answer.pids[0] in (end.pid, *end.doers):
        return EXACT
    return HELD if set(answer.pids) & {end.pid, *end.holders} - {KERNEL} else WRONG
