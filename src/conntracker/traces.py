"""From passages to traces: each step's rule in the ruleset that was in force, the order of both kinds, the verdict.

Kernel facts about legacy logs (trace_packet, ip_tables.c): `rule:N` is a rule with a match; `policy:N` in a base chain
and `return:N` in a user chain are rule N, which has none, for as long as the chain has N rules, and the chain's end for
N one more. What the rule's target did is not said: it is taken from the rule.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from conntracker.assembly import LegacyStep, Passage, legacy_priority
from conntracker.rules.deciding import deciding_accept, weight
from conntracker.rules.snapshot import Chain, Snapshot, effect
from conntracker.steps import HOOKS, UNDECIDED, Path, Rule, Step, Trace
from conntracker.wire.nflog import LogMessage
from conntracker.wire.nftrace import Place

_LEGACY = "iptables-legacy"
_ENDINGS = frozenset(("drop", "reject", "queue", "stolen"))
# What can come after a hook, where a packet was last seen there.
_NEXT = {
    "ingress": ("prerouting",), "prerouting": ("input", "forward"), "input": (), "forward": ("postrouting",),
    "output": ("postrouting",), "postrouting": (), "egress": (), None: (),
}  # fmt: skip
_LOOPBACK = 1
_MOST_PATHS = 100_000  # interned


class Known(NamedTuple):
    """A step, and how fit it is to have decided (see `rules.deciding`)."""

    step: Step
    weight: int


class Candidates(NamedTuple):
    """Snapshots of which one was in force; `whole` says that there can have been no other."""

    snapshots: tuple[Snapshot, ...]
    whole: bool


class Rulesets:
    """The snapshots of a run, by epoch: of nf_tables' rules and of the legacy ones, each numbered by its changes.

    What was read in one epoch counts for others, too, for tables that did not change between. Handles are used again
    only when a table was made anew: between two snapshots without that, a rule that both of them have was always there.
    """

    _KEPT = 16  # snapshots; a trace is resolved seconds after its packet passed

    def __init__(self) -> None:
        self.version = 0  # raised by everything that may change an answer
        self._nft: dict[int, Snapshot] = {}
        self._legacy: dict[int, Snapshot] = {}
        self._changed: dict[tuple[str, str], list[int]] = {}  # (family, table): epochs that began with a change of it
        self._made_anew: dict[tuple[str, str], list[int]] = {}
        self._unknown: list[int] = []  # epochs that began with a loss of announcements

    def put(self, snapshot: Snapshot, nft_epoch: int | None, legacy_epoch: int | None) -> None:
        """Keeps a snapshot as that of both epochs; None for one that changed while it was read."""
        self.version += 1
        for snapshots, epoch in ((self._nft, nft_epoch), (self._legacy, legacy_epoch)):
            if epoch is not None:
                snapshots[epoch] = snapshot
                if len(snapshots) > self._KEPT:
                    del snapshots[min(snapshots)]

    def changed(self, epoch: int, tables: Mapping[tuple[str, str], bool]) -> None:
        """An epoch began with changes of these tables; the value says whether one was made anew."""
        self.version += 1
        for table, made_anew in tables.items():
            self._changed.setdefault(table, []).append(epoch)
            if made_anew:
                self._made_anew.setdefault(table, []).append(epoch)

    def forget(self, epoch: int) -> None:
        """Nobody knows what changed before this epoch began: no snapshot counts across its beginning."""
        self.version += 1
        self._unknown.append(epoch)

    def nft(self, family: str, table: str, first: int, last: int) -> Candidates:
        """What may have been in force for a table from one epoch to another."""
        found = [self._of_table((family, table), epoch) for epoch in range(first, last + 1)]
        if not all(one.snapshots for one in found):
            return Candidates((), False)
        snapshots = {id(one): one for part in found for one in part.snapshots}
        return Candidates(tuple(snapshots.values()), all(one.whole for one in found))

    def _of_table(self, table: tuple[str, str], epoch: int) -> Candidates:
        changes, anew = self._changed.get(table, []), self._made_anew.get(table, [])
        version = bisect_right(changes, epoch), bisect_right(self._unknown, epoch)
        before = max((one for one in self._nft if one <= epoch), default=None)
        after = min((one for one in self._nft if one >= epoch), default=None)
        for near in (before, after):
            if near is not None and (bisect_right(changes, near), bisect_right(self._unknown, near)) == version:
                return Candidates((self._nft[near],), True)
        breaks = sorted([*anew, *self._unknown])
        if before is None or after is None or bisect_right(breaks, before) != bisect_right(breaks, after):
            return Candidates((), False)
        return Candidates((self._nft[before], self._nft[after]), False)

    def legacy(self, first: int, last: int) -> Candidates:
        """What may have been in force for legacy tables from one epoch to another; nothing if one was never read."""
        if not all(epoch in self._legacy for epoch in range(first, last + 1)):
            return Candidates((), False)
        found = (self._legacy[epoch] for epoch in range(first, last + 1))
        return Candidates(tuple({id(one): one for one in found}.values()), True)


class Resolver:
    """Passages to traces. Paths are interned: one that was seen before under the same rulesets is the same object.

    blind   IP versions, 4 and 6, that have legacy tables which cannot be traced
    """

    def __init__(self, rulesets: Rulesets, interface: Callable[[int], str | None]) -> None:
        self._rulesets, self._interface = rulesets, interface
        self.blind: frozenset[int] = frozenset()
        self._version = 0
        self._known: dict[tuple[object, ...], Known] = {}
        self._paths: dict[tuple[object, ...], Path] = {}

    def trace(self, passage: Passage) -> Trace | None:
        """The trace of a passage; None if nothing said which packet it was."""
        if passage.headers is None:
            return None
        if self._version != self._rulesets.version or len(self._paths) > _MOST_PATHS:
            self._version = self._rulesets.version
            self._known.clear()
            self._paths.clear()
        loops = passage.oif == _LOOPBACK
        legacy = [_without_packet(step) for step in passage.legacy]
        blind = passage.headers.packet.family in self.blind
        key = (*passage.nft, *legacy, *passage.seen, passage.complete, loops, not passage.iif, blind)
        path = self._paths.get(key)
        if path is None:
            path = self._paths[key] = conclude(self._merged(passage), passage.seen, loops, passage.complete, blind)
        packet = passage.headers.packet
        return Trace(
            passage.born, packet, passage.left or packet, self._interface(passage.iif),
            self._interface(passage.oif), passage.ct_id, path,
        )  # fmt: skip

    # --- order -------------------------------------------------------------------------------------------------

    def _merged(self, passage: Passage) -> list[Known]:
        """The steps of both streams, by how far the packet was; each stream stays in its own order."""
        nft = list(self._nft_steps(passage))
        legacy = list(self._legacy_steps(passage))
        if not legacy:
            return [known for _, known in nft]
        merged: list[Known] = []
        for place, group in groupby(legacy, key=itemgetter(0)):
            table = [known for _, known in group]
            # Which of two chains in the same place was first, the kernel does not say; but what drops ends the way.
            ends = table[-1].step.verdict in _ENDINGS
            while nft and (nft[0][0] < place or (ends and nft[0][0] == place)):
                merged.append(nft.pop(0)[1])
            merged += table
        return merged + [known for _, known in nft]

    def _nft_steps(self, passage: Passage) -> Iterator[tuple[tuple[int, int], Known]]:
        stages = _Stages(passage)
        base: Chain | None = None
        for item in passage.nft:
            if isinstance(item, str):
                stages.pass_by(item)
                continue
            place = item.place
            candidates = self._rulesets.nft(place.family, place.table, item.epoch, item.epoch + item.near)
            chain, rule, certain = _find(candidates, place)
            if chain is not None and chain.hook is not None:
                base = chain
            elif chain is None and item.first:
                base = None
            ends_base = chain.hook is not None if chain is not None else item.first
            if place.handle is None and place.type != "policy" and ends_base:
                continue  # its policy is told apart
            key = (place, id(base), rule, certain)
            known = self._known.get(key)
            if known is None:
                known = self._known[key] = _nft_step(place, base, rule, certain)
            yield (stages.of(known.step.hook), known.step.priority or 0), known

    def _legacy_steps(self, passage: Passage) -> Iterator[tuple[tuple[int, int], Known]]:
        stages = _Stages(passage)
        for number, item in enumerate(passage.legacy, 1):
            message = item.message
            hook = HOOKS[message.hook] if message.hook < 5 else None
            stages.pass_by(hook)
            key = _without_packet(item)
            known = self._known.get(key)
            if known is None:
                known = self._known[key] = self._legacy_step(item, hook)
            if known.step.verdict == "stolen" and number < len(passage.legacy):
                known = Known(replace(known.step, verdict="continue"), known.weight)
            yield (stages.of(hook), legacy_priority(message.table, message.hook)), known

    def _legacy_step(self, item: LegacyStep, hook: str | None) -> Known:
        candidates = self._rulesets.legacy(item.before, item.after).snapshots
        found = [step for one in candidates if (step := _legacy_step(item.message, one, hook)) is not None]
        found = found or [_unknown_legacy_step(item.message, hook)]
        same = all(_said(other) == _said(found[0]) for other in found[1:])
        step = found[0] if same else replace(found[0], certain=False)
        return Known(step, weight(step, item.message.table == "nat"))


def _without_packet(step: LegacyStep) -> tuple[object, ...]:
    message = step.message
    return (
        message.hook, message.family, message.table, message.chain, message.type, message.number, step.before,
        step.after,
    )  # fmt: skip


class _Stages:
    """How far a packet is at each step: ingress, output, prerouting, input or forward, postrouting."""

    def __init__(self, passage: Passage) -> None:
        self._local = passage.seen[:1] == ["output"] or (not passage.seen and not passage.iif)
        self._came_in = False

    def pass_by(self, hook: str | None) -> None:
        """The packet is at that hook now."""
        self._came_in = self._came_in or hook == "prerouting"

    def of(self, hook: str | None) -> int:
        """The number of a stage; they grow along a packet's way."""
        if hook == "postrouting":
            return 1 if self._local and not self._came_in else 4
        return {"ingress": -1, "output": 0, "prerouting": 2}.get(hook or "", 3)


# --- single steps ------------------------------------------------------------------------------------------------


def _find(candidates: Candidates, place: Place) -> tuple[Chain | None, Rule | None, bool]:
    """(chain, rule, whether that is certain) of a message: in the first ruleset that fits what the kernel said."""
    where = place.family, place.table, place.chain
    fitting: list[tuple[Chain | None, Rule | None]] = []
    for snapshot in candidates.snapshots:
        chain = snapshot.nft_chain(*where)
        rule = None if place.handle is None else snapshot.nft_rule(*where, place.handle)
        if chain is not None and (place.handle is None or (rule is not None and _fits(rule, place))):
            fitting.append((chain, rule))
    if not fitting:
        found = (one.nft_chain(*where) for one in candidates.snapshots)
        return next((chain for chain in found if chain is not None), None), None, True
    same = len({None if rule is None else rule.text for _, rule in fitting}) == 1
    if candidates.whole or (same and len(fitting) == len(candidates.snapshots)):
        return *fitting[0], same
    return fitting[0][0], None, True  # one that was never read: which rule it had is not known


_TOLD = frozenset(("jump", "goto", "accept", "drop", "return"))  # verdicts that a rule's text tells for sure


def _fits(rule: Rule, place: Place) -> bool:
    """Whether a rule can have had the verdict that the kernel told."""
    verdict, target = effect(rule)
    if verdict == "reject":
        verdict = "drop"
    if place.verdict not in _TOLD or verdict not in _TOLD:
        return True
    return verdict == place.verdict and target in (None, place.target)


def _nft_step(place: Place, base: Chain | None, rule: Rule | None, certain: bool) -> Known:
    kind = rule.kind if rule is not None else base.kind if base is not None else "nft"
    hook, priority = (None, None) if base is None else (base.hook, base.priority)
    verdict, kind_of_step = place.verdict, place.type
    if place.handle is not None and rule is None:
        rule = Rule(kind, place.family, place.table, place.chain, None, place.handle, None)
    if place.handle is None and kind_of_step != "policy":  # Linux before 5.15 says return here, later ones rule
        verdict = "return"
    if verdict == "return":
        kind_of_step = "return"
    if rule is not None and verdict == "drop" and rule.text is not None and effect(rule)[0] == "reject":
        verdict = "reject"
    step = Step(
        hook, priority, kind, place.family, place.table, place.chain, kind_of_step, rule, verdict, place.target, certain
    )
    return Known(step, weight(step, base is not None and base.type == "nat"))


def _legacy_step(message: LogMessage, snapshot: Snapshot, hook: str | None) -> Step | None:
    """The step in a ruleset; None if that ruleset cannot have made it."""
    chain = snapshot.legacy_chain(message.family, message.table, message.chain)
    if chain is None or message.number > len(chain.rules) + (message.type != "rule"):
        return None
    if message.number <= len(chain.rules):
        rule = chain.rules[message.number - 1]
        verdict, target = effect(rule)
        return _of_legacy(message, hook, "return" if verdict == "return" else "rule", rule, verdict, target)
    if message.type == "policy":
        return _of_legacy(message, hook, "policy", None, chain.policy)
    return _of_legacy(message, hook, "return", None, "return")


def _unknown_legacy_step(message: LogMessage, hook: str | None) -> Step:
    """The step without a ruleset: whether `policy` and `return` are rules, and what a rule did, is not known."""
    place = message.family, message.table, message.chain
    rule = Rule(_LEGACY, *place, message.number, None, None) if message.type == "rule" else None
    return _of_legacy(message, hook, message.type, rule, None)


def _of_legacy(
    message: LogMessage, hook: str | None, kind: str, rule: Rule | None, verdict: str | None, target: str | None = None
) -> Step:
    priority = legacy_priority(message.table, message.hook)
    return Step(
        hook, priority, _LEGACY, message.family, message.table, message.chain, kind, rule, verdict, target
    )  # fmt: skip


def _said(step: Step) -> tuple[object, ...]:
    return step.type, step.verdict, None if step.rule is None else step.rule.text


# --- what they come to -------------------------------------------------------------------------------------------


def conclude(known: list[Known], seen: list[str], loops: bool, complete: bool, blind: bool = False) -> Path:
    """The path of steps in their order.

    seen    hooks where our own table saw the packet begin, and those at whose end it saw it
    loops   whether it went out through the loopback interface: then it is there only when it came in
    """
    steps = tuple(one.step for one in known)
    arrived = "input" in seen or ("postrouting" in seen and not loops)
    last = next((i for i in range(len(steps) - 1, -1, -1) if steps[i].verdict in ("drop", "reject")), None)
    if last is None and steps and not arrived and steps[-1].verdict in _ENDINGS:
        last = len(steps) - 1
    reached = _furthest([*seen, *(step.hook for step in steps if step.hook is not None)], loops)
    if last is not None:
        return Path(steps, steps[last].verdict or UNDECIDED, last, steps[last].hook or reached, (), complete, blind)
    if not arrived:
        expected = ("prerouting",) if loops and reached == "postrouting" else _NEXT[reached]
        return Path(steps, UNDECIDED, None, reached, expected, complete, blind)
    deciding = deciding_accept(steps, [one.weight for one in known])
    return Path(steps, "accept", deciding, reached, (), complete, blind)


def _furthest(hooks: list[str], loops: bool) -> str | None:
    way = ("ingress", "output", "prerouting", "input", "forward", "postrouting")
    if loops:
        way = ("ingress", "output", "forward", "postrouting", "prerouting", "input")
    return max(hooks, key=lambda hook: way.index(hook) if hook in way else -1, default=None)


__all__ = ["Known", "Resolver", "Rulesets", "conclude"]
