"""Which program printed a save: what its header says, else what its rules look like."""

from __future__ import annotations

import re

__all__ = ["HEADER", "detect"]

HEADER = re.compile(r"^#.*?\bip(6?)tables(?:-nft|-legacy)?-save\b(?:.*?\((nf_tables|legacy)\))?", re.MULTILINE)

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SIX = re.compile(r"icmp6|icmpv6|ipv6-icmp|\s(?:-[sd]|--src|--dst)\s+[0-9a-fA-F]*:[0-9a-fA-F:.]+")
_FOUR = re.compile(r"\s-p icmp\s|--icmp-type|\bicmp-|\s(?:-[sd]|--src|--dst)\s+[0-9]+[./]")
_NAME = re.compile(r"(?<![0-9])6(?![0-9])[^/]*$")


def detect(text: str, name: str | None = None) -> tuple[str, str]:
    """(kind, family): one of steps.KINDS, and ip or ip6.

    The kind is in the header since iptables 1.8, (nf_tables) or (legacy); without it, legacy. The family is in the
    header; else addresses and ICMP in the rules tell, else a lone 6 in the file's name.
    """
    header = HEADER.search(text)
    if header is not None:
        return "iptables-nft" if header[2] == "nf_tables" else "iptables-legacy", f"ip{header[1]}"
    rules = _STRING.sub('""', text) if '"' in text else text
    if _SIX.search(rules):
        return "iptables-legacy", "ip6"
    if _FOUR.search(rules) or name is None:
        return "iptables-legacy", "ip"
    return "iptables-legacy", "ip6" if _NAME.search(name) else "ip"
