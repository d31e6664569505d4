"""What may become of a packet, found in the plainest way: whatever is not known is tried with each value."""

from __future__ import annotations

from collections.abc import Mapping

from conntracker.rules.chain import Chain
from conntracker.rules.fields import FIELDS, width_of
from conntracker.rules.intervals import contains
from conntracker.rules.order import WAYS, base_chains, effective_priority
from conntracker.rules.ruleset import KnownChain, Meaning, Ruleset
from conntracker.rules.terms import AnyOf, Assign, Atom, Branches, In, Named, Nat, Part, Term, Verdict
from conntracker.steps import Rule

Packet = dict[str, int | str | None]
Key = tuple[str, ...]
_BARE = {*range(130, 137), 143}  # ICMPv6 that connection tracking leaves alone
# Names that patterns like `eth*` tell apart, where an interface is not known.
_NAMES = ("", "lo", "eth0", "eth1", "eth12", "wlan3", "x")
_ROUTING_KEY = ("mark", "saddr", "daddr", "tos")
_ENDS = ("drop", "reject", "queue", "stolen")


class _Question(Exception):
    def __init__(self, key: Key, answers: list[int]) -> None:
        self.key, self.answers = key, answers


def chain(
    name: str,
    *rules: tuple[Part, ...],
    hook: str | None = None,
    priority: int = 0,
    policy: str = "accept",
    kind: str = "filter",
    family: str = "inet",
) -> KnownChain:
    """A chain of nft's table `t` (of nat's chains `n`)."""
    texts = tuple(Rule("nft", family, "t", name, number, number, str(parts)) for number, parts in enumerate(rules, 1))
    made = Chain(
        "nft", family, "t", name, hook, priority if hook else None, policy if hook else None, kind if hook else None,
        None, texts,
    )  # fmt: skip
    return KnownChain(made, tuple(Meaning(parts) for parts in rules))


def outcomes(ruleset: Ruleset, packet: Mapping[str, int | str | None], way: str) -> set[str]:
    """All verdicts that the packet may get."""
    found: set[str] = set()
    waiting: list[dict[Key, int]] = [{}]
    while waiting:
        known = waiting.pop()
        try:
            found.add(_Walk(ruleset, dict(packet), way, known).verdict())
        except _Question as question:
            waiting += [known | {question.key: answer} for answer in question.answers]
    return found


class _Walk:
    def __init__(self, ruleset: Ruleset, packet: Packet, way: str, known: dict[Key, int]) -> None:
        self.ruleset, self.packet, self.way, self.known = ruleset, packet, way, known
        self.version = int(packet["family"] or 0)
        self.hook = ""
        self.tracked = False  # whether connection tracking has seen it
        self.untracked = False
        self.looped = way != "output" and packet["iif"] == "lo"  # it was tracked on its way out
        self.natted: set[str] = set()
        self.lost: dict[str, int] = {}
        self.asked: dict[str, int] = {}

    def verdict(self) -> str:
        ended = self.pass_hooks(WAYS[self.way])
        if ended is None and self.way == "output" and self.packet.get("oif") == "lo":
            self.way = "input"
            self.packet |= {"iif": "lo", "packet_type": 0, "reverse_path": 1}
            self.assign(Assign("ct_status", 8, 8))
            for name in ("skuid", "skgid"):
                self.lose(name)
            ended = self.pass_hooks(("prerouting", "input"))
        return ended or "accept"

    def pass_hooks(self, hooks: tuple[str, ...]) -> str | None:
        for hook in hooks:
            self.hook = hook
            sent_to, remarked = self.packet.get("daddr"), False
            if hook == "forward":
                self.hop()
            if hook in ("prerouting", "output"):
                self.tracked = hook == "prerouting" and self.packet["iif"] == "lo"
            for chain in base_chains(self.ruleset, self.version, hook):
                self.tracked = self.tracked or effective_priority(chain) > -200
                if chain.chain.type == "nat" and not self.nat_wanted():
                    continue
                key = [self.packet.get(name) for name in _ROUTING_KEY]
                ended = self.chain(chain) or chain.chain.policy or "accept"
                if ended in _ENDS:
                    return ended
                now = [self.packet.get(name) for name in _ROUTING_KEY]
                remarked = remarked or (chain.chain.type == "route" and now != key)
            self.tracked = True
            if remarked or (hook == "output" and self.packet.get("daddr") != sent_to):
                self.lose("oif")  # no host, no routes
            if hook not in ("ingress", "forward"):
                self.natted.add("dst" if hook in ("prerouting", "output") else "src")
        return None

    def hop(self) -> None:
        ttl = self.packet.get("ttl")
        if isinstance(ttl, int):
            self.packet["ttl"] = max(ttl - 1, 0)
        else:
            self.lose("ttl")

    def value(self, field: str) -> int | str | None:  # noqa: PLR0911
        if field in ("iif", "oif"):
            none = {"iif": ("output",), "oif": ("ingress", "prerouting", "input")}[field]
            away = self.hook in none or (field == "iif" and self.way == "output")
            if away or field in self.packet:
                return "" if away else self.packet[field]
            return _NAMES[self.ask((field, str(self.lost.get(field, 0))), list(range(len(_NAMES))))]
        if field == "ct_state":
            if self.untracked:
                return 4
            if not self.tracked:
                return 0
            if not self.looped and self.value("protocol") == 58 and self.value("icmp_type") in _BARE:
                return 4
        for other, values in FIELDS[field].requires:
            if field in self.packet and other not in self.packet:
                continue  # what is said to have a value is there
            have = self.value(other)
            if not isinstance(have, int) or not contains(values, have):
                return None
        if field not in self.packet:
            key = (field, str(self.lost.get(field, 0)))
            return self.ask(key, list(range(min(1 << width_of(field, self.version), 8))))
        return self.packet[field]

    def ask(self, key: Key, answers: list[int]) -> int:
        if key not in self.known:
            raise _Question(key, answers)
        return self.known[key]

    def holds(self, term: Term) -> bool:  # noqa: PLR0911
        if isinstance(term, In):
            value = self.value(term.field)
            if term.mask is not None and term.field not in self.packet and value is not None:
                # tests of different bits are taken to have nothing to do with each other
                return bool(self.ask((str(term), str(self.lost.get(term.field, 0))), [0, 1]))
            mask = -1 if term.mask is None else term.mask
            return isinstance(value, int) and contains(term.values, value & mask)
        if isinstance(term, Named):
            name = str(self.value(term.field))
            fits = [name.startswith(one[:-1]) if one[-1:] == "*" else name == one for one in term.patterns]
            return any(fits) != term.negated
        if isinstance(term, AnyOf):
            if not term.negated:
                return any(all(self.holds(test) for test in box) for box in term.boxes)
            if any(self.value(test.field) is None for test in term.boxes[0]):
                return False
            return not any(all(self.holds(test) for test in box) for box in term.boxes)
        return self.atom(term)

    def atom(self, atom: Atom) -> bool:
        self.asked[atom.occurrence] = self.asked.get(atom.occurrence, 0) + 1
        again = str(self.asked[atom.occurrence]) if atom.occurrence else ""
        return bool(self.ask((atom.name, atom.text, atom.occurrence, again), [0, 1])) != atom.negated

    def nat_wanted(self) -> bool:
        if ("dst" if self.hook in ("prerouting", "output") else "src") in self.natted or self.packet.get("first") == 0:
            return False
        state = self.value("ct_state")
        return state == 3 or (state == 2 and self.value("protocol") not in (1, 58))

    def chain(self, known: KnownChain) -> str | None:
        for meaning in known.meanings:
            verdict = self.rule(meaning)
            if verdict is None or verdict.kind == "continue":
                continue
            if verdict.kind == "return":
                return None
            if verdict.kind not in ("jump", "goto"):
                return verdict.kind
            key = (*known.key[:3], verdict.chain or "")
            ended = self.chain(self.ruleset.by_key()[key])
            if ended or verdict.kind == "goto":
                return ended
        return None

    def rule(self, meaning: Meaning) -> Verdict | None:
        for part in meaning.parts:
            if isinstance(part, In | Named | AnyOf | Atom):
                if not self.holds(part):
                    return None
            elif isinstance(part, Assign):
                self.assign(part)
            elif isinstance(part, Nat):
                if part.family not in (None, self.version):
                    continue
                self.translate(part)
                return Verdict("accept")
            elif isinstance(part, Branches):
                return next((verdict for case, verdict in part.cases if self.holds(case)), None)
            elif isinstance(part, Verdict):
                return part
        return None

    def assign(self, part: Assign) -> None:
        if part.field == "ct_state":
            if part.value is not None:
                self.untracked = self.untracked or not self.tracked or self.packet.get("ct_state") == 0
            elif not self.tracked:  # another zone
                for name in ("ct_state", "ct_status", "ct_direction", "ct_mark", "first"):
                    self.lose(name)
        elif self.value(part.field) is not None:
            source = 0 if part.source is None else self.value(part.source)
            old = self.value(part.field)
            if source is None:
                return
            if part.value is None or not isinstance(source, int) or not isinstance(old, int):
                self.lose(part.field)
            else:
                self.packet[part.field] = (old & ~part.mask) ^ (source & part.source_mask) ^ part.value

    def lose(self, field: str) -> None:
        self.packet.pop(field, None)
        self.lost[field] = self.lost.get(field, 0) + 1

    def translate(self, nat: Nat) -> None:
        dst = self.hook in ("prerouting", "output")
        before = [self.packet.get(name) for name in ("saddr", "sport", "daddr", "dport")]
        self.natted.add("dst" if dst else "src")
        if nat.addresses is not None and nat.addresses[0] == nat.addresses[1]:
            self.packet["daddr" if dst else "saddr"] = nat.addresses[0]
        if nat.kind == "netmap" and nat.addresses is not None:
            low, high = nat.addresses
            field = "daddr" if dst else "saddr"
            self.packet[field] = low | (int(self.packet[field] or 0) & (high - low))
        port = "dport" if dst else "sport"
        if nat.ports is not None and self.value(port) is not None:
            self.packet[port] = nat.ports[0]
        now = [self.packet.get(name) for name in ("saddr", "sport", "daddr", "dport")]
        if now != before and "ct_status" in self.packet and (status := self.value("ct_status")) is not None:
            self.packet["ct_status"] = int(status) | (32 if dst else 16)
