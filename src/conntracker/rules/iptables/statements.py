"""The lines of a save; one with an open string together with those up to its end."""

from __future__ import annotations

import re
from collections.abc import Iterator

from conntracker.rules.errors import RuleSyntaxError
from conntracker.rules.iptables.values import Bad
from conntracker.rules.iptables.words import open_string, split, starts

__all__ = ["Statement", "statements"]

_REST = re.compile(r'(?:[^"\\]|\\.)*"', re.DOTALL)
_LINE_END = re.compile(r"[^\S\n]*\n")


class Statement:
    """A line, or several with a string across their ends.

    line    its number, from 1
    text    without spaces around it, the line ends in it made spaces
    words   see words.split
    """

    __slots__ = ("_raw", "line", "text", "words")

    def __init__(self, line: int, raw: str) -> None:
        self.line, self._raw = line, raw
        text = raw.strip()
        self.text = text if "\n" not in text else _LINE_END.sub(" ", text)
        self.words = split(self.text) if text[0] != "#" else []

    def text_from(self, word: int) -> str:
        """The text from one of its words on."""
        return self.text if not word else self.text[starts(self.text)[word] :]

    def error(self, bad: Bad, source: str | None) -> RuleSyntaxError:
        """The error that says where in the text it is."""
        places = starts(self._raw)
        place = places[min(bad.word or 0, len(places) - 1)]
        before = self._raw[:place]
        line = self.line + before.count("\n")
        return RuleSyntaxError(bad.what, line, place - (before.rfind("\n") + 1) + 1, source)


def statements(text: str, source: str | None) -> Iterator[Statement]:
    """All that are not blank. Raises RuleSyntaxError for a string without an end."""
    start, line = 0, 1
    while start < len(text):
        end = _line_end(text, start)
        raw = text[start:end]
        if raw and not raw.isspace():
            try:
                statement = Statement(line, raw)
            except Bad:  # a string is open
                end = _closed(text, start, end, line, source)
                raw = text[start:end]
                statement = Statement(line, raw)
            yield statement
        line += 1 + raw.count("\n")
        start = end + 1


def _line_end(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end


def _closed(text: str, start: int, end: int, line: int, source: str | None) -> int:
    """The end of the first line at which no string is open."""
    at = start
    while (opened := open_string(text, at, end)) is not None:
        closing = _REST.match(text, opened + 1)
        if closing is None:
            before = text[start:opened]
            column = opened - (text.rfind("\n", 0, opened) + 1) + 1
            raise RuleSyntaxError("a string without an end", line + before.count("\n"), column, source)
        at = closing.end()
        end = _line_end(text, at)
    return end
