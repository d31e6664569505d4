"""Rulesets kept in recordings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntracker.rules.host import Host, Route
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.stored import Situation, from_text, to_text

SAVE = """*filter
:INPUT DROP [7:420]
:web - [0:0]
[3:180] -A INPUT ! -i eth+ -s 10.0.0.0/8 -p tcp -m multiport --dports 80,443 -m comment --comment "a \\"b\\"" -j web
-A INPUT -m limit --limit 5/sec -j ACCEPT
-A web -m mark --mark 0x1/0xff -j REJECT --reject-with tcp-reset
COMMIT
"""
HOST = Host(
    local={4: ((1, 2),), 6: ()}, routes={4: (Route(0, 9, "eth0", 5),)}, primary={(4, "eth0"): 1}, broadcast={4: ()}
)


@pytest.mark.parametrize("host", [None, Host(), HOST])
def test_what_is_kept_is_what_was_understood(host: Host | None) -> None:
    """Ruleset and host come back equal."""
    situation = Situation(1_700_000_000_000_000, Ruleset.parse(SAVE, source="a.rules"), host)
    assert from_text(to_text(situation)) == situation


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "time": 0, "host": null, "ruleset": {"is": "In"}}']
)
def test_what_is_none_is_refused(text: str) -> None:
    """Damaged or newer files are a ValueError."""
    with pytest.raises(ValueError):  # noqa: PT011  of json's, or ours
        from_text(text)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda one: st.lists(one) | st.dictionaries(st.text(), one)))
def test_any_document_is_a_situation_or_refused(value: object) -> None:
    """Whatever stands in the file, the answer is a situation or a ValueError."""
    import json

    with pytest.raises(ValueError):  # noqa: PT011  of json's, or ours
        from_text(json.dumps({"format": 1, "time": 0, "host": value, "ruleset": value}))
