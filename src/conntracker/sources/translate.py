"""A file in nft's own syntax, made into what `nft list ruleset` would say of it: the kernel is the translator.

The file is loaded into a network namespace of a process of its own, which is gone when it has answered, and the
namespace with it. Interfaces that rules name by index (`iif`), and devices of netdev chains, must exist there when the
rules are loaded: dummies with those names are made first.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from conntracker.rules.errors import RuleSyntaxError
from conntracker.rules.nft.anonymous import with_names
from conntracker.rules.nft_listing import dormant_tables
from conntracker.sources.netns import Namespace, enter_user_namespace

if TYPE_CHECKING:
    from conntracker.sources.nftables import NftablesError

__all__ = ["translate"]

_TIMEOUT = 60  # seconds, of one file
_MOST_INTERFACES = 500
_RTM_NEWLINK, _IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_KIND = 16, 3, 18, 1  # linux/rtnetlink.h, linux/if_link.h
_NLM_F_CREATE, _NLM_F_EXCL = 0x400, 0x200  # linux/netlink.h

_MISSING = re.compile(r"Error: Interface does not exist\n(?P<line>.*)\n(?P<mark>[ \t]*\^+)")
_DEVICES = re.compile(r"\bdevices?\s*=?\s*(\{[^}]*\}|\"[^\"]+\"|\$?[\w.@-]+)")
_VARIABLE = re.compile(r"\$(\w+)")
_DEFINED = re.compile(r"^\s*define\s+(\w+)\s*=\s*(\{[^}]*\}|\S+)", re.MULTILINE)
_NAME = re.compile(r"[\w.@-]{1,15}")
_NAMELESS = re.compile(r"\b(?:jump|goto) \{$", re.MULTILINE)
_ERROR = re.compile(r"^(?P<file>[^:\n]*):(?P<line>\d+):(?P<column>\d+)-\d+: Error: (?P<what>.*)$", re.MULTILINE)
_OWNED = re.compile(
    r"(^[ \t]*flags[ \t]+|[{;][ \t]*flags[ \t]+)((?:\w+[ \t]*,[ \t]*)*\b(?:owner|persist)\b(?:[ \t]*,[ \t]*\w+)*)",
    re.MULTILINE,
)
_OF_OWNER = {"owner", "persist"}  # flags of tables: nft 1.0.6 does not know the second
_SCRIPT = "from conntracker.sources.translate import _serve; _serve()"


def translate(text: str, name: str) -> tuple[str, str]:
    """(JSON, listing) of a ruleset in nft's syntax: what nft lists, with handles, once it is loaded.

    name   of the file: its directory is where files that it includes are looked for

    Raises RuleSyntaxError for what nft or the kernel refuses, with file, line and column;
    OSError where there is no libnftables, or no namespace can be made.
    """
    where = os.path.dirname(os.path.abspath(name))
    asked = json.dumps({"text": _unowned(text), "directory": where if os.path.isdir(where) else "/"})
    try:
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT], input=asked.encode("utf-8", "surrogateescape"), capture_output=True,
            timeout=_TIMEOUT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise OSError(errno.ETIMEDOUT, f"nft did not load {name} in {_TIMEOUT} s") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(errno.EIO, f"cannot translate {name}: {said[-1] if said else 'nft died'}") from None
    if "refused" in answer:
        raise _syntax_error(answer["refused"], answer["what"], answer["path"], name)
    if "errno" in answer:
        raise OSError(answer["errno"], answer["what"])
    return answer["json"], answer["listing"]


def _unowned(text: str) -> str:
    """The text as it can be loaded by a process that ends: a table with an owner would end with it.

    What is taken out is made spaces, so that errors stand where they stood.
    """

    def kept(found: re.Match[str]) -> str:
        flags = [flag for flag in re.split(r"[\s,]+", found[2]) if flag not in _OF_OWNER]
        return (found[1] + ",".join(flags) if flags else found[1].partition("flags")[0]).ljust(len(found[0]))

    return _OWNED.sub(kept, text)


def _syntax_error(said: str, what: str, path: str, name: str) -> RuleSyntaxError:
    found = _ERROR.search(said)
    if found is None:
        return RuleSyntaxError(what, 1, 1, name)
    file = name if found["file"] == path else found["file"]
    return RuleSyntaxError(found["what"], int(found["line"]), int(found["column"]), file)


# --- the process of its own ---


def _serve() -> None:
    """Translate what stands on standard input, and write the answer to standard output.

    What imports numpy, which starts threads, is imported later: a process with threads cannot make a user namespace.
    """
    asked = json.loads(sys.stdin.buffer.read().decode("utf-8", "surrogateescape"))
    try:
        answer = _answer(asked["text"], asked["directory"])
    except (ImportError, OSError) as error:
        answer = {
            "errno": getattr(error, "errno", None) or errno.EIO,
            "what": getattr(error, "strerror", None) or str(error),
        }
    sys.stdout.write(json.dumps(answer))


def _answer(text: str, directory: str) -> dict[str, Any]:
    os.chdir(directory)
    _enter_namespace()
    with os.fdopen(os.memfd_create("ruleset"), "wb") as file:
        # Not as a buffer: nft tells lines and columns only of files.
        file.write(text.encode("utf-8", "surrogateescape"))
        file.flush()
        path = f"/proc/self/fd/{file.fileno()}"
        made = {"lo"}
        for one in _devices(text):
            _make(one, made)
        while (refused := _load(path)) is not None:
            if not any([_make(one, made) for one in _missing(refused.text)]):
                return {"refused": refused.text, "what": refused.strerror, "path": path}
    return _listed()


def _load(path: str) -> NftablesError | None:
    """Load the file, or say why not. In a context of its own: definitions stay in one, and cannot be made twice."""
    from conntracker.sources.nftables import Nftables, NftablesError

    with Nftables() as nft:
        try:
            nft.run(f'include "{path}"')
        except NftablesError as error:
            return error
    return None


def _listed() -> dict[str, Any]:
    from conntracker.sources.nftables import NFT_CTX_OUTPUT_HANDLE, NFT_CTX_OUTPUT_JSON, Nftables

    with Nftables() as nft:
        listing = nft.run("list ruleset", NFT_CTX_OUTPUT_HANDLE)
        if _NAMELESS.search(listing):
            nft.run(f"flush ruleset\n{with_names(nft.run('list ruleset'))}")
            listing = nft.run("list ruleset", NFT_CTX_OUTPUT_HANDLE)
        for family, table in dormant_tables(listing):
            nft.run(f"add table {family} {table}")  # wakes it: libnftables 1.0.6 has no JSON for flags of tables
        return {"json": nft.run("list ruleset", NFT_CTX_OUTPUT_HANDLE | NFT_CTX_OUTPUT_JSON), "listing": listing}


def _enter_namespace() -> None:
    try:
        Namespace.create().__enter__()
    except PermissionError:
        enter_user_namespace()


def _devices(text: str) -> list[str]:
    """Names that netdev chains are bound to: for a missing one, the kernel's error says nothing."""
    defined = {found[1]: found[2] for found in _DEFINED.finditer(text)}
    names = []
    for found in _DEVICES.finditer(text):
        words = found[1]
        for variable in _VARIABLE.findall(words):
            words += f" {defined.get(variable, '')}"
        names += _NAME.findall(_VARIABLE.sub("", words))
    return names


def _missing(said: str) -> list[str]:
    """Names of the interfaces that nft did not find: what its errors point at."""
    names = []
    for found in _MISSING.finditer(said):
        start, length = found["mark"].find("^"), found["mark"].count("^")
        names.append(found["line"][start : start + length].strip('"'))
    return names


def _make(name: str, made: set[str]) -> bool:
    """Make a dummy interface; False if there is one, or there can be none."""
    from conntracker.wire import netlink

    if name in made or len(made) > _MOST_INTERFACES or not _NAME.fullmatch(name):
        return False
    made.add(name)
    for kind in (b"dummy", b"bridge"):
        info = netlink.attribute(_IFLA_INFO_KIND, kind)
        body = struct.pack("=BxHiII", 0, 0, 0, 0, 0)
        body += netlink.attribute(_IFLA_IFNAME, name.encode() + b"\0") + netlink.attribute(_IFLA_LINKINFO, info)
        flags = netlink.NLM_F_REQUEST | netlink.NLM_F_ACK | _NLM_F_CREATE | _NLM_F_EXCL
        message = netlink.HEADER.pack(netlink.HEADER.size + len(body), _RTM_NEWLINK, flags, 1, 0) + body
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
            sock.settimeout(5)
            sock.sendto(message, (0, 0))
            (code,) = struct.unpack_from("=i", sock.recv(4096), netlink.HEADER.size)
        if code in {0, -errno.EEXIST}:
            return True
    return False
