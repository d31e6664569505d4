"""Whether a rule of nf_tables was made by iptables-nft: its save also shows rules of nft, without what it can't say.

iptables-nft-save 1.8.9 prints `tcp dport { 1, 2 } counter accept` as `-p tcp -j ACCEPT`, and drops named sets, address
ranges, maps and headers that it does not know in the same way. It refuses a table only for an expression of a kind that
it never makes itself (`ct`, `log`, `fib`, `nat`, ...).
"""

from __future__ import annotations

import re

from conntracker.rules.iptables_save import blanked
from conntracker.rules.nft_listing import unquoted
from conntracker.rules.targets import TARGETS, target_of

__all__ = ["is_of_iptables"]

# Extensions that the save may show where there is none (iptables/nft-shared.c): it makes them of payload, meta and
# limit expressions, which nft makes as well.
_NATIVE_MATCHES = {
    "tcp", "udp", "udplite", "sctp", "dccp", "icmp", "icmp6", "comment", "limit", "mark", "pkttype", "ttl", "hl",
}  # fmt: skip
_NATIVE_TARGETS = {"ACCEPT", "DROP", "RETURN", "REJECT"}
_MATCH = re.compile(r" -m (\S+)")

# All that such extensions and the options without one can be in nft's words; atomic, as rules can be long.
_NATIVE = re.compile(
    r"""(?x)(?>\s* (?>
    ip6?\ [sd]addr\ (?: (?:!=\ )?[\da-f.:/]+ | &\ \S+\ [!=]=\ \S+ )
  | (?:meta\ l4proto|ip\ protocol|ip6\ nexthdr)\ (?:!=\ )?[\w-]+
  | (?:meta\ )?[io]ifname\ (?:!=\ )?""
  | ip\ frag-off\ &\ \w+\ [!=]=\ \w+
  | (?:tcp|udp|udplite|sctp|dccp|th)\ [sd]port\ (?:(?:!=|<=?|>=?)\ )?\w+(?:-\w+)?
  | tcp\ option\ \d+\ (?:exists|missing)
  | tcp\ flags\ [^{}@]*? (?=\ counter)
  | icmp(?:v6)?\ type\ (?:!=\ )?[\w-]+(?:\ icmp(?:v6)?\ code\ (?:!=\ )?[\w-]+|\ code\ \d+)?
  | (?:ip\ ttl|ip6\ hoplimit)\ (?:(?:!=|<=?|>=?|lt|gt)\ )?\d+
  | (?:meta\ )?mark\ (?:(?:&|and)\ \w+\ )?(?:[!=]=\ )?\w+
  | (?:meta\ )?pkttype\ (?:!=\ )?\w+
  | limit\ rate\ \d+/\w+(?:\ burst\ \d+\ packets)?
  | counter(?:\ packets\ \d+\ bytes\ \d+)?
  | accept | drop | return | continue | (?:jump|goto)\ \S+ | reject[^{}@]* | comment\ ""
    ))*+\s*"""
)


def is_of_iptables(listed: str, saved: str) -> bool:
    """Whether the save (`-A ...`) says all that the listing of the rule says.

    A rule with an extension of iptables does. One without does if it has a counter, as all rules of iptables-nft have,
    and nothing beside the few headers that iptables-nft looks at without one.
    """
    target = target_of(saved)
    if set(_MATCH.findall(blanked(saved))) - _NATIVE_MATCHES or (
        target and target[1] in TARGETS.keys() - _NATIVE_TARGETS
    ):
        return True
    text = unquoted(listed)
    return "xt" in text.split() or ("counter" in text.split() and _NATIVE.fullmatch(text) is not None)
