"""What rules and the kernel change of many packets on their way: marks, addresses, what connection tracking says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from conntracker.rules.changes import GIVEN, HOPPED, LOST, ROUTING_KEY, Change, Derived, Lost, Past, Routed, Xor
from conntracker.rules.crowd import Crowd, Numbers, States, joined
from conntracker.rules.fields import CT_STATES, ROUTE_TYPES
from conntracker.rules.rows import ABSENT, KNOWN, UNKNOWN, width_in
from conntracker.rules.terms import Assign, Nat

__all__ = ["assign", "forward", "reroute", "translate", "watched"]

_INVALID, _LOCAL = CT_STATES.index("invalid"), ROUTE_TYPES.index("local")
# linux/netfilter/nf_conntrack_common.h; set where NAT changes anything (nf_nat_setup_info)
_IPS_SRC_NAT, _IPS_DST_NAT = 16, 32
_TYPE_OF = {"saddr": "saddr_type", "daddr": "daddr_type"}


def _full(field: str, crowd: Crowd) -> int:
    return (1 << width_in(field, crowd.rows.version)) - 1


def assign(crowd: Crowd, part: Assign, states: States) -> States:
    """A field's new value, in the packets that have it."""
    if part.field == "ct_state":
        return _with_state(crowd, part, states)
    having, lacking = crowd.has(part.field, states)
    out = [lacking]
    full, source_full = _full(part.field, crowd), 0
    unsure = np.zeros(len(having), np.bool_)
    if full & ~part.mask:
        unsure |= crowd.status(part.field, having) != KNOWN
    if part.source is not None:
        source_full = _full(part.source, crowd)
        status = crowd.status(part.source, having)
        out.append(having.at(status == ABSENT))  # xt_CONNMARK.c: without a flow, the mark stays
        unsure = (unsure | (status == UNKNOWN))[status != ABSENT]
        having = having.at(status != ABSENT)

    def assigned(past: Past) -> Past:
        return _typed(past.assigned(part, full, source_full), part.field)

    out.append(crowd.changed(having.at(~unsure), assigned))
    out.append(crowd.changed(having.at(unsure), lambda past: _typed(past.put(part.field, LOST), part.field)))
    return joined(out)


def _typed(past: Past, address: str) -> Past:
    """With the type of the address that is there now."""
    kind = _TYPE_OF.get(address)
    return past if kind is None else past.put(kind, Derived())


def _with_state(crowd: Crowd, part: Assign, states: States) -> States:
    """`notrack`, of packets of no flow; a zone (of no known value), before connection tracking."""
    if part.value is None:
        return crowd.changed(states, Past.elsewhere)
    found = crowd.values("ct_state", states)
    hidden = np.array([past.hidden is not None for past in crowd.pasts])[states.past]
    hidden |= (found.status == KNOWN) & (found.values == _INVALID)
    new = crowd.changed(states.at(hidden), lambda past: past.assigned(part, _full("ct_state", crowd), 0))
    return joined([new, states.at(~hidden)])


# --- routing ---


def forward(crowd: Crowd, states: States) -> States:
    """Behind routing, in front of the forward hook: the interface that the packet leaves by, a TTL that is one less."""
    routed = crowd.rows.is_routed
    full = _full("daddr", crowd)
    states = crowd.changed(
        states, lambda past: past.put("oif", Routed(past.value("daddr", full)) if routed else None)
    )  # fmt: skip
    if "ttl" not in crowd.programs.exact:
        return states
    out = []
    for past, part in crowd.parts(states):
        change = past.change("ttl")
        if isinstance(change, Xor) and change.fields:
            found = crowd.values("ttl", part)
            numbers = np.where(found.status == KNOWN, found.values.astype(np.int64), -1)
            out.append(crowd.become("ttl", part, numbers, lambda ttl: Xor(max(ttl, 1) - 1) if ttl >= 0 else LOST))
            continue
        out.append(crowd.changed(part, _hopped))
    return joined(out)


def _hopped(past: Past) -> Past:
    change = past.change("ttl")
    if isinstance(change, Xor):
        return past.put("ttl", Xor(max(change.constant, 1) - 1))
    return past.put("ttl", Xor(0, ((HOPPED, 0xFF),)) if change is None else LOST)


def watched(crowd: Crowd, states: States) -> States:
    """Behind a chain of type route: whether it changed what routing goes by."""
    out = []
    for past, part in crowd.parts(states):
        before = past.watched or GIVEN
        changed = np.full(len(part), past.remarked)
        for name in ROUTING_KEY:
            if past.change(name) != before.change(name):
                changed |= _differs(crowd, name, before, past, part.rows, nothing=True)
        out.append(crowd.changed(part.at(changed), lambda past: past.watched_over(True)))
        out.append(crowd.changed(part.at(~changed), lambda past: past.watched_over(False)))
    return joined(out)


def reroute(crowd: Crowd, states: States, hook: str) -> States:
    """Behind output, a packet with another destination than it was sent to is routed again (ip_route_me_harder)."""

    def remarked(past: Past) -> Past:
        return past.put("oif", LOST).watched_over(False) if past.remarked else past

    out = []
    for past, part in crowd.parts(states):
        if past.change("daddr") is None or hook != "output":
            out.append(crowd.changed(part, remarked))
            continue
        changed = _differs(crowd, "daddr", GIVEN, past, part.rows, nothing=True)
        out.append(crowd.changed(part.at(~changed), remarked))
        moved = crowd.changed(part.at(changed), lambda past: past.watched_over(False))
        types = crowd.values("daddr_type", moved)
        numbers = crowd.rows.routed(crowd.values("daddr", moved))
        numbers[types.status != KNOWN] = -1
        numbers[(types.status == KNOWN) & (types.values == _LOCAL)] = crowd.rows.number_of("lo")
        out.append(crowd.become("oif", moved, numbers, lambda number: Xor(number) if number >= 0 else LOST))
    return joined(out)


def _differs(crowd: Crowd, field: str, before: Past, after: Past, rows: Numbers, *, nothing: bool) -> NDArray[np.bool_]:
    """Whether a field became another, or one that is not known: with `nothing`, only if it was known before."""
    old, new = (crowd.rows.values(field, past, rows) for past in (before, after))
    same = old.values == new.values
    other = (old.status == UNKNOWN) | ~(same.all(axis=1) if same.ndim == 2 else same)
    lost = (old.status != UNKNOWN) if nothing else np.ones(len(rows), np.bool_)
    return np.where(new.status == UNKNOWN, lost, (new.status == KNOWN) & other)


# --- NAT ---


@dataclass(frozen=True, slots=True)
class _Side:
    """The end of a packet's way that is translated."""

    address: str
    port: str
    direction: str
    bit: int


_SOURCE = _Side("saddr", "sport", "src", _IPS_SRC_NAT)
_DESTINATION = _Side("daddr", "dport", "dst", _IPS_DST_NAT)


def translate(crowd: Crowd, nat: Nat, hook: str, states: States) -> States:
    """A new destination before routing, a new source behind it."""
    side = _DESTINATION if hook in {"prerouting", "output"} else _SOURCE
    out = []
    for before, part in crowd.parts(states):
        made = _translated(crowd, nat, hook, side, part)
        out.append(_marked(crowd, side, before, made) if "ct_status" in crowd.programs.exact else made)
    return crowd.changed(joined(out), lambda past: past.toward(frozenset((side.direction,))))


def _translated(crowd: Crowd, nat: Nat, hook: str, side: _Side, states: States) -> States:
    kind = _TYPE_OF[side.address]
    if nat.kind == "masquerade" or (nat.kind == "redirect" and nat.addresses is None):
        states = _to_own(crowd, nat, hook, states, side.address)
        states = crowd.changed(states, lambda past: past.put(kind, Xor(_LOCAL)))
    elif nat.addresses is not None or (nat.kind in {"dnat", "snat"} and nat.ports is None):
        full = _full(side.address, crowd)
        states = crowd.changed(states, lambda past: _readdressed(past, nat, side.address, full).put(kind, Derived()))
    if nat.ports is None:
        return states
    low, high = nat.ports
    having, lacking = crowd.has(side.port, states)

    def ported(past: Past) -> Past:
        if low == high:
            return past.put(side.port, Xor(low))
        return past.put(side.port, LOST).within(side.port, ((low, high),))

    return joined([crowd.changed(having, ported), lacking])


def _marked(crowd: Crowd, side: _Side, before: Past, states: States) -> States:
    """With the bit of the flow's status that says so, where anything became another."""
    out = []
    part = Assign("ct_status", side.bit, side.bit)
    for after, some in crowd.parts(states):
        changed = crowd.status("ct_status", some) == KNOWN
        fields = (_differs(crowd, name, before, after, some.rows, nothing=False) for name in (side.address, side.port))
        changed &= np.logical_or(*fields)
        full = _full("ct_status", crowd)
        out += [crowd.changed(some.at(changed), lambda past: past.assigned(part, full, 0)), some.at(~changed)]  # noqa: B023
    return joined(out)


def _to_own(crowd: Crowd, nat: Nat, hook: str, states: States, address: str) -> States:
    rows = crowd.rows
    if nat.kind == "redirect" and hook == "output":
        own = Xor((127 << 24) + 1 if rows.version == 4 else 1)
        return crowd.changed(states, lambda past: past.put(address, own))
    if rows.host is None or not rows.host.primary:
        return crowd.changed(states, lambda past: past.put(address, LOST))
    primary = rows.host.primary

    def own_of(number: int) -> Change:
        found = primary.get((rows.version, rows.names[number])) if number >= 0 else None
        return LOST if found is None else Xor(found)

    found = crowd.values("oif" if nat.kind == "masquerade" else "iif", states)
    numbers = np.where(found.status == KNOWN, found.values.astype(np.int64), -1)
    return crowd.become(address, states, numbers, own_of)


def _readdressed(past: Past, nat: Nat, address: str, full: int) -> Past:
    if nat.addresses is None:
        return past.put(address, LOST)
    low, high = nat.addresses
    if low == high:
        return past.put(address, Xor(low))
    old = past.value(address, full) if nat.kind == "netmap" else LOST
    new = old if isinstance(old, Lost) else old.masked((high - low) & ~low).xor(Xor(low))
    return past.put(address, new).within(address, ((low, high),))
