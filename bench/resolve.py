"""10,000 rules and 100,000 traces: from trace messages to steps with the rules' text, in CPU seconds."""

from __future__ import annotations

import argparse
import random
import resource
import struct
import subprocess
import sys
import time

from conntracker.assembly import Assembler
from conntracker.clock import now
from conntracker.rules.snapshot import Snapshot
from conntracker.sources.netns import Namespace
from conntracker.sources.rulesets import read_texts
from conntracker.tracekeeper import TraceKeeper
from conntracker.traces import Resolver, Rulesets
from conntracker.wire.netlink import attribute, nested
from conntracker.wire.nftrace import TraceDecoder

_DEMANDED = 2.0  # seconds of CPU


def ruleset(rules: int) -> str:
    """A chain of rules that differ, as people write them."""
    lines = (
        f"        ip saddr 10.{i >> 8 & 255}.{i & 255}.0/24 tcp dport {i % 60000 + 1} counter accept"
        for i in range(rules)
    )
    head = "table ip bench {\n    chain input {\n        type filter hook input priority 0; policy drop;\n"
    return head + "\n".join(lines) + "\n    }\n}\n"


def number(kind: int, value: int) -> bytes:
    """A 32-bit attribute."""
    return attribute(kind, struct.pack("!I", value))


def message(packet: int, table: bytes, chain: bytes, handle: int, verdict: int, more: bytes = b"") -> bytes:
    """The payload of a trace message, as the kernel lays it out."""
    body = bytes([2, 0, 0, 0]) + number(15, 2) + number(4, 3) + number(6, packet)
    body += attribute(2, chain + b"\0") + attribute(1, table + b"\0") + attribute(3, struct.pack("!Q", handle))
    return body + nested(5, number(1, verdict)) + more


def packet_of(i: int) -> list[bytes]:
    """Three messages: our table's first, one rule's, our table's last."""
    header = struct.pack("!BBHHHBBHII", 0x45, 0, 40, i & 0xFFFF, 0, 64, 6, 0, 0x0A000000 | i, 0x0A000001)
    transport = struct.pack("!HHIIBBHHH", 1024 + i % 60000, 443, i, 0, 0x50, 2, 100, 0, 0)
    headers = number(10, 2) + attribute(8, header) + attribute(9, transport)
    rule = random.randrange(10_000)  # noqa: S311
    number_ = i & 0xFFFFFFFF
    return [
        message(number_, b"conntracker_1", b"pre", 1, 1, headers),
        message(number_, b"bench", b"input", rule + 2, 1, headers),
        message(number_, b"conntracker_1", b"input", 2, 1, headers),
    ]


def main() -> int:
    """Prints the figures; 1 if they are more than demanded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rules", type=int, default=10_000)
    parser.add_argument("--traces", type=int, default=100_000)
    options = parser.parse_args()
    random.seed(1)
    with Namespace.create():
        subprocess.run(["nft", "-f", "-"], input=ruleset(options.rules).encode(), check=True)
        texts = read_texts()
    messages = [packet_of(i) for i in range(options.traces)]
    began = time.process_time()
    snapshot = Snapshot.parse(texts)
    parsed = time.process_time() - began
    rulesets, decoder, assembler, keeper = Rulesets(), TraceDecoder(), Assembler(), TraceKeeper()
    rulesets.put(snapshot, 0, 0)
    resolver = Resolver(rulesets, lambda index: f"eth{index}" if index else None)
    fed = resolved = 0.0
    texts_seen = 0
    for start in range(0, len(messages), 2000):
        began = time.process_time()
        for three in messages[start : start + 2000]:
            for body in three:
                assembler.feed(decoder.decode(body), now())
        passages = assembler.take(now())
        fed += time.process_time() - began
        began = time.process_time()
        traces = [trace for passage in passages if (trace := resolver.trace(passage)) is not None]
        keeper.take(traces)
        resolved += time.process_time() - began
        texts_seen += sum(
            trace.path.steps[0].rule is not None and bool(trace.path.steps[0].rule.text) for trace in traces
        )
    print(f"{options.rules:,} rules parsed: {parsed:.2f} s")
    print(f"{options.traces:,} traces ({texts_seen:,} with their rule's text) resolved and kept: {resolved:.2f} s")
    print(f"together {parsed + resolved:.2f} s of CPU, at most {_DEMANDED:.2f}")
    print(f"decoding and assembling before: {fed:.2f} s, {fed / len(messages) / 3 * 1e6:.1f} us a message")
    print(f"memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MB")
    return 0 if parsed + resolved <= _DEMANDED and texts_seen == options.traces else 1


if __name__ == "__main__":
    sys.exit(main())
