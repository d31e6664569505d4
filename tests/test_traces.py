"""Packets' steps to paths: the rules that were in force, the order of both kinds, and what it comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.assembly import Assembler, LegacyStep, NftStep, Passage
from conntracker.rules.snapshot import Snapshot
from conntracker.steps import Packet, Path, Step
from conntracker.traces import Known, Resolver, Rulesets, conclude
from support.paths import written
from support.traces import step
from support.tracing import error, ip, legacy, nft, own, passage, snapshot, udp

FW, OTHER = ("inet", "fw"), ("ip", "other")

# --- rulesets ------------------------------------------------------------------------------------------------------


def one(number: int) -> Snapshot:
    """A ruleset that differs from others by its number."""
    return snapshot(f"""\
        table inet fw {{
            chain forward {{ # handle 1
                type filter hook forward priority filter; policy accept;
                tcp dport {number} accept # handle 5
            }}
        }}
        """)


def nth(numbers: Sequence[int | None]) -> tuple[Rulesets, dict[int, int]]:
    """Rulesets read in the epochs of which the number is given, and their numbers by identity."""
    rulesets, known = Rulesets(), {}
    for epoch, number in enumerate(numbers):
        if number is not None:
            made = one(number)
            rulesets.put(made, epoch, None)
            known[id(made)] = number
    return rulesets, known


Change = tuple[int, tuple[str, str], bool]  # epoch, table, whether it was made anew

IN_FORCE: list[tuple[str, list[int | None], list[Change], tuple[int, int], list[int], bool]] = [
    ("read in its epoch", [10, 11], [(1, FW, False)], (1, 1), [11], True),
    ("not read, another table changed", [10, None], [(1, OTHER, True)], (1, 1), [10], True),
    ("not read, the next change is of another table", [10, None, 12], [(1, FW, False), (2, OTHER, True)],
     (1, 1), [12], True),
    ("not read, changed before and after", [10, None, 12], [(1, FW, False), (2, FW, False)], (1, 1), [10, 12], False),
    ("not read, made anew before", [10, None, 12], [(1, FW, True), (2, FW, False)], (1, 1), [], False),
    ("not read, made anew after", [10, None, 12], [(1, FW, False), (2, FW, True)], (1, 1), [], False),
    ("not read, made anew long before", [10, 11, None, 13], [(1, FW, True), (2, FW, False), (3, FW, False)],
     (2, 2), [11, 13], False),
    ("changed since the last reading", [10, None], [(1, FW, False)], (1, 1), [], False),
    ("before the first reading", [None, 11], [(1, FW, False)], (0, 0), [], False),
    ("never read", [], [], (0, 0), [], False),
    ("either of two", [10, 11], [(1, FW, False)], (0, 1), [10, 11], True),
    ("either of two that are the same", [10, None], [(1, OTHER, False)], (0, 1), [10], True),
    ("either of two, one not known", [10, None], [(1, FW, False)], (0, 1), [], False),
    ("either of two, one between", [10, None, 12], [(1, FW, False), (2, FW, False)], (0, 1), [10, 12], False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("numbers", "changes", "epochs", "found", "whole"), [case[1:] for case in IN_FORCE],
    ids=[case[0] for case in IN_FORCE],
)  # fmt: skip
def test_which_rules_were_in_force(
    numbers: list[int | None], changes: list[Change], epochs: tuple[int, int], found: list[int], whole: bool
) -> None:
    """A table's rules are those of the reading nearest by between which and the packet it did not change."""
    rulesets, known = nth(numbers)
    for epoch, table, anew in changes:
        rulesets.changed(epoch, {table: anew})
    candidates = rulesets.nft(*FW, *epochs)
    assert ([known[id(made)] for made in candidates.snapshots], candidates.whole) == (found, whole)


@given(
    st.lists(st.sampled_from(["", "other", "modified", "anew"]), max_size=8), st.sets(st.integers(0, 8)),
    st.integers(0, 8), st.integers(0, 2),
)  # fmt: skip
def test_what_is_said_to_be_in_force_was(changes: list[str], read: set[int], first: int, more: int) -> None:
    """Whatever was read and changed when: readings that are called whole hold every state that the table was in."""
    states = [0]  # of the table, by epoch
    for change in changes:
        states.append(states[-1] + (change in ("modified", "anew")))
    rulesets, known = nth([state if epoch in read else None for epoch, state in enumerate(states)])
    for epoch, change in enumerate(changes, 1):
        if change:
            rulesets.changed(epoch, {OTHER if change == "other" else FW: change == "anew"})
    first, last = min(first, len(changes)), min(first + more, len(changes))
    candidates = rulesets.nft(*FW, first, last)
    found = {known[id(made)] for made in candidates.snapshots}
    if candidates.whole:
        assert found == set(states[first : last + 1])
    if read >= set(range(first, last + 1)):
        assert candidates.whole


def test_old_readings_are_dropped() -> None:
    """The last 16 readings are kept; an older packet's rules are not known any more."""
    rulesets, known = nth(list(range(65)))
    for epoch in range(1, 65):
        rulesets.changed(epoch, {FW: False})
    assert rulesets.nft(*FW, 0, 0).snapshots == ()
    assert [known[id(rulesets.nft(*FW, epoch, epoch).snapshots[0])] for epoch in (49, 64)] == [49, 64]


def test_what_changed_while_it_was_read_counts_for_nothing() -> None:
    """A reading without an epoch is no answer for any; each kind of rules has its own."""
    rulesets = Rulesets()
    rulesets.put(one(1), None, 3)
    assert rulesets.nft(*FW, 0, 0) == ((), False)
    assert len(rulesets.legacy(3, 3).snapshots) == 1


LEGACY_READ = [((1, 1), [1], True), ((1, 2), [1, 2], True), ((2, 3), [], False), ((0, 0), [], False)]


@pytest.mark.parametrize(("epochs", "found", "whole"), LEGACY_READ)
def test_which_legacy_rules_were_in_force(epochs: tuple[int, int], found: list[int], whole: bool) -> None:
    """Legacy rules are known only for epochs in which they were read: nobody says which table changed."""
    rulesets, known = Rulesets(), {}
    for epoch in (1, 2):
        made = one(epoch)
        rulesets.put(made, None, epoch)
        known[id(made)] = epoch
    candidates = rulesets.legacy(*epochs)
    assert ([known[id(made)] for made in candidates.snapshots], candidates.whole) == (found, whole)


def test_answers_that_may_have_changed() -> None:
    """Every reading and every change raises the version."""
    rulesets = Rulesets()
    rulesets.put(one(1), 0, 0)
    first = rulesets.version
    rulesets.changed(1, {FW: False})
    assert rulesets.version > first > 0


# --- steps ---------------------------------------------------------------------------------------------------------

NFT = """\
    table inet fw {
        chain early { # handle 1
            type filter hook prerouting priority -145; policy accept;
            meta mark 1 counter # handle 10
        }
        chain forward { # handle 2
            type filter hook forward priority filter; policy drop;
            tcp dport 80 jump web # handle 20
            tcp dport 22 accept # handle 21
            reject # handle 22
        }
        chain web { # handle 3
            ip saddr 10.0.0.9 return # handle 30
            meta mark set 0x00000007 # handle 31
        }
        chain nat { # handle 4
            type nat hook postrouting priority srcnat; policy accept;
            masquerade # handle 40
        }
    }
    """
LEGACY = """\
    *mangle
    :PREROUTING ACCEPT [0:0]
    :FORWARD ACCEPT [0:0]
    -A FORWARD -j ACCEPT
    COMMIT
    *nat
    :PREROUTING ACCEPT [0:0]
    COMMIT
    *filter
    :INPUT ACCEPT [0:0]
    :FORWARD DROP [0:0]
    :sub - [0:0]
    -A FORWARD -p tcp -j sub
    -A FORWARD -j DROP
    -A sub -p udp -j ACCEPT
    -A sub -j RETURN
    COMMIT
    """


def resolver(*changes: Change, **texts: str) -> Resolver:
    """A resolver with the rules above, in epoch 0 of both kinds; `texts` are others."""
    rulesets = Rulesets()
    rulesets.put(snapshot(texts.get("nft", NFT), legacy_ip=texts.get("legacy", LEGACY)), 0, 0)
    for epoch, table, anew in changes:
        rulesets.changed(epoch, {table: anew})
    return Resolver(rulesets, {1: "lo", 2: "eth0", 3: "eth1"}.get)


def path_of(made: Passage, **texts: str) -> Path:
    """The path of a passage."""
    trace = resolver(**texts).trace(made)
    assert trace is not None
    return trace.path


def test_what_a_trace_says_of_its_packet() -> None:
    """Time, headers before and after, interfaces by name, and the flow's id."""
    made = passage(["prerouting"], seen=["prerouting", "input"], oif=3, ct_id=9, left=Packet(4, 6, 1, 2, 3, 4))
    trace = resolver().trace(made)
    assert trace is not None
    assert made.headers is not None
    assert (trace.time, trace.packet, trace.left) == (5, made.headers.packet, Packet(4, 6, 1, 2, 3, 4))
    assert (trace.in_interface, trace.out_interface, trace.ct_id) == ("eth0", "eth1", 9)
    made.headers = None
    assert resolver().trace(made) is None


def test_left_of_an_icmp_error() -> None:
    """What an ICMP error is about is told of the packet that came in; NAT may have changed it in the one that left."""
    data = ip("192.0.2.1", "10.0.0.1", error(3, 3, ip("10.0.0.1", "10.0.0.2", udp(1000, 53), 17)), 1)
    assembler = Assembler()
    for message in (own(1, "errors4", data[:40], iif=2), own(1, "input", data[:40], iif=2)):
        assembler.feed(message, 1)
    assembler.feed_legacy([legacy("input", "ip filter INPUT", "policy", 1, data)], 2)
    (made,) = assembler.take(10**6, final=True)
    trace = resolver().trace(made)
    assert trace is not None
    assert trace.packet.about is not None
    assert trace.left == replace(trace.packet, about=None)


def test_rules_of_nft() -> None:
    """Each step has its rule with position, handle and text; a chain's end is a return, and its policy is told once."""
    made = passage(
        [
            "prerouting",
            nft("inet fw early", "continue", 10, first=True),
            nft("inet fw early", "continue", type="rule"),  # the end of a base chain
            nft("inet fw early", "accept"),
            nft("inet fw forward", "jump", 20, first=True, target="web"),
            nft("inet fw web", "continue", 31),
            nft("inet fw web", "continue", type="rule"),
            nft("inet fw forward", "drop", 22),
        ],
        seen=["prerouting"],
    )
    path = path_of(made)
    assert written(path) == [
        "  nft: prerouting inet fw early rule 1 continue",
        "  nft: prerouting inet fw early policy accept",
        "  nft: forward inet fw forward rule 1 jump web",
        "  nft: forward inet fw web rule 2 continue",
        "  nft: forward inet fw web return",
        "* nft: forward inet fw forward rule 3 reject",
    ]
    assert [one.priority for one in path.steps] == [-145, -145, 0, 0, 0, 0]
    assert [(one.rule.handle, one.rule.text) for one in path.steps if one.rule is not None] == [
        (10, "meta mark 1 counter"), (20, "tcp dport 80 jump web"), (31, "meta mark set 0x00000007"), (22, "reject"),
    ]  # fmt: skip
    assert path.steps[4].verdict == "return"
    assert (path.verdict, path.reached, all(one.certain for one in path.steps)) == ("reject", "forward", True)


RETURNS = [
    nft("inet fw web", "return", 30),
    nft("inet fw web", "return", 30, type="return"),
    nft("inet fw web", "continue", type="rule"),
    pytest.param(
        nft("inet fw web", "continue", type="return"),
    ),
]


@pytest.mark.parametrize("told", RETURNS)
def test_returns(told: NftStep) -> None:
    """A user chain is left by a return, whatever the kernel's version calls it."""
    made = passage([nft("inet fw forward", "jump", 20, first=True, target="web"), told], seen=["input"])
    last = path_of(made).steps[-1]
    assert (last.type, last.verdict, last.hook) == ("return", "return", "forward")
    assert (last.rule is None) == (told.place.handle is None)


UNKNOWN = [
    nft("inet fw forward", "accept", 99, first=True),
    nft("inet fw nowhere", "accept", 20, first=True),
    nft("inet gone forward", "accept", 20, first=True),
    nft("inet fw forward", "drop", 21, first=True),  # a rule that accepts is another one
]


@pytest.mark.parametrize("told", UNKNOWN)
def test_rules_that_were_never_read(told: NftStep) -> None:
    """A rule that no reading has, or not with that verdict, has its handle and no text."""
    (found,) = path_of(passage([told], seen=["prerouting", "input"])).steps
    assert found.rule is not None
    assert (found.rule.text, found.rule.position, found.rule.handle) == (None, None, told.place.handle)
    assert found.verdict == told.place.verdict


def changed_forward(rule: str, epochs: Sequence[int] = (1,), anew: bool = False) -> Resolver:
    """A resolver that saw the table change in some epochs, and has read another rule 21 in the last of them."""
    rulesets = Rulesets()
    rulesets.put(snapshot(NFT), 0, 0)
    for epoch in epochs:
        rulesets.changed(epoch, {FW: anew})
    rulesets.put(snapshot(NFT.replace("tcp dport 22 accept", rule)), epochs[-1], 0)
    return Resolver(rulesets, lambda number: None)


NEAR = [
    ("tcp dport 22 accept", False, "tcp dport 22 accept", True),
    ("tcp dport 22 accept", True, "tcp dport 22 accept", True),
    ("tcp dport 23 accept", True, "tcp dport 22 accept", False),  # either of them
    ("tcp dport 22 drop", True, "tcp dport 22 accept", True),  # only one fits the verdict
    ("tcp dport 23 accept", False, "tcp dport 22 accept", True),
]


@pytest.mark.parametrize(("rule", "near", "text", "certain"), NEAR)
def test_rules_that_changed_near_by(rule: str, near: bool, text: str, certain: bool) -> None:
    """Where another rule may have had the handle and the verdict, a step is not certain."""
    told = nft("inet fw forward", "accept", 21, first=True, near=near)
    trace = changed_forward(rule).trace(passage([told], seen=["prerouting", "input"]))
    assert trace is not None
    (found,) = trace.path.steps
    assert found.rule is not None
    assert (found.rule.text, found.certain) == (text, certain)


def test_the_next_rules_where_only_they_fit() -> None:
    """A rule that was in force before it was announced is told by its verdict."""
    told = nft("inet fw forward", "drop", 21, first=True, near=True)
    trace = changed_forward("tcp dport 22 drop").trace(passage([told], seen=["prerouting"]))
    assert trace is not None
    (found,) = trace.path.steps
    assert found.rule is not None
    assert (found.rule.text, found.certain) == ("tcp dport 22 drop", True)


BETWEEN = [
    ("tcp dport 22 accept", False, "tcp dport 22 accept"),
    ("tcp dport 23 accept", False, None),
    ("tcp dport 22 accept", True, None),
]


@pytest.mark.parametrize(("rule", "anew", "text"), BETWEEN)
def test_rules_between_two_readings(rule: str, anew: bool, text: str | None) -> None:
    """A rule that was there before and after was there between, unless its table was made anew."""
    told = nft("inet fw forward", "accept", 21, 1, first=True)
    trace = changed_forward(rule, (1, 2), anew).trace(passage([told], seen=["input"]))
    assert trace is not None
    (found,) = trace.path.steps
    assert found.rule is not None
    assert (found.rule.text, found.certain) == (text, True)


# --- legacy steps --------------------------------------------------------------------------------------------------

LOGS: list[tuple[LegacyStep, str, str | None]] = [
    (legacy("forward", "ip filter FORWARD", "rule", 1), "forward ip filter FORWARD rule 1 jump sub",
     "-A FORWARD -p tcp -j sub"),
    (legacy("forward", "ip filter FORWARD", "policy", 1), "forward ip filter FORWARD rule 1 jump sub",
     "-A FORWARD -p tcp -j sub"),
    (legacy("forward", "ip filter FORWARD", "policy", 2), "forward ip filter FORWARD rule 2 drop",
     "-A FORWARD -j DROP"),
    (legacy("forward", "ip filter FORWARD", "policy", 3), "forward ip filter FORWARD policy drop", None),
    (legacy("input", "ip filter INPUT", "policy", 1, oif=0), "input ip filter INPUT policy accept", None),
    (legacy("forward", "ip filter sub", "rule", 1), "forward ip filter sub rule 1 accept", "-A sub -p udp -j ACCEPT"),
    (legacy("forward", "ip filter sub", "return", 2), "forward ip filter sub return 2", "-A sub -j RETURN"),
    (legacy("forward", "ip filter sub", "return", 3), "forward ip filter sub return", None),
    (legacy("forward", "ip filter gone", "rule", 3), "forward ip filter gone rule 3 None", None),
    (legacy("forward", "ip6 filter FORWARD", "policy", 2), "forward ip6 filter FORWARD policy None", None),
    (legacy("forward", "ip filter FORWARD", "rule", 1, epochs=(1, 1)), "forward ip filter FORWARD rule 1 None", None),
]  # fmt: skip


@pytest.mark.parametrize(("log", "said", "text"), LOGS)
def test_rules_of_legacy_tables(log: LegacyStep, said: str, text: str | None) -> None:
    """`policy` and `return` with a number that a rule has are that rule; of what is not known, no verdict is said."""
    path = path_of(passage([], [log], ["prerouting", "input"]))
    assert [line[2:] for line in written(path)] == [f"iptables-legacy: {said}"]
    (found,) = path.steps
    assert (None if found.rule is None else found.rule.text) == text
    assert found.certain


def test_a_legacy_rule_behind_the_last() -> None:
    """The log of a rule that the chain does not have is that of a rule that is not known."""
    (found,) = path_of(passage([], [legacy("forward", "ip filter FORWARD", "rule", 9)], ["input"])).steps
    assert (found.type, found.verdict) == ("rule", None)
    assert found.rule is not None
    assert (found.rule.position, found.rule.text) == (9, None)


def legacy_change(before: str, after: str, log: LegacyStep) -> Step:
    """The step of a log between two looks at chain FORWARD of table filter, with those rules."""
    rulesets = Rulesets()
    for epoch, rules in enumerate((before, after)):
        text = "*filter\n:FORWARD ACCEPT [0:0]\n" + "".join(f"-A FORWARD {rule}\n" for rule in rules.split("; "))
        rulesets.put(snapshot(legacy_ip=f"{text}COMMIT\n"), 0, epoch)
    trace = Resolver(rulesets, lambda number: None).trace(passage([], [log], ["input"]))
    assert trace is not None
    (found,) = trace.path.steps
    return found


LEGACY_NEAR = [
    ("-p tcp -j DROP", "-p udp -j MARK; -p tcp -j DROP", 1, "-A FORWARD -p tcp -j DROP", False),
    ("-p tcp -j DROP; -j LOG", "-p tcp -j DROP", 1, "-A FORWARD -p tcp -j DROP", True),
    ("-p tcp -j DROP", "-p udp -j MARK; -p tcp -j DROP", 2, "-A FORWARD -p tcp -j DROP", True),
]


@pytest.mark.parametrize(("before", "after", "number", "text", "certain"), LEGACY_NEAR)
def test_legacy_rules_that_changed_near_by(before: str, after: str, number: int, text: str, certain: bool) -> None:
    """Between two looks that differ a step is certain where both have the same rule, or only one has any."""
    log = legacy("forward", "ip filter FORWARD", "rule", number, epochs=(0, 1))
    found = legacy_change(before, after, log)
    assert found.rule is not None
    assert (found.rule.text, found.certain) == (text, certain)


# --- order ---------------------------------------------------------------------------------------------------------

ALL = """\
    table ip fw {
        chain early { # handle 1
            type filter hook prerouting priority mangle + 5; policy accept;
        }
        chain dnat { # handle 2
            type nat hook prerouting priority dstnat; policy accept;
        }
        chain forward { # handle 3
            type filter hook forward priority filter; policy accept;
            counter # handle 9
        }
        chain late { # handle 4
            type filter hook postrouting priority 300; policy accept;
        }
        chain out { # handle 5
            type filter hook output priority filter; policy accept;
        }
        chain in { # handle 6
            type filter hook input priority filter; policy accept;
        }
    }
    """


def order(path: Path) -> list[str]:
    """The chains of a path."""
    return [one.chain for one in path.steps]


def test_both_kinds_stand_by_hook_and_priority() -> None:
    """Legacy mangle (-150) comes before nft at -145, and that before nat (-100); forward before postrouting."""
    logs = [
        legacy("prerouting", "ip mangle PREROUTING", "policy", 1),
        legacy("prerouting", "ip nat PREROUTING", "policy", 1),
        legacy("forward", "ip mangle FORWARD", "rule", 1, oif=3),
        legacy("forward", "ip filter sub", "return", 3, oif=3),
        legacy("postrouting", "ip nat POSTROUTING", "policy", 1, oif=3),
    ]
    steps = [nft(f"ip fw {chain}", first=True) for chain in ("early", "forward", "late")]
    path = path_of(passage(["prerouting", *steps], logs, ["prerouting", "forward", "postrouting"]), nft=ALL)
    assert order(path) == ["PREROUTING", "early", "PREROUTING", "FORWARD", "sub", "forward", "POSTROUTING", "late"]


DROP = [legacy("forward", "ip filter FORWARD", "policy", 2)]
WALK = [legacy("forward", "ip filter FORWARD", "rule", 1), legacy("forward", "ip filter sub", "return", 2), *DROP]
LOGGED = [legacy(hook, f"ip mangle {hook.upper()}", "policy", 1) for hook in ("prerouting", "input", "postrouting")]
SAME_PLACE = [
    (DROP, ["forward", "forward", "FORWARD"]),
    (WALK, ["forward", "forward", "FORWARD", "sub", "FORWARD"]),
    (WALK[:2], ["FORWARD", "sub", "forward", "forward"]),
]


@pytest.mark.parametrize(("logs", "chains"), SAME_PLACE)
def test_what_dropped_in_the_same_place_was_last(logs: list[LegacyStep], chains: list[str]) -> None:
    """Of two chains at one hook and priority, the one that dropped comes second, with all its steps together."""
    steps = [nft("ip fw forward", "continue", 9, first=True), nft("ip fw forward", "accept")]
    path = path_of(passage(["prerouting", *steps], logs, ["prerouting"]), nft=ALL)
    assert order(path) == chains


@given(
    st.lists(st.sampled_from(["early", "dnat", "forward", "late", "out", "in"]), max_size=8),
    st.lists(st.sampled_from([*WALK, *LOGGED]), max_size=8),
)
def test_each_kind_keeps_its_order(chains: list[str], logs: list[LegacyStep]) -> None:
    """Whatever is merged, nothing is lost, and the steps of each kind stay in the order in which they were told."""
    steps = [nft(f"ip fw {chain}", first=True) for chain in chains]
    path = path_of(passage(["prerouting", *steps], logs, ["prerouting"]), nft=ALL)
    assert [one.chain for one in path.steps if one.kind == "nft"] == chains
    assert [one.chain for one in path.steps if one.kind != "nft"] == [log.message.chain for log in logs]


def test_an_nft_drop_in_the_same_place_was_last() -> None:
    """The same where nft dropped."""
    steps = [nft("ip fw forward", "drop", 9, first=True)]
    logs = [legacy("forward", "ip filter sub", "rule", 1)]
    path = path_of(passage(["prerouting", *steps], logs, ["prerouting"]), nft=ALL)
    assert (order(path), path.decided) == (["sub", "forward"], 1)


def test_loopback_in_order() -> None:
    """Through loopback, postrouting comes before prerouting and input, for both kinds."""
    steps: list[NftStep | str] = [
        "output", nft("ip fw out", first=True), nft("ip fw late", first=True), "prerouting",
        nft("ip fw early", first=True), nft("ip fw in", first=True),
    ]  # fmt: skip
    logs = [
        legacy("output", "ip mangle OUTPUT", "policy", 1, iif=0, oif=1),
        legacy("postrouting", "ip mangle POSTROUTING", "policy", 1, iif=0, oif=1),
        legacy("prerouting", "ip mangle PREROUTING", "policy", 1, iif=1),
        legacy("input", "ip mangle INPUT", "policy", 1, iif=1),
    ]
    seen = ["output", "postrouting", "prerouting", "input"]
    path = path_of(passage(steps, logs, seen, iif=1, oif=1), nft=ALL)
    assert order(path) == ["OUTPUT", "out", "POSTROUTING", "late", "PREROUTING", "early", "INPUT", "in"]
    assert path.reached == "input"


def test_stolen_packets_that_went_on() -> None:
    """What a target may take over went on where more logs follow."""
    text = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -p tcp -j SYNPROXY\n-A FORWARD -j ACCEPT\nCOMMIT\n"
    logs = [legacy("forward", "ip filter FORWARD", "rule", 1), legacy("forward", "ip filter FORWARD", "policy", 2)]
    path = path_of(passage([], logs, ["prerouting", "forward", "postrouting"]), legacy=text)
    assert (path.verdict, path.decided) == ("accept", 1)


# --- what they come to ---------------------------------------------------------------------------------------------


def known(*steps: tuple[str | None, str | None, int]) -> list[Known]:
    """Steps of rules by hook, verdict and weight; those of which the verdict begins with `policy` are of policies."""
    made = []
    for hook, verdict, weight in steps:
        kind, _, name = (verdict or "").rpartition(" ")
        position = None if kind else 1
        made.append(Known(step(hook, "inet fw chain", name or None, position=position, kind="nft"), weight))
    return made


THROUGH, IN = ["prerouting", "forward", "postrouting"], ["prerouting", "input"]

DECISIONS: list[tuple[str, list[tuple[str | None, str | None, int]], list[str], str, int | None, str]] = [
    ("no step", [], THROUGH, "accept", None, "postrouting"),
    ("no step that accepts", [("forward", "continue", 2)], THROUGH, "accept", None, "postrouting"),
    ("filter over what comes later", [("forward", "accept", 2), ("postrouting", "accept", 0)], THROUGH, "accept", 0,
     "postrouting"),
    ("a lighter rule does not count", [("forward", "policy accept", 2), ("forward", "accept", 1)], THROUGH, "accept", 0,
     "postrouting"),
    ("a rule over a policy", [("forward", "accept", 2), ("forward", "policy accept", 2)], THROUGH, "accept", 0,
     "postrouting"),
    ("the last of equals", [("input", "accept", 2), ("input", "accept", 2), ("input", "continue", 2)], IN, "accept", 1,
     "input"),
    ("the last policy", [("input", "policy accept", 2), ("input", "policy accept", 2)], IN, "accept", 1, "input"),
    ("a drop", [("forward", "accept", 2), ("forward", "drop", 1)], ["prerouting"], "drop", 1, "forward"),
    ("a drop by policy", [("forward", "policy drop", 2)], ["prerouting"], "drop", 0, "forward"),
    ("a drop at a hook that is not known", [(None, "drop", 0)], ["prerouting"], "drop", 0, "prerouting"),
    ("a drop after postrouting", [("postrouting", "drop", 0)], THROUGH[:2], "drop", 0, "postrouting"),
    ("a reject", [("input", "reject", 2)], ["prerouting"], "reject", 0, "input"),
    ("a queue that nobody reads", [("input", "continue", 2), ("input", "queue", 2)], ["prerouting"], "queue", 1,
     "input"),
    ("a queue that was left", [("input", "queue", 2), ("input", "accept", 2)], IN, "accept", 1, "input"),
    ("a queue at the end that was left", [("input", "queue", 2)], IN, "accept", None, "input"),
    ("a queue, then a drop", [("input", "queue", 2), ("input", "drop", 2)], ["prerouting"], "drop", 1, "input"),
    ("stolen", [("input", "stolen", 2)], ["prerouting"], "stolen", 0, "input"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "seen", "verdict", "decided", "reached"), [case[1:] for case in DECISIONS],
    ids=[case[0] for case in DECISIONS],
)  # fmt: skip
def test_which_step_decides(
    steps: list[tuple[str | None, str | None, int]], seen: list[str], verdict: str, decided: int | None, reached: str
) -> None:
    """What dropped a packet decided, wherever it was; what accepted it is the weightiest, a rule, the last of them."""
    path = conclude(known(*steps), seen, False, True)
    assert (path.verdict, path.decided, path.reached, path.expected) == (verdict, decided, reached, ())
    assert path.deciding == (None if decided is None else path.steps[decided])


UNDECIDED: list[tuple[list[str], list[str | None], bool, str | None, tuple[str, ...]]] = [
    ([], [], False, None, ()),
    ([], [None], False, None, ()),
    (["ingress"], [], False, "ingress", ("prerouting",)),
    (["prerouting"], [], False, "prerouting", ("input", "forward")),
    (["ingress", "prerouting"], ["ingress"], False, "prerouting", ("input", "forward")),
    (["prerouting"], ["forward"], False, "forward", ("postrouting",)),
    (["prerouting", "forward"], ["forward"], False, "forward", ("postrouting",)),
    (["prerouting"], ["input"], False, "input", ()),
    (["prerouting"], ["postrouting"], False, "postrouting", ()),
    (["output"], ["output"], False, "output", ("postrouting",)),
    (["output", "postrouting"], [], True, "postrouting", ("prerouting",)),
    (["output"], ["output"], True, "output", ("postrouting",)),
    (["output", "postrouting", "prerouting"], ["output"], True, "prerouting", ("input", "forward")),
]


@pytest.mark.parametrize(("seen", "hooks", "loops", "reached", "expected"), UNDECIDED)
def test_undecided(
    seen: list[str], hooks: list[str | None], loops: bool, reached: str | None, expected: tuple[str, ...]
) -> None:
    """A packet that nothing ended and that was not seen to leave says how far it came and where it should have come."""
    path = conclude(known(*((hook, "accept", 2) for hook in hooks)), seen, loops, True)
    assert (path.verdict, path.decided, path.reached, path.expected) == ("undecided", None, reached, expected)


def test_seen_at_egress_alone() -> None:
    """A packet that somebody else's rule traces at egress, and nothing else, is undecided."""
    path = conclude(known(("egress", "accept", 0)), [], False, True)
    assert (path.verdict, path.reached) == ("undecided", "egress")


@pytest.mark.parametrize("complete", [True, False])
def test_what_may_lack_steps_says_so(complete: bool) -> None:
    """Messages that were lost are told of with the path."""
    assert conclude([], IN, False, complete).complete == complete


BOTH = """\
    table inet fw {
        chain raw { # handle 1
            type filter hook prerouting priority raw; policy accept;
            accept # handle 10
        }
        chain forward { # handle 2
            type filter hook forward priority filter; policy accept;
            accept # handle 20
        }
        chain snat { # handle 3
            type nat hook postrouting priority srcnat; policy accept;
            masquerade # handle 30
        }
        chain dnat { # handle 4
            type nat hook output priority dstnat; policy accept;
            redirect to :80 # handle 40
        }
    }
    """
MANGLE, FILTER = "ip mangle FORWARD", "ip filter FORWARD"
WEIGHTS: list[tuple[str, list[NftStep], list[LegacyStep], str]] = [
    ("filter over mangle before", [],
     [legacy("forward", MANGLE, "policy", 2), legacy("forward", FILTER, "policy", 2)], FILTER),
    ("filter's policy over mangle's rule", [],
     [legacy("forward", MANGLE, "policy", 1), legacy("forward", FILTER, "policy", 2)], FILTER),
    ("filter over security behind", [],
     [legacy("forward", FILTER, "policy", 2), legacy("forward", "ip security FORWARD", "policy", 1)], FILTER),
    ("mangle over prerouting and postrouting",
     [nft("inet fw raw", "accept", 10, first=True), nft("inet fw snat", "accept", 30, first=True)],
     [legacy("forward", MANGLE, "policy", 1)], MANGLE),
    ("an nft rule over filter's policy", [nft("inet fw forward", "accept", 20, first=True)],
     [legacy("forward", FILTER, "policy", 2)], "inet fw forward"),
    ("filter over nat at output", [nft("inet fw dnat", "accept", 40, first=True)],
     [legacy("output", "ip filter OUTPUT", "policy", 1, iif=0), legacy("output", "ip nat OUTPUT", "policy", 1, iif=0)],
     "ip filter OUTPUT"),
    ("prerouting, where there is nothing else", [nft("inet fw raw", "accept", 10, first=True)], [], "inet fw raw"),
]  # fmt: skip
TABLES = """\
    *nat
    :OUTPUT ACCEPT [0:0]
    COMMIT
    *mangle
    :FORWARD ACCEPT [0:0]
    -A FORWARD -j ACCEPT
    COMMIT
    *filter
    :FORWARD ACCEPT [0:0]
    :OUTPUT ACCEPT [0:0]
    -A FORWARD -p udp -j DROP
    COMMIT
    *security
    :FORWARD ACCEPT [0:0]
    COMMIT
    """


@pytest.mark.parametrize(
    ("steps", "logs", "place"), [case[1:] for case in WEIGHTS], ids=[case[0] for case in WEIGHTS]
)  # fmt: skip
def test_which_table_decides(steps: list[NftStep], logs: list[LegacyStep], place: str) -> None:
    """Rules of filter tables and of nft's filter chains decide before mangle's, and those before NAT's and raw's."""
    path = path_of(passage(["prerouting", *steps], logs, THROUGH), nft=BOTH, legacy=TABLES)
    found = path.deciding
    assert path.verdict == "accept"
    assert found is not None
    assert f"{found.family} {found.table} {found.chain}" == place


# --- interning -----------------------------------------------------------------------------------------------------


def test_equal_paths_are_one_object() -> None:
    """Packets that met the same rules share their path, until a ruleset is read."""
    rulesets = Rulesets()
    rulesets.put(snapshot(NFT, legacy_ip=LEGACY), 0, 0)
    made = Resolver(rulesets, lambda number: None)

    def path(port: int, seen: Sequence[str] = THROUGH[:2], complete: bool = True) -> Path:
        data = ip("10.0.0.1", "10.0.0.2", udp(port, 53), 17)
        steps = [nft("inet fw forward", "accept", 21, first=True)]
        logs = [legacy("forward", "ip filter FORWARD", "policy", 2, data)]
        trace = made.trace(passage(["prerouting", *steps], logs, seen, data=data, complete=complete))
        assert trace is not None
        return trace.path

    first = path(1)
    assert path(2) is first
    assert path(3, complete=False) != first
    assert path(4, seen=THROUGH[:1]) is not first
    rulesets.put(snapshot(NFT, legacy_ip=LEGACY.replace("-A FORWARD -j DROP\n", "")), 0, 0)
    assert path(5) != first
