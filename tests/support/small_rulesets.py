"""Rulesets written as a table: iptables rules of the filter table, one a line."""

from __future__ import annotations

import random

from conntracker.rules.ruleset import Ruleset

__all__ = ["forward", "random_forward", "saved"]

HEAD = ":INPUT {policy} [0:0]\n:FORWARD {policy} [0:0]\n:OUTPUT {policy} [0:0]\n"


def saved(lines: str, *, policy: str = "DROP", family: str = "ip", table: str = "filter") -> Ruleset:
    """The ruleset of rules as iptables-save prints them; `:NAME` declares a chain."""
    rules = [line.strip() for line in lines.strip().splitlines() if line.strip()]
    head = HEAD.format(policy=policy) if table == "filter" else ""
    chains = "".join(f"{line} - [0:0]\n" for line in rules if line.startswith(":"))
    body = "".join(f"{line}\n" for line in rules if not line.startswith(":"))
    return Ruleset.parse(f"*{table}\n{head}{chains}{body}COMMIT\n", family=family, kind="iptables-legacy")


def forward(lines: str, *, policy: str = "DROP", family: str = "ip") -> Ruleset:
    """Rules of FORWARD, without `-A FORWARD`."""
    rules = [line.strip() for line in lines.strip().splitlines() if line.strip()]
    return saved("\n".join(f"-A FORWARD {line}" for line in rules), policy=policy, family=family)


def random_forward(seed: int, count: int) -> Ruleset:
    """Rules that meet each other often, in FORWARD and two chains behind it."""
    chance = random.Random(seed)  # noqa: S311
    lines = [":one", ":two"]
    for _ in range(count):
        chain = chance.choice(("FORWARD", "FORWARD", "one", "two"))
        words = []
        if chance.random() < 0.5:
            words.append(
                chance.choice(("-s", "-d", "! -s")) + f" 10.0.{chance.randrange(4)}.0/{chance.choice((8, 22, 23, 24))}"
            )
        if chance.random() < 0.3:
            words.append(chance.choice(("-i eth0", "-i eth+", "! -i eth0", "-o eth1", "-i lo")))
        if chance.random() < 0.7:
            low = chance.randrange(20, 26)
            words.append(
                f"-p {chance.choice(('tcp', 'udp'))} "
                + chance.choice(
                    (f"--dport {low}", f"--dport {low}:{low + 3}", f"! --dport {low}", "-m comment --comment any")
                )
            )
        if chance.random() < 0.2:
            words.append("-m conntrack --ctstate " + chance.choice(("NEW", "ESTABLISHED,RELATED", "NEW,ESTABLISHED")))
        targets = (
            ["ACCEPT", "DROP", "RETURN"] + ([] if chain == "two" else ["two"]) + (["one"] if chain == "FORWARD" else [])
        )
        lines.append(f"-A {chain} {' '.join(words)} -j {chance.choice(targets)}")
    return saved("\n".join(lines))
