"""From one rule of iptables to its meaning.

A target of which the outcome is not in the packet (SYNPROXY, those of other trees) is an Atom named after it,
and behind that the packet is stolen: where the Atom does not hold, the packet goes on. What in truth becomes of it is
thus undecided, with the target's name.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from functools import lru_cache

from conntracker.rules.errors import RuleSyntaxError
from conntracker.rules.intervals import single
from conntracker.rules.iptables.extensions import STATEFUL
from conntracker.rules.iptables.matches import EXACT, PROTOCOLS_OF, bare, terms_of
from conntracker.rules.iptables.targets import is_target, parts_of
from conntracker.rules.iptables.together import TOGETHER
from conntracker.rules.iptables.values import FAMILY, Bad, address, inside, masked, protocol
from conntracker.rules.iptables.words import Extension, Option, RuleWords, quoted, read_words, split, starts
from conntracker.rules.ruleset import Meaning
from conntracker.rules.terms import Atom, Effect, In, Named, Part, Term, Verdict
from conntracker.steps import Rule

__all__ = ["meaning_of", "meaning_of_words"]

_INTERFACE_NAME = 15  # linux/if.h (IFNAMSIZ), without the zero at the end
_EXTENSION = re.compile(r"[A-Z][A-Z0-9]*")
_HEAD_ORDER = ("-s", "-d", "-i", "-o", "-p", "-f")  # ip_packet_match (net/ipv4/netfilter/ip_tables.c)

# Matches of which `!` is the complement, so that one with and one without are the same atom; their options that test.
_COMPLEMENTS = {
    "set": {"match-set"}, "string": {"string", "hex-string"}, "helper": {"helper"}, "cpu": {"cpu"}, "realm": {"realm"},
}  # fmt: skip
_BESIDE = {"return-nomatch", "algo", "from", "to", "icase"}
_REMEMBERED = 1 << 16
_WHOLE_HEADER = {"tcp", "sctp", "dccp"}


def meaning_of(rule_text: str, place: Rule, chains: Container[str] | None = None) -> Meaning:
    """What a rule `-A CHAIN ...` asks and does.

    place    of kind, family, table, chain and position; on the last four hang the occurrences of atoms
    chains   those of its table; None where they are not known: then each target that is no extension is a chain

    Raises RuleSyntaxError, with line 1 and the place's source.
    """
    try:
        words = split(rule_text)
        if len(words) < 2 or words[0] not in {"-A", "--append"}:
            raise Bad("a rule starts with `-A CHAIN`", 0)
        return meaning_of_words(read_words(words, 2), place, chains)
    except Bad as bad:
        columns = starts(rule_text) or [0]
        column = columns[min(bad.word or 0, len(columns) - 1)] + 1
        raise RuleSyntaxError(bad.what, 1, column, place.source) from None


def meaning_of_words(rule: RuleWords, place: Rule, chains: Container[str] | None) -> Meaning:
    """The same of a rule that was read. Raises Bad."""
    version = 6 if place.family == "ip6" else 4
    parts: list[Part] = []
    comments = []
    for name in _HEAD_ORDER:
        if name in rule.head:
            option = rule.head[name]
            try:
                parts += _of_head(name, option.values, option.negated, version)
            except Bad as bad:
                raise _located(bad, option) from None
    for number, match in enumerate(rule.matches, 1):
        if match.name == "comment":
            comments += [option.values[0] for option in match.options]
        else:
            parts += _of_match(match, rule, version, f"{_path(place)}/{number}")
    if rule.target is not None:
        parts += _of_target(rule.target, rule.is_goto, version, f"{_path(place)}/target", chains)
    return Meaning(_once(parts, FAMILY[version]), rule.counters, " ".join(comments) if comments else None)


def _path(place: Rule) -> str:
    return f"{place.family}/{place.table}/{place.chain}/{place.position}"


def _located(bad: Bad, option: Option) -> Bad:
    """The same, at the option's first value, if it does not say itself where."""
    return bad if bad.word is not None else Bad(bad.what, option.word + option.negated + bool(option.values))


def _once(parts: list[Part], family: Part) -> tuple[Part, ...]:
    """Without all but the first test of the family, which no rule changes."""
    if parts.count(family) < 2:
        return tuple(parts)
    first = next((index for index, part in enumerate(parts) if part is family), 0)
    return tuple(part for index, part in enumerate(parts) if part is not family or index == first)


# --- the rule's own options ---


@lru_cache(maxsize=_REMEMBERED)
def _of_head(name: str, values: tuple[str, ...], negated: bool, version: int) -> tuple[Term, ...]:
    if name in {"-s", "-d"}:
        return _address("saddr" if name == "-s" else "daddr", values[0], negated, version)
    if name in {"-i", "-o"}:
        return _interface("iif" if name == "-i" else "oif", values[0], negated)
    if name == "-p":
        number = protocol(values[0])
        return (inside("protocol", single(number), negated),) if number else ()
    if version == 6:
        raise Bad("-f is IPv4's: `-m frag` is IPv6's")
    return (In("fragment", single(int(not negated))),)


def _address(field: str, text: str, negated: bool, version: int) -> tuple[Term, ...]:
    if "," in text:
        raise Bad("several addresses make several rules: this is one")
    value, mask = address(text, version)
    if not mask and not negated:
        return ()
    return FAMILY[version], masked(field, value, mask, negated, version)


def _interface(field: str, text: str, negated: bool) -> tuple[Term, ...]:
    if not text or len(text) > _INTERFACE_NAME:
        raise Bad(f"no name of an interface: {text!r}")
    if text == "+" and not negated:
        return ()
    if text.endswith("*"):  # to Named that would be a wildcard
        return (Atom("interface", f"-{field[0]} {text}", negated=negated),)
    return (Named(field, (f"{text[:-1]}*" if text.endswith("+") else text,), negated),)


# --- matches ---


_known: dict[tuple[object, ...], tuple[Part, ...]] = {}


def _of_match(match: Extension, rule: RuleWords, version: int, occurrence: str) -> tuple[Part, ...]:
    """What a match asks: rulesets repeat themselves, so the same words are read once."""
    name = match.name
    if name in PROTOCOLS_OF and rule.protocol not in PROTOCOLS_OF[name]:
        raise Bad(f"`-m {name}` needs `-p` with a protocol of its own", match.word)
    if name in STATEFUL:
        return (_atom(match, occurrence),)
    key = name, version, *[(option.name, option.values, option.negated) for option in match.options]
    found = _known.get(key)
    if found is None:
        found = _meant(match, version)
        if len(_known) >= _REMEMBERED:
            _known.clear()
        _known[key] = found
    return found


def _meant(match: Extension, version: int) -> tuple[Part, ...]:
    name = match.name
    if name in EXACT or name in TOGETHER:
        _check_once(match)
    if name in EXACT:
        return tuple(_of_options(match, version))
    if name in TOGETHER:
        try:
            return TOGETHER[name](match, version, _text(match))
        except Bad as bad:
            raise _located(bad, match.options[0]) if match.options else Bad(bad.what, match.word) from None
    if name == "nfacct":  # holds, unless the object has a quota: of that the rules say nothing
        return (Effect(name, _text(match)),)
    return (_atom(match, ""),)


def _check_once(match: Extension) -> None:
    names = set()
    for option in match.options:
        if option.name in names:
            raise Bad(f"--{option.name} twice", option.word)
        names.add(option.name)


def _of_options(match: Extension, version: int) -> Iterator[Term]:
    if not match.options:
        try:
            yield from bare(match.name)
        except Bad as bad:
            raise Bad(bad.what, match.word) from None
    known = EXACT[match.name]
    for option in match.options:
        if option.name in known:
            try:
                yield from terms_of(match.name, option.name, option.values, option.negated, version)
            except Bad as bad:
                raise _located(bad, option) from None
        else:
            if match.name in _WHOLE_HEADER:
                yield In("fragment", single(0))
            plain = Extension(match.name, match.word, None, [Option(option.name, option.values, False, option.word)])
            yield Atom(option.name, _text(plain), negated=option.negated)


def _text(match: Extension) -> str:
    return f"-m {quoted(match.name)} {match.text()}".rstrip()


def _atom(match: Extension, occurrence: str) -> Atom:
    tests = _COMPLEMENTS.get(match.name)
    negated = [option for option in match.options if option.negated]
    if tests is None or len(negated) != 1 or any(option.name not in tests | _BESIDE for option in match.options):
        return Atom(match.name, _text(match), occurrence)
    options = [Option(option.name, option.values, False, option.word) for option in match.options]
    return Atom(match.name, _text(Extension(match.name, match.word, None, options)), occurrence, negated=True)


# --- targets ---


def _of_target(
    target: Extension, is_goto: bool, version: int, occurrence: str, chains: Container[str] | None
) -> tuple[Part, ...]:
    name = target.name
    if is_goto or (chains is not None and name in chains) or (chains is None and not is_target(name)):
        if chains is not None and name not in chains:
            raise Bad(f"no chain {name!r}", target.word + 1)
        if target.options:
            raise Bad(f"{name!r} is a chain: options mean nothing to it", target.options[0].word)
        return (Verdict("goto" if is_goto else "jump", name),)
    if not is_target(name) and _EXTENSION.fullmatch(name) is None:
        raise Bad(f"no chain and no target {name!r}", target.word + 1)
    try:
        parts = parts_of(target, version) if is_target(name) else None
    except Bad as bad:
        raise _located(bad, target.options[0]) if target.options else Bad(bad.what, target.word) from None
    if parts is None:
        return Atom(name, f"-j {quoted(name)} {target.text()}".rstrip(), occurrence), Verdict("stolen")
    return parts
