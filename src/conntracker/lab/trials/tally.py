"""How many packets each match and target was tried with: matched by the kernel, and not matched."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from conntracker.lab.trials.aim import tests_of
from conntracker.rules.iptables_save import blanked
from conntracker.rules.terms import Atom, Part
from conntracker.rules.walk import Outcome
from conntracker.steps import Rule

__all__ = ["IPTABLES_MATCHES", "IPTABLES_TARGETS", "NFT_FORMS", "Tally", "asked_of"]

# What real rulesets use, by how many: each of these must have matched, and must have failed to.
IPTABLES_MATCHES = (
    "tcp", "udp", "state", "icmp", "conntrack", "multiport", "limit", "addrtype", "recent", "owner", "comment",
    "iprange", "mark", "mac", "icmp6", "policy", "hashlimit", "connlimit", "hl", "ttl", "sctp", "pkttype", "time",
    "length", "rpfilter", "connmark", "string", "physdev", "rt", "set",
    "-s", "-d", "-i", "-o", "! -s", "! -d", "! -i", "! -o", "--tcp-flags", "interface+", "dotted mask",
)  # fmt: skip
IPTABLES_TARGETS = (
    "ACCEPT", "DROP", "chain", "REJECT", "MASQUERADE", "LOG", "RETURN", "DNAT", "SNAT", "TCPMSS", "MARK", "REDIRECT",
    "NOTRACK", "goto", "CT", "CONNMARK", "CHECKSUM", "NFLOG", "NETMAP", "TRACE", "no target",
)  # fmt: skip
NFT_FORMS = (
    "ct state", "tcp dport", "iifname", "oifname", "ip saddr", "udp dport", "ip daddr", "ip6 saddr", "ip6 daddr",
    "ip protocol", "iif", "icmp type", "icmpv6 type", "!=", "limit", "named set", "meta l4proto", "jump", "goto",
    "return", "bit mask", "fib", "vmap", "concatenation", "prefix", "anonymous set", "range", "tcp flags", "ct status",
    "ct mark", "meta mark", "mark set", "meta pkttype", "meta skuid", "ether saddr", "ip ttl", "dscp", "dnat", "snat",
    "masquerade", "redirect", "notrack", "reject", "dynamic set", "ct count",
)  # fmt: skip

_DOTTED = re.compile(r"/\d+\.\d+\.\d+\.\d+|/[0-9a-f:]*:[0-9a-f:]*")
_OPTION = re.compile(r"(! )?(?<!\S)(-[sdio]) (\S+)")
_PROTOCOLS = {"tcp", "udp", "sctp", "udplite"}
_SIMPLE = (
    "ct state", "tcp dport", "iifname", "oifname", "ip saddr", "udp dport", "ip daddr", "ip6 saddr", "ip6 daddr",
    "ip protocol", "icmp type", "icmpv6 type", "limit", "meta l4proto", "jump", "goto", "return", "fib", "vmap",
    "tcp flags", "ct status", "ct mark", "meta mark", "meta pkttype", "meta skuid", "ether saddr", "ip ttl", "dscp",
    "dnat", "snat", "masquerade", "redirect", "notrack", "reject", "ct count", "mark set", "iif", "!=",
)  # fmt: skip
_FORMS = {
    "named set": re.compile(r" @(?!seen)\w"),
    "dynamic set": re.compile(r" @seen|\b(?:add|update|delete) @"),
    "bit mask": re.compile(r" & | / \w"),
    "concatenation": re.compile(r"\w \. \w"),
    "prefix": re.compile(r"[0-9a-f:.]/\d"),
    "anonymous set": re.compile(r"\{ "),
    "range": re.compile(r"(?<=\d)-(?=[\da-f])"),
}
_WORDS = {name: re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])") for name in _SIMPLE}

# Which fields of a packet a match looks at: a rule that was passed over for one of them was not matched by it.
_FIELDS: dict[str, frozenset[str]] = {
    name: frozenset(fields.split())
    for name, fields in {
        "tcp": "protocol sport dport tcp_flags", "udp": "protocol sport dport", "sctp": "protocol sport dport",
        "udplite": "protocol sport dport", "multiport": "sport dport", "--tcp-flags": "tcp_flags",
        "icmp": "protocol icmp_type icmp_code", "icmp6": "protocol icmp_type icmp_code",
        "state": "ct_state ct_status",
        "conntrack": "ct_state ct_status ct_direction", "addrtype": "saddr_type daddr_type",
        "owner": "skuid skgid", "iprange": "saddr daddr", "mark": "mark", "mac": "mac", "hl": "ttl", "ttl": "ttl",
        "pkttype": "packet_type", "length": "length", "rpfilter": "reverse_path", "connmark": "ct_mark",
        "-s": "saddr", "! -s": "saddr", "-d": "daddr", "! -d": "daddr", "-i": "iif", "! -i": "iif", "-o": "oif",
        "! -o": "oif", "interface+": "iif oif", "dotted mask": "saddr daddr", "dscp": "tos", "tos": "tos",
        "ct state": "ct_state", "tcp dport": "protocol dport", "udp dport": "protocol dport", "iifname": "iif",
        "oifname": "oif", "iif": "iif", "ip saddr": "saddr family", "ip daddr": "daddr family",
        "ip6 saddr": "saddr family", "ip6 daddr": "daddr family", "ip protocol": "protocol family",
        "icmp type": "protocol icmp_type", "icmpv6 type": "protocol icmp_type", "meta l4proto": "protocol",
        "fib": "saddr_type daddr_type reverse_path", "tcp flags": "protocol tcp_flags", "ct status": "ct_status",
        "ct mark": "ct_mark", "meta mark": "mark", "meta pkttype": "packet_type", "meta skuid": "skuid",
        "ether saddr": "mac", "ip ttl": "ttl",
    }.items()
}  # fmt: skip
# Only targets and whole rules: they are not matched where the rule is not.
_WHOLE = frozenset(IPTABLES_TARGETS) | frozenset(
    ("jump", "goto", "return", "dnat", "snat", "masquerade", "redirect", "notrack", "reject", "mark set", "comment",
     "!=", "named set", "bit mask", "vmap", "concatenation", "prefix", "anonymous set", "range", "dynamic set")
)  # fmt: skip


@dataclass(slots=True)
class Tally:
    """Counts of packets by what a rule has in it.

    matched   of rules that the kernel's steps have
    passed    of rules that the packet came to, and that did not match for this
    """

    matched: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    _known: dict[int, tuple[Rule, tuple[str, ...]]] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        """Counts a packet whose outcome is the kernel's."""
        for step in outcome.path.steps:
            if step.rule is not None and step.type in {"rule", "return"}:
                self.matched.update(self._asked(step.rule))
        for passed in outcome.passed:
            part = passed.term
            fields = {part.name} if isinstance(part, Atom) else {test.field for test in tests_of((part,))}
            self.passed.update(name for name in self._asked(passed.rule) if _fails(name, part, fields))

    def forget(self) -> None:
        """Lets go of the rules that were counted; the counts stay."""
        self._known.clear()

    def _asked(self, rule: Rule) -> tuple[str, ...]:
        found = self._known.get(id(rule))
        if found is None:
            found = self._known[id(rule)] = rule, tuple(asked_of(rule))
        return found[1]

    def zeros(self, names: Iterable[str]) -> list[str]:
        """Those that never matched, or never failed to."""
        return [name for name in names if not self.matched[name] or (not self.passed[name] and name not in _ALWAYS)]

    def __str__(self) -> str:
        names = [*dict.fromkeys((*IPTABLES_MATCHES, *IPTABLES_TARGETS, *NFT_FORMS))]
        return "\n".join(f"{name:16} {self.matched[name]:10,} {self.passed[name]:10,}" for name in names)


# What no packet fails to match by itself.
_ALWAYS = frozenset(("comment",))


def _fails(name: str, part: Part, fields: set[str]) -> bool:
    if isinstance(part, Atom):
        return name == part.name or name in _WHOLE or name in part.text.split()
    return name in _WHOLE or bool(_FIELDS.get(name, frozenset()) & fields)


def asked_of(rule: Rule) -> Iterator[str]:
    """The names of what a rule has in it: matches, forms and targets."""
    text = rule.text or ""
    yield from _of_nft(text) if rule.kind == "nft" else _of_iptables(text)


def _of_iptables(text: str) -> Iterator[str]:
    words = blanked(text).split()
    found = {words[i + 1] for i, word in enumerate(words[:-1]) if word == "-m"}
    found |= {words[i + 1] for i, word in enumerate(words[:-1]) if word == "-p" and words[i + 1] in _PROTOCOLS}
    yield from sorted(found)
    for negation, option, value in _OPTION.findall(" ".join(words)):
        yield f"{negation}{option}"
        if option in "-i -o" and value.endswith("+"):
            yield "interface+"
        if option in "-s -d" and _DOTTED.search(value):
            yield "dotted mask"
    if "--tcp-flags" in words or "--syn" in words:
        yield "--tcp-flags"
    if "-g" in words:
        yield "goto"
    elif "-j" in words:
        target = words[words.index("-j") + 1]
        yield target if target in IPTABLES_TARGETS else "chain"
    else:
        yield "no target"


def _of_nft(text: str) -> Iterator[str]:
    text = blanked(text)
    yield from (name for name, pattern in _WORDS.items() if pattern.search(text))
    yield from (name for name, pattern in _FORMS.items() if pattern.search(text))
