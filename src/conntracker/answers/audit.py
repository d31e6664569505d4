"""What is wrong with a ruleset, or may be: rules that never decide, that change nothing, that were never hit, …

Each finding is about one rule, chain or set, says why in a sentence, and shows the evidence: the rules that are to
blame, or a packet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from conntracker.answers.audit_findings import KINDS, NOWHERE, Audit, Finding
from conntracker.answers.audit_order import Overlap, overlaps
from conntracker.answers.audit_summary import summary_of
from conntracker.answers.audit_unused import chains_without_way, sets_without_rule
from conntracker.answers.audit_wide import Wide, size
from conntracker.answers.replay import packets_for, replay
from conntracker.answers.unseen import unseen_note
from conntracker.rules.intervals import Intervals
from conntracker.rules.ruleset import KnownChain, Ruleset
from conntracker.rules.solve.dead import ALWAYS, Dead, dead, policies_never_reached
from conntracker.rules.solve.redundant import redundant
from conntracker.rules.terms import AnyOf, Atom, Branches, In, Named, Verdict
from conntracker.rules.walk import Course
from conntracker.steps import Rule

__all__ = ["audit"]

_QUICK = 3000  # rules
_MOST_PACKETS = 200  # rules for which a packet is made as evidence


def audit(
    ruleset: Ruleset,
    kinds: Collection[str] = tuple(KINDS),
    *,
    local: dict[int, Intervals] | None = None,
    counted: str = "",
    wide: Sequence[Wide] = (),
    slow: bool = True,
) -> Audit:
    """Looks for all of these kinds.

    local    the host's own addresses, by IP version, where they are known
    counted  since when the ruleset's counters count, in words
    wide     rules that let through far more than a recording has of them (see audit_wide)
    slow     whether to look for redundant rules among more than some thousands, too: it takes up to a minute

    Raises ValueError for a ruleset that cannot be followed: a jump to a chain that is not there, a loop.
    """
    return _Auditor(ruleset, kinds, local, counted, wide, slow).run()


class _Auditor:
    """One ruleset."""

    def __init__(
        self, ruleset: Ruleset, kinds: Collection[str], local: dict[int, Intervals] | None, counted: str,
        wide: Sequence[Wide], slow: bool,
    ) -> None:  # fmt: skip
        self.ruleset, self.kinds, self.local, self.counted, self.wide = ruleset, kinds, local, counted, wide
        self.slow = slow
        self.notes: list[str] = []
        self.dead: list[Dead] = []
        self.unused = chains_without_way(ruleset)

    def run(self) -> Audit:
        """All findings."""
        steps: dict[str, Callable[[], Iterable[Finding]]] = {
            "dead": self._dead, "redundant": self._redundant, "policy": self._policies,
            "unused-chain": self._unused_chains, "unused-set": self._unused_sets, "unhit": self._unhit,
            "order": self._order, "wide": self._wide,
        }  # fmt: skip
        if {"dead", "unhit"} & set(self.kinds):
            self.dead = dead(self.ruleset, self.local, explain="dead" in self.kinds)
        found = [one for kind in KINDS if kind in self.kinds for one in steps[kind]()]
        if note := unseen_note(self.ruleset):
            self.notes.append(note)
        return Audit(summary_of(self.ruleset), tuple(found), tuple(self.notes))

    def _dead(self) -> Iterable[Finding]:
        counters = _counters(self.ruleset)
        for one in self.dead:
            if not one.versions:  # its chain is told of as unused
                continue
            reason = _why_dead(one)
            packets = (counters.get(id(one.rule)) or (0, 0))[0]
            if packets:
                reason += f"; yet its counter says {packets:,} packets: the rules were others when it was hit"
            yield Finding("dead", _place(one.rule), one.rule, reason, one.because, certainty=one.certainty)

    def _redundant(self) -> Iterable[Finding]:
        if not self.slow and sum(len(known.meanings) for known in self.ruleset.chains) > _QUICK:
            self.notes.append(f"redundant: not looked for among more than {_QUICK:,} rules, unless it is asked for")
            return
        jumps = {
            id(rule)
            for known in self.ruleset.chains for rule, meaning in known.items()
            if meaning.verdict is not None and meaning.verdict.chain is not None
        }  # fmt: skip
        for one in redundant(self.ruleset, self.local):
            if id(one.rule) in jumps:
                reason = NOWHERE
            elif not one.decides:
                continue  # it is there to count
            elif one.because:
                reason = f"what it decides, {'the rules' if len(one.because) > 1 else 'a rule'} behind it would, too"
            else:
                reason = "what it decides, the policy or another chain would, too"
            yield Finding("redundant", _place(one.rule), one.rule, reason, one.because)

    def _policies(self) -> Iterable[Finding]:
        chains = self.ruleset.by_key()
        for key in policies_never_reached(self.ruleset, self.local):
            known = chains[key]
            last = next((rule for rule, meaning in known.items() if _takes_all(meaning.parts)), None)
            policy = known.chain.policy or "accept"
            reason = f"no packet comes to the chain's end, so its policy {policy} decides nothing"
            yield Finding("policy", key[1:], None, reason, () if last is None else (last,), source=_source(known))

    def _unused_chains(self) -> Iterable[Finding]:
        for known in self.unused:
            count = len(known.chain.rules)
            rules = ("it has no rules", "its rule never decides", f"its {count:,} rules never decide")[min(count, 2)]
            reason = f"no way leads to it from any base chain; {rules}"
            yield Finding(
                "unused-chain", known.key[1:], None, reason, source=_source(known), numbers={"rules": count}
            )  # fmt: skip

    def _unused_sets(self) -> Iterable[Finding]:
        for one in sets_without_rule(self.ruleset):
            reason = f"no rule of the table refers to this {one.kind} of {one.size:,} elements"
            yield Finding(
                "unused-set", (one.family, one.table, one.name), None, reason, source=one.source,
                numbers={"elements": one.size},
            )  # fmt: skip

    def _unhit(self) -> Iterable[Finding]:
        counters = _counters(self.ruleset)
        if not counters:
            self.notes.append("rules never hit: not known, as no rule has a counter")
            return
        if not any(packets for packets, _ in counters.values()):
            self.notes.append("rules never hit: not known, as all counters are zero")
            return
        gone = {id(one.rule) for one in self.dead} | {id(rule) for known in self.unused for rule in known.chain.rules}
        rules = [rule for known in self.ruleset.chains for rule in known.chain.rules if id(rule) not in gone]
        unhit = [rule for rule in rules if counters.get(id(rule), (1, 1))[0] == 0]
        shown = packets_for(self.ruleset, unhit[:_MOST_PACKETS], self.local)
        if len(unhit) > _MOST_PACKETS:
            self.notes.append(f"rules never hit: packets are shown for the first {_MOST_PACKETS} only")
        since = self.counted or "since counters were last set to zero; when that was is not known"
        courses = {version: Course(self.ruleset, version) for version in self.ruleset.families()}
        for rule in unhit:
            packet = shown.get(id(rule))
            asked = () if packet is None else replay(courses[packet.version], packet).asked
            yield Finding(
                "unhit", _place(rule), rule, "its counter is 0", witness=packet, asked=asked, numbers={"counted": since}
            )  # fmt: skip

    def _order(self) -> Iterable[Finding]:
        found, note = overlaps(self.ruleset, self.local)
        self.notes += [note] if note else []
        for one in found:
            yield _order_finding(one)

    def _wide(self) -> Iterable[Finding]:
        for one in self.wide:
            numbers = {
                "admitted": {side.field: size(side.admitted) for side in one.sides},
                "seen": {side.field: side.values for side in one.sides},
                "factor": {side.field: round(side.factor, 1) for side in one.sides},
            }
            reason = "it lets through far more than was seen"
            yield Finding("wide", _place(one.rule), one.rule, reason, numbers=numbers, wide=one)


def _order_finding(one: Overlap) -> Finding:
    count = len(one.others)
    some = f"{count} {'later' if one.first else 'earlier'} rules match" if count > 1 else (
        f"a{' later' if one.first else 'n earlier'} rule matches"
    )  # fmt: skip
    reason = f"{some} some of the same packets; in the other order this one would come to {one.after}, not {one.before}"
    return Finding(
        "order", _place(one.rule), one.rule, reason, one.others, one.witness, one.asked, numbers={"pairs": count}
    )  # fmt: skip


def _why_dead(one: Dead) -> str:
    if one.reason:
        return one.reason
    if one.certainty != ALWAYS or not one.because:
        return "no packet gets to it"
    which = "an earlier rule takes" if len(one.because) == 1 else f"{len(one.because)} rules together take"
    return f"{which} every packet that it would match"


def _takes_all(parts: Sequence[object]) -> bool:
    """Whether a rule asks for nothing and lets nothing go on."""
    if any(isinstance(part, In | Named | AnyOf | Atom | Branches) for part in parts):
        return False
    return any(isinstance(part, Verdict) and part.kind in {"accept", "drop", "reject", "queue", "stolen"}
               for part in parts)  # fmt: skip


def _place(rule: Rule) -> tuple[str, str, str]:
    return rule.family, rule.table, rule.chain


def _source(known: KnownChain) -> str | None:
    return next((rule.source for rule in known.chain.rules), None)


def _counters(ruleset: Ruleset) -> dict[int, tuple[int, int]]:
    """By id(rule), for those that have any."""
    return {
        id(rule): meaning.counters
        for known in ruleset.chains for rule, meaning in known.items() if meaning.counters is not None
    }  # fmt: skip
