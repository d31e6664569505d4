"""How sharp the comparison is: of faults put into the engine's ruleset, those that the packets sent bring to light."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from conntracker.lab.trials.borders import around
from conntracker.lab.trials.compare import AtomKey, Judge
from conntracker.lab.trials.faults import Fault, seeded
from conntracker.lab.trials.lines import Line
from conntracker.lab.trials.trial import Recorded
from conntracker.rules.packets import Packet
from conntracker.rules.ruleset import KnownChain, Meaning, Ruleset
from conntracker.rules.terms import Atom, In, Part

__all__ = ["Sharpness", "sharpness"]

_NEVER = In("family", ())


@dataclass(slots=True)
class Sharpness:
    """Counts by (kind of fault, what became of it).

    found       the kernel's steps are not those of the faulty ruleset
    missed      a packet that can be sent would show it, and none that was sent does
    unshown     it is a fault, but only for packets that cannot be sent, or outcomes of matches never seen
    equivalent  it is none: the solver proves that nothing changes
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)


def sharpness(record: Recorded, faults: int, seed: object, judge: Judge) -> Sharpness:
    """Puts faults in until so many were found or missed, or ten times that were tried.

    judge   that compared the record before: it knows which outcomes matches had; packets of which the steps differ
            are left out
    """
    from conntracker.rules.solve.equal import Equal, equivalent

    result, counted = Sharpness(), 0
    record = _agreeing(record)
    told = _settled(record.ruleset, judge.outcomes)
    for tried, fault in enumerate(seeded(record.ruleset, seed)):
        if counted >= faults or tried >= 10 * faults:
            break
        if _shows(record, fault):
            what = "found"
        else:
            answer = equivalent(told, _settled(fault.ruleset, judge.outcomes), record.host.local)
            if isinstance(answer, Equal):
                what = "equivalent"
            else:
                what = "missed" if _could_show(record, fault, answer.witness.packet, judge) else "unshown"
        counted += what in {"found", "missed"}
        result.counts[fault.kind, what] += 1
        if what == "missed":
            result.missed.append(f"{record.source.name}: {fault.kind} at {fault.place}")
    return result


def _agreeing(record: Recorded) -> Recorded:
    judge = Judge(record.ruleset, record.space.host_of)
    sent = zip(record.packets, record.kernel, record.ends, strict=True)
    kept = [one for one in sent if judge.agrees(*one)]
    packets, kernel, ends = ([one[i] for one in kept] for i in range(3))
    return replace(record, packets=packets, kernel=kernel, ends=ends)  # type: ignore[arg-type]


def _shows(record: Recorded, fault: Fault) -> bool:
    judge = Judge(fault.ruleset, record.space.host_of)
    sent = zip(record.packets, record.kernel, record.ends, strict=True)
    return not all(judge.agrees(*one) for one in sent)


def _could_show(record: Recorded, fault: Fault, witness: Mapping[str, int | str | None], judge: Judge) -> bool:
    """Whether a packet that can be sent has an outcome that the faulty ruleset has not: the witness, made such a
    packet, or one on the borders of the rule, be it as it is or as the fault makes it.
    """
    space, faulty = record.space, Judge(fault.ruleset, record.space.host_of)
    packets = [space.settled(space.completed(dict(witness), random.Random(0)))]  # noqa: S311 - nothing secret
    for ruleset in (record.ruleset, fault.ruleset):
        packets += around(ruleset, fault.chain, fault.rule, space, sendable=record.sendable)
    return any(
        space.plain(one) and record.sendable(one) and _possible(judge, one) - _possible(faulty, one) for one in packets
    )


def _possible(judge: Judge, packet: Packet) -> set[tuple[Line, ...]]:
    return set(judge.possible(packet))


def _settled(ruleset: Ruleset, outcomes: Mapping[AtomKey, set[bool]]) -> Ruleset:
    """With the matches that always had one outcome as if there were no other."""
    return replace(ruleset, chains=tuple(_chain(known, outcomes) for known in ruleset.chains))


def _chain(known: KnownChain, outcomes: Mapping[AtomKey, set[bool]]) -> KnownChain:
    return replace(known, meanings=tuple(_meaning(meaning, outcomes) for meaning in known.meanings))


def _meaning(meaning: Meaning, outcomes: Mapping[AtomKey, set[bool]]) -> Meaning:
    parts: list[Part] = []
    for part in meaning.parts:
        seen = outcomes.get((part.name, part.text, part.occurrence)) if isinstance(part, Atom) else None
        if not isinstance(part, Atom) or seen is None or len(seen) != 1:
            parts.append(part)
        elif (True in seen) == part.negated:
            parts.append(_NEVER)
    return replace(meaning, parts=tuple(parts))
