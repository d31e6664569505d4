"""The rules engine on large rulesets: parse, dead rules, equivalence and deciding, each in a process of its own.

`python bench/rules.py scale [CASE ...]` makes the rulesets of bench/rulesets_scale.py, prints a table of seconds and
peak memory, and says which demands hold: of CPU time, as others may work on the machine.
`python bench/rules.py counters FOLDER` looks at dumps with counters: a rule that is called dead must never have
counted a packet.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import Claim, judge, table
from rulesets_scale import SHAPES, flat_list, flows, iptables_dump

if TYPE_CHECKING:
    from conntracker.rules.ruleset import Ruleset
    from conntracker.steps import Rule

DUMP_RULES, FLAT_RULES, FLOWS = 5_500, 10_000, 1_000_000
STEPS = ("parse", "dead", "equivalent", "decide")
_SECONDS = {"parse": 2.0, "dead": 10.0, "equivalent": 10.0, "decide": 5.0}
_MEMORY = {"dead": 250.0}  # MB
_PATIENCE = 90.0  # seconds that one step may take before it counts as failed


def main() -> int:
    """Runs one of the modes. Returns the exit code."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    modes = options.add_subparsers(dest="mode", required=True)
    scale = modes.add_parser("scale", help="the large rulesets")
    scale.add_argument("cases", nargs="*", help=f"of {', '.join(cases())}; all by default")
    scale.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    counters = modes.add_parser("counters", help="dumps that have counters")
    counters.add_argument("folder", type=Path)
    child = modes.add_parser("child")
    child.add_argument("step", choices=STEPS)
    child.add_argument("file", type=Path)
    arguments = options.parse_args()
    if arguments.mode == "scale":
        return measure(arguments.cases or list(cases()), arguments.steps)
    if arguments.mode == "counters":
        return count(arguments.folder)
    print(json.dumps(run_step(arguments.step, arguments.file)))
    return 0


# ------------------------------------------------------------------ the large rulesets


def cases() -> dict[str, Callable[[], str]]:
    """Texts by name."""
    made: dict[str, Callable[[], str]] = {"dump.v4": lambda: iptables_dump(DUMP_RULES)}
    for shape in SHAPES:
        made[f"{shape}.v4"] = lambda shape=shape: flat_list(FLAT_RULES, shape)[0]  # type: ignore[misc]
    for shape in SHAPES:
        made[f"{shape}.json"] = lambda shape=shape: as_json(flat_list(FLAT_RULES, shape)[1])  # type: ignore[misc]
    return made


def as_json(text: str) -> str:
    """What nft makes of its syntax, in a network namespace that ends with it."""
    script = "nft -f - && nft -j -a list ruleset"
    return subprocess.run(
        ["unshare", "--net", "sh", "-c", script], input=text, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def measure(names: Iterable[str], steps: Iterable[str]) -> int:
    """Prints the table and the demands."""
    rows, claims = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            file = Path(folder) / name
            file.write_text(cases()[name]())
            for step in steps:
                found = in_child(step, file)
                rows.append([name, step, found["cpu"], found["wall"], found["peak"], found["told"]])
                claims.append(Claim(f"{name} {step}", found["cpu"], _SECONDS[step], "s of CPU"))
                if step in _MEMORY:
                    claims.append(Claim(f"{name} {step}, memory", found["peak"], _MEMORY[step], "MB"))
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    table(["ruleset", "step", "CPU s", "wall s", "peak MB", "found"], rows)
    return judge(claims)


def in_child(step: str, file: Path) -> dict[str, Any]:
    """What run_step says, from a new process; a step that fails or is too slow takes forever."""
    command = [sys.executable, __file__, "child", step, str(file)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=_PATIENCE)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        never = float("inf")
        return {"cpu": never, "wall": never, "peak": never, "told": type(error).__name__}
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def run_step(step: str, file: Path) -> dict[str, Any]:
    """Reads the file and does the step, which alone is timed: CPU and wall seconds, peak MB of the whole process."""
    text = file.read_text()
    given = _prepare(step, file.name, text)
    cpu, wall = time.process_time(), time.perf_counter()
    told = _STEPS[step](file.name, given)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu": cpu, "wall": wall, "peak": peak, "told": told}


def parse(name: str, text: str) -> Ruleset:
    """By the ending of the name: .json is of nft, all else of iptables-save."""
    from conntracker.rules.iptables import parse_save
    from conntracker.rules.nft import parse_json
    from conntracker.rules.ruleset import Ruleset

    return parse_json(text, source=name) if name.endswith(".json") else Ruleset(parse_save(text, source=name))


def without(ruleset: Ruleset, rules: Iterable[Rule]) -> Ruleset:
    """The ruleset less these rules."""
    from dataclasses import replace

    gone = set(rules)
    chains = []
    for known in ruleset.chains:
        kept = [(rule, meaning) for rule, meaning in known.items() if rule not in gone]
        chain = replace(known.chain, rules=tuple(rule for rule, _ in kept))
        chains.append(replace(known, chain=chain, meanings=tuple(meaning for _, meaning in kept)))
    return replace(ruleset, chains=tuple(chains))


def _prepare(step: str, name: str, text: str) -> Any:
    """What a step needs before it is timed."""
    if step == "parse":
        return text
    ruleset = parse(name, text)
    if step == "dead":
        return ruleset
    if step == "equivalent":
        from conntracker.rules.solve.dead import dead

        return ruleset, without(ruleset, (one.rule for one in dead(ruleset) if one.certainty == "always"))
    from conntracker.rules.decide import Column

    way = "forward" if name == "dump.v4" else "input"
    source = text if name.endswith(".v4") else cases()[name.replace(".json", ".v4")]()
    drawn = flows(FLOWS, source, way=way)
    names = {"iif", "oif"}
    columns = {
        field: Column(values, names=drawn.names if field in names else ()) for field, values in drawn.columns.items()
    }
    return ruleset, columns, way


def _parse(name: str, text: str) -> str:
    return f"{sum(len(known.meanings) for known in parse(name, text).chains):,} rules"


def _dead(_name: str, ruleset: Ruleset) -> str:
    from conntracker.rules.solve.dead import dead

    found = dead(ruleset)
    return f"{sum(one.certainty == 'always' for one in found):,} dead"


def _equivalent(_name: str, pair: tuple[Ruleset, Ruleset]) -> str:
    from conntracker.rules.solve.equal import equivalent

    return "equal" if equivalent(*pair) else "DIFFERENT"


def _decide(_name: str, given: tuple[Ruleset, dict[str, Any], str]) -> str:
    import numpy as np

    from conntracker.rules.decide import VERDICTS, decide

    ruleset, columns, way = given
    decided = decide(ruleset, columns, way)
    numbers = np.bincount(decided.verdict, minlength=len(VERDICTS))
    return " ".join(f"{name} {number:,}" for name, number in zip(VERDICTS, numbers, strict=False) if number)


_STEPS: dict[str, Callable[[str, Any], str]] = {
    "parse": _parse, "dead": _dead, "equivalent": _equivalent, "decide": _decide,
}  # fmt: skip


# ------------------------------------------------------------------ dumps with counters


def count(folder: Path) -> int:
    """Dead rules and their counters in each dump. Returns the exit code: 1 if a dead one has counted a packet."""
    from conntracker.rules.solve.dead import dead

    rows, wrong = [], []
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or file.suffix in {".md", ".nft", ".json"}:
            continue
        ruleset = parse(file.name, file.read_text(errors="replace"))
        counters = {rule: meaning.counters for known in ruleset.chains for rule, meaning in known.items()}
        found = [one for one in dead(ruleset) if one.certainty == "always"]
        counted = [one for one in found if counters[one.rule] is not None]
        hit = [one for one in counted if (counters[one.rule] or (0, 0))[0]]
        wrong += [f"{one.rule.source}: {one.rule.text}" for one in hit]
        rows.append([file.name, len(counters), len(found), len(counted), len(hit)])
    table(["dump", "rules", "dead", "of these with counters", "and hit"], rows)
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
