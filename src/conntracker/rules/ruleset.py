"""A ruleset, understood: chains whose rules have a meaning, the named sets, and where each was read.

`rules.Ruleset` is its front: parse, format, decide, dead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from conntracker.rules.chain import Chain
from conntracker.rules.terms import Atom, Part, Verdict
from conntracker.steps import Rule

if TYPE_CHECKING:
    from conntracker.rules.decide import Decisions
    from conntracker.rules.host import Host
    from conntracker.rules.solve.dead import Dead
    from conntracker.rules.walk import Answer

__all__ = ["ChainKey", "KnownChain", "Meaning", "NamedSet", "Ruleset", "namespace_of"]

# (legacy or nft, family, table, chain)
ChainKey = tuple[str, str, str, str]


def namespace_of(kind: str) -> str:
    """iptables-nft and nft share the tables of nf_tables; ip_tables has its own."""
    return "legacy" if kind == "iptables-legacy" else "nft"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a rule asks and does.

    parts      in the order in which the kernel goes through them; a rule without Verdict, Branches or Nat continues
    counters   (packets, bytes), None without
    comment    the rule's, None without
    uses       names of sets and maps of its table that it refers to
    """

    parts: tuple[Part, ...]
    counters: tuple[int, int] | None = None
    comment: str | None = None
    uses: tuple[str, ...] = ()

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """The matches that are not understood, or stateful."""
        return tuple(part for part in self.parts if isinstance(part, Atom))

    @property
    def verdict(self) -> Verdict | None:
        """The verdict, where there is but one."""
        return next((part for part in self.parts if isinstance(part, Verdict)), None)


@dataclass(frozen=True, slots=True)
class KnownChain:
    """A chain with the meaning of each rule: meanings[i] is that of chain.rules[i].

    counters   of the policy, (packets, bytes), None without
    """

    chain: Chain
    meanings: tuple[Meaning, ...]
    counters: tuple[int, int] | None = None

    @property
    def key(self) -> ChainKey:
        """Where it is."""
        one = self.chain
        return namespace_of(one.kind), one.family, one.table, one.name

    def items(self) -> Iterator[tuple[Rule, Meaning]]:
        """Rules with their meanings, in order."""
        return zip(self.chain.rules, self.meanings, strict=True)


@dataclass(frozen=True, slots=True)
class NamedSet:
    """A named set or map of a table.

    kind      set or map
    type      of its keys, as nft writes it: `ipv4_addr . inet_service`
    flags     interval, timeout, dynamic, constant
    size      elements
    text      as nft lists it, one line
    source    file:line, None from the kernel
    """

    family: str
    table: str
    name: str
    kind: str
    type: str
    flags: tuple[str, ...]
    size: int
    text: str
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Chains of any number of families and tables, in the order in which they were read.

    chains   base chains of one hook and priority run in the order that conntracker.rules.order says
    notes    lines for a person: what could not be read, or is not as it was meant
    """

    chains: tuple[KnownChain, ...]
    sets: tuple[NamedSet, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def parse(
        cls, text: str, *, source: str | None = None, family: str | None = None, kind: str | None = None
    ) -> Ruleset:
        """A ruleset from what iptables-save, ip6tables-save or `nft -j list ruleset` print.

        source         the file's name, for errors and for where each rule stands
        family, kind   of a save: ip or ip6, one of steps.KINDS; None to tell by its text

        nft's own syntax only nft can read: see sources.translate. Raises RuleSyntaxError.
        """
        if text.lstrip().startswith("{"):
            from conntracker.rules.nft import parse_json

            return parse_json(text, source=source)
        from conntracker.rules.iptables import parse_save

        return cls(parse_save(text, family=family, kind=kind, source=source))

    @classmethod
    def joined(cls, rulesets: Iterable[Ruleset]) -> Ruleset:
        """Several rulesets as the one that is in force when all of them are."""
        every = list(rulesets)
        return cls(
            tuple(chain for one in every for chain in one.chains),
            tuple(named for one in every for named in one.sets),
            tuple(note for one in every for note in one.notes),
        )

    def decide(self, packet: Mapping[str, Any], way: str | None, *, host: Host | None = None) -> Answer | Decisions:
        """What becomes of a packet, or of as many as the columns have rows.

        packet   fields (rules.fields; `family` at least) with a number or a name each: then the answer is rules.walk's,
                 with every step; or with an array each: then it is rules.decide's, columns
        way      input, forward or output; None, for a single packet, where its destination decides
        host     whose addresses and routes they are, where that is known
        """
        if not isinstance(packet["family"], int):
            from conntracker.rules.decide import decide

            if way is None:
                raise ValueError("columns need a way: input, forward or output")
            return decide(self, packet, way, host=host)
        from conntracker.rules.walk import walk

        return walk(self, packet, way, host=host)

    def dead(self) -> list[Dead]:
        """The rules that no packet ever matches, each with why. Needs python-sat."""
        from conntracker.rules.solve.dead import dead

        return dead(self)

    def uncounted(self) -> Ruleset:
        """The same without counters."""
        chains = tuple(
            replace(known, counters=None, meanings=tuple(replace(one, counters=None) for one in known.meanings))
            for known in self.chains
        )
        return replace(self, chains=chains)

    def by_key(self) -> dict[ChainKey, KnownChain]:
        """Chains by place."""
        return {chain.key: chain for chain in self.chains}

    def families(self) -> tuple[int, ...]:
        """4, 6 or both: the versions of IP that it has base chains for."""
        found = {chain.chain.family for chain in self.chains if chain.chain.hook is not None}
        if not found & {"ip", "ip6", "inet"}:
            return (4, 6)
        return tuple(version for version, name in ((4, "ip"), (6, "ip6")) if found & {name, "inet"})
