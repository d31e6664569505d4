"""The matches of iptables whose options bear on each other: conntrack, state, addrtype, owner, rpfilter.

Each takes the match, the IP version and the match's own text, and gives what it asks.
"""

from __future__ import annotations

from collections.abc import Callable

from conntracker.rules.fields import CT_STATES, ROUTE_TYPES
from conntracker.rules.intervals import Intervals, complement, intersect, normal, single
from conntracker.rules.iptables.values import FAMILY, Bad, any_bit, inside, is_number, number
from conntracker.rules.iptables.words import Extension, Option
from conntracker.rules.terms import AnyOf, Atom, Box, In, Term

__all__ = ["TOGETHER"]

_SRC_NAT, _DST_NAT = 1 << 4, 1 << 5  # linux/nf_conntrack_common.h (IPS_SRC_NAT, IPS_DST_NAT)
_STATUS = {"NONE": 0, "EXPECTED": 1, "SEEN_REPLY": 2, "ASSURED": 4, "CONFIRMED": 8}
_NO_FLOW = normal([(0, 0), (4, 4)])  # the states invalid and untracked
_FLOW = normal([(1, 3)])
_NOWHERE: Box = (In("family", ()),)


def _words(option: Option) -> list[str]:
    return [word.upper() for word in option.values[0].split(",")]


def _state(match: Extension, version: int, text: str) -> tuple[Term, ...]:
    if not match.options:
        raise Bad("state needs --state")
    states, status = _states(match.options[0], nat=False)
    return _state_terms(states, status, match.options[0].negated)


def _states(option: Option, nat: bool) -> tuple[Intervals, int]:
    """(states, bits of the status) that a list of states names."""
    states, status = [], 0
    for word in _words(option):
        if word.lower() in CT_STATES:
            states.append(CT_STATES.index(word.lower()))
        elif nat and word in {"SNAT", "DNAT"}:
            status |= _SRC_NAT if word == "SNAT" else _DST_NAT
        else:
            raise Bad(f"no state of a connection: {word!r}", option.word + option.negated + 1)
    return normal((state, state) for state in states), status


def _state_terms(states: Intervals, status: int, negated: bool) -> tuple[Term, ...]:
    """Packets without a flow are invalid or untracked, and have no status (conntrack_mt, net/netfilter/xt_conntrack.c).

    Negated, `DNAT` holds for them.
    """
    if negated:
        states = complement(states, 0, len(CT_STATES) - 1)
    kept = In("ct_state", states)
    if not status:
        return (kept,)
    if not negated:
        nat = any_bit("ct_status", status)
        return (AnyOf(((kept,), (nat,))),) if states else (nat,)
    no_nat = any_bit("ct_status", status, negated=True)
    if not intersect(states, _NO_FLOW):
        return kept, no_nat
    without = In("ct_state", _NO_FLOW)
    every = states == ((0, len(CT_STATES) - 1),)
    return (*(() if every else (kept,)), AnyOf(((without,), (no_nat,))))


def _conntrack(match: Extension, version: int, text: str) -> tuple[Term, ...]:
    state = match.find("ctstate")
    others = [option for option in match.options if option is not state]
    asked = tuple(_of_flow(option) for option in others)
    if state is None:
        return asked or _raise("conntrack needs an option")
    states, status = _states(state, nat=True)
    terms = _state_terms(states, status, state.negated)
    if not others or not intersect(_kept(states, state.negated), _NO_FLOW):
        return (*terms, *asked)
    # conntrack_mt: a packet without a flow, if it is in a state asked for, is asked nothing else.
    tests = [term for term in (*terms, *asked) if isinstance(term, In)]
    if len(tests) < len(terms) + len(asked):
        return (Atom("conntrack", text),)
    kept = _kept(states, state.negated)
    with_flow = In("ct_state", intersect(kept, _FLOW)), *tests[1:]
    without = (In("ct_state", intersect(kept, _NO_FLOW)),)
    return (AnyOf((without, with_flow)),) if with_flow[0].values else without


def _kept(states: Intervals, negated: bool) -> Intervals:
    return complement(states, 0, len(CT_STATES) - 1) if negated else states


def _of_flow(option: Option) -> Term:
    if option.name == "ctstatus":
        bits = 0
        for word in _words(option):
            if word not in _STATUS:
                raise Bad(f"no status of a connection: {word!r}", option.word + option.negated + 1)
            bits |= _STATUS[word]
        return any_bit("ct_status", bits, option.negated)
    if option.name == "ctdir":
        word = option.values[0].upper()
        if word not in {"ORIGINAL", "REPLY"}:
            raise Bad(f"no direction: {word!r}", option.word + option.negated + 1)
        return inside("ct_direction", single(int(word == "REPLY")), option.negated)
    # ctproto is the flow's: of an ICMP error that of the packet that it is about. The others are the flow's addresses.
    one = Extension("conntrack", option.word, None, [Option(option.name, option.values, False, option.word)])
    return Atom(option.name, f"-m conntrack {one.text()}", negated=option.negated)


def _raise(what: str) -> tuple[Term, ...]:
    raise Bad(what)


def _address_type(match: Extension, version: int, text: str) -> tuple[Term, ...]:
    if match.find("limit-iface-in") or match.find("limit-iface-out"):
        return (Atom("addrtype", text),)
    if not match.options:
        raise Bad("addrtype needs --src-type or --dst-type")
    terms: list[Term] = []
    for option in match.options:
        side = "saddr" if option.name == "src-type" else "daddr"
        types = set(_words(option))
        if unknown := types - {name.upper() for name in ROUTE_TYPES}:
            raise Bad(f"no type of an address: {min(unknown)!r}", option.word + option.negated + 1)
        if version == 4:
            numbers = normal(single(ROUTE_TYPES.index(name.lower()))[0] for name in types)
            terms.append(inside(f"{side}_type", numbers, option.negated))
        else:
            terms += _address_type_6(side, types, option)
    return tuple(terms)


# By the address itself (__ipv6_addr_type): unicast is all but `::`, ::ffff:0:0/96 and ff00::/8.
_ADDRESSES_6 = {
    "MULTICAST": ((0xFF << 120, (1 << 128) - 1),),
    "UNSPEC": single(0),
    "UNICAST": ((1, (0xFFFF << 32) - 1), (1 << 48, (0xFF << 120) - 1)),
}
# By the route (match_lookup_rt6). A route that refuses is of one of four types.
_ROUTES_6 = {"ANYCAST": ("anycast",), "LOCAL": ("local",),
             "UNREACHABLE": ("unreachable", "blackhole", "prohibit", "throw")}  # fmt: skip


def _address_type_6(side: str, types: set[str], option: Option) -> tuple[Term, ...]:
    """match_type6 (net/netfilter/xt_addrtype.c): every class of address asked for, and one of the types of route."""
    if wrong := types - _ADDRESSES_6.keys() - _ROUTES_6.keys():
        raise Bad(f"no type of an IPv6 address: {min(wrong)}", option.word + option.negated + 1)
    tests = [In(side, _ADDRESSES_6[name]) for name in sorted(types & _ADDRESSES_6.keys())]
    routes = [ROUTE_TYPES.index(route) for name in types & _ROUTES_6.keys() for route in _ROUTES_6[name]]
    if routes:
        tests.append(In(f"{side}_type", normal((route, route) for route in routes)))
    version = (FAMILY[6],) if types & _ADDRESSES_6.keys() else ()
    if not option.negated:
        return *version, *tests
    if len(tests) > 1:
        return *version, AnyOf((tuple(tests),), negated=True)
    return *version, inside(tests[0].field, tests[0].values, True, 6)


def _owner(match: Extension, version: int, text: str) -> tuple[Term, ...]:
    """owner_mt (net/netfilter/xt_owner.c): without a socket it holds if, and only if, every option is negated."""
    if match.find("suppl-groups"):
        return (Atom("owner", text),)
    if not match.options:
        raise Bad("owner needs an option")
    terms: list[Term] = []
    all_negated = all(option.negated or option.name == "socket-exists" for option in match.options)
    for option in match.options:
        if option.name == "socket-exists":
            # Not the same as having an owner: sockets of the kernel have no file, so no owner.
            terms.append(Atom("owner", "-m owner --socket-exists", negated=option.negated))
        else:
            terms.append(_owned(option, all_negated))
    return tuple(terms)


def _owned(option: Option, all_negated: bool) -> Term:
    field = "skuid" if option.name == "uid-owner" else "skgid"
    word = option.values[0]
    low, found, high = word.partition("-")
    if word == "root":
        low = "0"
    elif not is_number(low) or (found and not is_number(high)):  # the name of a user of that host
        return Atom("owner", f"-m owner --{option.name} {word}", negated=option.negated)
    first, last = number(low, 0xFFFFFFFE), number(high if found else low, 0xFFFFFFFE)
    owned = inside(field, ((first, last),) if first <= last else (), option.negated and not all_negated)
    # None of the boxes, also where there is no owner: the first box is one that every packet has the fields of.
    return AnyOf((_NOWHERE, (owned,)), negated=True) if option.negated and all_negated else owned


def _reverse_path(match: Extension, version: int, text: str) -> tuple[Term, ...]:
    names = {option.name for option in match.options}
    if any(option.negated for option in match.options):
        raise Bad("options of rpfilter cannot be negated")
    if names <= {"invert"}:
        return (In("reverse_path", single(0 if names else 1)),)
    kept = [option for option in match.options if option.name != "invert"]
    plain = Extension(match.name, match.word, match.table, kept)
    return (Atom("rpfilter", f"-m rpfilter {plain.text()}", negated="invert" in names),)


TOGETHER: dict[str, Callable[[Extension, int, str], tuple[Term, ...]]] = {
    "conntrack": _conntrack,
    "state": _state,
    "addrtype": _address_type,
    "owner": _owner,
    "rpfilter": _reverse_path,
}
