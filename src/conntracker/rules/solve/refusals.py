"""What a refused packet is answered with, in nft's words, whoever's rule it is: equal answers have equal texts."""

from __future__ import annotations

__all__ = ["refusal"]

# icmpx names an answer of both IP versions (nft_reject_icmp_code, nft_reject_icmpv6_code, net/netfilter/nft_reject.c).
_BOTH = {
    "port-unreachable": ("port-unreachable", "port-unreachable"),
    "admin-prohibited": ("admin-prohibited", "admin-prohibited"),
    "no-route": ("net-unreachable", "no-route"),
    "host-unreachable": ("host-unreachable", "addr-unreachable"),
}
# iptables' names that are not nft's (man iptables-extensions, REJECT).
_IPTABLES = {"proto-unreachable": "prot-unreachable", "adm-prohibited": "admin-prohibited"}


def refusal(text: str, version: int) -> str:
    """The answer of a `reject`, for packets of an IP version; texts that are not known stay as they are.

    text   of the verdict: `with icmpx no-route`, `icmp6-no-route`, or nothing for what is usual
    """
    words = text.removeprefix("with ").replace(" type ", " ") or "icmpx port-unreachable"
    if words in {"tcp reset", "tcp-reset"}:
        return "with tcp reset"
    kind, name = _iptables(words) if words.startswith(("icmp-", "icmp6-")) else words.partition(" ")[::2]
    if kind == "icmpx" and name in _BOTH:
        kind, name = ("icmp", _BOTH[name][0]) if version == 4 else ("icmpv6", _BOTH[name][1])
    return f"with {kind} {name}" if kind in {"icmp", "icmpv6"} else text


def _iptables(words: str) -> tuple[str, str]:
    kind, _, name = words.partition("-")
    return "icmp" if kind == "icmp" else "icmpv6", _IPTABLES.get(name, name)
