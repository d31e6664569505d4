from __future__ import annotations

import json
from pathlib import Path

import pytest

from conntracker.cli.main import main

OLD = "*filter\n:INPUT DROP [0:0]\n-A INPUT -s 10.0.0.0/9 -j ACCEPT\n-A INPUT -s 10.128.0.0/9 -j ACCEPT\nCOMMIT\n"
SAME = "*filter\n:INPUT DROP [0:0]\n-A INPUT -s 10.0.0.0/8 -j ACCEPT\nCOMMIT\n"
OTHER = "*filter\n:INPUT DROP [0:0]\n-A INPUT -s 10.0.0.0/7 -j ACCEPT\nCOMMIT\n"
# SAME, in the words of nft.
NFT = json.dumps({"nftables": [
    {"table": {"family": "ip", "name": "t", "handle": 1}},
    {"chain": {"family": "ip", "table": "t", "name": "in", "handle": 2, "type": "filter", "hook": "input", "prio": 0,
               "policy": "drop"}},
    {"rule": {"family": "ip", "table": "t", "chain": "in", "handle": 3, "expr": [
        {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}},
                   "right": {"prefix": {"addr": "10.0.0.0", "len": 8}}}},
        {"accept": None}]}},
]})  # fmt: skip
IPV6 = "*filter\n:INPUT DROP [0:0]\n-A INPUT -s fd00::/8 -j ACCEPT\nCOMMIT\n"


@pytest.fixture
def file(tmp_path: Path) -> dict[str, str]:
    """Files of rulesets by name."""
    texts = {"old": OLD, "same": SAME, "other": OTHER, "nft": NFT, "v6": IPV6}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return {name: str(tmp_path / name) for name in texts}


@pytest.mark.parametrize(
    ("old", "new", "code", "said"),
    [
        ("old", "same", 0, "equal: every packet (IPv4)"),
        ("old", "nft", 0, "equal: every packet (IPv4)"),
        ("same", "other", 1, "NEWLY ACCEPTED  1\n  input: all from 11.0.0.0/8 to any"),
        ("other", "nft", 1, "NEWLY DROPPED  1\n  input: all from 11.0.0.0/8 to any"),
    ],
)
def test_two_files(
    file: dict[str, str], old: str, new: str, code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rulesets of any syntax are compared: 0 if they are equal, 1 if not."""
    assert main(["diff", file[old], file[new]]) == code
    assert capfd.readouterr().out.startswith(said)


def test_several_files(file: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    """Files with a comma between them are one ruleset."""
    assert main(["diff", f"{file['old']},{file['v6']}", f"{file['v6']},{file['same']}"]) == 0
    assert "equal: every packet (IPv4 and IPv6)" in capfd.readouterr().out


def test_json(file: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    """With --json each line is an object."""
    assert main(["diff", file["same"], file["other"], "--json"]) == 1
    first, one = map(json.loads, capfd.readouterr().out.splitlines())
    assert (first["equal"], one["packets"]) == (False, {"saddr": "11.0.0.0/8"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{old}", "{same}", "--limit", "0"], "--limit: 0 is less than 1"),
        (["{old}", "{same}.none"], "No such file"),
        (["{old},", "{same}"], "the name of a file is missing"),
        (["{old}", "live:/no/such/namespace"], "/no/such/namespace"),
    ],
)
def test_bad_input(file: dict[str, str], arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    """What cannot be read is told in one line, with exit code 2."""
    assert main(["diff", *(one.format(**file) for one in arguments)]) == 2
    assert said in capfd.readouterr().err
