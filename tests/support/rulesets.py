"""Rulesets as their own tools load and list them: what a trace's rules are compared with.

For iptables, text is that of iptables-restore with less to write: no COMMIT, no counters, and no built-in chain but for
its policy (`:FORWARD DROP`); a user chain is `:NAME`.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field

from conntracker.sources.netns import Namespace

__all__ = ["Chain", "Place", "Refused", "listed", "load", "restore_text"]

BUILTIN = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}
# linux/netfilter_ipv4.h (enum nf_ip_hook_priorities); nat's of the source side are listed apart.
PRIORITY = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
SOURCE_NAT = 100

Place = tuple[str, str, str, str]  # kind, family, table, chain

_NFT_TABLE = re.compile(r"table (\S+) (\S+) \{")
_NFT_CHAIN = re.compile(r"\tchain (\S+) \{")
_NFT_BASE = re.compile(r"type \S+ hook (\S+) .*?priority (-?\d+);")
_NFT_RULE = re.compile(r"(.*\S) # handle (\d+)", re.DOTALL)
_COUNTED = re.compile(r"\[(\d+):\d+\] (-A (\S+).*)")


class Refused(Exception):
    """What a tool or the kernel says of a ruleset."""


@dataclass(slots=True)
class Chain:
    """A chain: its priority if it is a base chain, and its rules' texts, handles and packets seen so far."""

    priority: int | None = None
    texts: list[str] = field(default_factory=list)
    handles: list[int | None] = field(default_factory=list)
    packets: list[int | None] = field(default_factory=list)


def restore_text(text: str) -> str:
    """What iptables-restore reads."""
    tables: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("*"):
            tables[line[1:]] = []
        else:
            tables[list(tables)[-1]].append(line)
    return "".join(line + "\n" for name, lines in tables.items() for line in _whole(name, lines))


def _whole(table: str, lines: list[str]) -> list[str]:
    chains = {line[1:].partition(" ")[0]: line for line in lines if line.startswith(":")}
    chains = {chain: f":{chain} ACCEPT" for chain in BUILTIN[table]} | chains
    declared = [line if " " in line else f"{line} -" for line in chains.values()]
    return [f"*{table}", *declared, *(line for line in lines if not line.startswith(":")), "COMMIT"]


def load(space: Namespace, tool: str, text: str) -> None:
    """Load a ruleset with `tool`: nft (`} }` is enough where it wants `}; }`), or ip[6]tables-nft or -legacy."""
    if tool == "nft":
        _run(space, ["nft", "-f", "-"], re.sub(r"\}(?=[ \t]*\})", "};", text))
    else:
        _run(space, [f"{tool}-restore"], restore_text(text))


def listed(space: Namespace, loaded: Iterable[tuple[str, str]]) -> dict[Place, Chain]:
    """The chains of all rulesets that were loaded, (tool, text) each, as the tools list them now."""
    chains: dict[Place, Chain] = {}
    for tool in dict.fromkeys(tool for tool, _ in loaded):
        if tool != "nft":
            chains |= _iptables(_run(space, [f"{tool}-save", "-c"]), tool)
    for (_, family, table, name), chain in _nft(_run(space, ["nft", "-a", "-s", "-y", "list", "ruleset"])).items():
        twin = chains.get(("iptables-nft", family, table, name))
        if twin is None:
            chains["nft", family, table, name] = chain
        else:
            twin.handles, twin.priority = chain.handles, chain.priority
    return chains


def _iptables(text: str, tool: str) -> dict[Place, Chain]:
    kind, family = tool.replace("ip6", "ip"), "ip6" if tool.startswith("ip6") else "ip"
    chains: dict[Place, Chain] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            name = line[1:].split()[0]
            is_source = table == "nat" and name in {"INPUT", "POSTROUTING"}
            priority = SOURCE_NAT if is_source else PRIORITY[table]
            chains[kind, family, table, name] = Chain(priority if name in BUILTIN[table] else None)
        elif match := _COUNTED.fullmatch(line):
            packets, rule, name = match.groups()
            chain = chains[kind, family, table, name]
            chain.texts.append(rule)
            chain.handles.append(None)
            chain.packets.append(int(packets))
    return chains


def _nft(text: str) -> dict[Place, Chain]:
    chains: dict[Place, Chain] = {}
    family = table = rule = ""
    chain: Chain | None = None
    for line in text.splitlines():
        if match := _NFT_TABLE.match(line):
            family, table = match.groups()
        elif line.startswith("\t") and not line.startswith("\t\t"):
            match = _NFT_CHAIN.match(line)
            chain = chains.setdefault(("nft", family, table, match[1]), Chain()) if match else None
        elif chain is not None and (match := _NFT_BASE.search(line)) and not rule:
            chain.priority = int(match[2])
        elif chain is not None and not line.startswith("\t\tcomment "):
            rule = f"{rule}\n{line}" if rule else line
            if match := _NFT_RULE.fullmatch(rule):
                chain.texts.append(" ".join(match[1].split()))
                chain.handles.append(int(match[2]))
                chain.packets.append(None)
                rule = ""
    return chains


def _run(space: Namespace, command: list[str], text: str = "") -> str:
    with space:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode != 0:
        raise Refused(f"{' '.join(command)}: {done.stderr}\n{text}")
    return done.stdout
