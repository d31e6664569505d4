"""The watch over the tables of iptables-legacy, against the kernel."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from conntracker.sources.legacy_watch import LegacyWatch
from conntracker.sources.netns import Namespace

pytestmark = pytest.mark.needs("iptables-legacy", "ip6tables-legacy")

RULES = """*filter
:user - [0:0]
-A INPUT -p icmp -m comment --comment "a long name of something" -j ACCEPT
-A INPUT -p icmpv6 -m limit --limit 5/second -m statistic --mode random --probability 0.5 -j ACCEPT
-A OUTPUT -m limit --limit 1/second --limit-burst 2 -m quota --quota 100 -m recent --set --name x -j user
-A user -m hashlimit --hashlimit-above 1/sec --hashlimit-mode srcip --hashlimit-name h -j LOG --log-prefix "abc"
-A user -j RETURN
COMMIT
*raw
-A OUTPUT -m comment --comment "y" -j ACCEPT
COMMIT
"""


def run(*command: str, stdin: str | None = None) -> str:
    """What a program prints."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def watch(space: Namespace) -> Iterator[LegacyWatch]:
    """A watch over a namespace with legacy tables of both families."""
    run("ip", "link", "set", "lo", "up")
    for program in ("iptables", "ip6tables"):
        run(f"{program}-legacy-restore", stdin=RULES)
    made = LegacyWatch()
    assert made.reason is None
    yield made
    made.close()


@pytest.mark.needs("ping")
def test_counters_are_no_change(watch: LegacyWatch) -> None:
    """Traffic moves counters and the state of matches, which is no change, and neither is zeroing them."""
    for address in ("127.0.0.1", "::1"):
        run("ping", "-c", "5", "-i", "0.01", "-W", "1", address)
    assert "policy ACCEPT 10 packets" in run("iptables-legacy", "-nvxL", "OUTPUT")
    assert not watch.changed()
    for program in ("iptables-legacy", "ip6tables-legacy"):
        run(program, "-Z")
        run(program, "-L")
    assert not watch.changed()


@pytest.mark.parametrize("program", ["iptables-legacy", "ip6tables-legacy"])
@pytest.mark.parametrize(
    "change",
    [
        "-A INPUT -j DROP",
        "-D INPUT 1",
        "-R user 2 -j ACCEPT",
        "-P FORWARD DROP",
        "-N more",
        "-E user other",
        "-t raw -R OUTPUT 1 -m comment --comment z -j ACCEPT",
        "-t mangle -L",
    ],
)
def test_each_change_is_told_once(watch: LegacyWatch, program: str, change: str) -> None:
    """A change of a rule, a chain, a policy or the list of tables is told by the next look, and only by that."""
    run(program, *change.split())
    assert watch.changed()
    assert not watch.changed()


def test_replacing_a_ruleset_by_itself_is_no_change(watch: LegacyWatch) -> None:
    """Loading the same rules again makes no other rules."""
    run("iptables-legacy-restore", stdin=RULES)
    assert not watch.changed()


def test_it_looks_where_it_was_made(watch: LegacyWatch) -> None:
    """It keeps to its namespace: changes elsewhere are none, and asking from elsewhere makes no difference."""
    with Namespace.create():
        run("iptables-legacy", "-A", "INPUT", "-j", "DROP")
        assert not watch.changed()
    run("iptables-legacy", "-A", "INPUT", "-j", "DROP")
    with Namespace.create():
        assert watch.changed()


def test_looking_makes_no_table(space: Namespace) -> None:
    """A namespace without tables has none after a look, and the first one is a change."""
    watch = LegacyWatch()
    assert not watch.changed()
    with open("/proc/thread-self/net/ip_tables_names") as file:
        assert file.read() == ""
    run("iptables-legacy", "-t", "raw", "-L")
    assert watch.changed()
    watch.close()
    watch.close()
    assert not watch.changed()
