from __future__ import annotations

import json
from pathlib import Path as File

from conntracker.answers.audit import audit
from conntracker.answers.audit_findings import KINDS
from conntracker.answers.audit_wide import wide_rules
from conntracker.formats.audit import audit_json, audit_lines
from conntracker.recording.reader import open_recording
from conntracker.rules.ruleset import Ruleset
from conntracker.steps import Path
from support.traces import record, row, step, tcp

TEXT = """*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:OLD - [0:0]
[9:99] -A INPUT -p tcp -m tcp --dport 1:1023 -m comment --comment "a long comment that is never cut" -j ACCEPT
[0:0] -A INPUT -p tcp -m tcp --dport 22 -j DROP
[0:0] -A INPUT -p udp -m udp --dport 53 -m limit --limit 1/s -j ACCEPT
[0:0] -A OLD -j ACCEPT
COMMIT
"""


def lines(text: str = TEXT, *kinds: str) -> str:
    """What a person reads."""
    return "".join(audit_lines(audit(Ruleset.parse(text, source="a.rules", family="ip"), kinds or tuple(KINDS))))


def test_lines() -> None:
    """The summary, then the findings by kind, each with its place, its text, why, and the evidence."""
    assert lines(TEXT, "dead", "unused-chain", "unhit") == (
        "4 rules, 4 chains; 3 understood exactly; opaque: limit 1\n"
        "\n"
        "DEAD  1: rules that no packet ever matches\n"
        "  ip filter INPUT rule 2   a.rules:7\n"
        "      -A INPUT -p tcp -m tcp --dport 22 -j DROP\n"
        "    an earlier rule takes every packet that it would match\n"
        "    - ip filter INPUT rule 1   a.rules:6\n"
        "      -A INPUT -p tcp -m tcp --dport 1:1023 -m comment --comment "
        '"a long comment that is never cut" -j ACCEPT\n'
        "\n"
        "UNUSED-CHAIN  1: chains that nothing leads to\n"
        "  ip filter OLD   a.rules:9\n"
        "    no way leads to it from any base chain; its rule never decides\n"
        "\n"
        "UNHIT  1: rules that packets can match, and none did\n"
        "  counted since counters were last set to zero; when that was is not known\n"
        "  ip filter INPUT rule 3   a.rules:8\n"
        "      -A INPUT -p udp -m udp --dport 53 -m limit --limit 1/s -j ACCEPT\n"
        "    its counter is 0\n" + lines(TEXT, "unhit").partition("its counter is 0\n")[2]
    )
    assert "packet, input: UDP " in lines(TEXT, "unhit")
    assert lines(TEXT, "unhit").endswith("if -m limit --limit 1/s\n")


def test_nothing_found() -> None:
    """A ruleset with nothing to say of is said to have none."""
    assert lines(TEXT, "unused-set").splitlines()[1:] == ["nothing found"]


def test_it_fits() -> None:
    """Only texts of rules, which are never cut, are wider than eighty columns."""
    wide = [line for line in lines().splitlines() if len(line) > 80]
    assert [line.strip().startswith("-A ") for line in wide] == [True] * len(wide)


def test_json() -> None:
    """First the summary, then an object each; the keys are always the same."""
    ruleset = Ruleset.parse(TEXT, source="a.rules", family="ip")
    first, *findings = map(json.loads, audit_json(audit(ruleset, ("dead", "unused-chain", "unhit"))))
    assert first == {
        "kind": "summary", "rules": 4, "chains": 4, "sets": 0, "exact": 3, "opaque": {"limit": 1}, "notes": [],
        "found": {"dead": 1, "unused-chain": 1, "unhit": 1},
    }  # fmt: skip
    dead, unused, unhit = findings
    assert (dead["kind"], dead["rule"]["position"], dead["certainty"]) == ("dead", 2, "always")
    assert [rule["source"] for rule in dead["because"]] == ["a.rules:6"]
    assert (unused["rule"], unused["chain"], unused["rules"], unused["witness"]) == (None, "OLD", 1, None)
    assert (unhit["witness"]["protocol"], unhit["witness"]["dport"], unhit["way"]) == ("udp", 53, "input")
    assert unhit["if"] == [{"text": "-m limit --limit 1/s", "value": True}]


def test_wide(tmp_path: File) -> None:
    """What a wide rule admits stands beside what was seen."""
    rule = "-A FORWARD -s 10.0.0.0/8 -p tcp -j ACCEPT"
    text = f"*filter\n:FORWARD DROP [0:0]\n{rule}\nCOMMIT\n"
    path = Path((step("forward", "ip filter FORWARD", "accept", rule, 1),), "accept", 0, "forward")
    traces = [row(tcp("10.0.0.5", 40000, "192.0.2.1", port)) for port in (80, 443)]
    ruleset = Ruleset.parse(text, family="ip")
    with open_recording(record(tmp_path / "rec", traces=traces, paths={1: path})) as recording:
        found = audit(ruleset, ("wide",), wide=wide_rules(ruleset, recording))
    shown = "".join(audit_lines(found))
    assert (
        "    - sources: 10.0.0.0/8 (16,777,216) may pass, 10.0.0.5 (1) did: 16,777,216\n      times as wide\n" in shown
    )
    assert "    - ports: any (65,536) may pass, 80, 443 (2) did: 32,768 times as wide\n" in shown
    _, one = map(json.loads, audit_json(found))
    assert (one["admitted"]["dport"], one["seen"]["dport"], one["seen_text"]["dport"]) == (65536, 2, "80, 443")


def test_jumps_to_nothing_are_told_as_one() -> None:
    """Jumps that lead to nothing are one entry of their table for people, and an object each in JSON."""
    chains = "".join(f":{name} - [0:0]\n" for name in "ABC")
    rules = "".join(f"-A {chain} -j {to}\n" for chain, to in (("INPUT", "A"), ("INPUT", "B"), ("FORWARD", "C")))
    text = f"*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n{chains}{rules}COMMIT\n"
    found = audit(Ruleset.parse(text, family="ip"), ("redundant",))
    assert "".join(audit_lines(found)).partition("\n\n")[2] == (
        "REDUNDANT  3: rules of which each could go, and nothing would change\n"
        "  ip filter: 3 jumps\n"
        "    of each of them: where it leads, nothing is decided that would not be so\n"
        "    anyway\n"
        "      INPUT rules 1-2; FORWARD rule 1\n"
    )
    assert len(list(audit_json(found))) == 4
