"""Conditions on owners: who meets them, and that text stays text."""

from __future__ import annotations

from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.filters import Filter, quoted

CONNECTION = duckdb.connect()
CURL = {
    "kind": "process", "pid": 5057, "comm": "curl", "exe": "/usr/bin/curl", "uid": 1000, "user": "alice",
    "unit": "session-3.scope", "container": None,
}  # fmt: skip
RESOLVED = CURL | {
    "pid": 7, "comm": "systemd-resolve", "exe": "/usr/lib/systemd/systemd-resolved", "user": None, "uid": 5,
}  # fmt: skip
NGINX = CURL | {
    "pid": 77, "comm": "nginx", "exe": None, "user": "www", "uid": 33, "unit": "nginx.service",
    "container": "0123456789ab" + "f" * 52,
}  # fmt: skip
KERNEL = dict.fromkeys(CURL) | {"kind": "kernel"}
NOBODY = dict.fromkeys(CURL)


def meets(chosen: Filter, source: dict[str, Any], destination: dict[str, Any]) -> bool:
    """What the condition says of a flow with these owners."""
    values = {f"{end}_{name}": value for end, one in (("owner", source), ("peer_owner", destination))
              for name, value in one.items()}  # fmt: skip
    kinds = {"pid": "UINTEGER", "uid": "UINTEGER"}
    columns = ", ".join(f"${name}::{kinds.get(name[-3:], 'VARCHAR')} AS {name}" for name in values)
    query = f"SELECT coalesce({chosen.sql()}, false) FROM (SELECT {columns})"  # noqa: S608
    return bool(CONNECTION.execute(query, values).fetchall()[0][0])


@pytest.mark.parametrize(
    ("options", "owner", "wanted"),
    [
        ({"process": "curl"}, CURL, True),
        ({"process": "wget,curl"}, CURL, True),
        ({"process": "wget"}, CURL, False),
        ({"process": "cur"}, CURL, False),
        ({"process": "5057"}, CURL, True),
        ({"process": "505"}, CURL, False),
        ({"process": "/usr/bin/curl"}, CURL, True),
        ({"process": "/bin/curl"}, CURL, False),
        ({"process": "systemd-resolved"}, RESOLVED, True),
        ({"process": "systemd-resolve"}, RESOLVED, True),
        ({"process": "nginx"}, NGINX, True),
        ({"process": "(kernel)"}, KERNEL, True),
        ({"process": "(kernel)"}, CURL, False),
        ({"process": "9999999999"}, CURL, False),
        ({"user": "alice"}, CURL, True),
        ({"user": "1000"}, CURL, True),
        ({"user": "5"}, RESOLVED, True),
        ({"user": "bob,33"}, CURL, False),
        ({"unit": "nginx"}, NGINX, True),
        ({"unit": "nginx.service"}, NGINX, True),
        ({"unit": "session-3"}, CURL, False),
        ({"unit": "my.app"}, CURL | {"unit": "my.app.service"}, True),
        ({"unit": r"a\x2db.service"}, CURL | {"unit": r"a\x2db.service"}, True),
        ({"process": r"my prog\,(é), x"}, CURL | {"comm": "my prog,(é)"}, True),
        ({"process": r"my prog\,(é), x"}, CURL | {"comm": "x"}, True),
        ({"process": "my prog,(é)"}, CURL | {"comm": "my prog,(é)"}, False),
        ({"process": r"a\b"}, CURL | {"comm": r"a\b"}, True),
        ({"container": "0123456789ab"}, NGINX, True),
        ({"container": "01"}, NGINX, True),
        ({"container": "1234"}, NGINX, False),
        ({"container": "web"}, CURL | {"container": "web"}, True),
        ({"container": "we"}, CURL | {"container": "web"}, False),
        ({"container": "be"}, CURL | {"container": "beta"}, False),
        ({"process": "curl", "user": "alice"}, CURL, True),
        ({"process": "curl", "user": "bob"}, CURL, False),
        ({"process": "curl"}, NOBODY, False),
    ],
)
def test_either_end(options: dict[str, str], owner: dict[str, Any], wanted: bool) -> None:
    """An owner of either end who meets all conditions makes a flow wanted; who is not known meets none."""
    chosen = Filter.parse(**options)
    assert chosen.owned
    assert chosen
    assert meets(chosen, owner, NOBODY) == meets(chosen, NOBODY, owner) == wanted


def test_one_owner_meets_all() -> None:
    """Conditions on owners are met by one and the same owner."""
    chosen = Filter.parse(process="curl", user="www")
    assert not meets(chosen, CURL, NGINX)


@given(st.text())
def test_quoted(text: str) -> None:
    """Any text stays one literal with that text; what is no text is '?'."""
    if "\0" not in text:
        assert CONNECTION.execute(f"SELECT {quoted(text)}").fetchall() == [(text.encode(errors="replace").decode(),)]


ODD = st.one_of(st.text(), st.text("'\"\\;-()/*%_$ ab1,\n"))


@given(st.sampled_from(["process", "user", "unit", "container"]), ODD)
def test_no_text_gets_out(option: str, text: str) -> None:
    """Any text is a filter that asks for just that text, or a ValueError that names the option."""
    problem = ""
    try:
        chosen = Filter.parse(**{option: text})
    except ValueError as error:
        problem = str(error)
    if problem:
        assert problem.startswith(f"--{option}: ")
        return
    assert not meets(chosen, NOBODY, NOBODY)
    column = {"process": "comm"}.get(option, option)
    part = text.replace("\\,", "\0").split(",", maxsplit=1)[0].strip().replace("\0", ",")
    if option != "unit" and "/" not in part and not part.isdigit():
        assert meets(chosen, NOBODY | {column: part.encode(errors="replace").decode()}, NOBODY)


def test_same_filter() -> None:
    """Order and repetition do not matter."""
    assert Filter.parse(process="b, a,b") == Filter.parse(process="a,b")
    assert not Filter.parse().owned
