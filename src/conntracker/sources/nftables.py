"""nftables through libnftables.so.1, in process: no `nft` binary, and a table that dies with us.

Kernel facts (net/netfilter/nf_tables_api.c, Linux >= 5.12): a table with `flags owner` belongs to the netlink socket
that made it. Others cannot change it (EPERM), `nft flush ruleset` spares it, and the kernel removes it when the last
descriptor of that socket closes, however the process ends. A descriptor inherited by a child would keep the table: the
socket is close-on-exec, and a forked child closes it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import struct
import threading
from typing import Any

from conntracker.wire import netlink

__all__ = ["LibraryMissing", "Nftables", "NftablesError", "OwnedTable"]

NETLINK_NETFILTER = 12  # linux/netlink.h
_NFNL_SUBSYS_NFTABLES = 10  # linux/netfilter/nfnetlink.h
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11  # NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END
_DELSETELEM = _NFNL_SUBSYS_NFTABLES << 8 | 14  # NFT_MSG_DELSETELEM (linux/netfilter/nf_tables.h)
_FAMILIES = {"inet": 1, "netdev": 5, "bridge": 7}  # NFPROTO_*
_SEQUENCE = 1
NFT_CTX_OUTPUT_STATELESS = 1 << 2  # nftables/libnftables.h
NFT_CTX_OUTPUT_HANDLE = 1 << 3
NFT_CTX_OUTPUT_JSON = 1 << 4
NFT_CTX_OUTPUT_TERSE = 1 << 11  # named sets without their elements; libnftables 1.0 and later
FD_SETSIZE = 1024  # libnftables waits with select(2), and glibc aborts the process beyond this

_ERRNO_OF = {os.strerror(number): number for number in errno.errorcode}
_open: set[Nftables] = set()
_making = threading.Lock()  # which descriptors are new tells whose they are


class LibraryMissing(ImportError):
    """libnftables is not installed."""


class NftablesError(OSError):
    """The first line of what nft says of commands that it or the kernel refused; errno 0 where nft gives none.

    text   all that it says, with places: `FILE:LINE:COLUMN-COLUMN: Error: ...`
    """

    text = ""


class Nftables:
    """A libnftables context with a netlink socket of its own, in the network namespace of the calling thread.

    It stays in that namespace, whichever the thread enters later. Not for two threads at once.
    Raises LibraryMissing, or OSError when no socket can be had.
    """

    def __init__(self) -> None:
        self._library = _load()
        with _making:
            before = _netlink_descriptors()
            self._context: int | None = self._library.nft_ctx_new(0)
            made = _netlink_descriptors() - before
        if not self._context or not made:
            raise OSError(errno.EPROTONOSUPPORT, "no netlink socket for nftables")
        for fd in made:
            os.set_inheritable(fd, False)
        self._descriptors = made
        if max(made) >= FD_SETSIZE:
            self._library.nft_ctx_free(self._context)
            raise OSError(errno.EMFILE, f"too many open files for nftables: it cannot use descriptor {max(made)}")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)
        _open.add(self)

    def run(self, commands: str, flags: int = 0) -> str:
        """Run nft commands, all or nothing, and return what they print. Raises NftablesError.

        `flags` are NFT_CTX_OUTPUT_* to print with, for this run.
        """
        if self._context is None:
            raise ValueError("nftables context is closed")
        usual = self._library.nft_ctx_output_get_flags(self._context)
        self._library.nft_ctx_output_set_flags(self._context, usual | flags)
        try:
            failed = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        finally:
            self._library.nft_ctx_output_set_flags(self._context, usual)
        # Reading empties the buffers; both are read, so that the next run starts with none.
        output: bytes = self._library.nft_ctx_get_output_buffer(self._context)
        error: bytes = self._library.nft_ctx_get_error_buffer(self._context)
        if failed:
            raise _error(error.decode(errors="replace"))
        return output.decode(errors="replace")

    def run_json(self, commands: str) -> dict[str, Any]:
        """As `run`, and return what they print (libnftables-json(5)), {} for nothing.

        libnftables 1.0.6 reads past its own list of names for a table with `flags owner` and writes rubbish in place of
        the flags, or stops there: such an answer raises NftablesError. List single tables, or as text, beside one.
        """
        text = self.run(commands, NFT_CTX_OUTPUT_JSON)
        try:
            answer: dict[str, Any] = json.loads(text) if text.strip() else {}
        except ValueError:
            raise NftablesError(
                0, "libnftables wrote broken JSON, as 1.0.6 does beside a table with an owner"
            ) from None
        return answer

    def transact(self, requests: list[bytes]) -> None:
        """Send nf_tables messages that ask for an answer each, as one transaction, on the context's own socket."""
        (fd,) = list(self._descriptors)[:1]
        begin, end = (
            netlink.HEADER.pack(netlink.BODY, kind, netlink.NLM_F_REQUEST, 0, 0)
            + netlink.NFGENMSG.pack(0, 0, _NFNL_SUBSYS_NFTABLES)
            for kind in (_BATCH_BEGIN, _BATCH_END)
        )
        with socket.socket(fileno=os.dup(fd)) as sock:
            sock.settimeout(5)
            sock.sendto(begin + b"".join(requests) + end, (0, 0))
            waiting = len(requests)
            while waiting:
                for message in netlink.messages(sock.recv(1 << 16)):
                    if message.type == netlink.NLMSG_ERROR:
                        waiting -= 1
                        if number := -struct.unpack_from("=i", message.payload)[0]:
                            raise OSError(number, f"nf_tables: {os.strerror(number)}")

    def close(self) -> None:
        """Free the context and close its socket, which takes the tables owned by it away; again is harmless."""
        if self._context is not None:
            self._library.nft_ctx_free(self._context)
            self._context = None
            _open.discard(self)

    def __enter__(self) -> Nftables:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _forget(self) -> None:
        """In a forked child: close the inherited socket, and never the number again, which others may get."""
        for fd in self._descriptors:
            os.close(fd)
        self._context = None


class OwnedTable:
    """A table `conntracker_PID` of a family that only this process can change and that vanishes with it.

    `text` is what stands between the braces of the table: sets, chains and rules. Made in one transaction, in the
    network namespace of the calling thread. A name that is taken gets a suffix. Raises NftablesError; EOPNOTSUPP or
    EINVAL on Linux < 5.12.
    """

    def __init__(self, text: str, family: str = "inet") -> None:
        self._nft, self._family = Nftables(), family
        try:
            self.name = self._create(text)
        except BaseException:
            self._nft.close()
            raise

    def _create(self, text: str) -> str:
        for suffix in ("", "_1", "_2", "_3"):
            name = f"conntracker_{os.getpid()}{suffix}"
            try:
                # 'create', not 'add': a table of that name that somebody else made must not be added to. Its block
                # is a second command of the same transaction: libnftables 1.0.6 leaves out what 'create' has in it.
                self._nft.run(
                    f"create table {self._family} {name} {{ flags owner; }}\n"
                    f"table {self._family} {name} {{ flags owner;\n{text}\n}}"
                )
            except NftablesError as error:
                # EEXIST: a table without owner has the name. EPERM: one with another owner, or no privilege.
                if error.errno not in {errno.EEXIST, errno.EPERM} or suffix == "_3":
                    raise
            else:
                return name
        raise AssertionError

    def run(self, commands: str) -> str:
        """Run nft commands with the rights of the table's owner."""
        return self._nft.run(commands)

    def flush(self, names: list[str]) -> None:
        """Empty sets of the table, all in one transaction. Raises OSError.

        By netlink on the socket that owns the table: libnftables would read the whole ruleset first.
        """
        self._nft.transact([
            netlink.request(_DELSETELEM, netlink.NLM_F_ACK, number, _FAMILIES[self._family], _set_of(self.name, name))
            for number, name in enumerate(names, _SEQUENCE)
        ])  # fmt: skip

    def remove(self) -> None:
        """Remove the table by closing the socket that owns it; again is harmless."""
        self._nft.close()

    def __enter__(self) -> OwnedTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _set_of(table: str, name: str) -> bytes:
    """Which set: NFTA_SET_ELEM_LIST_TABLE and NFTA_SET_ELEM_LIST_SET; without elements, all are meant."""
    return netlink.attribute(1, table.encode() + b"\0") + netlink.attribute(2, name.encode() + b"\0")


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError:
        raise LibraryMissing("libnftables.so.1 is missing: install libnftables1") from None
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error", "nft_ctx_output_get_flags"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
        getattr(library, name).restype = ctypes.c_char_p
    return library


def _netlink_descriptors() -> set[int]:
    """Descriptors of this process that are NETLINK_NETFILTER sockets: other threads may open files meanwhile."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            is_socket = os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except FileNotFoundError:  # the descriptor of the listing itself, closed by now
            continue
        if is_socket:
            with socket.socket(fileno=os.dup(int(name))) as copy:
                if (copy.family, copy.proto) == (socket.AF_NETLINK, NETLINK_NETFILTER):
                    found.add(int(name))
    return found


def _error(text: str) -> NftablesError:
    line = next((line for line in text.splitlines() if "Error:" in line), text.strip() or "nft failed")
    message = line.partition("Error: ")[2] or line
    made = NftablesError(_ERRNO_OF.get(message.rpartition(": ")[2].strip(), 0), message)
    made.text = text
    return made


def _close_inherited() -> None:
    for context in _open:
        context._forget()
    _open.clear()


os.register_at_fork(after_in_child=_close_inherited)
