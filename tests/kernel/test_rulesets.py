"""Rulesets as they are read, against what nft and iptables list themselves."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from conntracker.rules.snapshot import Snapshot, Texts
from conntracker.sources import nftables, rulesets
from conntracker.sources.netns import Namespace
from conntracker.sources.nftables import LibraryMissing, OwnedTable
from conntracker.sources.rulesets import generation, read_texts

NFT = """
table inet fw {
	counter named {
	}
	set banned {
		type ipv4_addr; flags interval
		elements = { 10.0.0.0/8, 11.0.0.1, 12.0.0.1-12.0.0.9, 13.0.0.0/8 }
	}
	set seen {
		type ipv4_addr; flags dynamic,timeout; timeout 5s; size 100
	}
	chain services {
		tcp dport { 22, 80, 443, 8000-8999 } counter packets 5 bytes 6 accept comment "drop } # handle 5"
	}
	map ports {
		type inet_service : verdict; elements = { 22 : accept, 23 : drop, 24 : jump services }
	}
	chain input {
		type filter hook input priority filter - 5; policy drop;
		comment "hi { # handle 3";
		ct state vmap { established : accept, related : accept, invalid : drop }
		ip saddr 1.2.3.4 jump {
			tcp dport 22 accept
			counter drop
		}
		tcp dport vmap @ports
		ip saddr @banned log prefix "a # handle 4 { counter packets 1 bytes 2 " drop
		update @seen { ip saddr timeout 10s counter }
		counter name named
		meta mark set tcp dport map { 1 : 2, 3 : 4 }
		limit rate over 5/second burst 3 packets reject with icmpx admin-prohibited
		jump services comment "several
		lines accept # handle 7"
	}
	chain nat {
		type nat hook prerouting priority dstnat + 3; policy accept;
		tcp dport 80 redirect to :8080
	}
	chain early {
		type filter hook ingress device "lo" priority -500; policy accept;
		ip protocol icmp accept
	}
}
table bridge filter {
	chain out {
		type filter hook output priority out - 1; policy accept;
		ether saddr 00:11:22:33:44:55 drop
	}
}
table arp watch {
	chain in {
		type filter hook input priority -1; policy drop;
		arp operation request accept
	}
}
table ip awake {
	chain last {
		type filter hook postrouting priority 2147483647; policy accept;
	}
}
table ip dormant {
	flags dormant
	chain never {
		type filter hook postrouting priority 0; policy drop;
	}
}
"""

RULES = {
    "iptables": """*raw
:user - [0:0]
-A PREROUTING -p udp -m comment --comment "-j DROP # handle 3" -j CT --notrack
-A user -j RETURN
COMMIT
*nat
-A PREROUTING -p tcp --dport 80 -j DNAT --to 1.2.3.4:80
-A POSTROUTING -o eth+ -j MASQUERADE
COMMIT
*mangle
-A OUTPUT -j MARK --set-mark 5
COMMIT
*filter
:INPUT DROP [5:600]
:USER-2 - [0:0]
-A INPUT -p tcp -m multiport --dports 1,2,3 -m conntrack --ctstate NEW,RELATED -j ACCEPT
-A INPUT -m comment --comment -j -j LOG --log-prefix "a\\"b # handle 4 "
-A INPUT ! -s 10.0.0.0/8 ! -p tcp
-A INPUT -p tcp --dport 0:1023 -j REJECT --reject-with tcp-reset
-A INPUT -g USER-2
-A USER-2 -p icmp --icmp-type 3/1 -m limit --limit 5/s -j DROP
COMMIT
""",
    "ip6tables": """*filter
:user - [0:0]
-A INPUT -s fe80::/10 -p icmpv6 --icmpv6-type echo-request -j user
-A user -j DROP
COMMIT
*security
-A FORWARD -j ACCEPT
COMMIT
""",
}
SEVERAL_LINES = "several\n-A INPUT -j DROP # handle 2\nlines"
FAMILIES = {"iptables": "ip", "ip6tables": "ip6"}

# The rules of NFT that nft prints on several lines.
SPANNING = {
    "ip saddr 1.2.3.4 jump { tcp dport 22 accept; counter drop; }",
    'jump services comment "several lines accept # handle 7"',
}


def run(*command: str, stdin: str | None = None) -> str:
    """What a program prints."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def snapshot() -> Snapshot:
    """The rules of this namespace."""
    texts = read_texts()
    assert texts.missing == ()
    return Snapshot.parse(texts)


def listed(family: str, table: str, chain: str) -> list[int]:
    """The handles of a chain in order, as nft lists them in JSON."""
    items = json.loads(run("nft", "-j", "list", "chain", family, table, chain))["nftables"]
    return [item["rule"]["handle"] for item in items if "rule" in item]


def saved(program: str, table: str) -> Iterator[tuple[str, str]]:
    """(chain, rule) of each rule of a table as `iptables -S` prints it, those of several lines on one."""
    lines = re.sub(r'("[^"\n]*)\n([^"\n]*)\n([^"\n]*")', r"\1 \2 \3", run(program, "-t", table, "-S")).splitlines()
    for line in lines:
        if line.startswith("-A "):
            yield line.split()[1], line


@pytest.mark.needs("nft")
def test_each_rule_of_nft_is_found_by_its_handle(space: Namespace) -> None:
    """Every handle that nft lists leads to that rule's text and position, and no rule is left over."""
    run("nft", "-f", "-", stdin=NFT)
    found = snapshot()
    assert [len(chain.rules) for chain in found.chains] == [1, 9, 1, 1, 1, 1, 0, 0]
    lines = run("nft", "-s", "list", "ruleset").splitlines()
    for chain in found.chains:
        assert [rule.handle for rule in chain.rules] == listed(chain.family, chain.table, chain.name)
        for position, rule in enumerate(chain.rules, 1):
            assert rule.handle is not None
            assert found.nft_rule(chain.family, chain.table, chain.name, rule.handle) == rule
            assert (rule.position, rule.kind) == (position, "nft")
            assert f"\t\t{rule.text}" in lines or rule.text in SPANNING


@pytest.mark.needs("nft")
def test_text_of_nft_can_be_loaded_again(space: Namespace) -> None:
    """The text of a rule, added to an empty chain, gives a rule of the same text."""
    run("nft", "-f", "-", stdin=NFT)
    for chain in snapshot().chains:
        run("nft", "flush", "chain", chain.family, chain.table, chain.name)
        for rule in chain.rules:
            run("nft", "-f", "-", stdin=f"add rule {chain.family} {chain.table} {chain.name} {rule.text}")
        again = snapshot().nft_chain(chain.family, chain.table, chain.name)
        assert again is not None
        assert [rule.text for rule in again.rules] == [rule.text for rule in chain.rules]


@pytest.mark.needs("nft")
def test_chains_of_nft_say_where_they_are_called(space: Namespace) -> None:
    """Hook, priority as a number, policy, type and device are as the chain was made."""
    run("nft", "-f", "-", stdin=NFT)
    found = {c.name: (c.hook, c.priority, c.policy, c.type, c.device) for c in snapshot().chains}
    assert found == {
        "services": (None, None, None, None, None),
        "input": ("input", -5, "drop", "filter", None),
        "nat": ("prerouting", -97, "accept", "nat", None),
        "early": ("ingress", -500, "accept", "filter", "lo"),
        "out": ("output", 99, "accept", "filter", None),
        "in": ("input", -1, "drop", "filter", None),
        "last": ("postrouting", 2147483647, "accept", "filter", None),
        "never": (None, None, None, None, None),  # of a dormant table: the kernel calls none of its chains
    }


@pytest.mark.needs("nft", "iptables-nft", "ip6tables-nft")
@pytest.mark.parametrize("program", list(RULES))
def test_rules_of_iptables_nft(space: Namespace, program: str) -> None:
    """Every handle that nft lists leads to what `iptables-nft -S` prints in the same place."""
    run(f"{program}-nft-restore", stdin=RULES[program])
    run(f"{program}-nft", "-I", "INPUT", "-m", "comment", "--comment", SEVERAL_LINES)
    found, family = snapshot(), FAMILIES[program]
    tables = {chain.table for chain in found.chains}
    assert {chain.kind for chain in found.chains} == {"iptables-nft"}
    for table in tables:
        positions: Counter[str] = Counter()
        handles = {chain.name: listed(family, table, chain.name) for chain in found.chains if chain.table == table}
        for chain, line in saved(f"{program}-nft", table):
            positions[chain] += 1
            rule = found.nft_rule(family, table, chain, handles[chain][positions[chain] - 1])
            assert rule is not None
            assert (rule.kind, rule.text, rule.position) == ("iptables-nft", line, positions[chain])
        assert positions == Counter({name: len(numbers) for name, numbers in handles.items() if numbers})
    assert not found.has_legacy


@pytest.mark.needs("iptables-legacy", "ip6tables-legacy")
@pytest.mark.parametrize("program", list(RULES))
def test_rules_of_iptables_legacy(space: Namespace, program: str) -> None:
    """Every position that `iptables-legacy -L --line-numbers` counts leads to what `-S` prints there."""
    run(f"{program}-legacy-restore", stdin=RULES[program])
    run(f"{program}-legacy", "-I", "INPUT", "-m", "comment", "--comment", SEVERAL_LINES)
    found, family = snapshot(), FAMILIES[program]
    assert found.has_legacy
    for table in {chain.table for chain in found.chains}:
        positions: Counter[str] = Counter()
        for chain, line in saved(f"{program}-legacy", table):
            positions[chain] += 1
            rule = found.legacy_rule(family, table, chain, positions[chain])
            assert rule is not None
            assert (rule.kind, rule.text, rule.handle) == ("iptables-legacy", line, None)
        for made in found.chains:
            if made.table == table:
                text = run(f"{program}-legacy", "-t", table, "-n", "--line-numbers", "-L", made.name)
                count = max([0, *map(int, re.findall(r"^(\d+) ", text, re.MULTILINE))])
                assert len(made.rules) == positions[made.name] == count
    policy = found.legacy_chain(family, "filter", "INPUT")
    assert policy is not None
    assert policy.policy == ("drop" if program == "iptables" else "accept")


@pytest.mark.needs("nft", "iptables-nft", "iptables-legacy", "ip6tables-legacy")
def test_reading_changes_nothing(space: Namespace) -> None:
    """Reading makes no table, of either kind, and two readings of the same rules are equal."""

    def state() -> tuple[str, list[str]]:
        names = []
        for name in ("ip_tables_names", "ip6_tables_names"):
            with open(f"/proc/thread-self/net/{name}") as file:
                names.append(file.read())
        return run("nft", "-a", "list", "ruleset"), names

    before = state()
    assert before == ("", ["", ""])
    assert read_texts().saves == {}
    assert state() == before
    run("nft", "-f", "-", stdin=NFT)
    run("iptables-nft", "-A", "INPUT", "-j", "ACCEPT")
    run("ip6tables-legacy", "-t", "nat", "-A", "OUTPUT", "-j", "ACCEPT")
    before, number = state(), generation()
    first = read_texts()
    assert first.saves.keys() == {("iptables-nft", "ip"), ("iptables-legacy", "ip6")}
    assert read_texts() == first
    assert (state(), generation()) == (before, number)
    assert before[1] == ["", "nat\n"]


@pytest.mark.needs("nft")
def test_no_program_runs_where_only_nft_has_rules(space: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without tables of iptables is read without any program."""
    monkeypatch.setattr(rulesets, "_run", lambda *arguments: pytest.fail(f"ran {arguments}"))
    run("nft", "-f", "-", stdin=NFT)
    assert len(snapshot().chains) == 8


@pytest.mark.needs("nft", "iptables-nft")
def test_rules_of_nft_in_a_table_of_iptables(space: Namespace) -> None:
    """Where iptables-nft-save leaves out what a rule says, the rule stands as nft prints it."""
    run("iptables-nft", "-A", "INPUT", "-p", "tcp", "-j", "ACCEPT")
    run("nft", "add rule ip filter INPUT tcp dport { 1, 2 } counter accept")
    assert "-A INPUT -p tcp -j ACCEPT\n-A INPUT -p tcp -j ACCEPT\n" in read_texts().saves["iptables-nft", "ip"]
    chain = snapshot().nft_chain("ip", "filter", "INPUT")
    assert chain is not None
    assert [(rule.kind, rule.text) for rule in chain.rules] == [
        ("iptables-nft", "-A INPUT -p tcp -j ACCEPT"),
        ("nft", "tcp dport { 1, 2 } counter accept"),
    ]


@pytest.mark.needs("nft", "iptables-nft")
def test_a_table_that_iptables_cannot_read_costs_no_other(space: Namespace) -> None:
    """A table with rules beyond iptables is shown in nft's syntax, which is said where iptables fails over it."""
    run("iptables-nft", "-t", "mangle", "-A", "INPUT", "-j", "ACCEPT")
    run("iptables-nft", "-A", "INPUT", "-j", "ACCEPT")
    run("iptables-nft", "-t", "nat", "-A", "INPUT", "-j", "ACCEPT")
    run("nft", "insert rule ip filter INPUT meta skuid 0 counter accept")
    run("nft", "insert rule ip nat INPUT ct state new counter accept")
    texts = read_texts()
    kinds = {chain.table: chain.kind for chain in Snapshot.parse(texts).chains}
    assert kinds == {"mangle": "iptables-nft", "filter": "nft", "nat": "nft"}
    assert [line.partition(":")[0] for line in texts.missing] == [
        "iptables-nft-save cannot read table filter, shown in nft's syntax"
    ]


@pytest.mark.needs("nft")
def test_our_own_table_is_left_out(space: Namespace) -> None:
    """The table that conntracker holds itself is in no text."""
    run("nft", "add table inet before")
    with OwnedTable("chain c { type filter hook input priority 0; counter drop; }") as own:
        run("nft", "add table inet zz; add chain inet zz c")
        texts = read_texts()
        assert own.name in run("nft", "list", "ruleset")
    assert texts.nft is not None
    assert "conntracker" not in texts.nft
    assert [chain.table for chain in Snapshot.parse(texts).chains] == ["zz"]


@pytest.mark.needs("nft")
def test_the_generation_counts_changes(space: Namespace) -> None:
    """Each change of the nft ruleset gives another generation, and a text carries the one it was read in."""
    first = generation()
    assert first is not None
    run("nft", "add table inet x")
    second = generation()
    assert second == first + 1
    assert read_texts().generation == second


@pytest.mark.needs("nft", "iptables-legacy")
@pytest.mark.parametrize("change", ["nft add table inet t{}", "iptables-legacy -A INPUT -s 10.0.0.{}"])
def test_what_changed_meanwhile_is_read_again(space: Namespace, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """Texts of two moments never stand together; when the rules never stand still, that is said."""
    run("iptables-legacy", "-P", "INPUT", "ACCEPT")
    original, count = rulesets._read_once, 0

    def busy(until: int) -> Callable[[int | None, bool], Texts]:
        def read(number: int | None, apart: bool) -> Texts:
            nonlocal count
            texts = original(number, apart)
            if count < until:
                count += 1
                run(*change.format(count).split())
            return texts

        return read

    monkeypatch.setattr(rulesets, "_read_once", busy(2))
    texts = read_texts()
    assert (texts.missing, texts.generation) == ((), generation())
    assert (texts.nft or "").count("table inet t") + texts.saves["iptables-legacy", "ip"].count("-s 10.0.0.") == 2
    monkeypatch.setattr(rulesets, "_read_once", busy(99))
    texts = read_texts()
    assert (texts.missing, texts.generation) == (("the rules changed all the while they were read",), None)


@pytest.mark.needs("iptables-nft", "iptables-legacy")
def test_missing_programs_are_said(space: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without iptables its rules stand in nft's syntax, or are known to be there; both are said."""
    run("iptables-nft", "-A", "INPUT", "-j", "ACCEPT")
    run("iptables-legacy", "-A", "INPUT", "-j", "ACCEPT")
    monkeypatch.setattr(rulesets, "_find", lambda program: None)
    texts = read_texts()
    assert texts.missing == (
        "no iptables-nft-save: rules of iptables-nft stand in nft's syntax",
        "no iptables-legacy-save: the rules of iptables-legacy are not known",
    )
    found = Snapshot.parse(texts)
    assert found.has_legacy
    assert [(chain.kind, chain.rules[0].text) for chain in found.chains] == [("nft", "counter accept")]


@pytest.mark.needs("iptables-legacy", "iptables-nft")
def test_programs_of_before_there_were_two_kinds(space: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain iptables-save is taken for legacy rules where it is no program of nf_tables."""
    run("iptables-legacy", "-A", "INPUT", "-j", "ACCEPT")
    for kind, count in (("legacy", 1), ("nft", 0)):
        path = shutil.which(f"iptables-{kind}-save")
        monkeypatch.setattr(rulesets, "_find", {"iptables-save": path}.get)
        texts = read_texts()
        assert texts.saves["iptables-legacy", "ip"].count("-A INPUT -j ACCEPT") == count
        assert len(texts.missing) == 1 - count


@pytest.mark.needs("nft")
def test_programs_are_found_without_a_path(space: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directories of the system's programs are searched even if PATH does not name them."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert rulesets._find("nft") is not None


@pytest.mark.needs("iptables-legacy")
def test_a_program_that_fails_is_said(space: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that cannot be run, or ends with an error, costs a line and no more."""
    run("iptables-legacy", "-A", "INPUT", "-j", "ACCEPT")
    for program, line in (("/bin/false", "false: exit status 1"), ("/etc/passwd", "passwd: Permission denied")):
        monkeypatch.setattr(rulesets, "_find", lambda name, program=program: program)
        assert read_texts().missing == (line,)


def test_missing_library_is_said(space: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libnftables there is no text of nft, and a line that says so."""

    def load() -> None:
        raise LibraryMissing("libnftables.so.1 is missing: install libnftables1")

    monkeypatch.setattr(nftables, "_load", load)
    texts = read_texts()
    assert (texts.nft, texts.missing) == (None, ("no nft ruleset: libnftables.so.1 is missing: install libnftables1",))


UNPRIVILEGED = """
import os, sys
from conntracker.sources.rulesets import LegacyWatch, generation, read_texts
os.setgroups([]), os.setresgid(65534, 65534, 65534), os.setresuid(65534, 65534, 65534)
texts, watch = read_texts(), LegacyWatch()
print(texts.nft, texts.generation, generation(), watch.changed(), watch.reason, *texts.missing, sep="\\n")
"""


@pytest.mark.needs("iptables-legacy")
def test_without_privilege(space: Namespace) -> None:
    """An unprivileged process gets no text, and lines that say why."""
    run("iptables-legacy", "-A", "INPUT", "-j", "ACCEPT")
    assert run(sys.executable, "-c", UNPRIVILEGED).splitlines() == [
        "None",
        "None",
        "None",
        "False",
        "cannot watch the tables of iptables-legacy: Permission denied",
        "no nft ruleset: cache initialization failed: Operation not permitted",
        "the tables of iptables-legacy are not known: Permission denied",
        "the tables of ip6tables-legacy are not known: Permission denied",
    ]


@pytest.mark.needs("nft")
def test_a_busy_ruleset_is_read_by_another_process(space: Namespace) -> None:
    """What a process of its own reads is the same."""
    run("nft", "-f", "-", stdin="table inet t { chain c { type filter hook input priority 0; accept; }\n}\n")
    assert read_texts(busy=True) == read_texts()


@pytest.mark.needs("nft")
def test_elements_are_no_change_of_rules(space: Namespace) -> None:
    """Elements of named sets are not read: rules are the same when only those change."""
    run("nft", "-f", "-", stdin="table inet t { set s { type ipv4_addr; }\n chain c { ip saddr @s drop; }\n}\n")
    before = read_texts()
    run("nft", "add", "element", "inet", "t", "s", "{ 192.0.2.1 }")
    assert read_texts().nft == before.nft
