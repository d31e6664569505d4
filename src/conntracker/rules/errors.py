"""The error of the parsers of rulesets."""

from __future__ import annotations

__all__ = ["RuleSyntaxError"]


class RuleSyntaxError(ValueError):
    """A text is no ruleset.

    what           one line for a person
    line, column   where it stands in the text, both from 1
    file           None where the text has no name
    """

    def __init__(self, what: str, line: int, column: int = 1, file: str | None = None) -> None:
        self.what, self.line, self.column, self.file = what, line, column, file
        super().__init__(f"{'' if file is None else f'{file}:'}{line}:{column}: {what}")

    def __reduce__(self) -> tuple[type[RuleSyntaxError], tuple[str, int, int, str | None]]:
        return RuleSyntaxError, (self.what, self.line, self.column, self.file)
