"""Ten million mutated datagrams through the decoder: only records or DecodeError, and the process stays alive.

The seeds are real: events of real traffic and pieces of a dump, received in a namespace made for it. Each is changed in
one to eight places: single bits, bytes, whole 16-bit lengths and types, 32-bit words, its end cut off, or its rows
mixed up. Rows go through the columnar decoder; every thousandth also through the plain walk, one by one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import common

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DATAGRAMS = 10_000_000
ROWS = 8192

# Runs inside the namespace: listens, lets traffic happen, and writes what it received.
COLLECT = """
import subprocess, sys, time
import numpy as np
from conntracker.sources.conntrack import Dump, EventSocket

socket = EventSocket()
for mode in ("udp", "udp6", "mix", "tcp"):
    subprocess.run([sys.argv[1], mode, "400", "0", "7"], check=True, stdout=subprocess.DEVNULL)
subprocess.run(["conntrack", "-F"], check=True, stderr=subprocess.DEVNULL)
subprocess.run([sys.argv[1], "tcp", "100", "0", "8"], check=True, stdout=subprocess.DEVNULL)
while socket.receive():
    pass
rows, lengths = socket.take()
dump = [(words[offsets[i]:offsets[i] + (int(words[offsets[i]]) + 3) // 4]) for words, offsets in Dump() for i in range(len(offsets))]
more = np.zeros((len(dump), rows.shape[1]), np.uint32)
for i, words in enumerate(dump):
    more[i, :len(words)] = words
np.savez(sys.argv[2], rows=np.concatenate([rows, more]), lengths=np.concatenate([lengths, more[:, 0]]))
"""  # noqa: E501


def collect(path: Path) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Real datagrams: (rows, lengths)."""
    import numpy as np

    with common.Namespace() as namespace:
        namespace.run("sysctl", "-qw", "net.netfilter.nf_conntrack_acct=1", "net.netfilter.nf_conntrack_timestamp=1")
        namespace.run(*common.python("-c", COLLECT, common.build("gen"), str(path)))
    with np.load(path) as kept:
        return kept["rows"], kept["lengths"]


class Mutator:
    """Turns real datagrams into wrong ones, thousands at a time."""

    def __init__(self, rows: NDArray[np.uint32], lengths: NDArray[np.uint32], seed: int) -> None:
        import numpy as np

        self._rows, self._lengths = rows, lengths
        self._random = np.random.default_rng(seed)

    def rows(self, n: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """A mix of n mutants: (rows, received lengths)."""
        import numpy as np

        chosen = self._random.integers(0, len(self._rows), n)
        rows, lengths = self._rows[chosen], self._lengths[chosen].copy()
        raw = rows.view(np.uint8)
        for _ in range(int(self._random.integers(1, 9))):
            self._change(raw, lengths)
        cut = self._random.random(n) < 0.02
        lengths[cut] = (lengths[cut] * self._random.random(int(cut.sum()))).astype(np.uint32)
        honest = self._random.random(n) < 0.5  # a wrong end with a right header gets past the first check
        rows[cut & honest, 0] = lengths[cut & honest]
        return rows, lengths

    def _change(self, raw: NDArray[np.uint8], lengths: NDArray[np.uint32]) -> None:
        """Changes one place of a tenth to all of the rows."""
        import numpy as np

        some = np.flatnonzero(self._random.random(len(raw)) < self._random.choice([0.1, 0.3, 1.0]))
        at = (self._random.random(len(some)) * lengths[some]).astype(np.intp)
        kind = int(self._random.integers(0, 5))
        if kind == 0:
            raw[some, at] ^= (1 << self._random.integers(0, 8, len(some))).astype(np.uint8)
        elif kind == 1:
            raw[some, at] = self._random.integers(0, 256, len(some))
        elif kind == 2:  # the low byte of an attribute's length or type
            raw[some, at & ~1] = self._random.choice([0, 1, 2, 3, 4, 5, 8, 255], len(some))
        elif kind == 3:
            for i in range(4):
                raw[some, (at & ~3) + i] = self._random.choice([0, 255], len(some))
        else:  # half of another datagram
            other = self._random.permutation(some)
            start = int(self._random.integers(5, 60)) * 4
            raw[some, start:] = raw[other, start:]


def report(error: BaseException, rows: NDArray[np.uint32], lengths: NDArray[np.uint32], seed: int) -> None:
    """Says what happened, and keeps the datagrams that did it."""
    import numpy as np

    traceback.print_exception(error)
    common.BUILD.mkdir(exist_ok=True)
    kept = common.BUILD / f"fuzz-{seed}.npz"
    np.savez(kept, rows=rows, lengths=lengths)
    print(f"the datagrams are in {kept}")


def walk_one(rows: NDArray[np.uint32], lengths: NDArray[np.uint32], step: int) -> tuple[int, int]:
    """Every `step`-th row through the plain walk. Returns (records, refused)."""
    from conntracker.model import DecodeError
    from conntracker.wire.conntrack import decode_message

    records = refused = 0
    for i in range(0, len(rows), step):
        try:
            decode_message(rows[i].tobytes()[: int(lengths[i])])
            records += 1
        except DecodeError:
            refused += 1
    return records, refused


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=DATAGRAMS, metavar="N")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)), metavar="N")
    arguments = parser.parse_args()
    common.need_root()
    common.end_on_sigterm()
    sys.path.insert(0, str(common.ROOT / "src"))
    from conntracker.wire.columns import Decoder

    with tempfile.TemporaryDirectory() as directory:
        try:
            seeds = collect(Path(directory) / "seeds.npz")
        except subprocess.CalledProcessError as error:
            common.give_up(f"no real datagrams: {error}")
    print(f"{len(seeds[0]):,} real datagrams, seed {arguments.seed}")
    mutator, decoder = Mutator(*seeds, arguments.seed), Decoder()
    done = records = walked = surprises = 0
    spent = 0.0
    while done < arguments.count:
        rows, lengths = mutator.rows(ROWS)
        start = time.perf_counter()
        try:
            records += sum(len(batch) for batch in decoder.decode_rows(rows, lengths, 0))
            spent += time.perf_counter() - start
            walked += sum(walk_one(rows, lengths, 1000))
        except Exception as error:
            surprises += 1
            report(error, rows, lengths, arguments.seed)
            break
        done += len(rows)
    common.table(
        ("datagrams", "records", "undecodable", "walked alone", "unknown attributes", "a second"),
        [(done, records, decoder.undecodable, decoder.walked, decoder.unknown, int(done / max(spent, 1e-9)))],
    )
    return common.judge([common.Claim("anything but records or DecodeError", surprises, 0)])


if __name__ == "__main__":
    sys.exit(main())
