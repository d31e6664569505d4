"""The words of a trace: Rule, Step, Packet, Path and Trace.

A step is one thing that happened to a packet in a chain; the steps of one packet, in the order in which they happened,
are its path; a trace is a packet with its path. Paths are few and packets are many: paths are interned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["HOOKS", "KINDS", "UNDECIDED", "Packet", "Path", "Rule", "Step", "Trace", "step_from_json"]

# By number of linux/netfilter.h (enum nf_inet_hooks); ingress and egress are of linux/netfilter_netdev.h.
HOOKS = ("prerouting", "input", "forward", "output", "postrouting", "ingress", "egress")

# Whose rules they are, and so in whose syntax they are written.
KINDS = ("nft", "iptables-nft", "iptables-legacy")

UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule and its place. `text` is None where the ruleset that was in force was never read.

    kind        one of KINDS
    family      ip, ip6, inet, bridge, netdev or arp, as nft names it; for iptables ip, for ip6tables ip6
    position    from 1, as `iptables -L --line-numbers` counts
    handle      nft's number of the rule in its table; None for legacy rules
    text        in its owner's syntax: `tcp dport 22 accept`, or `-A INPUT -p tcp -j ACCEPT`; no counters, no handle
    source      file:line, None for a rule that was read from the kernel
    """

    kind: str
    family: str
    table: str
    chain: str
    position: int | None
    handle: int | None
    text: str | None
    source: str | None = None

    def json(self) -> dict[str, Any]:
        """As it stands in JSON output."""
        return {
            "kind": self.kind, "family": self.family, "table": self.table, "chain": self.chain,
            "position": self.position, "handle": self.handle, "text": self.text, "source": self.source,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """A rule that matched, the end of a user chain, or a policy that was applied.

    hook        one of HOOKS; None if the chain's hook is not known
    priority    of the base chain in that hook; None if it is not known
    kind, family, table, chain   as in Rule
    type        rule, return (a user chain was left, by a rule or at its end) or policy (a base chain came to its end)
    rule        None for a policy and for the end of a chain
    verdict     accept, drop, reject, continue, jump, goto, return, queue or stolen; None if it is not known
    target      the chain that a jump or goto leads to
    certain     False when the ruleset changed so near that another rule may have stood in this place
    """

    hook: str | None
    priority: int | None
    kind: str
    family: str
    table: str
    chain: str
    type: str
    rule: Rule | None
    verdict: str | None
    target: str | None = None
    certain: bool = True

    def json(self) -> dict[str, Any]:
        """As it stands in JSON output."""
        return {
            "hook": self.hook, "priority": self.priority, "kind": self.kind, "family": self.family,
            "table": self.table, "chain": self.chain, "type": self.type,
            "rule": None if self.rule is None else self.rule.json(),
            "verdict": self.verdict, "target": self.target, "certain": self.certain,
        }  # fmt: skip


def step_from_json(values: dict[str, Any]) -> Step:
    """The reverse of Step.json. Raises KeyError or TypeError for what is none."""
    known = {name: values[name] for name in Step.__slots__}
    return Step(**(known | {"rule": None if values["rule"] is None else Rule(**values["rule"])}))


@dataclass(frozen=True, slots=True)
class Packet:
    """What a packet's headers say of its flow.

    family          4 or 6
    proto           IANA number; behind the extension headers of IPv6
    src, dst        as numbers
    sport, dport    None where the protocol has none, or the headers were not there (a later fragment)
    icmp_type, icmp_code, icmp_id   of ICMP and ICMPv6, None otherwise; the id only of echo and its like
    fragment        whether it is a fragment other than the first
    about           the packet that an ICMP error is about
    """

    family: int
    proto: int
    src: int
    dst: int
    sport: int | None = None
    dport: int | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    icmp_id: int | None = None
    fragment: bool = False
    about: Packet | None = None


@dataclass(frozen=True, slots=True)
class Path:
    """The steps of a packet, and what they come to.

    verdict     accept, drop, reject, queue, stolen, or UNDECIDED: no rule and no policy ended it, and yet the packet
                was not seen to leave
    decided     the index of the step that decided; None if no step did (no chain at all, or UNDECIDED)
    reached     the last hook that was seen, None if none was
    expected    for UNDECIDED, the hooks of which one should have come next
    complete    False when trace messages were lost meanwhile: steps may be missing
    blind       whether rules of iptables-legacy stood in its way that could not be traced: one of them may have decided
    """

    steps: tuple[Step, ...]
    verdict: str
    decided: int | None
    reached: str | None = None
    expected: tuple[str, ...] = ()
    complete: bool = True
    blind: bool = False

    @property
    def deciding(self) -> Step | None:
        """The step that decided."""
        return None if self.decided is None else self.steps[self.decided]


@dataclass(frozen=True, slots=True)
class Trace:
    """A packet and its path.

    time            when its first message was read: microseconds since the epoch, UTC
    packet          as it came in (prerouting, ingress) or was made (output): the tuple of one direction of its flow
    left            as it was last seen, after NAT; its `about`, which NAT changes too, is not known
    in_interface, out_interface   names (or numbers as text, if they are gone), None where there is none
    ct_id           CTA_ID of its flow (linux/netfilter/nfnetlink_conntrack.h); None where the kernel does not say
    path            see Path
    """

    time: int
    packet: Packet
    left: Packet
    in_interface: str | None
    out_interface: str | None
    ct_id: int | None
    path: Path
