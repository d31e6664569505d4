"""What `nft -a list ruleset` prints (nftables, src/rule.c): the chains and rules of every family.

A chain stands at one tab, its rules at two, and each ends in ` # handle N`. A rule takes several lines where it jumps
into a chain without a name, whose rules stand at three tabs and are listed nowhere else. Strings have no escapes, and
iptables can put a quote into one: the place of a line says more than the quotes in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest

from conntracker.rules.chain import Chain
from conntracker.steps import Rule

__all__ = ["dormant_tables", "listed_chains", "unhooked", "unquoted", "without_own"]

_TABLE = re.compile(r"table (\w+) (\S+) \{")
_DORMANT = re.compile(
    r"^table (\w+) (\S+) \{[^\n]*\n(?:\t(?:#|comment )[^\n]*\n)*\tflags [\w,]*\bdormant\b", re.MULTILINE
)
_CHAIN = re.compile(r"\tchain (.+?) \{(?: # handle \d+)?$")
_HANDLE = re.compile(r"(.*) # handle (\d+)", re.DOTALL)
_HOOK = re.compile(
    r"type (?P<type>\w+) hook (?P<hook>\w+)"
    r"(?: devices? (?:= )?(?P<device>.+?))? priority (?P<priority>[^;]+);(?: policy (?P<policy>\w+);)?"
)
_HEADER = ("\t\ttype ", "\t\tflags ", '\t\tcomment "')

# What changes while the rules do not; strings are matched first, so that what they say stays.
_STATE = re.compile(
    r'("[^"]*")|\b(counter) packets \d+ bytes \d+|\b(last) used \S+|( mbytes| kbytes| bytes) used \d+ \w+'
)
_QUOTED = re.compile(r'"[^"]*"')

# Tables of iptables-nft and its kin, which put quotes into strings; nft itself does not.
_OF_IPTABLES = {"raw", "mangle", "nat", "filter", "security", "broute"}

# Tables of our own (conntracker.sources.nftables.OwnedTable).
_OWN_TABLE = re.compile(
    r"^table (\w+) (conntracker_\d+(?:_\d+)?) \{[^\n]*\n\tflags [^\n]*\bowner\b.*?^\}(?:\n|\Z)",
    re.DOTALL | re.MULTILINE,
)

# nft(8), 'Standard priority names'.
_PRIORITIES = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}
_BRIDGE_PRIORITIES = {"dstnat": -300, "filter": -200, "out": 100, "srcnat": 300}


def listed_chains(text: str) -> Iterator[Chain]:
    """The chains of all tables, of kind nft. Those of a dormant table are in no hook."""
    family = table = ""
    dormant = dormant_tables(text)
    lines = iter(text.replace("\r\n", "\n").split("\n"))
    for line in lines:
        if line.startswith("table ") and (found := _TABLE.match(line)):
            family, table = found.groups()
        elif line.startswith("\tchain ") and (found := _CHAIN.match(line)):
            chain = _chain(family, table, found[1], _body(lines))
            yield unhooked(chain) if (family, table) in dormant else chain


def dormant_tables(text: str) -> frozenset[tuple[str, str]]:
    """Family and name of the tables with the flag `dormant`."""
    return frozenset((found[1], found[2]) for found in _DORMANT.finditer(text))


def unhooked(chain: Chain) -> Chain:
    """A base chain of a dormant table: the kernel takes it out of its hook (nft_table_disable, nf_tables_api.c)."""
    return replace(chain, hook=None, priority=None, policy=None, type=None, device=None)


def without_own(text: str) -> tuple[str, frozenset[tuple[str, str]]]:
    """(the listing without our own tables, family and name of those): a user's of such a name has no owner."""
    own = frozenset((found[1], found[2]) for found in _OWN_TABLE.finditer(text))
    return _OWN_TABLE.sub("", text), own


def unquoted(text: str) -> str:
    """The rule with each string made `""`."""
    return _QUOTED.sub('""', text) if '"' in text else text


def _body(lines: Iterator[str]) -> list[str]:
    """The lines up to the end of the chain."""
    body = []
    for line in lines:
        if line == "\t}":
            break
        body.append(line)
    return body


def _chain(family: str, table: str, name: str, body: list[str]) -> Chain:
    start, hook = 0, None
    while start < len(body) and body[start].startswith(_HEADER) and not _HANDLE.fullmatch(body[start]):
        hook = hook or _HOOK.match(body[start].strip())
        if body[start].count('"') % 2:  # a comment of several lines
            start += 1
            while start < len(body) and '"' not in body[start]:
                start += 1
        start += 1
    rules = tuple(
        Rule("nft", family, table, name, position, handle, text)
        for position, (text, handle) in enumerate(_rules(body[start:], table in _OF_IPTABLES), 1)
    )
    if hook is None:
        return Chain("nft", family, table, name, None, None, None, None, None, rules)
    priority, policy = _priority(family, hook["priority"]), hook["policy"] or "accept"
    return Chain("nft", family, table, name, hook["hook"], priority, policy, hook["type"], _devices(hook), rules)


def _rules(lines: list[str], of_iptables: bool) -> Iterator[tuple[str, int | None]]:
    """Text and handle of each rule. What stands at the end without a handle is one rule without."""
    held: list[str] = []
    quotes = 0
    for line, following in zip_longest(lines, lines[1:]):
        held.append(line)
        quotes += line.count('"')
        found = _HANDLE.fullmatch(line) if " # handle " in line else None
        if found is None:
            continue
        if held[0].endswith(" {"):  # a jump into a chain without a name: up to its closing bracket
            ended = line.startswith("\t\t}")
        else:
            # An open string goes on in the next line. Or it is a quote in a string, if that looks like a rule.
            ended = quotes % 2 == 0 or (of_iptables and (following is None or following.startswith("\t\t")))
        if ended:
            held[-1] = found[1]
            yield _one_line(held), int(found[2])
            held, quotes = [], 0
    if text := _one_line(held):
        yield text, None


def _one_line(lines: list[str]) -> str:
    if len(lines) > 1 and lines[0].endswith(" {"):
        inner = "".join(f"{_without_handle(line.strip())}; " for line in lines[1:-1])
        text = f"{lines[0].strip()} {inner}{lines[-1].strip()}"
    else:
        text = " ".join(line.strip() for line in lines)
    return _STATE.sub(_stateless, text.strip())


def _without_handle(text: str) -> str:
    found = _HANDLE.fullmatch(text)
    return found[1] if found else text


def _stateless(found: re.Match[str]) -> str:
    return next(group for group in found.groups() if group)


def _priority(family: str, text: str) -> int | None:
    names = _BRIDGE_PRIORITIES if family == "bridge" else _PRIORITIES
    name, _, offset = text.partition(" ")
    try:
        return names[name] + int(offset.replace(" ", "") or 0) if name in names else int(text)
    except ValueError:
        return None


def _devices(hook: re.Match[str]) -> str | None:
    return ",".join(re.findall(r'[^\s{}",]+', hook["device"])) if hook["device"] else None
