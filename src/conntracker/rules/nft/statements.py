"""One rule of nf_tables made into its meaning: statements become parts, in their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from conntracker.rules.intervals import normal, single
from conntracker.rules.nft.atoms import is_stateful, name_of
from conntracker.rules.nft.changes import assignment, nat
from conntracker.rules.nft.expressions import Known, needs_of
from conntracker.rules.nft.matches import key_needs, key_selectors, match_terms
from conntracker.rules.nft.render import statement_text
from conntracker.rules.nft.sets import Changing, Sets
from conntracker.rules.nft.texts import VERDICTS, expression_text
from conntracker.rules.nft.values import Unreadable
from conntracker.rules.nft.verdicts import cases_of, keys_of, pair_of, readable_verdicts, verdict_of
from conntracker.rules.ruleset import Meaning
from conntracker.rules.terms import AnyOf, Assign, Atom, Branches, Effect, In, Part, Verdict

__all__ = ["Place", "meaning_of"]

_NATS = {"snat", "dnat", "masquerade", "redirect"}

# Statements that only do something, as far as rules see (net/netfilter/nft_*.c: none of them ends the rule).
_EFFECTS = {"log", "counter", "last", "dup", "flow", "ct helper", "ct timeout", "secmark"}


_DECIDING = {"limit", "quota", "ct count"}  # in a set's element: what ends the rule if it says so


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rule stands: what its chain and its table say about it.

    name       family/table/chain/position
    families   what of IP the table sees
    hook       of its base chain
    sets       of its table
    """

    name: str
    families: tuple[tuple[int, int], ...]
    hook: str | None
    sets: Sets


def meaning_of(statements: list[Any], place: Place, comment: str | None) -> Meaning:
    """What the statements of a rule ask and do. Never raises: what is not understood becomes an Atom."""
    reader = _Reader(place, Known(place.families))
    for statement in statements:
        reader.read(statement)
    uses: dict[str, None] = {}
    _uses(statements, uses)
    return Meaning(tuple(reader.parts), reader.counters, comment, tuple(uses))


@dataclass(slots=True)
class _Reader:
    place: Place
    known: Known
    parts: list[Part] = field(default_factory=list)
    counters: tuple[int, int] | None = None
    atoms: int = 0

    def read(self, statement: Any) -> None:
        try:
            self.understand(statement)
        except (ValueError, TypeError, AttributeError, LookupError, OverflowError):  # not as libnftables writes it
            self.atom("statement", statement_text(statement), True)

    def understand(self, statement: Any) -> None:
        if not isinstance(statement, dict) or len(statement) != 1:
            self.atom("statement", statement_text(statement), True)
            return
        (name, inner), *_ = statement.items()
        reading = _READINGS.get(name)
        if reading is not None:
            reading(self, name, inner)
        elif name in VERDICTS:
            self.parts.append(verdict_of(statement))
        elif name in _NATS:
            self.nat(name, inner)
        elif name in _EFFECTS:
            self.effect(name, inner)
        else:
            inner = inner if isinstance(inner, dict) else {}
            shown = f"{name} {inner['name']}" if isinstance(inner.get("name"), str) else name
            self.atom(shown, statement_text(statement), False)

    def add(self, parts: list[Any] | tuple[Any, ...]) -> None:
        """Parts; what the packet must be is asked once."""
        for part in parts:
            if isinstance(part, In) and not self.known.learn(part):
                continue
            self.parts.append(part)
            if isinstance(part, In | AnyOf | Atom):
                self.counters = None  # it counted packets that this term has yet to look at

    def atom(self, name: str, text: str, stateful: bool) -> None:
        occurrence = ""
        if stateful:
            self.atoms += 1
            occurrence = f"{self.place.name}/{self.atoms}"
        self.add([Atom(name, text, occurrence)])

    def match(self, name: str, inner: Any) -> None:
        left = inner.get("left") if isinstance(inner, dict) else None
        try:
            self.add(match_terms(inner if isinstance(inner, dict) else {}, self.known, self.place.sets))
        except Changing:
            self.add(_needs_of_key(left, self.known))
            self.atom("set", statement_text({name: inner}), True)
        except Unreadable:
            self.add(needs_of(left))
            self.atom(name_of(left), statement_text({name: inner}), is_stateful(left))

    def limited(self, name: str, inner: Any) -> None:
        self.atom(name, statement_text({name: inner}), True)

    def effect(self, name: str, inner: Any) -> None:
        """A log, a counter, ...; one chosen by a map does nothing, and ends the rule, if the map has no such key."""
        if isinstance(inner, dict) and isinstance(inner.get("map"), dict):
            self.key(inner["map"], statement_text({name: inner}))
        self.parts.append(Effect(name, statement_text({name: inner})))

    def strip(self, name: str, inner: Any) -> None:
        """`reset tcp option`: of what is no TCP it ends the rule (nft_exthdr_tcp_strip_eval, nft_exthdr.c)."""
        self.add([In("protocol", single(6))])
        self.effect(name, inner)

    def count(self, name: str, inner: Any) -> None:
        if isinstance(inner, dict) and isinstance(inner.get("packets"), int) and isinstance(inner.get("bytes"), int):
            if self.counters is None:
                self.counters = (inner["packets"], inner["bytes"])
            inner = None
        self.effect(name, inner)

    def key(self, mapping: dict[str, Any], text: str) -> None:
        """That a map has the packet's key."""
        match = {"op": "==", "left": mapping.get("key"), "right": keys_of(mapping.get("data"))}
        try:
            named = mapping.get("data")
            if isinstance(named, str):
                match["right"] = {"set": [pair_of(one)[0] for one in self.place.sets.elements(named)]}
            self.add(match_terms(match, self.known, self.place.sets))
        except Changing:
            self.atom("map", text, True)
        except Unreadable:
            self.add(needs_of(mapping.get("key")))
            self.atom("map", text, is_stateful(mapping.get("key")))

    def vmap(self, name: str, inner: Any) -> None:
        text = statement_text({name: inner})
        inner = inner if isinstance(inner, dict) else {}
        key = inner.get("key")
        try:
            selectors = key_selectors(key, self.known)
            listed = [pair_of(one) for one in self.place.sets.elements(inner.get("data"))]
            cases: Any = cases_of(selectors, listed)
            self.add(key_needs(selectors))
        except (Changing, Unreadable):
            self.add(_needs_of_key(key, self.known))
            cases = self.opaque_cases(key, inner.get("data"), text)
        self.counters = None
        self.parts.append(Branches(cases))

    def opaque_cases(self, key: Any, data: Any, text: str) -> tuple[tuple[Atom, Verdict], ...]:
        """Each verdict of a map behind an atom of its own. One that packets change may have any of its table's."""
        if isinstance(data, str):
            found = self.place.sets.known.get(data[1:])
            listed, changing = (found.elements if found else None) or [], found is None or found.changing
        else:
            listed, changing = data.get("set", []) if isinstance(data, dict) else [], False
        stateful = changing or is_stateful(key)
        cases = []
        for verdict in dict.fromkeys(readable_verdicts(listed)):
            shown = f"{expression_text(key)} leads to {' '.join(filter(None, (verdict.kind, verdict.chain)))} in {text}"
            self.atoms += stateful
            occurrence = f"{self.place.name}/{self.atoms}" if stateful else ""
            cases.append((Atom("vmap", shown, occurrence), verdict))
        return tuple(cases)

    def reject(self, name: str, inner: Any) -> None:
        kind = inner.get("type") if isinstance(inner, dict) else None
        if kind in {"icmp", "icmpv6"}:
            version = 4 if kind == "icmp" else 6
            self.add([In("family", single(version))])
        elif kind == "tcp reset":
            self.add([In("protocol", single(6))])
        self.parts.append(Verdict("reject", text=statement_text({name: inner}).removeprefix("reject").strip()))

    def queue(self, name: str, inner: Any) -> None:
        self.parts.append(Verdict("queue", text=statement_text({name: inner}).removeprefix("queue").strip()))

    def forward(self, name: str, inner: Any) -> None:
        self.parts.append(Verdict("stolen", text=statement_text({name: inner})))

    def synproxy(self, name: str, inner: Any) -> None:
        """nft_synproxy.c: it answers the handshake itself, the rest goes on."""
        self.add([In("protocol", single(6))])
        handshake = AnyOf(((In("tcp_flags", normal([(1, 18)]), 18),),))
        other = AnyOf(((In("tcp_flags", single(0), 18),),))
        text = statement_text({name: inner})
        self.parts.append(Branches(((handshake, Verdict("stolen", text=text)), (other, Verdict("continue")))))

    def tproxy(self, name: str, inner: Any) -> None:
        self.add([In("protocol", normal([(6, 6), (17, 17)]))])
        self.atom(name, statement_text({name: inner}), False)

    def notrack(self, name: str, _: Any) -> None:
        # Behind connection tracking too, for packets that it found invalid (nft_notrack_eval, net/netfilter/nft_ct.c).
        self.parts.append(Assign("ct_state", 4, 7))

    def mangle(self, name: str, inner: Any) -> None:
        inner = inner if isinstance(inner, dict) else {}
        value = inner.get("value")
        if isinstance(value, dict) and isinstance(value.get("map"), dict):
            self.key(value["map"], statement_text({name: inner}))
        self.add(assignment(inner, self.known))

    def nat(self, name: str, inner: Any) -> None:
        for value in (inner.get("addr"), inner.get("port")) if isinstance(inner, dict) else ():
            if isinstance(value, dict) and isinstance(value.get("map"), dict):
                self.key(value["map"], statement_text({name: inner}))
        self.add(nat(name, inner, self.known, self.place.sets))

    def update(self, name: str, inner: Any) -> None:
        """`add @set { key }`: what a statement inside decides, is the set's own."""
        inner = inner if isinstance(inner, dict) else {}
        text = statement_text({name: inner})
        element = inner.get("elem", inner.get("key"))
        if isinstance(element, dict) and isinstance(element.get("elem"), dict):
            element = element["elem"].get("val")
        self.add(_needs_of_key(element, self.known))
        statements = inner.get("stmt")
        statements = statements if isinstance(statements, list) else [statements]
        self.parts.append(Effect("set", text))
        if any(isinstance(one, dict) and _DECIDING & one.keys() for one in statements):
            self.atom("meter" if name == "meter" else "set", text, True)


_Reading = Callable[[_Reader, str, Any], None]
_READINGS: dict[str, _Reading] = {
    "match": _Reader.match,
    "limit": _Reader.limited,
    "quota": _Reader.limited,
    "ct count": _Reader.limited,
    "connlimit": _Reader.limited,
    "ct expectation": _Reader.limited,
    "counter": _Reader.count,
    "reset": _Reader.strip,
    "vmap": _Reader.vmap,
    "reject": _Reader.reject,
    "queue": _Reader.queue,
    "fwd": _Reader.forward,
    "synproxy": _Reader.synproxy,
    "tproxy": _Reader.tproxy,
    "notrack": _Reader.notrack,
    "mangle": _Reader.mangle,
    "set": _Reader.update,
    "map": _Reader.update,
    "meter": _Reader.update,
}


def _needs_of_key(key: Any, known: Known) -> list[Any]:
    try:
        return key_needs(key_selectors(key, known))
    except Unreadable:
        return list(needs_of(key))


_SET_KEYS = {"right", "data", "set", "map"}
_OBJECT_KEYS = {"counter", "quota", "limit", "ct helper", "ct timeout", "ct expectation", "synproxy", "flowtable"}


def _uses(value: Any, found: dict[str, None]) -> None:
    """Take in the names of the sets, maps and other objects of its table in a rule."""
    if isinstance(value, list):
        for one in value:
            if isinstance(one, dict | list):
                _uses(one, found)
        return
    for key, one in value.items():
        if isinstance(one, str):
            if key in _OBJECT_KEYS:
                found[one] = None
            elif one[:1] == "@" and key in _SET_KEYS:
                found[one[1:]] = None
        elif isinstance(one, dict | list) and key != "left":
            _uses(one, found)
