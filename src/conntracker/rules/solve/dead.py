"""Rules that can never decide anything, and why; packets that show that the others can."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from conntracker.rules.ruleset import Ruleset
from conntracker.rules.solve.because import Reason, Reasons
from conntracker.rules.solve.circuit import FALSE
from conntracker.rules.solve.domain import Witness
from conntracker.rules.solve.encode import Encoded, Place
from conntracker.rules.solve.model import Local, Question, question, witness
from conntracker.rules.solve.samples import Samples
from conntracker.rules.solve.unused import elsewhere, unused_places
from conntracker.rules.terms import Atom
from conntracker.steps import Rule

__all__ = ["ALWAYS", "Dead", "dead", "policies_never_reached", "witnesses"]

ALWAYS = "always"
_ROUNDS = 4  # of a few packets made for each rule, before the solver is asked
_BATCH = 2048  # packets worked out at once: memory is this times the gates of the circuit


@dataclass(frozen=True, slots=True)
class Dead:
    """A rule that no packet matches.

    versions   of IP for which its chain was looked at; empty for a chain that nothing leads to
    certainty  ALWAYS, or `unless ...`: it is only dead as long as none of `atoms` ever matches
    atoms      the matches that would have to
    because    rules that leave nothing for it, as few as were found
    reason     in words, where no other rule is to blame
    """

    rule: Rule
    versions: tuple[int, ...]
    certainty: str = ALWAYS
    atoms: tuple[str, ...] = ()
    because: tuple[Rule, ...] = ()
    reason: str = ""


@dataclass(slots=True)
class _Found:
    """What is known of a rule so far, over all IP versions."""

    live: bool = False
    unless: set[str] = field(default_factory=set)
    versions: list[int] = field(default_factory=list)
    reason: Reason | None = None


def dead(
    ruleset: Ruleset, local: Local = None, *, explain: bool = True, only: Collection[Rule] | None = None
) -> list[Dead]:
    """The rules that can never decide, in the order of the ruleset. Rules of chains that are not for IP are left out.

    local    the host's own addresses, by IP version, if they are known
    explain  whether to look for the rules that cover each
    only     rules to look at; None for all
    """
    found: dict[Place, _Found] = {}
    for version in ruleset.families():
        with question([ruleset], version, local) as asked:
            _Search(ruleset, asked, found, explain, only).run()
    unused, beside = unused_places(ruleset), elsewhere(ruleset)
    out = []
    for known in ruleset.chains:
        for index, rule in enumerate(known.chain.rules):
            place = known.key, index
            if place in unused:
                out.append(Dead(rule, (), reason="unused chain"))
            elif place in found and not found[place].live and known.key not in beside:
                out.append(_dead(rule, found[place]))
    return out


def _dead(rule: Rule, found: _Found) -> Dead:
    versions = tuple(found.versions)
    if found.unless:
        atoms = tuple(sorted(found.unless))
        return Dead(rule, versions, f"unless {' or '.join(atoms)}", atoms)
    reason = found.reason or Reason()
    return Dead(rule, versions, because=reason.rules, reason=reason.text)


class _Search:
    """One IP version."""

    def __init__(
        self, ruleset: Ruleset, asked: Question, found: dict[Place, _Found], explain: bool,
        only: Collection[Rule] | None,
    ) -> None:  # fmt: skip
        self.ruleset, self.asked, self.found = ruleset, asked, found
        self.circuit, self.session = asked.domain.circuit, asked.session
        self.places = {
            place: stands
            for place, stands in asked.ways[0].by_place().items()
            if only is None or stands[0][0].chain.chain.rules[place[1]] in only
        }
        self.reasons, self.explain = Reasons(asked, explain), explain
        self.atoms = asked.atoms.outcomes
        self.open: list[Place] = []  # of which it is not known yet
        self._texts: dict[str, list[int]] = {}
        for literal, (atom, _) in self.atoms.items():
            self._texts.setdefault(atom.text, []).append(literal)

    def run(self) -> None:
        """Finds out of each rule whether a packet can match it."""
        for place in self.places:
            found = self.found.setdefault(place, _Found())
            found.versions.append(self.asked.version)
            if not found.live:
                self.open.append(place)
        self._simulated(1)
        self._covered()
        self._simulated(_ROUNDS)
        order = {id(made): number for number, (made, _) in enumerate(self._entered())}
        self.open.sort(key=lambda place: (order[id(self.places[place][0][0])], place[1]))
        self._near()
        for place in self.open:
            self._rule(place, self.places[place], self.found[place])

    def _covered(self) -> None:
        """Rules that one earlier rule of their chain covers, as can be seen without a solver."""
        left = []
        for place in self.open:
            stands = self.places[place]
            reason = self.reasons.covered(stands[0][0], place[1]) if self._plain(place) else None
            if reason is not None:
                self.found[place].reason = reason
            else:
                left.append(place)
        self.open = left

    def _near(self) -> None:
        """Rules that their own chain explains; and packets that show others to be live."""
        packets: list[tuple[Place, dict[int, int]]] = []
        left: list[Place] = []
        for place in self.open:
            stands = self.places[place]
            answer = self.reasons.near(stands[0][0], place[1]) if self._plain(place) else None
            if isinstance(answer, Reason):
                self.found[place].reason = answer
            else:
                left.append(place)
                if answer is not None:
                    packets.append((place, answer))
        self.reasons.close()
        self.open = left
        for start in range(0, len(packets), _BATCH):
            words: dict[int, int] = {}
            batch = packets[start : start + _BATCH]
            for number, (_, packet) in enumerate(batch):
                for variable, bit in packet.items():
                    words[variable] = words.get(variable, 0) | bit << number
            self._show(words, [place for place, _ in batch])

    def _plain(self, place: Place) -> bool:
        """Whether the rule stands in one chain as made, and does nothing unless all its terms hold."""
        stands = self.places[place]
        made = stands[0][0]
        return len(stands) == 1 and made.acted[place[1]] == made.matched[place[1]]

    def _entered(self) -> list[tuple[Encoded, int]]:
        seen: dict[int, tuple[Encoded, int]] = {}
        for stands in self.places.values():
            for one in stands:
                seen.setdefault(id(one[0]), one)
        return list(seen.values())

    def _rule(self, place: Place, stands: list[tuple[Encoded, int]], found: _Found) -> None:
        index = place[1]
        able = [(made, entry) for made, entry in stands if self.session.ask(entry, made.acted[index])]
        if able:
            unless = self._unless(able[0], index) if len(stands) == 1 else None
            if unless:
                found.unless |= unless
            else:
                found.live = True
        elif self.explain and (found.reason is None or not found.reason.rules):
            found.reason = self.reasons.of(stands[0], index) if stands else None

    def _unless(self, stand: tuple[Encoded, int], index: int) -> set[str] | None:
        """The atoms of which one must match for the rule to be got to, where others need not for its chain to be."""
        made, entry = stand
        own = {part.text for part in made.chain.meanings[index].parts if isinstance(part, Atom)}
        quiet = {-literal: atom.text for literal, (atom, _) in self.atoms.items() if atom.text not in own}
        if not quiet or self.session.ask(entry, made.acted[index], *quiet):
            return None
        core = {quiet[literal] for literal in self.session.core() if literal in quiet}
        return core if self.session.ask(entry, *quiet) else None

    def _simulated(self, rounds: int) -> None:
        """Rules that packets made of the rules' own values show to be live, though no atom but theirs matches."""
        samples = Samples(self.ruleset, self.asked.domain)
        for _ in range(rounds):
            left = [place for place in self.open for _ in range(4 if rounds > 1 else 1)]
            if rounds > 1 and not left:
                return
            for start in range(0, len(left), _BATCH):
                batch = left[start : start + _BATCH]
                self._show(samples.words(batch), batch)

    def _show(self, words: dict[int, int], batch: list[Place]) -> None:
        """Closes the rules that one of the packets matches: each is made for a rule, whose atoms alone match."""
        circuit = self.circuit
        mask = (1 << len(batch)) - 1
        atoms = self._atom_words(batch)
        values = circuit.simulate(words | atoms, mask)
        good = mask
        for literal in self.asked.domain.always:
            good &= circuit.value(values, mask, literal)
        loud = 0
        for word in atoms.values():
            loud |= word
        own: dict[Place, int] = {}
        for number, place in enumerate(batch):
            if loud >> number & 1:
                own[place] = own.get(place, 0) | 1 << number
        left = []
        for place in self.open:
            index = place[1]
            if any(
                circuit.value(values, mask, entry)
                & circuit.value(values, mask, made.acted[index])
                & good
                & (~loud | own.get(place, 0))
                for made, entry in self.places[place]
            ):
                self.found[place].live = True
            else:
                left.append(place)
        self.open = left

    def _atom_words(self, batch: list[Place]) -> dict[int, int]:
        """Atoms do not match, but for the packets that are made for their own rules."""
        words = {literal: 0 for literal in self.atoms}
        if not words:
            return words
        chains = self.ruleset.by_key()
        for number, (key, index) in enumerate(batch):
            for atom in chains[key].meanings[index].atoms:
                if not atom.negated:
                    for literal in self._texts[atom.text]:
                        words[literal] |= 1 << number
        return words


def witnesses(ruleset: Ruleset, local: Local = None) -> dict[Rule, Witness]:
    """By rule, a packet that matches it, as usual as possible; rules that no packet matches are left out."""
    found: dict[Rule, Witness] = {}
    for version in ruleset.families():
        with question([ruleset], version, local) as asked:
            for place, stands in asked.ways[0].by_place().items():
                for made, entry in stands:
                    rule = made.chain.chain.rules[place[1]]
                    if rule in found:
                        continue
                    one = witness(asked, (entry, made.matched[place[1]]))
                    if one is not None:
                        found[rule] = one
    return found


def policies_never_reached(ruleset: Ruleset, local: Local = None) -> list[tuple[str, str, str, str]]:
    """The keys of base chains of which no packet comes to the end, in the order of the ruleset."""
    reached: set[tuple[str, str, str, str]] = set()
    passed: set[tuple[str, str, str, str]] = set()
    for version in ruleset.families():
        with question([ruleset], version, local) as asked:
            for base in asked.ways[0].bases:
                passed.add(base.chain.key)
                if base.left != FALSE and asked.session.ask(base.entry, base.left):
                    reached.add(base.chain.key)
    return [known.key for known in ruleset.chains if known.key in passed - reached]
