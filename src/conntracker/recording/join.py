"""Which flow each traced packet belongs to: a join in SQL, through NAT, by conntrack id, tuple and time.

A flow has two tuples, the original O and that of its replies, R. Packets in the original direction carry O as they
come, O's source and R's source as their destination between DNAT and SNAT, and R turned round as they leave; replies
carry R, and the others turned round. An ICMP error belongs to the flow of the packet that it is about; where that is
not known, its conntrack id is that flow's (net/netfilter/nf_conntrack_proto_icmp.c). A trace has no zone: where several
flows are equally near, all of them get it, marked as not certain.
"""

from __future__ import annotations

import re
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from conntracker.recording.traces import TRACES
from conntracker.recording.views import condition, timestamp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conntracker.filters import Filter
    from conntracker.recording.reader import Recording

__all__ = ["MACROS", "REQUESTS", "WAY", "joined", "matching", "seen_inside"]

# A trace and the events of its flow are read from two sockets, each a while after the fact: as far from the lifetime
# of a flow (µs) a trace may still be its own.
SLACK = 5_000_000

# What makes packets of a flow one way.
WAY = tuple(name for name, _, _ in TRACES.columns if name not in ("first_seen", "last_seen", "packets", "ct_id"))

# Types of ICMP and ICMPv6 and their answers: invmap of net/netfilter/nf_conntrack_proto_icmp.c and _icmpv6.c
ANSWERS = {8: 0, 13: 14, 15: 16, 17: 18, 128: 129, 139: 140}
REQUESTS = {answer: request for request, answer in ANSWERS.items()}
NO_TYPE = 65535
# RFC 792, RFC 4443
ERROR = "(proto = 'icmp' AND icmp_type IN (3, 4, 5, 11, 12) OR proto = 'icmpv6' AND icmp_type IN (1, 2, 3, 4))"
_CASES = " ".join(f"WHEN {a} THEN {b} WHEN {b} THEN {a}" for a, b in ANSWERS.items())
MACROS = (
    f"CREATE MACRO answer(t) AS ((CASE t >> 8 {_CASES} ELSE t >> 8 END)::USMALLINT << 8 | (t & 255))::USMALLINT",
    # The same for both directions. What has it in common is then looked at closely.
    "CREATE MACRO tuple_hash(part, family, proto, t, a, b) AS"
    " xor(xor(hash(a), hash(b)), hash(part, family, proto, least(t, answer(t))))",
)


def _end(address: str, *ports: str) -> str:
    """One end of a tuple: its address and its port, for ICMP the id."""
    return f"{{'hi': {address}_hi, 'lo': {address}_lo, 'port': coalesce({', '.join(ports)}, 0)::USMALLINT}}"


def _tuple(prefix: str, kind: str = "") -> str:
    """A tuple as a struct; t is type << 8 | code of ICMP."""
    ends = (("src", "sport"), ("dst", "dport"))
    source, destination = (_end(f"{prefix}{end}", f"{prefix}{port}", f"{prefix}icmp_id") for end, port in ends)
    t = f"coalesce({kind}icmp_type::USMALLINT << 8 | {kind}icmp_code, {NO_TYPE})::USMALLINT"
    return f"{{'proto': {kind}proto, 't': {t}, 'src': {source}, 'dst': {destination}}}"


def _distinct(hashes: str, id: str) -> str:
    return f"list_distinct([{hashes}, CASE WHEN {id} IS NOT NULL THEN hash(part, {id}) END])"


def _flows(where: str) -> str:
    """The flows with their tuples o and r, and a hash of each pair of ends that their packets carry, and of the id."""
    reply = (
        f"{{'src': {_end('reply_src', 'reply_sport', 'reply_icmp_id', 'icmp_id')},"
        f" 'dst': {_end('reply_dst', 'reply_dport', 'reply_icmp_id', 'icmp_id')}}}"
    )
    hashes = ", ".join(
        f"tuple_hash(part, family, o.proto, o.t, {a}, {b})"
        for a, b in (("o.src", "o.dst"), ("o.src", "r.src"), ("r.src", "r.dst"))
    )
    return (
        f"SELECT *, {_distinct(hashes, 'id')} AS hashes FROM (SELECT part, flow, nullif(id, 0) AS id, family,"  # noqa: S608
        f" {_tuple('')} AS o, {reply} AS r, epoch_us(least(start, first_seen)) AS begin,"
        ' CASE WHEN "end" IS NOT NULL THEN epoch_us("end") WHEN isfinite(recording_end) THEN epoch_us(recording_end)'
        f" ELSE {2**62} END AS finish FROM flow_rows WHERE {where})"
    )


def _traces(matches: str, inside: str) -> str:
    """The rows of traces, numbered, with the tuples u (of the packet that an error is about, or of the packet itself as
    it came) and l (as it left), a hash of each, and of the id; `way` and `unit` stand for the columns of WAY, and for
    the tuple of the packet itself.
    """
    way = f"[{', '.join(f'hash({first}, {chr(44).join(WAY)})' for first in (1, 2))}]"
    hashes = ", ".join(f"tuple_hash(part, family, {u}.proto, {u}.t, {u}.src, {u}.dst)" for u in ("u", "l"))
    return (
        f"SELECT *, {_distinct(hashes, 'ct_id')} AS hashes, {way} AS way, hash(part, family, {_tuple('')}) AS unit"  # noqa: S608
        " FROM (SELECT * EXCLUDE (segment), row_number() OVER () AS n,"
        f" CASE WHEN about_proto IS NULL THEN {_tuple('')} ELSE {_tuple('about_', 'about_')} END AS u,"
        f" CASE WHEN about_proto IS NULL THEN {_tuple('left_')} ELSE u END AS l,"
        f" {ERROR} AS error, {matches} AS matches, {inside} AS inside FROM trace_rows)"
    )


# How near a flow is: by id and tuple, by id, and where one of the ids is not known, by time, and at last by being the
# very tuple, not one between two NATs.
_GAP = "greatest(f.begin - epoch_us(t.last_seen), epoch_us(t.first_seen) - f.finish, 0)"
_VERY = "(t.u.src = f.o.src AND t.u.dst = f.o.dst OR t.u.src = f.r.src AND t.u.dst = f.r.dst)"
_SAME_PROTO = "(t.u.proto = f.o.proto OR t.error AND t.about_proto IS NULL)"
_TIE = (
    "{'id': CASE WHEN t.ct_id = f.id THEN CASE WHEN direction = 'unknown' THEN 1 ELSE 0 END ELSE 2 END,"
    f" 'gap': {_GAP}, 'far': CASE WHEN {_VERY} THEN 0 ELSE 1 END}}"
)


def _goes(u: str) -> str:
    """Whether a tuple is one of the flow's original direction."""
    same = f"t.{u}.proto = f.o.proto AND t.{u}.t = f.o.t"
    return (
        f"{same} AND (t.{u}.src = f.o.src AND t.{u}.dst IN (f.o.dst, f.r.src)"
        f" OR t.{u}.src = f.r.dst AND t.{u}.dst = f.r.src)"
    )


def _comes(u: str) -> str:
    """Whether a tuple is one of the flow's replies."""
    same = f"t.{u}.proto = f.o.proto AND t.{u}.t = answer(f.o.t)"
    return (
        f"{same} AND (t.{u}.src = f.r.src AND t.{u}.dst IN (f.r.dst, f.o.src)"
        f" OR t.{u}.src = f.o.dst AND t.{u}.dst = f.o.src)"
    )


def _pairs(traces: str, flows: str) -> str:
    """Each trace with the flow that is nearest, or the flows that are."""
    direction = (
        f"CASE WHEN {_goes('u')} THEN 'original' WHEN {_comes('u')} THEN 'reply' WHEN {_goes('l')} THEN 'original'"
        f" WHEN {_comes('l')} THEN 'reply' WHEN t.ct_id = f.id AND {_SAME_PROTO} THEN 'unknown' END"
    )
    found = (
        f"SELECT t.n, t.error, f.flow, {direction} AS direction, {_TIE} AS tie"  # noqa: S608
        f" FROM (SELECT *, unnest(hashes) AS hash FROM {traces}) t"
        f" JOIN (SELECT *, unnest(hashes) AS hash FROM {flows}) f ON t.hash = f.hash"
        f" WHERE t.part = f.part AND t.family = f.family AND {_GAP} <= {SLACK}"
        " AND (t.ct_id IS NULL OR f.id IS NULL OR t.ct_id = f.id)"
    )
    return (
        f"SELECT DISTINCT n, flow, CASE WHEN error THEN 'error' ELSE direction END AS direction FROM ({found})"  # noqa: S608
        " WHERE direction IS NOT NULL QUALIFY rank() OVER (PARTITION BY n ORDER BY tie) = 1"
    )


def _ways(traces: str, pairs: str, wanted: str, only: str) -> str:
    """The ways of wanted flows, and of packets without a flow: an error with the packet that it is about if that was
    traced, else alone.
    """
    lone = f"(SELECT t.* FROM {traces} t ANTI JOIN {pairs} p ON t.n = p.n)"  # noqa: S608
    units = (
        f"SELECT n, min(x.unit) AS unit FROM (SELECT n, part, unnest(hashes) AS hash FROM {lone} WHERE error) t"  # noqa: S608
        f" JOIN (SELECT part, unit, unnest(hashes) AS hash FROM {lone} WHERE NOT error AND matches AND inside) x"
        " ON t.part = x.part AND t.hash = x.hash GROUP BY n"
    )
    columns = "t.n, t.part, t.way, t.first_seen, t.last_seen, t.packets, t.inside"
    of_flows = (
        f"SELECT {columns}, p.flow, NULL AS unit, p.direction, count(*) OVER (PARTITION BY t.n) = 1 AS certain"  # noqa: S608
        f" FROM {traces} t JOIN {pairs} p ON t.n = p.n JOIN {wanted} w ON t.part = w.part AND p.flow = w.flow"
    )
    of_none = (
        f"SELECT {columns}, NULL AS flow, coalesce(x.unit, t.unit) AS unit,"  # noqa: S608
        " CASE WHEN x.unit IS NULL THEN 'original' ELSE 'error' END AS direction, true AS certain"
        f" FROM {lone} t LEFT JOIN ({units}) x ON t.n = x.n WHERE t.matches AND t.inside OR x.unit IS NOT NULL"
    )
    # Grouped by few and narrow columns; the others are those of any row of a group.
    key = "part, flow, unit, direction, certain, way"
    sums = "min(first_seen) AS first_seen, max(last_seen) AS last_seen, sum(packets)::UBIGINT AS packets"
    groups = (
        f"SELECT {key}, {sums}, min(n) AS place FROM ({of_flows} UNION ALL BY NAME {of_none})"  # noqa: S608
        f" WHERE {only} GROUP BY {key}"
    )
    others = ", ".join(f"t.{name}" for name in WAY)
    return f"SELECT g.* EXCLUDE (way), {others} FROM ({groups}) g JOIN {traces} t ON g.place = t.n"  # noqa: S608


@contextmanager
def joined(
    recording: Recording,
    filter: Filter | None = None,
    since: int | None = None,
    until: int | None = None,
    only_inside: bool = False,
) -> Iterator[tuple[str, str]]:
    """The names of two tables, there as long as the block lasts.

    The first has `part` and `flow` of every flow that is wanted (see Recording.flows). The second has their ways, the
    columns of WAY with first_seen, last_seen, packets, `place` (the smaller, the earlier) and

        part, flow    the flow; null for packets without one
        unit          for those, the same number for all that stand together
        direction     original, reply, error (an ICMP error about it) or unknown
        certain       false if another flow may have it as well

    and so have packets without a flow that the filter wants and that were seen since..until. Of a flow that is wanted
    all ways are there, or with `only_inside` those seen since..until.
    """
    narrow = bool(filter) or since is not None or until is not None
    with ExitStack() as stack:

        def kept(query: str) -> str:
            return stack.enter_context(recording.kept(query))

        wanted = kept(_flows(condition(filter, since, until)))
        rows = _traces(matching(filter), seen_inside(since, until))
        if narrow:
            rows += f" WHERE matches AND inside OR error OR {_shares(wanted)}"
        traces = kept(rows)
        flows = kept(f"SELECT * FROM ({_flows('true')}) WHERE {_shares(traces)}") if narrow else wanted  # noqa: S608
        pairs = kept(_pairs(traces, flows))
        yield wanted, kept(_ways(traces, pairs, wanted, "inside" if only_inside else "true"))


def _shares(table: str) -> str:
    """Whether a row has a hash in common with a row of a table."""
    hashes = f"(SELECT unnest(hashes) FROM {table})"  # noqa: S608
    return "(" + " OR ".join(f"hashes[{i}] IN {hashes}" for i in range(1, 5)) + ")"


def seen_inside(since: int | None, until: int | None) -> str:
    """The condition that a row of traces was seen since..until."""
    conditions = ["true"]
    if since is not None:
        conditions.append(f"last_seen >= {timestamp(since)}")
    if until is not None:
        conditions.append(f"first_seen <= {timestamp(until)}")
    return "(" + " AND ".join(conditions) + ")"


def matching(filter: Filter | None) -> str:
    """The filter as a condition on a row of traces: before NAT or after it, or on what an error is about.

    Packets have no owners: none meets a condition on these.
    """
    if not filter:
        return "true"
    if filter.owned:
        return "false"
    text = filter.sql()
    other = {"src": "dst", "dst": "src", "sport": "dport", "dport": "sport"}
    own = re.sub(r"\breply_(src|dst|sport|dport)", lambda name: f"left_{other[name[1]]}", text)
    about = re.sub(r"\breply_(src|dst|sport|dport)", lambda name: other[name[1]], text)
    about = re.sub(r"\b(proto|src|dst|sport|dport)", r"about_\1", about)
    return f"(({own}) OR about_proto IS NOT NULL AND ({about}))"
