"""What only the text of a listing tells, by place: texts of rules, flags of tables and sets, devices of chains."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from conntracker.rules.nft_listing import dormant_tables, listed_chains

__all__ = ["Listing"]

_TABLE = re.compile(r"table (\w+) (\S+) \{")
_SET = re.compile(r"\t(?:set|map|meter) (\S+) \{")
_FLAGS = re.compile(r"\t\tflags ([\w,]+)")


@dataclass(slots=True)
class Listing:
    """What `nft -a list ruleset` says.

    rules       (family, table, chain, handle) -> text
    set_flags   (family, table, set) -> its flags
    devices     (family, table, chain) -> names, comma separated
    dormant     (family, table) of the tables that are asleep
    """

    rules: dict[tuple[str, str, str, int | None], str] = field(default_factory=dict)
    set_flags: dict[tuple[str, str, str], tuple[str, ...]] = field(default_factory=dict)
    devices: dict[tuple[str, str, str], str] = field(default_factory=dict)
    dormant: frozenset[tuple[str, str]] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Listing:
        """Never raises: what is not found is not known."""
        made = cls(dormant=dormant_tables(text))
        for chain in listed_chains(text):
            if chain.device is not None:
                made.devices[chain.family, chain.table, chain.name] = chain.device
            for rule in chain.rules:
                if rule.text is not None:
                    made.rules[chain.family, chain.table, chain.name, rule.handle] = rule.text
        place: tuple[str, str] = ("", "")
        name = ""
        for line in text.splitlines():
            if line.startswith("table ") and (found := _TABLE.match(line)):
                place = (found[1], found[2])
            elif line.startswith("\t") and (found := _SET.match(line)):
                name = found[1]
            elif line.startswith("\t}"):
                name = ""
            elif name and (found := _FLAGS.match(line)):
                made.set_flags[(*place, name)] = tuple(found[1].split(","))
        return made
