"""A ruleset written down: as text for `nft -f`, and as JSON that says all that the model does.

What is understood of a rule cannot be said in libnftables' JSON alone (atoms, terms of iptables): the objects are
those of libnftables-json(5), and each has the model's own words under "conntracker".
"""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from typing import Any

from conntracker.rules.chain import Chain
from conntracker.rules.errors import RuleSyntaxError
from conntracker.rules.nft.inner import INNER
from conntracker.rules.ruleset import KnownChain, Meaning, NamedSet, Ruleset
from conntracker.rules.terms import AnyOf, Assign, Atom, Branches, Effect, In, Named, Nat, Verdict
from conntracker.steps import Rule

__all__ = ["OWN", "format_json", "format_nft", "read_own"]

OWN = "conntracker"  # the key of what is ours

_WORDS = {
    one.__name__: one
    for one in (
        AnyOf,
        Assign,
        Atom,
        Branches,
        Chain,
        Effect,
        In,
        KnownChain,
        Meaning,
        Named,
        NamedSet,
        Nat,
        Rule,
        Verdict,
    )
}


def format_json(ruleset: Ruleset) -> str:
    """One line an object; `parse_json` reads it back as it was."""
    objects: list[dict[str, Any]] = [{"metainfo": {"json_schema_version": 1}}]
    for one in ruleset.sets:
        objects.append({one.kind: {"family": one.family, "table": one.table, "name": one.name, OWN: _plain(one)}})
    for known in ruleset.chains:
        chain = known.chain
        objects.append(
            {"chain": {"family": chain.family, "table": chain.table, "name": chain.name, OWN: _plain(known)}}
        )
    lines = ",\n".join(json.dumps(one) for one in objects)
    return f'{{"nftables": [\n{lines}\n], "{OWN}": {json.dumps(list(ruleset.notes))}}}\n'


def read_own(objects: list[Any], notes: Any, source: str | None) -> Ruleset:
    """The reverse of format_json. Raises RuleSyntaxError."""
    chains: list[KnownChain] = []
    sets: list[NamedSet] = []
    for one in objects:
        for inner in one.values() if isinstance(one, dict) else ():
            if not isinstance(inner, dict) or OWN not in inner:
                continue
            try:
                made = _made(inner[OWN])
            except (TypeError, KeyError, ValueError, AttributeError) as error:
                raise RuleSyntaxError(f"not of our own JSON: {error}", 1, 1, source) from None
            if isinstance(made, KnownChain) and isinstance(made.chain, Chain):
                chains.append(made)
            elif isinstance(made, NamedSet):
                sets.append(made)
            else:
                raise RuleSyntaxError("neither a chain nor a set", 1, 1, source)
    lines = tuple(line for line in notes if isinstance(line, str)) if isinstance(notes, list) else ()
    return Ruleset(tuple(chains), tuple(sets), lines)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {"is": type(value).__name__} | {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _made(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_made(one) for one in value)
    if isinstance(value, dict):
        return _WORDS[value["is"]](**{name: _made(one) for name, one in value.items() if name != "is"})
    return value


def format_nft(ruleset: Ruleset) -> str:
    """The tables of nft, for `nft -f`: rules and sets as they were listed."""
    tables: dict[tuple[str, str], list[str]] = {}
    for one in ruleset.sets:
        tables.setdefault((one.family, one.table), []).append(f"\t{one.text}\n")
    for known in ruleset.chains:
        chain = known.chain
        if chain.kind == "nft" and not chain.name.startswith(INNER):
            tables.setdefault((chain.family, chain.table), []).append(_chain(chain))
    return "".join(f"table {family} {name} {{\n{''.join(body)}}}\n" for (family, name), body in tables.items())


def _chain(chain: Chain) -> str:
    lines = [f"\tchain {chain.name} {{"]
    if chain.hook is not None:
        devices = ", ".join(f'"{one}"' for one in (chain.device or "").split(",") if one)
        device = f" devices = {{ {devices} }}" if devices else ""
        lines.append(
            f"\t\ttype {chain.type} hook {chain.hook}{device} priority {chain.priority}; policy {chain.policy};"
        )
    lines += [f"\t\t{rule.text}" for rule in chain.rules]
    return "\n".join([*lines, "\t}\n"])
