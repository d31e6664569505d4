"""What an audit says of a ruleset as a whole."""

from __future__ import annotations

from conntracker.answers.audit_summary import summary_of
from conntracker.rules.nft import parse_json
from conntracker.rules.ruleset import Ruleset

SAVE = """*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -m limit --limit 1/sec -j ACCEPT
-A PREROUTING -p tcp -j TPROXY --on-port 1
-A PREROUTING -p tcp -j DROP
COMMIT
"""
MAP = [
    ["10.0.0.1", {"accept": None}],
    ["10.0.0.2", {"drop": None}],
]
VMAP = {"vmap": {"key": {"numgen": {"mode": "inc", "mod": 2, "offset": 0}}, "data": {"set": MAP}}}


def test_each_opaque_match_counts_once() -> None:
    """Opaque are limits and targets whose outcome is not known, and a verdict map of which the key is not known."""
    found = summary_of(Ruleset.parse(SAVE))
    assert (found.rules, found.exact, found.opaque) == (3, 1, (("TPROXY", 1), ("limit", 1)))
    rule = {"rule": {"family": "ip", "table": "t", "chain": "c", "expr": [VMAP]}}
    assert summary_of(parse_json({"nftables": [rule]})).opaque == (("vmap", 1),)
