"""What the target of a rule does with a packet that the rule matched."""

from __future__ import annotations

import re

from conntracker.rules.nft_listing import unquoted
from conntracker.rules.targets import TARGETS, target_of
from conntracker.steps import Rule

__all__ = ["effect"]

_GROUP = re.compile(r"\{[^{}]*\}")
_NAT = re.compile(
    r"(?:^| )(?:(?<!status )[sd]nat (?:ip6? )?(?:addr \. port |interval |prefix )*to|masquerade"
    r"|(?<!type )(?<!!= )redirect)(?: |$)"
)


def effect(rule: Rule) -> tuple[str | None, str | None]:
    """(verdict, chain that it jumps to) of a packet that the rule matched.

    The verdict is one of Step's: None where it depends on more than the match, or is not known. A target that is no
    extension known here is the name of a user chain.
    """
    if rule.text is None:
        return None, None
    return _of_iptables(rule.text) if rule.kind != "nft" else _of_nft(rule.text)


def _of_iptables(text: str) -> tuple[str | None, str | None]:
    target = target_of(text)
    if target is None:
        return "continue", None
    option, name = target
    if option == "-g":
        return "goto", name
    return (TARGETS[name], None) if name in TARGETS else ("jump", name)


def _of_nft(text: str) -> tuple[str | None, str | None]:
    text, groups = unquoted(text), 1
    while groups:  # innermost first
        text, groups = _GROUP.subn("%", text)
    words = text.split()
    for index, word in enumerate(words):
        if word in {"jump", "goto"}:
            target = words[index + 1] if index + 1 < len(words) else "%"
            return word, target if target != "%" else None
        if word in {"accept", "drop", "return", "continue", "queue", "reject"}:
            return word, None
        if word in {"vmap", "synproxy", "xt"}:
            return None, None
        if word == "fwd":
            return "stolen", None
    return ("accept" if _NAT.search(text) else "continue"), None
