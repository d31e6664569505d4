"""Rulesets as circuits: which packets get to a rule, match it, and what becomes of them.

A chain is made once for all places that lead to it, unless a rule on the way has changed a field that it asks for: what
it does is told relative to its entry, so that the circuit grows with the number of rules and not of paths.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from conntracker.rules.fields import FIELDS, ROUTE_TYPES
from conntracker.rules.intervals import single
from conntracker.rules.ruleset import ChainKey, KnownChain, Meaning, Ruleset, namespace_of
from conntracker.rules.solve.circuit import FALSE, TRUE, Vector
from conntracker.rules.solve.domain import STATE, Domain, Values
from conntracker.rules.solve.refusals import refusal
from conntracker.rules.terms import AnyOf, Assign, Atom, Branches, Effect, In, Named, Nat, Part, Term, Verdict
from conntracker.steps import Rule

__all__ = ["ENDINGS", "Encoded", "Encoder", "Place"]

Place = tuple[ChainKey, int]

ENDINGS = frozenset(("accept", "drop", "reject", "queue", "stolen"))
# What an atom may look at that rules can change.
_CHANGING = frozenset(("saddr", "daddr", "sport", "dport", "mark", "ct_mark", "ct_state"))
_NAT_FIELDS = frozenset(("saddr", "daddr", "sport", "dport", "saddr_type", "daddr_type", "ct_status"))
_LO = single(1)  # see Interfaces
# Chains that ask stateful matches are made anew for each jump to them, as long as no more rules are made for it than
# this and twice the ruleset's; then once for each time that packets come to a base chain.
_ANEW = 2_000
# Harmless when packets that a rule does not match have it done to them, too: nothing but the count is lost.
_COUNTING = frozenset(("counter",))


@dataclass(slots=True)
class Encoded:
    """A chain, for packets that come to it with certain fields. All literals are relative to its entry.

    matched   by rule: it is reached, and all its terms hold
    acted     by rule: it is reached, and does something, be it only a change before the term that fails
    terms     by rule: its terms hold
    results   by rule: if the literal holds, what becomes of the packet; for jump and goto, the chain
    left      the packet comes out at the end or by return
    changed   the fields that it then has, as far as they were changed
    ended     by outcome (`drop`, `reject with ...`): it ends here, or in a chain that this one leads to
    accepted  the fields of packets that are accepted, as far as they were changed
    calls     chains that it leads to, when, and by which rule
    entry     of base chains: the packets that come to it
    end       the packet comes to the end of the chain
    natted    it is given a NAT
    changing  whether a rule, or a chain that it leads to, changes what rules behind it see
    passing   by rule: it is reached, and keeps the packet from the next one
    blocking  by rule: it would keep the packet from the next one, if it were reached
    """

    chain: KnownChain
    hook: str
    matched: list[int] = field(default_factory=list)
    acted: list[int] = field(default_factory=list)
    terms: list[int] = field(default_factory=list)
    passing: list[int] = field(default_factory=list)
    blocking: list[int] = field(default_factory=list)
    results: list[list[tuple[int, str, Encoded | None]]] = field(default_factory=list)
    left: int = FALSE
    changed: dict[str, Vector] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    accepted: dict[str, Vector] = field(default_factory=dict)
    calls: list[tuple[Encoded, int, int]] = field(default_factory=list)
    entry: int = FALSE
    end: int = FALSE
    natted: int = FALSE
    changing: bool = False


class Encoder:
    """The chains of one ruleset, for one IP version.

    anew   whether stateful matches may answer otherwise each time that a chain is jumped to, or only each time that a
           base chain is passed. What is live is the same: of the fewest steps that lead to a rule, none is in a chain
           that the packet left before, so that one answer will do.
    """

    def __init__(self, ruleset: Ruleset, domain: Domain, atoms: Atoms, anew: bool = False) -> None:
        self.domain, self.circuit, self.atoms = domain, domain.circuit, atoms
        self.chains = ruleset.by_key()
        self.made: list[Encoded] = []  # callees before their callers
        self._cache: dict[tuple[ChainKey, str, int, tuple[int, ...]], Encoded] = {}
        self._touched: dict[ChainKey, frozenset[str]] = {}
        self._open: set[ChainKey] = set()
        self._keep: list[Vector] = []
        self._tests: dict[tuple[object, ...], int] = {}
        self.untracked = False  # whether connection tracking is still to come
        self.passing = 0  # how many base chains packets have come to
        self._asking: dict[ChainKey, bool] = {}
        self._calls = 0
        self._left = _ANEW + 2 * sum(len(known.meanings) for known in ruleset.chains) if anew else 0

    # --- chains ---

    def chain(self, known: KnownChain, values: Values, hook: str) -> Encoded:
        """The chain, for packets with these fields. Raises ValueError for chains that lead back to themselves."""
        touched = sorted(self.touched(known.key))
        vectors = [values[name] for name in touched]
        hooked = hook if known.chain.hook is None and self._hooked(touched) else ""
        key = known.key, hooked, self._visit(known), tuple(map(id, vectors))
        found = self._cache.get(key)
        if found is None:
            if known.key in self._open:
                raise ValueError(f"chain {known.chain.name} leads back to itself")
            self._open.add(known.key)
            found = self._cache[key] = _Making(self, known, values, hook).make()
            self._open.discard(known.key)
            self._keep += vectors
            self.made.append(found)
        return found

    def _visit(self, known: KnownChain) -> int:
        """Another number where the chain's matches may answer otherwise; but see _ANEW."""
        if not self.asks(known.key):
            return 0
        if self._left <= 0:
            return self.passing
        self._left -= len(known.meanings)
        self._calls += 1
        return -self._calls

    def asks(self, key: ChainKey) -> bool:
        """Whether a chain, or one that it leads to, asks a stateful match, or a program."""
        if key not in self._asking:
            self._asking[key] = False  # of a loop, which is found later
            known = self.chains.get(key)
            self._asking[key] = known is not None and any(
                _stateful(part) or any(self.asks((key[0], rule.family, rule.table, name)) for name in _targets(part))
                for rule, meaning in known.items()
                for part in meaning.parts
            )
        return self._asking[key]

    @staticmethod
    def _hooked(touched: list[str]) -> bool:
        """Whether what a chain does depends on the hook: which way its NAT goes."""
        return "saddr" in touched and "daddr" in touched

    def target(self, rule: Rule, name: str) -> KnownChain | None:
        """The chain of the rule's table that a jump leads to."""
        return self.chains.get((namespace_of(rule.kind), rule.family, rule.table, name))

    def touched(self, key: ChainKey) -> frozenset[str]:
        """The fields that a chain, or one that it leads to, asks for or changes."""
        if key not in self._touched:
            self._touched[key] = frozenset()  # of a loop, which is found later
            known = self.chains.get(key)
            found: set[str] = set()
            for rule, meaning in known.items() if known is not None else ():
                for part in meaning.parts:
                    found |= _fields_of(part)
                    for name in _targets(part):
                        found |= self.touched((key[0], rule.family, rule.table, name))
            for name in list(found):
                if name in FIELDS:
                    found.update(other for other, _ in FIELDS[name].requires)
            if found & {"skuid", "skgid"}:
                found.add("socket")
            self._touched[key] = frozenset(found)
        return self._touched[key]

    # --- terms ---

    def holds(self, term: Term, values: Values, place: tuple[object, ...]) -> int:
        """Whether a term holds for packets with these fields."""
        if isinstance(term, In):
            return self._in(term, values)
        if isinstance(term, Named):
            number = values[term.field]
            found = self.circuit.within(number, self.domain.interfaces.matching(term.patterns))
            return -found if term.negated else found
        if isinstance(term, Atom):
            literal = self.atoms.literal(term, values, place)
            return -literal if term.negated else literal
        found = self.circuit.some([
            self.circuit.every([self.holds(test, values, place) for test in box]) for box in term.boxes
        ])  # fmt: skip
        if not term.negated:
            return found
        first = [test.field for test in (term.boxes[0] if term.boxes else ()) if isinstance(test, In)]
        return self.circuit.every([-found, *(self.domain.present(values, name) for name in first)])

    def _in(self, term: In, values: Values) -> int:
        number = values[term.field]
        key = term, number, *(values[other] for other, _ in FIELDS[term.field].requires)
        found = self._tests.get(key)
        if found is None:
            inner = number
            if term.mask is not None:
                width = len(number.bits)
                bits = (bit if term.mask >> (width - 1 - i) & 1 else FALSE for i, bit in enumerate(number.bits))
                inner = self.circuit.vector(bits)
            within = self.circuit.within(inner, term.values)
            found = self._tests[key] = self.circuit.both(self.domain.present(values, term.field), within)
        return found

    # --- changes ---

    def assigned(self, part: Assign, values: Values) -> Vector:
        """The value that a field gets."""
        circuit, old = self.circuit, values[part.field]
        width = len(old.bits)
        if part.value is None:
            return self.domain.free(("assigned", part, old), width)
        full = (1 << width) - 1
        kept = [FALSE if part.mask >> (width - 1 - i) & 1 else bit for i, bit in enumerate(old.bits)]
        added = list(circuit.constant(part.value & full, width).bits)
        if part.source is not None:
            source = values[part.source].bits
            source = source[-width:] if len(source) >= width else (FALSE,) * (width - len(source)) + source
            masked = [bit if part.source_mask >> (width - 1 - i) & 1 else FALSE for i, bit in enumerate(source)]
            added = [circuit.differ(a, b) for a, b in zip(masked, added, strict=True)]
        new = circuit.vector(circuit.differ(a, b) for a, b in zip(kept, added, strict=True))
        if part.source is None:
            return new
        return circuit.mux(self.domain.present(values, part.source), new, old)

    def translated(self, nat: Nat, values: Values, hook: str) -> dict[str, Vector]:
        """The fields that a packet gets from NAT: the destination's before routing, the source's behind it."""
        circuit, domain = self.circuit, self.domain
        to = hook in {"prerouting", "output"}
        address, port = ("daddr", "dport") if to else ("saddr", "sport")
        width = len(values[address].bits)
        key = (nat.kind, nat.addresses, nat.ports, address)
        changed: dict[str, Vector] = {}
        if nat.kind == "netmap" and nat.addresses is not None:
            low, high = nat.addresses
            own = zip(circuit.constant(low, width).bits, circuit.constant(high - low, width).bits, strict=True)
            changed[address] = circuit.vector(
                bit if host == TRUE else fixed for bit, (fixed, host) in zip(values[address].bits, own, strict=True)
            )
        elif nat.addresses is not None:
            changed[address] = domain.bounded(key, width, *nat.addresses)
        elif nat.kind == "redirect" and hook == "output":
            changed[address] = circuit.constant(0x7F000001 if width == 32 else 1, width)
        elif nat.kind in {"redirect", "masquerade"} or nat.ports is None:
            changed[address] = domain.free(key, width)
        if address in changed:
            kind = f"{address}_type"
            if nat.addresses is None and nat.kind in {"redirect", "masquerade"}:
                changed[kind] = circuit.constant(ROUTE_TYPES.index("local"), FIELDS[kind].width)
            else:
                changed[kind] = domain.address_type(kind, changed[address])
        if nat.ports is not None:
            changed[port] = domain.bounded(("port", *key), 16, *nat.ports)
        given = [name for name in (address, port) if name in changed]
        differs = circuit.some(
            [circuit.both(domain.present(values, name), circuit.unequal(values[name], changed[name])) for name in given]
        )
        for name in given:
            domain.given_by_nat(name, values[name], changed[name])
        bits = list(values["ct_status"].bits)
        which = len(bits) - (1 << (5 if to else 4)).bit_length()
        bits[which] = circuit.either(bits[which], differs)
        changed["ct_status"] = circuit.vector(bits)
        return changed


class _Making:
    """One chain being made: what holds of the packet where the next rule stands."""

    def __init__(self, encoder: Encoder, known: KnownChain, values: Values, hook: str) -> None:
        self.encoder, self.circuit, self.hook = encoder, encoder.circuit, hook
        self.out = Encoded(known, hook)
        self.given = values
        self.values = dict(values)
        self.reached = TRUE  # the next rule
        self.block = FALSE
        self.leaving: list[tuple[int, dict[str, Vector]]] = []
        self.accepting: list[tuple[int, dict[str, Vector]]] = []
        self.endings: dict[str, list[int]] = {}

    def make(self) -> Encoded:
        """The chain, whole."""
        for index, (rule, meaning) in enumerate(self.out.chain.items()):
            self._rule(index, rule, meaning)
        out = self.out
        out.end = self.reached
        self.leaving.append((self.reached, self.values))
        out.left, out.changed = self._merged(self.leaving)
        accepted, out.accepted = self._merged(self.accepting)
        out.ended = {kind: self.circuit.some(literals) for kind, literals in self.endings.items()}
        if accepted != FALSE:
            out.ended["accept"] = accepted
        return out

    def _merged(self, ways: list[tuple[int, dict[str, Vector]]]) -> tuple[int, dict[str, Vector]]:
        """The OR of ways out, and the fields that packets have on them, as far as they were changed."""
        ways = [(literal, values) for literal, values in ways if literal != FALSE]
        changed: dict[str, Vector] = {}
        for name, given in self.given.items():
            if all(values[name] is given for _, values in ways):
                continue
            found = ways[-1][1][name]
            for literal, values in reversed(ways[:-1]):
                found = self.circuit.mux(literal, values[name], found)
            changed[name] = found
        return self.circuit.some([literal for literal, _ in ways]), changed

    def _rule(self, index: int, rule: Rule, meaning: Meaning) -> None:
        circuit, out = self.circuit, self.out
        holding = TRUE  # the terms so far
        acted = FALSE
        before = self.reached
        ended = False
        self.block = FALSE
        out.results.append([])
        place = (out.chain.key, index, self.hook, id(out))
        for number, part in enumerate(meaning.parts):
            if isinstance(part, In | Named | AnyOf | Atom):
                holding = circuit.both(holding, self.encoder.holds(part, self.values, (*place, number)))
            elif isinstance(part, Assign):
                acted = circuit.either(acted, holding)
                self._assign(part, holding)
            elif isinstance(part, Effect):
                if part.name not in _COUNTING:
                    acted = circuit.either(acted, holding)
            elif isinstance(part, Nat):
                if part.family not in {None, self.encoder.domain.version}:
                    continue
                self._nat(part, holding)
                ended = True
                break
            elif isinstance(part, Verdict):
                self._verdict(rule, part, holding)
                ended = True
                break
            else:
                holding = self._branches(rule, part, holding, (*place, number))
                ended = True
                break
        if not ended:
            out.passing.append(FALSE)
        out.blocking.append(self.block)
        out.terms.append(holding)
        out.matched.append(circuit.both(before, holding))
        out.acted.append(circuit.both(before, circuit.either(acted, holding)))

    def _branches(self, rule: Rule, part: Branches, holding: int, place: tuple[object, ...]) -> int:
        open_, found = holding, []
        before = self.reached
        for case, verdict in part.cases:
            fits = self.circuit.both(open_, self.encoder.holds(case, self.values, place))
            open_ = self.circuit.both(open_, -fits)
            found.append(fits)
            self._verdict(rule, verdict, fits)
            self.out.passing.pop()
        self.out.passing.append(self.circuit.both(before, -self.reached))
        return self.circuit.some(found)

    def _assign(self, part: Assign, holding: int) -> None:
        """Packets that lack the field stay as they are; and `notrack` does nothing once the packet is of a flow."""
        circuit, domain, values = self.circuit, self.encoder.domain, self.values
        field, when = part.field, holding
        if field != "ct_state":
            when = circuit.both(holding, domain.present(values, field))
        elif part.value is not None:
            when = circuit.both(holding, domain.within(values, field, STATE["invalid"]))
        else:  # another zone
            field = "zone"
            tracking = self.encoder.untracked
            when = circuit.both(holding, -domain.within(values, "iif", _LO)) if tracking else FALSE
        new = circuit.constant(1, 1) if field == "zone" else self.encoder.assigned(part, values)
        self._change({field: circuit.mux(when, new, values[field])})

    def _change(self, values: Values) -> None:
        for name, vector in values.items():
            if self.values[name] is not vector:
                self.values[name] = vector
                self.out.changing = True

    def _nat(self, part: Nat, holding: int) -> None:
        here = self.circuit.both(self.reached, holding)
        self.accepting.append((here, self.values | self.encoder.translated(part, self.values, self.hook)))
        self.block = holding
        self.out.results[-1].append((holding, "accept", None))
        self.out.natted = self.circuit.either(self.out.natted, here)
        self.reached = self.circuit.both(self.reached, -holding)
        self.out.passing.append(here)

    def _verdict(self, rule: Rule, part: Verdict, holding: int) -> None:
        """What becomes of packets that match: `passing` gets whether the rule keeps them from the next one."""
        circuit, out = self.circuit, self.out
        here = circuit.both(self.reached, holding)
        if part.kind in {"jump", "goto"}:
            self._jump(rule, part, holding, here)
            return
        if part.kind == "continue":
            out.passing.append(FALSE)
            return
        text = refusal(part.text, self.encoder.domain.version) if part.kind == "reject" else part.text
        name = f"{part.kind} {text}" if text else part.kind
        out.results[-1].append((holding, name, None))
        if part.kind == "accept":
            self.accepting.append((here, dict(self.values)))
        elif part.kind == "queue":
            self._queue(name, here)
        elif part.kind == "return":
            self.leaving.append((here, dict(self.values)))
        else:
            self.endings.setdefault(name, []).append(here)
        out.passing.append(here)
        self.block = circuit.either(self.block, holding)
        self.reached = circuit.both(self.reached, -holding)

    def _queue(self, name: str, here: int) -> None:
        """A program may let the packet go on, with another mark: behind the chain (nf_reinject, nf_queue.c)."""
        circuit, (goes, marks, mark) = self.circuit, self.encoder.atoms.handed(name)
        self.endings.setdefault(name, []).append(circuit.both(here, -goes))
        new = circuit.mux(marks, mark, self.values["mark"])
        self.accepting.append((circuit.both(here, goes), self.values | {"mark": new}))

    def _jump(self, rule: Rule, part: Verdict, holding: int, here: int) -> None:
        circuit, out = self.circuit, self.out
        known = self.encoder.target(rule, part.chain or "")
        if known is None:
            raise ValueError(f"{rule.source or rule.text}: there is no chain {part.chain}")
        called = self.encoder.chain(known, self.values, self.hook)
        out.changing |= called.changing
        out.calls.append((called, here, len(out.terms)))
        out.results[-1].append((holding, part.kind, called))
        out.natted = circuit.either(out.natted, circuit.both(here, called.natted))
        for name, literal in called.ended.items():
            both = circuit.both(here, literal)
            if name == "accept":
                self.accepting.append((both, self.values | called.accepted))
            else:
                self.endings.setdefault(name, []).append(both)
        if part.kind == "goto":
            self.leaving.append((circuit.both(here, called.left), self.values | called.changed))
            out.passing.append(here)
            self.block = circuit.either(self.block, holding)
            self.reached = circuit.both(self.reached, -holding)
            return
        out.passing.append(circuit.both(here, -called.left))
        self.block = circuit.either(self.block, circuit.both(holding, -called.left))
        self.reached = circuit.both(self.reached, circuit.either(-holding, called.left))
        self._change({name: circuit.mux(holding, vector, self.values[name]) for name, vector in called.changed.items()})


class Atoms:
    """The outcomes of matches that are not in the packet, by text; shared by the rulesets that are compared."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.outcomes: dict[int, tuple[Atom, tuple[object, ...]]] = {}
        self._alone: dict[tuple[object, ...], int] = {}
        self._count: dict[tuple[str, str], int] = {}
        self._handed: dict[tuple[str, str, str, int], tuple[int, int, Vector]] = {}
        self.stage = ""  # the hook, and the way on which it is passed
        self._shared: dict[str, list[tuple[tuple[Vector, ...], int]]] = {}
        self._by_key: dict[tuple[object, ...], int] = {}

    def start(self) -> None:
        """Another ruleset begins: stateful matches of equal text are paired in the order in which they come."""
        self._count.clear()
        self._alone.clear()
        self.stage = ""

    def literal(self, atom: Atom, values: Values, place: tuple[object, ...]) -> int:
        """The outcome of an atom for packets with these fields, not negated."""
        return self._stateful(atom, place) if atom.occurrence else self._pure(atom, values)

    def _stateful(self, atom: Atom, place: tuple[object, ...]) -> int:
        key = (atom.occurrence, atom.text, *place)
        if key not in self._alone:
            paired = ("stateful", atom.text, self.stage, self._number(atom.text))
            if paired not in self._by_key:
                self._by_key[paired] = self._new(atom, place)
            self._alone[key] = self._by_key[paired]
        return self._alone[key]

    def _number(self, text: str) -> int:
        key = self.stage, text
        self._count[key] = self._count.get(key, 0) + 1
        return self._count[key]

    def handed(self, name: str) -> tuple[int, int, Vector]:
        """Of a queue: whether a program lets the packet go on, whether it changes the mark, and to what."""
        key = ("queue", name, self.stage, self._number(name))
        if key not in self._handed:
            circuit = self.domain.circuit
            goes, marks = circuit.new(), circuit.new()
            self.domain.handed += [goes, marks]
            self._handed[key] = goes, marks, circuit.number(FIELDS["mark"].width)
        return self._handed[key]

    def _pure(self, atom: Atom, values: Values) -> int:
        vectors = tuple(values[name] for name in sorted(_CHANGING))
        key = ("pure", atom.name, atom.text, *vectors)
        if key not in self._by_key:
            literal = self._by_key[key] = self._new(atom, ())
            self._agree(atom, vectors, literal)
        return self._by_key[key]

    def _agree(self, atom: Atom, vectors: tuple[Vector, ...], literal: int) -> None:
        """For equal packets the outcome is equal, even where rules have made them so."""
        circuit = self.domain.circuit
        others = self._shared.setdefault(f"{atom.name} {atom.text}", [])
        for before, other in others:
            unequal = circuit.some([circuit.unequal(a, b) for a, b in zip(vectors, before, strict=True)])
            self.domain.always.append(circuit.either(unequal, -circuit.differ(literal, other)))
        others.append((vectors, literal))

    def _new(self, atom: Atom, place: tuple[object, ...]) -> int:
        literal = self.domain.circuit.new()
        self.outcomes[literal] = atom, place
        return literal


def _fields_of(part: Part) -> set[str]:
    if isinstance(part, In | Named):
        return {part.field}
    if isinstance(part, AnyOf):
        return {test.field for box in part.boxes for test in box}
    if isinstance(part, Branches):
        return {name for case, verdict in part.cases for one in (case, verdict) for name in _fields_of(one)}
    if isinstance(part, Assign):
        zone = {"zone", "iif"} if part.field == "ct_state" and part.value is None else set()
        return {part.field} | ({part.source} if part.source else set()) | zone
    if isinstance(part, Verdict | Atom):
        queued = isinstance(part, Verdict) and part.kind == "queue"
        return {"mark"} if queued else set(_CHANGING) if isinstance(part, Atom) and not part.occurrence else set()
    return set(_NAT_FIELDS) if isinstance(part, Nat) else set()


def _stateful(part: Part) -> bool:
    if isinstance(part, Branches):
        return any(_stateful(one) for pair in part.cases for one in pair)
    return (isinstance(part, Atom) and bool(part.occurrence)) or (isinstance(part, Verdict) and part.kind == "queue")


def _targets(part: Part) -> Iterable[str]:
    if isinstance(part, Verdict) and part.chain is not None:
        return (part.chain,)
    if isinstance(part, Branches):
        return [verdict.chain for _, verdict in part.cases if verdict.chain is not None]
    return ()
