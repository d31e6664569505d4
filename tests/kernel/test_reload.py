"""Rules that are replaced while packets pass: each step has the text of the rule that was there."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from conntracker.lab.topology import CLIENT, SERVER, Lab
from conntracker.steps import Trace
from conntracker.tracer import Tracer
from conntracker.tracetable import TraceOptions

VERSIONS = 15


def native(version: int) -> str:
    """A ruleset that leads port 7000 to a port with its number; odd ones have more rules before it."""
    more = "\n".join(f"udp dport {20000 + i} counter accept" for i in range(5 * (version % 2)))
    return f"""
        table ip t
        delete table ip t
        table ip t {{
            chain pre {{
                type nat hook prerouting priority -100
                {more}
                udp dport 7000 dnat to :{10000 + version}
            }}
        }}
    """


def iptables(version: int) -> str:
    """The same for iptables-restore."""
    more = "".join(f"-A PREROUTING -p udp --dport {20000 + i} -j ACCEPT\n" for i in range(5 * (version % 2)))
    chains = "".join(f":{name} ACCEPT\n" for name in ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"))
    rule = f"-A PREROUTING -p udp --dport 7000 -j DNAT --to-destination :{10000 + version}\n"
    return f"*nat\n{chains}{more}{rule}COMMIT\n"


KINDS = {
    "nft": (["nft", "-f", "-"], native, "dnat to :{}"),
    "iptables-nft": (["iptables-nft-restore"], iptables, "--to-destination :{}"),
    "iptables-legacy": (["iptables-legacy-restore"], iptables, "--to-destination :{}"),
}

# Sends a datagram from a new port every few milliseconds, until its input ends.
SENDER = """
import select, socket, sys, time
for port in range(20000, 60000):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((sys.argv[1], port))
        sock.sendto(b"x", (sys.argv[2], 7000))
    if select.select([sys.stdin], [], [], 0.004)[0]:
        break
"""


def load(lab: Lab, kind: str, version: int) -> None:
    """Replaces the router's ruleset."""
    command, ruleset, _ = KINDS[kind]
    with lab.router:
        subprocess.run(command, input=ruleset(version), text=True, check=True, timeout=20)


def reload_often(lab: Lab, kind: str) -> None:
    """All versions, one after the other."""
    for version in range(1, VERSIONS + 1):
        time.sleep(0.25)
        load(lab, kind, version)


@pytest.mark.needs("nft", "iptables-nft-restore", "iptables-legacy-restore")
@pytest.mark.parametrize("kind", KINDS)
def test_steps_have_the_rule_that_was_there(kind: str) -> None:
    """No step claims another rule than the one that led the packet on, and nearly all of them name it."""
    with Lab(None) as lab:
        load(lab, kind, 0)
        with Tracer(lab.router, TraceOptions(), lambda line: None) as tracer:
            with lab.client:
                sender = subprocess.Popen(
                    [sys.executable, "-c", SENDER, CLIENT[4], SERVER[4]], stdin=subprocess.PIPE
                )  # fmt: skip
            reloads = threading.Thread(target=reload_often, args=(lab, kind))
            reloads.start()
            traces: list[Trace] = []
            while reloads.is_alive():
                traces += tracer.poll(0.02)
            sender.communicate(b"", timeout=10)
            traces += tracer.finish()
            assert tracer.lost == 0
    told = [(trace.left.dport or 0, trace) for trace in traces if trace.packet.dport == 7000]
    told = [(port, trace) for port, trace in told if port >= 10000]
    assert len({port for port, _ in told}) > VERSIONS - 3
    right = 0
    for port, trace in told:
        steps = [step for step in trace.path.steps if step.rule is not None and step.chain in ("pre", "PREROUTING")]
        assert len(steps) == 1, trace
        text = steps[0].rule.text if steps[0].rule is not None else None
        if text is not None and text.endswith(KINDS[kind][2].format(port)):
            right += 1
        else:
            assert text is None or not steps[0].certain, (port, steps[0])
    assert right >= len(told) * 0.8, (right, len(told))
