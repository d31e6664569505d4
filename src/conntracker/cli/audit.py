"""`conntracker audit`: what is wrong with a ruleset, or may be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conntracker.cli.common import lines_width
from conntracker.cli.rulefiles import add_rules_arguments, live_host, load
from conntracker.output import Output

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Sequence

    from conntracker.answers.audit_wide import Wide
    from conntracker.rules.intervals import Intervals
    from conntracker.rules.ruleset import Ruleset

    Local = dict[int, Intervals] | None

__all__ = ["add_arguments", "run"]

FOUND = 1
# As in answers.audit_findings, which takes numpy and the solver to import.
KINDS = ("dead", "redundant", "policy", "unused-chain", "unused-set", "unhit", "order", "wide")


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `conntracker audit`."""
    add_rules_arguments(parser)
    parser.add_argument(
        "-r", "--read", metavar="DIR", action="append",
        help="a recording made with -t: also ACCEPTs far wider than what was seen; without --rules and --netns, of"
        " the rules that were in force when it began",
    )  # fmt: skip
    parser.add_argument("--only", metavar="KIND", help=f"what to look for, a list with commas: {', '.join(KINDS)}")
    parser.add_argument("--fail-on", metavar="KIND", help="exit with 1 if anything of these kinds is found; a list")
    parser.add_argument("--json", action="store_true", help="an object a line, the first of them a summary")


def run(args: Namespace) -> int:
    """Prints the findings; 1 if there are some of --fail-on."""
    only = _kinds("--only", args.only) or KINDS
    fail_on = _kinds("--fail-on", args.fail_on)
    if missed := [kind for kind in fail_on if kind not in only]:
        raise ValueError(f"--fail-on: {missed[0]} is not looked for with this --only")
    if "wide" in (*fail_on, *_kinds("--only", args.only)) and not args.read:
        raise ValueError("wide needs a recording to compare with: -r DIR")
    from conntracker.answers.audit import audit
    from conntracker.formats.audit import audit_json, audit_lines

    if args.read and not args.rules and args.netns is None:
        ruleset, local, counted = _recorded(args.read)
    else:
        ruleset = load(args.rules, args.netns)
        local, counted = (None, "") if args.rules else _of_host(args.netns)
    wide = _wide(ruleset, args.read) if args.read and "wide" in only else ()
    slow = "redundant" in (*fail_on, *_kinds("--only", args.only))
    found = audit(ruleset, only, local=local, counted=counted, wide=wide, slow=slow)
    width = lines_width()
    with Output("-").open() as out:
        for line in audit_json(found) if args.json else audit_lines(found, width):
            out.write(line.encode("utf-8", "replace"))
    return FOUND if found.of(fail_on) else 0


def _kinds(option: str, text: str | None) -> tuple[str, ...]:
    """The kinds of a list with commas. Raises ValueError for one that there is not."""
    found = tuple(dict.fromkeys(word.strip() for word in (text or "").split(",") if word.strip()))
    if unknown := [kind for kind in found if kind not in KINDS]:
        raise ValueError(f"{option}: no kind {unknown[0]!r}; there are: {', '.join(KINDS)}")
    return found


def _of_host(netns: str | None) -> tuple[Local, str]:
    """(the host's own addresses by IP version, since when its counters count at most)."""
    host = live_host(netns)
    with open("/proc/uptime", encoding="ascii") as file:
        seconds = float(file.read().split()[0])
    days, hours = int(seconds // 86400), int(seconds % 86400 // 3600)
    up = f"{days} d {hours} h" if days else f"{hours} h {int(seconds % 3600 // 60)} min"
    since = f"since it was last zero, which is not known (the host is up for {up})"
    return (None if host is None else dict(host.local)), since


def _recorded(directories: Sequence[str]) -> tuple[Ruleset, Local, str]:
    """The same of the rules that a recording keeps."""
    from conntracker.recording.reader import open_recording

    with open_recording(directories) as recording:
        situation = recording.situation()
    if situation is None:
        raise ValueError("the recording does not have the rules in force: say --rules FILE")
    local = None if situation.host is None else dict(situation.host.local)
    return situation.ruleset.uncounted(), local, ""  # its counters are older than all that was recorded


def _wide(ruleset: Ruleset, directories: Sequence[str]) -> Sequence[Wide]:
    from conntracker.answers.audit_wide import wide_rules
    from conntracker.recording.reader import open_recording

    with open_recording(directories) as recording:
        return wide_rules(ruleset, recording)
