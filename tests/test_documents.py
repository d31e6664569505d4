"""What the documents show is what the program says."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path

import numpy
import pytest

import conntracker
from conntracker.cli.main import main
from conntracker.formats.path import diagram

ROOT = Path(__file__).parent.parent

# office.rules of the examples.
OFFICE = """\
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:web - [0:0]
:old - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p icmp -m limit --limit 5/sec -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -p tcp -m multiport --dports 80,443 -j web
-A FORWARD -s 10.1.0.0/16 -p udp -m udp --dport 53 -j ACCEPT
-A web -s 10.1.0.0/16 -j ACCEPT
-A web -s 10.1.7.0/24 -p tcp -m tcp --dport 80 -j DROP
-A web -s 10.2.0.0/16 -p tcp -m tcp --dport 443 -j ACCEPT
COMMIT
"""


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the examples, where the test is, and a terminal of 80 columns."""
    (tmp_path / "office.rules").write_text(OFFICE)
    changed = OFFICE.replace("-s 10.2.0.0/16", "-s 10.2.0.0/15").splitlines(keepends=True)
    (tmp_path / "new.rules").write_text("".join(line for line in changed if "--dport 53" not in line))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def blocks(text: str) -> list[str]:
    """The indented blocks of a document, without their indentation."""
    found = re.findall(r"(?:^(?:    .*)?\n)+", text, re.MULTILINE)
    return [block for one in found if (block := textwrap.dedent(one).strip("\n"))]


def without_witnesses(text: str) -> str:
    """Without the packets that a solver chose as examples: another build of it may choose others."""
    return re.sub(r"^( *)packet, .*\n(?:\1  .*\n)*", r"\1packet\n", text, flags=re.MULTILINE)


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md"])
def test_the_netfilter_path_is_that_of_blame(name: str) -> None:
    """The diagram of the netfilter path is the one that `blame --path` prints, without marks."""
    shown = "".join(f"    {line}\n" if line else "\n" for line in diagram().rstrip("\n").split("\n"))
    assert shown in (ROOT / name).read_text()


@pytest.mark.usefixtures("office")
def test_examples_of_rules(capfd: pytest.CaptureFixture[str]) -> None:
    """The answers about office.rules are those that are shown."""
    asked = []
    for block in blocks((ROOT / "README.md").read_text()):
        if not block.startswith("$ conntracker ") or "office.rules" not in block:
            continue
        command, _, shown = block.replace("\\\n", "").partition("\n")
        words = shlex.split(command)[2:]
        asked.append((words[0], main(words)))
        assert without_witnesses(capfd.readouterr().out) == without_witnesses(shown + "\n")
    assert asked == [("why", 0), ("why", 1), ("audit", 1), ("diff", 1)]


@pytest.mark.usefixtures("office")
def test_the_library_example() -> None:
    """The library does with rulesets what is shown."""
    (block,) = (one for one in blocks((ROOT / "README.md").read_text()) if "Ruleset.parse" in one)
    lines = block[block.index("old, new = ") :].splitlines()
    known = {"conntracker": conntracker, "Path": Path, "numpy": numpy}
    values = []
    for line in lines:
        if re.match(r"\w+(, \w+)* = ", line):
            exec(line, known)  # noqa: S102  it is ours
        else:
            values.append(eval(line, known))  # noqa: S307
    verdict, column, dead, equal, changes = values
    assert (verdict, column.shape, bool(equal)) == ("accept", (65536,), False)
    assert [one.rule.position for one in dead] == [2]
    assert {one.kind for one in changes} == {"newly accepted", "newly dropped"}
