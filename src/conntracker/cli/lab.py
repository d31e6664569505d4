"""`conntracker lab`: a router between a client and a server, with real traffic, and a command that watches it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from typing import IO, TYPE_CHECKING

from conntracker.cli.common import say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from conntracker.lab.topology import Lab
    from conntracker.lab.traffic import ExpectedFlow

__all__ = ["add_arguments", "run"]

READY = "capturing"  # in the line with which a capture says that it misses nothing from now on
READY_WAIT = 2.0  # seconds, for commands that say nothing
SETTLE = 0.2  # seconds for the command to read what the kernel has for it
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `conntracker lab`."""
    parser.description = "Make a lab of network namespaces, drive traffic of every kind through it, take it down."
    parser.add_argument("--no-firewall", action="store_true", help="no rules at all on the router")
    parser.add_argument(
        "--rounds", type=int, default=1, metavar="N",
        help="how often to drive everything (1); 0 for no traffic: COMMAND runs to its end",
    )  # fmt: skip
    parser.add_argument("--flows", type=int, default=0, metavar="N", help="and N flows as fast as possible (0)")
    parser.add_argument(
        "--programs", action="store_true", help="instead, programs that talk to each other: processes, users, workers"
    )
    parser.add_argument("--hold", action="store_true", help="keep the lab up until Ctrl-C, say how to look into it")
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="to run on the router meanwhile, after --")


def run(args: argparse.Namespace) -> int:
    """Run the lab; the exit code is COMMAND's own, or 0.

    Raises ValueError for bad options and a COMMAND that is not there, OSError and LibraryMissing for what the kernel or
    the host lacks.
    """
    if args.rounds < 0 or args.flows < 0:
        raise ValueError("--rounds and --flows want a number from 0 on")
    if args.programs and args.flows:
        raise ValueError("--programs and --flows: one or the other")
    if os.geteuid() != 0:
        from conntracker.sources.netns import enter_user_namespace

        enter_user_namespace()  # before numpy, which starts threads
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    from conntracker.lab import firewall
    from conntracker.lab.topology import Lab

    with Lab(None if args.no_firewall else firewall.RULESET) as lab:
        if args.hold:
            return _hold(lab)
        if args.command:
            return _watch(lab, args)
        for line in _table(_drive(lab, args)):
            print(line)
        return 0


def _drive(lab: Lab, args: argparse.Namespace) -> list[tuple[str, list[ExpectedFlow]]]:
    """All the traffic that was asked for, and what it was."""
    from conntracker.lab.programs import drive_programs
    from conntracker.lab.traffic import Traffic

    if args.programs:
        for _ in range(args.rounds):
            say(f"programs talked to each other {drive_programs(lab)} times")
        return []
    done: list[tuple[str, list[ExpectedFlow]]] = []
    with Traffic(lab) as traffic:
        for _ in range(args.rounds):
            done.extend(traffic.drive().items())
    if done:
        say(f"drove {sum(len(flows) for _, flows in done)} flows of {len({name for name, _ in done})} kinds")
    if args.flows:
        from conntracker.lab.bulk import send
        from conntracker.lab.plan import plan

        sent = send(lab, plan(args.flows, nat=lab.translates))
        lost = f", {sent.dropped} packets lost on the way" if sent.dropped else ""
        say(f"sent {sent.sent} flows at {sent.sent / sent.seconds:,.0f} a second{lost}")
    return done


def _watch(lab: Lab, args: argparse.Namespace) -> int:
    """Run the command on the router while the traffic is driven; its exit code."""
    try:
        with lab.router:
            process = subprocess.Popen(_resolve(args.command), stderr=subprocess.PIPE, preexec_fn=_end_with_parent())  # noqa: PLW1509
    except OSError as error:
        raise ValueError(f"{args.command[0]}: {error.strerror}") from None
    ready = threading.Event()
    assert process.stderr is not None  # noqa: S101  asked for with PIPE
    reader = threading.Thread(target=_pass_on, args=(process.stderr, ready), daemon=True)
    reader.start()
    try:
        try:
            if not args.rounds and not args.flows:
                process.wait()
            ready.wait(READY_WAIT)
            if process.poll() is None:
                _drive(lab, args)
                time.sleep(SETTLE)
        except KeyboardInterrupt:
            # A terminal gives Ctrl-C to the command too; a second one might stop it from ending in good order.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(READY_WAIT)
        process.send_signal(signal.SIGINT)
        code: int = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    reader.join(1.0)
    if code == -signal.SIGINT:
        return 0  # it ended as it was asked to
    return code if code >= 0 else 128 - code


def _pass_on(stream: IO[bytes], ready: threading.Event) -> None:
    for line in stream:
        text = line.decode(errors="replace")
        sys.stderr.write(text)
        sys.stderr.flush()
        if READY in text:
            ready.set()
    ready.set()  # it is gone, or has closed stderr: nothing more to wait for


def _resolve(command: list[str]) -> list[str]:
    """`conntracker` is the one that runs now, wherever it is installed."""
    if command[0] == "conntracker":
        return [sys.executable, "-m", "conntracker", *command[1:]]
    return command


def _end_with_parent() -> Callable[[], object]:
    """For the child to run: SIGTERM when its parent dies, kill -9 included; otherwise it would keep the lab alive."""
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _hold(lab: Lab) -> int:
    for name, space in lab.spaces.items():
        if _in_user_namespace():  # only from inside may one enter the namespaces made there
            print(
                f"{name:8}nsenter --user=/proc/{os.getpid()}/ns/user --preserve-credentials --net={space.path} COMMAND"
            )
        else:
            print(f"{name:8}nsenter --net={space.path} COMMAND   or   conntracker --netns {space.path}")
    sys.stdout.flush()
    say("the lab is up, Ctrl-C takes it down")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
    return 0


def _in_user_namespace() -> bool:
    with open("/proc/self/uid_map") as file:
        return file.read().split() != ["0", "0", "4294967295"]


def _table(done: list[tuple[str, list[ExpectedFlow]]]) -> list[str]:
    """What was driven, one line a flow."""
    if not done:
        return []
    rows = [("traffic", "from", "to", "answers from", "to", "")]
    for name, flows in done:
        rows += [_row(name, flow) for flow in flows] or [(name, "", "", "", "", "dropped, so no flow")]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(name: str, flow: ExpectedFlow) -> tuple[str, str, str, str, str, str]:
    ended = "refused" if flow.refused else "answered" if flow.replied else "unanswered"
    return (
        name,
        _end(flow, flow.src, flow.sport),
        _end(flow, flow.dst, flow.dport),
        _end(flow, flow.reply_src, flow.reply_sport),
        _end(flow, flow.reply_dst, flow.reply_dport),
        ended,
    )


def _end(flow: ExpectedFlow, address: str, port: int) -> str:
    return f"{address} {port}" if port and flow.icmp_type is None else address
