"""One ruleset, tried: loaded into a namespace, packets chosen and sent, and what the kernel does with each compared."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from conntracker.lab.oracle import Oracle, Seen
from conntracker.lab.trials.aim import tests_of
from conntracker.lab.trials.borders import choose
from conntracker.lab.trials.compare import Comparison, Judge
from conntracker.lab.trials.ends import End, end_of
from conntracker.lab.trials.lines import Line, lines_of
from conntracker.lab.trials.space import Space, of_local_scope
from conntracker.lab.trials.tally import Tally
from conntracker.rules.fields import CT_STATES
from conntracker.rules.host import Host
from conntracker.rules.iptables import parse_save
from conntracker.rules.nft import parse_json
from conntracker.rules.packets import Packet
from conntracker.rules.ruleset import Ruleset
from conntracker.rules.terms import Named, Nat
from conntracker.sources.translate import translate

__all__ = ["Recorded", "Source", "interfaces_of", "judged", "recorded", "ruleset_of"]

_TRACKED = frozenset(CT_STATES.index(name) for name in ("established", "related"))
_MOST_INTERFACES = 12
_NAME = re.compile(r"[^\s/:]{1,15}")


@dataclass(frozen=True, slots=True)
class Source:
    """A ruleset as text. kind as in steps.KINDS; family ip or ip6 of saves, and nothing otherwise."""

    name: str
    text: str
    kind: str
    family: str = "ip"


@dataclass(slots=True)
class Recorded:
    """What the kernel did with packets under a ruleset.

    packets      as they were sent; a flow's status is what the kernel said of it
    kernel       the lines of each
    ends         what became of each
    host         as rules saw it
    without      rules that no packet was found for
    lost, stray  messages that the kernel dropped, or told of no packet that was sent
    seconds      to choose, and to send
    sendable     whether a packet could have been sent
    """

    source: Source
    ruleset: Ruleset
    host: Host
    space: Space
    packets: list[Packet] = field(default_factory=list)
    kernel: list[tuple[Line, ...]] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    without: int = 0
    lost: int = 0
    stray: int = 0
    seconds: tuple[float, float] = (0.0, 0.0)
    sendable: Callable[[Packet], bool] = lambda _: True


def ruleset_of(source: Source) -> Ruleset:
    """As the engine understands it. Raises RuleSyntaxError."""
    if source.kind == "nft":
        document, listing = translate(source.text, source.name)
        return parse_json(document, listing=listing)
    return Ruleset(parse_save(source.text, family=source.family, kind=source.kind))


def interfaces_of(ruleset: Ruleset) -> list[str]:
    """Interfaces that there must be for the rules to tell them apart, a few: no pattern, and two that none names."""
    patterns: dict[str, None] = {}
    for known in ruleset.chains:
        for meaning in known.meanings:
            for test in tests_of(meaning.parts):
                if isinstance(test, Named):
                    patterns |= dict.fromkeys(test.patterns)
    names = dict.fromkeys(f"{one[:-1][:14]}0" if one.endswith("*") else one for one in patterns)
    usable = [name for name in names if _NAME.fullmatch(name) and name not in {"lo", ".", ".."}]
    return list(dict.fromkeys([*usable[:_MOST_INTERFACES], "trial0", "trial1"]))


def _nats(ruleset: Ruleset) -> Iterator[Nat]:
    for known in ruleset.chains:
        for meaning in known.meanings:
            yield from (part for part in meaning.parts if isinstance(part, Nat))


def recorded(source: Source, most: int, seed: int = 0, with_solver: bool = True) -> Recorded:
    """At most `most` packets, sent. Raises RuleSyntaxError, LoadRefused, OSError.

    with_solver   whether the solver's witnesses of rules are among them
    """
    from conntracker.rules.solve.dead import witnesses

    ruleset = ruleset_of(source)
    with Oracle(interfaces_of(ruleset)) as oracle:
        oracle.load(source.text, source.kind, source.family)
        space = Space(oracle.host_addresses, oracle.host)
        result = Recorded(source, ruleset, oracle.host, space)
        found = witnesses(ruleset, oracle.host.local) if with_solver else {}
        redirects = any(part.kind == "redirect" for part in _nats(ruleset))

        def sendable(one: Packet) -> bool:
            return oracle.refusal(one) is None and not (redirects and of_local_scope(one))

        result.sendable = sendable
        began = time.monotonic()
        choice = choose(
            ruleset,
            space,
            most,
            seed=seed,
            sendable=sendable,
            witnesses={id(rule): one.packet | {"way": one.way} for rule, one in found.items()},
        )
        chosen = time.monotonic()
        seen = oracle.send(choice.packets)
        result.seconds = chosen - began, time.monotonic() - chosen
        result.packets = [_as_sent(packet, one) for packet, one in zip(choice.packets, seen, strict=True)]
        result.kernel, result.ends = [lines_of(one.steps) for one in seen], [end_of(one) for one in seen]
        result.without, result.lost, result.stray = len(choice.without), oracle.lost, oracle.stray
    return result


def judged(one: Recorded, tally: Tally | None = None, most: int = 20) -> tuple[Comparison, Judge]:
    """The comparison with the engine, and who made it. At most `most` mismatches are kept."""
    told = None if tally is None else (lambda _, outcome: tally.add(outcome))
    judge = Judge(one.ruleset, one.space.host_of, told)
    return judge.compare(one.packets, one.kernel, one.ends, most), judge


def _as_sent(packet: Packet, seen: Seen) -> Packet:
    """With the status that connection tracking gave the flow when it saw the packet: it may add bits at once."""
    if packet["ct_state"] in _TRACKED and seen.flow is not None:
        return packet | {"ct_status": seen.flow[2]}
    return packet
