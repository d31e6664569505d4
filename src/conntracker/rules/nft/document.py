"""What `nft -j -a list ruleset` prints (libnftables-json(5)), made into a Ruleset."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from conntracker.rules.chain import Chain
from conntracker.rules.errors import RuleSyntaxError
from conntracker.rules.intervals import normal
from conntracker.rules.nft.formats import OWN, read_own
from conntracker.rules.nft.inner import InnerChain, inner_chain
from conntracker.rules.nft.listing import Listing
from conntracker.rules.nft.objects import OBJECTS, object_text
from conntracker.rules.nft.render import rule_text, set_text
from conntracker.rules.nft.sets import Sets, known_set
from conntracker.rules.nft.statements import Place, meaning_of
from conntracker.rules.ruleset import KnownChain, Meaning, NamedSet, Ruleset
from conntracker.steps import HOOKS, Rule

__all__ = ["parse_json"]

_FAMILIES = {"ip": normal([(4, 4)]), "ip6": normal([(6, 6)])}
_ANY = normal([(4, 4), (6, 6)])
_Object = dict[str, Any]
_Key = tuple[str, str]  # family, table


@dataclass(slots=True)
class _Table:
    flags: object = None
    chains: dict[str, _Object] = field(default_factory=dict)
    rules: dict[str, list[_Object]] = field(default_factory=dict)
    sets: list[tuple[str, _Object]] = field(default_factory=list)
    objects: list[tuple[str, _Object]] = field(default_factory=list)


def parse_json(document: str | dict[str, Any], *, source: str | None = None, listing: str | None = None) -> Ruleset:
    """The tables, chains, rules, sets and maps of a listing in JSON.

    source    the name of the file, None for what was read from the kernel
    listing   `nft -a list ruleset` of the same moment: rules stand as it has them. Without it, as made from the JSON.

    What is not understood becomes an Atom. Raises RuleSyntaxError for what is no such document.
    """
    found = _document(document, source)
    if OWN in found:
        return read_own(found["nftables"], found[OWN], source)
    tables = _tables(found["nftables"], source)
    listed = Listing.parse(listing or "")
    chains: list[KnownChain] = []
    sets: list[NamedSet] = []
    notes: list[str] = []
    for key, table in tables.items():
        reader = _TableReader(key, table, listed, source)
        sets += reader.named_sets()
        for name in table.chains:
            chains.append(reader.chain(name))
        chains += reader.inner
        notes += reader.notes
    return Ruleset(tuple(chains), tuple(sets), tuple(notes))


def _document(document: str | _Object, source: str | None) -> _Object:
    if isinstance(document, str):
        try:
            document = json.loads(document)
        except json.JSONDecodeError as error:
            raise RuleSyntaxError(f"no JSON: {error.msg}", error.lineno, error.colno, source) from None
        except (ValueError, RecursionError) as error:
            raise RuleSyntaxError(f"no JSON: {error}", 1, 1, source) from None
    if not isinstance(document, dict) or not isinstance(document.get("nftables"), list):
        raise RuleSyntaxError('no ruleset of libnftables: it has no list "nftables"', 1, 1, source)
    return document


def _tables(objects: Iterable[Any], source: str | None) -> dict[_Key, _Table]:
    """What belongs to each table. Raises RuleSyntaxError for an object without its place."""
    tables: dict[_Key, _Table] = {}
    for one in objects:
        if not isinstance(one, dict) or len(one) != 1:
            raise RuleSyntaxError(f"not an object of libnftables: {str(one)[:60]}", 1, 1, source)
        (kind, inner), *_ = one.items()
        if kind in {"add", "insert", "create"} and isinstance(inner, dict) and len(inner) == 1:  # `nft -e -j`
            (kind, inner), *_ = inner.items()
        if kind == "table":
            place = _word(inner, "family", source), _word(inner, "name", source)
            tables.setdefault(place, _Table()).flags = inner.get("flags")
            continue
        if kind not in {"chain", "rule", "set", "map", "meter", *OBJECTS}:
            continue
        table = tables.setdefault((_word(inner, "family", source), _word(inner, "table", source)), _Table())
        if kind == "chain":
            table.chains[_word(inner, "name", source)] = inner
        elif kind == "rule":
            name = _word(inner, "chain", source)
            table.chains.setdefault(name, {})
            if not isinstance(inner.get("expr", []), list):
                raise RuleSyntaxError(f"a rule of chain {name} has no list of expressions", 1, 1, source)
            table.rules.setdefault(name, []).append(inner)
        else:
            _word(inner, "name", source)
            (table.objects if kind in OBJECTS else table.sets).append((kind, inner))
    return tables


def _word(inner: Any, key: str, source: str | None) -> str:
    found = inner.get(key) if isinstance(inner, dict) else None
    if not isinstance(found, str) or not found:
        raise RuleSyntaxError(f"an object of libnftables without {key}: {str(inner)[:60]}", 1, 1, source)
    return found


class _TableReader:
    def __init__(self, key: _Key, table: _Table, listed: Listing, source: str | None) -> None:
        self.family, self.name = key
        self.table, self.listed, self.source = table, listed, source
        updated = {name for rules in table.rules.values() for rule in rules for name in _updated(rule.get("expr"))}
        self.sets = Sets({
            inner["name"]: known_set(inner, inner["name"] in updated, self._flags(inner)) for _, inner in table.sets
        })  # fmt: skip
        self.inner: list[KnownChain] = []
        self.notes: list[str] = []
        self.is_dormant = self._is_dormant(listed)
        if any(_is_of_iptables(rule) for rules in table.rules.values() for rule in rules):
            self.notes.append(
                f"table {self.family} {self.name}: nft does not say what extensions of iptables match or do;"
                " iptables-save does"
            )

    def _is_dormant(self, listed: Listing) -> bool:
        """libnftables 1.0.6 writes some letter in place of a table's flags."""
        flags = self.table.flags if isinstance(self.table.flags, list) else [self.table.flags]
        if "dormant" in flags or (self.family, self.name) in listed.dormant:
            self.notes.append(f"table {self.family} {self.name} is dormant: no packet comes to its chains")
            return True
        if not (listed.rules or listed.dormant) and not set(flags) <= {None, "owner", "persist"}:
            self.notes.append(f"table {self.family} {self.name} may be dormant: its JSON garbles the flags it has")
        return False

    def named_sets(self) -> list[NamedSet]:
        objects = [
            NamedSet(self.family, self.name, inner["name"], kind, "", (), 0, object_text(kind, inner), self.source)
            for kind, inner in self.table.objects
        ]
        return [*objects, *(self._named_set(kind, inner) for kind, inner in self.table.sets)]

    def _named_set(self, kind: str, inner: _Object) -> NamedSet:
        types, elements = inner.get("type"), inner.get("elem")
        return NamedSet(
            self.family, self.name, inner["name"], kind,
            " . ".join(map(str, types)) if isinstance(types, list) else str(types),
            self._flags(inner), len(elements) if isinstance(elements, list) else 0,
            set_text(kind, {**inner, "flags": list(self._flags(inner))}), self.source,
        )  # fmt: skip

    def _flags(self, inner: _Object) -> tuple[str, ...]:
        """libnftables 1.0.6 leaves `dynamic` out of its JSON, and lists it."""
        flags = inner.get("flags", [])
        known = [flag for flag in (flags if isinstance(flags, list) else [flags]) if isinstance(flag, str)]
        listed = self.listed.set_flags.get((self.family, self.name, inner["name"]), ())
        return tuple(sorted({*known, *listed}))

    def chain(self, name: str) -> KnownChain:
        inner = self.table.chains[name]
        hook = inner.get("hook")
        hook = hook if isinstance(hook, str) and hook in HOOKS and not self.is_dormant else None
        priority = inner.get("prio")
        priority = priority if isinstance(priority, int) and hook else None
        rules, meanings = [], []
        for position, rule in enumerate(self.table.rules.get(name, []), 1):
            one, meaning = self._rule(name, position, rule, hook)
            rules.append(one)
            meanings.append(meaning)
        base = hook is not None
        made = Chain(
            "nft", self.family, self.name, name, hook, priority,
            _string(inner.get("policy"), "accept") if base else None,
            _string(inner.get("type"), "filter") if base else None, self._device(name, inner) if base else None,
            tuple(rules),
        )  # fmt: skip
        return KnownChain(made, tuple(meanings))

    def _device(self, name: str, inner: _Object) -> str | None:
        device = inner.get("dev")
        if isinstance(device, list):
            return ",".join(map(str, device))
        return device if isinstance(device, str) else self.listed.devices.get((self.family, self.name, name))

    def _rule(self, chain: str, position: int, inner: _Object, hook: str | None) -> tuple[Rule, Meaning]:
        handle = inner.get("handle")
        handle = handle if isinstance(handle, int) else None
        comment = inner.get("comment")
        comment = comment if isinstance(comment, str) else None
        statements = list(inner.get("expr", []))
        text = self.listed.rules.get((self.family, self.name, chain, handle)) if handle is not None else None
        for index, statement in enumerate(statements):
            if isinstance(statement, str) and (found := inner_chain(statement, handle or position)):
                statements[index] = found.statement
                self._add(found)
        place = Place(
            f"{self.family}/{self.name}/{chain}/{position}", _FAMILIES.get(self.family, _ANY), hook, self.sets
        )
        rule = Rule(
            "nft", self.family, self.name, chain, position, handle,
            text or rule_text(inner.get("expr", []), comment), self.source,
        )  # fmt: skip
        return rule, meaning_of(statements, place, comment)

    def _add(self, found: InnerChain) -> None:
        """A chain without a name, of which libnftables says nothing but the text."""
        self.inner.append(found.chain(self.family, self.name, self.source))
        self.notes.append(f"table {self.family} {self.name}: libnftables cannot say in JSON what {found.name} does")


def _is_of_iptables(rule: _Object) -> bool:
    expressions = rule.get("expr")
    return isinstance(expressions, list) and any(isinstance(one, dict) and "xt" in one for one in expressions)


def _updated(statements: Any) -> Iterable[str]:
    """Names of the sets that a rule changes."""
    for one in statements if isinstance(statements, list) else []:
        if isinstance(one, dict):
            for key in ("set", "map"):
                inner = one.get(key)
                name = inner.get(key) if isinstance(inner, dict) else None
                if isinstance(name, str):
                    yield name.removeprefix("@")


def _string(value: Any, otherwise: str) -> str:
    return value if isinstance(value, str) else otherwise
