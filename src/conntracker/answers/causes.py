"""What may have become of a packet that no rule ended: where the kernel lets packets go between hooks, and why.

Nothing here is known of a packet at hand. These are the places in net/ipv4 and net/ipv6 (ip_input.c, ip_forward.c,
ip_output.c and their IPv6 counterparts) and in net/netfilter that drop or keep packets without any rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conntracker.steps import UNDECIDED

if TYPE_CHECKING:
    from conntracker.steps import Path

__all__ = ["last_seen", "possible_causes", "unseen_rules"]

BLIND = "a rule of iptables-legacy: those were not traced, and one of them may have decided"
LOST = "trace messages were lost meanwhile, maybe its own"

# By the last hook that was seen.
CAUSES = {
    None: (),
    "ingress": (
        "not addressed to this host's MAC address",
        "a bad header or checksum",
        "taken by a bridge, a bond or a flowtable",
        "a fragment whose other fragments never came",
    ),
    "prerouting": (
        "reverse path filter (rp_filter) or martian address",
        "no route to the destination",
        "not for this host, and forwarding is off",
        "TTL or hop limit expired",
        "larger than the MTU of the way out, and not to be fragmented",
        "the connection table is full",
        "an IPsec policy",
    ),
    "input": ("IPVS or NAT could not take it", "a security module"),
    "forward": ("an IPsec policy", "source routing options", "IPVS could not take it"),
    "output": ("no route after a mark or NAT changed it", "an IPsec policy", "the connection table is full"),
    "postrouting": ("NAT found no address or port to give (masquerading without an address)", "an IPsec policy"),
}
LOOPBACK_CAUSES = ("the loopback device is down", "a tc or BPF program on the way out")


def possible_causes(path: Path) -> tuple[str, ...]:
    """What may have ended a packet of this path, the likeliest first; nothing where a rule or a policy did."""
    if path.verdict != UNDECIDED:
        return ()
    causes = CAUSES.get(path.reached, ())
    if path.reached == "postrouting" and "prerouting" in path.expected:
        causes = LOOPBACK_CAUSES
    if path.reached == "prerouting" and path.expected and "input" not in path.expected:
        causes = tuple(cause for cause in causes if "not for this host" not in cause)
    return unseen_rules(path) + causes


def unseen_rules(path: Path) -> tuple[str, ...]:
    """Why a rule that nobody saw may have ended a packet that none was seen to end."""
    if path.verdict != UNDECIDED:
        return ()
    return ((BLIND,) if path.blind else ()) + (() if path.complete else (LOST,))


def last_seen(path: Path) -> str:
    """Where a packet that no rule ended was seen last, and what should have come next."""
    where = f"last seen at {path.reached}" if path.reached else "seen at no hook"
    if not path.expected:
        return f"{where}, not at its end" if path.reached else where
    return f"{where}; next should have been {' or '.join(path.expected)}"
