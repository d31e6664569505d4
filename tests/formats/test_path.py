from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.formats.path import LEGEND, diagram
from conntracker.steps import HOOKS, UNDECIDED, Path
from support.traces import DROPPED, LOST, step

PLAIN = """\
   a packet comes in                                 a local process sends
           |                                                   |
+------ INGRESS -------+                               routing decision
           |                                                   |
+----- PREROUTING -----+                            +------- OUTPUT -------+
|  raw                 |                            |  raw                 |
|  (conntrack)         |                            |  (conntrack)         |
|  mangle              |                            |  mangle              |
|  nat (DNAT)          |                            |  nat (DNAT)          |
+----------+-----------+                            |  filter              |
           |                                        |  security            |
           |                                        +----------+-----------+
           |                                                   |
   routing decision -- for us -------+                         |
           |                         |                         |
      for others                     |                         |
           |                         |                         |
+------ FORWARD -------+  +------- INPUT --------+             |
|  mangle              |  |  mangle              |             |
|  filter              |  |  filter              |             |
|  security            |  |  security            |             |
+----------+-----------+  |  nat (SNAT)          |             |
           |              |  (conntrack)         |             |
           |              +----------+-----------+             |
           |                         |                         |
           |                  a local process                  |
           |                                                   |
+---- POSTROUTING -----+                                       |
|  mangle              | <-------------------------------------+
|  nat (SNAT)          |
|  (conntrack)         |
+----------+-----------+
           |
+------- EGRESS -------+
           |
  a packet goes out (through lo it comes in again)
"""


def marked(path: Path) -> dict[str, list[str]]:
    """The marked lines of a diagram by hook, and the hooks with a mark of their own."""
    found: dict[str, list[str]] = {}
    for column in (slice(0, 24), slice(26, 50), slice(52, 76)):
        hook = ""
        for line in diagram(path).splitlines()[:-1]:
            cell = line[column]
            if cell.startswith("+-") and " " in cell:
                hook = cell.strip("+- ")
                if hook[-1] in "*?":
                    found[hook] = []
            elif cell[:1] == "|" and cell[1:2] in ("*", "#"):
                found[hook].append(cell[1:-1].strip())
    return found


def test_unmarked() -> None:
    """Without a path it is the plain diagram."""
    assert diagram() == PLAIN


def test_what_was_passed_and_what_decided() -> None:
    """The tables that a packet met are marked, and the one that decided, with its verdict."""
    assert marked(DROPPED) == {"PREROUTING *": ["* raw"], "FORWARD *": ["# filter         DROP"]}
    assert diagram(DROPPED).endswith(f"\n\n{LEGEND}\n")


def test_what_was_not_seen() -> None:
    """Hooks of which one should have come next have a question mark."""
    assert marked(LOST) == {"PREROUTING *": ["* inet fw pre"], "FORWARD ?": [], "INPUT ?": []}


def test_native_chains_stand_by_priority() -> None:
    """A chain that is no table of iptables stands among them by its priority, cut where it is too long."""
    steps = (
        step("input", "inet fw early", "accept", kind="nft", priority=-400),
        step("input", "ip mangle INPUT", "accept", priority=-150),
        step("input", "inet firewalld filter_INPUT", "accept", kind="nft", priority=10),
        step("input", "ip filter INPUT", "accept", priority=0),
        step("ingress", "netdev in eth0", "accept", kind="nft"),
    )
    assert marked(Path(steps, "accept", 3, "input")) == {
        "INGRESS *": ["* netdev in eth0"],
        "PREROUTING *": [],
        "INPUT *": ["* inet fw early", "* mangle", "# filter       ACCEPT", "* inet firewalld fil~"],
    }


def test_a_native_filter_table_is_not_that_of_iptables() -> None:
    """nft's own table of the same name is a chain of its own."""
    path = Path((step("forward", "ip filter FORWARD", "drop", kind="nft"),), "drop", 0, "forward")
    assert marked(path) == {"PREROUTING *": [], "FORWARD *": ["# ip filter FOR~ DROP"]}


@pytest.mark.parametrize("decided", [0, 1])
def test_one_table_of_both_kinds(decided: int) -> None:
    """Where iptables-legacy and iptables-nft have a table of one name in a hook, the one that decided has the mark."""
    verdicts = ["drop" if number == decided else "accept" for number in range(2)]
    steps = tuple(
        step("forward", "ip filter FORWARD", verdict, kind=kind)
        for kind, verdict in zip(("iptables-legacy", "iptables-nft"), verdicts, strict=True)
    )
    assert marked(Path(steps, "drop", decided, "forward"))["FORWARD *"] == ["# filter         DROP"]


@pytest.mark.parametrize(
    ("seen", "reached", "passed"),
    [
        ((), "input", "PREROUTING INPUT"),
        ((), "forward", "PREROUTING FORWARD"),
        (("output",), "postrouting", "OUTPUT POSTROUTING"),
        (("prerouting",), "postrouting", "PREROUTING FORWARD POSTROUTING"),
        (("output",), "input", "PREROUTING INPUT OUTPUT POSTROUTING"),
        (("ingress",), "prerouting", "INGRESS PREROUTING"),
        ((), "postrouting", "POSTROUTING"),
        ((), None, ""),
    ],
)
def test_hooks_that_lie_before(seen: tuple[str, ...], reached: str | None, passed: str) -> None:
    """A hook that a packet must have passed is marked, also where no chain is."""
    steps = tuple(step(hook, "inet fw a", "accept", kind="nft") for hook in seen)
    assert {hook.split()[0] for hook in marked(Path(steps, "accept", None, reached))} == set(passed.split())


STEPS = st.builds(
    step,
    st.none() | st.sampled_from(HOOKS),
    st.sampled_from(("ip raw X", "inet fw a", "bridge t ccccccccccccccccccccccccccccccc", "ip nat POSTROUTING")),
    st.sampled_from(("accept", "drop")),
    kind=st.sampled_from(("nft", "iptables-nft", "iptables-legacy")),
    priority=st.integers(-400, 400),
)


@given(st.lists(STEPS, max_size=8), st.data())
def test_any_path_fits(steps: list[Any], data: st.DataObject) -> None:
    """Whatever the path, the diagram is ASCII of at most 80 columns, and every line of the plain one has its place."""
    decided = data.draw(st.none() | st.integers(0, len(steps) - 1)) if steps else None
    text = diagram(Path(tuple(steps), UNDECIDED if decided is None else "drop", decided, None))
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) >= len(PLAIN.splitlines()) + 2


def test_the_deciding_step_may_have_no_hook() -> None:
    """A step whose hook is not known is in no box."""
    assert marked(Path((replace(DROPPED.steps[0], hook=None),), "drop", 0, None)) == {}
