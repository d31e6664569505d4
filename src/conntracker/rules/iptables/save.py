"""What iptables-save and ip6tables-save print, and people write by hand for iptables-restore: text to chains.

A string may go on over line ends, as iptables-save prints a comment of several lines; in the rule's text they are
spaces. What iptables-restore refuses is refused here: a table without COMMIT, a jump to a chain that is not declared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

from conntracker.rules.chain import Chain
from conntracker.rules.iptables.detect import HEADER, detect
from conntracker.rules.iptables.rule import meaning_of_words
from conntracker.rules.iptables.statements import Statement, statements
from conntracker.rules.iptables.values import Bad
from conntracker.rules.iptables.words import RuleWords, quoted, read_words
from conntracker.rules.ruleset import KnownChain, Meaning
from conntracker.steps import Rule

__all__ = ["parse_save"]

# The chains that a table has, and their priorities (linux/netfilter_ipv4.h, net/ipv4/netfilter/iptable_*.c).
_BUILT_IN = {
    "raw": {"PREROUTING": -300, "OUTPUT": -300},
    "mangle": {"PREROUTING": -150, "INPUT": -150, "FORWARD": -150, "OUTPUT": -150, "POSTROUTING": -150},
    "nat": {"PREROUTING": -100, "INPUT": 100, "OUTPUT": -100, "POSTROUTING": 100},
    "filter": {"INPUT": 0, "FORWARD": 0, "OUTPUT": 0},
    "security": {"INPUT": 50, "FORWARD": 50, "OUTPUT": 50},
}
_NFT_SECURITY = 150  # iptables/nft.c (xtables_ipv4, xtables_ipv6): where iptables-nft makes that table's chains
_CHAIN_NAME = 28  # linux/netfilter/x_tables.h (XT_EXTENSION_MAXNAMELEN), without the zero at the end
_COUNTERS = re.compile(r"\[(\d{1,20}):(\d{1,20})\]", re.ASCII)
_COMMANDS = {
    "-A": "append", "--append": "append", "-I": "insert", "--insert": "insert", "-N": "new", "--new-chain": "new",
    "--new": "new", "-P": "policy", "--policy": "policy", "-F": "flush", "--flush": "flush",
}  # fmt: skip


@dataclass(slots=True)
class _Read:
    """A rule that was read: its text as `-A CHAIN ...`, its words, and where it stands."""

    text: str
    words: RuleWords
    statement: Statement


@dataclass(slots=True)
class _Chain:
    policy: str | None = None
    counters: tuple[int, int] | None = None
    rules: list[_Read] = field(default_factory=list)


@dataclass(slots=True)
class _Table:
    kind: str
    family: str
    name: str
    chains: dict[str, _Chain] = field(default_factory=dict)

    @property
    def built_in(self) -> dict[str, int]:
        if (self.kind, self.name) == ("iptables-nft", "security"):
            return dict.fromkeys(_BUILT_IN["security"], _NFT_SECURITY)
        return _BUILT_IN[self.name]

    def chain(self, name: str, word: int) -> _Chain:
        """The chain, if it was declared or needs not be."""
        if name not in self.chains:
            if name not in self.built_in:
                raise Bad(f"no chain {name!r} in table {self.name}: `:{name} -` declares it", word)
            self.chains[name] = _Chain("accept")
        return self.chains[name]


def parse_save(
    text: str, *, family: str | None = None, kind: str | None = None, source: str | None = None
) -> tuple[KnownChain, ...]:
    """The chains of all tables, in the order of the text.

    family   ip or ip6; None to tell by the text and then by the file's name: see detect
    kind     iptables-legacy or iptables-nft, None likewise
    source   the name of the file. Rules have a source `file:line` only with it

    Rules that name several addresses are several rules, as in the kernel. Raises RuleSyntaxError.
    """
    tables = _Reader(text, family, kind, source).tables()
    for table in tables:
        if table.kind == "iptables-legacy":  # a table of ip_tables has all its chains, whatever an old save lists
            for name in table.built_in:
                table.chain(name, 0)
    return tuple(known for table in tables for known in _known(table, source))


class _Reader:
    def __init__(self, text: str, family: str | None, kind: str | None, source: str | None) -> None:
        self._text, self._source = text, source
        self._given = kind, family
        found = detect(text, source)
        self._kind, self._family = kind or found[0], family or found[1]
        self._tables: dict[tuple[str, str, str], _Table] = {}
        self._table: _Table | None = None

    def tables(self) -> list[_Table]:
        statement = None
        for statement in statements(self._text, self._source):
            try:
                self._read(statement)
            except Bad as bad:
                raise statement.error(bad, self._source) from None
        if self._table is not None and statement is not None:
            raise statement.error(Bad(f"the text ends without COMMIT for table {self._table.name}", 0), self._source)
        return list(self._tables.values())

    def _read(self, statement: Statement) -> None:
        text = statement.text
        if text.startswith("#"):
            self._comment(text)
        elif self._table is None:
            if not text.startswith("*"):
                raise Bad("a line outside of a table: `*filter` opens one", 0)
            self._table = self._opened(text[1:].strip())
        elif text == "COMMIT":
            self._table = None
        elif text.startswith(":"):
            self._declare(self._table, statement)
        elif text.startswith("*"):
            raise Bad(f"no COMMIT for table {self._table.name}", 0)
        else:
            self._command(self._table, statement)

    def _comment(self, text: str) -> None:
        """Several saves may be one text: each says by which program it was printed."""
        if header := HEADER.match(text):
            kind, family = detect(header[0])
            self._kind, self._family = self._given[0] or kind, self._given[1] or family

    def _opened(self, name: str) -> _Table:
        if name not in _BUILT_IN:
            raise Bad(f"no table of iptables: {name!r}", 0)
        key = self._kind, self._family, name
        if key in self._tables:
            raise Bad(f"table {name} twice: iptables-restore would keep the last one", 0)
        self._tables[key] = _Table(*key)
        return self._tables[key]

    def _declare(self, table: _Table, statement: Statement) -> None:
        words = statement.words
        name = words[0][1:]
        counters = _counters(words[2], 2) if len(words) > 2 else None
        if len(words) < 2 or len(words) > 3:
            raise Bad("a chain is declared as `:NAME POLICY [packets:bytes]`", 0)
        _set_policy(table, name, words[1], 0)
        if name in table.built_in:
            table.chains[name].counters = counters

    def _command(self, table: _Table, statement: Statement) -> None:
        words, at = statement.words, 0
        counters = None
        if words[0].startswith("["):
            counters, at = _counters(words[0], 0), 1
        command = _COMMANDS.get(words[at]) if len(words) > at else None
        if command is None:
            raise Bad("no command of iptables-restore that is read here: -A, -I, -N, -P or -F", min(at, len(words) - 1))
        if command == "flush" and len(words) == at + 1:
            for chain in table.chains.values():
                chain.rules.clear()
            return
        if len(words) == at + 1:
            raise Bad(f"{words[at]} needs a chain", at)
        name = words[at + 1]
        if command == "new":
            _set_policy(table, name, "-", at + 1)
        elif command == "policy":
            _set_policy(table, name, words[at + 2] if len(words) > at + 2 else "", at + 1)
        elif command == "flush":
            table.chain(name, at + 1).rules.clear()
        else:
            _add(table.chain(name, at + 1), statement, at, command == "insert", counters)


def _counters(word: str, at: int) -> tuple[int, int]:
    found = _COUNTERS.fullmatch(word)
    if found is None:
        raise Bad(f"no counters: {word!r}", at)
    return int(found[1]), int(found[2])


def _set_policy(table: _Table, name: str, policy: str, word: int) -> None:
    """Makes the chain, if it is not there; one of the users' that is there is emptied, as iptables-restore does."""
    if name in table.built_in:
        if policy.upper() not in {"ACCEPT", "DROP", "-"}:
            raise Bad(f"no policy: {policy!r}", word)
        chain = table.chains.setdefault(name, _Chain("accept"))
        chain.policy = chain.policy if policy == "-" else policy.lower()
        return
    if policy != "-":
        raise Bad(f"{name!r} is no chain that table {table.name} comes with: it has no policy", word)
    if not name or name[0] in "-!" or len(name) > _CHAIN_NAME:
        raise Bad(f"no name for a chain: {name!r}", word)
    table.chains[name] = _Chain()


def _add(chain: _Chain, statement: Statement, at: int, is_insert: bool, counters: tuple[int, int] | None) -> None:
    """Appends a rule, or inserts it where its number says, from 1; one of several addresses as several."""
    words = statement.words
    first, index = at + 2, len(chain.rules)
    if is_insert:
        index = 0
        if len(words) > first and words[first].isascii() and words[first].isdigit():
            index, first = int(words[first][:10]) - 1, first + 1
            if not 0 <= index <= len(chain.rules):
                raise Bad(f"no place {index + 1} in a chain of {len(chain.rules)} rules", first - 1)
    read = read_words(words, first)
    kept = read.counters is None and words[at] == "-A"
    read.counters = counters if counters is not None else read.counters
    several = [option for name in ("-s", "-d") if (option := read.head.get(name)) and "," in option.values[0]]
    if kept and not several:
        chain.rules.insert(index, _Read(statement.text_from(at), read, statement))
        return
    for values in product(*(option.values[0].split(",") for option in several)):
        changed = list(words)
        for option, value in zip(several, values, strict=True):
            if option.negated:
                raise Bad("several addresses cannot be negated", option.word)
            changed[option.word + 1] = value
        one = read_words(changed, first)
        text = " ".join(["-A", quoted(words[at + 1]), *(quoted(word) for word in _uncounted(changed[first:]))])
        one.counters = read.counters
        chain.rules.insert(index, _Read(text, one, statement))
        index += 1


def _uncounted(words: list[str]) -> list[str]:
    """Without `-c packets bytes`."""
    rule = read_words(words, 0)
    if rule.counters is None:
        return words
    at = rule.counted
    return words[:at] + words[at + 3 :]


def _known(table: _Table, source: str | None) -> Iterator[KnownChain]:
    names = table.chains.keys() - table.built_in.keys()
    for name, chain in table.chains.items():
        rules, meanings = [], []
        for position, read in enumerate(chain.rules, 1):
            where = None if source is None else f"{source}:{read.statement.line}"
            rule = Rule(table.kind, table.family, table.name, name, position, None, read.text, where)
            try:
                meanings.append(_meaning(read.words, rule, table, names))
            except Bad as bad:
                raise read.statement.error(bad, source) from None
            rules.append(rule)
        yield KnownChain(_chain(table, name, chain, tuple(rules)), tuple(meanings), chain.counters)


def _meaning(words: RuleWords, rule: Rule, table: _Table, names: set[str]) -> Meaning:
    if words.target is not None and words.target.name in table.built_in:
        raise Bad(f"{words.target.name} is a chain that no rule can jump to", words.target.word + 1)
    return meaning_of_words(words, rule, names)


def _chain(table: _Table, name: str, chain: _Chain, rules: tuple[Rule, ...]) -> Chain:
    priority = table.built_in.get(name)
    if priority is None:
        return Chain(table.kind, table.family, table.name, name, None, None, None, None, None, rules)
    kind = "nat" if table.name == "nat" else "route" if (table.name, name) == ("mangle", "OUTPUT") else "filter"
    return Chain(
        table.kind, table.family, table.name, name, name.lower(), priority, chain.policy, kind, None, rules
    )  # fmt: skip
