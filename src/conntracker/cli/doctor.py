"""`conntracker doctor`: what the program needs, what of it is there, and what to do about the rest."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from conntracker.cli.common import say

_CAP_NET_ADMIN = 12  # linux/capability.h
_BUFFER = 64 << 20


class Finding(NamedTuple):
    """One requirement: 'ok', 'missing' (the main job does not work) or 'note' (something is lost without it)."""

    status: str
    what: str
    advice: str = ""


def add_arguments(parser: ArgumentParser) -> None:
    """Where to look, and whether to mend."""
    parser.add_argument("--netns", metavar="NAME|PID", help="look into another network namespace")
    parser.add_argument("--fix", action="store_true", help="put back what a killed instance left changed")


def run(args: Namespace) -> int:
    """Prints a line for each requirement. Returns 3 if one is missing."""
    if args.fix:
        from conntracker.restore import repair

        for line in repair():
            say(line)
    missing = 0
    with _inside(args.netns):
        for finding in _examine():
            missing += finding.status == "missing"
            advice = f": {finding.advice}" if finding.advice else ""
            sys.stdout.write(f"{finding.status:<8} {finding.what}{advice}\n")
    return 3 if missing else 0


def _inside(netns: str | None) -> contextlib.AbstractContextManager[object]:
    from conntracker.sources.netns import Namespace as NetworkNamespace

    return NetworkNamespace.find(netns) if netns is not None else contextlib.nullcontext()


def _examine() -> Iterator[Finding]:
    yield _kernel()
    privileged = _privileged()
    yield (
        Finding("ok", "privilege: CAP_NET_ADMIN")
        if privileged
        else Finding("missing", "privilege: no CAP_NET_ADMIN", "run as root")
    )
    yield from _libraries()
    if find_spec("numpy") is None:
        return
    yield _conntrack()
    yield from _sysctls()
    if privileged:
        yield from _with_privilege()
    yield from _leftovers()


def _kernel() -> Finding:
    release = os.uname().release
    match = re.match(r"(\d+)\.(\d+)", release)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version >= (5, 12):
        return Finding("ok", f"kernel {release}")
    return Finding(
        "note", f"kernel {release}", "tables that vanish with their owner need 5.12: switch tracking on by hand"
    )


def _privileged() -> bool:
    from conntracker.sources.privilege import capabilities

    return bool(capabilities() >> _CAP_NET_ADMIN & 1)


def _libraries() -> Iterator[Finding]:
    for name, status, advice in (
        ("numpy", "missing", "pip install numpy"),
        ("duckdb", "note", "recordings (-w, show) need it: pip install duckdb"),
        ("pysat", "note", "audit and diff need it: pip install python-sat"),
    ):
        try:
            yield Finding("ok", f"{name} {import_module(name).__version__}")
        except ImportError:
            yield Finding(status, f"no {name}", advice)
    from conntracker.sources.nftables import LibraryMissing, Nftables

    try:
        Nftables().close()
        yield Finding("ok", "libnftables")
    except LibraryMissing as error:
        yield Finding("note", str(error), "it switches connection tracking on where it is off")
    except OSError as error:
        yield Finding("note", f"libnftables: {error.strerror or error}", "it switches connection tracking on")


def _conntrack() -> Finding:
    from conntracker.sources.conntrack import require

    try:
        require()
    except PermissionError:
        return Finding(
            "missing", "conntrack: not allowed to load its modules", "run as root, or modprobe nf_conntrack_netlink"
        )
    except OSError as error:
        return Finding("missing", f"conntrack: {error.strerror or error}")
    return Finding("ok", "conntrack, with events")


def _sysctls() -> Iterator[Finding]:
    from conntracker.restore import read_sysctl
    from conntracker.tracker import ACCOUNTING, TIMESTAMPS

    for name, without in ((ACCOUNTING, "packets and bytes"), (TIMESTAMPS, "the kernel's own times")):
        dotted, value = name.replace("/", "."), read_sysctl(name)
        if value == "1":
            yield Finding("ok", f"{dotted} = 1")
        else:
            yield Finding(
                "note", f"{dotted} = {value}", f"flows are logged without {without}; --accounting sets it meanwhile"
            )


def _with_privilege() -> Iterator[Finding]:
    from conntracker.sources.conntrack import EventSocket, is_tracked
    from conntracker.sources.fullness import Gauge
    from conntracker.sources.netns import has_ipv6

    try:
        states = {family: is_tracked(family) for family in ((4, 6) if has_ipv6() else (4,))}
        with contextlib.closing(EventSocket(_BUFFER, rows=1)) as socket, contextlib.closing(Gauge()) as gauge:
            granted, reading = socket.receive_buffer // 2, gauge.read()
    except OSError as error:
        yield Finding("missing", f"conntrack events: {error.strerror or error}")
        return
    table = _owned_table()
    can = table.status == "ok"
    off = "a capture switches it on meanwhile" if can else "and a capture cannot switch it on"
    for family, state in states.items():
        yield {
            True: Finding("ok", f"connection tracking is on for IPv{family}"),
            False: Finding("note" if can else "missing", f"connection tracking is off for IPv{family}", off),
            None: Finding("note", f"cannot tell whether connection tracking is on for IPv{family}",
                          "a datagram over loopback was not tracked, as a rule may exempt or drop it"),
        }[state]  # fmt: skip
    if granted >= _BUFFER:
        yield Finding("ok", f"receive buffer of {granted >> 20} MB")
    else:
        advice = "a user namespace gets no more than net.core.rmem_max; bursts may be lost, and are counted"
        yield Finding("note", f"receive buffer of {granted >> 10} KB only", advice)
    text = f"connection table: {reading.count} of {reading.maximum} entries"
    yield Finding("ok", text) if reading.share < 0.8 else Finding("note", text, "raise net.netfilter.nf_conntrack_max")
    yield table
    yield from _tracing(can)
    yield from _owners()


def _tracing(can: bool) -> Iterator[Finding]:
    """What -t and blame need besides: rulesets that can be read, and the log group of legacy traces."""
    from conntracker.sources.rulesets import read_texts
    from conntracker.sources.tracing import TraceSocket, log_group_holder

    try:
        TraceSocket(1 << 16).close()
    except OSError as error:
        yield Finding("note", f"no trace messages of nf_tables: {error.strerror or error}", "-t shows no rules")
        return
    if not can:
        yield Finding("note", "rules cannot be traced", "-t and blame need a private table")
        return
    texts = read_texts()
    kinds = [f"{kind} ({family})" for kind, family in texts.saves]
    yield Finding("ok", f"rules can be traced: {', '.join(['nft', *kinds])}")
    for line in texts.missing:
        yield Finding("note", line, "steps are shown without their rules' text")
    holder = log_group_holder()
    if holder is not None:
        yield Finding("note", f"NFLOG group 0 is read by {holder}", "no traces of iptables-legacy rules meanwhile")


def _owners() -> Iterator[Finding]:
    """What -b needs: the programs are put on the root of cgroup2 and taken away at once."""
    from conntracker.sources.bpf.ownership import Ownership
    from conntracker.sources.cgroups import is_whole, open_root
    from conntracker.sources.holders import why_blind
    from conntracker.sources.privilege import in_first_pid_namespace
    from conntracker.sources.processes import Processes
    from conntracker.sources.sockets import INTERVAL

    polled = (
        f"-b lists sockets every {INTERVAL:g}s instead: connections that live shorter, the worker behind a socket that"
        " several processes share, and ping have no owner then"
    )
    try:
        root = open_root()
        try:
            with Ownership(root) as programs:
                missing, whole = programs.missing, is_whole(root)
        finally:
            os.close(root)
    except OSError as error:
        yield Finding("note", f"owners: no BPF: {error.strerror or error}", polled)
    else:
        yield Finding("ok", "owners by BPF")
        for line in missing:
            yield Finding("note", f"owners: {line}")
        if not whole:
            yield Finding("note", "owners: only the cgroups of this container are seen")
    blind = why_blind()
    if blind is not None:
        yield Finding("note", f"owners: {blind}", "sockets that are open at the start may have no owner")
    if not in_first_pid_namespace():
        yield Finding("note", "owners: in another pid namespace", "process ids are the host's, only names are known")
    processes = Processes()
    why = processes.missing
    processes.close()
    if why is not None:
        advice = "the program and the arguments of a process that ends at once may be unknown"
        yield Finding("note", why, advice)


def _owned_table() -> Finding:
    """Made and removed at once; it holds nothing."""
    from conntracker.sources.nftables import OwnedTable

    try:
        OwnedTable("").remove()
    except (OSError, ImportError) as error:
        return Finding("note", f"no private table: {error}", "tracking that is off cannot be switched on")
    return Finding("ok", "private tables with an owner")


def _leftovers() -> Iterator[Finding]:
    from conntracker.restore import leftovers

    found = leftovers()
    if not found:
        yield Finding("ok", "nothing left behind by a killed instance")
    for line in found:
        yield Finding("note", f"left changed by a killed instance: {line}", "the next start puts it back, or --fix now")
