"""What the targets of iptables do (net/netfilter/xt_*.c, net/ipv4/netfilter/ipt_*.c, net/netfilter/nf_nat_core.c)."""

from __future__ import annotations

from collections.abc import Callable

from conntracker.rules.iptables.matches import dscp_class, tos_value
from conntracker.rules.iptables.values import Bad, address, address_range, number, value_and_mask
from conntracker.rules.iptables.words import Extension, Option, quoted
from conntracker.rules.targets import TARGETS
from conntracker.rules.terms import Assign, Atom, Branches, Effect, Nat, Part, Verdict

__all__ = ["is_target", "parts_of"]

_ALL = 0xFFFFFFFF
_UNTRACKED = 4
_VERDICTS = {"ACCEPT": "accept", "DROP": "drop", "RETURN": "return"}


def is_target(name: str) -> bool:
    """Whether it is a target that is known here, and so no chain."""
    return name in TARGETS


def parts_of(target: Extension, version: int) -> tuple[Part, ...] | None:
    """What a target does; None for one whose outcome cannot be told. Raises Bad."""
    name = target.name
    for option in target.options:
        if option.negated:
            raise Bad(f"--{option.name} cannot be negated", option.word)
    if name in _VERDICTS:
        return (Verdict(_VERDICTS[name]),)
    if name in {"QUEUE", "NFQUEUE"}:
        return (Verdict("queue", text=target.text()),)
    if name == "REJECT":
        with_what = target.find("reject-with")
        default = "icmp-port-unreachable" if version == 4 else "icmp6-port-unreachable"
        return (Verdict("reject", text=with_what.values[0] if with_what else default),)
    if name in _TARGETS:
        return tuple(_TARGETS[name](target, version))
    return (Effect(name.lower(), _text(target)),) if TARGETS.get(name) == "continue" else None


def _text(target: Extension) -> str:
    return f"{quoted(target.name)} {target.text()}".rstrip()


def _one(target: Extension, *names: str) -> Option:
    """The only option out of several. Raises Bad if there is none, or more."""
    found = [option for option in target.options if option.name in names]
    if len(found) != 1:
        raise Bad(f"{target.name} needs one of {', '.join(f'--{name}' for name in names)}", target.word)
    return found[0]


# --- marks ---


def _marked(option: Option) -> tuple[int, int]:
    """(value, mask): the mark becomes (old & ~mask) ^ value."""
    try:
        if option.name in {"set-mark", "set-xmark"}:
            value, mask = value_and_mask(option.values[0])
            return value, mask if option.name == "set-xmark" else mask | value
        bits = number(option.values[0], _ALL)
    except Bad as bad:
        raise Bad(bad.what, option.word + 1) from None
    return {"and-mark": (0, _ALL ^ bits), "or-mark": (bits, bits), "xor-mark": (bits, 0)}[option.name]


_SET_MARK = ("set-xmark", "set-mark", "and-mark", "or-mark", "xor-mark")


def _mark(target: Extension, version: int) -> list[Part]:
    value, mask = _marked(_one(target, *_SET_MARK))
    return [Assign("mark", value, mask)]


def _connmark(target: Extension, version: int) -> list[Part]:
    """connmark_tg: set, or save the packet's mark in the flow's, or restore it from there."""
    how = _one(target, *_SET_MARK, "save-mark", "restore-mark")
    masks = {option.name: value_and_mask(option.values[0])[0] for option in target.options if "mask" in option.name}
    of_flow = masks.get("ctmask", masks.get("mask", _ALL))
    of_packet = masks.get("nfmask", masks.get("mask", _ALL))
    shifted = target.find("left-shift-mark") or target.find("right-shift-mark")
    if how.name == "save-mark":
        if shifted:
            return [Assign("ct_mark", None, _ALL)]
        return [Assign("ct_mark", 0, of_flow, "mark", of_packet)]
    if how.name == "restore-mark":
        if shifted:
            return [Assign("mark", None, _ALL)]
        return [Assign("mark", 0, of_packet, "ct_mark", of_flow)]
    value, mask = _marked(how)
    return [Assign("ct_mark", None, _ALL) if shifted else Assign("ct_mark", value, mask)]


# --- other fields ---


def _hops(target: Extension, version: int) -> list[Part]:
    name = target.name.lower()
    option = _one(target, *(f"{name}-{how}" for how in ("set", "inc", "dec")))
    value = number(option.values[0], 0xFF)
    return [Assign("ttl", value if option.name.endswith("set") else None, 0xFF)]


def _tos(target: Extension, version: int) -> list[Part]:
    option = _one(target, "set-tos", "and-tos", "or-tos", "xor-tos")
    if option.name == "set-tos":
        value, mask = tos_value(option.values[0])
        return [Assign("tos", value, mask)]
    bits = number(option.values[0], 0xFF)
    value, mask = {"and-tos": (0, 0xFF ^ bits), "or-tos": (bits, bits), "xor-tos": (bits, 0)}[option.name]
    return [Assign("tos", value, mask)]


def _dscp(target: Extension, version: int) -> list[Part]:
    option = _one(target, "set-dscp", "set-dscp-class")
    word = option.values[0]
    value = number(word, 63) if option.name == "set-dscp" else dscp_class(word)
    return [Assign("tos", value << 2, 0xFC)]


def _ecn(target: Extension, version: int) -> list[Part]:
    parts: list[Part] = []
    for option in target.options:
        if option.name == "ecn-tcp-remove":
            parts.append(Assign("tcp_flags", 0, 64 | 128))
        elif option.name == "ecn-ip-ect":
            parts.append(Assign("tos", number(option.values[0], 3), 3))
        else:
            bit = 64 if option.name == "ecn-tcp-ece" else 128
            parts.append(Assign("tcp_flags", bit * number(option.values[0], 1), bit))
    return parts


def _untracked(target: Extension, version: int) -> list[Part]:
    if target.name == "NOTRACK" or target.find("notrack"):
        return [Assign("ct_state", _UNTRACKED, 7)]
    zone = any(option.name.startswith("zone") for option in target.options)
    return [Effect("ct", _text(target)), *([Assign("ct_state", None, 7)] if zone else [])]


def _mss(target: Extension, version: int) -> list[Part]:
    # A SYN without the option gets one, and is four bytes longer then (xt_TCPMSS.c).
    return [Effect("tcpmss", _text(target)), Assign("length", None, 0xFFFF)]


def _hashed_mark(target: Extension, version: int) -> list[Part]:
    return [Assign("mark", None, _ALL)]


def _to_proxy(target: Extension, version: int) -> list[Part]:
    """tproxy_tg4 (net/netfilter/xt_TPROXY.c): accept, with a mark, where a socket takes the packet; else drop."""
    text = f"-j {_text(target)}"
    taken = Branches((
        (Atom(target.name, text), Verdict("accept")),
        (Atom(target.name, text, negated=True), Verdict("drop")),
    ))  # fmt: skip
    mark = target.find("tproxy-mark")
    value, mask = (0, 0) if mark is None else value_and_mask(mark.values[0])
    return [*([Assign("mark", value, mask)] if mask else []), taken]


def _prefix(target: Extension, version: int) -> list[Part]:
    # The checksum stays right by a change behind the prefix (ip6t_NPT.c): the new address is not worked out here.
    return [Assign("saddr" if target.name == "SNPT" else "daddr", None, (1 << 128) - 1)]


# --- NAT ---


def _nat(target: Extension, version: int) -> list[Part]:
    to = target.find("to-destination" if target.name == "DNAT" else "to-source")
    if to is None:
        raise Bad(f"{target.name} needs where to", target.word)
    addresses, ports = _where(to.values[0], version)
    return [Nat(target.name.lower(), addresses, ports, _text(target))]


def _where(text: str, version: int) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """`[address[-address]][:port[-port[/base]]]`, IPv6 addresses in brackets where ports follow."""
    addresses, found, ports = text, "", ""
    if version == 4:
        addresses, found, ports = text.partition(":")
    elif text.startswith("["):
        addresses, found, ports = text.rpartition("]")
        found, ports = ports[:1], ports[1:]
        addresses = addresses.replace("[", "").replace("]", "")
    elif text.startswith(":") and not text.startswith("::"):
        addresses, found, ports = "", ":", text[1:]
    if found not in {"", ":"} or (not addresses and not ports):
        raise Bad(f"no address or port: {text!r}")
    low_high = address_range(addresses, version) if addresses else None
    if low_high and low_high[0] > low_high[1]:
        raise Bad(f"the range {text} is upside down")
    return low_high, _port_range(ports) if found else None


def _port_range(text: str) -> tuple[int, int]:
    low, found, high = text.partition("/")[0].partition("-")
    first = number(low, 0xFFFF, "port")
    last = number(high, 0xFFFF, "port") if found else first
    if first > last:
        raise Bad(f"the range {text} is upside down")
    return first, last


def _here(target: Extension, version: int) -> list[Part]:
    ports = target.find("to-ports")
    where = _port_range(ports.values[0]) if ports else None
    return [Nat(target.name.lower(), None, where, _text(target))]


def _netmap(target: Extension, version: int) -> list[Part]:
    """The prefix becomes another one; the other bits stay, so that any address of it may come out."""
    value, mask = address(_one(target, "to").values[0], version)
    return [Nat("netmap", (value, value | ((1 << (32 if version == 4 else 128)) - 1 ^ mask)), None, _text(target))]


_TARGETS: dict[str, Callable[[Extension, int], list[Part]]] = {
    "MARK": _mark, "CONNMARK": _connmark, "TTL": _hops, "HL": _hops, "TOS": _tos, "DSCP": _dscp, "ECN": _ecn,
    "TCPMSS": _mss, "TPROXY": _to_proxy, "CT": _untracked, "NOTRACK": _untracked, "HMARK": _hashed_mark,
    "SNPT": _prefix, "DNPT": _prefix,
    "DNAT": _nat, "SNAT": _nat, "MASQUERADE": _here, "REDIRECT": _here, "NETMAP": _netmap,
}  # fmt: skip
