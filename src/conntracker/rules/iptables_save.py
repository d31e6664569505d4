"""What iptables-save and ip6tables-save print (iptables/iptables-save.c, libxtables/xtables.c): tables, chains, rules.

A string with other characters than letters, digits, `_` and `-` stands in double quotes, in which `\\` escapes and line
ends may stand: a comment of two lines makes a rule of two lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from conntracker.rules.chain import Chain
from conntracker.steps import Rule

__all__ = ["SavedChain", "blanked", "legacy_chains", "plain", "saved_tables"]

# A quote inside a name (`-A a"b`) opens nothing: strings begin behind a space.
_QUOTED = re.compile(r'(?<=\s)"(?:[^"\\]|\\.)*"', re.DOTALL)
_OPEN = re.compile(r'\s"')
_STRING_END = re.compile(r'(?:[^"\\]|\\.)*"')
_COUNTERS = re.compile(r" \[\d+:\d+\]$")
_COUNTED = re.compile(r"\[\d+:\d+\] -")

# linux/netfilter_ipv4.h (enum nf_ip_hook_priorities); those of IPv6 are the same.
_PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
_NAT_PRIORITIES = {"prerouting": -100, "output": -100, "input": 100, "postrouting": 100}
_HOOKS = {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}


@dataclass(slots=True)
class SavedChain:
    """A chain of a save: its policy (None for a user chain) and its rules, `-A CHAIN ...` each."""

    policy: str | None
    rules: list[str] = field(default_factory=list)


def saved_tables(text: str) -> dict[str, dict[str, SavedChain]]:
    """Tables by name, chains by name, both in the order of the save."""
    tables: dict[str, dict[str, SavedChain]] = {}
    chains: dict[str, SavedChain] | None = None
    for statement in _statements(text):
        if statement.startswith("*"):
            chains = tables.setdefault(statement[1:].strip(), {})
        elif chains is None or statement.startswith("#"):
            continue
        elif statement.startswith(":"):
            name, _, rest = statement[1:].partition(" ")
            policy = rest.partition(" ")[0].lower()
            chains[name] = SavedChain(policy if policy not in {"", "-"} else None)
        elif statement == "COMMIT":
            chains = None
        elif (rule := _without_counters(statement)).startswith("-A "):
            chains.setdefault(rule.split(None, 2)[1], SavedChain(None)).rules.append(rule)
    return tables


def plain(text: str) -> str:
    """The save without dates and with all counters zero: the same rules, the same text."""
    kept = []
    for statement in _statements(text):
        if statement.startswith(":"):
            kept.append(_COUNTERS.sub(" [0:0]", statement))
        elif not statement.startswith("#"):
            kept.append(_without_counters(statement))
    return "".join(f"{statement}\n" for statement in kept)


def legacy_chains(family: str, text: str) -> Iterator[Chain]:
    """The chains of the tables of ip_tables (`ip`) or ip6_tables (`ip6`)."""
    for table, chains in saved_tables(text).items():
        for name, chain in chains.items():
            rules = tuple(
                Rule("iptables-legacy", family, table, name, position, None, rule)
                for position, rule in enumerate(chain.rules, 1)
            )
            hook = name.lower() if chain.policy is not None and name in _HOOKS else None
            priority = kind = None
            if hook is not None:
                priority = _NAT_PRIORITIES.get(hook) if table == "nat" else _PRIORITIES.get(table)
                kind = "nat" if table == "nat" else "route" if (table, hook) == ("mangle", "output") else "filter"
            yield Chain(
                "iptables-legacy",
                family,
                table,
                name,
                hook,
                priority,
                chain.policy if hook else None,
                kind,
                None,
                rules,
            )


def blanked(rule: str) -> str:
    """The rule with each quoted string made `""`, so that what it says is not taken for an option."""
    return _QUOTED.sub('""', rule) if '"' in rule else rule


def _statements(text: str) -> Iterator[str]:
    """The lines; one with an open string together with those up to its end, the line ends in it made spaces."""
    held: list[str] = []
    for line in text.split("\n"):
        held.append(line.rstrip())
        if _ends_open(held[-1], inside=len(held) > 1):
            continue
        if statement := " ".join(held):
            yield statement
        held = []
    if held:  # a string without an end
        yield " ".join(held).rstrip()


def _ends_open(line: str, inside: bool) -> bool:
    """Whether a string is open at the end of the line; `inside` if one is at its start."""
    if '"' not in line:
        return inside
    end = _STRING_END.match(line) if inside else None
    if inside and end is None:
        return True
    return _OPEN.search(_QUOTED.sub("", line[end.end() :] if end else line)) is not None


def _without_counters(statement: str) -> str:
    return statement.partition("] ")[2] if _COUNTED.match(statement) else statement
