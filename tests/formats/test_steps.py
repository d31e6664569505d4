"""The lines of steps under a flow in the text log."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.formats import log
from conntracker.formats.steps import Key, all_step_lines, interleave, reply_of, step_lines
from conntracker.model import ADDRESS_COLUMNS, U32, U64
from conntracker.steps import UNDECIDED, Path, Rule, Step
from support.senders import owner
from support.traces import step

INDENT = "\t\t\t\t"
FORWARD = "ip filter FORWARD"


def path(*steps: Step, verdict: str = "accept", **more: Any) -> Path:
    """A path of which the last step decided."""
    decided = len(steps) - 1 if steps and verdict != UNDECIDED else None
    return Path(steps, verdict, decided, **more)


def lines(*paths: Path) -> list[str]:
    """The lines without their indent."""
    made = step_lines(paths)
    assert all(line.startswith(INDENT) and "\n" not in line for line in made)
    return [line.removeprefix(INDENT) for line in made]


STEPS = [
    (step("forward", FORWARD, "continue", "-A FORWARD -j LOG", 3, "iptables-legacy"),
     "table: filter, chain: FORWARD, type: rule, position: 3"),
    (step("forward", "ip filter sub", "return", kind="iptables-legacy", type="return"),
     "table: filter, chain: sub, type: return"),
    (step("forward", "ip filter sub", "return", "-A sub -j RETURN", 2, "iptables-legacy", type="return"),
     "table: filter, chain: sub, type: return, position: 2"),
    (step("forward", FORWARD, "accept", kind="iptables-legacy"), "table: filter, chain: FORWARD, type: policy"),
    (step("forward", "ip6 filter FORWARD", "drop"), "table: filter, chain: FORWARD, type: policy"),
    (step("forward", FORWARD, "continue", "-A FORWARD -j LOG", 3, handle=9),
     "table: filter, chain: FORWARD, type: rule, position: 3"),
    (step("forward", FORWARD, "continue", handle=9), "table: filter, chain: FORWARD, type: rule, handle: 9"),
    (step("input", "inet fw input", "accept", "tcp dport 22 accept", 1, "nft", 7),
     "family: inet, table: fw, chain: input, type: rule, handle: 7, rule: tcp dport 22 accept"),
    (step("input", "inet fw input", "accept", None, None, "nft", 7),
     "family: inet, table: fw, chain: input, type: rule, handle: 7"),
    (step("input", "inet fw input", "accept", kind="nft"), "family: inet, table: fw, chain: input, type: policy"),
    (step("input", "inet fw sub", "return", kind="nft", type="return"),
     "family: inet, table: fw, chain: sub, type: return"),
    (step(None, "netdev fw in", "accept", "accept", 1, "nft", 3),
     "family: netdev, table: fw, chain: in, type: rule, handle: 3, rule: accept"),
    (Step("forward", 0, "iptables-nft", "ip", "filter", "FORWARD", "rule",
          Rule("nft", "ip", "filter", "FORWARD", 2, 6, "counter"), "continue"),
     "table: filter, chain: FORWARD, type: rule, handle: 6, rule: counter"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "line"), STEPS)
def test_lines_of_steps(one: Step, line: str) -> None:
    """Rules of iptables stand as the original tool wrote them, those of nft with family, handle and text."""
    assert lines(path(one)) == [line]


DROP = step("forward", FORWARD, "drop", "-A FORWARD -p tcp -j DROP", 3, "iptables-legacy")
DROP_LINE = "table: filter, chain: FORWARD, type: rule, position: 3"
ENDS: list[tuple[Path, str | None]] = [
    (path(DROP, verdict="drop"), f"verdict: drop, by {DROP_LINE} (iptables-legacy), rule: -A FORWARD -p tcp -j DROP"),
    (path(step("input", "ip filter INPUT", "reject", "-A INPUT -j REJECT", 1), verdict="reject"),
     "verdict: reject, by table: filter, chain: INPUT, type: rule, position: 1 (iptables-nft),"
     " rule: -A INPUT -j REJECT"),
    (path(step("input", "inet fw input", "drop", "counter drop", 1, "nft", 7), verdict="drop"),
     "verdict: drop, by family: inet, table: fw, chain: input, type: rule, handle: 7, rule: counter drop"),
    (path(step("input", "inet fw input", "drop", None, None, "nft", 7), verdict="drop"),
     "verdict: drop, by family: inet, table: fw, chain: input, type: rule, handle: 7"),
    (path(step("forward", FORWARD, "drop"), verdict="drop"),
     "verdict: drop, by table: filter, chain: FORWARD, type: policy (iptables-nft)"),
    (path(step("input", "inet fw input", "drop", "drop", 1, "nft", 7, certain=False), verdict="drop"),
     "verdict: drop, by family: inet, table: fw, chain: input, type: rule, handle: 7, rule: drop"
     " (the rules changed in that moment: maybe another)"),
    (path(step("input", "ip filter INPUT", "queue", "-A INPUT -j NFQUEUE", 1), verdict="queue"),
     "verdict: queue, by table: filter, chain: INPUT, type: rule, position: 1 (iptables-nft),"
     " rule: -A INPUT -j NFQUEUE"),
    (Path((), "drop", None), "verdict: drop"),
    (path(verdict=UNDECIDED, reached="prerouting"),
     "verdict: not known, last seen at prerouting, and no rule ended it"),
    (path(verdict=UNDECIDED), "verdict: not known, not seen at any hook, and no rule ended it"),
    (path(step("forward", FORWARD, "accept")), None),
]  # fmt: skip


@pytest.mark.parametrize(("made", "end"), ENDS)
def test_what_became_of_packets(made: Path, end: str | None) -> None:
    """Below the steps stands what ended the packet; of what passed the flow itself tells."""
    assert lines(made)[len(made.steps) :] == ([] if end is None else [end])


def rule(hook: str, chain: str, number: int, priority: int = 0) -> Step:
    """A step of an iptables rule."""
    return step(hook, f"ip filter {chain}", "continue", f"-A {chain}", number, priority=priority)


RAW, FIRST, SECOND = rule("prerouting", "raw", 1, -300), rule("forward", "F", 1), rule("forward", "F", 2)
MANGLE, POST, OUT = rule("forward", "M", 1, -150), rule("postrouting", "P", 1), rule("output", "O", 1)
PRE, IN = rule("prerouting", "R", 1), rule("input", "I", 1)
MERGED: list[tuple[list[list[Step]], list[Step]]] = [
    ([[RAW, FIRST, POST], [RAW, FIRST, POST]], [RAW, FIRST, POST]),
    ([[RAW, FIRST, POST], [RAW, FIRST, SECOND, POST]], [RAW, FIRST, SECOND, POST]),
    ([[RAW, FIRST, SECOND], [RAW, FIRST, POST]], [RAW, FIRST, SECOND, POST]),
    ([[FIRST, POST], [RAW, MANGLE, FIRST, POST]], [RAW, MANGLE, FIRST, POST]),
    ([[RAW, FIRST], [MANGLE, POST]], [RAW, MANGLE, FIRST, POST]),
    ([[OUT, POST], [OUT, POST, PRE, IN]], [OUT, POST, PRE, IN]),
    ([[RAW, FIRST], []], [RAW, FIRST]),
    ([], []),
]


@pytest.mark.parametrize(("paths", "merged"), MERGED)
def test_several_paths(paths: list[list[Step]], merged: list[Step]) -> None:
    """The steps of a direction's packets stand once each, in the order in which packets meet them."""
    assert lines(*(path(*steps) for steps in paths)) == lines(path(*merged))


def test_a_step_before_one_that_is_known() -> None:
    """A later packet's own steps stand before those that it met after them, in the same chain, too."""
    third = rule("forward", "F", 3)
    made = lines(path(SECOND, third), path(FIRST, third))
    assert made.index(lines(path(FIRST))[0]) < made.index(lines(path(third))[0])


def test_ends_of_several_paths() -> None:
    """Each way that packets ended stands once, below all steps."""
    dropped, passed = path(FIRST, DROP, verdict="drop"), path(FIRST, SECOND)
    made = lines(dropped, passed, path(RAW, DROP, verdict="drop"))
    assert [line for line in made if line.startswith("verdict")] == made[-1:]
    assert len(made) == 5


ANY_STEP = st.builds(
    rule, st.sampled_from(["prerouting", "forward", "postrouting"]), st.sampled_from("AB"), st.integers(1, 3),
    st.sampled_from([-300, 0, 100]),
)  # fmt: skip


@given(st.lists(ANY_STEP, max_size=12))
def test_the_steps_of_one_path_keep_their_order(steps: list[Step]) -> None:
    """One packet's steps stand in its order, each line where it came first."""
    each = [lines(path(one))[0] for one in steps]
    assert lines(path(*steps)) == list(dict.fromkeys(each))


@given(st.lists(st.lists(ANY_STEP, max_size=6), max_size=5))
def test_no_step_is_left_out(paths: list[list[Step]]) -> None:
    """Whatever paths are merged, each of their lines stands there once."""
    made = lines(*(path(*steps) for steps in paths))
    each = {lines(path(one))[0] for steps in paths for one in steps}
    assert (set(made), len(made)) == (each, len(each))


def test_lines_of_many_directions() -> None:
    """Each direction has the lines of its own paths."""
    one, other = path(FIRST), path(SECOND)
    keys: list[Key] = [(4, 6, 1, 2, port, 80) for port in range(3)]
    made = all_step_lines({keys[0]: [one], keys[1]: [other], keys[2]: [one]})
    assert made == {keys[0]: step_lines([one]), keys[1]: step_lines([other]), keys[2]: step_lines([one])}


REPLIES: list[tuple[Key, Key | None]] = [
    ((4, 1, 1, 2, 0, 0), (4, 1, 2, 1, 8, 0)),
    ((4, 1, 1, 2, 14, 0), (4, 1, 2, 1, 13, 0)),
    ((4, 1, 1, 2, 16, 0), (4, 1, 2, 1, 15, 0)),
    ((4, 1, 1, 2, 18, 0), (4, 1, 2, 1, 17, 0)),
    ((6, 58, 1, 2, 129, 0), (6, 58, 2, 1, 128, 0)),
    ((4, 1, 1, 2, 8, 0), None),
    ((4, 1, 1, 2, 3, 3), None),
    ((6, 58, 1, 2, 0, 0), None),
    ((6, 58, 1, 2, 1, 4), None),
    ((4, 6, 1, 2, 0, 0), None),
    ((4, 17, 1, 2, 129, 0), None),
]


@pytest.mark.parametrize(("key", "request_key"), REPLIES)
def test_what_an_answer_answers(key: Key, request_key: Key | None) -> None:
    """ICMP answers have the direction of their request; errors, requests and other protocols have none."""
    assert reply_of(key) == request_key


def columns(*keys: Key) -> dict[str, np.ndarray[Any, Any]]:
    """Directions as columns."""
    made: dict[str, np.ndarray[Any, Any]] = {
        name: np.array([_word(key, name) for key in keys], np.uint64) for name in ADDRESS_COLUMNS
    }
    return made | {name: np.array([key[at] for key in keys], np.uint16) for name, at in (("sport", 4), ("dport", 5))}


def _word(key: Key, name: str) -> int:
    """A word of an address."""
    address = key[2] if name.startswith("src") else key[3]
    return address >> 64 if name.endswith("hi") else address & 2**64 - 1


def test_interleave() -> None:
    """Each line is followed by the steps of its direction, and a direction without steps by nothing."""
    keys: list[Key] = [(6, 17, 5 << 64 | 1, 7, 1000, 53), (6, 17, 5 << 64 | 2, 7, 1000, 53)]
    other: Key = (6, 6, 5 << 64 | 1, 7, 1000, 53)
    steps = {keys[1]: ["\ta", "\tb"], other: ["\tc"]}
    assert b"".join(interleave(b"one\ntwo\n", (6, 17), columns(*keys), steps)) == b"one\ntwo\n\ta\n\tb\n"


def test_a_rule_that_is_no_text() -> None:
    """Bytes of a comment that are no UTF-8 come out as they were."""
    key: Key = (4, 6, 1, 2, 3, 4)
    assert list(interleave(b"one\n", (4, 6), columns(key), {key: ["\udcff"]})) == [b"one\n", b"\xff\n"]


@pytest.mark.parametrize(("proto", "bits", "label"), [(6, 16, "TCPv4"), (1, 8, "ICMPv4")])
def test_the_log_with_steps(proto: int, bits: int, label: str) -> None:
    """The log's lines are those without steps, with the steps between; steps of other directions are not shown."""
    keys: list[Key] = [(4, proto, 10 << 24 | 1, 10 << 24 | 2, port, 3) for port in (5, 3, 4)]

    def directions(family: int, wanted: int) -> tuple[tuple[U64, ...], U32]:
        chosen = keys if (family, wanted) == (4, proto) else []
        addresses = np.array([key[2] << 32 | key[3] for key in chosen], np.uint64)
        words = (addresses,) if family == 4 else (addresses,) * 4
        return words, np.array([key[4] << bits | key[5] for key in chosen], np.uint32)

    plain, with_steps = io.BytesIO(), io.BytesIO()
    steps = {keys[0]: step_lines([path(RAW, FIRST)]), keys[1]: step_lines([path(SECOND)]), (4, 17, 1, 2, 3, 4): ["x"]}
    assert log.write_log(plain, directions) == log.write_log(with_steps, directions, steps) == 3
    first, second, third = plain.getvalue().decode().splitlines()
    assert with_steps.getvalue().decode().splitlines() == [
        first, *steps[keys[1]], second, third, *steps[keys[0]],
    ]  # fmt: skip
    assert first.lstrip().startswith(label)


def test_the_log_with_steps_and_owners() -> None:
    """Steps stand below lines with owners as below those without."""
    addresses, ports = (
        np.array([1 << 32 | 2, 2 << 32 | 1], np.uint64),
        np.array([5 << 16 | 80, 80 << 16 | 5], np.uint32),
    )

    def directions(family: int, wanted: int) -> log.OwnedDirections:
        here = 2 if (family, wanted) == (4, 6) else 0
        return (addresses[:here],) * (1 if family == 4 else 4), ports[:here], np.array([0, 3], np.uint32)[:here]

    out = io.BytesIO()
    steps = {(4, 6, 2, 1, 80, 5): ["\ta", "\tb"]}
    assert log.write_log(out, directions, steps, {3: owner("a\nb", 7, user="root")}) == 2
    assert out.getvalue().decode().splitlines() == [
        " TCPv4 [           0] src = 0.0.0.1 (port=5) to dst = 0.0.0.2 (port=80) (-)",
        " TCPv4 [           1] src = 0.0.0.2 (port=80) to dst = 0.0.0.1 (port=5) (a?b,pid:7,uid:root)", "\ta", "\tb",
    ]  # fmt: skip
