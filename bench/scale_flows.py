"""Packets for the rulesets of scale_site and scale_flat, as columns: half of them inside the rules."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address
from random import Random

import numpy as np
from numpy.typing import NDArray

from scale_words import prefix


@dataclass(frozen=True, slots=True)
class Flows:
    """Packets of flows.

    columns   field (conntracker.rules.fields) -> array of `size` numbers; of iif and oif indices into `names`
    """

    columns: dict[str, NDArray[np.uint64]]
    names: tuple[str, ...]
    size: int


_PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1}


def _network(text: str) -> tuple[int, int]:
    address, _, length = text.partition("/")
    return prefix(int(IPv4Address(address)), int(length or 32))


def _address_range(text: str) -> tuple[int, int]:
    low, high = text.split("-")
    return int(IPv4Address(low)), int(IPv4Address(high))


def _port_range(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    return int(low), int(high or low)


def _mac(text: str) -> tuple[int, int]:
    value = int(text.replace(":", ""), 16)
    return value, value


_OPTIONS = {
    "-s": ("saddr", _network), "-d": ("daddr", _network), "--src-range": ("saddr", _address_range),
    "--dst-range": ("daddr", _address_range), "--sport": ("sport", _port_range), "--dport": ("dport", _port_range),
    "--mac-source": ("mac", _mac),
}  # fmt: skip
_WORDS = re.compile(r"(?<= )(-s|-d|-p|-i|-o|--src-range|--dst-range|--sport|--dport|--dports|--mac-source) ([^ ]+)")


_WHOLE = {
    "saddr": (0x01000000, 0xDFFFFFFF), "daddr": (0x01000000, 0xDFFFFFFF), "sport": (1024, 65535), "dport": (1, 65535),
    "mac": (0x020000000000, 0x0200FFFFFFFF), "protocol": (6, 6),
}  # fmt: skip
# The interface that leads to a chain of the site's dump, by the chain's name; eth0 where a rule names none.
_CHAIN = re.compile(r"-A (mac|from|to)_(\d+) ")


def _boxes(text: str, rng: Random) -> tuple[dict[str, NDArray[np.uint64]], dict[str, list[str]]]:
    """Of each rule of an iptables-save of ours: (low, high) of every number, and the interfaces' names."""
    columns: dict[str, list[tuple[int, int]]] = {name: [] for name in _WHOLE}
    names: dict[str, list[str]] = {"iif": [], "oif": []}
    for line in text.splitlines():
        if not line.startswith("-A "):
            continue
        asked = dict(_WORDS.findall(line))
        box = dict(_WHOLE)
        box["protocol"] = (_PROTOCOLS[asked.get("-p", rng.choice(("tcp", "udp")))],) * 2
        for option, value in asked.items():
            if option in _OPTIONS:
                field, read = _OPTIONS[option]
                box[field] = read(value)
        if "--dports" in asked:
            box["dport"] = _port_range(rng.choice(asked["--dports"].split(",")))
        for name, pair in box.items():
            columns[name].append(pair)
        chain = _CHAIN.match(line)
        if chain is not None:
            asked.setdefault("-o" if chain[1] == "to" else "-i", f"eth1.{chain[2]}")
        names["iif"].append(asked.get("-i", "eth0").replace("+", str(rng.randrange(10, 30))))
        names["oif"].append(asked.get("-o", "eth0").replace("+", str(rng.randrange(10, 30))))
    return {name: np.array(pairs, dtype=np.uint64) for name, pairs in columns.items()}, names


def flows(count: int, text: str, seed: int = 1, way: str = "input") -> Flows:
    """So many packets for an iptables-save that this module made: half of them inside a rule, half of them shuffled.

    The shuffled ones have each field of another rule. `way` is input or forward: whether packets have an `oif`.
    """
    boxes, names = _boxes(text, Random(seed))  # noqa: S311
    rng = np.random.default_rng(seed)
    rules = len(names["iif"])
    inside = rng.random(count) < 0.5
    own = rng.integers(0, rules, count)

    def chosen() -> NDArray[np.intp]:
        """The rule that a field's value is drawn from."""
        return np.where(inside, own, rng.integers(0, rules, count))

    columns = {"family": np.full(count, 4, np.uint64)}
    for name, pairs in boxes.items():
        rule = chosen()
        low, high = pairs[rule, 0], pairs[rule, 1]
        columns[name] = low + (rng.random(count) * (high - low + np.uint64(1)).astype(np.float64)).astype(np.uint64)
    known = ["", *sorted({name for values in names.values() for name in values})]
    for name, needed in (("iif", True), ("oif", way == "forward")):
        codes = np.array([known.index(value) for value in names[name]], np.uint64)
        columns[name] = codes[chosen()] if needed else np.zeros(count, np.uint64)
    return Flows(columns | _rest(rng, columns["protocol"]), tuple(known), count)


def _rest(rng: np.random.Generator, protocol: NDArray[np.uint64]) -> dict[str, NDArray[np.uint64]]:
    """The fields that few rules ask for."""
    count = len(protocol)
    icmp = protocol == 1
    return {
        "fragment": np.zeros(count, np.uint64),
        "icmp_type": np.where(icmp, rng.choice(np.array([0, 3, 8, 11], np.uint64), count), 0).astype(np.uint64),
        "icmp_code": np.zeros(count, np.uint64),
        "tcp_flags": np.where(protocol == 6, rng.choice(np.array([2, 2, 2, 16, 18, 3], np.uint64), count), 0).astype(
            np.uint64
        ),
        "ct_state": rng.choice(np.array([3, 3, 3, 3, 1, 1, 0, 2], np.uint64), count),
        "mark": np.zeros(count, np.uint64),
        "length": np.full(count, 60, np.uint64),
        "ttl": np.full(count, 64, np.uint64),
    }
