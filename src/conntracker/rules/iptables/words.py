"""A rule as words, and its words as options, matches and a target (iptables/xshared.c, libxtables/xtables.c).

A word in double quotes may hold spaces, and `\\` takes away the meaning of what follows it. `!` stands in front of an
option; behind it, as before iptables 1.4.3, it is understood too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from conntracker.rules.iptables.extensions import ALIASES, IMPLIED, MATCHES, TARGET_OPTIONS
from conntracker.rules.iptables.extensions import Options as Table
from conntracker.rules.iptables.values import Bad, protocol

__all__ = ["Extension", "Option", "RuleWords", "open_string", "quoted", "read_words", "split", "starts"]

_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|([^\s"]\S*)|(")', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
_SAFE = re.compile(r'[^\s"\\\']+')

_HEAD = {
    alias: (names[0], count)
    for names, count in (
        (("-s", "--source", "--src"), 1), (("-d", "--destination", "--dst"), 1), (("-i", "--in-interface"), 1),
        (("-o", "--out-interface"), 1), (("-p", "--protocol", "--proto"), 1), (("-f", "--fragment", "--fragments"), 0),
        (("-m", "--match"), 1), (("-j", "--jump"), 1), (("-g", "--goto"), 1), (("-c", "--set-counters"), 2),
    )
    for alias in names
}  # fmt: skip
_NEGATABLE = {"-s", "-d", "-i", "-o", "-p", "-f"}
# Values that may be any text, also a lone `!`.
_FREE = {"comment", "string", "hex-string", "log-prefix", "nflog-prefix", "ulog-prefix", "name", "label"}


@dataclass(slots=True)
class Option:
    """An option with its values; `word` is the number of its first word in the rule, from 0."""

    name: str
    values: tuple[str, ...]
    negated: bool
    word: int


@dataclass(slots=True)
class Extension:
    """A match or target, with its options; those of an unknown one are one option without a name."""

    name: str
    word: int
    table: Table | None
    options: list[Option] = field(default_factory=list)

    def find(self, name: str) -> Option | None:
        """The first option of that name."""
        return next((option for option in self.options if option.name == name), None)

    def text(self) -> str:
        """The options, in order, with the names and quotes that iptables-save would use."""
        words = []
        for option in self.options:
            words += ["!"] * option.negated + [f"--{option.name}"] * bool(option.name)
            words += [quoted(value) for value in option.values]
        return " ".join(words)


@dataclass(slots=True)
class RuleWords:
    """A rule, sorted: options of its own (`-s`, `-p`, ...) by letter, matches in order, what it jumps to."""

    head: dict[str, Option] = field(default_factory=dict)
    protocol: int = 0
    matches: list[Extension] = field(default_factory=list)
    target: Extension | None = None
    is_goto: bool = False
    counters: tuple[int, int] | None = None
    counted: int = 0  # the word `-c` in front of the counters


def split(text: str) -> list[str]:
    """The words, without quotes and escapes. Raises Bad for a string without an end."""
    if '"' not in text:
        return text.split()
    if "\\" not in text and (words := _split_plainly(text.split('"'))) is not None:
        return words
    words = []
    for count, found in enumerate(_WORD.finditer(text)):
        if found[3] is not None:
            raise Bad("a string without an end", count)
        words.append(_ESCAPED.sub(r"\1", found[1]) if found[1] is not None else found[2])
    return words


def _split_plainly(pieces: list[str]) -> list[str] | None:
    """The words, where each second piece is a string; None where a quote stands inside of a word."""
    words = []
    for index, piece in enumerate(pieces):
        if index % 2:
            words.append(piece)
        elif index + 1 < len(pieces) and piece and not piece[-1].isspace():
            return None
        else:
            words += piece.split()
    return words if len(pieces) % 2 else None


def starts(text: str) -> list[int]:
    """Where each word starts."""
    return [found.start() for found in _WORD.finditer(text)]


def open_string(text: str, start: int, end: int) -> int | None:
    """Where, between start and end, a string begins that does not end there."""
    return next((found.start() for found in _WORD.finditer(text, start, end) if found[3] is not None), None)


def quoted(word: str) -> str:
    """As a word of a rule: in quotes where it needs them (xtables_save_string quotes some more)."""
    if _PLAIN.fullmatch(word) or _SAFE.fullmatch(word):
        return word
    return '"' + re.sub(r'(["\\])', r"\\\1", word) + '"'


def read_words(words: list[str], start: int) -> RuleWords:
    """Sorts the words from number `start` on, those behind `-A CHAIN`. Raises Bad."""
    return _Reader(words, start).read()


class _Reader:
    def __init__(self, words: list[str], start: int) -> None:
        self._words = words
        self._at = start
        self._rule = RuleWords()
        self._loaded: list[Extension] = []  # the last one first

    def read(self) -> RuleWords:
        words, count = self._words, len(self._words)
        while self._at < count:
            first = self._at
            negated = words[first] == "!"
            if negated:
                self._at += 1
                if self._at == count:
                    raise Bad("nothing behind `!`", first)
            word = words[self._at]
            if word in _HEAD:
                self._head(*_HEAD[word], negated, first)
            elif not self._option(word, negated, first):
                self._unknown(word, negated, first)
        return self._rule

    def _take(self, name: str, count: int, negated: bool) -> tuple[tuple[str, ...], bool]:
        """The values behind an option, and whether it is negated."""
        at, words = self._at + 1, self._words
        if not negated and count and at < len(words) and words[at] == "!" and name not in _FREE:
            negated, at = True, at + 1
        values = tuple(words[at : at + count])
        if len(values) < count:
            raise Bad(f"{words[self._at]} needs {count} {'word' if count == 1 else 'words'} behind it", self._at)
        self._at = at + count
        return values, negated

    def _head(self, name: str, count: int, negated: bool, first: int) -> None:
        values, negated = self._take(name, count, negated)
        if negated and name not in _NEGATABLE:
            raise Bad(f"{name} cannot be negated", first)
        if name == "-m":
            self._load(values[0], MATCHES, first)
        elif name in {"-j", "-g"}:
            if self._rule.target is not None:
                raise Bad("a second target", first)
            self._rule.target = self._load(values[0], TARGET_OPTIONS if name == "-j" else {values[0]: {}}, first)
            self._rule.is_goto = name == "-g"
        elif name == "-c":
            self._counters(values, first)
        elif name in self._rule.head:
            raise Bad(f"{name} twice", first)
        else:
            self._rule.head[name] = Option(name, values, negated, first)
            if name == "-p":
                self._protocol(values[0], negated)

    def _protocol(self, text: str, negated: bool) -> None:
        try:
            found = protocol(text)
        except Bad as bad:
            raise Bad(bad.what, self._at - 1) from None
        if negated and not found:
            raise Bad("no packet is of another protocol than all", self._at - 1)
        self._rule.protocol = 0 if negated else found

    def _counters(self, values: tuple[str, ...], first: int) -> None:
        if not all(value.isascii() and value.isdigit() and len(value) < 21 for value in values):
            raise Bad("no counters", first)
        self._rule.counters, self._rule.counted = (int(values[0]), int(values[1])), first

    def _load(self, name: str, tables: dict[str, Table], first: int) -> Extension:
        if not name:
            raise Bad("an empty name", first)
        if tables is MATCHES:
            name = ALIASES.get(name, name)
        loaded = Extension(name, first, tables.get(name))
        self._loaded.insert(0, loaded)
        if tables is MATCHES:
            self._rule.matches.append(loaded)
        return loaded

    def _option(self, word: str, negated: bool, first: int) -> bool:
        """Takes an option of one of the extensions loaded, or of the protocol's; whether it was one."""
        for extension in self._loaded:
            if extension.table is not None and (known := _lookup(extension.table, word)):
                self._add(extension, known, negated, first)
                return True
        implied = IMPLIED.get(self._rule.protocol)
        if implied is None or any(extension.name == implied for extension in self._loaded):
            return False
        if known := _lookup(MATCHES[implied], word):
            self._add(self._load(implied, MATCHES, first), known, negated, first)
            return True
        return False

    def _add(self, extension: Extension, known: tuple[str, int], negated: bool, first: int) -> None:
        values, negated = self._take(*known, negated)
        extension.options.append(Option(known[0], values, negated, first))

    def _unknown(self, word: str, negated: bool, first: int) -> None:
        """A word of the last extension that nothing is known of; it has all words up to the next known option."""
        last = self._loaded[0] if self._loaded else None
        if last is None or last.table is not None:
            what = "no option known here" if word.startswith("-") else "a word that belongs to nothing"
            raise Bad(f"{what}: {word!r}", first)
        self._at += 1
        last.options.append(Option("", (word,), negated, first))


def _lookup(table: Table, word: str) -> tuple[str, int] | None:
    """The option, also by an abbreviation that fits no other (getopt_long(3))."""
    if word in table:
        return table[word]
    if len(word) < 4 or not word.startswith("--"):
        return None
    found = {option for name, option in table.items() if name.startswith(word)}
    return found.pop() if len(found) == 1 else None
