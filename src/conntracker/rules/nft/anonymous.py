"""Chains without a name, given one: libnftables 1.0.6 cannot say in JSON what stands in `jump { ... }`."""

from __future__ import annotations

import re

__all__ = ["with_names"]

_OPENED = re.compile(r"\t\t(?P<before>.*)\b(?P<verb>jump|goto) \{(?: # handle \d+)?$")
_HANDLE = re.compile(r" # handle \d+$")


def with_names(listing: str) -> str:
    """What `nft list ruleset` prints, with a chain `nameless_N` in place of each without a name."""
    out: list[str] = []
    start = count = 0  # of the chain that the rule stands in
    lines = iter(listing.splitlines())
    for line in lines:
        if line.startswith("\tchain "):
            start = len(out)
        found = _OPENED.match(line)
        if found is None or line.count('"') % 2:
            out.append(line)
            continue
        count += 1
        name = f"nameless_{count}"
        body = [f"\tchain {name} {{"]
        ending = ""
        for inner in lines:
            if inner.startswith("\t\t}"):
                ending = inner[3:]
                break
            body.append(_HANDLE.sub("", inner[1:]))
        out[start:start] = [*body, "\t}", ""]
        start += len(body) + 2
        out.append(f"\t\t{found['before']}{found['verb']} {name}{ending}")
    return "".join(f"{line}\n" for line in out)
