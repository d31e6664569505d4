"""Reading the rulesets of the calling thread's network namespace, as text.

Reading changes nothing there: libnftables only lists, and iptables-save, unlike `iptables -S`, registers no tables of
ip_tables. Programs are run only where there is something that only they can read.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import subprocess
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
    LibraryMissing,
    Nftables,
)
from conntracker.wire import netlink

__all__ = ["LegacyWatch", "generation", "read_texts"]

_NFT_MSG_NEWGEN, _NFT_MSG_GETGEN, _NFTA_GEN_ID = 15, 16, 1  # linux/netfilter/nf_tables.h
_NFNL_SUBSYS_NFTABLES = 10  # linux/netfilter/nfnetlink.h

_ATTEMPTS = 5
_ELEMENTS = re.compile(r"^\t\telements = \{.*?\}$", re.MULTILINE | re.DOTALL)
_TIMEOUT = 60  # seconds, of a program
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"

_PREFIX = {"ip": "iptables", "ip6": "ip6tables"}
_NFT_TABLES = re.compile(r"^table (ip6?) (raw|mangle|nat|filter|security) \{", re.MULTILINE)


def read_texts() -> Texts:
    """The rulesets of one moment: they are read again if they changed meanwhile, a few times.

    What cannot be read is said in `missing`, not raised. `generation` is None if they never stood still.
    """
    last: Texts | None = None
    for _ in range(_ATTEMPTS):
        before, watch = generation(), LegacyWatch()
        try:
            texts = _read_once(before)
            if not watch.changed() and (generation() == before or _same_rules(texts, last)):
                return texts
            last = texts
        finally:
            watch.close()
    return replace(texts, generation=None, missing=(*texts.missing, "the rules changed all the while they were read"))


def _same_rules(one: Texts, other: Texts | None) -> bool:
    """Whether two readings differ in elements of sets at most, which change all the time on many hosts."""
    if other is None or one.nft is None or other.nft is None:
        return False
    return one.saves == other.saves and _ELEMENTS.sub("", one.nft) == _ELEMENTS.sub("", other.nft)


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


def _read_once(number: int | None) -> Texts:
    missing: list[str] = []
    saves: dict[tuple[str, str], str] = {}
    nft, own = _nft_listing(missing)
    for family in ("ip", "ip6"):
        tables = {name for found, name in _NFT_TABLES.findall(nft or "") if found == family}
        if tables and (text := _nft_save(family, tables, missing)):
            saves["iptables-nft", family] = text
        if (save := _legacy_save(family, missing)) is not None:
            saves["iptables-legacy", family] = save
    return Texts(nft, saves, number, tuple(missing), own)


def _nft_listing(missing: list[str]) -> tuple[str | None, frozenset[tuple[str, str]]]:
    try:
        with Nftables() as nft:
            return without_own(nft.run("list ruleset", NFT_CTX_OUTPUT_HANDLE | NFT_CTX_OUTPUT_STATELESS))
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


def _legacy_save(family: str, missing: list[str]) -> str | None:
    """None where there are no tables, or it is not known if there are; empty where they cannot be read."""
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
    text, failure = _run(program)
    if failure:
        missing.append(f"{os.path.basename(program)}: {failure}")
        return ""
    return plain(text)


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
