"""Whether the solver and interval decision diagrams find the same dead rules.

`python bench/dead_agree.py [--random 250] [FOLDER ...]`. Of the filter table INPUT, FORWARD and OUTPUT are looked at,
each alone, with what it leads to. Exit code 1 if the two disagree.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

from conntracker.rules import iptables
from conntracker.rules.errors import RuleSyntaxError
from conntracker.rules.intervals import Intervals, normal
from conntracker.rules.ruleset import KnownChain, Ruleset
from conntracker.rules.solve.dead import ALWAYS, dead
from conntracker.rules.solve.names import Interfaces

ROOT = Path(__file__).resolve().parents[1]


# The interface that packets lack, by chain.
CHAINS = {"INPUT": "oif", "FORWARD": "", "OUTPUT": "iif"}


def valid(version: int, chain: str, name: str, interfaces: Interfaces) -> Intervals | None:
    """What packets in a chain have."""
    if name in {"iif", "oif"}:
        return ((0, 0),) if name == CHAINS[chain] else normal([(1, len(interfaces.names) - 1)])
    if name == "ttl" and chain == "FORWARD":
        return ((1, 254),)
    return {"family": ((version, version),), "ct_state": ((0, 4),), "length": ((20, 65535),)}.get(name)


def filter_only(ruleset: Ruleset, chain: str) -> Ruleset:
    """A base chain of the filter table, and the table's user chains."""
    return Ruleset(tuple(
        known for known in ruleset.chains
        if known.chain.table == "filter" and (known.chain.hook is None or known.chain.name == chain)
    ))  # fmt: skip


def disagreement(ruleset: Ruleset, base: KnownChain) -> tuple[list[str], list[str]]:
    """The texts of rules that only the solver, and only the diagram, finds dead."""
    from support.interval_diagram import diagram_dead

    version = 6 if base.chain.family == "ip6" else 4
    solved = {
        id(one.rule): one.rule for one in dead(ruleset, explain=False) if one.certainty == ALWAYS and one.versions
    }
    drawn = diagram_dead(ruleset, version, base, partial(valid, version, base.chain.name))
    rules = {id(rule): rule for known in ruleset.chains for rule in known.chain.rules}
    only_solved = [str(rule.text) for key, rule in solved.items() if key not in drawn]
    return only_solved, [str(rules[key].text) for key in drawn - solved.keys()]


def main() -> int:
    """Compares, and says how many."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.interval_diagram import Unfit
    from support.small_rulesets import random_forward

    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--random", type=int, default=250)
    options.add_argument("folders", nargs="*", type=Path)
    arguments = options.parse_args()
    given = [(f"random {seed}", random_forward(seed, 20 + seed % 30)) for seed in range(arguments.random)]
    unread = 0
    for path in sorted(path for folder in arguments.folders for path in folder.rglob("*") if path.is_file()):
        try:
            chains = iptables.parse_save(path.read_text(errors="replace"), source=path.name)
        except RuleSyntaxError:
            unread += 1
            continue
        given.append((path.name, Ruleset(chains)))
    agreed = unfit = wrong = rules = 0
    start = time.monotonic()
    for name, ruleset, chain in ((f"{name} {chain}", ruleset, chain) for name, ruleset in given for chain in CHAINS):
        alone = filter_only(ruleset, chain)
        base = next((known for known in alone.chains if known.chain.name == chain), None)
        if base is None:
            continue
        try:
            only_solver, only_diagram = disagreement(alone, base)
        except (Unfit, RecursionError) as error:
            unfit += 1
            print(f"{name}: not for diagrams: {error}")
            continue
        rules += sum(len(known.meanings) for known in alone.chains)
        if only_solver or only_diagram:
            wrong += 1
            print(f"{name}: only the solver {only_solver[:3]}, only the diagram {only_diagram[:3]}")
        else:
            agreed += 1
    seconds = time.monotonic() - start
    print(
        f"{agreed} agree, {wrong} do not, {unfit} not for diagrams, {unread} not read; {rules} rules, {seconds:.1f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
