"""Reading the rulesets of the calling thread's network namespace, as text.

Reading changes nothing there: libnftables only lists, and iptables-save, unlike `iptables -S`, registers no tables of
ip_tables. Programs are run only where there is something that only they can read.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from dataclasses import replace

from conntracker.model import DecodeError
from conntracker.rules.iptables_save import plain
from conntracker.rules.nft_listing import without_own
from conntracker.rules.snapshot import Texts
from conntracker.sources.legacy_watch import LegacyWatch, legacy_names
from conntracker.sources.nftables import (
    NETLINK_NETFILTER,
    NFT_CTX_OUTPUT_HANDLE,
    NFT_CTX_OUTPUT_STATELESS,
    NFT_CTX_OUTPUT_TERSE,
    LibraryMissing,
    Nftables,
)
from conntracker.wire import netlink

__all__ = ["LegacyWatch", "generation", "legacy_save", "read_texts"]

_NFT_MSG_NEWGEN, _NFT_MSG_GETGEN, _NFTA_GEN_ID = 15, 16, 1  # linux/netfilter/nf_tables.h
_NFNL_SUBSYS_NFTABLES = 10  # linux/netfilter/nfnetlink.h

# Without the elements of named sets, which change all the time and may be a hundred thousand.
_LISTING = NFT_CTX_OUTPUT_HANDLE | NFT_CTX_OUTPUT_STATELESS | NFT_CTX_OUTPUT_TERSE
_BUSY = 3.0  # seconds that a process may try
_ATTEMPTS = 5
_TIMEOUT = 60  # seconds, of a program
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"

_PREFIX = {"ip": "iptables", "ip6": "ip6tables"}
_NFT_TABLES = re.compile(r"^table (ip6?) (raw|mangle|nat|filter|security) \{", re.MULTILINE)


def read_texts(busy: bool = False) -> Texts:
    """The rulesets of one moment: they are read again if they changed meanwhile, a few times.

    busy   whether something changes all the time, be it elements of sets: libnftables begins anew with every change,
           and may never end. Then a process of its own reads, that can be ended.

    What cannot be read is said in `missing`, not raised. `generation` is None if they never stood still.
    """
    last: Texts | None = None
    for _ in range(_ATTEMPTS):
        before, watch = generation(), LegacyWatch()
        try:
            texts = _read_once(before, busy)
            if not watch.changed() and (generation() == before or _same_rules(texts, last)):
                return texts
            last = texts
        finally:
            watch.close()
    return replace(texts, generation=None, missing=(*texts.missing, "the rules changed all the while they were read"))


def _same_rules(one: Texts, other: Texts | None) -> bool:
    """Whether two readings are equal: then only elements of sets changed meanwhile, as they do all the time."""
    return other is not None and (one.saves, one.nft) == (other.saves, other.nft)


def generation() -> int | None:
    """The number of the nft ruleset in force, which every change raises; None if the kernel does not say."""
    request = netlink.request(_NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_GETGEN, 0, 1)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
            sock.settimeout(2)
            sock.sendto(request, (0, 0))
            answer = sock.recv(4096)
        for message in netlink.messages(answer):
            if message.type == _NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_NEWGEN:
                data = message.payload
                for kind, offset, length in netlink.attributes(data, netlink.NFGENMSG.size, len(data)):
                    if kind == _NFTA_GEN_ID and length == 4:
                        return int(struct.unpack_from("!I", data, offset)[0])
    except (OSError, DecodeError):
        pass
    return None


def _read_once(number: int | None, busy: bool) -> Texts:
    missing: list[str] = []
    saves: dict[tuple[str, str], str] = {}
    nft, own = _nft_listing(missing, busy)
    for family in ("ip", "ip6"):
        tables = {name for found, name in _NFT_TABLES.findall(nft or "") if found == family}
        if tables and (text := _nft_save(family, tables, missing)):
            saves["iptables-nft", family] = text
        if (save := legacy_save(family, missing)) is not None:
            saves["iptables-legacy", family] = save
    return Texts(nft, saves, number, tuple(missing), own)


def listing() -> str:
    """What nft lists, with handles, without counters and elements. Raises LibraryMissing, OSError."""
    with Nftables() as nft:
        return nft.run("list ruleset", _LISTING)


def _listing_apart() -> str:
    """`listing` by another process, for at most _BUSY seconds. Raises OSError."""
    script = "import sys; from conntracker.sources.rulesets import listing; sys.stdout.write(listing())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], stdin=subprocess.DEVNULL, capture_output=True, timeout=_BUSY, check=False,
            text=True, errors="surrogateescape",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise OSError(errno.ETIMEDOUT, "it changes faster than it can be read") from None
    if done.returncode != 0:
        raise OSError(errno.EIO, (done.stderr.strip().splitlines() or ["it cannot be read"])[-1])
    return done.stdout


def _nft_listing(missing: list[str], busy: bool) -> tuple[str | None, frozenset[tuple[str, str]]]:
    try:
        return without_own(_listing_apart() if busy else listing())
    except (LibraryMissing, OSError) as error:
        missing.append(f"no nft ruleset: {error.strerror if isinstance(error, OSError) else error}")
        return None, frozenset()


def _nft_save(family: str, tables: set[str], missing: list[str]) -> str:
    """What iptables-nft-save prints of its tables; one that it cannot read costs no other."""
    program = _find(f"{_PREFIX[family]}-nft-save")
    if program is None:
        missing.append(f"no {_PREFIX[family]}-nft-save: rules of {_PREFIX[family]}-nft stand in nft's syntax")
        return ""
    text, failure = _run(program)
    if not failure:
        return plain(text)
    parts = []
    for table in sorted(tables):
        text, failure = _run(program, "-t", table)
        if not failure:
            parts.append(plain(text))
        else:
            missing.append(f"{os.path.basename(program)} cannot read table {table}, shown in nft's syntax: {failure}")
    return "".join(parts)


def legacy_save(family: str, missing: list[str], counted: bool = False) -> str | None:
    """None where there are no tables, or it is not known if there are; empty where they cannot be read.

    missing   gets a line for a person, if they cannot
    counted   as iptables-save prints it, with the counters of rules; else plain
    """
    name = _PREFIX[family]
    try:
        if not legacy_names(family):
            return None
    except OSError as error:
        missing.append(f"the tables of {name}-legacy are not known: {error.strerror}")
        return None
    program = _find(f"{name}-legacy-save") or _find_legacy(f"{name}-save")
    if program is None:
        missing.append(f"no {name}-legacy-save: the rules of {name}-legacy are not known")
        return ""
    text, failure = _run(program, *(["-c"] if counted else []))
    if failure:
        missing.append(f"{os.path.basename(program)}: {failure}")
        return ""
    return text if counted else plain(text)


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATH}")


def _find_legacy(program: str) -> str | None:
    """Before version 1.8 there was but one kind, under the plain name."""
    path = _find(program)
    return path if path and "nf_tables" not in _run(path, "--version")[0] else None


def _run(program: str, *arguments: str) -> tuple[str, str]:
    """(what it printed, why it failed: empty if it did not). Runs in the calling thread's namespace."""
    try:
        done = subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT, check=False,
            env={**os.environ, "LC_ALL": "C"}, errors="replace", encoding="utf-8",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "", f"gave no answer in {_TIMEOUT} s"
    except OSError as error:
        return "", f"{error.strerror}"
    if done.returncode == 0:
        return done.stdout, ""
    return "", next((line for line in done.stderr.splitlines() if line), f"exit status {done.returncode}")
