"""The targets of iptables: which one a rule has, and what the kernel does for it."""

from __future__ import annotations

from conntracker.rules.iptables_save import blanked

__all__ = ["TARGETS", "target_of"]

# What the target functions of the kernel return (net/netfilter/xt_*.c, net/ipv4/netfilter/ipt_*.c). Some drop instead
# when the packet is malformed or memory is short (TCPMSS, TTL, DNAT, ...): that is not told here.
_NAMES: dict[str | None, str] = {
    "accept": "ACCEPT DNAT SNAT MASQUERADE REDIRECT NETMAP SAME",
    "drop": "DROP",
    "reject": "REJECT",  # NF_DROP behind the answer
    "queue": "QUEUE NFQUEUE",
    "return": "RETURN",
    "continue": "AUDIT CHECKSUM CLASSIFY CONNMARK CONNSECMARK CT DNPT DSCP ECN HL HMARK IDLETIMER LED LOG MARK NFLOG "
    "NOTRACK RATEEST SECMARK SET SNPT TCPMSS TCPOPTSTRIP TEE TOS TRACE TTL ULOG",
    "stolen": "SYNPROXY",  # unless the packet goes on: then it is no part of a handshake (ipt_SYNPROXY.c)
    # Several outcomes. TPROXY: accept with a socket, else drop. CLUSTERIP: continue or drop. The rest are of
    # xtables-addons and other trees.
    None: "TPROXY CLUSTERIP ACCOUNT CHAOS DELUDE DHCPMAC DNETMAP ECHO FLOWOFFLOAD FULLCONENAT IPMARK LOGMARK "
    "NETFLOW PROTO RAWDNAT RAWSNAT RTPENGINE SYSRQ TARPIT",
}
TARGETS = {name: verdict for verdict, names in _NAMES.items() for name in names.split()}

# Options of which the value is a free word, printed without quotes if it has only letters, digits, `_` and `-`: `-j`.
_FREE = {
    "-i", "-o", "--comment", "--log-prefix", "--nflog-prefix", "--ulog-prefix", "--name", "--helper", "--string",
    "--hashlimit-name", "--led-trigger-id", "--label", "--physdev-in", "--physdev-out", "--match-set", "--path",
}  # fmt: skip


def target_of(rule: str) -> tuple[str, str] | None:
    """(`-j` or `-g`, name) of a rule as iptables-save prints it; None without a target."""
    words = iter(blanked(rule).split())
    for word in words:
        if word in _FREE:
            next(words, None)
        elif word in {"-j", "-g"}:
            return word, next(words, "")
    return None
