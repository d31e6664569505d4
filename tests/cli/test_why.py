from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.cli.main import main
from conntracker.cli.why import packet_of
from conntracker.recording.writer import RecordingWriter
from conntracker.rules.host import Host
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.stored import Situation, to_text
from conntracker.steps import Path as StepPath
from conntracker.steps import Step, step_from_json
from support.columns import NOON, flows
from support.traces import DROPPED, TRACE, icmp, row, tcp

SAVE = """*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -s 10.9.9.9/32 -j NOTRACK
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -d 192.0.2.1/32 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.0.0.80:80
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:web - [0:0]
-A INPUT -p icmp -m limit --limit 5/sec -j ACCEPT
-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A FORWARD -p tcp -j web
-A web -s 10.1.0.0/16 -j RETURN
-A web -p tcp -m tcp --dport 80 -j ACCEPT
-A web -p tcp -m tcp --dport 23 -j REJECT --reject-with tcp-reset
-A OUTPUT -m owner --uid-owner 33 -j DROP
COMMIT
"""


def _match(left: dict[str, Any], right: object) -> dict[str, Any]:
    return {"match": {"op": "==", "left": left, "right": right}}


NFT = json.dumps({"nftables": [
    {"table": {"family": "inet", "name": "t", "handle": 1}},
    {"chain": {"family": "inet", "table": "t", "name": "in", "handle": 2, "type": "filter", "hook": "input", "prio": 0,
               "policy": "drop"}},
    {"rule": {"family": "inet", "table": "t", "chain": "in", "handle": 3, "expr": [
        _match({"payload": {"protocol": "tcp", "field": "dport"}}, 22), {"accept": None}]}},
]})  # fmt: skip


@pytest.fixture
def rules(tmp_path: Path) -> str:
    """A save in a file."""
    path = tmp_path / "a.rules"
    path.write_text(SAVE)
    return str(path)


def why(*words: str | Path) -> int:
    """The exit code of `conntracker why` with these words."""
    return main(["why", *map(str, words)])


def answer(capfd: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> dict[str, Any]:
    """The only answer, as JSON."""
    assert why(*words, "--json") == code
    (line,) = capfd.readouterr().out.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


FORWARD = ("--in", "eth0", "--out", "eth1", "--src", "10.2.0.5", "--proto", "tcp")


@pytest.mark.parametrize(
    ("words", "verdict", "by"),
    [
        ("--way forward --src 10.2.0.5 --dst 10.0.0.1 --proto tcp --dport 80", "accept", "web 2"),
        ("--way forward --src 10.2.0.5 --dst 10.0.0.1 --proto TCP --dport telnet", "reject", "web 3"),
        ("--way forward --src 10.2.0.5 --dst 10.0.0.1 --proto 6 --dport http", "accept", "web 2"),
        ("--way forward --src 10.1.0.5 --dst 10.0.0.1 --proto tcp --dport 80", "drop", None),
        ("--way forward --src 10.2.0.5 --dst 192.0.2.1 --proto tcp --dport 8080", "accept", "web 2"),
        ("--way input --src 10.2.0.5 --proto tcp --state established --dport 9", "accept", "INPUT 2"),
        ("--way input --src 10.2.0.5 --proto tcp --state established --tcp-flags syn,ack", "accept", "INPUT 2"),
        ("--way input --src 10.9.9.9 --dst 10.0.0.1 --proto tcp --state established", "drop", None),
        ("--way output --src 10.2.0.5 --dst 10.0.0.1 --uid 33 --out eth0", "drop", "OUTPUT 1"),
        ("--way output --src 10.2.0.5 --dst 10.0.0.1 --uid 32 --mark 0x7 --ct-mark 3 --length 60", "accept", None),
        ("--way input --in eth0 --src 10.0.0.1 --proto udp --mac 02:00:00:00:00:01", "drop", None),
    ],
)  # fmt: skip
def test_a_packet(rules: str, words: str, verdict: str, by: str | None, capfd: pytest.CaptureFixture[str]) -> None:
    """The verdict, and the rule that decides; no rule where a policy does."""
    found = answer(capfd, "--rules", rules, *words.split())
    rule = found["rule"]
    assert (found["verdict"], rule and f"{rule['chain']} {rule['position']}") == (verdict, by)


def test_the_lines(rules: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """For people: the packet, what was supposed, who decides, NAT, and the way, at most as wide as the terminal."""
    monkeypatch.setenv("COLUMNS", "90")
    assert why(*FORWARD, "--dst", "192.0.2.1", "--dport", "8080", "--way", "forward", "--rules", rules) == 0
    shown = f"""\
TCP 10.2.0.5:* -> 192.0.2.1:8080 in eth0 out eth1, TCP flags syn, state new   ACCEPTED
  not said, and so taken: state new, TCP flags syn, mark 0, no fragment
  by   ip filter web, rule 2 (iptables-legacy)
       -A web -p tcp -m tcp --dport 80 -j ACCEPT   {rules}:22
  NAT  destination 192.0.2.1 -> 10.0.0.80
  NAT  destination port 8080 -> 80
  prerouting   ip raw PREROUTING        policy accept
               ip nat PREROUTING        rule 1 accept
                 -A PREROUTING -d 192.0.2.1/32 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.0.0.80:80
  forward      ip filter FORWARD        rule 1 jump web  -A FORWARD -p tcp -j web
                 ip filter web            rule 2 accept  <== decided
                   -A web -p tcp -m tcp --dport 80 -j ACCEPT
  postrouting  ip nat POSTROUTING       policy accept
"""
    assert capfd.readouterr().out == shown


def test_rules_passed_over(rules: str, capfd: pytest.CaptureFixture[str]) -> None:
    """--passed tells of each rule that did not match which of its matches failed."""
    assert why(*FORWARD, "--dport", "23", "--way", "forward", "--rules", rules, "--passed") == 0
    out = capfd.readouterr().out
    assert "web rule 1 passed over: source 10.2.0.5 is not in 10.1.0.0/16\n" in out
    assert "web rule 2 passed over: destination port 23 is not 80\n" in out
    found = answer(capfd, *FORWARD, "--dport", "23", "--way", "forward", "--rules", rules, "--passed")
    assert [one["rule"]["source"] for one in found["outcomes"][0]["passed"]][-2:] == [f"{rules}:21", f"{rules}:22"]


def test_undecided(rules: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Where it hangs on a limit, that is named, both outcomes are shown, and the exit code is 1."""
    words = ("--way", "input", "--src", "10.2.0.5", "--dst", "10.0.0.1", "--proto", "icmp", "--rules", rules)
    assert why(*words) == 1
    out = capfd.readouterr().out
    assert "   UNDECIDED\n" in out
    assert "  it hangs on: -m limit --limit 5/sec\n" in out
    assert "  2. DROPPED if not -m limit --limit 5/sec\n" in out
    found = answer(capfd, *words, code=1)
    assert (found["rule"], found["path"], found["undecided_by"]) == (None, None, ["-m limit --limit 5/sec"])
    assert {one["verdict"]: one["if"][0]["value"] for one in found["outcomes"]} == {"accept": True, "drop": False}


def test_what_is_not_said(rules: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A value that is not said is tried both ways, in words that say which."""
    assert why("--way", "forward", "--src", "10.2.0.5", "--dst", "10.0.0.1", "--proto", "tcp", "--rules", rules) == 1
    out = capfd.readouterr().out
    assert "  it hangs on: the packet's destination port\n" in out
    assert "ACCEPTED if destination port is 80\n" in out
    assert "DROPPED if destination port is not 80; destination port is not 23\n" in out
    assert why(*FORWARD, "--dport", "80", "--rules", rules) == 0
    capfd.readouterr()
    assert why(*FORWARD[:2], *FORWARD[4:], "--dst", "10.0.0.1", "--dport", "80", "--rules", rules) == 1
    out = capfd.readouterr().out
    assert "DROPPED if it is for this host\n" in out
    assert "ACCEPTED if it is not for this host\n" in out


def test_keys_of_json(rules: str, capfd: pytest.CaptureFixture[str]) -> None:
    """packet, verdict, rule, path and undecided_by, as blame has them; steps can be read back."""
    found = answer(capfd, *FORWARD, "--dport", "23", "--way", "forward", "--rules", rules)
    assert list(found) == ["packet", "verdict", "rule", "path", "undecided_by", "outcomes", "supposed"]
    assert found["packet"].items() >= {"saddr": "10.2.0.5", "protocol": "tcp", "dport": 23, "ct_state": "new"}.items()
    steps = [step_from_json(one) for one in found["path"]]
    assert [(one.chain, one.type, one.verdict) for one in steps] == [
        ("PREROUTING", "policy", "accept"), ("PREROUTING", "policy", "accept"), ("FORWARD", "rule", "jump"),
        ("web", "rule", "reject"),
    ]  # fmt: skip
    assert steps[-1].rule is not None
    assert steps[-1].rule.json() == found["rule"]


def test_files_together(rules: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Several files, of whatever syntax, are one ruleset."""
    (tmp_path / "b.json").write_text(NFT)
    words = ("--way", "input", "--src", "10.2.0.5", "--proto", "tcp", "--state", "established")
    files = ("--rules", rules, "--rules", tmp_path / "b.json")
    assert answer(capfd, *words, "--dport", "22", *files)["verdict"] == "accept"
    found = answer(capfd, *words, "--dport", "23", *files)
    assert (found["verdict"], found["path"][-1]["table"], found["path"][-1]["type"]) == ("drop", "t", "policy")


@pytest.mark.parametrize("text", [SAVE, NFT])
def test_standard_input(text: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` is a ruleset from standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    found = answer(capfd, "--rules", "-", "--way", "input", "--src", "10.2.0.5", "--proto", "udp")
    assert found["verdict"] == "drop"


def test_no_privilege(tmp_path: Path) -> None:
    """Saves and JSON are read without any capability."""
    (tmp_path / "a.rules").write_text(SAVE)
    (tmp_path / "b.json").write_text(NFT)
    without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    files = ["--rules", str(tmp_path / "a.rules"), "--rules", str(tmp_path / "b.json")]
    words = ["why", *files, "--way", "input", "--src", "10.2.0.5", "--proto", "udp", "--state", "established"]
    command = [*without, sys.executable, "-m", "conntracker", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, "   DROPPED\n" in done.stdout) == (0, True), done.stderr


SRC = ("--src", "10.0.0.1")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say at least --src or --dst"),
        (("--src", "10.0.0.300"), "--src: '10.0.0.300' is no IP address"),
        (("--dst", "10.0.0.0/8"), "--dst: '10.0.0.0/8' is no IP address"),
        ((*SRC, "--dst", "2001:db8::1"), "--src and --dst are of different IP versions"),
        ((*SRC, "--proto", "tpc"), "unknown protocol 'tpc'"),
        ((*SRC, "--dport", "80"), "ports and flags need --proto"),
        ((*SRC, "--tcp-flags", "syn"), "ports and flags need --proto"),
        ((*SRC, "--proto", "tcp", "--dport", "65536"), "--dport: '65536' is no number below 65536"),
        ((*SRC, "--proto", "tcp", "--sport", "nosuch"), "--sport: no service 'nosuch'"),
        ((*SRC, "--proto", "icmp", "--dport", "80"), "--dport does not go with --proto icmp"),
        ((*SRC, "--proto", "tcp", "--icmp-type", "8"), "--icmp-type does not go with --proto tcp"),
        ((*SRC, "--proto", "udp", "--tcp-flags", "syn"), "--tcp-flags does not go with --proto udp"),
        ((*SRC, "--proto", "tcp", "--tcp-flags", "sin"), "--tcp-flags: no flag 'sin'; there are: fin, syn,"),
        ((*SRC, "--proto", "icmp", "--icmp-type", "echo"), "--icmp-type: 'echo' is no number below 256"),
        ((*SRC, "--icmp-type", "8/256"), "--icmp-type: '256' is no number below 256"),
        ((*SRC, "--mark", "0x100000000"), "--mark: '0x100000000' is no number below 4294967296"),
        ((*SRC, "--ct-mark", "x"), "--ct-mark: 'x' is no number"),
        ((*SRC, "--mac", "02:00:00:00:00"), "--mac: '02:00:00:00:00' is no MAC address"),
        ((*SRC, "--length", "-1"), "--length: '-1' is no number below 65536"),
        ((*SRC, "--ttl", "256"), "--ttl: '256' is no number below 256"),
        ((*SRC, "--ttl", "many"), "argument --ttl: invalid int value: 'many'"),
        ((*SRC, "--uid", "4294967296"), "--uid: '4294967296' is no number"),
        ((*SRC, "--state", "fresh"), "argument --state: invalid choice: 'fresh'"),
        ((*SRC, "--direction", "back"), "argument --direction: invalid choice: 'back'"),
        ((*SRC, "--way", "through"), "argument --way: invalid choice: 'through'"),
        ((*SRC, "--way", "output", "--in", "eth0"), "--in does not go with --way output"),
        ((*SRC, "--way", "input", "--out", "eth0"), "--out does not go with --way input"),
        ((*SRC, "--limit", "1"), "--limit goes with -r only"),
        ((*SRC, "--way", "output", "--netns", "x"), "--netns does not go with --rules"),
        (SRC, "say --in NAME for a packet that comes in, or --way output for one that this host sends"),
    ],
)
def test_options_that_make_no_sense(
    rules: str, words: tuple[str, ...], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is wrong with the options is one line, with exit code 2."""
    assert why("--rules", rules, *words) == 2
    out, err = capfd.readouterr()
    assert (out, err.startswith(f"conntracker: {said}"), err.count("\n")) == ("", True, 1), err


def test_the_rules_in_force_need_privilege() -> None:
    """Who may not read the rules in force gets no answer that leaves them out, but one line and exit code 3."""
    without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    command = [*without, sys.executable, "-m", "conntracker", "why", "--src", "10.2.0.5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    said = "conntracker: the rules in force are for CAP_NET_ADMIN to read: run as root\n"
    assert (done.returncode, done.stdout, done.stderr) == (3, "", said)


_TEXT = st.none() | st.text(max_size=8) | st.from_regex(r"[0-9a-fx:./-]{1,20}", fullmatch=True)
_OPTIONS = ("iif", "oif", "src", "dst", "proto", "sport", "dport", "icmp_type", "tcp_flags", "mark", "ct_mark", "mac")


@given(st.fixed_dictionaries({name: _TEXT for name in _OPTIONS}), st.sampled_from(["10.0.0.1", "2001:db8::1", None]))
def test_any_text(values: dict[str, str | None], source: str | None) -> None:
    """Whatever stands in the options, it is a packet or a ValueError."""
    others = dict.fromkeys(("state", "direction", "length", "ttl", "uid", "way"))
    with contextlib.suppress(ValueError):
        packet, said = packet_of(Namespace(**(values | {"src": source or values["src"]} | others)))
        assert packet["family"] in {4, 6}
        assert said


def test_the_output_is_closed(rules: str) -> None:
    """When the reader of its output goes away, it ends with 0."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "conntracker", "why", *SRC, "--way", "input", "--rules", rules]
    try:
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


# --- recordings ---


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A flow to port 80, a dropped packet to 443, and the rules that were in force."""
    kept = Situation(NOON, Ruleset.parse(SAVE), Host(local={4: ((167772162, 167772162),), 6: ()}))
    early: Step = DROPPED.steps[1]
    path = StepPath((early, DROPPED.steps[3]), "drop", 1, "forward")
    with RecordingWriter(tmp_path / "rec", host="gate", start=NOON) as writer:
        writer.update_meta(trace=TRACE)
        writer.append(flows({}))
        writer.append_paths([(1, path)])
        writer.append_traces([row(tcp("10.0.0.5", 40000, "10.0.1.2", 23), at=NOON + 1)])
        writer.keep_rules(to_text(kept))
        writer.close(NOON + 9)
    return tmp_path / "rec"


def test_recorded_flows(recording: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each flow of a recording is asked about, with the rules that were in force, an empty line between."""
    assert why("-r", recording) == 0
    blocks = capfd.readouterr().out.split("\n\n")
    assert [block.splitlines()[0].split()[1:4] for block in blocks] == [
        ["10.0.0.1:40000", "->", "10.0.0.2:80,"], ["10.0.0.5:40000", "->", "10.0.1.2:23"],
    ]  # fmt: skip
    assert "  by   ip filter web, rule 3 (iptables-legacy)\n" in blocks[1]
    assert (answer(capfd, "-r", recording, "--limit", "1")["verdict"]) == "reject"
    assert (answer(capfd, "-r", recording, "--dport", "23", "--proto", "tcp")["packet"]["daddr"]) == "10.0.1.2"


def test_recorded_flows_and_other_rules(recording: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With --rules, it is what those would do."""
    (tmp_path / "new").write_text(SAVE.replace("--dport 23 -j REJECT --reject-with tcp-reset", "--dport 23 -j DROP"))
    found = answer(capfd, "-r", recording, "--dst", "10.0.1.2", "--rules", tmp_path / "new")
    assert (found["verdict"], found["rule"]["source"]) == ("drop", f"{tmp_path / 'new'}:23")


def test_no_such_flow(recording: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Where nothing is what was asked for, that is said, with exit code 1."""
    assert why("-r", recording, "--dport", "9") == 1
    assert capfd.readouterr().err.startswith("conntracker: nothing in the recording is what was asked for")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "the recording does not have the rules in force: say --rules FILE"),
        ('{"format": 1, "ti', "rec/rules.json: "),
        ('{"format": 99}', "rules in format 99, which this version does not know: say --rules FILE"),
        ('{"format": 1, "time": 1e999, "ruleset": null, "host": null}', "rec/rules.json: no rules of a recording"),
    ],
)
def test_rules_that_cannot_be_read(
    recording: Path, rules: str, text: str | None, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where the rules are missing, damaged or newer, it is said, --rules helps, and `show` does not need them."""
    (recording / "rules.json").unlink()
    if text is not None:
        (recording / "rules.json").write_text(text)
    assert why("-r", recording) == 2
    out, err = capfd.readouterr()
    assert (out, said in err, "say --rules FILE" in err, err.count("\n")) == ("", True, True, 1), err
    assert why("-r", recording, "--rules", rules) == 0
    out, err = capfd.readouterr()
    assert "10.0.0.1:40000 -> 10.0.0.2:80" in out
    assert ("left out" in err) == (text is not None)
    assert main(["show", "-r", str(recording)]) == 0
    assert "rules.json" not in capfd.readouterr().err


def test_errors_of_icmp_are_never_new(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of an ICMP error without a flow it is not known whether it is related or invalid."""
    with RecordingWriter(tmp_path / "rec", host="gate", start=NOON) as writer:
        writer.update_meta(trace=TRACE)
        writer.append_paths([(1, DROPPED)])
        writer.append_traces([row(icmp("10.0.0.5", "10.0.1.2", 3, 1))])
        writer.close(NOON + 9)
    (tmp_path / "new").write_text(
        "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m state --state RELATED -j ACCEPT\nCOMMIT\n"
    )
    found = answer(capfd, "-r", tmp_path / "rec", "--rules", tmp_path / "new")
    assert "ct_state" not in found["packet"]
    assert found["undecided_by"] == ["the packet's state"]


@pytest.mark.parametrize(
    "option", ["in", "out", "icmp-type", "tcp-flags", "mark", "ct-mark", "mac", "length", "ttl", "uid"]
)
def test_options_of_a_packet_with_a_recording(recording: Path, option: str, capfd: pytest.CaptureFixture[str]) -> None:
    """What describes a packet does not go with recorded flows."""
    assert why("-r", recording, f"--{option}", "1") == 2
    said = f"conntracker: --{option} does not go with -r: packets are those of recorded flows\n"
    assert capfd.readouterr().err == said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--limit", "0"), "--limit: 0 is less than 1"),
        (("--netns", "x"), "--netns does not go with -r"),
        (("--src", "x"), "'x'"),
        (("--state", "new"), "--state does not go with -r"),
    ],
)
def test_bad_options_with_a_recording(
    recording: Path, words: tuple[str, ...], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Other options that make no sense there are one line, too."""
    assert why("-r", recording, *words) == 2
    assert said in capfd.readouterr().err
