"""The ruleset that a command is about: files, or what the host has in force."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser

    from conntracker.rules.host import Host
    from conntracker.rules.ruleset import Ruleset

__all__ = ["add_rules_arguments", "live_host", "load", "load_file"]

_NET_ADMIN = 1 << 12  # linux/capability.h
_SAVE = re.compile(r"^\s*(?:\*\w+|(?:\[\d+:\d+\] )?-[AIN] \S)", re.MULTILINE)


def add_rules_arguments(parser: ArgumentParser) -> None:
    """--rules and --netns."""
    parser.add_argument(
        "--rules", metavar="FILE", action="append",
        help="a ruleset in a file: iptables-save, ip6tables-save, `nft list ruleset` with or without -j; `-` is"
        " standard input; several are one ruleset. Without it, the host's own is read",
    )  # fmt: skip
    parser.add_argument("--netns", metavar="NAME", help="without --rules: a network namespace, by name, path or pid")


def load(files: list[str] | None, netns: str | None) -> Ruleset:
    """The ruleset of all files together, or without files the one in force. Raises RuleSyntaxError, OSError."""
    from conntracker.rules.ruleset import Ruleset

    if files:
        if netns is not None:
            raise ValueError("--netns does not go with --rules: nothing is read from the kernel")
        if doubled := [name for number, name in enumerate(files) if name in files[:number]]:
            raise ValueError(f"{doubled[0]} is there twice: its chains would be, too")
        return Ruleset.joined([load_file(name) for name in files])
    from conntracker.sources.live_rules import read_ruleset
    from conntracker.sources.privilege import capabilities

    with _inside(netns):
        if not capabilities() & _NET_ADMIN:  # an answer without the rules would be a wrong one
            raise PermissionError(errno.EPERM, "the rules in force are for CAP_NET_ADMIN to read: run as root")
        return read_ruleset()


def load_file(name: str) -> Ruleset:
    """The ruleset of one file, whatever its syntax. Raises RuleSyntaxError, OSError."""
    from conntracker.rules.ruleset import Ruleset

    text = _text(name)
    shown = "standard input" if name == "-" else name
    if not _has_anything(text):  # of a command that failed, say: no answer can be made of it
        raise ValueError(f"{shown}: there is no ruleset in it, only blanks and comments")
    if text.lstrip().startswith("{") or _SAVE.search(text):
        return Ruleset.parse(text, source=shown)
    from conntracker.rules.nft import parse_json
    from conntracker.sources.translate import translate

    document, listing = translate(text, shown)
    return parse_json(document, source=shown, listing=listing)


def _has_anything(text: str) -> bool:
    return any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines())


def live_host(netns: str | None) -> Host | None:
    """Addresses and routes of the host, as far as they can be read."""
    from conntracker.sources.host import read_host

    with _inside(netns):
        return read_host()


def _inside(netns: str | None) -> contextlib.AbstractContextManager[object]:
    if netns is None:
        return contextlib.nullcontext()
    from conntracker.sources.netns import Namespace

    return Namespace.find(netns)


def _text(name: str) -> str:
    if name == "-":
        return sys.stdin.buffer.read().decode("utf-8-sig", "surrogateescape")
    if os.path.isdir(name):
        raise IsADirectoryError(21, "is a directory, not a ruleset", name)
    with open(name, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        return file.read()
